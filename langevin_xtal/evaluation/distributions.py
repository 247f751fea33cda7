"""Distances between distributions of properties, and diversity of a set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist, jensenshannon
from scipy.stats import wasserstein_distance

from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.errors import InputError
from langevin_xtal.evaluation.coverage import row_blocks
from langevin_xtal.symmetry import SpaceGroup

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SPACE_GROUPS = 230


def wasserstein(a: ArrayLike, b: ArrayLike) -> float:
    """The 1-Wasserstein (earth mover's) distance of two samples, in their unit.

    Values that are not finite are left out; NaN when a side has none left. As
    :func:`scipy.stats.wasserstein_distance`, which CDVAE's ``GenEval`` uses.
    """
    first, second = _finite(a), _finite(b)
    if not len(first) or not len(second):
        return float("nan")
    return float(wasserstein_distance(first, second))


def jensen_shannon(p: ArrayLike, q: ArrayLike) -> float:
    """The Jensen–Shannon *distance* of two histograms: the square root of the divergence, natural
    logarithm, between 0 and √(ln 2) ≈ 0.8326.

    As :func:`scipy.spatial.distance.jensenshannon`, which SymmCD's metrics use.

    Parameters
    ----------
    p, q
        (n,) counts or weights of the same bins; they need not be normalised.

    Returns
    -------
    float
        NaN when a side has no counts.

    Raises
    ------
    InputError
        When the bins differ in number or a count is negative or not finite.
    """
    first, second = np.asarray(p, dtype=float), np.asarray(q, dtype=float)
    if first.ndim != 1 or first.shape != second.shape:
        raise InputError(f"histograms of shapes {first.shape} and {second.shape}")
    if not all(np.isfinite(h).all() and (h >= 0).all() for h in (first, second)):
        raise InputError("histograms hold finite counts of at least 0")
    if not first.sum() or not second.sum():
        return float("nan")
    with np.errstate(invalid="ignore"):  # of equal histograms it may be the root of -1e-17
        distance = jensenshannon(first, second)
    return float(np.nan_to_num(distance, nan=0.0))


def space_group_divergence(a: ArrayLike, b: ArrayLike) -> float:
    """:func:`jensen_shannon` of space groups, one bin for each of the 230.

    SymmCD's code has 229 bins (``np.histogram(bins=range(1, 231))``), its last one for 229 and 230
    together; numbers differ where both occur.

    Parameters
    ----------
    a, b
        (n,) and (m,) numbers; 0 (no group found) is left out.

    Raises
    ------
    InputError
        When a number is not in 0 to 230.
    """
    return jensen_shannon(_counts(a, SPACE_GROUPS), _counts(b, SPACE_GROUPS))


def element_divergence(a: ArrayLike, b: ArrayLike) -> float:
    """:func:`jensen_shannon` of how often each element occurs among all atoms.

    Parameters
    ----------
    a, b
        (n,) and (m,) atomic numbers, one per atom.

    Raises
    ------
    InputError
        When a number is not that of an element.
    """
    last = len(SYMBOLS) - 1
    return jensen_shannon(_counts(a, last), _counts(b, last))


def lattice_wasserstein(a: ArrayLike, b: ArrayLike) -> FloatArray:
    """(6,) :func:`wasserstein` of the lengths a, b, c [Å] and angles α, β, γ [degrees].

    Parameters
    ----------
    a, b
        (n, 6) and (m, 6) parameters of cells, chosen by the same rule on both sides.

    Raises
    ------
    InputError
        When they do not have six columns.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if any(cells.ndim != 2 or cells.shape[1] != 6 for cells in (first, second)):
        raise InputError(f"cell parameters of shapes {first.shape} and {second.shape}, not (n, 6)")
    return np.array([wasserstein(x, y) for x, y in zip(first.T, second.T, strict=True)])


def p1_share(groups: ArrayLike, attempted: int) -> float:
    """Structures found to be P1, as a share of those attempted; NaN when none was.

    Raises
    ------
    InputError
        When ``attempted`` is below the number of groups.
    """
    numbers = _attempted(groups, attempted)
    return float(np.count_nonzero(numbers == 1)) / attempted if attempted else float("nan")


@dataclass(frozen=True, eq=False)
class Retention:
    """What became of the space groups asked for, as shares that add up to 1."""

    kept: FloatArray  #: (T,) the group asked for was found
    higher: FloatArray  #: (T,) another was found, with a point group of more operations
    lost: FloatArray  #: (T,) all the rest: any other group, none found, or no structure


def group_retention(asked: ArrayLike, found: ArrayLike, attempted: int) -> Retention:
    """Whether structures have the space groups they were asked to have, at T tolerances.

    "Higher" compares the orders of the point groups, not subgroup relations. A group that gained
    only translations (a smaller primitive cell) has another number but an equal point group, and
    counts as lost.

    Parameters
    ----------
    asked
        (B,) groups asked for; 0 where none was: those structures are left out.
    found
        (B, T) groups found, 0 where none was.
    attempted
        Structures asked for, with those missing: the denominator, less those left out.

    Returns
    -------
    Retention
        NaN when no group was asked for.

    Raises
    ------
    InputError
        When shapes do not fit, ``attempted`` is below B or a number is not in 0 to 230.
    """
    goal = _attempted(asked, attempted)
    groups = np.asarray(found, dtype=np.int64)
    if groups.ndim != 2 or len(groups) != len(goal):
        raise InputError(f"found has shape {groups.shape}, not ({len(goal)}, tolerances)")
    _check(goal, SPACE_GROUPS)
    _check(groups, SPACE_GROUPS)
    some = goal > 0
    total = attempted - np.count_nonzero(~some)
    if not total:
        none = np.full(groups.shape[1], np.nan)
        return Retention(none, none, none)
    goal, groups = goal[some, None], groups[some]
    orders = _point_group_orders()
    kept = np.count_nonzero(groups == goal, axis=0)
    higher = np.count_nonzero(orders[groups] > orders[goal], axis=0)
    return Retention(kept / total, higher / total, (total - kept - higher) / total)


def formula_diversity(formulas: Iterable[str], attempted: int) -> float:
    """Different reduced formulas as a share of the structures attempted; NaN when none was.

    The diversity of Zhao et al., "Physics guided deep learning for generative design of crystal
    materials with symmetry constraints" (PGCGM, npj Comput. Mater. 9, 38, 2023).

    Raises
    ------
    InputError
        When ``attempted`` is below the number of formulas.
    """
    names = list(formulas)
    if attempted < len(names):
        raise InputError(f"attempted is {attempted}, below the {len(names)} formulas given")
    return len(set(names)) / attempted if attempted else float("nan")


def fingerprint_diversity(values: ArrayLike) -> float:
    """Mean Euclidean distance over all pairs of fingerprints (CDVAE's ``get_fp_pdist``).

    Parameters
    ----------
    values
        (n, d); rows that are not finite are left out.

    Returns
    -------
    float
        NaN when fewer than two rows are left.
    """
    rows = np.asarray(values, dtype=float)
    rows = rows[np.isfinite(rows).all(axis=1)]
    count = len(rows)
    if count < 2:
        return float("nan")
    total = sum(float(cdist(rows[block], rows).sum()) for block in row_blocks(count, count))
    return total / (count * (count - 1))


@cache
def _point_group_orders() -> IntArray:
    """(231,) operations of each group modulo all its translations; 0 for "no group"."""
    groups = [SpaceGroup(number) for number in range(1, SPACE_GROUPS + 1)]
    return np.array([0, *(g.order // len(g.centring) for g in groups)], dtype=np.int64)


def _finite(values: ArrayLike) -> FloatArray:
    numbers = np.asarray(values, dtype=float).reshape(-1)
    return numbers[np.isfinite(numbers)]


def _counts(values: ArrayLike, last: int) -> IntArray:
    """(last,) how often each of 1 to ``last`` occurs."""
    numbers = np.asarray(values, dtype=np.int64).reshape(-1)
    _check(numbers, last)
    return np.bincount(numbers, minlength=last + 1)[1:]


def _check(numbers: IntArray, last: int) -> None:
    if numbers.size and (numbers.min() < 0 or numbers.max() > last):
        wrong = numbers[(numbers < 0) | (numbers > last)][0]
        raise InputError(f"{wrong} is not in 0 to {last}")


def _attempted(groups: ArrayLike, attempted: int) -> IntArray:
    numbers = np.asarray(groups, dtype=np.int64).reshape(-1)
    if attempted < len(numbers):
        raise InputError(f"attempted is {attempted}, below the {len(numbers)} structures given")
    return numbers
