"""What the network should predict, against densities summed by brute force in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from langevin_xtal.diffusion import noising
from langevin_xtal.diffusion.noising import Crystals, NoisingConfig, noise_batch
from langevin_xtal.diffusion.targets import orbit_noise, orbit_noise_of_arrays
from langevin_xtal.graph.contract import CrystalArrays, GraphSettings
from langevin_xtal.graph.snapping import SitePairs, all_operations, site_pairs, snap_sites
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.symmetry import (
    SpaceGroup,
    lattice_coordinates,
    lattice_driver,
    lattice_freedom,
    operation_table,
    orbit,
    stabiliser,
)
from langevin_xtal.symmetry.sites import image_displacements
from langevin_xtal.symmetry.wyckoff import wyckoff_positions
from tests.crystals import random_crystal, random_lattice, random_site

GROUPS = {
    "triclinic": [1, 2],
    "monoclinic": [4, 5, 14, 15],
    "orthorhombic": [19, 43, 62],
    "tetragonal": [76, 99, 139],
    "trigonal": [143, 146, 155, 167],
    "hexagonal": [173, 180, 187, 194],
    "cubic": [197, 216, 225, 230],
}
NUMBERS = [n for numbers in GROUPS.values() for n in numbers]


class Sites:
    """N sites of one crystal, with what ``orbit_noise`` asks for."""

    def __init__(self, number: int, lattice: np.ndarray, frac: np.ndarray) -> None:
        table = operation_table()
        self.group = SpaceGroup(number)
        self.lattice = torch.from_numpy(lattice)[None]
        self.crystal = torch.zeros(len(frac), dtype=torch.int64)
        start, count = torch.tensor([table.start[number - 1]]), torch.tensor([self.group.order])
        self.pairs: SitePairs = site_pairs(self.crystal, start, count)
        home = snap_sites(
            torch.from_numpy(frac),
            self.lattice,
            self.crystal,
            self.pairs,
            all_operations(),
            torch.zeros(len(frac)),
        )
        self.clean, self.projector = home.frac, home.projector

    @classmethod
    def random(cls, number: int, seed: int, radius: float, volume: float = 300.0) -> Sites:
        rng = np.random.default_rng([number, seed])
        lattice = random_lattice(number, rng, volume)
        frac = np.array([random_site(number, lattice, rng, radius) for _ in range(2)])
        return cls(number, lattice, frac)

    def noise(self, seed: int, confined: bool) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(self.clean), 3, generator=generator, dtype=torch.float64)
        return (noise.unsqueeze(1) @ self.projector).squeeze(1) if confined else noise

    def moved(self, noise: Tensor, sigma: float) -> Tensor:
        return self.clean + sigma * noise @ torch.linalg.inv(self.lattice[0])

    def target(self, noised: Tensor, sigma: float, confined: bool = False) -> Tensor:
        """By torch, and alike by the C++ extension where it is there."""
        sigmas = torch.tensor([sigma], dtype=torch.float64)
        bound = torch.full((len(noised),), confined)
        found = orbit_noise(
            noised,
            self.clean,
            self.lattice,
            self.crystal,
            sigmas,
            self.pairs,
            all_operations(),
            bound,
            self.projector,
        )
        arrays = CrystalArrays.of_groups(
            self.lattice.numpy(),
            self.clean.numpy(),
            np.array([0, len(noised)]),
            np.array([self.group.number]),
        )
        alike = orbit_noise_of_arrays(arrays, noised, sigmas, bound, self.projector)
        if alike is not None:
            torch.testing.assert_close(alike, found, rtol=0, atol=1e-9)
        return found

    def expected(self, noised: Tensor, sigma: float, confined: bool = False) -> Tensor:
        """−σ ∇ log Σ exp(−|x̃ − image|² / 2σ²), by autograd, over operations and a big box."""
        cell = self.lattice[0]
        height = 1 / torch.linalg.inv(cell).norm(dim=0)
        reach = [int(n) for n in (8 * sigma / height + 1).ceil()]
        box = itertools.product(*[range(-n, n + 1) for n in reach])
        box = torch.tensor(list(box), dtype=torch.float64)
        rows = []
        for x, start, p in zip(noised, self.clean, self.projector, strict=True):
            step = torch.zeros(3, dtype=torch.float64, requires_grad=True)  # Cartesian
            images = torch.from_numpy(self.group.rotations).double() @ start
            delta = x - images - torch.from_numpy(self.group.translations)
            delta = (delta - delta.round()).unsqueeze(1) - box
            cart = (delta @ cell).view(-1, 3)
            if confined:  # the density lives in the plane or line through the clean site
                cart = cart[(cart - cart @ p).norm(dim=1) < 1e-3]
            log = torch.logsumexp(-0.5 * ((cart + step) / sigma).square().sum(1), dim=0)
            (gradient,) = torch.autograd.grad(log, step)
            rows.append(-sigma * (gradient @ p if confined else gradient))
        return torch.stack(rows)

    @property
    def shortest(self) -> float:
        """Smallest distance between opposite faces of the cell [Å]."""
        return float((1 / torch.linalg.inv(self.lattice[0]).norm(dim=0)).min())


@pytest.mark.parametrize("sigma", [0.03, 0.3, 1.0, 1.5])
@pytest.mark.parametrize("radius", [0.0, 1.5], ids=["general", "special"])
@pytest.mark.parametrize("number", NUMBERS)
def test_orbit_target_is_the_score_of_the_orbit(number, radius, sigma):
    sites = Sites.random(number, 1, radius)
    noised = sites.moved(sites.noise(number, False), sigma)
    found, expected = sites.target(noised, sigma), sites.expected(noised, sigma)
    # a box of 2 lattice vectors serves oblique cells: good while σ is small against the cell
    atol = 1e-8 if sigma / sites.shortest < 0.25 else 3e-4
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("sigma", [0.03, 0.3, 1.0, 1.5])
@pytest.mark.parametrize("number", NUMBERS)
def test_confined_target_is_the_score_in_the_free_subspace(number, sigma):
    """Also where images of the site lie off its line or plane: these do not count."""
    for seed in (2, 3):
        sites = Sites.random(number, seed, 2.5)
        noised = sites.moved(sites.noise(number, True), sigma)
        found, expected = sites.target(noised, sigma, True), sites.expected(noised, sigma, True)
        atol = 1e-8 if sigma / sites.shortest < 0.25 else 3e-4
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)
        inside = (found.unsqueeze(1) @ sites.projector).squeeze(1)
        torch.testing.assert_close(inside, found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("number", [19, 43, 76, 99, 139, 143, 146, 167, 180, 194, 197, 216, 230])
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.99, 1.01])
def test_orbit_target_as_noise_reaches_the_cell(number, ratio):
    """Rectangular and hexagonal cells, sums along axes: to 1e-4 for every σ up to a period."""
    sites = Sites.random(number, 4, 0.0)
    sigma = ratio * float(sites.lattice.norm(dim=2).min())
    noised = sites.moved(sites.noise(number, False), sigma)
    found, expected = sites.target(noised, sigma), sites.expected(noised, sigma)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("number", NUMBERS)
def test_plain_and_orbit_targets_meet_as_noise_vanishes(number):
    rng = np.random.default_rng(number)
    lattice, group = random_lattice(number, rng, 3000.0), SpaceGroup(number)
    # of many points the two farthest from their own images
    points = rng.uniform(0, 1, (300, 3))
    near = [image_displacements(p, group.rotations, group.translations)[1:] for p in points]
    clearance = [np.linalg.norm(d @ lattice, axis=1).min(initial=9.0) for d in near]
    assert sorted(clearance)[-2] > 0.8
    sites = Sites(number, lattice, points[np.argsort(clearance)[-2:]])
    noise = sites.noise(0, False)
    for sigma in (0.05, 0.01):
        found = sites.target(sites.moved(noise, sigma), sigma)
        torch.testing.assert_close(found, noise, rtol=0, atol=1e-8)


@pytest.mark.parametrize("number", NUMBERS)
def test_target_turns_with_the_crystal(number):
    """Equivariant in the noised site; the same whichever image of the clean site is stored."""
    sites = Sites.random(number, 6, 0.0)
    sigma = 0.8
    noised = sites.moved(sites.noise(1, False), sigma)
    found = sites.target(noised, sigma)
    rng = np.random.default_rng(number)
    h = rng.integers(sites.group.order, size=2)
    w = torch.from_numpy(sites.group.rotations[h]).double()
    t = torch.from_numpy(sites.group.translations[h] + rng.integers(-2, 3, (2, 3)))
    cell = sites.lattice[0]
    turn = torch.linalg.inv(cell) @ w.transpose(1, 2) @ cell
    image = (w @ noised.unsqueeze(2)).squeeze(2) + t
    turned = (found.unsqueeze(1) @ turn).squeeze(1)
    torch.testing.assert_close(sites.target(image, sigma), turned, rtol=0, atol=1e-4)
    clean = (w @ sites.clean.unsqueeze(2)).squeeze(2) + t
    sites.clean = clean
    torch.testing.assert_close(sites.target(noised, sigma), found, rtol=0, atol=1e-4)


@pytest.mark.parametrize("number", [2, 62, 194])
def test_targets_have_the_same_mean_and_orbit_varies_less(number):
    """E[f · ε] agrees for a smooth periodic f when every image is as likely to be the clean one.

    The difference of the two products has mean 0; its standard error is the yardstick.
    """
    one = Sites.random(number, 7, 0.0, volume=120.0)
    rng = np.random.default_rng(number)
    n, sigma = 4000, 1.2
    h = rng.integers(one.group.order, size=n)
    frac = np.einsum("nij,j->ni", one.group.rotations[h], one.clean[0].numpy())
    frac = frac + one.group.translations[h]
    sites = Sites(number, one.lattice[0].numpy(), frac)
    plain = sites.noise(number, False)
    noised = sites.moved(plain, sigma)
    averaged = sites.target(noised, sigma)
    wave = torch.tensor(rng.integers(-1, 2, (3, 3)), dtype=torch.float64)
    field = torch.cos(2 * torch.pi * noised @ wave + torch.tensor([0.3, 1.1, 2.0]))
    difference = ((plain - averaged) * field).sum(1)
    error = difference.std() / n**0.5
    assert abs(difference.mean()) < 4 * error
    assert difference.std() > 0.1
    assert averaged.square().mean() < 0.9 * plain.square().mean()


# noise_batch


LEVELS = NoiseLevels()
SETTINGS = GraphSettings(cutoff=4.0, k_min=6, k_max=12)
BATCH = [1, 2, 14, 62, 99, 139, 155, 166, 194, 221, 225, 227]


def crystals_of(numbers: list[int], seed: int = 1, special: float = 0.7) -> Crystals:
    each = [random_crystal(n, 2, seed, special=special) for n in numbers]
    lattice = np.concatenate([c.lattice for c in each])
    return crystals_at(numbers, lattice, [c.frac for c in each])


def crystals_at(numbers: list[int], lattice: np.ndarray, frac: list[np.ndarray]) -> Crystals:
    """Crystals with these cells and sites."""
    start = operation_table().start
    groups = np.array(numbers)
    counts = [len(f) for f in frac]
    return Crystals(
        numbers=torch.full((sum(counts),), 14),
        frac=torch.from_numpy(np.concatenate(frac)),
        site_start=torch.from_numpy(np.cumsum([0, *counts])),
        coordinates=torch.from_numpy(lattice_coordinates(lattice)),
        driver=torch.from_numpy(np.array([lattice_driver(n) for n in numbers])),
        free=torch.from_numpy(np.array([lattice_freedom(n) for n in numbers])),
        op_start=torch.from_numpy(start[groups - 1]),
        op_count=torch.from_numpy(start[groups] - start[groups - 1]),
    )


class Seen:
    """What ``noise_batch`` handed to the graph: noised sites and lattices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = noising.graph_of

        def spy(frac: Tensor, lattice: Tensor, *args: object, **kwargs: object) -> object:
            self.frac, self.lattice = frac, lattice
            return original(frac, lattice, *args, **kwargs)

        monkeypatch.setattr(noising, "graph_of", spy)


def noise(crystals: Crystals, config: NoisingConfig, seed: int = 0) -> noising.Noised:
    generator = torch.Generator().manual_seed(seed)
    return noise_batch(
        crystals, LEVELS, config, SETTINGS, all_operations(), generator, torch.float64
    )


CONFIGS = [
    NoisingConfig(target="plain"),
    NoisingConfig(target="orbit"),
    NoisingConfig(target="plain", confined=1.0, clean_lattice=1.0),
    NoisingConfig(target="orbit", confined=1.0),
    NoisingConfig(target="orbit", confined=0.0, clean_lattice=0.0, decoupling=0.0),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_shapes_and_ranges(config):
    crystals = crystals_of(BATCH)
    noised = noise(crystals, config)
    n = len(BATCH)
    assert noised.position_target.shape == (2 * n, 3)
    for name in ("lattice_target", "lattice_used", "coordinates", "driver"):
        assert getattr(noised, name).shape == (n, 6)
    for name in ("sigma_pos", "sigma_lat", "tau_pos", "tau_lat"):
        assert getattr(noised, name).shape == (n,)
    torch.testing.assert_close(noised.sigma_pos, LEVELS.position(noised.tau_pos))
    noisy = noised.sigma_lat > 0
    torch.testing.assert_close(noised.sigma_lat[noisy], LEVELS.lattice(noised.tau_lat)[noisy])
    if config.decoupling == 0:
        assert torch.equal(noised.tau_lat, noised.tau_pos)
    # one crystal in every slice of the schedule
    assert sorted((noised.tau_pos * n).long().tolist()) == list(range(n))
    assert noised.position_target.isfinite().all()
    assert torch.equal(noised.driver, crystals.driver)
    assert noised.graph.confined.shape == (n,)
    if config.confined in (0.0, 1.0):
        assert noised.graph.confined.all() == noised.graph.confined.any() == config.confined
    else:
        assert noised.graph.confined.any()


@pytest.mark.parametrize("config", CONFIGS)
def test_lattice_target(config, monkeypatch):
    """The noise that was added, on free coordinates only, zero where the lattice is clean."""
    crystals = crystals_of(BATCH)
    seen = Seen(monkeypatch)
    noised = noise(crystals, config)
    clean = noised.sigma_lat == 0
    if config.clean_lattice in (0.0, 1.0):
        assert clean.all() == clean.any() == config.clean_lattice
    assert (noised.lattice_target[clean] == 0).all()
    assert not noised.lattice_used[clean].any()
    assert torch.equal(noised.coordinates[clean], crystals.coordinates[clean])
    assert torch.equal(noised.lattice_used, crystals.free & ~clean.unsqueeze(1))
    assert torch.equal(noised.lattice_target != 0, noised.lattice_used)
    added = (noised.sigma_lat.unsqueeze(1) * noised.lattice_target).gather(1, crystals.driver)
    torch.testing.assert_close(noised.coordinates, crystals.coordinates + added)
    found = lattice_coordinates(seen.lattice.numpy())
    np.testing.assert_allclose(found, noised.coordinates, rtol=0, atol=1e-8)
    for number, lattice in zip(BATCH, seen.lattice.numpy(), strict=True):
        w, metric = SpaceGroup(number).rotations, lattice @ lattice.T
        turned = np.swapaxes(w, 1, 2) @ metric @ w
        np.testing.assert_allclose(turned, np.broadcast_to(metric, turned.shape), atol=1e-8)


def test_plain_target_is_the_displacement_in_the_deformed_cell(monkeypatch):
    crystals = crystals_of(BATCH)
    seen = Seen(monkeypatch)
    noised = noise(crystals, NoisingConfig(target="plain"))
    crystal = crystals.site_crystal
    moved = ((seen.frac - crystals.frac).unsqueeze(1) @ seen.lattice[crystal]).squeeze(1)
    expected = noised.sigma_pos[crystal].unsqueeze(1) * noised.position_target
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("target", ["plain", "orbit"])
def test_confined_sites_stay_on_their_wyckoff_positions(target, monkeypatch):
    crystals = crystals_of(BATCH, special=1.0)
    seen = Seen(monkeypatch)
    noised = noise(crystals, NoisingConfig(target=target, confined=1.0))
    moved = 0
    for i, b in enumerate(crystals.site_crystal.tolist()):
        group = SpaceGroup(BATCH[b])
        operations = group.rotations, group.translations, seen.lattice[b].numpy()
        before = stabiliser(crystals.frac[i].numpy(), *operations)
        after = stabiliser(seen.frac[i].numpy(), *operations)
        assert set(before) <= set(after)
        moved += len(before) > 1 and not torch.allclose(seen.frac[i], crystals.frac[i])
    assert moved >= 2
    fixed = (seen.frac - crystals.frac).abs().amax(1) < 1e-9
    assert fixed.any()
    assert noised.position_target[fixed].abs().max() < 1e-9


@pytest.mark.parametrize("number", range(1, 231))
def test_confined_noise_stays_on_every_wyckoff_position(number, monkeypatch):
    """A site on each position of the group, at every noise level and in every deformed cell."""
    rng = np.random.default_rng(number)
    positions = wyckoff_positions(number)
    points = [w.base + w.projector @ rng.uniform(-0.5, 0.5, 3) for w in positions]
    copies = 4
    lattice = np.stack([random_lattice(number, rng, 300.0) for _ in range(copies)])
    crystals = crystals_at([number] * copies, lattice, [np.array(points)] * copies)
    seen = {}

    def instead(frac: Tensor, lattice: Tensor, _: Crystals, *__: object, **___: object) -> None:
        seen["frac"], seen["lattice"] = frac, lattice

    monkeypatch.setattr(noising, "graph_of", instead)
    noised = noise(crystals, NoisingConfig(target="plain", confined=1.0), seed=number)
    frac = seen["frac"].view(copies, -1, 3).numpy()
    target = noised.position_target.view(copies, -1, 3).numpy()
    for k, w in enumerate(positions):
        off = (np.eye(3) - w.projector) @ (frac[:, k] - w.base).T
        np.testing.assert_allclose(off, 0, atol=1e-9)
        # the noise fills the free directions, and those are as many as the position has
        moved = np.linalg.norm(target[:, k], axis=1)
        assert (moved > 1e-6).all() if w.freedom else (moved < 1e-9).all()
        rank = np.linalg.matrix_rank(target[:, k], tol=1e-6)
        assert rank == w.freedom


def test_confined_sites_are_never_snapped():
    """A general site 0.05 Å from a special position: one of 192 atoms, or one of 4."""
    cell = 9.0 * np.eye(3)[None]
    near = np.array([[0.05 / 9, 0.01 / 9, 0.02 / 9], [0.25, 0.25, 0.25]])
    crystals = crystals_at([225], cell, [near])
    group = SpaceGroup(225)
    wanted = [len(orbit(x, group.rotations, group.translations, cell[0])[0]) for x in near]
    assert wanted == [192, 8]
    for confined, expected in ((True, [192, 8]), (False, [4, 8])):
        graph = noising.graph_of(
            crystals.frac,
            torch.from_numpy(cell),
            crystals,
            torch.tensor([0.5], dtype=torch.float64),
            torch.tensor([confined]),
            SETTINGS,
            all_operations(),
            torch.float64,
            pairs=site_pairs(crystals.site_crystal, crystals.op_start, crystals.op_count),
        )
        assert graph.multiplicity.tolist() == expected
        assert graph.is_snap.sum() == (0 if confined else 1)
        assert graph.confined.tolist() == [confined]
        share = torch.tensor(expected) / sum(expected)
        torch.testing.assert_close(graph.abundance, share.double())
        volume = 9.0**3 / sum(expected)
        assert float(graph.volume_per_atom) == pytest.approx(volume)


def test_free_noise_leaves_special_positions(monkeypatch):
    crystals = crystals_of(BATCH, special=1.0)
    seen = Seen(monkeypatch)
    noise(crystals, NoisingConfig(confined=0.0))
    for i, b in enumerate(crystals.site_crystal.tolist()):
        group = SpaceGroup(BATCH[b])
        operations = group.rotations, group.translations, seen.lattice[b].numpy()
        assert stabiliser(seen.frac[i].numpy(), *operations).tolist() == [0]


@pytest.mark.parametrize("config", CONFIGS)
def test_the_generator_decides_everything(config):
    crystals = crystals_of(BATCH)
    one, two, other = noise(crystals, config), noise(crystals, config), noise(crystals, config, 1)
    for name in ("position_target", "lattice_target", "coordinates", "sigma_pos", "sigma_lat"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert torch.equal(one.graph.vec, two.graph.vec)
    assert not torch.equal(one.sigma_pos, other.sigma_pos)
    assert not torch.equal(one.position_target, other.position_target)


def test_targets_share_their_draws():
    """The same seed moves the same sites, whichever target is asked for."""
    crystals = crystals_of(BATCH)
    plain = noise(crystals, NoisingConfig(target="plain"))
    orbit = noise(crystals, NoisingConfig(target="orbit"))
    assert torch.equal(plain.graph.vec, orbit.graph.vec)
    assert torch.equal(plain.lattice_target, orbit.lattice_target)
    difference = (plain.position_target - orbit.position_target).abs().amax(1)
    assert (difference > 0.1).any()
