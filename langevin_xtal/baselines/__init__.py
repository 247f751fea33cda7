"""Published generators of crystals beside the package's own, under one interface.

Nothing of the main path imports this package; :mod:`langevin_xtal.baselines.registry` names the
generators and imports the one that is asked for.
"""
