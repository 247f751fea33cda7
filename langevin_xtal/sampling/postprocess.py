"""From the end of a chain to a crystal: snap, expand, verify, or reject with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.sampling import SamplingConfig
from langevin_xtal.config.tolerances import SYMPRECS, USUAL
from langevin_xtal.crystal.asymmetric import AsymmetricUnit
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.distances import nearest_pair
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.entry import Value
from langevin_xtal.crystal.request import Request
from langevin_xtal.errors import InputError
from langevin_xtal.sampling.start import Start
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.symmetry.detection import symmetry_dataset
from langevin_xtal.symmetry.expansion import expand_sites
from langevin_xtal.symmetry.sites import IDENTICAL
from langevin_xtal.symmetry.wyckoff import WyckoffPosition

if TYPE_CHECKING:
    from spglib import SpglibDataset

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


FRACTIONS = np.unique(np.concatenate([np.arange(9) / 8, np.arange(13) / 12]))
"""Fractions of the cell that free coordinates may be rounded to."""


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """When sites merge and when a crystal is rejected."""

    merge: float = SamplingConfig.merge
    """A site this near to a special position is placed on it [Å]."""
    min_distance: float = SamplingConfig.min_distance
    """Reject crystals with two atoms closer than this [Å]."""
    round_within: float = SamplingConfig.round_within
    """Each free coordinate of a site with a Wyckoff position is set to a simple fraction, of
    :data:`FRACTIONS`, where that moves the site no further than this [Å]."""

    def __post_init__(self) -> None:
        for name in ("merge", "min_distance", "round_within"):
            value = getattr(self, name)
            if not 0.0 <= value < np.inf:
                raise InputError(f"{name} is {value}; give a distance in Å, 0 or more")


@dataclass(frozen=True)
class Rejection:
    """A chain that did not end in a crystal."""

    request: Request
    index: int
    attempt: int
    reason: str


def finish(
    request: Request,
    start: Start,
    frac: FloatArray,
    lattice: FloatArray,
    *,
    seed: int,
    index: int,
    attempt: int,
    config: PostprocessConfig,
    provenance: dict[str, Value],
) -> Candidate | Rejection:
    """Place free sites on the special positions they are near, expand, and verify.

    Parameters
    ----------
    start
        What the chain started from. Sites with Wyckoff positions are on them already, and are
        rejected where they came to rest on a more special one.
    frac
        (A, 3) fractional coordinates at the end of the chain.
    lattice
        (3, 3) rows [Å].
    """

    def reject(reason: str) -> Rejection:
        return Rejection(request, index, attempt, reason)

    if not (np.isfinite(frac).all() and np.isfinite(lattice).all()):
        return reject("diverged: positions or cell are not finite")
    group, numbers = request.space_group, np.array(start.numbers)
    merge = config.merge if start.positions is None else IDENTICAL
    radius = np.where(start.moves, merge, IDENTICAL)
    if config.round_within and start.positions is not None:
        frac = _rounded(group, start.positions, start.moves, frac, lattice, config.round_within)
    atoms = expand_sites(group, frac, lattice, radius)
    found = atoms.multiplicity.tolist()
    wanted = found if start.positions is None else [w.multiplicity for w in start.positions]
    for number, had, has in zip(numbers, wanted, found, strict=True):
        if had != has:
            return reject(
                f"collapsed: {SYMBOLS[number]} was to have {had} atoms in the cell, and its site "
                f"ended where it has {has}"
            )
    atom_site = atoms.atom_site
    distance, i, j = nearest_pair(atoms.frac, lattice, atoms.first)
    if distance < config.min_distance:
        pair = f"{SYMBOLS[numbers[atom_site[i]]]}-{SYMBOLS[numbers[atom_site[j]]]}"
        return reject(f"overlap: {pair} {distance:.2f} Å, less than {config.min_distance} Å")
    detected, contained = verify(
        lattice, atoms.frac, numbers[atom_site], group, is_exact=atoms.is_exact
    )
    if not contained:
        return reject(f"symmetry: spglib at 0.01 Å finds group {detected[USUAL]}, not {group}")
    return Candidate(
        request=request,
        seed=seed,
        index=index,
        attempt=attempt,
        unit=AsymmetricUnit(group.number, lattice, numbers, atoms.sites, atoms.multiplicity),
        atom_site=atom_site,
        atom_frac=atoms.frac,
        detected=detected,
        min_distance=distance,
        provenance=provenance | {"index": index, "attempt": attempt, "seed": seed},
    )


def _rounded(
    group: SpaceGroup,
    positions: Sequence[WyckoffPosition],
    moves: NDArray[np.bool_],
    frac: FloatArray,
    lattice: FloatArray,
    within: float,
) -> FloatArray:
    """Sites (A, 3) with simple fractions as parameters, where these are near.

    What is fixed stays, and a site that would come to rest on a more special position.
    """
    rounded = frac.copy()
    for k in np.flatnonzero(moves).tolist():
        w = positions[k]
        for parameter in range(w.freedom):
            value = rounded[k][w.parameters[parameter]]
            gaps = FRACTIONS - value % 1.0
            step = w.directions[:, parameter] * gaps[np.abs(gaps).argmin()]
            if np.linalg.norm(step @ lattice) <= within:
                rounded[k] += step
    radius = np.full(len(frac), IDENTICAL)
    kept = expand_sites(group, rounded, lattice, radius).multiplicity
    fits = kept == np.array([w.multiplicity for w in positions])
    return np.where(fits[:, None], rounded, frac)


def verify(
    lattice: FloatArray,
    frac: FloatArray,
    numbers: IntArray,
    group: SpaceGroup,
    *,
    is_exact: bool,
) -> tuple[dict[float, int], bool]:
    """The groups at all of ``SYMPRECS``, 0 where there is none, and :func:`contains_group`.

    One search serves for all where it can.

    Operations found at a small tolerance are among those found at a larger one. So where spglib
    finds this group and nothing more at the largest of ``SYMPRECS``, in this very cell, and the
    crystal has the group up to rounding (``is_exact``), smaller tolerances find it too. Otherwise
    spglib is asked at each of them.
    """
    cell, need = (lattice, frac, numbers), _group_codes(group.number)
    widest = symmetry_dataset(cell, SYMPRECS[-1])
    if is_exact and _number(widest) == group.number and _operations(widest) == need:
        return dict.fromkeys(SYMPRECS, group.number), True
    datasets = {s: widest if s == SYMPRECS[-1] else symmetry_dataset(cell, s) for s in SYMPRECS}
    detected = {s: _number(dataset) for s, dataset in datasets.items()}
    return detected, need <= _operations(datasets[USUAL])


def contains_group(
    lattice: FloatArray,
    frac: FloatArray,
    numbers: IntArray,
    group: SpaceGroup,
    symprec: float = USUAL,
) -> bool:
    """Whether every operation of ``group`` is among those spglib finds in this very cell."""
    found = symmetry_dataset((lattice, frac, numbers), symprec)
    return _group_codes(group.number) <= _operations(found)


def _number(dataset: SpglibDataset | None) -> int:
    return 0 if dataset is None else int(dataset.number)


def _operations(dataset: SpglibDataset | None) -> frozenset[bytes]:
    if dataset is None:
        return frozenset()
    return _codes(dataset.rotations, dataset.translations)


def _codes(
    rotations: NDArray[np.signedinteger[Any]], translations: FloatArray
) -> frozenset[bytes]:
    """Operations as texts of bytes, translations rounded to 1/24."""
    t = np.rint(translations * 24) % 24
    rows = np.concatenate([np.reshape(rotations, (-1, 9)), t], axis=1).astype(np.int16)
    return frozenset(row.tobytes() for row in rows)


@cache
def _group_codes(number: int) -> frozenset[bytes]:
    group = SpaceGroup(number)
    return _codes(group.rotations, group.translations)
