"""Requests from a crystal that is there: its sites, Wyckoff positions and cell, to be varied.

Chains start from the crystal with noise added, so they explore its surroundings: a little noise
relaxes it, much of it forgets it. The crystal is standardised as training data are, see
:func:`~langevin_xtal.crystal.asymmetric.asymmetric_unit`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.sampling import STRUCTURE_NOISE
from langevin_xtal.config.tolerances import LOOSE, USUAL
from langevin_xtal.crystal.ase import from_atoms
from langevin_xtal.crystal.asymmetric import AsymmetricUnit, asymmetric_unit
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.pymatgen import from_structure
from langevin_xtal.crystal.request import MAX_SITES, Request, StartingPoint
from langevin_xtal.dataset.readers import cell_of, read_records
from langevin_xtal.errors import DataError, RejectError, RequestError
from langevin_xtal.symmetry import SpaceGroup, orbit, wrap
from langevin_xtal.symmetry.expansion import orbits
from langevin_xtal.symmetry.sites import tidy
from langevin_xtal.symmetry.wyckoff import WyckoffPosition, locate

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

FloatArray = NDArray[np.float64]

SYMPRECS = (USUAL, LOOSE)
"""Tolerances at which the group of a structure is looked for [Å]; the first that fits counts."""


def read_cell(path: str | os.PathLike[str]) -> Cell:
    """The only crystal of a structure file.

    Parameters
    ----------
    path
        Any format that ``data prepare`` reads.

    Returns
    -------
    Cell
        Lattice (3, 3) rows [Å], fractional coordinates (N, 3), atomic numbers (N,).

    Raises
    ------
    DataError
        When the file is missing, unreadable, or holds no crystal or several.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; give one structure file")
    found = list(islice(read_records(path), 2))
    if len(found) > 1:
        raise DataError(f"{path} holds several structures; give a file with one")
    if not found:
        raise DataError(f"{path} holds no structure")
    try:
        return cell_of(found[0])
    except RejectError as reject:
        raise DataError(f"{path} cannot be used: {_reason(reject)}") from None


def request_from_structure(
    structure: Structure | Atoms | Cell,
    space_group: SpaceGroup | int | str | None = None,
    noise: float = STRUCTURE_NOISE,
    *,
    lattice: Sequence[float] | None = None,
) -> Request:
    """Ask for crystals like ``structure``: the same sites on the same Wyckoff positions.

    Parameters
    ----------
    structure
        pymatgen Structure, ase.Atoms or :data:`~langevin_xtal.crystal.cell.Cell`, in any cell.
    space_group
        The group that spglib finds at 0.01 or 0.1 Å, by default the one at 0.01 Å; or one of its
        subgroups whose operations are among those of the group found, in its conventional cell
        (same axes and origin): sites that the subgroup tells apart then move apart.
    noise
        Of the positions where chains start [Å]; the cell's goes with it.
    lattice
        Cell to keep, as for :class:`~langevin_xtal.Request`; by default the cell is sampled,
        starting from the structure's.

    Returns
    -------
    Request
        With ``sites`` and ``start``; elements in the order of the structure.

    Raises
    ------
    DataError
        When the structure has no usable symmetry, with the reason.
    RequestError
        When its group is not the one asked for, or the noise is not positive.
    """
    if not (math.isfinite(noise) and noise > 0):
        raise RequestError(f"the noise is {noise}; give a positive distance in Å")
    wanted = None if space_group is None else _parsed(space_group)
    sites = _sites_in(_as_cell(structure), wanted)
    group = SpaceGroup(sites.group)
    if len(sites.numbers) > MAX_SITES:
        raise RequestError(
            f"the structure has {len(sites.numbers)} sites in {group}; the most is {MAX_SITES}"
        )
    first = {int(z): k for k, z in reversed(list(enumerate(sites.numbers.tolist())))}
    order = sorted(range(len(sites.numbers)), key=lambda k: first[int(sites.numbers[k])])
    counts: dict[str, int] = {}
    positions, points = [], []
    for k in order:
        symbol = SYMBOLS[sites.numbers[k]]
        counts[symbol] = counts.get(symbol, 0) + 1
        position = locate(group.number, sites.frac[k], sites.lattice)
        positions.append(position.index)
        points.append(on_representative(group, position, sites.frac[k]))
    start = StartingPoint(tuple(positions), np.array(points), sites.lattice, float(noise))
    return Request(group, counts, lattice=lattice, start=start)


def on_representative(
    group: SpaceGroup, position: WyckoffPosition, point: FloatArray
) -> FloatArray:
    """(3,) the image of a point of a Wyckoff position that lies on its representative space."""
    images = point @ np.swapaxes(group.rotations, 1, 2) + group.translations
    exact = position.point(images[:, position.parameters])
    gap = np.abs(images - exact - np.rint(images - exact)).max(axis=1)
    return wrap(exact[int(gap.argmin())])


def _parsed(group: SpaceGroup | int | str) -> SpaceGroup:
    return group if isinstance(group, SpaceGroup) else SpaceGroup.parse(group)


def _sites_in(cell: Cell, wanted: SpaceGroup | None) -> AsymmetricUnit:
    """Independent sites in the group wanted, or in the one found at the first tolerance."""
    seen: list[AsymmetricUnit] = []
    failed: RejectError | None = None
    for symprec in SYMPRECS:
        try:
            found = asymmetric_unit(*cell, symprec=symprec)
        except RejectError as reject:
            failed = failed or reject
            continue
        if wanted is None or found.group == wanted.number:
            return found
        seen.append(found)
    for found in seen:
        lower = _in_subgroup(found, wanted) if wanted is not None else None
        if lower is not None:
            return lower
    if not seen:
        assert failed is not None
        raise DataError(f"the structure cannot be used: {_reason(failed)}")
    groups = dict.fromkeys(str(SpaceGroup(each.group)) for each in seen)
    raise RequestError(
        f"the structure has space group {' or '.join(groups)} (at 0.01 and 0.1 Å), and {wanted} "
        "is not among its subgroups in the same cell; give the group found, or none"
    )


def _in_subgroup(sites: AsymmetricUnit, group: SpaceGroup) -> AsymmetricUnit | None:
    """The same crystal with fewer operations, where they are among its own in this cell."""
    parent = SpaceGroup(sites.group)
    own = _operations(parent)
    if not _operations(group) <= own:
        return None
    images, owner = orbits(parent, sites.frac, sites.lattice)
    atoms = wrap(tidy(images))
    left = list(range(len(atoms)))
    kept: list[int] = []
    sizes: list[int] = []
    while left:
        first = left[0]
        images = orbit(atoms[first], group.rotations, group.translations, sites.lattice)[0]
        gap = atoms[left][:, None] - images
        gap -= np.rint(gap)
        near = (np.linalg.norm(gap @ sites.lattice, axis=2) < 1e-3).any(axis=1)
        kept.append(first)
        sizes.append(len(images))
        left = [k for k, inside in zip(left, near.tolist(), strict=True) if not inside]
    return AsymmetricUnit(
        group=group.number,
        lattice=sites.lattice,
        numbers=sites.numbers[owner[kept]],
        frac=atoms[kept],
        multiplicity=np.array(sizes),
        wyckoff=np.full(len(kept), ""),
    )


def _operations(group: SpaceGroup) -> set[tuple[int, ...]]:
    return {
        (*w.ravel().tolist(), *t.tolist())
        for w, t in zip(group.rotations, group.translations24, strict=True)
    }


def _as_cell(structure: Any) -> Cell:
    """The arrays of a structure; disordered and non-periodic ones are refused."""
    if isinstance(structure, tuple):
        return structure
    if hasattr(structure, "get_scaled_positions"):
        if not all(structure.pbc):
            raise DataError("the structure is not periodic in three directions")
        return from_atoms(structure)
    return from_structure(structure)


def _reason(reject: RejectError) -> str:
    return reject.reason + (f" ({reject.detail})" if reject.detail else "")
