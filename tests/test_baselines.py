"""The other published generators: their mathematics, and the interface that they share."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import langevin_xtal as lx
from langevin_xtal.baselines import (
    algebra,
    crystens,
    density,
    density_slices,
    gemsdiff,
    pgcgm,
    picture_diffusion,
    picture_regression,
    torus,
)
from langevin_xtal.baselines import crystens_encoding as encoding
from langevin_xtal.baselines.adversarial import gradient_penalty
from langevin_xtal.baselines.base import WEIGHTS, candidate_of, fit_in_folder, primitive_cells
from langevin_xtal.baselines.neighbours import nearest_neighbours
from langevin_xtal.baselines.registry import generator_class, load_generator
from langevin_xtal.baselines.vector_field import VectorField, VectorFieldConfig
from langevin_xtal.cli import run as run_command
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import CheckpointError, InputError, LatticeError, RequestError
from langevin_xtal.symmetry import SpaceGroup, orbit
from langevin_xtal.symmetry.detection import group_numbers
from tests.crystals import random_crystal


@pytest.fixture(scope="module")
def crystals() -> PackedDataset:
    """About a hundred structure types of many groups."""
    return reference_dataset()


def rotation(rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return q * np.sign(np.linalg.det(q))


def unimodular(rng: np.random.Generator) -> np.ndarray:
    """A product of shears by whole numbers: determinant 1."""
    change = np.eye(3)
    for _ in range(4):
        i, j = rng.choice(3, 2, replace=False)
        shear = np.eye(3)
        shear[i, j] = rng.integers(-2, 3)
        change = change @ shear
    return np.rint(change)


class TestCellsAsVectors:
    def test_basis_is_orthonormal_and_splits_into_turns_shapes_and_volume(self) -> None:
        gram = np.einsum("aij,bij->ab", algebra.BASIS, algebra.BASIS)
        np.testing.assert_allclose(gram, np.eye(9), atol=1e-15)
        turns, shapes = algebra.BASIS[algebra.TURN], algebra.BASIS[algebra.SHAPE]
        np.testing.assert_allclose(turns, -turns.transpose(0, 2, 1))
        np.testing.assert_allclose(shapes, shapes.transpose(0, 2, 1))
        np.testing.assert_allclose(np.trace(shapes, axis1=1, axis2=2), 0, atol=1e-15)

    def test_exp_and_log_are_inverse(self) -> None:
        rng = np.random.default_rng(1)
        coordinates = rng.normal(0, 0.6, (40, 9))
        cells = algebra.cell_of(coordinates)
        np.testing.assert_allclose(algebra.coordinates_of(cells), coordinates, atol=1e-9)
        lattice = rng.normal(0, 3, (40, 3, 3))
        symmetric = algebra.symmetric_cell(lattice)
        found = algebra.coordinates_of(symmetric)
        np.testing.assert_allclose(found[:, algebra.TURN], 0, atol=1e-12)
        np.testing.assert_allclose(algebra.cell_of(found), symmetric, rtol=1e-9)

    def test_exp_against_its_series_and_volume_against_the_determinant(self) -> None:
        coordinates = np.random.default_rng(2).normal(0, 0.3, 9)
        matrix = np.einsum("k,kij->ij", coordinates, algebra.BASIS)
        series, term = np.eye(3), np.eye(3)
        for n in range(1, 30):
            term = term @ matrix / n
            series = series + term
        cell = algebra.cell_of(coordinates)
        np.testing.assert_allclose(cell, series, atol=1e-12)
        volume = np.sqrt(3) * coordinates[algebra.VOLUME]
        np.testing.assert_allclose(np.log(np.linalg.det(cell)), volume, atol=1e-12)

    def test_symmetric_cell_has_the_same_lengths_and_angles(self) -> None:
        lattice = np.random.default_rng(3).normal(0, 3, (10, 3, 3))
        turned = algebra.symmetric_cell(lattice)
        np.testing.assert_allclose(
            turned @ turned.transpose(0, 2, 1), lattice @ lattice.transpose(0, 2, 1), atol=1e-9
        )

    def test_mirror_has_no_logarithm(self) -> None:
        with pytest.raises(LatticeError, match="no real logarithm"):
            algebra.coordinates_of(np.array([[0.0, 1, 0.1], [1, 0, 0], [0, 0, 1]]))


class TestTorus:
    @pytest.mark.parametrize("sigma", [0.05, 0.2, 0.39, 0.41, 0.6])
    def test_wrapped_density_is_the_sum_over_images(self, sigma: float) -> None:
        x = np.linspace(-0.5, 0.5, 41)
        images = x[:, None] + np.arange(-30, 31)
        density = np.exp(-0.5 * (images / sigma) ** 2).sum(1) / (sigma * np.sqrt(2 * np.pi))
        np.testing.assert_allclose(torus.wrapped_density(x, sigma), density, rtol=1e-10)
        np.testing.assert_allclose(np.trapezoid(torus.wrapped_density(x, sigma), x), 1, rtol=1e-3)

    def test_wrapped_normal_tends_to_the_uniform_one(self) -> None:
        x = np.linspace(0, 1, 101)
        worst = [np.abs(torus.wrapped_density(x, s) - 1).max() for s in (0.3, 0.6, 1.2, 2.4)]
        assert all(a > b for a, b in pairwise(worst))
        # the first Fourier mode is what is left: 2 exp(-2 π² σ²)
        assert worst[1] == pytest.approx(2 * np.exp(-2 * np.pi**2 * 0.36), rel=1e-6)
        assert worst[3] < 1e-15

    def test_steps_back_from_the_clean_position_have_the_variance_of_the_walk(self) -> None:
        rng = np.random.default_rng(4)
        variances = torus.linear_variances(1e-5, 1e-3, 20)
        clean = np.full((60_000, 3), 0.97)
        noisy = clean + np.sqrt(variances[20]) * rng.standard_normal(clean.shape)
        for step in range(20, 8, -1):
            noise = rng.standard_normal(clean.shape)
            noisy = torus.posterior(noisy, clean, variances[step - 1], variances[step], noise)
        spread = torus.shortest(noisy - clean)
        assert (spread**2).mean() == pytest.approx(variances[8], rel=0.02)
        last = torus.posterior(noisy, clean, 0.0, variances[1], rng.standard_normal(clean.shape))
        np.testing.assert_allclose(torus.shortest(last - clean), 0, atol=1e-12)

    def test_steps_back_of_the_cell_keep_the_marginal(self) -> None:
        rng = np.random.default_rng(5)
        shares = torus.linear_variances(1e-3, 0.2, 10)
        clean = np.full(200_000, 1.5)
        noisy = np.sqrt(1 - shares[6]) * clean + np.sqrt(shares[6]) * rng.standard_normal(200_000)
        back = gemsdiff.gaussian_posterior(
            noisy, clean, shares[5], shares[6], rng.standard_normal(200_000)
        )
        assert back.mean() == pytest.approx(1.5 * np.sqrt(1 - shares[5]), abs=0.01)
        assert back.var() == pytest.approx(shares[5], rel=0.02)

    def test_shortest_path_is_the_nearest_of_all_images(self) -> None:
        step = np.random.default_rng(6).uniform(-3, 3, (50, 3))
        images = np.abs(step[..., None] + np.arange(-5, 6))
        np.testing.assert_allclose(np.abs(torus.shortest(step)), images.min(-1), atol=1e-12)


@pytest.fixture(scope="module")
def field() -> VectorField:
    """With random heads, which a new network has at zero."""
    torch.manual_seed(0)
    network = VectorField(VectorFieldConfig(width=16, layers=2, neighbours=9)).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.requires_grad_(False)


class TestVectorField:
    """r = f @ L for the rows of L, so a rotation R gives L @ R.T and displacements v @ R.T."""

    @staticmethod
    def fields(network: VectorField, cell: gemsdiff.Cell) -> tuple[np.ndarray, np.ndarray]:
        torch.set_default_dtype(torch.float64)
        try:
            graph = nearest_neighbours([cell], network.config.neighbours)
            moved, change = network(graph, torch.from_numpy(cell[2]), torch.tensor([0.4]))
        finally:
            torch.set_default_dtype(torch.float32)
        return moved.numpy(), change[0].numpy()

    @staticmethod
    def crystal(seed: int) -> gemsdiff.Cell:
        rng = np.random.default_rng(seed)
        lattice = np.diag(rng.uniform(3, 6, 3)) + rng.normal(0, 0.6, (3, 3))
        return lattice, rng.random((5, 3)), rng.choice([8, 22, 38], 5)

    @pytest.mark.parametrize("seed", range(4))
    def test_rotation(self, field: VectorField, seed: int) -> None:
        lattice, frac, numbers = self.crystal(seed)
        turn = rotation(np.random.default_rng(seed))
        moved, change = self.fields(field, (lattice, frac, numbers))
        turned, changed = self.fields(field, (lattice @ turn.T, frac, numbers))
        assert np.abs(moved).max() > 1e-3
        assert np.abs(change).max() > 1e-3
        np.testing.assert_allclose(turned, moved @ turn.T, atol=1e-9)
        np.testing.assert_allclose(changed, turn @ change @ turn.T, atol=1e-9)
        np.testing.assert_allclose(change, change.T, atol=1e-12)

    @pytest.mark.parametrize("seed", range(4))
    def test_translation(self, field: VectorField, seed: int) -> None:
        lattice, frac, numbers = self.crystal(seed)
        moved, change = self.fields(field, (lattice, frac, numbers))
        shift = np.random.default_rng(seed).uniform(-2, 2, 3)
        there, changed = self.fields(field, (lattice, frac + shift, numbers))
        np.testing.assert_allclose(there, moved, atol=1e-9)
        np.testing.assert_allclose(changed, change, atol=1e-9)

    @pytest.mark.parametrize("seed", range(8))
    def test_change_of_the_cell(self, field: VectorField, seed: int) -> None:
        lattice, frac, numbers = self.crystal(seed)
        moved, change = self.fields(field, (lattice, frac, numbers))
        other = unimodular(np.random.default_rng(seed))
        assert abs(round(np.linalg.det(other))) == 1
        rows, points = other @ lattice, frac @ np.linalg.inv(other)
        there, changed = self.fields(field, (rows, points, numbers))
        np.testing.assert_allclose(there, moved, atol=1e-9)
        np.testing.assert_allclose(changed, change, atol=1e-9)
        # in fractions the displacement goes with the cell
        np.testing.assert_allclose(
            there @ np.linalg.inv(rows),
            moved @ np.linalg.inv(lattice) @ np.linalg.inv(other),
            atol=1e-9,
        )

    def test_neighbours_are_the_nearest_of_all_images(self) -> None:
        lattice, frac, numbers = self.crystal(11)
        graph = nearest_neighbours([(lattice, frac, numbers)], 9)
        shifts = np.stack(np.meshgrid(*[np.arange(-5, 6)] * 3), -1).reshape(-1, 3)
        delta = (frac[None, :, None] - frac[:, None, None] + shifts) @ lattice
        length = np.linalg.norm(delta, axis=-1).reshape(5, -1)
        length[length < 1e-9] = np.inf
        found = np.sort(np.linalg.norm(graph.vector, axis=1).reshape(5, 9), axis=1)
        np.testing.assert_allclose(found, np.sort(length, axis=1)[:, :9], atol=1e-9)


class TestGemsDiff:
    @pytest.fixture(scope="class")
    def generator(self, crystals: PackedDataset) -> gemsdiff.GemsDiff:
        recipe = gemsdiff.GemsDiffRecipe(epochs=1, width=16, layers=1, batch_size=32)
        return gemsdiff.GemsDiff.fit(crystals, recipe)

    def test_candidates_have_the_composition(self, generator: gemsdiff.GemsDiff) -> None:
        requests = [lx.Request(formula="TiO2", atoms=6), lx.Request(formula="NaCl")]
        outcome = generator.outcomes(requests * 3, seed=3)
        assert len(outcome.candidates) + len(outcome.rejections) == 6
        assert outcome.candidates
        for candidate in outcome.candidates:
            atoms = candidate.numbers[candidate.atom_site]
            kinds, counts = np.unique(atoms, return_counts=True)
            wanted = {8: 2 / 3, 22: 1 / 3} if candidate.index % 2 == 0 else {11: 0.5, 17: 0.5}
            assert dict(zip(kinds.tolist(), counts / len(atoms), strict=True)) == wanted
            assert candidate.min_distance >= 0.5
        again = generator.outcomes(requests * 3, seed=3)
        for mine, theirs in zip(outcome.candidates, again.candidates, strict=True):
            np.testing.assert_array_equal(mine.atom_frac, theirs.atom_frac)
        other = generator.sample(requests[:1], seed=4)
        assert not other or not np.array_equal(other[0].lattice, again.candidates[0].lattice)

    @pytest.mark.parametrize(
        ("request_", "why"),
        [
            (lx.Request(62, formula="TiO2"), "takes no space group"),
            (lx.Request(elements=["Ti", "O"]), "needs a composition"),
            (lx.Request(formula="TiO2", z=2), "Z means nothing"),
            (lx.Request(formula="TiO2", atoms=24), "cannot place 24 atoms"),
        ],
    )
    def test_refuses(self, generator: gemsdiff.GemsDiff, request_: lx.Request, why: str) -> None:
        with pytest.raises(RequestError, match=why) as error:
            generator.sample([request_])
        assert "--formula TiO2" in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_stopped_fit_goes_on_and_leaves_weights(
        self, crystals: PackedDataset, tmp_path: Path
    ) -> None:
        recipe = gemsdiff.GemsDiffRecipe(epochs=2, width=8, layers=1, batch_size=50)
        whole = gemsdiff.GemsDiff.fit(crystals, recipe)
        first = gemsdiff.GemsDiff.start_fit(crystals, recipe, tmp_path)
        assert not fit_in_folder(first, 0.0)
        assert load_generator("gemsdiff", tmp_path / WEIGHTS).card["epochs"] == 0
        second = gemsdiff.GemsDiff.start_fit(crystals, recipe, tmp_path)
        assert fit_in_folder(second, float("inf"))
        there = load_generator("gemsdiff", tmp_path / WEIGHTS)
        assert there.hash == whole.hash
        assert there.card["epochs"] == 2

    def test_fit_learns(self, crystals: PackedDataset) -> None:
        few = crystals.select(np.flatnonzero(np.isin(crystals.atom_counts, [4, 8, 12])))
        recipe = gemsdiff.GemsDiffRecipe(epochs=60, width=32, layers=2, batch_size=16, rate=3e-3)
        rows = list(gemsdiff.GemsDiff.start_fit(few, recipe, None).run())
        first, last = (np.mean([r.losses for r in part], 0) for part in (rows[:8], rows[-8:]))
        assert (last < [0.95 * first[0], 0.8 * first[1]]).all()

    def test_no_crystal_is_small_enough(self, crystals: PackedDataset) -> None:
        large = crystals.select(np.flatnonzero(crystals.atom_counts > 100)[:1])
        with pytest.raises(InputError, match="at most 20 atoms"):
            gemsdiff.GemsDiff.fit(large)


@pytest.fixture(scope="module")
def thousand() -> list[tuple[gemsdiff.Cell, int]]:
    """Conventional cells of random crystals, about a hundred groups."""
    found: list[tuple[gemsdiff.Cell, int]] = []
    for seed in count():
        if len(found) == 1000:
            break
        number = 1 + seed % 230
        crystal = random_crystal(number, 1 + seed % 3, seed)
        group, lattice = SpaceGroup(number), crystal.lattice[0]
        images = [orbit(f, group.rotations, group.translations, lattice)[0] for f in crystal.frac]
        kinds = np.random.default_rng(seed).integers(1, 95, len(images))
        numbers = np.repeat(kinds, [len(i) for i in images])
        if len(numbers) <= encoding.MOST_ATOMS:
            found.append(((lattice, np.concatenate(images), numbers), number))
    return found


class TestCrysTensEncoding:
    def test_round_trip_is_exact_for_a_thousand_crystals(
        self, thousand: list[tuple[gemsdiff.Cell, int]]
    ) -> None:
        assert len({group for _, group in thousand}) > 100
        for (lattice, frac, numbers), group in thousand:
            picture = encoding.encode((lattice, frac, numbers), group)
            found = encoding.decode(picture, clustered=False)
            rows, points, elements = found.cell
            assert found.group == group
            np.testing.assert_allclose(rows @ rows.T, lattice @ lattice.T, atol=1e-9)
            assert sorted(elements.tolist()) == sorted(numbers.tolist())
            apart = points[:, None] - frac
            off = np.abs(apart - np.rint(apart)).max(axis=2)
            off[elements[:, None] != numbers] = 1.0
            assert off.min(axis=0).max() < 1e-12
            assert off.min(axis=1).max() < 1e-12

    def test_what_stands_where(self) -> None:
        cell = np.diag([3.0, 6.0, 9.0]), np.array([[0, 0, 0], [0.5, 0.25, 0]]), np.array([8, 22])
        picture = encoding.encode(cell, 25)
        assert picture.shape == (4, 64, 64)
        np.testing.assert_allclose(picture[:, :12], picture[:, :, :12].transpose(0, 2, 1))
        np.testing.assert_allclose(picture[2, 0, 12:15], [0.08, 0.22, 0])
        np.testing.assert_allclose(picture[3, 4:11, 13], [0.1, 0.2, 0.3, 0.5, 0.5, 0.5, 25 / 230])
        assert not picture[:, 11].any()
        distance = np.hypot(1.5, 1.5) / encoding.LENGTH_SCALE
        np.testing.assert_allclose(picture[0, 12:14, 12:14], [[0, distance], [distance, 0]])
        np.testing.assert_allclose(picture[1, 12:14, 12:14], [[0, 0.5], [-0.5, 0]])
        assert np.count_nonzero(picture[:, 14:, 14:]) == 0

    def test_noise_is_averaged_away_and_measured(
        self, thousand: list[tuple[gemsdiff.Cell, int]]
    ) -> None:
        rng = np.random.default_rng(8)
        cell, group = next(t for t in thousand if len(t[0][2]) == 12)
        exact = encoding.encode(cell, group)
        none = encoding.variances(exact)
        assert none is not None
        assert max(none.length, none.angle, none.group, none.coordinate) < 1e-20
        noisy = exact.copy()
        noisy[:, :, :24] += 0.003 * rng.standard_normal((4, 64, 24))
        noisy[:, :24] += 0.003 * rng.standard_normal((4, 24, 64))
        noisy[:, 24:, :12] = noisy[:, :12, 24:] = 0.0
        measured = encoding.variances(noisy)
        assert measured is not None
        assert measured.group == pytest.approx(230**2 * measured.length / 900, rel=0.5)
        found = encoding.decode(noisy, clustered=False)
        assert found.group == group
        want = encoding.decode(exact, clustered=False)
        apart = found.cell[1] - want.cell[1]
        own = noisy[0, 1:4, 12:24].T - exact[0, 1:4, 12:24].T
        assert np.abs(apart - np.rint(apart)).mean() < 0.5 * np.abs(own).mean()

    def test_votes_go_through_the_differences(self) -> None:
        cell = np.eye(3) * 5, np.array([[0.1, 0.2, 0.3], [0.6, 0.7, 0.8]]), np.array([8, 8])
        picture = encoding.encode(cell, 1)
        picture[1, 12, 13] += 0.2  # the first atom says the second is further along a
        votes = encoding.coordinate_votes(picture)
        np.testing.assert_allclose(votes[:, 1, 0], [0.8, 0.6])
        found = encoding.decode(picture, clustered=False)
        np.testing.assert_allclose(found.cell[1][1], [0.7, 0.7, 0.8])

    def test_elements_and_places_are_drawn_together(self) -> None:
        frac = np.zeros((8, 3))
        frac[:, 0] = [0.001, 0.999, 0.25, 0.252, 0.5, 0.498, 0.75, 0.751]
        numbers = np.array([12, 12, 12, 12, 8, 8, 8, 22])
        picture = encoding.encode((np.eye(3) * 9, frac, numbers), 1)
        drift = np.array([0.2, 0.6, 0.4, 0.5, -0.3, -0.6, 0.4, 0.2]) / 100
        picture[:, 0, 12:20] += drift
        picture[:, 12:20, 0] += drift
        found = encoding.decode(picture, clustered=True)
        assert sorted(found.cell[2].tolist()) == [8, 8, 8, 12, 12, 12, 12, 22]

    def test_refuses_what_it_cannot_hold(self) -> None:
        with pytest.raises(InputError, match="at most 52"):
            encoding.encode((np.eye(3), np.random.rand(53, 3), np.ones(53, int)), 1)
        with pytest.raises(InputError, match="no atoms"):
            encoding.decode(np.zeros((4, 64, 64)), clustered=True)
        flat = encoding.encode((np.eye(3) * 4, np.zeros((1, 3)), np.array([8])), 1)
        flat[:, 7:10, 12] = flat[:, 12, 7:10] = 0.9
        with pytest.raises(InputError, match="no cell"):
            encoding.decode(flat, clustered=True)


class TestGradientPenalty:
    def test_of_a_plane_is_its_slope(self) -> None:
        real, made = torch.randn(7, 2, 3), torch.randn(7, 2, 3)
        slope = torch.tensor([[2.0, 0.0, 0.0], [0.0, -2.0, 1.0]])  # norm 3
        penalty = gradient_penalty(lambda x: (x * slope).sum((1, 2)), real, made, torch.rand(7))
        assert float(penalty) == pytest.approx(4.0, rel=1e-6)

    def test_of_a_bowl_is_taken_between_the_points(self) -> None:
        real, made = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])

        def bowl(x: torch.Tensor) -> torch.Tensor:
            return 0.5 * (x**2).sum(1)  # slope x

        for share, expected in ((1.0, 9.0), (0.5, 1.0), (0.25, 0.0), (0.0, 1.0)):
            found = gradient_penalty(bowl, real, made, torch.tensor([share]))
            assert found.item() == pytest.approx(expected, abs=1e-6)

    def test_reaches_the_weights_of_the_critic(self) -> None:
        weight = torch.tensor([3.0], requires_grad=True)
        penalty = gradient_penalty(
            lambda x: weight * x, torch.ones(4, 1), torch.zeros(4, 1), torch.rand(4)
        )
        penalty.backward()
        assert weight.grad is not None
        assert float(weight.grad) == pytest.approx(2 * (3 - 1))


class TestCrysTens:
    @pytest.mark.parametrize("name", ["crystens", "crystens-gan"])
    def test_fit_save_and_sample(self, crystals: PackedDataset, tmp_path: Path, name: str) -> None:
        if name == "crystens":
            pytest.importorskip("diffusers")
        kind = generator_class(name)
        few = crystals.select(np.flatnonzero(crystals.atom_counts <= 8)[:12])
        run_ = kind.start_fit(few, kind.recipe(epochs=2, width=8, batch_size=6), tmp_path)
        rows = list(run_.run())
        assert [row.epoch for row in rows] == [1, 2]
        assert np.isfinite(rows[-1].losses).all()
        generator = load_generator(name, tmp_path / WEIGHTS)
        assert isinstance(generator, crystens._Pictures)
        both = generator.pictures(5, [3, 4])
        assert both.shape == (2, 4, 64, 64)
        np.testing.assert_allclose(generator.pictures(5, [4])[0], both[1], atol=1e-4)
        outcome = generator.outcomes([lx.Request()] * 2)
        assert len(outcome.candidates) + len(outcome.rejections) == 2
        with pytest.raises(RequestError, match="takes no conditions; it serves"):
            generator.sample([lx.Request(formula="TiO2")])

    def test_a_stopped_gan_goes_on_as_if_it_had_not(
        self, crystals: PackedDataset, tmp_path: Path
    ) -> None:
        few = crystals.select(np.flatnonzero(crystals.atom_counts <= 8)[:12])
        recipe = crystens.PictureGanRecipe(epochs=3, width=4, latent=4, batch_size=4)
        whole = crystens.CrysTensGan.fit(few, recipe)
        first = crystens.PictureGanFit(few, recipe, tmp_path)
        for row in first.run():
            if row.epoch == 2:
                break
        second = crystens.PictureGanFit(few, recipe, tmp_path)
        assert second.epoch == 2
        list(second.run())
        assert second.generator().hash == whole.hash


class TestPictureRegression:
    """Properties from CrysTens pictures."""

    NAMES = ("share", "size")

    @pytest.fixture(scope="class")
    def data(self, crystals: PackedDataset) -> PackedDataset:
        """With a property of the composition, and one of the cell that some crystals lack."""
        owner = np.repeat(np.arange(len(crystals)), crystals.site_counts)
        weight = np.bincount(owner, crystals.numbers * crystals.multiplicity)
        volume = np.linalg.det(crystals.lattice)
        own = {"share": weight / crystals.atom_counts, "size": np.cbrt(volume)}
        own["size"][::7] = np.nan
        return replace(crystals, properties=own)

    @pytest.mark.slow
    def test_learns_what_a_picture_shows(self, data: PackedDataset) -> None:
        recipe = picture_regression.PictureRegressionRecipe(
            epochs=40, batch_size=16, width=8, rate=5e-3, dropout=0.0
        )
        fit = picture_regression.PictureRegressionFit(data, self.NAMES, recipe)
        before = fit.predict(data)
        fit.finish()
        after = fit.predict(data)
        drawn = data.atom_counts <= encoding.MOST_ATOMS
        assert (np.isfinite(after[:, 0]) == drawn).all()
        for column, name in enumerate(self.NAMES):
            true = data.properties[name]
            known = drawn & np.isfinite(true)
            off = [np.abs(found[known, column] - true[known]).mean() for found in (before, after)]
            assert off[1] < 0.75 * off[0]

    def test_goes_on_to_the_same_weights(self, data: PackedDataset, tmp_path: Path) -> None:
        recipe = picture_regression.PictureRegressionRecipe(
            epochs=2, batch_size=16, width=4, save_every=1
        )
        whole = picture_regression.PictureRegressionFit(data, self.NAMES, recipe)
        whole.finish()
        first = picture_regression.PictureRegressionFit(data, self.NAMES, recipe, tmp_path)
        for _ in first.run():
            break
        assert first.step == whole.step // 2
        second = picture_regression.PictureRegressionFit(data, self.NAMES, recipe, tmp_path)
        assert second.step == first.step
        second.finish()
        assert (second.predict(data) == whole.predict(data))[:, 0][
            data.atom_counts <= encoding.MOST_ATOMS
        ].all()


class TestPgcgm:
    @pytest.fixture(scope="class")
    def perovskite(self) -> PackedDataset:
        """SrTiO3, MgAl2O4-like and others: three elements with one site each."""
        data = reference_dataset()
        known = np.isin(data.group, pgcgm.GROUPS) & (data.site_counts == 3)
        return data.select(
            [k for k in np.flatnonzero(known) if len(set(data.numbers[data.sites_of(k)])) == 3]
        )

    def test_every_atom_of_an_orbit_has_the_same_average(self, perovskite: PackedDataset) -> None:
        crystals = pgcgm.ternaries(perovskite)
        assert len(crystals) > 5
        rng = np.random.default_rng(9)
        for crystal in crystals:
            sets = [[a[rng.integers(len(a))] for a in crystal.atoms] for _ in range(5)]
            sites = torch.as_tensor(np.array(sets), dtype=torch.float32)[None]
            group = torch.tensor([crystal.group])
            found = pgcgm.averaged_sites(sites, group)[0].numpy()
            np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), atol=1e-5)
            # of an orbit in the cell the average is that of its atoms
            np.testing.assert_allclose(
                found[0], [(a % 1 % (1 - 1e-6)).mean(0) for a in crystal.atoms], atol=1e-4
            )

    def test_merging_gives_the_orbit_of_special_positions(self, crystals: PackedDataset) -> None:
        rng = np.random.default_rng(10)
        special = 0
        for k in range(0, len(crystals), 9):
            group, lattice = SpaceGroup(int(crystals.group[k])), crystals.lattice[k]
            for place in range(*crystals.sites_of(k).indices(len(crystals.numbers))[:2]):
                site, atoms = crystals.frac[place], int(crystals.multiplicity[place])
                if atoms == group.order:
                    continue
                special += 1
                orbit_ = orbit(site, group.rotations, group.translations, lattice)[0]
                for noise in (0.0, 0.03):
                    step = noise * rng.standard_normal(3) @ np.linalg.inv(lattice)
                    found = pgcgm.merged_images(site + step, group, lattice, 0.6)
                    assert len(found) == atoms
                    apart = found[:, None] - orbit_
                    apart = np.linalg.norm((apart - np.rint(apart)) @ lattice, axis=2)
                    # what the position leaves free stays as it was moved
                    assert apart.min(axis=0).max() <= np.linalg.norm(step @ lattice) + 1e-9
        assert special > 20

    def test_a_crystal_comes_back_from_any_three_of_its_atoms(
        self, perovskite: PackedDataset
    ) -> None:
        rng = np.random.default_rng(11)
        for k, crystal in enumerate(pgcgm.ternaries(perovskite)):
            sites = pgcgm.near_set(crystal, rng)
            lengths = np.linalg.norm(crystal.lattice, axis=1)
            number = pgcgm.GROUPS[crystal.group]
            cell = pgcgm.crystal_of(sites, lengths, np.array(crystal.numbers), number)
            assert not isinstance(cell, str)
            made = candidate_of(cell, lx.Request(), seed=0, index=0)
            assert isinstance(made, Candidate)
            assert made.space_group.number == number
            assert len(made.atom_site) == perovskite.atom_counts[k]

    def test_a_general_site_that_merging_breaks_is_refused(self) -> None:
        sites = np.array([[0.021, 0.047, 0.08], [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]])
        found = pgcgm.crystal_of(sites, np.full(3, 3.0), np.array([55, 17, 11]), 225)
        assert isinstance(found, str)
        assert found.split(":")[0] in ("merged", "overlap")

    def test_near_sets_are_the_nearest_atoms(self, perovskite: PackedDataset) -> None:
        crystal = pgcgm.ternaries(perovskite)[0]
        for seed in range(5):
            first = np.random.default_rng(seed).permutation(3)
            chosen = pgcgm.near_set(crystal, np.random.default_rng(seed))

            def far(atoms: np.ndarray, point: np.ndarray) -> np.ndarray:
                step = atoms - point
                return np.linalg.norm((step - np.rint(step)) @ crystal.lattice, axis=1)

            nearest = far(crystal.atoms[first[1]], chosen[first[0]]).min()
            assert far(chosen[first[1]][None], chosen[first[0]])[0] == pytest.approx(nearest)

    def test_distances_and_their_loss_on_a_hand_made_set(self) -> None:
        one = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0.9, 0, 0]])
        other = torch.tensor([[0.1, 0, 0], [0.5, 0.5, 0], [0.9, 0, 0]])
        sites = torch.stack([one, other, one])[None]
        within, between = pgcgm.set_distances(sites, 10.0 * torch.eye(3)[None])
        np.testing.assert_allclose(within[0, 0], [5, 1, 4], atol=1e-3)
        np.testing.assert_allclose(between[0], [[1, 0, 1], [5, 0, 5], [0, 0, 0]], atol=1e-3)
        numbers = torch.tensor([[11, 17, 8]])
        radius = dict(zip([11, 17, 8], pgcgm._radii()[numbers[0]].tolist(), strict=True))
        sums = [radius[11] + radius[17], radius[11] + radius[8], radius[17] + radius[8]]
        wanted = 0.0
        for row in within[0].tolist():
            for d, s in zip(row, sums, strict=True):
                wanted += max(0.7 * s - d, 0) ** 2 / 9 + max(d - 1.6 * s, 0) ** 2 / 9
        found = pgcgm.distance_loss(within, 0 * between, numbers)
        assert wanted > 0.1
        assert float(found) == pytest.approx(wanted, rel=1e-4)

    def test_losses_of_coordinates_know_one_crystal(self, perovskite: PackedDataset) -> None:
        crystals = pgcgm.ternaries(perovskite)
        rng = np.random.default_rng(12)
        sets = [[pgcgm.near_set(c, rng) for _ in range(3)] for c in crystals]
        group = torch.tensor([c.group for c in crystals])
        same, _ = pgcgm.coordinate_losses(torch.as_tensor(np.array(sets)).float(), group)
        other, _ = pgcgm.coordinate_losses(torch.rand(len(crystals), 3, 3, 3), group)
        assert float(same) < 1e-3
        assert float(other) > 0.03

    def test_fit_and_sample(self, perovskite: PackedDataset, tmp_path: Path) -> None:
        run_ = pgcgm.PgcgmFit(perovskite, pgcgm.PgcgmRecipe(epochs=3, width=16), tmp_path)
        assert np.isfinite([row.losses for row in run_.run()]).all()
        generator = load_generator("pgcgm", tmp_path / WEIGHTS)
        request = lx.Request(62, elements=["Sr", "Ti", "O"])
        outcome = generator.outcomes([request] * 12, seed=1)
        assert outcome.candidates
        for candidate in outcome.candidates:
            assert set(candidate.request.elements) == {"Sr", "Ti", "O"}
            atoms = candidate.numbers[candidate.atom_site]
            found = group_numbers((candidate.lattice, candidate.atom_frac, atoms))
            assert SpaceGroup(found[1e-2]).order % SpaceGroup(62).order == 0
        assert len(pgcgm.prototypes(outcome.candidates)) == len(outcome.candidates)

    @pytest.mark.parametrize(
        ("request_", "why"),
        [
            (lx.Request(62, elements=["Ti", "O"]), "got 2 elements"),
            (lx.Request(2, elements=["Sr", "Ti", "O"]), "does not know group P-1"),
            (lx.Request(elements=["Sr", "Ti", "O"]), "needs a space group"),
            (lx.Request(221, formula="SrTiO3"), "takes no composition"),
        ],
    )
    def test_refuses(self, request_: lx.Request, why: str) -> None:
        config = pgcgm.PgcgmConfig(8, 4, 1.6, 0.3)
        with pytest.raises(RequestError, match=why) as error:
            pgcgm.Pgcgm(pgcgm.SiteMaker(config)).sample([request_])
        assert "three elements and one of the space groups 62" in str(error.value)


class TestDensity:
    SALT = np.eye(3) * 5.64, np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0],
                                       [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [0.5, 0.5, 0.5]]), (
        np.array([11] * 4 + [17] * 4))  # fmt: skip

    @pytest.mark.parametrize("number", [1, 8, 14, 26, 55])
    def test_a_free_atom_has_its_electrons(self, number: int) -> None:
        r = np.linspace(0, 12, 6001)
        radial = 4 * np.pi * r**2 * density.atom_density(number, r)
        assert np.trapezoid(radial, r) == pytest.approx(number, rel=5e-3)

    def test_the_grid_of_a_cell_has_the_electrons_of_its_atoms(self) -> None:
        grid = density.grid_density(self.SALT, (20, 20, 20))
        assert grid.mean() * 5.64**3 == pytest.approx(4 * (11 + 17), rel=0.02)

    def test_images_are_all_images(self) -> None:
        rng = np.random.default_rng(13)
        lattice = np.diag([3.0, 4.0, 5.0]) + rng.normal(0, 0.7, (3, 3))
        cell = lattice, rng.random((3, 3)), np.array([8, 22, 38])
        centre = rng.uniform(-9, 9, 3)
        places, kinds = density.images_within(cell, centre, 7.0)
        shifts = np.stack(np.meshgrid(*[np.arange(-9, 10)] * 3), -1).reshape(-1, 3)
        every = ((cell[1][:, None] + shifts) @ lattice).reshape(-1, 3)
        near = np.linalg.norm(every - centre, axis=1) < 7.0
        assert len(places) == near.sum() > 20
        wanted = np.repeat(cell[2], len(shifts))[near]
        assert sorted(kinds.tolist()) == sorted(wanted.tolist())

    def test_a_slice_is_the_density_on_its_points(self) -> None:
        rng = np.random.default_rng(13)
        lattice = np.diag([4.1, 5.2, 6.3]) + rng.normal(0, 0.4, (3, 3))
        cell = lattice, rng.random((4, 3)), np.array([8, 22, 38, 82])
        centre, axes = density.random_plane(cell, rng)
        along = density.pixel_places(8.0, 16)
        points = centre + along[:, None, None] * axes[0] + along[None, :, None] * axes[1]
        wanted = density.density_at(cell, points.reshape(-1, 3)).reshape(16, 16)
        assert wanted.max() > 1
        found = density.plane_slice(cell, centre, axes, 8.0, 16)
        assert np.abs(found - wanted).max() < 5e-3  # tails beyond the cut-off

    def test_atoms_are_found_back_from_a_slice(self) -> None:
        centre, axes = np.full(3, [0.3, -0.2, 0.0]), np.array([[1.0, 0, 0], [0, 1.0, 0]])
        picture = density.plane_slice(self.SALT, centre, axes, 9.6, 32)
        found = density.atoms_in_slice(picture, 9.6, 3.0)
        places, _ = density.images_within(self.SALT, centre, 8.0)
        there = places[np.abs(places[:, 2]) < 0.1][:, :2] - centre[:2]
        inside = there[np.abs(there).max(axis=1) < 4.4]
        assert len(found) >= len(inside) >= 9
        apart = np.linalg.norm(found[:, None] - inside, axis=2)
        assert apart.min(axis=0).max() < 0.05
        assert np.linalg.norm(found[:, None] - there, axis=2).min(axis=1).max() < 0.05

    def test_atoms_are_found_back_from_the_slices_of_a_chgcar(self, tmp_path: Path) -> None:
        from pymatgen.core import Lattice, Structure
        from pymatgen.io.vasp.inputs import Poscar
        from pymatgen.io.vasp.outputs import Chgcar

        rng = np.random.default_rng(14)
        lattice = np.diag([4.1, 5.2, 6.3]) + rng.normal(0, 0.2, (3, 3))
        frac = np.array([[0.03, 0.1, 0.98], [0.52, 0.61, 0.47]])
        cell = lattice, frac, np.array([22, 8])
        grid = density.grid_density(cell, (24, 30, 36))
        structure = Structure(Lattice(lattice), ["Ti", "O"], frac)
        volume = structure.volume
        Chgcar(Poscar(structure), {"total": grid * volume}).write_file(tmp_path / "CHGCAR")
        read, rows = density.read_density(tmp_path / "CHGCAR")
        np.testing.assert_allclose(rows, lattice, atol=1e-5)
        np.testing.assert_allclose(read, grid, rtol=1e-5, atol=1e-8)
        found = density.atoms_in_grid(read, 3.0)
        assert len(found) == 2
        apart = found[:, None] - frac
        apart = np.linalg.norm((apart - np.rint(apart)) @ lattice, axis=2)
        assert apart.min(axis=0).max() < 0.05
        (tmp_path / "POSCAR").write_text("nothing\n")
        with pytest.raises(InputError, match="no CHGCAR"):
            density.read_density(tmp_path / "POSCAR")

    def test_planes_go_through_atoms(self, crystals: PackedDataset) -> None:
        rng = np.random.default_rng(15)
        for cell in primitive_cells(crystals, 10)[0][::7]:
            centre, axes = density.random_plane(cell, rng)
            np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-12)
            places, _ = density.images_within(cell, centre, 6.5)
            normal = np.cross(*axes)
            inside = places[np.abs((places - centre) @ normal) < 1e-6]
            assert np.linalg.matrix_rank(inside - centre, tol=1e-3) == 2

    def test_a_generator_of_slices_gives_pictures_and_no_crystals(
        self, crystals: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("diffusers")
        monkeypatch.setattr(picture_diffusion, "SAMPLING_STEPS", 3)
        few = crystals.select(np.flatnonzero(crystals.atom_counts <= 4)[:8])
        recipe = density_slices.DensitySlicesRecipe(epochs=1, width=8, batch_size=4)
        run_ = density_slices.DensitySlicesFit(few, recipe, tmp_path)
        real = [density_slices.random_slice(c, np.random.default_rng(0)) for c in run_.cells]
        assert (density_slices.atoms_counted(real) > 0).all()
        assert 0.0 <= np.min(real) < np.max(real) < 1.0
        list(run_.run())
        generator = load_generator("density-slices", tmp_path / WEIGHTS)
        assert isinstance(generator, density_slices.DensitySlices)
        assert generator.slices(3).shape == (3, 32, 32)
        with pytest.raises(RequestError, match="no crystal follows"):
            generator.sample([lx.Request()])

    def test_counts_that_are_alike_and_not(self) -> None:
        counts_ = np.array([1, 2, 3, 4])
        assert density_slices.counts_apart(counts_, counts_) == (0.0, 1.0)
        statistic, _ = density_slices.counts_apart(counts_, counts_ + 2)
        assert statistic == pytest.approx(0.5)


class TestInterface:
    def test_unknown_names_and_foreign_weights(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="gemsdiff"):
            generator_class("cdvae")
        with pytest.raises(CheckpointError, match="does not exist"):
            load_generator("gemsdiff", tmp_path / "none")
        with pytest.raises(CheckpointError, match="format"):
            load_generator("gemsdiff", Path(lx.__file__).parent / "weights/small.safetensors")

    def test_a_cell_without_symmetry_becomes_a_candidate_of_the_group_found(
        self, crystals: PackedDataset
    ) -> None:
        cells, places = primitive_cells(crystals, 20)
        request = lx.Request()
        for cell, place in list(zip(cells, places, strict=True))[::6]:
            made = candidate_of(cell, request, seed=0, index=0)
            assert isinstance(made, Candidate)
            assert made.space_group.number == crystals.group[place]
            assert made.detected[1e-2] == crystals.group[place]
            assert len(made.atom_site) == crystals.atom_counts[place]

    def test_a_cell_that_is_none_is_rejected_with_a_reason(self) -> None:
        both = np.zeros((2, 3)), np.array([8, 8])
        made = candidate_of((np.eye(3) * 4, *both), lx.Request(), seed=0, index=0)
        assert not isinstance(made, Candidate)
        assert "closer than 0.5" in made.reason
        made = candidate_of((np.eye(3) * np.nan, *both), lx.Request(), seed=0, index=0)
        assert not isinstance(made, Candidate)
        assert "not finite" in made.reason


class TestCommands:
    @pytest.fixture(scope="class")
    def folder(
        self, crystals: PackedDataset, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, Path]:
        """A fitted generator's weights, and small crystals to compare with."""
        folder = tmp_path_factory.mktemp("generators")
        few = crystals.select(np.flatnonzero(crystals.atom_counts <= 8)[:6])
        few.save(folder / "few.lxd")
        done = run(
            "train", "--generator", "gemsdiff", "--data", folder / "few.lxd", "--epochs", 1,
            "--out", folder / "fit",
        )  # fmt: skip
        assert "1 epochs; weights in" in done
        return folder / "fit" / WEIGHTS, folder / "few.lxd"

    def test_sample(self, folder: tuple[Path, Path], tmp_path: Path) -> None:
        given = ["sample", "--generator", "gemsdiff", "--weights", folder[0], "--formula", "NaCl",
                 "--out", tmp_path / "out"]  # fmt: skip
        assert "3 candidates in" in run(*given, "--n", 3).replace("3 of 3", "3")
        first = (tmp_path / "out/candidates.csv").read_text()
        assert len(list((tmp_path / "out").glob("*.cif"))) == 3
        run(*given, "--n", 4)
        assert (tmp_path / "out/candidates.csv").read_text().startswith(first.strip())

    def test_evaluate(self, folder: tuple[Path, Path], tmp_path: Path) -> None:
        text = run(
            "evaluate", "--generator", "gemsdiff", "--weights", folder[0], "--reference",
            folder[1], "--training", folder[1], "--fingerprints", "none", "--controls",
            "training", "--workers", 1, "--cache", tmp_path / "cache", "--out", tmp_path / "out",
        )  # fmt: skip
        assert "gemsdiff" in text
        assert "match" in text
        assert (
            "Generator gemsdiff serves a formula" in (tmp_path / "out/evaluation.json").read_text()
        )

    @pytest.mark.parametrize(
        ("given", "why"),
        [
            (["--elements", "Ti,O"], "needs a composition"),
            (["--formula", "TiO2", "--sg", "136"], "takes no space group"),
            (["--formula", "TiO2", "--levels", "10"], "--levels does not go with --generator"),
            ([], "give one of --formula"),
        ],
    )
    def test_refused_in_one_sentence(
        self, folder: tuple[Path, Path], tmp_path: Path, given: list[str], why: str
    ) -> None:
        text = run(
            "sample", "--generator", "gemsdiff", "--weights", folder[0], "--out", tmp_path / "no",
            *given, code=2,
        )  # fmt: skip
        assert why in text
        assert not (tmp_path / "no").exists()

    def test_options_that_belong_together(self, folder: tuple[Path, Path]) -> None:
        assert "needs --weights" in run("sample", "--generator", "gemsdiff", "--formula", "TiO2",
                                        code=2)  # fmt: skip
        assert "--weights needs --generator" in run("sample", "--formula", "TiO2", "--weights",
                                                    folder[0], code=2)  # fmt: skip
        assert "--epochs needs --generator" in run("train", "--epochs", 2, code=2)
        assert "--mode formula does not go" in run(
            "evaluate", "--generator", "gemsdiff", "--weights", folder[0], "--mode", "formula",
            "--reference", folder[1], code=2,
        )  # fmt: skip


def run(*given: object, code: int = 0) -> str:
    """What a command prints, both streams together."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        ended = run_command([str(each) for each in given])
    assert ended == code, out.getvalue()
    return out.getvalue()
