"""Structure prediction: predictions against the targets that they are of, and match rates.

A target is matched by the best of its first k trials. Predictions come first in each comparison
(:mod:`~langevin_xtal.evaluation.matching`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.errors import DataError, InputError
from langevin_xtal.evaluation.cache import Cache
from langevin_xtal.evaluation.matching import (
    PAIR_SECONDS,
    TOLERANCES,
    Progress,
    Tolerances,
    match_pairs,
)
from langevin_xtal.evaluation.structures import StructureSet, split_id
from langevin_xtal.symmetry import CRYSTAL_SYSTEMS

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

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
