"""How the shipped models are made, a TOML file each: ``langevin-xtal train --recipe NAME``."""
