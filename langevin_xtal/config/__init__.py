"""Settings as frozen dataclasses: defaults, help, ranges and presets, each written once.

Nothing heavy is imported here. Command-line options follow from these fields
(:func:`langevin_xtal.cli.options.of_config`), and so do the defaults of the classes that do the
work.
"""
