"""From the end of a chain to a crystal: snap, expand, verify, or reject with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.candidate import SYMPRECS, Candidate
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.request import Request
from langevin_xtal.errors import InputError
from langevin_xtal.sampling.start import Start
from langevin_xtal.symmetry import SpaceGroup, orbit, snap_site, wrap
from langevin_xtal.symmetry.sites import IDENTICAL

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PostprocessConfig:
    """When sites merge and when a crystal is rejected."""

    merge: float = 0.3
    """A site this near to a special position is placed on it [Å]."""
    min_distance: float = 0.7
    """Reject crystals with two atoms closer than this [Å]."""

    def __post_init__(self) -> None:
        for name in ("merge", "min_distance"):
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
    provenance: dict[str, object],
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
    sites = [
        wrap(snap_site(f, group.rotations, group.translations, lattice, merge if m else IDENTICAL))
        for f, m in zip(frac, start.moves, strict=True)
    ]
    images = [wrap(orbit(s, group.rotations, group.translations, lattice)[0]) for s in sites]
    found = np.array([len(i) for i in images])
    wanted = found if start.positions is None else [w.multiplicity for w in start.positions]
    for number, had, has in zip(numbers, wanted, found, strict=True):
        if had != has:
            return reject(
                f"collapsed: {SYMBOLS[number]} was to have {had} atoms in the cell, and its site "
                f"ended where it has {has}"
            )
    atom_site = np.repeat(np.arange(len(sites)), [len(i) for i in images])
    atom_frac = np.concatenate(images)
    first = np.searchsorted(atom_site, np.arange(len(sites)))
    distance, i, j = nearest_pair(atom_frac, lattice, first)
    if distance < config.min_distance:
        pair = f"{SYMBOLS[numbers[atom_site[i]]]}-{SYMBOLS[numbers[atom_site[j]]]}"
        return reject(f"overlap: {pair} {distance:.2f} Å, less than {config.min_distance} Å")
    detected = detect_groups(lattice, atom_frac, numbers[atom_site])
    if not contains_group(lattice, atom_frac, numbers[atom_site], group):
        return reject(f"symmetry: spglib at 0.01 Å finds group {detected[1e-2]}, not {group}")
    return Candidate(
        request=request,
        seed=seed,
        index=index,
        attempt=attempt,
        numbers=numbers,
        frac=np.array(sites),
        lattice=lattice,
        atom_site=atom_site,
        atom_frac=atom_frac,
        detected=detected,
        min_distance=distance,
        provenance=provenance | {"index": index, "attempt": attempt, "seed": seed},
    )


def nearest_pair(
    frac: FloatArray, lattice: FloatArray, start: IntArray | None = None
) -> tuple[float, int, int]:
    """Shortest distance [Å] between two atoms or an atom and its copies, and the two atoms.

    ``start`` names the atoms to look from, by default all; one of each site is enough.
    """
    steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    start = np.arange(len(frac)) if start is None else start
    delta = frac[None, :] - frac[start][:, None]
    delta -= np.rint(delta)
    best = np.full(delta.shape[:2], np.inf)
    for step in steps:
        distance = np.linalg.norm((delta + step) @ lattice, axis=-1)
        if not step.any():
            distance[np.arange(len(start)), start] = np.inf
        best = np.minimum(best, distance)
    i, j = np.unravel_index(int(best.argmin()), best.shape)
    return float(best[i, j]), int(start[i]), int(j)


def detect_groups(lattice: FloatArray, frac: FloatArray, numbers: IntArray) -> dict[float, int]:
    """Space-group number spglib finds at each of ``SYMPRECS``; 0 where it finds none."""
    import spglib

    cell: Any = (lattice, frac, numbers)
    found = {}
    for symprec in SYMPRECS:
        try:
            dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)
        except spglib.SpglibError:
            dataset = None
        found[symprec] = 0 if dataset is None else int(dataset.number)
    return found


def contains_group(
    lattice: FloatArray,
    frac: FloatArray,
    numbers: IntArray,
    group: SpaceGroup,
    symprec: float = 1e-2,
) -> bool:
    """Whether every operation of ``group`` is among those spglib finds in this very cell."""
    import spglib

    cell: Any = (lattice, frac, numbers)
    try:
        found = spglib.get_symmetry(cell, symprec=symprec)
    except spglib.SpglibError:
        return False
    if found is None:
        return False
    have = {
        (*map(int, w.ravel()), *map(int, np.rint(t * 24) % 24))
        for w, t in zip(found["rotations"], found["translations"], strict=True)
    }
    need = {
        (*map(int, w.ravel()), *map(int, t))
        for w, t in zip(group.rotations, group.translations24, strict=True)
    }
    return need <= have
