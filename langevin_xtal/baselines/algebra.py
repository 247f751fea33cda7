"""Cells as vectors: the nine-dimensional basis of gl(3), and the exponential map.

A cell with rows a, b, c is ``exp(X)``, where X is a combination of nine matrices that are
orthonormal in the Frobenius product: three antisymmetric ones, which turn; five symmetric ones
without trace, which change the shape at a constant volume; and the identity, which changes the
volume. The cell of a crystal is known up to a rotation, so it can be turned until it is symmetric
and positive definite; its logarithm then always exists and has no part along the rotations.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from langevin_xtal.errors import LatticeError

FloatArray = NDArray[np.float64]

TURN, SHAPE, VOLUME = slice(0, 3), slice(3, 8), slice(8, 9)
"""Coordinates that turn a cell, change its shape, change its volume."""


def _basis() -> FloatArray:
    """(9, 3, 3) orthonormal matrices: rotations, shapes, volume."""
    unit = np.eye(3)
    outer = np.einsum("ia,jb->ijab", unit, unit)
    pairs = ((1, 2), (2, 0), (0, 1))
    turns = [(outer[j, i] - outer[i, j]) / np.sqrt(2) for i, j in pairs]
    shears = [(outer[i, j] + outer[j, i]) / np.sqrt(2) for i, j in pairs]
    stretches = [np.diag([1.0, -1.0, 0.0]) / np.sqrt(2), np.diag([1.0, 1.0, -2.0]) / np.sqrt(6)]
    return np.array([*turns, *shears, *stretches, unit / np.sqrt(3)])


BASIS = _basis()


def cell_of(coordinates: ArrayLike) -> FloatArray:
    """(..., 3, 3) cells of coordinates (..., 9); lengths in Å where the volume is in Å^3."""
    matrix = np.tensordot(np.asarray(coordinates, dtype=float), BASIS, axes=1)
    return torch.linalg.matrix_exp(torch.from_numpy(matrix)).numpy()


def coordinates_of(cell: ArrayLike) -> FloatArray:
    """(..., 9) coordinates of cells (..., 3, 3): those of the real logarithm.

    Raises
    ------
    LatticeError
        For a matrix without a real logarithm, such as one with a negative determinant.
    """
    matrix = np.asarray(cell, dtype=float)
    if np.allclose(matrix, np.swapaxes(matrix, -1, -2), rtol=0, atol=1e-12):
        values, vectors = np.linalg.eigh(matrix)
        if values.min() > 0:
            log = (vectors * np.log(values)[..., None, :]) @ np.swapaxes(vectors, -1, -2)
            return np.einsum("...ij,kij->...k", log, BASIS)
    from scipy.linalg import logm

    flat = [logm(each) for each in matrix.reshape(-1, 3, 3)]
    log = np.array(flat).reshape(matrix.shape)
    if np.abs(np.imag(log)).max() > 1e-9:
        raise LatticeError("this matrix has no real logarithm; give one of positive determinant")
    return np.einsum("...ij,kij->...k", np.real(log), BASIS)


def symmetric_cell(cell: ArrayLike) -> FloatArray:
    """(..., 3, 3) the cell turned until it is symmetric and positive definite."""
    rows = np.asarray(cell, dtype=float)
    values, vectors = np.linalg.eigh(rows @ np.swapaxes(rows, -1, -2))
    roots = np.sqrt(np.clip(values, 1e-12, None))
    return (vectors * roots[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def symmetric_part(matrix: Tensor) -> Tensor:
    """(B, 6) coordinates of shape and volume of matrices (B, 3, 3)."""
    basis = torch.as_tensor(BASIS[3:], dtype=matrix.dtype, device=matrix.device)
    return torch.einsum("bij,kij->bk", matrix, basis)


def symmetric_matrix(coordinates: Tensor) -> Tensor:
    """(B, 3, 3) symmetric matrices of coordinates of shape and volume (B, 6)."""
    basis = torch.as_tensor(BASIS[3:], dtype=coordinates.dtype, device=coordinates.device)
    return torch.einsum("bk,kij->bij", coordinates, basis)
