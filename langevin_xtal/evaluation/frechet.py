"""Fréchet distance between two sets of feature vectors, each taken as a Gaussian."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.errors import InputError

FloatArray = NDArray[np.float64]


def finite_rows(values: ArrayLike) -> FloatArray:
    """(n, d) rows without a NaN or infinity: structures that have these features."""
    rows = np.asarray(values, dtype=float)
    return rows[np.isfinite(rows).all(axis=1)]


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """``|μ_a - μ_b|² + Tr(C_a + C_b - 2 (C_a C_b)^½)``: the squared 2-Wasserstein distance of two
    Gaussians (Dowson and Landau, J. Multivariate Anal. 12, 450, 1982), named FID by Heusel et al.
    (NeurIPS 2017).

    Covariances have the denominator n - 1. With ``C = RᵀR`` the last trace is the sum of singular
    values of ``R_a R_bᵀ``, where R comes from a QR decomposition of the centred rows: no square
    root of a matrix is taken, and singular covariances are no special case.

    Two finite samples of one distribution are not at distance 0: compare with a set from the same
    source, such as training crystals.

    Parameters
    ----------
    a, b
        (n, d) and (m, d) finite rows, see :func:`finite_rows`.

    Returns
    -------
    float
        At least 0, in squared units of the features; NaN when n or m is below 2.

    Raises
    ------
    InputError
        When the rows have different lengths or are not finite.
    """
    first, second = _rows(a), _rows(b)
    if first.shape[1] != second.shape[1]:
        raise InputError(f"features of {first.shape[1]} and {second.shape[1]} columns")
    if min(len(first), len(second)) < 2:
        return float("nan")
    shift = first.mean(axis=0) - second.mean(axis=0)
    root_a, root_b = _root(first), _root(second)
    overlap = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = shift @ shift + (root_a**2).sum() + (root_b**2).sum() - 2.0 * overlap
    return max(0.0, float(distance))


def _rows(values: ArrayLike) -> FloatArray:
    rows = np.asarray(values, dtype=float)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise InputError("features should be a matrix of finite numbers; drop rows without them")
    return rows


def _root(rows: FloatArray) -> FloatArray:
    """(min(n, d), d) R with RᵀR the covariance of the rows."""
    centred = rows - rows.mean(axis=0)
    return np.asarray(np.linalg.qr(centred, mode="r") / np.sqrt(len(rows) - 1))
