"""Diffusion on the torus: noise, shortest paths, and steps back.

Positions take a random walk without drift on the circle of length 1, so the noisy position is
distributed as a normal distribution wrapped around the circle,

    p(x) = Σ_k N(x + k; μ, σ²),

which tends to the uniform one for large σ.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def linear_variances(first: float, last: float, steps: int) -> FloatArray:
    """(T + 1,) share of variance 1 − ᾱ_t after t steps, with variances β linear in t."""
    beta = np.linspace(first, last, steps)
    return np.concatenate([[0.0], 1.0 - np.cumprod(1.0 - beta)])


def wrapped_density(x: ArrayLike, sigma: float) -> FloatArray:
    """Density of a wrapped normal around 0, for points of any shape.

    Summed over images where σ is small and over Fourier modes where it is large.
    """
    points = np.asarray(x, dtype=float)[..., None]
    if sigma < 0.4:
        images = points + np.arange(-4, 5)
        weights = np.exp(-0.5 * (images / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        return weights.sum(-1)
    modes = np.arange(1, 9)
    decay = np.exp(-2.0 * (np.pi * modes * sigma) ** 2)
    return 1.0 + 2.0 * (decay * np.cos(2 * np.pi * modes * points)).sum(-1)


def shortest(step: FloatArray) -> FloatArray:
    """The step on the circle that leads to the same place, each part in [−1/2, 1/2]."""
    return step - np.rint(step)


def posterior(
    noisy: FloatArray, clean: FloatArray, before: float, now: float, noise: FloatArray
) -> FloatArray:
    """Position one step earlier, given the noisy one and the clean one.

    The walk from the clean position has variance ``before`` a step ago and ``now``; between its
    ends it is a Brownian bridge along the shortest path.

    Parameters
    ----------
    noisy, clean
        (N, 3) fractional.
    before, now
        Variances, 0 ≤ before < now.
    noise
        (N, 3) standard normal.
    """
    mean = clean + (before / now) * shortest(noisy - clean)
    moved = mean + np.sqrt(before * (now - before) / now) * noise
    return moved - np.floor(moved)
