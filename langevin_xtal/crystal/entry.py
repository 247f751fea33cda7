"""One candidate of a search as exports and reports see it, wherever it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import Cell

Value = str | int | float | bool


@dataclass(frozen=True, eq=False)
class Entry:
    """A candidate with its rank and its history.

    ``cell`` is the best geometry there is: relaxed where the candidate was relaxed, as sampled or
    read otherwise.
    """

    uid: str
    """Unique in its source and safe as a file name, such as ``"000017"``."""
    cell: Cell
    """(lattice rows [Å], fractional coordinates, atomic numbers) of the conventional cell."""
    formula: str
    """Reduced formula."""
    space_group: int
    """The group asked for; of a structure that was read, the group found at 0.01 Å."""
    found_group: int | None = None
    """Found by spglib at 0.01 Å in ``cell``, None when it finds none."""
    energy: float | None = None
    """[eV/atom] by the potential, None when not computed."""
    e_above_hull: float | None = None
    """[eV/atom], None when unknown."""
    potential: str = ""
    """Name and version of the potential."""
    sampled: Cell | None = None
    """The geometry as sampled, where ``cell`` was relaxed."""
    properties: Mapping[str, Value] = field(default_factory=dict)
    """What else is known, by name: flags, energies, reasons; plain numbers and strings."""
    provenance: Mapping[str, Value] = field(default_factory=dict)
    """Request, seed, weights, version, sampler."""
    moments: NDArray[np.float64] | None = None
    """(N, 3) magnetic moments [μB] of the atoms of ``cell``, Cartesian; None when not known."""
    fixed: NDArray[np.bool_] | None = None
    """(N, 3) True where an atom of ``cell`` may not move along an axis of the cell."""
    oxidation: NDArray[np.float64] | None = None
    """(N,) oxidation states of the atoms of ``cell``, NaN where unknown; None without any."""
