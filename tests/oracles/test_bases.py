"""Bases of the network against SciPy, quadrature and torch-geometric."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch

from langevin_xtal.model.bases import (
    RadialBasis,
    SphericalBasis,
    envelope,
    legendre,
    spherical_basis,
    spherical_bessel,
    spherical_bessel_roots,
)

CUTOFF = 5.0


def test_spherical_bessel():
    """Every distance, down to 0 and across the change of method at x = 2."""
    x = np.concatenate([[0.0, 1e-300], np.geomspace(1e-12, 40, 3000), np.linspace(1.99, 2.01, 41)])
    values = spherical_bessel(8, torch.from_numpy(x))
    assert values.shape == (len(x), 9)
    assert values.dtype == torch.float64
    for order in range(9):
        expected = scipy.special.spherical_jn(order, x)
        np.testing.assert_allclose(values[:, order], expected, rtol=0, atol=1e-12)


def test_spherical_bessel_keeps_its_digits_at_short_range():
    """Relative error, where upward recurrence in any precision would return noise."""
    x = np.geomspace(1e-8, 2.0, 200, endpoint=False)
    values = spherical_bessel(8, torch.from_numpy(x)).numpy()
    expected = np.stack([scipy.special.spherical_jn(order, x) for order in range(9)], axis=1)
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-300)


def test_roots():
    roots = spherical_bessel_roots(6, 10)
    np.testing.assert_allclose(roots[0], np.pi * np.arange(1, 11), rtol=1e-15)
    for order in range(7):
        at = scipy.special.spherical_jn(order, roots[order])
        np.testing.assert_allclose(at, 0, atol=1e-14)
        # none is missed: as many sign changes below the last root as there are roots
        x = np.linspace(1e-3, roots[order, -1] + 0.1, 20_000)
        values = scipy.special.spherical_jn(order, x)
        values = values[values != 0]
        assert (np.diff(np.sign(values)) != 0).sum() == 10
    assert (roots[:-1] < roots[1:]).all()
    assert (roots[1:, :-1] < roots[:-1, 1:]).all()


def test_spherical_basis_is_orthonormal():
    """On the unit ball, with weight x², for every order."""
    node, weight = np.polynomial.legendre.leggauss(200)
    x, weight = (node + 1) / 2, weight / 2
    basis = spherical_basis(7, 8, torch.from_numpy(x)).numpy()
    for order in range(7):
        gram = np.einsum("xn,xm,x->nm", basis[:, order], basis[:, order], weight * x**2)
        np.testing.assert_allclose(gram, np.eye(8), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("dtype", "orders", "count"),
    [(torch.float64, 7, 8), (torch.float32, 7, 8), (torch.float32, 5, 8), (torch.float64, 1, 3)],
)
def test_table_of_the_spherical_basis(dtype, orders, count):
    torch.set_default_dtype(dtype)
    try:
        table = SphericalBasis(orders, count, CUTOFF)
    finally:
        torch.set_default_dtype(torch.float32)
    dist = torch.linspace(0, CUTOFF, 30_011, dtype=torch.float64)
    found = table(dist.to(dtype))
    assert found.dtype == dtype
    exact = spherical_basis(orders, count, dist / CUTOFF)
    assert (found - exact).abs().max() < 2e-5
    beyond = table(torch.tensor([CUTOFF, CUTOFF + 1e-3, 3 * CUTOFF], dtype=dtype))
    assert beyond.abs().max() < 1e-6
    assert "table" not in table.state_dict()


def test_radial_basis():
    """√(2/c) sin(nπd/c)/d, its limit at 0, and nothing from the cut-off on."""
    dist = torch.linspace(1e-3, CUTOFF, 1001, dtype=torch.float64)
    n = torch.arange(1, 9, dtype=torch.float64)
    expected = (2 / CUTOFF) ** 0.5 * torch.sin(n * math.pi * dist[:, None] / CUTOFF)
    expected = expected / dist[:, None]
    basis = RadialBasis(8, CUTOFF)
    torch.testing.assert_close(basis(dist), expected, rtol=0, atol=1e-12)
    at_zero = (2 / CUTOFF) ** 0.5 * n * math.pi / CUTOFF
    torch.testing.assert_close(basis(dist.new_zeros(1))[0], at_zero, rtol=1e-12, atol=0)
    assert basis(dist.new_tensor([CUTOFF, 2 * CUTOFF])).abs().max() < 1e-14


def test_radial_basis_is_orthonormal():
    node, weight = np.polynomial.legendre.leggauss(200)
    dist, weight = CUTOFF * (node + 1) / 2, CUTOFF * weight / 2
    basis = RadialBasis(8, CUTOFF)(torch.from_numpy(dist)).numpy()
    gram = np.einsum("xn,xm,x->nm", basis, basis, weight * dist**2)
    np.testing.assert_allclose(gram, np.eye(8), rtol=0, atol=1e-12)


@pytest.mark.parametrize("orders", [1, 2, 3, 7, 9])
def test_legendre(orders):
    cosine = torch.linspace(-1, 1, 501, dtype=torch.float64)
    values = legendre(orders, cosine)
    assert values.shape == (501, orders)
    for order in range(orders):
        expected = scipy.special.eval_legendre(order, cosine.numpy())
        np.testing.assert_allclose(values[:, order], expected, rtol=0, atol=1e-13)


def test_envelope():
    """1 at 0 and 0 at 1, where value and two derivatives vanish; falling in between."""
    x = torch.tensor([0.0, 1.0, 1.5, 1e6], dtype=torch.float64)
    assert envelope(x).tolist() == [1.0, 0.0, 0.0, 0.0]
    point = torch.tensor(1.0 - 1e-13, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(envelope(point), point, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, point, create_graph=True)
    (third,) = torch.autograd.grad(curvature, point)
    assert abs(slope) < 1e-10
    assert abs(curvature) < 1e-9
    assert third == pytest.approx(-336, rel=1e-6)
    inside = envelope(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert (inside.diff() <= 0).all()
    assert (inside[100:-1] < 1).all()


def test_torch_geometric_radial_basis():
    """Its Bessel layer holds an envelope with a pole, u(x) = 1/x + …; ours has none."""
    dimenet = pytest.importorskip("torch_geometric.nn.models.dimenet")
    peer = dimenet.BesselBasisLayer(6, CUTOFF, envelope_exponent=5).double()
    dist = torch.linspace(0.2, CUTOFF - 0.01, 300, dtype=torch.float64)
    with torch.no_grad():
        theirs = peer(dist)
    x = dist[:, None] / CUTOFF
    pole = peer.envelope(x) * x  # 1 at 0, 0 at 1
    torch.testing.assert_close(pole.squeeze(1), envelope(x).squeeze(1), rtol=0, atol=1e-9)
    ours = RadialBasis(6, CUTOFF)(dist) * envelope(x) * CUTOFF * (CUTOFF / 2) ** 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # its frequencies are float32


def test_torch_geometric_spherical_basis():
    """Radius and angle together, 3 orders of 3 functions, where theirs is stable."""
    dimenet = pytest.importorskip("torch_geometric.nn.models.dimenet")
    orders, count = 3, 3
    peer = dimenet.SphericalBasisLayer(orders, count, CUTOFF, envelope_exponent=5)
    generator = torch.Generator().manual_seed(0)
    dist = CUTOFF * (0.3 + 0.69 * torch.rand(200, generator=generator, dtype=torch.float64))
    angle = math.pi * torch.rand(500, generator=generator, dtype=torch.float64)
    edge = torch.randint(200, (500,), generator=generator)
    theirs = peer(dist, angle, edge).view(500, orders, count)
    x = dist / CUTOFF
    radial = spherical_basis(orders, count, x) * (envelope(x) / x).view(-1, 1, 1)
    degree = torch.arange(orders, dtype=torch.float64)
    harmonic = legendre(orders, angle.cos()) * ((2 * degree + 1) / (4 * math.pi)).sqrt()
    ours = radial[edge] * harmonic.unsqueeze(2)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
