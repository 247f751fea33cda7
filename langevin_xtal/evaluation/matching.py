"""Which crystals are the same: pairs of cells, compared in parallel, once.

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
from dataclasses import asdict, dataclass
from functools import cache as remember
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import Cell, cell_key, reduced_formula
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.readers import first_line
from langevin_xtal.evaluation.cache import Cache
from langevin_xtal.parallel import parallel_map
from langevin_xtal.runtime import OutOfTime, time_limit

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
