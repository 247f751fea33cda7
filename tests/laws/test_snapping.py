"""Snapping to special positions: batched as one by one, exact, equivariant, the right limit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from langevin_xtal.graph.batch import GraphBatch, make_batch, snap_radius
from langevin_xtal.graph.contract import CrystalArrays
from langevin_xtal.graph.snapping import (
    Snapped,
    all_operations,
    site_pairs,
    snap_arrays,
    snap_sites,
)
from langevin_xtal.model.network import EdgeNetwork, NetworkConfig
from langevin_xtal.model.scores import lattice_noise, position_noise
from langevin_xtal.symmetry import (
    SpaceGroup,
    lattice_coordinates,
    lattice_driver,
    lattice_freedom,
    site_projector,
    snap_site,
    stabiliser,
)
from langevin_xtal.symmetry.sites import image_displacements
from tests.crystals import random_crystal, random_lattice

ALL_GROUPS = range(1, 231)
WITH_SPECIAL_POSITIONS = [2, 10, 12, 62, 99, 123, 139, 155, 166, 187, 194, 205, 216, 225, 227, 229]


class Case:
    """A group, a cell, and points: random ones, and special positions noised by up to 0.5 Å."""

    def __init__(self, number: int, seed: int = 0) -> None:
        rng = np.random.default_rng([number, seed])
        self.group = SpaceGroup(number)
        self.lattice = random_lattice(number, rng, 350.0)
        special = [self.snap(p, r) for p in rng.uniform(0, 1, (5, 3)) for r in (1.0, 3.0)]
        scale = rng.choice([1e-5, 0.02, 0.1, 0.3], (10, 1))
        noised = np.array(special) + scale * rng.normal(size=(10, 3)) @ self.frame
        self.points = np.concatenate([rng.uniform(-1, 2, (8, 3)), noised])
        self.radius = rng.choice([0.05, 0.3, 0.6, 1.2], len(self.points))

    @property
    def frame(self) -> np.ndarray:
        return np.linalg.inv(self.lattice)

    @property
    def operations(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.group.rotations, self.group.translations, self.lattice

    def snap(self, point: np.ndarray, radius: float) -> np.ndarray:
        return snap_site(point, *self.operations, radius)

    def length(self, frac: np.ndarray) -> np.ndarray:
        return np.linalg.norm(frac @ self.lattice, axis=-1)

    def images(self, point: np.ndarray) -> np.ndarray:
        """(G,) distances to the nearest image under each operation [Å]."""
        return self.length(image_displacements(point, *self.operations[:2]))

    def snap_all(self, points: np.ndarray, radius: np.ndarray) -> Snapped:
        return snap_batch([self.group.number], self.lattice[None], [points], radius)


def snap_batch(
    numbers: list[int], lattice: np.ndarray, points: list[np.ndarray], radius: np.ndarray
) -> Snapped:
    """Snapped by torch, and alike by the C++ extension where it is there."""
    counts = [len(p) for p in points]
    crystal = torch.repeat_interleave(torch.arange(len(points)), torch.tensor(counts))
    arrays = CrystalArrays.of_groups(
        lattice, np.concatenate(points), np.cumsum([0, *counts]), np.array(numbers)
    )
    pairs = site_pairs(
        crystal, torch.from_numpy(arrays.op_start), torch.from_numpy(arrays.op_count)
    )
    radii, operations = torch.from_numpy(radius), all_operations()
    frac, cells = torch.from_numpy(arrays.frac), torch.from_numpy(arrays.lattice)
    snapped = snap_sites(frac, cells, crystal, pairs, operations, radii)
    alike = snap_arrays(arrays, operations, radii)
    for found, expected in zip(alike or (), snapped, strict=bool(alike)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    return snapped


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_batched_equals_one_by_one(number):
    case = Case(number)
    snapped = case.snap_all(case.points, case.radius)
    for i, (point, radius) in enumerate(zip(case.points, case.radius, strict=True)):
        expected = case.snap(point, radius)
        found = snapped.frac[i].numpy()
        assert case.length(found - expected) < 1e-6
        fixing = stabiliser(expected, *case.operations)
        assert snapped.stabiliser_order[i] == len(fixing)
        projector = site_projector(case.group.rotations[fixing], case.lattice)
        np.testing.assert_allclose(snapped.projector[i], projector, rtol=0, atol=1e-9)
        moved = (point - found) @ case.lattice
        np.testing.assert_allclose(snapped.displacement[i], moved, rtol=0, atol=1e-9)


def test_batch_of_groups_equals_each_alone():
    cases = [Case(n) for n in (1, 225, 62, 194, 14)]
    together = snap_batch(
        [c.group.number for c in cases],
        np.array([c.lattice for c in cases]),
        [c.points for c in cases],
        np.concatenate([c.radius for c in cases]),
    )
    alone = [c.snap_all(c.points, c.radius) for c in cases]
    for name, values in together._asdict().items():
        torch.testing.assert_close(values, torch.cat([getattr(a, name) for a in alone]))


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_result_is_exact_and_near(number):
    """Fixed by its stabiliser to rounding, within the radius."""
    case = Case(number, seed=1)
    snapped = case.snap_all(case.points, case.radius).frac.numpy()
    for point, radius, found in zip(case.points, case.radius, snapped, strict=True):
        distance = case.images(found)
        fixing = distance < 1e-3
        assert distance[fixing].max() < 1e-9
        moved = case.length(found - point)
        assert moved <= radius + 1e-6
        assert case.length(case.snap(found, 0.0) - found) < 1e-9


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_radius_zero_leaves_points(number):
    case = Case(number, seed=2)
    general = np.array([(case.images(p)[1:] > 1e-3).all() for p in case.points])
    snapped = case.snap_all(case.points, np.zeros(len(case.points)))
    moved = case.length(snapped.frac.numpy() - case.points)
    assert general.sum() >= 8
    assert (moved[general] == 0).all()
    assert (snapped.stabiliser_order.numpy()[general] == 1).all()
    assert (moved < 1e-3).all()
    eye = np.broadcast_to(np.eye(3), (general.sum(), 3, 3))
    np.testing.assert_allclose(snapped.projector.numpy()[general], eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_equivariance(number):
    """Another image of the point, moved by a lattice vector, snaps to that image of the result."""
    case = Case(number, seed=3)
    rng = np.random.default_rng(number)
    h = rng.integers(case.group.order, size=len(case.points))
    w = case.group.rotations[h]
    shift = case.group.translations[h] + rng.integers(-3, 4, case.points.shape)
    image = np.einsum("nij,nj->ni", w, case.points) + shift
    here, there = case.snap_all(case.points, case.radius), case.snap_all(image, case.radius)
    expected = np.einsum("nij,nj->ni", w, here.frac.numpy()) + shift
    assert case.length(there.frac.numpy() - expected).max() < 1e-6
    assert torch.equal(here.stabiliser_order, there.stabiliser_order)


@pytest.mark.parametrize("number", WITH_SPECIAL_POSITIONS)
@pytest.mark.parametrize("sigma", [1e-2, 1e-3, 1e-4])
def test_noised_special_positions_snap_back(number, sigma):
    """At most 2.5 standard deviations off they return; the free part of the noise stays."""
    case = Case(number)
    rng = np.random.default_rng(number)
    home = np.array([case.snap(p, 2.5) for p in rng.uniform(0, 1, (12, 3))])
    clean = case.snap_all(home, np.zeros(12))
    assert (clean.stabiliser_order > 1).sum() >= 6
    noise = rng.normal(size=(12, 3))
    noise *= np.minimum(1, 2.5 / np.linalg.norm(noise, axis=1))[:, None]
    radius = snap_radius(torch.full((12,), sigma, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(radius, 3 * sigma)
    # else it may reach another special position
    lone = case.snap_all(home, np.full(12, 0.1)).displacement.norm(dim=1) < 1e-9
    assert lone.sum() >= 10
    back = case.snap_all(home + sigma * noise @ case.frame, radius)
    free = (torch.from_numpy(sigma * noise).unsqueeze(1) @ clean.projector).squeeze(1)
    expected = clean.frac + free @ torch.from_numpy(case.frame)
    torch.testing.assert_close(back.frac[lone], expected[lone], rtol=0, atol=1e-8)
    assert torch.equal(back.stabiliser_order[lone], clean.stabiliser_order[lone])


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.19, 0.2, 0.5, 6.0])
def test_radius(sigma):
    """Three standard deviations, at most 0.6 Å."""
    assert snap_radius(torch.tensor([sigma])).item() == pytest.approx(min(3 * sigma, 0.6))


def test_done_again_it_stays():
    """Within what the radius has left: more may bring a more special position into reach."""
    moved_on = {}
    for number in ALL_GROUPS:
        case = Case(number, seed=1)
        found = case.snap_all(case.points, case.radius)
        left = (torch.from_numpy(case.radius) - found.displacement.norm(dim=1) - 1e-6).clamp(min=0)
        again = case.snap_all(found.frac.numpy(), left.numpy())
        if again.displacement.norm(dim=1).max() > 1e-6:
            moved_on[number] = float(again.displacement.norm(dim=1).max())
    assert moved_on == {}


@pytest.mark.slow
def test_special_positions_are_never_left():
    """A site fixed by an operation stays fixed by it, whatever lies near.

    Else it would have to choose between equivalent ways out, and the choice breaks symmetry.
    """
    lost = {}
    for number in ALL_GROUPS:
        case = Case(number)
        rng = np.random.default_rng(number)
        home = case.snap_all(rng.uniform(0, 1, (60, 3)), np.full(60, 2.0))
        along = torch.from_numpy(rng.normal(0, 0.7, (60, 1, 3))) @ home.projector
        points = (home.frac + along.squeeze(1) @ torch.from_numpy(case.frame)).numpy()
        after = case.snap_all(points, np.full(60, 0.6)).frac.numpy()
        for before, found in zip(points, after, strict=True):
            fixing = stabiliser(before, *case.operations)
            if not set(fixing) <= set(stabiliser(found, *case.operations)):
                lost[number] = lost.get(number, 0) + 1
    assert lost == {}


# the limit of free mode


CONFIG = NetworkConfig(width=8, triplet_width=6, blocks=2, radial=5, spherical=4, k_max=16)


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


class FreeMode:
    """A crystal with sites on special positions, as the network sees it when these are noised."""

    def __init__(self, network: EdgeNetwork, number: int) -> None:
        self.network, self.number = network, number
        for seed in range(30):
            crystal = random_crystal(number, 2, seed, special=1.0)
            self.crystal = crystal
            special = self.snap(crystal.frac, 3.0).frac[0].numpy()
            frac = np.stack([special, crystal.frac[1]])
            self.crystal = dataclasses.replace(crystal, frac=frac)
            self.home = self.snap(frac, 0.0)
            near = self.snap(frac, 0.8).stabiliser_order
            # nothing more special about, and the two sites apart
            alone = torch.equal(near, self.home.stabiliser_order)
            apart = self.graph(self.home).dist.min() > 0.5
            if self.home.stabiliser_order[0] > 1 and alone and apart:
                return
        raise AssertionError("no such crystal")

    def snap(self, frac: np.ndarray, radius: float) -> Snapped:
        return snap_batch([self.number], self.crystal.lattice, [frac], np.full(2, radius))

    def noised(self, cart: Tensor, sigma: float) -> Snapped:
        frac = self.crystal.frac + cart.numpy() @ np.linalg.inv(self.crystal.lattice[0])
        return self.snap(frac, float(snap_radius(torch.tensor(sigma))))

    def graph(self, snapped: Snapped) -> GraphBatch:
        crystal = dataclasses.replace(self.crystal, frac=snapped.frac.numpy())
        return make_batch(
            torch.tensor([11, 17]),
            crystal,
            CONFIG.graph_settings(),
            snapped=snapped,
            dtype=torch.float64,
        )

    def outputs(self, g: GraphBatch, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
        """(E, 2) edge outputs, (A, 3) position noise, (1, 6) lattice noise."""
        s = torch.tensor([sigma], dtype=torch.float64)
        coordinates = torch.from_numpy(lattice_coordinates(self.crystal.lattice))
        driver = torch.from_numpy(lattice_driver(self.number))[None]
        free = torch.from_numpy(lattice_freedom(self.number))[None]
        with torch.no_grad():
            out = self.network(g, s, s)
            lattice = lattice_noise(g, out, coordinates, driver, free)
            return out, position_noise(g, out, s), lattice

    def direction(self, seed: int, *, free: bool) -> Tensor:
        """(2, 3) a unit vector for the first site: along what is free for it, or across."""
        step = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3)))
        step[1] = 0
        inside = (step.unsqueeze(1) @ self.home.projector).squeeze(1)
        step = inside if free else step - inside
        return step / step.norm()


@pytest.mark.parametrize("number", WITH_SPECIAL_POSITIONS)
def test_across_only_the_snap_edge_tells(network, number):
    """Noise across the free directions: the exact crystal's edges and outputs, and one edge more.

    The position noise of the site differs by that edge's pull, along the displacement and no
    stronger than in proportion to it.
    """
    mode = FreeMode(network, number)
    direction = mode.direction(number, free=False)
    exact = mode.graph(mode.home)
    assert not exact.is_snap.any()
    for sigma in (0.2, 1e-2):
        out, position, lattice = mode.outputs(exact, sigma)
        for distance in (1.5 * sigma, 0.3 * sigma, 1e-2 * sigma):
            g = mode.graph(mode.noised(distance * direction, sigma))
            e = len(exact.dist)
            assert len(g.dist) == e + 1
            assert g.is_snap.nonzero().item() == e
            assert g.is_self_image[e]
            torch.testing.assert_close(g.vec[:e], exact.vec, rtol=0, atol=1e-8)
            torch.testing.assert_close(g.vec[e], -distance * direction[0], rtol=0, atol=1e-8)
            assert torch.equal(g.multiplicity, exact.multiplicity)
            free_out, free_position, free_lattice = mode.outputs(g, sigma)
            torch.testing.assert_close(free_out[:e], out, rtol=0, atol=1e-6)
            torch.testing.assert_close(free_lattice, lattice, rtol=0, atol=1e-6)
            pull = free_position - position
            weight = free_out[e, 0] * np.tanh(distance / sigma)
            torch.testing.assert_close(pull, weight * direction, rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", WITH_SPECIAL_POSITIONS)
def test_scores_tend_to_those_of_exact_mode(network, number):
    """Any displacement t of a special position, t → 0: all edges, distances and scores, as t."""
    mode = FreeMode(network, number)
    sigma = 0.15
    direction = torch.zeros(2, 3, dtype=torch.float64)
    direction[0] = torch.nn.functional.normalize(torch.tensor([0.4, -0.7, 0.59]), dim=0)
    exact = mode.graph(mode.home)
    _, position, lattice = mode.outputs(exact, sigma)
    gaps = []
    for distance in (1e-3, 1e-4, 1e-5):
        g = mode.graph(mode.noised(distance * direction, sigma))
        e = len(exact.dist)
        assert len(g.dist) == e + 1
        for name in ("source", "target", "is_self_image", "is_long_range", "is_snap"):
            assert torch.equal(getattr(g, name)[:e], getattr(exact, name))
        assert (g.dist[:e] - exact.dist).abs().max() <= 2.01 * distance
        _, free_position, free_lattice = mode.outputs(g, sigma)
        gaps.append((free_position - position).norm() + (free_lattice - lattice).norm())
    assert gaps[0] > 0
    assert gaps[1] < 0.15 * gaps[0] + 1e-9
    assert gaps[2] < 0.15 * gaps[1] + 1e-9
    none = mode.graph(mode.noised(1e-8 * direction, sigma))
    assert len(none.dist) == len(exact.dist)
    torch.testing.assert_close(mode.outputs(none, sigma)[1], position, rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", WITH_SPECIAL_POSITIONS)
def test_sites_out_of_reach_are_their_images(network, number):
    """Beyond the radius a site is what it is: a general position with all its images."""
    mode = FreeMode(network, number)
    sigma = 0.01
    far = mode.noised(4 * sigma * mode.direction(number, free=False), sigma)
    assert far.stabiliser_order[0] < mode.home.stabiliser_order[0]
