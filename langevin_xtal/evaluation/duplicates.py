"""The same crystals in a set, and in two sets: duplicates, uniqueness, novelty, METRe.

Crystals are the same when pymatgen's StructureMatcher says so with its defaults (``STRICT`` in
:mod:`langevin_xtal.evaluation.matching`). Pairs of different reduced formulas cannot match.

The field's :func:`unique_groups` compares with the first member of each group, in order.
:func:`group_duplicates`, which searches use, makes the same transitive and independent of the
order. It compares pairs nearest first, by their sorted neighbour distances (:func:`fingerprint`),
after which most pairs are connected and need no matcher; those farther apart than
:data:`FARTHEST` are different. The matcher alone would be kinder: it allows lengths to differ by
20 % and atoms by 0.3 (V/N)^(1/3), and connects crystals of MP-20 displaced and strained at random
up to fingerprints 0.146 apart. But candidates are not displaced at random: of 30,000 pairs in a
search of 1,000 candidates, matches were 0.8 of those within 0.02, 0.5 to 0.03, 1 of 40 to 0.05 and
none of 160 beyond.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import Cell, cell_key, reduced_formula
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.evaluation.cache import Cache
from langevin_xtal.evaluation.matching import (
    PAIR_SECONDS,
    STRICT,
    TOLERANCES,
    Progress,
    Tolerances,
    fit_pairs,
    match_pairs,
)
from langevin_xtal.evaluation.structures import StructureSet

Scalar = TypeVar("Scalar", bound=np.generic)
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

NEIGHBOURS = 12
"""Distances in a fingerprint, of each element."""
FARTHEST = 0.06
"""Mean difference of fingerprints, beyond which crystals are not compared."""
FIRST_BLOCK = 2
"""Pairs compared at first, per crystal of a bucket; twice as many each round after."""


def group_duplicates(
    cells: Sequence[Cell],
    *,
    tolerances: Tolerances = STRICT,
    cache: Cache | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    failures: dict[tuple[int, int], str] | None = None,
    seconds: float = PAIR_SECONDS,
    farthest: float = FARTHEST,
) -> list[int]:
    """For each cell the first one that is the same crystal, itself when it is the first.

    Being the same is made transitive: groups are what is connected by matching pairs. They do not
    depend on the order of the cells, since of each pair the cell whose :func:`cell_key` comes
    first is the matcher's first.

    Parameters
    ----------
    cells
        N P1 cells; what cannot be compared is a group of its own.
    cache
        Of comparisons; an interrupted run continues there.
    workers
        Processes; one per CPU by default, fewer for few pairs.
    progress
        Called with pairs settled and pairs there are.
    failures
        Receives the reason of each pair of places that could not be compared.
    seconds
        CPU time after which a pair is given up.
    farthest
        Pairs whose fingerprints differ by more on average are not compared.

    Returns
    -------
    list
        N places.
    """
    store = cache if cache is not None else Cache(None)
    keys = [cell_key(cell) for cell in cells]
    place_of: dict[str, int] = {}
    for place, key in enumerate(keys):
        place_of.setdefault(key, place)
    forest = _Forest(len(cells))
    for place, key in enumerate(keys):
        forest.join(place_of[key], place)
    buckets: dict[str, list[int]] = defaultdict(list)
    for key in sorted(place_of):
        buckets[reduced_formula(cells[place_of[key]][2])].append(place_of[key])
    queues = [_Queue(members, cells, farthest) for members in buckets.values() if len(members) > 1]
    planned = sum(len(queue.pairs) for queue in queues)
    while queues:
        pairs = [pair for queue in queues for pair in queue.take(forest)]
        queues = [queue for queue in queues if not queue.empty]
        settled = planned - sum(queue.left for queue in queues) - len(pairs)
        reasons: dict[int, str] = {}
        fits = fit_pairs(
            [(cells[a], cells[b]) for a, b in pairs],
            tolerances=tolerances,
            cache=store,
            workers=workers,
            progress=_after(progress, settled, planned),
            failures=reasons,
            seconds=seconds,
        )
        for k in np.flatnonzero(fits).tolist():
            forest.join(*pairs[k])
        if failures is not None:
            failures.update({pairs[k]: reason for k, reason in reasons.items()})
    return [forest.first(place) for place in range(len(cells))]


class Known:
    """Crystals that are known already, to be looked up.

    Parameters
    ----------
    packed
        The known crystals; cells are made of those only whose formula is asked for.
    tolerances
        Of the matcher.
    """

    def __init__(self, packed: PackedDataset, *, tolerances: Tolerances = STRICT) -> None:
        self.packed = packed
        self.tolerances = tolerances

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        """Places of the crystals of each reduced formula."""
        places: dict[str, list[int]] = defaultdict(list)
        for k in range(len(self.packed)):
            places[reduced_formula(self.packed.unit(k).atom_numbers)].append(k)
        return dict(places)

    def match(
        self,
        cells: Sequence[Cell],
        *,
        cache: Cache | None = None,
        workers: int | None = None,
        progress: Progress | None = None,
        seconds: float = PAIR_SECONDS,
    ) -> list[str]:
        """For each cell the identifier of the first known crystal that it fits, or nothing.

        The cell comes first in each comparison, as in
        :func:`novel`. What cannot be compared matches nothing.
        """
        of = [self._places.get(reduced_formula(cell[2]), []) for cell in cells]
        wanted = sorted({k for places in of for k in places})
        known = StructureSet.from_packed(self.packed, "known", np.array(wanted, dtype=np.int64))
        cell_of = dict(zip(wanted, known.cells(), strict=True))
        pairs = [(place, k) for place, places in enumerate(of) for k in places]
        fits = fit_pairs(
            [(cells[place], cell_of[k]) for place, k in pairs],
            tolerances=self.tolerances,
            cache=cache if cache is not None else Cache(None),
            workers=workers,
            progress=progress,
            seconds=seconds,
        )
        found = [""] * len(cells)
        for hit in np.flatnonzero(fits).tolist():
            place, k = pairs[hit]
            found[place] = found[place] or str(self.packed.id[k])
        return found


def fingerprint(cell: Cell, neighbours: int = NEIGHBOURS) -> FloatArray:
    """Sorted distances to the nearest atoms, averaged over the atoms of each element.

    The average minimum distances of D. Widdowson et al., MATCH Commun. Math. Comput. Chem. 87,
    529 (2022), by element and over (V/N)^(1/3): the same for every cell and scale of a crystal.

    Returns
    -------
    FloatArray
        (elements × neighbours,) elements by atomic number.
    """
    lattice, _, numbers = cell
    count = len(numbers)
    scale = (abs(np.linalg.det(lattice)) / count) ** (1 / 3)
    structure = to_structure(cell)
    reach = 1.3 * scale * (3 * neighbours / (4 * np.pi)) ** (1 / 3)
    while True:
        centre, _, _, distance = structure.get_neighbor_list(reach)
        if np.bincount(centre, minlength=count).min() >= neighbours:
            break
        reach *= 1.3
    order = np.lexsort((distance, centre))
    start = np.searchsorted(centre[order], np.arange(count))
    rows = distance[order][start[:, None] + np.arange(neighbours)] / scale
    return np.concatenate([rows[numbers == z].mean(axis=0) for z in np.unique(numbers)])


class _Forest:
    """Places in groups; the first place of a group stands for it."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def first(self, place: int) -> int:
        while self.parent[place] != place:
            self.parent[place] = self.parent[self.parent[place]]
            place = self.parent[place]
        return place

    def join(self, a: int, b: int) -> None:
        low, high = sorted((self.first(a), self.first(b)))
        self.parent[high] = low


class _Queue:
    """Pairs of one formula, those with the nearest fingerprints first."""

    def __init__(self, members: Sequence[int], cells: Sequence[Cell], farthest: float) -> None:
        prints = np.array([_print_or_nan(cells[place]) for place in members])
        self.pairs: list[tuple[int, int]] = []
        self.done = 0
        self.block = FIRST_BLOCK * len(members)
        a, b = np.triu_indices(len(members), 1)
        apart = np.abs(prints[a] - prints[b]).mean(axis=1)
        for k in np.argsort(apart, kind="stable").tolist():  # NaN comes last, and is compared
            if not apart[k] > farthest:
                self.pairs.append((members[a[k]], members[b[k]]))

    @property
    def left(self) -> int:
        return len(self.pairs) - self.done

    @property
    def empty(self) -> bool:
        return not self.left

    def take(self, forest: _Forest) -> Iterator[tuple[int, int]]:
        """The next pairs that are not connected yet."""
        taken = 0
        while taken < self.block and not self.empty:
            a, b = self.pairs[self.done]
            self.done += 1
            if forest.first(a) != forest.first(b):
                taken += 1
                yield a, b
        self.block *= 2


def _print_or_nan(cell: Cell) -> FloatArray:
    """The fingerprint, NaN for cells that have none: no atoms, no volume, not finite."""
    lattice, frac, numbers = cell
    sound = np.isfinite(lattice).all() and np.isfinite(frac).all()
    if not sound or abs(np.linalg.det(lattice)) < 1e-6 * max(len(numbers), 1):
        return np.full(NEIGHBOURS * len(np.unique(numbers)), np.nan)
    return fingerprint(cell)


def _after(progress: Progress | None, settled: int, planned: int) -> Progress | None:
    """Progress of one round, after the pairs settled before it."""
    if progress is None:
        return None
    return lambda done, _: progress(settled + done, planned)


# -- sets of structures


class Metre(NamedTuple):
    """Match Everyone To Reference."""

    rate: float  #: share of reference structures matched by any generated one
    crmse: float  #: mean over the reference of the best RMS, ``stol`` where there is no match
    best: FloatArray  #: (R,) lowest normalised RMS displacement, NaN: no match


def metre(
    generated: StructureSet,
    reference: StructureSet,
    *,
    cache: Cache,
    tolerances: Tolerances = TOLERANCES,
    workers: int | None = None,
    progress: Progress | None = None,
    failures: dict[tuple[str, str], str] | None = None,
    seconds: float = PAIR_SECONDS,
) -> Metre:
    """METRe and cRMSE (arXiv:2509.12178): any structure may match any reference structure.

    Unlike the match rate it does not punish a generated polymorph of the target that is in the
    reference too. Generated structures come first in each comparison.

    Parameters
    ----------
    failures
        Receives the reason of each (generated, reference) that could not be compared.

    Returns
    -------
    Metre
        NaN for an empty reference.
    """
    pairs = _same_formula(generated, reference)
    compare = partial(
        match_pairs,
        tolerances=tolerances,
        cache=cache,
        workers=workers,
        progress=progress,
        seconds=seconds,
    )
    values = _compared(compare, pairs, generated, reference, failures)
    best = np.full(len(reference), np.inf)
    hits = np.isfinite(values)
    np.minimum.at(best, pairs[hits, 1], values[hits])
    if not len(best):
        return Metre(math.nan, math.nan, best)
    found = np.isfinite(best)
    crmse = float(np.where(found, best, tolerances.stol).mean())
    return Metre(float(found.mean()), crmse, np.where(found, best, np.nan))


def unique_groups(
    structures: StructureSet,
    *,
    cache: Cache,
    tolerances: Tolerances = STRICT,
    workers: int | None = None,
    progress: Progress | None = None,
    failures: dict[tuple[str, str], str] | None = None,
    seconds: float = PAIR_SECONDS,
) -> IntArray:
    """Group of each structure; the number of groups over those attempted is the uniqueness.

    As ``StructureMatcher.group_structures``: in order, a structure joins the first group whose
    first member it fits (the member comes first in the comparison), else it opens a group. What
    cannot be compared is a group of its own: validity is another matter.

    Parameters
    ----------
    progress
        Called with comparisons done and planned so far; how many are needed shows on the way.
    failures
        Receives the reason of each pair that could not be compared.

    Returns
    -------
    IntArray
        (B,) 0, 1, … in order of first appearance.
    """
    first_of = np.arange(len(structures))
    waiting = [members for members in formula_index(structures).values() if len(members) > 1]
    compared = 0
    block = 1
    while waiting:
        # comparing several candidates for first member at once fills all workers; doubling
        # their number bounds both the rounds and the comparisons that turn out needless
        pairs = np.array(
            [
                (a, b)
                for members in waiting
                for place, a in enumerate(members[:block])
                for b in members[place + 1 :]
            ],
            dtype=np.int64,
        )
        compare = partial(
            fit_pairs,
            tolerances=tolerances,
            cache=cache,
            workers=workers,
            progress=_after_rounds(progress, compared),
            seconds=seconds,
        )
        fits = _compared(compare, pairs, structures, structures, failures)
        compared += len(pairs)
        same = set(map(tuple, pairs[fits].tolist()))
        left = [_join(members, block, same, first_of) for members in waiting]
        waiting = [members for members in left if len(members) > 1]
        block *= 2
    appearance = {int(first): k for k, first in enumerate(np.unique(first_of))}
    return np.array([appearance[int(first)] for first in first_of], dtype=np.int64)


def _join(
    members: Sequence[int], block: int, same: set[tuple[int, int]], first_of: IntArray
) -> list[int]:
    """Settle the groups opened among the first ``block`` members; returns the others."""
    left = list(members)
    for first in members[:block]:
        if first not in left:
            continue
        joined = [b for b in left if (first, b) in same]
        first_of[joined] = first
        left = [b for b in left if b != first and b not in joined]
    return left


def novel(
    structures: StructureSet,
    training: StructureSet,
    *,
    cache: Cache,
    tolerances: Tolerances = STRICT,
    workers: int | None = None,
    progress: Progress | None = None,
    failures: dict[tuple[str, str], str] | None = None,
    seconds: float = PAIR_SECONDS,
) -> BoolArray:
    """Whether each structure fits none of the training structures, by ``StructureMatcher.fit``.

    The structure comes first in each comparison. What cannot be compared is novel: validity is
    another matter.

    Parameters
    ----------
    failures
        Receives the reason of each (structure, training structure) that could not be compared.

    Returns
    -------
    BoolArray
        (B,)
    """
    pairs = _same_formula(structures, training)
    compare = partial(
        fit_pairs,
        tolerances=tolerances,
        cache=cache,
        workers=workers,
        progress=progress,
        seconds=seconds,
    )
    fits = _compared(compare, pairs, structures, training, failures)
    result = np.ones(len(structures), dtype=bool)
    result[pairs[fits, 0]] = False
    return result


def formula_index(structures: StructureSet) -> dict[str, list[int]]:
    """Places of the structures of each reduced formula."""
    index: dict[str, list[int]] = defaultdict(list)
    for place, formula in enumerate(structures.formulas):
        index[formula].append(place)
    return dict(index)


def _same_formula(first: StructureSet, second: StructureSet) -> IntArray:
    """(P, 2) all pairs of equal reduced formula."""
    index = formula_index(second)
    pairs = [(a, b) for a, name in enumerate(first.formulas) for b in index.get(name, ())]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _cells(pairs: IntArray, first: StructureSet, second: StructureSet) -> list[tuple[Cell, Cell]]:
    """The cells of (P, 2) pairs, one object for each structure."""
    firsts = {k: first.cell(k) for k in np.unique(pairs[:, 0]).tolist()}
    seconds = {k: second.cell(k) for k in np.unique(pairs[:, 1]).tolist()}
    return [(firsts[a], seconds[b]) for a, b in pairs.tolist()]


def _compared(
    compare: Callable[..., NDArray[Scalar]],
    pairs: IntArray,
    first: StructureSet,
    second: StructureSet,
    failures: dict[tuple[str, str], str] | None,
) -> NDArray[Scalar]:
    """(P,) what a comparison says of (P, 2) pairs; failures are named by their identifiers."""
    places: dict[int, str] = {}
    found = compare(_cells(pairs, first, second), failures=places)
    if failures is not None:
        for place, reason in places.items():
            a, b = pairs[place]
            failures[first.ids[a], second.ids[b]] = reason
    return found


def _after_rounds(progress: Progress | None, compared: int) -> Progress | None:
    """Progress of one round, after those before it."""
    if progress is None:
        return None
    return lambda done, planned: progress(compared + done, compared + planned)
