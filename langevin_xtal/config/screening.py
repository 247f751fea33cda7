"""How structures are filtered, relaxed, released and given phonons."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields

from langevin_xtal.config.fields import check, setting
from langevin_xtal.config.sampling import SamplingConfig
from langevin_xtal.config.tolerances import TIGHT, USUAL
from langevin_xtal.errors import InputError

DEFAULT_POTENTIAL = "chgnet"
"""Used where none is named."""
POTENTIAL_HELP = (
    "chgnet, sevennet-0, sevennet-l3i5; mace:, orb:, mattersim:, nequip:, upet: or grace: and a "
    "file; or module:attribute of anything that makes an ASE calculator."
)
DEFAULT_PROPERTIES = "mp20-properties"
"""Property model that is used where none is named."""
OPTIMISERS = ("LBFGS", "BFGS", "FIRE")
FIXED_IN_FILE = "file"
"""Selection of the atoms that a structure's file holds, such as selective dynamics of VASP."""
_SELECTION = re.compile(r"(\d+(-\d+)?|[A-Z][a-z]?)(,(\d+(-\d+)?|[A-Z][a-z]?))*")
VOLUME_PER_ATOM = (3.0, 200.0)
"""Volumes per atom [Å³] outside of which a cell has collapsed or exploded."""


@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """What a crystal must fulfil before it is relaxed.

    Raises
    ------
    InputError
        For values out of range.
    """

    min_distance: float = setting(
        SamplingConfig.min_distance, "Between atoms and their images [Å].", low=0, high=5
    )
    volume_per_atom: tuple[float, float] = VOLUME_PER_ATOM  #: least and most [Å³]
    charge_neutral: bool = False  #: SMACT's rule; alloys pass
    max_atoms: int | None = setting(None, "Atoms in the cell given.", low=1)

    def __post_init__(self) -> None:
        check(self)
        low, high = self.volume_per_atom
        if not (0 < low < high < math.inf):
            raise InputError(
                f"volume_per_atom is {low:g} to {high:g} Å³: it must be a range above 0"
            )


@dataclass(frozen=True, kw_only=True, repr=False)
class RelaxOptions:
    """How to relax.

    Raises
    ------
    InputError
        For values out of range.
    """

    potential: str = setting(DEFAULT_POTENTIAL, POTENTIAL_HELP, metavar="NAME")
    fmax: float = setting(0.05, "Largest force [eV/Å] of a relaxed structure.", above=0, high=1)
    """Also the largest stress times volume per atom [eV]."""
    steps: int = setting(100, "Steps of a relaxation, at most.", low=0)
    keep_symmetry: bool = True  #: move only as the space group found at the start allows
    symprec: float = setting(TIGHT, "Tolerance of the symmetry that is kept [Å].", above=0, high=1)
    optimiser: str = setting("LBFGS", choices=OPTIMISERS)
    max_step: float = setting(0.2, "Farthest an atom moves in a step [Å].", above=0, high=1)
    min_distance: float = setting(0.5, "Atoms closer than this overlap [Å].", low=0)
    fix_atoms: str = setting(
        "",
        "Atoms that keep their fractional coordinates: numbers from 1 in the order of the file, "
        "ranges and elements, such as 1-4,9,O; or file: those the file itself marks as fixed.",
        metavar="ATOMS",
        shown=False,
    )
    """Empty for none. Symmetry that is kept takes fixed atoms to fixed atoms."""
    constant_volume: bool = setting(False, "Change the shape of the cell only.")
    constant_cell: bool = setting(False, "Move atoms only.")
    device: str = "cpu"  #: of torch

    def __post_init__(self) -> None:
        check(self)
        if self.constant_cell and self.constant_volume:
            raise InputError(
                "constant_cell keeps the volume too: leave out constant_cell or constant_volume"
            )
        if self.fix_atoms not in ("", FIXED_IN_FILE) and not _SELECTION.fullmatch(self.fix_atoms):
            raise InputError(
                f"fix_atoms {self.fix_atoms!r} should be atoms' numbers from 1, ranges and "
                f"elements, such as 1-4,9,O, or {FIXED_IN_FILE}"
            )

    def __repr__(self) -> str:
        """All fields, later ones where they say something: stores and caches compare this text."""
        later = ("fix_atoms", "constant_volume", "constant_cell")
        said = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.name not in later or getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join(said)})"


@dataclass(frozen=True, kw_only=True, repr=False)
class FileRelaxOptions(RelaxOptions):
    """Of structures that people have: with rounded coordinates, where candidates of a search have
    exact symmetry, and few enough to be relaxed to the end."""

    steps: int = setting(200, "Steps of a relaxation, at most.", low=1)
    symprec: float = setting(
        USUAL, "Tolerance of the symmetry that is kept [Å].", above=0, high=0.5
    )


@dataclass(frozen=True, kw_only=True)
class ReleaseOptions:
    """How symmetry is let go after a relaxation that kept it.

    Of five crystals that CHGNet has at a saddle point (cubic PbTiO3, BaTiO3, KNbO3, body-centred
    Cu and Si), a start 0.01 Å away from it fell off in two, 0.05 Å in all, one of them without
    arriving anywhere in 200 steps, 0.1 Å in all. Crystals at a minimum take 12 to 20 steps back.

    Raises
    ------
    InputError
        For values out of range.
    """

    perturbation: float = setting(0.1, "Typical displacement at the start [Å].", above=0, high=1)
    seed: int = setting(0, "Of the displacements.", low=0)
    fmax: float = setting(
        0.01, "As of the first relaxation; the smaller of both counts.", above=0, high=1
    )
    more_steps: int = setting(100, "Steps besides those of the first relaxation.", low=0)
    tolerance: float = setting(
        0.005, "A smaller gain in energy is not one [eV/atom].", above=0, high=1
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class PhononOptions:
    """How phonons are computed.

    Raises
    ------
    InputError
        For values out of range.
    """

    potential: str = setting(DEFAULT_POTENTIAL, POTENTIAL_HELP, metavar="NAME")
    fmax: float = setting(
        0.005,
        "Largest force [eV/Å] of the structure, which is relaxed first.",
        above=0,
        high=1,
    )
    steps: int = setting(300, "Steps of that relaxation, at most.", low=1)
    displacement: float = setting(0.02, "Of an atom [Å].", above=0, high=0.5)
    length: float = setting(
        8.0,
        "Edges of the supercell, at least (but for a tenth of a cell) [Å].",
        above=0,
        high=100,
    )
    max_atoms: int = setting(200, "Of the supercell; comes before --length.", low=1)
    mesh: float = setting(
        30.0,
        "Points of the mesh along a reciprocal axis, times its real length [Å].",
        above=0,
        high=500,
    )
    path_points: int = setting(120, "Points along the path.", low=1)
    tolerance: float = setting(
        0.3, "Imaginary frequencies smaller than this are noise [THz].", above=0, high=10
    )
    device: str = "cpu"  #: of torch

    def __post_init__(self) -> None:
        check(self)
