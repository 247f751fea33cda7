"""Radial and angular bases of DimeNet++: Bessel functions, spherical Bessel functions, Legendre.

Radial (Gasteiger et al. 2020, eq. 7), with x = d / c:

    e_n(d) = √(2/c) sin(nπx) / d

Angular (eq. 6), with z_ln the n-th root of j_l:

    a_ln(d, α) ∝ j_l(z_ln x) P_l(cos α)

Written here because a sampler visits distances where other implementations lose all digits: j_l
is computed in float64, by its power series below x = 2 and by upward recurrence above, once, into
a table.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SERIES_BELOW = 2.0


def spherical_bessel(order_max: int, x: Tensor) -> Tensor:
    """(..., order_max + 1) values of j_0 … j_{order_max} at x ≥ 0; computed in float64.

    Absolute error below 1e-12 for orders up to 8.
    """
    return torch.stack([_bessel_of(order, x) for order in range(order_max + 1)], dim=-1)


def _bessel_of(order: int, x: Tensor) -> Tensor:
    """(...,) values of one j_l at x ≥ 0, float64."""
    x = x.double()
    big = x.clamp(min=SERIES_BELOW)
    j = [big.sin() / big, big.sin() / big**2 - big.cos() / big]
    for lower in range(1, order):
        j.append((2 * lower + 1) / big * j[lower] - j[lower - 1])
    if x.numel() and x.min() >= SERIES_BELOW:
        return j[order]
    small = x.clamp(max=SERIES_BELOW)
    factor = torch.ones_like(x)  # x^l / (2l + 1)!!
    for lower in range(1, order + 1):
        factor = factor * small / (2 * lower + 1)
    term, total = torch.ones_like(x), torch.ones_like(x)
    for k in range(1, 14):
        term = -term * small**2 / (2 * k * (2 * order + 2 * k + 1))
        total = total + term
    return torch.where(x < SERIES_BELOW, factor * total, j[order])


@cache
def spherical_bessel_roots(order_max: int, count: int) -> NDArray[np.float64]:
    """(order_max + 1, count) first positive roots of each j_l, to float64 precision.

    Roots of successive orders interlace, so those of order l bracket those of order l + 1.
    """

    def value(order: int, x: np.ndarray) -> np.ndarray:
        return _bessel_of(order, torch.from_numpy(x)).numpy()

    roots = np.zeros((order_max + 1, count))
    bracket = np.pi * np.arange(1, count + order_max + 1)
    roots[0] = bracket[:count]
    for order in range(1, order_max + 1):
        low, high = bracket[:-1].copy(), bracket[1:].copy()
        sign = np.sign(value(order, low))
        for _ in range(60):
            mid = 0.5 * (low + high)
            left = np.sign(value(order, mid)) == sign
            low, high = np.where(left, mid, low), np.where(left, high, mid)
        bracket = 0.5 * (low + high)
        roots[order] = bracket[:count]
    return roots


class RadialBasis(torch.nn.Module):
    """e_n(d) = √(2/c) sin(nπ d/c) / d for n = 1 … ``count``; zero beyond ``cutoff`` [Å]."""

    def __init__(self, count: int, cutoff: float) -> None:
        super().__init__()
        self.count, self.cutoff = count, cutoff

    def forward(self, dist: Tensor) -> Tensor:
        """(E,) distances [Å] to (E, count)."""
        n = torch.arange(1, self.count + 1, dtype=dist.dtype, device=dist.device)
        x = (dist / self.cutoff).clamp(max=1.0)[:, None]
        return (2.0 / self.cutoff) ** 0.5 * torch.sinc(n * x) * n * torch.pi / self.cutoff


def spherical_basis(orders: int, count: int, x: Tensor) -> Tensor:
    """(X, orders, count) exact values N_ln j_l(z_ln x) at x = d/c in [0, 1], float64.

    Each function has unit norm on the ball: ``∫ |N j_l(z_ln x)|² x² dx = 1`` on [0, 1].
    """
    roots = torch.from_numpy(spherical_bessel_roots(orders - 1, count).copy())
    columns = []
    for order in range(orders):
        norm = 2**0.5 / _bessel_of(order + 1, roots[order]).abs()
        columns.append(norm * _bessel_of(order, x.double()[:, None] * roots[order]))
    return torch.stack(columns, dim=1)


class SphericalBasis(torch.nn.Module):
    """Radial part of the angular basis, tabulated once and interpolated linearly.

    The table has 8,193 points: the interpolation error stays below 2e-5 for 7 orders of 8
    functions. Distances beyond ``cutoff`` [Å] take the value at the cut-off, which is 0.
    """

    table: Tensor
    POINTS = 8192

    def __init__(self, orders: int, count: int, cutoff: float) -> None:
        super().__init__()
        self.orders, self.count, self.cutoff = orders, count, cutoff
        grid = torch.linspace(0.0, 1.0, self.POINTS + 1, dtype=torch.float64)
        # in parts too small for torch to share between threads, which costs seconds on a busy CPU
        table = torch.cat([spherical_basis(orders, count, part) for part in grid.split(2048)])
        table = table.flatten(1)
        self.register_buffer("table", table.to(torch.get_default_dtype()), persistent=False)

    def forward(self, dist: Tensor) -> Tensor:
        """(E,) distances [Å] to (E, orders, count)."""
        position = (dist / self.cutoff).clamp(max=1.0) * self.POINTS
        index = position.long().clamp(max=self.POINTS - 1)
        share = (position - index).unsqueeze(1)
        left = self.table[index]
        values = left + share * (self.table[index + 1] - left)
        return values.view(len(dist), self.orders, self.count)


def legendre(orders: int, cosine: Tensor) -> Tensor:
    """(..., orders) Legendre polynomials P_0 … at ``cosine`` (...,), by Bonnet's recurrence."""
    p = [torch.ones_like(cosine), cosine]
    for order in range(1, orders - 1):
        p.append(((2 * order + 1) * cosine * p[order] - order * p[order - 1]) / (order + 1))
    return torch.stack(p[:orders], dim=-1)


def envelope(x: Tensor) -> Tensor:
    """Smooth weight: 1 at x = 0, with value and two derivatives zero at x = 1; 0 beyond.

    The polynomial of Gasteiger et al. 2020 (eq. 8, p = 6) without the pole.
    """
    x = x.clamp(max=1.0)
    x3 = x * x * x  # products, since powers round differently at the end of an array
    x6 = x3 * x3
    return 1.0 - x6 * (28.0 - x * (48.0 - 21.0 * x))
