"""Tolerances of the search for symmetry."""

from __future__ import annotations

TIGHT = 1e-3
"""Of crystals whose atoms are placed exactly [Å]."""
USUAL = 1e-2
"""By default, and of the group that is reported where one is [Å]."""
LOOSE = 1e-1
"""Of crystals that were relaxed without symmetry, and are never exact [Å]."""
SYMPRECS = (TIGHT, USUAL, LOOSE)
"""Tolerances at which the space group of a candidate is detected [Å]."""
