"""The cell that is handed to DFT: primitive, conventional, or as stored."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.export import CellChoice
from langevin_xtal.config.tolerances import USUAL
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.structures.record import collinear, is_collinear
from langevin_xtal.symmetry.detection import standard_cell

if TYPE_CHECKING:
    from ase.constraints import FixConstraint
    from pymatgen.core import Structure

    from langevin_xtal.crystal.entry import Entry

CELL_CHOICES: tuple[CellChoice, ...] = get_args(CellChoice)
SAME_MOMENT = 0.1
"""Moments of one element that differ by less are equal [μB]."""

_NAME_LENGTH = 60


def export_cell(cell: Cell, choice: CellChoice = "primitive", symprec: float = USUAL) -> Cell:
    """The same crystal in spglib's standardised primitive or conventional cell.

    Atoms are placed exactly where the symmetry found within ``symprec`` has them, so that a DFT
    code with a tighter tolerance finds it too. ``"stored"`` changes nothing; neither do the others
    when spglib finds no symmetry.

    Parameters
    ----------
    cell
        (lattice rows [Å], fractional coordinates, atomic numbers).
    choice
        ``"primitive"``, ``"conventional"`` or ``"stored"``.
    symprec
        Tolerance of the symmetry search [Å].
    """
    if choice == "stored":
        return cell
    standard = standard_cell(cell, symprec, primitive=choice == "primitive", idealise=True)
    return cell if standard is None or not _same_density(standard, cell) else standard


class Carried(NamedTuple):
    """A cell that is handed on, with what is known of its N atoms."""

    cell: Cell
    moments: NDArray[np.float64] | None  #: (N, 3) magnetic moments [μB]
    fixed: NDArray[np.bool_] | None  #: (N, 3) True where an atom may not move along an axis


def carried_cell(entry: Entry, choice: CellChoice, symprec: float) -> Carried:
    """:func:`export_cell` of an entry with its magnetic moments and fixed atoms.

    Atoms of different collinear moments are different atoms to the symmetry search, so that the
    cell holds the magnetic order. Moments that are not collinear, and fixed atoms, belong to the
    stored cell: with fixed atoms it is the one, and otherwise such moments are left out.
    """
    moments, fixed = entry.moments, entry.fixed
    if fixed is not None or choice == "stored":
        return Carried(entry.cell, moments, fixed)
    if moments is None or not is_collinear(moments):
        return Carried(export_cell(entry.cell, choice, symprec), None, None)
    lattice, frac, numbers, found = _magnetic_cell(entry.cell, collinear(moments), choice, symprec)
    along_z = np.zeros((len(found), 3))
    along_z[:, 2] = found
    return Carried((lattice, frac, numbers), along_z, None)


def export_structure(entry: Entry, choice: CellChoice, symprec: float) -> Structure:
    """pymatgen Structure of :func:`carried_cell`, atoms grouped by element as VASP needs them.

    Collinear moments are the site property ``magmom``, fixed atoms ``selective_dynamics``. A
    left-handed cell, which VASP does not take, is inverted: the energy is the same.
    """
    (lattice, frac, numbers), moments, fixed = carried_cell(entry, choice, symprec)
    if np.linalg.det(lattice) < 0:
        lattice = -lattice
    structure = to_structure((lattice, frac, numbers))
    if moments is not None and is_collinear(moments):
        structure.add_site_property("magmom", np.round(collinear(moments), 4).tolist())
    if fixed is not None:
        structure.add_site_property("selective_dynamics", (~fixed).tolist())
    return structure.get_sorted_structure()


def carried_notes(entry: Entry, choice: CellChoice, *, vectors: bool = False) -> list[str]:
    """What came along with an entry and is not, or not quite, what was asked for.

    ``vectors`` where moments may have any direction in the stored cell.
    """
    said = []
    stored = choice == "stored" or entry.fixed is not None
    if entry.moments is not None and not is_collinear(entry.moments) and not (vectors and stored):
        said.append("magnetic moments are not collinear and not written")
    if entry.fixed is not None and choice != "stored":
        said.append("atoms are fixed, so the stored cell is written")
    return said


def ase_constraints(
    fixed: NDArray[np.bool_], lattice: NDArray[np.float64]
) -> tuple[list[FixConstraint], str]:
    """Fixed atoms (N, 3) as ASE's constraints along Cartesian axes, and a note on the others.

    An atom that may move along some axes of the cell can be held so only where these are
    Cartesian.
    """
    from ase.constraints import FixAtoms, FixCartesian

    held: list[FixConstraint] = []
    everywhere = np.flatnonzero(fixed.all(axis=1))
    if len(everywhere):
        held.append(FixAtoms(everywhere.tolist()))
    partly = np.flatnonzero(fixed.any(axis=1) & ~fixed.all(axis=1))
    if not len(partly):
        return held, ""
    if np.abs(lattice - np.diag(np.diag(lattice))).max() > 1e-6:
        return held, "atoms fixed along tilted axes of the cell are not held"
    return [*held, *(FixCartesian(int(k), fixed[k]) for k in partly)], ""


def _magnetic_cell(
    cell: Cell, moments: NDArray[np.float64], choice: CellChoice, symprec: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """:func:`export_cell` of a crystal whose atoms differ by moments [μB] too."""
    lattice, frac, numbers = cell
    kinds = np.zeros(len(numbers), dtype=np.int64)
    element: list[int] = []
    moment: list[float] = []
    for z in np.unique(numbers):
        own = np.flatnonzero(numbers == z)
        order = own[np.argsort(moments[own], kind="stable")]
        apart = np.diff(moments[order], prepend=-np.inf) > SAME_MOMENT
        groups = np.cumsum(apart) - 1 + len(element)
        kinds[order] = groups + 1
        for group in np.unique(groups):
            element.append(int(z))
            moment.append(float(moments[order[groups == group]].mean()))
    if len(element) > len(SYMBOLS) - 1:
        return (*cell, moments)
    made = export_cell((lattice, frac, kinds), choice, symprec)
    return (
        made[0],
        made[1],
        np.array(element, dtype=np.int64)[made[2] - 1],
        np.array(moment)[made[2] - 1],
    )


def entry_name(rank: int, entry: Entry) -> str:
    """``0001-Cu2KSi-62-000017``: a file name whatever the formula and the uid hold."""
    parts = (_plain(entry.formula), str(int(entry.space_group)), _plain(entry.uid))
    return f"{rank:04d}-" + "-".join(parts)


def _plain(text: str) -> str:
    kept = re.sub(r"[^A-Za-z0-9._+-]+", "_", text.replace(" ", ""))
    return kept[:_NAME_LENGTH].strip("._") or "_"


def _same_density(one: Cell, other: Cell) -> bool:
    volumes = [abs(np.linalg.det(c[0])) / len(c[2]) for c in (one, other)]
    counts = [np.unique(c[2], return_counts=True) for c in (one, other)]
    shares = [n / n.sum() for _, n in counts]
    return (
        abs(volumes[0] / volumes[1] - 1) < 0.02
        and np.array_equal(counts[0][0], counts[1][0])
        and np.allclose(shares[0], shares[1])
    )
