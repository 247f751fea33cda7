"""Atoms that a relaxation holds at their fractional coordinates, and ASE's constraints for them.

A cell carries what is held in its atomic numbers: :data:`MARK`, times 1 to 7, is added to those of
held atoms. A held atom then differs from a free one of its element wherever cells are compared: in
symmetry, in folding to the primitive cell, and in caches. Cells with such numbers stay within a
relaxation; what it returns has the elements again.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.screening import FIXED_IN_FILE
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS, atomic_number
from langevin_xtal.errors import InputError
from langevin_xtal.screen.potentials.bonds import Operations

if TYPE_CHECKING:
    from ase import Atoms

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

MARK = 1000
"""Of a held atom; bit k of the factor is the axis k of the cell it is held along."""
_BITS = np.array([1, 2, 4])


def chosen_atoms(
    selection: str, numbers: NDArray[np.int64], fixed: BoolArray | None = None, name: str = ""
) -> BoolArray:
    """Along which axes of the cell the atoms of a selection are held, (N, 3).

    Parameters
    ----------
    selection
        See :attr:`~langevin_xtal.config.screening.RelaxOptions.fix_atoms`.
    numbers
        (N,) atomic numbers, in the order of the file.
    fixed
        (N, 3) what the file itself holds; None where it says nothing.
    name
        Of the structure, for messages.

    Raises
    ------
    InputError
        When the selection names atoms or elements that are not there.
    """
    whose = name or "the structure"
    if selection == FIXED_IN_FILE:
        if fixed is None or not fixed.any():
            raise InputError(f"fix_atoms {FIXED_IN_FILE}: {whose} marks no atom as fixed")
        return fixed.astype(bool)
    held = np.zeros((len(numbers), 3), dtype=bool)
    for part in filter(None, selection.split(",")):
        if part[0].isalpha():
            chosen = numbers == _element(part)
            if not chosen.any():
                raise InputError(f"fix_atoms {part}: {whose} has no {part}")
            held[chosen] = True
            continue
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not 1 <= low <= high <= len(numbers):
            raise InputError(
                f"fix_atoms {part}: atoms of {whose} are numbered from 1 to {len(numbers)}"
            )
        held[low - 1 : high] = True
    return held


def _element(symbol: str) -> int:
    if symbol not in SYMBOLS:
        raise InputError(f"fix_atoms {symbol}: there is no element {symbol}")
    return atomic_number(symbol)


def hold(cell: Cell, held: BoolArray) -> Cell:
    """The cell with its held atoms (N, 3) marked."""
    lattice, frac, numbers = cell
    return lattice, frac, numbers + MARK * (held @ _BITS)


def held_of(cell: Cell) -> tuple[Cell, BoolArray]:
    """The cell with its elements alone, and what was marked as held (N, 3)."""
    lattice, frac, numbers = cell
    codes, plain = np.divmod(numbers, MARK)
    held = (codes[:, None] & _BITS) > 0
    return ((lattice, frac, plain) if codes.any() else cell), held


def marked(cell: Cell, selection: str) -> Cell:
    """The cell with the atoms of a selection marked; as it is where it has marks already.

    Raises
    ------
    InputError
        See :func:`chosen_atoms`.
    """
    if not selection or (cell[2] >= MARK).any():
        return cell
    return hold(cell, chosen_atoms(selection, cell[2]))


def is_partial(held: BoolArray) -> bool:
    """Whether an atom is held along some axes only."""
    return bool((held.any(axis=1) & ~held.all(axis=1)).any())


def constraints(held: BoolArray) -> list[Any]:
    """ASE's constraints of held atoms (N, 3), along the axes of the cell."""
    from ase.constraints import FixAtoms, FixScaled

    whole = held.all(axis=1)
    found: list[Any] = [FixAtoms(np.flatnonzero(whole).tolist())] if whole.any() else []
    partly = np.flatnonzero(held.any(axis=1) & ~whole)
    return [*found, *(FixScaled([int(k)], held[k]) for k in partly)]


def kept_symmetry(atoms: Atoms, held: BoolArray, symprec: float) -> Any:
    """ASE's FixSymmetry of atoms whose held ones (N, 3) count as other elements.

    Operations that take a held atom to a free one are no symmetry of what may move. The atoms are
    placed where the symmetry has them exactly. The constraint has its ``operations``.
    """
    made = _constraint_class()
    if not held.any():
        return made(atoms, symprec=symprec)
    kinds = atoms.copy()  # type: ignore[no-untyped-call]
    kinds.numbers = atoms.numbers + MARK * (held @ _BITS)
    found = made(kinds, symprec=symprec)
    atoms.set_cell(kinds.cell)  # type: ignore[no-untyped-call]
    atoms.set_positions(kinds.positions)  # type: ignore[no-untyped-call]
    return found


@cache
def _constraint_class() -> Any:
    """The constraint's class, made when it is needed: ASE is slow to import."""
    from ase.constraints import FixSymmetry
    from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

    class KeptSymmetry(FixSymmetry):
        """As ASE's, with all operations at once: its loops take as long as a small network."""

        def __init__(self, atoms: Atoms, symprec: float) -> None:
            super().__init__(atoms, symprec=symprec)  # type: ignore[no-untyped-call]
            self.operations = Operations(
                np.asarray(self.rotations, dtype=np.int64),
                np.asarray(self.translations, dtype=float),
                np.asarray(self.symm_map, dtype=np.int64),
            )

        def adjust_positions(self, atoms: Atoms, new: FloatArray) -> None:
            step = new - atoms.positions
            new[:] = atoms.positions + self.operations.mean_vectors(step, atoms.cell.array)

        def adjust_forces(self, atoms: Atoms, forces: FloatArray) -> None:
            forces[:] = self.operations.mean_vectors(forces, atoms.cell.array)

        def adjust_stress(self, atoms: Atoms, stress: FloatArray) -> None:
            full = voigt_6_to_full_3x3_stress(stress)
            mean = self.operations.mean_tensor(full, atoms.cell.array)
            stress[:] = full_3x3_to_voigt_6_stress(mean)

    return KeptSymmetry
