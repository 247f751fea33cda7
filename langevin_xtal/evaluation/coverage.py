"""Coverage: how much of a reference is found again, how much of what was made is near it.

Fingerprints are rows of arrays; a row with a NaN is a structure without a fingerprint. It is never
covered and stays in the denominator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from langevin_xtal.errors import InputError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Pair = tuple[FloatArray, FloatArray]

STRUCTURE_CUTOFF = 0.4
"""Distance of mean CrystalNN fingerprints: CDVAE's ``COV_Cutoffs["mp20"]["struc"]``."""

COMPOSITION_CUTOFF = 10.0
"""Distance of scaled Magpie features: CDVAE's ``COV_Cutoffs["mp20"]["comp"]``."""

BLOCK = 2**22
"""Distances held at a time."""


@dataclass(frozen=True, eq=False)
class Coverage:
    """Shares, and the distances behind them.

    Distances are NaN for a structure without fingerprints, and for all when the other side has
    none. The fingerprint of a structure counts only when both of its parts are there.
    """

    recall: float  #: share of reference structures that are near a generated one (COV-R)
    precision: float  #: share of attempted structures that are near a reference one (COV-P)
    joint_recall: float  #: the same, one neighbour within both cut-offs
    joint_precision: float  #: the same, one neighbour within both cut-offs
    structure_recall: FloatArray  #: (R,) distance of each reference to the nearest generated
    structure_precision: FloatArray  #: (B,) distance of each generated to the nearest reference
    composition_recall: FloatArray  #: (R,) likewise
    composition_precision: FloatArray  #: (B,) likewise


def coverage(
    generated_structure: ArrayLike,
    generated_composition: ArrayLike,
    reference_structure: ArrayLike,
    reference_composition: ArrayLike,
    *,
    attempted: int,
    structure_cutoff: float = STRUCTURE_CUTOFF,
    composition_cutoff: float = COMPOSITION_CUTOFF,
) -> Coverage:
    """COV-R and COV-P of Xie et al., "Crystal Diffusion Variational Autoencoder for Periodic
    Material Generation" (ICLR 2022), as ``compute_cov`` of its code has them.

    That metric is lenient: the nearest structure and the nearest composition are looked for
    separately, and may be two different crystals. The joint shares ask for one crystal within
    both cut-offs.

    Unlike that code, reference structures without fingerprints count as not covered.

    Parameters
    ----------
    generated_structure, generated_composition
        (B, d) and (B, e); e.g. 61 CrystalNN and 132 scaled Magpie features.
    reference_structure, reference_composition
        (R, d) and (R, e).
    attempted
        Structures asked for, at least B: the denominator of precision.
    structure_cutoff, composition_cutoff
        Largest Euclidean distances of neighbours.

    Returns
    -------
    Coverage
        Its recall is NaN when R is 0, its precision when ``attempted`` is 0.

    Raises
    ------
    InputError
        When the arrays do not fit each other or ``attempted`` is below B.
    """
    made = _pair("generated", generated_structure, generated_composition)
    asked = _pair("reference", reference_structure, reference_composition)
    if made[0].shape[1] != asked[0].shape[1] or made[1].shape[1] != asked[1].shape[1]:
        raise InputError("generated and reference fingerprints have different lengths")
    if attempted < len(made[0]):
        raise InputError(f"attempted is {attempted}, below the {len(made[0])} structures given")

    usable_made, usable_asked = _finite(*made), _finite(*asked)
    cutoffs = (structure_cutoff, composition_cutoff)
    generated, reference = _nearest(
        (made[0][usable_made], made[1][usable_made]),
        (asked[0][usable_asked], asked[1][usable_asked]),
        cutoffs,
    )
    total = len(usable_asked)
    return Coverage(
        recall=_share(reference.near(cutoffs), total),
        precision=_share(generated.near(cutoffs), attempted),
        joint_recall=_share(reference.joint, total),
        joint_precision=_share(generated.joint, attempted),
        structure_recall=_spread(reference.structure, usable_asked),
        structure_precision=_spread(generated.structure, usable_made),
        composition_recall=_spread(reference.composition, usable_asked),
        composition_precision=_spread(generated.composition, usable_made),
    )


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of ``rows`` such that a block of rows times ``columns`` is at most :data:`BLOCK`."""
    step = max(1, BLOCK // max(1, columns))
    return (slice(k, min(k + step, rows)) for k in range(0, rows, step))


@dataclass
class _Side:
    """Nearest neighbours of n fingerprints among those of the other side."""

    structure: FloatArray  #: (n,) distances, infinite when there is no neighbour
    composition: FloatArray  #: (n,) likewise
    joint: BoolArray  #: (n,) whether one neighbour is within both cut-offs

    @classmethod
    def alone(cls, count: int) -> _Side:
        return cls(np.full(count, np.inf), np.full(count, np.inf), np.zeros(count, bool))

    def near(self, cutoffs: tuple[float, float]) -> BoolArray:
        close = (self.structure <= cutoffs[0]) & (self.composition <= cutoffs[1])
        return np.asarray(close, dtype=bool)


def _nearest(made: Pair, asked: Pair, cutoffs: tuple[float, float]) -> tuple[_Side, _Side]:
    """Neighbours of what was made among what was asked for, and the other way round."""
    rows, columns = len(made[0]), len(asked[0])
    one, other = _Side.alone(rows), _Side.alone(columns)
    for block in row_blocks(rows, columns) if columns else ():
        structure = cdist(made[0][block], asked[0])
        composition = cdist(made[1][block], asked[1])
        joint = (structure <= cutoffs[0]) & (composition <= cutoffs[1])
        one.structure[block], one.composition[block] = structure.min(1), composition.min(1)
        one.joint[block] = joint.any(1)
        np.minimum(other.structure, structure.min(0), out=other.structure)
        np.minimum(other.composition, composition.min(0), out=other.composition)
        other.joint |= joint.any(0)
    return one, other


def _pair(name: str, structure: ArrayLike, composition: ArrayLike) -> Pair:
    first, second = np.asarray(structure, dtype=float), np.asarray(composition, dtype=float)
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise InputError(
            f"{name}: fingerprints have shapes {first.shape} and {second.shape}; they should be "
            "two matrices with one row per structure"
        )
    return first, second


def _finite(structure: FloatArray, composition: FloatArray) -> BoolArray:
    both = np.isfinite(structure).all(axis=1) & np.isfinite(composition).all(axis=1)
    return np.asarray(both, dtype=bool)


def _spread(values: FloatArray, usable: BoolArray) -> FloatArray:
    """Values of the usable rows in their places, NaN elsewhere and where nothing was near."""
    full = np.full(len(usable), np.nan)
    full[usable] = np.where(np.isinf(values), np.nan, values)
    return full


def _share(hits: BoolArray, total: int) -> float:
    return float(np.count_nonzero(hits)) / total if total else float("nan")
