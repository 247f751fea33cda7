"""What relaxation did to a crystal that someone should look at, as facts with numbers."""

from __future__ import annotations

from itertools import product

import numpy as np

from langevin_xtal.crystal.cell import Cell

SWELLING = 0.25
"""Relative changes of volume above this are worth a word."""
GAP = 4.0
"""Between layers [Å]; those of graphite, MoS2 or Bi2Te3 have 2.6 to 3.4."""
GROWTH = 1.0
"""A gap that has grown by less has not opened [Å]."""

_PLANES = np.array(
    [plane for plane in product((0, 1, -1), repeat=3) if plane > tuple(-k for k in plane)]
)
"""(13, 3) Miller indices up to 1, one of each pair of opposite ones."""


def relaxation_warning(before: Cell | None, after: Cell) -> str:
    """Large changes of volume and layers that drifted apart; empty where there are none.

    Layers drift apart for want of dispersion forces in the potential.

    Parameters
    ----------
    before, after
        The same atoms in the same cell, before relaxation and after.
    """
    if before is None:
        return ""
    return "; ".join(filter(None, (_swelling(before, after), _drifting(before, after))))


def layer_gaps(cell: Cell) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(13,) widest slab without an atom's centre [Å], normal to each plane of low indices."""
    lattice, frac, _ = cell
    places = np.sort(frac @ _PLANES.T % 1.0, axis=0)
    free = np.diff(places, axis=0, append=places[:1] + 1.0).max(axis=0)
    spacing = 1.0 / np.linalg.norm(_PLANES @ np.linalg.inv(lattice).T, axis=1)
    return np.asarray(free * spacing)


def _swelling(before: Cell, after: Cell) -> str:
    change = abs(np.linalg.det(after[0])) / abs(np.linalg.det(before[0])) - 1.0
    return f"volume {100 * change:+.0f} % in relaxation" if abs(change) > SWELLING else ""


def _drifting(before: Cell, after: Cell) -> str:
    first, last = layer_gaps(before), layer_gaps(after)
    widest = int(np.argmax(last))
    if last[widest] < GAP or last[widest] - first[widest] < GROWTH:
        return ""
    plane = " ".join(str(k) for k in _PLANES[widest])
    return f"layers ({plane}) drifted apart, gap {first[widest]:.1f} to {last[widest]:.1f} Å"
