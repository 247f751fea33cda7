"""``python -m langevin_xtal``: the command, also where a launcher wants a module."""

from __future__ import annotations

from langevin_xtal.cli import main

if __name__ == "__main__":
    main()
