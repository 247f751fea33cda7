"""The 230 space groups in spglib's default setting, with exact integer operations.

Conventions, cited by the whole package
    Lattice vectors are **rows** and ``cart = frac @ lattice``. An operation acts on columns,
    ``f' = W f + w``, with ``W`` an integer matrix and ``w`` a multiple of 1/24, kept as integers.
    Units: Å, eV, degrees. Settings: origin choice 1 where there are two, hexagonal axes for the
    rhombohedral groups, unique axis *b*.

>>> pnma = SpaceGroup.parse("Pnma")
>>> pnma.number, pnma.order, pnma.crystal_system
(62, 8, 'orthorhombic')
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import SymmetryError

CRYSTAL_SYSTEMS: tuple[tuple[str, int, int], ...] = (
    ("triclinic", 1, 2),
    ("monoclinic", 3, 15),
    ("orthorhombic", 16, 74),
    ("tetragonal", 75, 142),
    ("trigonal", 143, 167),
    ("hexagonal", 168, 194),
    ("cubic", 195, 230),
)
"""Name, first and last space-group number of each crystal system (ITA volume A)."""


class OperationTable(NamedTuple):
    """Operations of all 230 groups end to end; group n owns ``start[n-1] : start[n]``."""

    rotations: NDArray[np.int64]  #: (O, 3, 3) integer matrices W
    translations24: NDArray[np.int64]  #: (O, 3) w in units of 1/24, in [0, 24)
    start: NDArray[np.int64]  #: (231,) offsets
    hall: NDArray[np.int64]  #: (230,) Hall number of the setting
    symbols: tuple[str, ...]  #: (230,) short international symbols


@cache
def operation_table() -> OperationTable:
    """The shipped table of operations, read once."""
    source = resources.files("langevin_xtal.symmetry").joinpath("space_groups.npz")
    with source.open("rb") as handle, np.load(handle, allow_pickle=False) as z:
        counts = z["counts"].astype(np.int64)
        return OperationTable(
            rotations=z["rotations"].astype(np.int64),
            translations24=z["translations24"].astype(np.int64),
            start=np.concatenate([[0], np.cumsum(counts)]),
            hall=z["hall"].astype(np.int64),
            symbols=tuple(map(str, z["symbols"])),
        )


@dataclass(frozen=True)
class SpaceGroup:
    """One of the 230 space groups, in spglib's default setting.

    Parameters
    ----------
    number
        International Tables number, 1 to 230.

    Raises
    ------
    SymmetryError
        For any other number.
    """

    number: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= 230:
            raise SymmetryError(
                f"space group {self.number} does not exist: numbers run from 1 to 230"
            )

    @classmethod
    def parse(cls, text: str | int) -> SpaceGroup:
        """From a number (``62``, ``"62"``) or a symbol in any spelling of any setting.

        The type counts: ``"P2_1/n"`` and ``"P2_1/c"`` give the same group, in the package's
        setting; :func:`~langevin_xtal.symmetry.settings.settings_of` tells them apart.

        Raises
        ------
        SymmetryError
            When there is no such group; the message proposes the nearest.
        """
        from langevin_xtal.symmetry.settings import settings_of

        name = str(text).strip()
        if re.fullmatch(r"[+-]?[0-9]{1,9}", name):
            return cls(int(name))
        return cls(settings_of(name)[0].number)

    @property
    def symbol(self) -> str:
        """Short international symbol, e.g. ``'Pnma'``."""
        return operation_table().symbols[self.number - 1]

    @property
    def hall_number(self) -> int:
        """Hall number of the setting used (spglib's default one)."""
        return int(operation_table().hall[self.number - 1])

    @property
    def rotations(self) -> NDArray[np.int64]:
        """(G, 3, 3) integer matrices W, the identity first."""
        table = operation_table()
        return table.rotations[table.start[self.number - 1] : table.start[self.number]]

    @property
    def translations24(self) -> NDArray[np.int64]:
        """(G, 3) translations w in units of 1/24, in [0, 24)."""
        table = operation_table()
        return table.translations24[table.start[self.number - 1] : table.start[self.number]]

    @property
    def translations(self) -> NDArray[np.float64]:
        """(G, 3) translations w as fractions."""
        return self.translations24 / 24.0

    @property
    def order(self) -> int:
        """Number of operations modulo lattice translations of the conventional cell."""
        return len(self.rotations)

    @property
    def centring(self) -> NDArray[np.int64]:
        """(C, 3) centring vectors in units of 1/24, the zero vector first."""
        return _centring(self.number)

    @property
    def crystal_system(self) -> str:
        """``'triclinic'``, ``'monoclinic'``, … ``'cubic'``."""
        return next(name for name, _, last in CRYSTAL_SYSTEMS if self.number <= last)

    def __str__(self) -> str:
        return f"{self.symbol} ({self.number})"


@cache
def _centring(number: int) -> NDArray[np.int64]:
    group = SpaceGroup(number)
    identity = (group.rotations == np.eye(3, dtype=np.int64)).all(axis=(1, 2))
    vectors = group.translations24[identity]
    vectors = vectors[np.lexsort(vectors.T[::-1])]
    vectors.flags.writeable = False  # shared by all who ask
    return vectors


@cache
def centring_orders() -> NDArray[np.int64]:
    """(231,) lattice points in the conventional cell of every group; entry 0 is 0."""
    orders = np.array([0] + [len(_centring(number)) for number in range(1, 231)])
    orders.flags.writeable = False
    return orders
