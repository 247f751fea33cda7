"""A sampled crystal, with where it came from and what symmetry it really has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.tolerances import USUAL
from langevin_xtal.crystal.ase import to_atoms
from langevin_xtal.crystal.asymmetric import AsymmetricUnit
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.entry import Value
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.crystal.request import Choice, Request
from langevin_xtal.symmetry.groups import SpaceGroup

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Candidate:
    """A crystal in the conventional cell of the requested space group."""

    request: Request
    seed: int
    index: int  #: position in the list of requests
    attempt: int  #: 0 unless earlier streams were rejected
    unit: AsymmetricUnit  #: its A sites, in the requested group
    atom_site: IntArray  #: (N,) site of each atom of the cell
    atom_frac: FloatArray  #: (N, 3) atoms of the cell, in [0, 1)
    detected: Mapping[float, int]  #: symprec [Å] to the space group spglib finds
    min_distance: float  #: shortest distance between atoms [Å]
    provenance: Mapping[str, Value] = field(default_factory=dict)

    @property
    def space_group(self) -> SpaceGroup:
        """The requested group, which the structure has by construction."""
        return self.request.space_group

    @property
    def numbers(self) -> IntArray:
        """(A,) atomic number of each site."""
        return self.unit.numbers

    @property
    def frac(self) -> FloatArray:
        """(A, 3) sites, in [0, 1), exactly on their special positions."""
        return self.unit.frac

    @property
    def lattice(self) -> FloatArray:
        """(3, 3) conventional cell, rows [Å]."""
        return self.unit.lattice

    @property
    def cell(self) -> Cell:
        """The conventional cell: lattice, (N, 3) fractional coordinates, (N,) atomic numbers."""
        return self.unit.lattice, self.atom_frac, self.unit.numbers[self.atom_site]

    @property
    def choice(self) -> Choice | None:
        """How the model came to the setting, where the request left it open."""
        return self.request.choice

    @property
    def multiplicity(self) -> IntArray:
        """(A,) atoms of each site in the cell."""
        return self.unit.multiplicity

    @cached_property
    def wyckoff(self) -> tuple[str, ...]:
        """(A,) Wyckoff position of each site: multiplicity and letter, such as ``"4c"``."""
        return tuple(position.name for position in self.unit.positions)

    @property
    def formula(self) -> str:
        """Reduced formula, elements in the order of the request."""
        counts = {
            symbol: int(self.multiplicity[self.numbers == SYMBOLS.index(symbol)].sum())
            for symbol in self.request.elements
        }
        divisor = int(np.gcd.reduce(list(counts.values())))
        return "".join(f"{s}{n // divisor if n > divisor else ''}" for s, n in counts.items())

    @property
    def volume(self) -> float:
        """Of the conventional cell [Å^3]."""
        return self.unit.volume

    @property
    def is_supergroup(self) -> bool:
        """Whether spglib at 0.01 Å finds more symmetry than was requested."""
        return self.detected[USUAL] != self.space_group.number

    @cached_property
    def structure(self) -> Structure:
        """pymatgen Structure of the conventional cell [Å], provenance in ``properties``."""
        return to_structure(self.cell, self.provenance)

    @cached_property
    def atoms(self) -> Atoms:
        """ase.Atoms of the conventional cell [Å], provenance in ``info``."""
        return to_atoms(self.cell, self.provenance)

    def __repr__(self) -> str:
        return (
            f"Candidate({self.formula}, {self.space_group}, {len(self.numbers)} sites → "
            f"{len(self.atom_site)} atoms, V = {self.volume:.1f} Å^3)"
        )
