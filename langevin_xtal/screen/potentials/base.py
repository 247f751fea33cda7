"""What every interatomic potential says of itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

CORRECTED = "MP2020-corrected"
"""Energies that include the Materials Project's corrections of 2020."""
UNCORRECTED = "MP-uncorrected"
"""PBE and PBE+U energies with the Materials Project's settings, before its corrections."""
UNDECLARED = "as the calculator gives them"
"""Energies of a convention that nobody has declared."""
TRAINED_ON_MPTRJ = frozenset(range(1, 95)) - frozenset(range(84, 89))
"""Atomic numbers of the 89 elements of MPtrj: 1 to 94 without Po, At, Rn, Fr and Ra."""
EVERY_ELEMENT = frozenset(range(1, 119))


@dataclass(frozen=True)
class Potential:
    """An interatomic potential."""

    name: str
    version: str  #: of the code and the weights
    energies: str  #: convention: :data:`CORRECTED`, :data:`UNCORRECTED` or :data:`UNDECLARED`
    elements: frozenset[int]  #: atomic numbers it knows
    calculator: Callable[[], Calculator]  #: makes a new calculator
    licence: str = "not declared"  #: of the code and of the weights
    energy: Callable[[Atoms], float] | None = None
    """Energy of all atoms [eV] without forces and stress, where that is faster."""

    @property
    def weights(self) -> str:
        """What determines the energies: the version without that of the code."""
        return weights_of(self.version)

    def describe(self) -> str:
        """One line for tables and reports."""
        known = (
            "elements not declared"
            if self.elements == EVERY_ELEMENT
            else f"{len(self.elements)} elements"
        )
        return f"{self.name}: {self.version}; energies {self.energies}; {known}; {self.licence}"


def weights_of(version: str) -> str:
    """The part of a potential's version that names its weights; all of it where none does."""
    _, comma, weights = version.partition(", weights ")
    return weights if comma else version


def file_hash(path: Path) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a file, or of the files of a folder."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]
