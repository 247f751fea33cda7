"""Asymmetric units: a crystal as its space group, conventional cell and independent sites.

:func:`asymmetric_unit` finds the asymmetric unit of a cell, and checks that the group's operations
on it give the cell back; :meth:`AsymmetricUnit.atoms` leads from the sites to the atoms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.config.tolerances import USUAL
from langevin_xtal.crystal.cell import Cell, cell_from_parameters, cell_parameters, primitive
from langevin_xtal.crystal.distances import min_distance
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.errors import RejectError, SymmetryError
from langevin_xtal.symmetry import SpaceGroup, wrap
from langevin_xtal.symmetry.detection import standard_cell, symmetry_dataset
from langevin_xtal.symmetry.expansion import orbits
from langevin_xtal.symmetry.lattice import ideal_cells
from langevin_xtal.symmetry.sites import tidy
from langevin_xtal.symmetry.wyckoff import WyckoffPosition, locate

if TYPE_CHECKING:
    from spglib import SpglibDataset

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MIN_DISTANCE = 0.5
"""Atoms closer than this overlap [Å]."""
MAX_ATOMS = 500
"""Largest primitive cell; symmetry detection beyond it takes minutes."""
MAX_GIVEN = 10_000
"""Largest cell that is read and reduced to its primitive one."""
EXACT = 1e-8
"""How well a stored site must be invariant under its site symmetry (fractional)."""


@dataclass(frozen=True, eq=False)
class AsymmetricUnit:
    """A crystal in its conventional cell, one site per orbit. A sites."""

    group: int  #: space-group number
    lattice: FloatArray  #: (3, 3) rows [Å], exactly of the crystal system's shape
    numbers: IntArray  #: (A,) atomic numbers
    frac: FloatArray  #: (A, 3) in [0, 1), exactly on its special position
    multiplicity: IntArray  #: (A,) atoms of each site in the conventional cell
    wyckoff: NDArray[np.str_] = field(default_factory=lambda: np.zeros(0, dtype="<U1"))
    """(A,) Wyckoff letters, empty where they are not known; none by default."""

    def __post_init__(self) -> None:
        if not len(self.wyckoff):
            object.__setattr__(self, "wyckoff", np.full(len(self.numbers), "", dtype="<U1"))

    @property
    def space_group(self) -> SpaceGroup:
        """The group."""
        return SpaceGroup(self.group)

    @cached_property
    def positions(self) -> tuple[WyckoffPosition, ...]:
        """(A,) Wyckoff position of each site, by its coordinates.

        Raises
        ------
        SymmetryError
            Where a site is near a special position, but not on it.
        """
        return tuple(locate(self.group, point, self.lattice) for point in self.frac)

    @property
    def parameters(self) -> tuple[FloatArray, ...]:
        """Free coordinates of each site, none to three.

        Of a site on its Wyckoff position's representative space they are those of the position.
        """
        pairs = zip(self.frac, self.positions, strict=True)
        return tuple(point[position.parameters] for point, position in pairs)

    @property
    def volume(self) -> float:
        """Of the conventional cell [Å³]."""
        return float(abs(np.linalg.det(self.lattice)))

    @property
    def atom_numbers(self) -> IntArray:
        """(N,) atomic number of each atom of the conventional cell, site by site."""
        return np.repeat(self.numbers, self.multiplicity)

    def atoms(self) -> tuple[FloatArray, IntArray]:
        """All atoms of the conventional cell: (N, 3) in [0, 1), and (N,) the site of each."""
        frac, site = orbits(self.space_group, self.frac, self.lattice)
        return wrap(frac), site

    def cell(self) -> Cell:
        """The conventional cell."""
        frac, site = self.atoms()
        return self.lattice, frac, self.numbers[site]

    def primitive_cell(self) -> Cell:
        """The primitive cell, by the group's centring vectors."""
        return primitive(self.space_group, self.cell())


def asymmetric_unit(
    lattice: ArrayLike, frac: ArrayLike, numbers: ArrayLike, symprec: float = USUAL
) -> AsymmetricUnit:
    """Conventional cell, space group and independent sites of a P1 description.

    Parameters
    ----------
    lattice
        (3, 3) rows [Å].
    frac
        (N, 3) fractional coordinates.
    numbers
        (N,) atomic numbers.
    symprec
        Tolerance of spglib's symmetry search [Å].

    Raises
    ------
    RejectError
        When the structure cannot be used, with its reason.
    """
    lattice, frac, numbers = _checked_cell(lattice, frac, numbers, symprec)
    found = symmetry_dataset((lattice, frac, numbers), symprec)
    if found is None:
        if min_distance(lattice, frac) < MIN_DISTANCE:
            raise RejectError(f"atoms closer than {MIN_DISTANCE} Å")
        raise RejectError("spglib found no space group")
    group = SpaceGroup(int(found.number))
    if found.hall_number != group.hall_number:
        raise RejectError("spglib used another setting", f"Hall number {found.hall_number}")
    cell = ideal_cells(np.asarray(found.std_lattice, dtype=float), group.number)
    strain = np.abs(cell - found.std_lattice).max()
    if strain > max(symprec, 1e-6 * np.abs(cell).max()):
        raise RejectError("the standardised cell is not in the package's setting", f"{strain} Å")
    sites = _independent_sites(found, group, cell, symprec)
    _verify(sites, found, (lattice, frac, numbers), symprec)
    return sites


def declared_sites(cell: Cell, group: int, symprec: float = USUAL) -> AsymmetricUnit | None:
    """The asymmetric unit of a cell in a given group, or None where it lacks that symmetry.

    The cell must be the conventional one in the package's setting. Each site is placed at the mean
    of what all operations say of it; no atom moves further than ``symprec``.

    Parameters
    ----------
    cell
        (lattice rows [Å], fractional coordinates, atomic numbers).
    group
        Space-group number.
    symprec
        Largest distance [Å] between an atom's image and the atom there.
    """
    if not 1 <= group <= 230:
        return None
    frac, numbers = wrap(cell[1]), cell[2]
    standard = cell_from_parameters(cell_parameters(cell[0]))
    lattice = ideal_cells(standard, group)
    if np.abs(lattice - standard).max() > symprec:
        return None
    space_group = SpaceGroup(group)
    shift = np.zeros_like(frac)
    lowest = np.arange(len(frac))
    for rotation, translation in zip(space_group.rotations, space_group.translations, strict=True):
        delta = frac - (frac @ rotation.T + translation)[:, None]
        delta -= np.rint(delta)
        distance = np.linalg.norm(delta @ lattice, axis=2)
        distance[numbers[:, None] != numbers] = np.inf
        image = distance.argmin(axis=1)
        nearest = distance[np.arange(len(frac)), image]
        if nearest.max() > symprec or len(np.unique(image)) < len(frac):
            return None
        shift += delta[np.arange(len(frac)), image] @ np.linalg.inv(rotation).T
        lowest = np.minimum(lowest, image)
    first, counts = np.unique(lowest, return_counts=True)
    points = wrap(frac + shift / space_group.order)[first]
    return AsymmetricUnit(
        group=group,
        lattice=lattice,
        numbers=numbers[first],
        frac=points,
        multiplicity=counts,
        wyckoff=np.array([_letter(group, point, lattice) for point in points], dtype="<U1"),
    )


def _letter(group: int, point: FloatArray, lattice: FloatArray) -> str:
    """Of a site's Wyckoff position; none where it is near a special position, but not on it."""
    try:
        return locate(group, point, lattice).letter
    except SymmetryError:
        return ""


def _checked_cell(lattice: ArrayLike, frac: ArrayLike, numbers: ArrayLike, symprec: float) -> Cell:
    lattice = np.asarray(lattice, dtype=float)
    frac = np.asarray(frac, dtype=float).reshape(-1, 3)
    numbers = np.asarray(numbers, dtype=np.int64)
    if lattice.shape != (3, 3) or not np.isfinite(lattice).all():
        raise RejectError("the cell is not a finite 3 × 3 matrix")
    if abs(np.linalg.det(lattice)) < 1.0:
        raise RejectError("the cell is singular or smaller than 1 Å³")
    if len(numbers) == 0:
        raise RejectError("no atoms")
    if len(numbers) != len(frac):
        raise RejectError("positions and elements differ in number")
    if not np.isfinite(frac).all():
        raise RejectError("positions are not finite")
    if numbers.min() < 1 or numbers.max() >= len(SYMBOLS):
        raise RejectError("unknown element", f"atomic number {numbers.min()}..{numbers.max()}")
    cell = (lattice, wrap(frac), numbers)
    if len(numbers) > MAX_ATOMS:
        cell = reduced(cell, symprec)
        if len(cell[2]) > MAX_ATOMS:
            raise RejectError(f"more than {MAX_ATOMS} atoms", str(len(cell[2])))
    return cell


def reduced(cell: Cell, symprec: float = USUAL) -> Cell:
    """The primitive cell that spglib finds, positions as they are; else the cell given.

    Raises
    ------
    RejectError
        For more than :data:`MAX_GIVEN` atoms.
    """
    count = len(cell[2])
    if count > MAX_GIVEN:
        raise RejectError(f"more than {MAX_GIVEN} atoms", str(count))
    if count == 1:
        return cell
    found = standard_cell(cell, symprec, primitive=True, idealise=False)
    return cell if found is None or len(found[2]) >= count else found


def _independent_sites(
    found: SpglibDataset, group: SpaceGroup, cell: FloatArray, symprec: float
) -> AsymmetricUnit:
    """One site per orbit of the standardised cell, averaged over its stabiliser."""
    of_primitive = np.empty(int(found.mapping_to_primitive.max()) + 1, dtype=np.int64)
    of_primitive[found.mapping_to_primitive] = np.arange(len(found.mapping_to_primitive))
    source = of_primitive[found.std_mapping_to_primitive]  # an input atom equivalent to each
    classes = np.asarray(found.crystallographic_orbits)[source]
    _, first, counts = np.unique(classes, return_index=True, return_counts=True)
    rotations, translations = group.rotations, group.translations
    points = []
    for point, count in zip(found.std_positions[first], counts, strict=True):
        if group.order % count:
            raise RejectError("an orbit's size does not divide the order of the group")
        for _ in range(2):
            delta = point @ np.swapaxes(rotations, 1, 2) + translations - point
            delta -= np.rint(delta)
            length = np.linalg.norm(delta @ cell, axis=1)
            nearest = np.argsort(length, kind="stable")[: group.order // count]
            if length[nearest[-1]] > 5 * symprec:
                raise RejectError("an orbit is not what the group's operations give")
            point = point + delta[nearest].mean(axis=0)
        delta = point @ np.swapaxes(rotations[nearest], 1, 2) + translations[nearest] - point
        if np.abs(delta - np.rint(delta)).max() > EXACT:
            raise RejectError("a site's symmetry is not a group")
        points.append(wrap(tidy(point)))
    return AsymmetricUnit(
        group=group.number,
        lattice=cell,
        numbers=np.asarray(found.std_types, dtype=np.int64)[first],
        frac=np.array(points),
        multiplicity=counts.astype(np.int64),
        wyckoff=np.array([found.wyckoffs[source[k]] for k in first], dtype="<U1"),
    )


def _verify(sites: AsymmetricUnit, found: SpglibDataset, given: Cell, symprec: float) -> None:
    """The group's operations on the sites must give the input structure back."""
    lattice, frac, numbers = given
    atoms, owner = sites.atoms()
    if (np.bincount(owner, minlength=len(sites.numbers)) != sites.multiplicity).any():
        raise RejectError("an orbit has another size than its multiplicity")
    ratio = len(atoms) * abs(np.linalg.det(lattice)) / abs(np.linalg.det(sites.lattice))
    if abs(ratio / len(numbers) - 1) > 0.05:
        raise RejectError("the standardised cell has another atomic density")
    if min_distance(sites.lattice, sites.frac, atoms) < MIN_DISTANCE:
        raise RejectError(f"atoms closer than {MIN_DISTANCE} Å")
    moved = frac @ np.asarray(found.transformation_matrix).T + found.origin_shift
    delta = moved[:, None] - atoms
    delta -= np.rint(delta)
    distance = np.linalg.norm(delta @ sites.lattice, axis=-1)
    distance[numbers[:, None] != sites.numbers[owner]] = np.inf
    worst = distance.min(axis=1).max()
    # spglib averages positions over operations, each of which may miss by symprec
    if worst > max(10 * symprec, 0.02):
        raise RejectError("the symmetrised structure differs from the input", f"by {worst:.3f} Å")
