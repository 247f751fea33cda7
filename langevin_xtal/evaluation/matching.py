"""Which crystals are the same: structure prediction, uniqueness and novelty.

Two structures are the same when pymatgen's StructureMatcher says so (Ong et al., Comput. Mater.
Sci. 68, 314, 2013), with its defaults but for the tolerances: primitive cells, volumes scaled to
each other. How far apart they are is its normalised RMS displacement, ``get_rms_dist()[0]``: RMS
over the atoms after the best common translation, divided by (V/N)^(1/3) of the mean cell.

The matcher is slow, so it runs in parallel, only on pairs of the same reduced formula (others
cannot match), and its answers are kept in a :class:`~langevin_xtal.evaluation.cache.Cache`. Pairs
that it cannot handle, or not in :data:`PAIR_SECONDS`, count as no match. Functions that compare
take a dictionary ``failures``, which receives the reason of each such pair. The answer may depend
on which structure comes first; the order is stated with each function.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache as remember
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.crystal.cell import Cell, cell_key, reduced_formula
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.readers import first_line
from langevin_xtal.errors import DataError, InputError
from langevin_xtal.evaluation.cache import Cache
from langevin_xtal.evaluation.structures import StructureSet, split_id
from langevin_xtal.parallel import parallel_map
from langevin_xtal.runtime import OutOfTime, time_limit
from langevin_xtal.symmetry import CRYSTAL_SYSTEMS

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Progress = Callable[[int, int], None]
"""Called with pairs done and planned."""
Measure = Literal["rms", "fit"]


@dataclass(frozen=True)
class Tolerances:
    """Of StructureMatcher."""

    ltol: float  #: relative difference of cell lengths
    stol: float  #: displacement of sites over (V/N)^(1/3)
    angle_tol: float  #: difference of cell angles [degrees]


TOLERANCES = Tolerances(ltol=0.3, stol=0.5, angle_tol=10.0)
"""Of structure prediction since CDVAE (Xie et al. 2022), and DiffCSP (Jiao et al. 2023)."""
STRICT = Tolerances(ltol=0.2, stol=0.3, angle_tol=5.0)
"""pymatgen's defaults; for uniqueness and novelty, as FlowMM and MatterGen."""

PAIR_SECONDS = 30.0
"""CPU time after which a pair is given up; pairs of up to 20 atoms need less than one second."""
MAX_LATTICE_POINTS = 200_000
"""Lattice vectors the matcher may have to list (it would take gigabytes for a needle or a flake);
no cell of MP-20's validation set needs 8,000."""
MAX_VECTOR_PAIRS = 25_000_000
"""Entries of the matcher's largest table of angles: 200 MB each."""
PAIRS_PER_WORKER = 100
"""A worker needs two seconds to start."""
FLUSH_PAIRS, FLUSH_SECONDS = 500, 5.0

FREEDOM_BINS: tuple[tuple[float, float], ...] = (
    (0, 0),
    (1, 1),
    (2, 2),
    (3, 3),
    (4, 5),
    (6, 8),
    (9, math.inf),
)
"""Free coordinates of all sites together: first and last of each bin."""
FREEDOM_LABELS = ("0", "1", "2", "3", "4-5", "6-8", "9+")
ATOM_BINS = (4, 8, 12, 16, 20, 52)
"""Atoms in the primitive cell: last of each bin; larger cells have one of their own."""
ATOM_LABELS = ("1-4", "5-8", "9-12", "13-16", "17-20", "21-52", "53+")
_LABEL_ORDER = {
    label: k
    for k, label in enumerate(
        [*FREEDOM_LABELS, *ATOM_LABELS, *(name for name, _, _ in CRYSTAL_SYSTEMS)]
    )
}


# -- pairs


def match_pairs(
    pairs: Sequence[tuple[Cell, Cell]],
    *,
    tolerances: Tolerances = TOLERANCES,
    cache: Cache,
    workers: int | None = None,
    progress: Progress | None = None,
    failures: dict[int, str] | None = None,
    seconds: float = PAIR_SECONDS,
) -> FloatArray:
    """Normalised RMS displacement of each pair, as ``get_rms_dist(first, second)[0]``.

    Parameters
    ----------
    pairs
        P pairs; for structure prediction the predicted cell comes first.
    workers
        Processes; one per CPU by default, fewer for few pairs.
    progress
        Called with pairs done and planned.
    failures
        Receives the reason of each pair (by its place) that could not be compared.
    seconds
        CPU time after which a pair is given up. No limit where Python has no ``setitimer``
        (Windows), nor outside the main thread of a process.

    Returns
    -------
    FloatArray
        (P,) NaN where the two do not match.
    """
    return _compare(pairs, "rms", tolerances, cache, workers, progress, failures, seconds)


def fit_pairs(
    pairs: Sequence[tuple[Cell, Cell]],
    *,
    tolerances: Tolerances = STRICT,
    cache: Cache,
    workers: int | None = None,
    progress: Progress | None = None,
    failures: dict[int, str] | None = None,
    seconds: float = PAIR_SECONDS,
) -> BoolArray:
    """Whether each pair matches, as ``StructureMatcher.fit(first, second)``.

    Not the same as a finite :func:`match_pairs`: here the largest displacement of any atom stays
    below ``stol``, there the RMS over the atoms. Parameters as there.

    Returns
    -------
    BoolArray
        (P,)
    """
    values = _compare(pairs, "fit", tolerances, cache, workers, progress, failures, seconds)
    return np.isfinite(values)


def _compare(
    pairs: Sequence[tuple[Cell, Cell]],
    measure: Measure,
    tolerances: Tolerances,
    cache: Cache,
    workers: int | None,
    progress: Progress | None,
    failures: dict[int, str] | None,
    seconds: float,
) -> FloatArray:
    """(P,) the measure, NaN without a match; "fit" gives 0 for one."""
    places = _comparable(pairs)
    kind = _kind(measure, tolerances)
    known = {
        key: entry
        for key, entry in cache.get(kind, list(places)).items()
        if len(entry) == 2
        and not 0 < entry[1] < seconds  # given more time than before, it may come to an end
    }
    todo = [key for key in places if key not in known]
    answers = _Answers(places, np.full(len(pairs), np.nan), failures)
    answers.done = len(pairs) - sum(len(p) for p in places.values())
    for key, entry in known.items():
        answers.settle(key, entry[0], _too_slow(entry[1]) if entry[1] else "")
    report = progress or (lambda done, planned: None)
    report(answers.done, len(pairs))
    outcomes = parallel_map(
        partial(_run, measure=measure, tolerances=tolerances, seconds=seconds),
        [pairs[places[key][0]] for key in todo],
        workers=_useful(workers, len(todo)),
    )
    with _Writer(cache, kind) as writer:
        for key, (answer, given_up, reason) in zip(todo, outcomes, strict=True):
            answers.settle(key, answer, reason)
            if given_up or not reason:  # other failures are quick, and their reason is wanted
                writer.add(key, np.array([answer, given_up]))
            report(answers.done, len(pairs))
    return answers.values


@dataclass
class _Answers:
    """Answers of P pairs, some of them equal."""

    places: Mapping[str, Sequence[int]]
    values: FloatArray  #: (P,)
    failures: dict[int, str] | None
    done: int = 0

    def settle(self, key: str, answer: float, reason: str) -> None:
        """The answer of all pairs with this key."""
        places = self.places[key]
        self.values[list(places)] = answer
        self.done += len(places)
        if reason and self.failures is not None:
            self.failures.update(dict.fromkeys(places, reason))


class _Writer:
    """Puts entries into the cache now and then, and what is left on leaving, for any reason."""

    def __init__(self, cache: Cache, kind: str) -> None:
        self.cache, self.kind = cache, kind
        self.waiting: dict[str, FloatArray] = {}
        self.written = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.flush()

    def add(self, key: str, entry: FloatArray) -> None:
        """Keep an entry."""
        self.waiting[key] = entry
        if len(self.waiting) >= FLUSH_PAIRS or time.monotonic() - self.written > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        self.cache.put(self.kind, self.waiting)
        self.waiting = {}
        self.written = time.monotonic()


def _comparable(pairs: Sequence[tuple[Cell, Cell]]) -> dict[str, list[int]]:
    """Places of each different pair of equal reduced formula, by its key."""
    key_of, formula_of = _once(cell_key), _once(lambda cell: reduced_formula(cell[2]))
    places: dict[str, list[int]] = defaultdict(list)
    for place, (first, second) in enumerate(pairs):
        if formula_of(first) == formula_of(second):
            places[key_of(first) + key_of(second)].append(place)
    return places


def _once(function: Callable[[Cell], str]) -> Callable[[Cell], str]:
    """The function, called once for each cell object; the caller keeps the cells alive."""
    known: dict[int, str] = {}

    def call(cell: Cell) -> str:
        if id(cell) not in known:
            known[id(cell)] = function(cell)
        return known[id(cell)]

    return call


def _useful(workers: int | None, pairs: int) -> int:
    """As many workers as are worth starting."""
    return max(1, min(workers or os.cpu_count() or 1, pairs // PAIRS_PER_WORKER))


def _kind(measure: Measure, tolerances: Tolerances) -> str:
    """What is cached: any change of these asks for another answer."""
    settings = " ".join(f"{name}={value:g}" for name, value in asdict(tolerances).items())
    return f"match {measure} {settings} {_packages()}"


@remember
def _packages() -> str:
    """The packages that hold the matcher, with their versions."""
    found = []
    for name in ("pymatgen", "pymatgen-core"):  # apart since 2025
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return " ".join(found)


# -- one pair, in a worker


def _run(
    pair: tuple[Cell, Cell], *, measure: Measure, tolerances: Tolerances, seconds: float
) -> tuple[float, float, str]:
    """(answer or NaN, CPU seconds it was given up after or 0, reason of a failure)."""
    try:
        with warnings.catch_warnings(), time_limit(seconds, "cpu"):
            warnings.simplefilter("ignore")
            reason = _unfit(pair[0]) or _unfit(pair[1]) or _too_long(pair[1], tolerances)
            answer = math.nan if reason else _ask(pair, measure, tolerances)
            return answer, 0.0, reason
    except OutOfTime:
        return math.nan, seconds, _too_slow(seconds)
    except Exception as error:  # one strange structure must not end the run
        return math.nan, 0.0, f"StructureMatcher failed: {first_line(error)}"


def _ask(pair: tuple[Cell, Cell], measure: Measure, tolerances: Tolerances) -> float:
    matcher = _matcher(tolerances)
    first, second = map(to_structure, pair)
    if measure == "fit":
        return 0.0 if matcher.fit(first, second) else math.nan
    found = matcher.get_rms_dist(first, second)
    return math.nan if found is None else float(found[0])


@remember
def _matcher(tolerances: Tolerances) -> StructureMatcher:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(**asdict(tolerances))


def _unfit(cell: Cell) -> str:
    """Why a cell cannot be compared at all, or nothing."""
    lattice, frac, numbers = cell
    if not len(numbers):
        return "no atoms"
    if not (np.isfinite(lattice).all() and np.isfinite(frac).all()):
        return "the cell or the positions are not finite"
    if abs(np.linalg.det(lattice)) < 1e-6:
        return "the cell has no volume"
    return ""


def _too_long(cell: Cell, tolerances: Tolerances) -> str:
    """Why the second cell would take too much memory, or nothing.

    The matcher lists all lattice vectors up to the cell's longest edge, and the angles between
    those about as long as two of its edges. The numbers are estimated from volumes of spheres and
    shells. A reduced basis has the shortest edges possible, so a basis within the limits will do.
    """
    from pymatgen.core import Lattice

    def exceeds(lattice: FloatArray) -> bool:
        length = np.sort(np.linalg.norm(lattice, axis=1))
        spheres = 4 / 3 * np.pi * length**3 / abs(np.linalg.det(lattice))
        outer, inner = (1 + tolerances.ltol) ** 3, (1 + tolerances.ltol) ** -3
        shells = spheres * (outer - inner)
        return bool(
            spheres[2] * outer > MAX_LATTICE_POINTS or shells[1] * shells[2] > MAX_VECTOR_PAIRS
        )

    if exceeds(cell[0]) and exceeds(Lattice(cell[0]).get_lll_reduced_lattice().matrix):
        return "the cell is too long or too flat for StructureMatcher"
    return ""


def _too_slow(seconds: float) -> str:
    return f"not compared within {seconds:g} s of CPU time"


# -- predictions of targets


@dataclass(frozen=True, eq=False)
class PredictionTable:
    """K predictions (trials) of each of T targets."""

    targets: tuple[str, ...]  #: (T,) identifiers
    freedom: IntArray  #: (T,) free coordinates of all sites together
    rms: FloatArray  #: (T, K) normalised RMS displacement, NaN: no match
    present: BoolArray  #: (T, K) there was a structure
    prediction_valid: BoolArray  #: (T, K)
    target_valid: BoolArray  #: (T,)
    formula_right: BoolArray  #: (T, K) reduced formula is the target's
    failures: dict[str, str] = field(default_factory=dict)
    """Reasons, by prediction, why some could not be compared; they count as no match."""


class MatchRate(NamedTuple):
    """Share of targets that were found."""

    targets: int
    matched: int
    rate: float  #: NaN without targets
    rmse: float  #: mean over matched targets of the best normalised RMS displacement, or NaN
    interval: tuple[float, float]  #: Wilson's, 95 %


def predict_table(
    predictions: StructureSet,
    reference: StructureSet,
    *,
    targets: Sequence[str],
    trials: int,
    prediction_valid: Mapping[str, bool],
    target_valid: Mapping[str, bool],
    freedom: Mapping[str, int],
    cache: Cache,
    tolerances: Tolerances = TOLERANCES,
    workers: int | None = None,
    progress: Progress | None = None,
    seconds: float = PAIR_SECONDS,
) -> PredictionTable:
    """Compare the predictions of each target with it, the prediction first.

    Parameters
    ----------
    predictions
        Identifiers say of which target, and which trial (see
        :func:`~langevin_xtal.evaluation.structures.split_id`); others are left out.
    targets
        Identifiers of T crystals of the reference.
    trials
        K; later trials are left out.
    prediction_valid
        By identifier, of each prediction used.
    target_valid, freedom
        By identifier, of each target.

    Raises
    ------
    InputError
        When there are no trials.
    DataError
        When a target is not in the reference, or a prediction occurs twice (``x`` and ``x__0``).
    """
    if trials < 1:
        raise InputError(f"trials is {trials}; give at least 1")
    unknown = [name for name in targets if name not in reference.index_of]
    if unknown:
        raise DataError(f"target {unknown[0]!r} is not in {reference.label}")
    found = _predictions(predictions, targets, trials)
    goals = [reference.cell(reference.index_of[name]) for name in targets]
    failures: dict[int, str] = {}
    values = match_pairs(
        [(predictions.cell(k), goals[row]) for (row, _), k in found.items()],
        tolerances=tolerances,
        cache=cache,
        workers=workers,
        progress=progress,
        failures=failures,
        seconds=seconds,
    )
    rms = np.full((len(targets), trials), np.nan)
    present, valid, right = (np.zeros(rms.shape, dtype=bool) for _ in range(3))
    for (place, k), value in zip(found.items(), values, strict=True):
        rms[place] = value
        present[place] = True
        valid[place] = prediction_valid[predictions.ids[k]]
        goal = reference.formulas[reference.index_of[targets[place[0]]]]
        right[place] = predictions.formulas[k] == goal
    used = [predictions.ids[k] for k in found.values()]
    return PredictionTable(
        targets=tuple(targets),
        freedom=np.array([freedom[name] for name in targets], dtype=np.int64),
        rms=rms,
        present=present,
        prediction_valid=valid,
        target_valid=np.array([target_valid[name] for name in targets], dtype=bool),
        formula_right=right,
        failures={used[place]: reason for place, reason in failures.items()},
    )


def _predictions(
    predictions: StructureSet, targets: Sequence[str], trials: int
) -> dict[tuple[int, int], int]:
    """(target, trial) to the place of the prediction, target by target.

    Raises
    ------
    DataError
        When one occurs twice.
    """
    row = {name: k for k, name in enumerate(targets)}
    found: dict[tuple[int, int], int] = {}
    for k, name in enumerate(predictions.ids):
        target, trial = (name, 0) if name in row else split_id(name)
        if target not in row or trial >= trials:
            continue
        place = row[target], trial
        if place in found:
            other = predictions.ids[found[place]]
            raise DataError(
                f"{predictions.label}: {other!r} and {name!r} are both trial {trial} of {target!r}"
            )
        found[place] = k
    # equal targets side by side: pymatgen remembers the reduced cells it saw last
    return dict(sorted(found.items()))


def match_rate(
    table: PredictionTable, k: int, *, filtered: bool = False, pick: BoolArray | None = None
) -> MatchRate:
    """Share of targets matched by the best of the first ``k`` trials.

    Every target is in the denominator, also those without a structure.

    Parameters
    ----------
    filtered
        As DiffCSP counts: only valid predictions can match, and for ``k`` = 1 only valid targets
        can be matched (so that the rate cannot reach 1). For larger ``k`` targets are not
        filtered.
    pick
        (T,) the targets that count; all by default.

    Raises
    ------
    InputError
        When the table does not have ``k`` trials.
    """
    if not 1 <= k <= table.rms.shape[1]:
        raise InputError(f"k is {k}; the table has {table.rms.shape[1]} trials")
    counts = np.isfinite(table.rms[:, :k])
    if filtered:
        counts &= table.prediction_valid[:, :k]
        if k == 1:
            counts &= table.target_valid[:, None]
    best = np.where(counts, table.rms[:, :k], np.inf).min(axis=1)
    if pick is not None:
        best = best[pick]
    hits = best[np.isfinite(best)]
    targets, matched = len(best), len(hits)
    return MatchRate(
        targets,
        matched,
        matched / targets if targets else math.nan,
        float(hits.mean()) if matched else math.nan,
        wilson(matched, targets),
    )


def wilson(hits: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share (E. B. Wilson, J. Am. Stat. Assoc. 22, 209, 1927); NaN of nothing."""
    if not of:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / of
    centre = share + z**2 / (2 * of)
    half = z * math.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    low, high = ((centre + sign * half) / (1 + z**2 / of) for sign in (-1, 1))
    return 0.0 if hits == 0 else low, 1.0 if hits == of else high


def freedom_labels(freedom: ArrayLike) -> list[str]:
    """The bin of :data:`FREEDOM_BINS` of each count of free coordinates."""
    last = [end for _, end in FREEDOM_BINS]
    return [FREEDOM_LABELS[k] for k in np.searchsorted(last, np.asarray(freedom, dtype=float))]


def atom_labels(atoms: ArrayLike) -> list[str]:
    """The bin of :data:`ATOM_BINS` of each number of atoms in the primitive cell."""
    return [ATOM_LABELS[k] for k in np.searchsorted(ATOM_BINS, np.asarray(atoms, dtype=float))]


def system_labels(groups: ArrayLike) -> list[str]:
    """The crystal system of each space-group number; ``"unknown"`` outside 1 to 230."""
    names = ["unknown", *(name for name, _, _ in CRYSTAL_SYSTEMS), "unknown"]
    first = [first for _, first, _ in CRYSTAL_SYSTEMS] + [231]
    return [names[k] for k in np.searchsorted(first, np.asarray(groups), side="right")]


def rates_by(
    table: PredictionTable, labels: Sequence[str], k: int = 1, *, filtered: bool = False
) -> dict[str, MatchRate]:
    """Match rate of the targets of each label.

    Parameters
    ----------
    labels
        (T,) such as :func:`freedom_labels`, :func:`atom_labels` or :func:`system_labels` give.

    Returns
    -------
    dict[str, MatchRate]
        Bins and crystal systems in their order, other labels after them.
    """
    own = np.array(labels, dtype=np.str_)
    order = sorted(set(labels), key=lambda label: (_LABEL_ORDER.get(label, math.inf), label))
    return {name: match_rate(table, k, filtered=filtered, pick=own == name) for name in order}


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
    places: dict[int, str] = {}
    pairs = _same_formula(generated, reference)
    values = match_pairs(
        _cells(pairs, generated, reference),
        tolerances=tolerances,
        cache=cache,
        workers=workers,
        progress=progress,
        failures=places,
        seconds=seconds,
    )
    _name(places, pairs, generated, reference, failures)
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
        places: dict[int, str] = {}
        fits = fit_pairs(
            _cells(pairs, structures, structures),
            tolerances=tolerances,
            cache=cache,
            workers=workers,
            progress=_after(progress, compared),
            failures=places,
            seconds=seconds,
        )
        _name(places, pairs, structures, structures, failures)
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
    places: dict[int, str] = {}
    pairs = _same_formula(structures, training)
    fits = fit_pairs(
        _cells(pairs, structures, training),
        tolerances=tolerances,
        cache=cache,
        workers=workers,
        progress=progress,
        failures=places,
        seconds=seconds,
    )
    _name(places, pairs, structures, training, failures)
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


def _name(
    places: Mapping[int, str],
    pairs: IntArray,
    first: StructureSet,
    second: StructureSet,
    failures: dict[tuple[str, str], str] | None,
) -> None:
    """Add failures to ``failures`` by the identifiers of their pairs."""
    if failures is not None:
        for place, reason in places.items():
            a, b = pairs[place]
            failures[first.ids[a], second.ids[b]] = reason


def _after(progress: Progress | None, compared: int) -> Progress | None:
    """Progress of one round, after those before it."""
    if progress is None:
        return None
    return lambda done, planned: progress(compared + done, compared + planned)
