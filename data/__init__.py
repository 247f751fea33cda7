"""Reference material of langevin-xtal; installed as ``langevin_xtal.reference_data``."""
