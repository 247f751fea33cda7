"""The network on the symmetry multigraph, float64: equal to P1, and invariant where it must be."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from langevin_xtal.graph.batch import make_batch
from langevin_xtal.graph.contract import CrystalArrays, GraphSettings
from langevin_xtal.model.network import EdgeNetwork, NetworkConfig
from langevin_xtal.model.scores import lattice_noise, position_noise
from langevin_xtal.symmetry import (
    SpaceGroup,
    lattice_coordinates,
    lattice_driver,
    lattice_freedom,
)
from tests.crystals import expand_to_p1, merge, random_crystal

CONFIG = NetworkConfig(width=8, triplet_width=6, blocks=2, radial=5, spherical=4, k_max=16)
SETTINGS = CONFIG.graph_settings()
ALL_GROUPS = range(1, 231)


@pytest.fixture(scope="module")
def network() -> EdgeNetwork:
    torch.manual_seed(7)
    torch.set_default_dtype(torch.float64)
    try:
        net = EdgeNetwork(CONFIG)
        torch.nn.init.normal_(net.output[2].weight)
        return net.double()
    finally:
        torch.set_default_dtype(torch.float32)


def scores(
    network: EdgeNetwork,
    crystals: CrystalArrays,
    numbers: np.ndarray,
    groups: list[int],
    settings: GraphSettings = SETTINGS,
) -> tuple[np.ndarray, np.ndarray]:
    """(A, 3) position noise and (B, 6) lattice noise."""
    g = make_batch(torch.from_numpy(numbers), crystals, settings, dtype=torch.float64)
    sigma = torch.linspace(0.3, 1.1, len(crystals), dtype=torch.float64)
    if len(crystals) == 1:
        sigma = torch.tensor([0.4], dtype=torch.float64)
    with torch.no_grad():
        out = network(g, sigma, 2 * sigma)
        coordinates = torch.from_numpy(lattice_coordinates(crystals.lattice))
        driver = torch.from_numpy(np.array([lattice_driver(n) for n in groups]))
        free = torch.from_numpy(np.array([lattice_freedom(n) for n in groups]))
        lattice = lattice_noise(g, out, coordinates, driver, free)
        return position_noise(g, out, sigma).numpy(), lattice.numpy()


def assert_close(a: np.ndarray, b: np.ndarray) -> None:
    """1e-9 relative to the largest value, or to one edge's pull (order 0.1) where all cancel."""
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * max(np.abs(a).max(), 0.1))


def species(n: int) -> np.ndarray:
    return np.array([11, 17, 8, 26, 29, 14, 19, 22])[:n]


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_equals_p1_expansion(network, number):
    crystal = random_crystal(number, 2, seed=1)
    position, lattice = scores(network, crystal, species(2), [number])
    p1, site, first = expand_to_p1(crystal)
    wanted, wanted_lattice = scores(network, p1, species(2)[site], [number])
    assert_close(position, wanted[first])
    assert_close(lattice, wanted_lattice)
    assert np.abs(lattice).max() > 0


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_representative_translation_permutation(network, number):
    """Another image of each orbit, moved by lattice vectors, stored in another order."""
    rng = np.random.default_rng(number)
    crystal = random_crystal(number, 2, seed=2)
    position, lattice = scores(network, crystal, species(2), [number])
    group = SpaceGroup(number)
    op = rng.integers(group.order, size=2)
    w, t = group.rotations[op], group.translations[op]
    moved = np.einsum("aij,aj->ai", w, crystal.frac) + t + rng.integers(-2, 3, (2, 3))
    other = dataclasses.replace(crystal, frac=moved[::-1].copy())
    found, found_lattice = scores(network, other, species(2)[::-1].copy(), [number])
    cell = crystal.lattice[0]
    turn = cell.T @ w @ np.linalg.inv(cell.T)
    assert_close(np.einsum("aij,aj->ai", turn, position), found[::-1])
    assert_close(lattice, found_lattice)


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_rotation_of_the_frame(network, number):
    """Forces turn; what the network says of edges, and with it of the lattice, does not."""
    crystal = random_crystal(number, 3, seed=3)
    turn, _ = np.linalg.qr(np.random.default_rng(number).normal(size=(3, 3)))
    other = dataclasses.replace(crystal, lattice=crystal.lattice @ turn)
    sigma = torch.tensor([0.4], dtype=torch.float64)
    position, output = [], []
    for c in (crystal, other):
        g = make_batch(torch.from_numpy(species(3)), c, SETTINGS, dtype=torch.float64)
        with torch.no_grad():
            out = network(g, sigma, 2 * sigma)
            position.append(position_noise(g, out, sigma).numpy())
            output.append(out.numpy())
    assert_close(position[0] @ turn, position[1])
    assert_close(output[0], output[1])


@pytest.mark.parametrize("number", [n for n in ALL_GROUPS if len(SpaceGroup(n).centring) > 1])
def test_primitive_cell(network, number):
    """The primitive cell with the operations that remain in it, for centred groups."""
    crystal = random_crystal(number, 2, seed=4)
    position, _ = scores(network, crystal, species(2), [number])
    group = SpaceGroup(number)
    centring = group.centring / 24.0
    assert len(centring) > 1
    basis = primitive_basis(centring)
    to_primitive = np.linalg.inv(basis)
    assert np.isclose(abs(np.linalg.det(basis)), 1 / len(centring))
    # f = p @ basis: W' = B^-T W B^T on columns
    w = basis.T[None]
    rotations = np.rint(np.linalg.inv(w) @ group.rotations @ w).astype(int)
    translations = group.translations @ to_primitive
    _, keep = np.unique(rotations.reshape(len(rotations), 9), axis=0, return_index=True)
    primitive = CrystalArrays(
        lattice=basis[None] @ crystal.lattice,
        frac=crystal.frac @ to_primitive,
        site_start=crystal.site_start,
        rotations=rotations[keep],
        translations=translations[keep],
        op_start=np.array([0]),
        op_count=np.array([len(keep)]),
        orbit=crystal.orbit,
    )
    found, _ = scores(network, primitive, species(2), [1])
    assert_close(position, found)


def primitive_basis(centring: np.ndarray) -> np.ndarray:
    """Rows: three shortest independent vectors of the lattice generated by the centring."""
    corners = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T
    points = (centring[:, None] + corners[None]).reshape(-1, 3)
    points = points[np.argsort((points**2).sum(1), kind="stable")]
    volume = 1 / len(centring)
    for i in range(1, 20):
        for j in range(i + 1, 30):
            for k in range(j + 1, 45):
                basis = points[[i, j, k]]
                if np.isclose(abs(np.linalg.det(basis)), volume):
                    return basis
    raise AssertionError("no primitive basis")


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_another_cell(network, number):
    """Other lattice vectors of the same lattice, with the operations to match."""
    rng = np.random.default_rng(number)
    crystal = random_crystal(number, 2, seed=6)
    position, _ = scores(network, crystal, species(2), [number])
    basis = np.eye(3, dtype=np.int64)
    for _ in range(2):
        i, j = rng.permutation(3)[:2]
        basis[i] += rng.choice([-1, 1]) * basis[j]
    back = np.linalg.inv(basis)
    group = SpaceGroup(number)
    rotations = np.rint(back.T[None] @ group.rotations @ basis.T[None]).astype(np.int64)
    other = CrystalArrays(
        lattice=basis[None] @ crystal.lattice,
        frac=crystal.frac @ back,
        site_start=crystal.site_start,
        rotations=rotations,
        translations=group.translations @ back,
        op_start=np.array([0]),
        op_count=np.array([group.order]),
        orbit=crystal.orbit,
    )
    found, _ = scores(network, other, species(2), [1])
    assert_close(position, found)


@pytest.mark.parametrize("first", range(0, 230, 23))
def test_batch_mates(network, first):
    """A crystal gets the same scores alone and in any company; every group takes part."""
    groups = list(range(first + 1, first + 24))
    crystals = [random_crystal(n, 1 + k % 3, seed=5) for k, n in enumerate(groups)]
    numbers = [species(len(c.frac)) for c in crystals]
    together, lattice = scores(network, merge(*crystals), np.concatenate(numbers), groups)
    sigma = np.linspace(0.3, 1.1, len(crystals))
    start = 0
    for k, crystal in enumerate(crystals):
        g = make_batch(torch.from_numpy(numbers[k]), crystal, SETTINGS, dtype=torch.float64)
        s = torch.tensor([sigma[k]], dtype=torch.float64)
        with torch.no_grad():
            out = network(g, s, 2 * s)
            alone = position_noise(g, out, s).numpy()
        assert_close(alone, together[start : start + len(alone)])
        start += len(alone)
    assert np.isfinite(lattice).all()
