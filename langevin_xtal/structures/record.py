"""What a reader hands on: structures with all that came along, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.ase import to_atoms
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.errors import RejectError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MOST_ATOMS = 100_000
"""Atoms of one structure that is read."""
LONGEST = 10_000.0
"""Longest axis of a cell that is read [Å]."""
FLATTEST = 0.3
"""Least distance between opposite faces of a cell that is read [Å]."""
VACUUM = 4.0
"""Thickness of a layer that no atom's covalent radius reaches into, of a slab [Å]."""
FARTHEST = 1000.0
"""Largest fractional coordinate that is read: beyond, digits are lost, or a point was."""
_LONGEST_LINE = 300


@dataclass(frozen=True, eq=False)
class ReadStructure:
    """One structure of a file, and what the file says of it besides.

    Moments, fixed atoms and oxidation states are None where the file has none.
    """

    id: str
    cell: Cell
    """Lattice rows [Å], fractional coordinates, atomic numbers, as in the file."""
    energy: float | None = None
    """Total energy of the cell [eV]."""
    moments: FloatArray | None = None
    """(N, 3) magnetic moments [μB], Cartesian; of collinear ones the z component."""
    fixed: NDArray[np.bool_] | None = None
    """(N, 3) True where an atom may not move along an axis of the cell."""
    oxidation: FloatArray | None = None
    """(N,) oxidation states, NaN where unknown."""
    properties: dict[str, float] = field(default_factory=dict)
    """Further numbers by name."""
    notes: tuple[str, ...] = ()
    """Sentences on what was assumed, changed or left out."""
    source: str = ""
    """Name of the file."""

    @property
    def structure(self) -> Structure:
        """pymatgen Structure; moments as the site property ``magmom``."""
        made = to_structure(self.cell)
        if self.moments is not None:
            made.add_site_property("magmom", collinear(self.moments).tolist())
        if self.fixed is not None:
            made.add_site_property("selective_dynamics", (~self.fixed).tolist())
        if self.oxidation is not None and np.isfinite(self.oxidation).all():
            made.add_oxidation_state_by_site(self.oxidation.tolist())
        return made

    @property
    def atoms(self) -> Atoms:
        """ase.Atoms, with moments and fixed atoms."""
        from ase.constraints import FixScaled

        made = to_atoms(self.cell)
        if self.moments is not None:
            made.set_initial_magnetic_moments(collinear(self.moments))
        if self.fixed is not None:
            made.set_constraint(
                [FixScaled(k, mask) for k, mask in enumerate(self.fixed) if mask.any()]
            )
        return made

    def __repr__(self) -> str:
        numbers, counts = np.unique(self.cell[2], return_counts=True)
        formula = "".join(
            f"{SYMBOLS[z]}{n if n > 1 else ''}" for z, n in zip(numbers, counts, strict=True)
        )
        return f"ReadStructure({self.id}, {formula}, {len(self.cell[2])} atoms)"


@dataclass(frozen=True)
class Record:
    """One structure as found in a file, not yet parsed, so that this can be done in parallel.

    ``parse`` is a function of a module and makes a :class:`ReadStructure` of ``payload``, or
    raises :class:`RejectError`; ``properties`` are numbers known beforehand.
    """

    id: str
    payload: Any
    parse: Callable[[Any], ReadStructure]
    properties: dict[str, float] = field(default_factory=dict)
    source: str = ""


def read(record: Record) -> ReadStructure:
    """The structure of a record.

    Raises
    ------
    RejectError
        When the record holds no ordered, three-dimensional crystal.
    """
    found = record.parse(record.payload)
    cell = checked(found.cell)
    empty = vacuum(cell)
    return replace(
        found,
        id=record.id,
        cell=cell,
        properties={**found.properties, **record.properties},
        source=record.source,
        notes=(*found.notes, empty) if empty else found.notes,
    )


def rejected(payload: tuple[str, str]) -> ReadStructure:
    """``parse`` of what could not be read: raises its reason and detail."""
    raise RejectError(*payload)


def checked(cell: Cell) -> Cell:
    """A cell with atoms and a shape that can be worked with.

    Raises
    ------
    RejectError
        When it is none.
    """
    lattice, frac, numbers = cell
    if lattice.shape != (3, 3) or not np.isfinite(lattice).all():
        raise RejectError("the cell is not a finite 3 × 3 matrix")
    if not len(numbers):
        raise RejectError("there are no atoms")
    if frac.shape != (len(numbers), 3) or not np.isfinite(frac).all():
        raise RejectError("the positions are not finite, or their number is not that of the atoms")
    if not numbers.min() > 0:
        raise RejectError(
            "unknown element", f"atom {int(numbers.argmin()) + 1} is a dummy (X, or number 0)"
        )
    if numbers.max() >= len(SYMBOLS):
        raise RejectError("unknown element", f"atomic number {numbers.max()}")
    if np.abs(frac).max() > FARTHEST:
        raise RejectError(
            "a position is far outside the cell",
            f"atom {int(np.abs(frac).max(axis=1).argmax()) + 1} by {np.abs(frac).max():.3g} cells",
        )
    if len(numbers) > MOST_ATOMS:
        raise RejectError(f"more than {MOST_ATOMS} atoms", str(len(numbers)))
    lengths = np.linalg.norm(lattice, axis=1)
    if lengths.max() > LONGEST:
        raise RejectError(
            f"an axis of the cell is longer than {LONGEST:.0f} Å", f"{lengths.max():g} Å"
        )
    volume = abs(float(np.linalg.det(lattice)))
    areas = np.linalg.norm(np.cross(lattice[[1, 2, 0]], lattice[[2, 0, 1]]), axis=1)
    if not areas.min() > 0 or volume / areas.max() < FLATTEST:
        raise RejectError(
            f"the cell is flat: opposite faces are closer than {FLATTEST} Å",
            f"volume {volume:g} Å³",
        )
    return lattice.astype(float), frac.astype(float), numbers.astype(np.int64)


def vacuum(cell: Cell) -> str:
    """A sentence where atoms leave a layer of a cell empty, as in a slab or a box; else empty."""
    lattice, frac, numbers = cell
    heights = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    place = frac - np.floor(frac)
    ordered = np.sort(place, axis=0)
    gaps = np.diff(ordered, axis=0, append=ordered[:1] + 1.0).max(axis=0) * heights
    axes = []
    for k in np.flatnonzero(gaps > VACUUM):
        order = np.argsort(place[:, k], kind="stable")
        centre, radius = place[order, k] * heights[k], covalent_radii()[numbers[order]]
        # the highest point of all atoms below, those of the cell underneath included
        top = np.maximum.accumulate(centre + radius)
        top = np.maximum(top, top[-1] - heights[k])
        bottom = np.append(centre[1:], centre[0] + heights[k]) - np.append(radius[1:], radius[0])
        if (bottom - top).max() > VACUUM:
            axes.append("abc"[k])
    if not axes:
        return ""
    what = "a molecule in a box" if len(axes) == 3 else "a slab" if len(axes) == 1 else "a chain"
    return (
        f"there is vacuum across {', '.join(axes)}, as of {what}; it is treated as a bulk crystal"
    )


@cache
def covalent_radii() -> FloatArray:
    """(119,) radii by atomic number [Å]."""
    from gemmi import Element

    return np.array([Element(z).covalent_r for z in range(len(SYMBOLS))])


def collinear(moments: FloatArray) -> FloatArray:
    """(N,) signed moments along their common axis; of non-collinear ones the lengths with a sign
    by the direction nearest to the largest."""
    lengths = np.linalg.norm(moments, axis=1)
    if not lengths.max(initial=0.0) > 0:
        return np.zeros(len(moments))
    axis = moments[int(lengths.argmax())] / lengths.max()
    z_only = not np.abs(moments[:, :2]).max(initial=0.0) > 1e-9
    return moments[:, 2] if z_only else np.where(moments @ axis < 0, -lengths, lengths)


def is_collinear(moments: FloatArray) -> bool:
    """Whether all moments (N, 3) lie along one axis, to 0.05 μB."""
    lengths = np.linalg.norm(moments, axis=1)
    if not lengths.max(initial=0.0) > 0:
        return True
    axis = moments[int(lengths.argmax())] / lengths.max()
    return bool((np.linalg.norm(np.cross(moments, axis), axis=1) < 0.05).all())


def number(value: object) -> float | None:
    """``value`` as a finite float, or None."""
    if isinstance(value, (bool, np.bool_, int, float, np.integer, np.floating, str)):
        try:
            found = float(value)
        except (ValueError, OverflowError):
            return None
        return found if math.isfinite(found) else None
    return None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind; cut where it is long."""
    lines = str(error).strip().splitlines()
    text = "".join(c if c.isprintable() else "�" for c in lines[0]) if lines else ""
    text = text or type(error).__name__
    return text if len(text) <= _LONGEST_LINE else text[:_LONGEST_LINE] + "…"
