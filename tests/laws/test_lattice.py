"""Lattice coordinates: maps and their inverses, closed-form gradients, the two estimates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice
from torch import Tensor

from langevin_xtal.crystal.request import cell_coordinates
from langevin_xtal.diffusion.noising import Crystals, moved_lattice
from langevin_xtal.errors import LatticeError, SymmetryError
from langevin_xtal.graph.batch import GraphBatch, make_batch
from langevin_xtal.graph.contract import CrystalArrays, GraphSettings
from langevin_xtal.model import scores
from langevin_xtal.model.network import edge_weight
from langevin_xtal.model.scores import (
    TANGENT_ROW,
    angle_cosine_sine,
    cell_frame,
    cell_length,
    lattice_noise,
    length_gradients,
    length_slope,
)
from langevin_xtal.symmetry import (
    SpaceGroup,
    cell_directions,
    coordinate_from_length,
    has_fixed_angles,
    lattice_coordinates,
    lattice_driver,
    lattice_freedom,
    length_from_coordinate,
)
from langevin_xtal.symmetry.lattice import coordinate_from_cosine, fixed_coordinates
from tests.crystals import random_crystal, random_lattice

SETTINGS = GraphSettings(cutoff=4.5, k_min=12, k_max=24)
GROUPS = [
    *(1, 2, 3, 5, 9, 14, 15),
    *(16, 19, 43, 62, 74, 75, 99, 122, 139, 143, 146, 155, 166, 168, 180, 194, 195, 205, 227),
]
"""Every crystal system, primitive and centred."""

NOT_CUBIC = [n for n in GROUPS if n < 195]

FREE = {
    "triclinic": [0, 1, 2, 3, 4, 5],
    "monoclinic": [0, 1, 2, 4],
    "orthorhombic": [0, 1, 2],
    "tetragonal": [0, 2],
    "trigonal": [0, 2],
    "hexagonal": [0, 2],
    "cubic": [0],
}
"""Free coordinates of each crystal system, of ℓ_a, ℓ_b, ℓ_c, u_γ, u_β, u_ω (unique axis b)."""

ANGLES = st.floats(-25.0, 25.0)  # 9 to 171 degrees
LENGTHS = st.floats(-15.0, 60.0)  # 2 to 60 Å


@given(st.floats(0.3, 80.0))
def test_length_coordinate_length(length):
    coordinate = coordinate_from_length(np.array(length))
    assert length_from_coordinate(coordinate) == pytest.approx(length, rel=1e-13)
    torch_length = cell_length(torch.from_numpy(np.array(coordinate)))
    assert float(torch_length) == pytest.approx(length, rel=1e-13)


@given(st.floats(-35.0, 80.0))
def test_coordinate_length_coordinate(coordinate):
    length = length_from_coordinate(np.array(coordinate))
    assert length > 0
    assert coordinate_from_length(length) == pytest.approx(coordinate, rel=1e-12, abs=1e-12)


@given(st.floats(-500.0, 500.0))
def test_lengths_are_positive_and_grow(coordinate):
    x = torch.tensor([coordinate, coordinate + 1e-3], dtype=torch.float64)
    low, high = cell_length(x).tolist()
    assert 0 < low < high
    assert low >= coordinate  # softplus lies above its asymptotes
    assert low == pytest.approx(float(length_from_coordinate(np.array(coordinate))), rel=1e-12)


@given(st.floats(-60.0, 80.0))
def test_slope(coordinate):
    x = torch.tensor(coordinate, dtype=torch.float64)
    h = 1e-4
    numeric = (cell_length(x + h) - cell_length(x - h)) / (2 * h)
    assert float(length_slope(x)) == pytest.approx(float(numeric), rel=1e-6, abs=1e-9)
    assert 0 < length_slope(x) < 1


@given(st.floats(1.0, 179.0))
def test_angles_and_their_coordinates(degrees):
    """cos θ = −tanh(u/10): right angles are at 0, and blunt ones have large coordinates."""
    angle = np.radians(degrees)
    u = coordinate_from_cosine(np.cos(angle))
    assert u == pytest.approx(10 * np.log(np.tan(angle / 2)), abs=1e-9)
    cosine, sine = angle_cosine_sine(torch.tensor([u], dtype=torch.float64))
    assert float(cosine) == pytest.approx(np.cos(angle), abs=1e-12)
    assert float(sine) == pytest.approx(np.sin(angle), abs=1e-12)
    assert (u > 0) == (degrees > 90) or u == pytest.approx(0, abs=1e-9)


@given(st.floats(-300.0, 300.0))
def test_any_number_is_an_angle(u):
    cosine, sine = angle_cosine_sine(torch.tensor([u], dtype=torch.float64))
    assert float(sine) > 0
    assert float(cosine**2 + sine**2) == pytest.approx(1.0, abs=1e-12)


@given(st.tuples(*[LENGTHS] * 3, *[ANGLES] * 3))
def test_cells_against_pymatgen(values):
    """Lengths, angles and volume of a cell built from six numbers, whatever these are."""
    coordinates = np.array(values)
    rows = cell_frame(torch.from_numpy(coordinates)[None]).rows[0].numpy()
    lengths = length_from_coordinate(coordinates[:3])
    gamma, beta, omega = np.arccos(-np.tanh(coordinates[3:] / 10))
    # spherical law of cosines for the edge a, where the planes of a, b and of a, c meet
    alpha = np.arccos(np.cos(beta) * np.cos(gamma) + np.sin(beta) * np.sin(gamma) * np.cos(omega))
    wanted = Lattice.from_parameters(*lengths, *np.degrees([alpha, beta, gamma]))
    assert np.linalg.det(rows) > 0
    np.testing.assert_allclose(
        rows @ rows.T, wanted.matrix @ wanted.matrix.T, rtol=1e-7, atol=1e-5
    )
    assert Lattice(rows).abc == pytest.approx(lengths, rel=1e-10)
    assert Lattice(rows).volume == pytest.approx(wanted.volume, rel=1e-6)
    assert (rows[0, 1:] == 0).all()
    assert rows[1, 2] == 0


@given(st.tuples(*[st.floats(-300.0, 300.0)] * 6))
def test_the_volume_is_positive_for_any_numbers(values):
    frame = cell_frame(torch.tensor([values], dtype=torch.float64))
    a, b, c = frame.rows[0]
    assert float(a[0] * b[1] * c[2]) > 0  # the determinant: rows are a lower triangle
    assert frame.rows.isfinite().all()
    assert frame.tangent.isfinite().all()


@given(st.tuples(*[LENGTHS] * 3, *[ANGLES] * 3))
def test_coordinates_come_back(values):
    coordinates = np.array(values)
    rows = cell_frame(torch.from_numpy(coordinates)[None]).rows.numpy()
    np.testing.assert_allclose(lattice_coordinates(rows)[0], coordinates, rtol=0, atol=1e-7)


@given(st.integers(1, 230), st.integers(0, 10**6))
@settings(max_examples=60)
def test_cells_come_back_from_any_frame(number, seed):
    """Of any orientation, a stack of them at once, up to that orientation."""
    rng = np.random.default_rng(seed)
    lattice = np.stack([random_lattice(number, rng, v) for v in (60.0, 900.0)])
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    coordinates = lattice_coordinates(lattice @ turn)
    np.testing.assert_allclose(coordinates, lattice_coordinates(lattice), atol=1e-9)
    rows = cell_frame(torch.from_numpy(coordinates)).rows.numpy()
    np.testing.assert_allclose(rows, lattice, rtol=0, atol=1e-9)


@given(st.tuples(*[st.floats(2.0, 30.0)] * 3), st.tuples(*[st.floats(60.0, 115.0)] * 3))
def test_cells_given_by_lengths_and_angles(lengths, angles):
    wanted = Lattice.from_parameters(*lengths, *angles)
    coordinates = torch.from_numpy(cell_coordinates((*lengths, *angles)))
    rows = Lattice(cell_frame(coordinates[None]).rows[0].numpy())
    assert rows.abc == pytest.approx(lengths, rel=1e-10)
    assert rows.angles == pytest.approx(angles, abs=1e-7)
    assert rows.volume == pytest.approx(wanted.volume, rel=1e-9)


@given(st.tuples(*[LENGTHS] * 3, *[ANGLES] * 3))
def test_tangents_are_finite_differences(values):
    coordinates = torch.tensor([values], dtype=torch.float64)
    tangent = cell_frame(coordinates).tangent[0]
    h = 1e-4
    for k in range(6):
        step = torch.zeros(1, 6, dtype=torch.float64)
        step[0, k] = h
        up, down = cell_frame(coordinates + step).rows, cell_frame(coordinates - step).rows
        expected = torch.zeros(3, 3, dtype=torch.float64)
        expected[TANGENT_ROW[k]] = tangent[k]
        torch.testing.assert_close((up - down)[0] / (2 * h), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("number", range(1, 231))
def test_degrees_of_freedom(number):
    system = SpaceGroup(number).crystal_system
    free, driver = lattice_freedom(number), lattice_driver(number)
    assert np.flatnonzero(free).tolist() == FREE[system]
    same = {"cubic": [0, 0, 0], "tetragonal": [0, 0, 2], "trigonal": [0, 0, 2]}
    same |= {"hexagonal": [0, 0, 2]}
    assert driver.tolist() == [*same.get(system, [0, 1, 2]), 3, 4, 5]
    assert has_fixed_angles(number) == (system not in ("triclinic", "monoclinic"))
    fixed = fixed_coordinates(number)
    assert (fixed[:3] == 0).all()
    gamma = 120.0 if system in ("trigonal", "hexagonal") else 90.0
    assert cell_coordinates((1, 1, 1, 90, 90, gamma))[3:] == pytest.approx(fixed[3:], abs=1e-9)


@pytest.mark.parametrize("number", range(1, 231))
def test_a_step_of_the_free_coordinates_keeps_the_group(number):
    """Its operations stay isometries of the cell, and all degrees of freedom are used."""
    rng = np.random.default_rng(number)
    lattice = random_lattice(number, rng, 200.0)
    crystals = lattices_of(number, lattice)
    step = torch.from_numpy(rng.normal(size=(1, 6)))
    moved = moved_lattice(crystals, step)
    free = lattice_freedom(number)
    change = (moved - crystals.coordinates)[0].numpy()
    np.testing.assert_allclose(change[free], step[0, free], rtol=0, atol=1e-12)
    rows = cell_frame(moved).rows[0].numpy()
    w = SpaceGroup(number).rotations
    metric = rows @ rows.T
    turned = np.swapaxes(w, 1, 2) @ metric @ w
    np.testing.assert_allclose(turned, np.broadcast_to(metric, turned.shape), atol=1e-9)
    # symmetric matrices that all operations keep
    kept = np.mean([np.kron(r.T, r.T) for r in w], axis=0)
    swap = np.eye(9)[np.arange(9).reshape(3, 3).T.ravel()]
    assert np.trace(kept @ (np.eye(9) + swap) / 2) == pytest.approx(free.sum())


def lattices_of(number: int, lattice: np.ndarray) -> Crystals:
    """A crystal without sites."""
    none = torch.zeros(0, dtype=torch.int64)
    return Crystals(
        numbers=none,
        frac=torch.zeros(0, 3, dtype=torch.float64),
        site_start=torch.zeros(2, dtype=torch.int64),
        coordinates=torch.from_numpy(lattice_coordinates(lattice))[None],
        driver=torch.from_numpy(lattice_driver(number))[None],
        free=torch.from_numpy(lattice_freedom(number))[None],
        op_start=none,
        op_count=none,
    )


@pytest.mark.parametrize("number", [0, 231, -1])
def test_no_such_group(number):
    with pytest.raises(SymmetryError, match="does not exist"):
        lattice_driver(number)
    with pytest.raises(SymmetryError, match="does not exist"):
        lattice_freedom(number)


def test_directions_need_fixed_angles():
    with pytest.raises(LatticeError, match="monoclinic: its cell angles"):
        cell_directions(14)


class Example:
    """A crystal of a group with its graph and lattice coordinates, float64."""

    def __init__(self, number: int, seed: int = 1) -> None:
        self.crystal = random_crystal(number, 2, seed)
        self.graph = graph_of(self.crystal)
        self.coordinates = torch.from_numpy(lattice_coordinates(self.crystal.lattice))
        self.driver = torch.from_numpy(lattice_driver(number))[None]
        self.free = torch.from_numpy(lattice_freedom(number))[None]
        self.own = torch.nonzero(self.free[0]).squeeze(1)

    def lattice(self, change: Tensor) -> Tensor:
        """(1, 3, 3) rows where the free coordinates change by this (6,)."""
        return cell_frame(self.coordinates + change[self.driver]).rows

    @property
    def gradient(self) -> Tensor:
        return length_gradients(self.graph, self.coordinates, self.driver)

    def change(self, seed: int = 0) -> Tensor:
        """(6,) standard normal for the free coordinates."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(6, generator=generator, dtype=torch.float64) * self.free[0]

    def output(self, lengths: Tensor, weight: Tensor) -> Tensor:
        """(E, 2) edge outputs that say: the lengths of the edges change by this (E,)."""
        ends = self.coordinates[:, :3]
        strain = (length_slope(ends) / cell_length(ends)).mean()
        second = lengths / (self.graph.dist.clamp(min=1e-3) * strain)
        return torch.stack([torch.zeros_like(second), second * weight], dim=1)

    def linear(self, change: Tensor, weight: Tensor) -> Tensor:
        """(E, 2) for a change of the coordinates (6,), to first order."""
        return self.output(self.gradient @ change, weight)

    def estimate(self, output: Tensor, estimate: scores.LatticeEstimate) -> Tensor:
        return lattice_noise(
            self.graph, output, self.coordinates, self.driver, self.free, estimate
        )[0]


def graph_of(crystal: CrystalArrays) -> GraphBatch:
    numbers = torch.full((len(crystal.frac),), 14)
    return make_batch(numbers, crystal, SETTINGS, dtype=torch.float64)


@pytest.mark.parametrize("number", GROUPS)
def test_the_frame_of_the_tests_is_that_of_cells(number):
    example = Example(number)
    lattice = example.lattice(torch.zeros(6, dtype=torch.float64))
    expected = torch.from_numpy(example.crystal.lattice)
    torch.testing.assert_close(lattice, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("number", GROUPS)
def test_fractional_edges(number):
    example = Example(number)
    vec = example.graph.frac @ torch.from_numpy(example.crystal.lattice[0])
    torch.testing.assert_close(vec, example.graph.vec, rtol=0, atol=1e-10)


@pytest.mark.parametrize("number", GROUPS)
def test_length_gradients_are_finite_differences(number):
    """Edge vectors keep their fractional coordinates as the lattice changes."""
    example = Example(number)
    frac = example.graph.vec @ torch.linalg.inv(torch.from_numpy(example.crystal.lattice[0]))
    h = 1e-4
    gradient = example.gradient
    assert gradient.shape == (len(frac), 6)
    for k in example.own.tolist():
        step = torch.zeros(6, dtype=torch.float64)
        step[k] = h
        up, down = ((frac @ example.lattice(s)[0]).norm(dim=1) for s in (step, -step))
        numeric = (up - down) / (2 * h)
        torch.testing.assert_close(gradient[:, k], numeric, rtol=0, atol=1e-8)
        assert numeric.abs().max() > 0.1


@pytest.mark.parametrize("number", GROUPS)
def test_least_squares_recovers_a_deformation(number, monkeypatch):
    """Exactly without the ridge; with it, less by what the ridge takes, never more."""
    example = Example(number)
    for seed in range(3):
        change = example.change(seed)
        output = example.linear(change, edge_weight(example.graph))
        with monkeypatch.context() as patch:
            patch.setattr(scores, "RIDGE", 1e-14)
            exact = example.estimate(output, "least_squares")
        torch.testing.assert_close(exact, change, rtol=0, atol=1e-8)
        found = example.estimate(output, "least_squares")
        assert (found[~example.free[0]] == 0).all()
        assert 0 < (found - change).norm() < 0.5 * change.norm()
        assert found @ change < change @ change


@pytest.mark.parametrize("number", GROUPS)
def test_least_squares_recovers_a_strained_cell(number, monkeypatch):
    """Lengths of edges measured in the cell before and after a small change of one coordinate."""
    monkeypatch.setattr(scores, "RIDGE", 1e-14)
    example = Example(number, seed=3)
    weight = edge_weight(example.graph)
    for k in example.own.tolist():
        change = torch.zeros(6, dtype=torch.float64)
        change[k] = 1e-3
        strained = (example.graph.frac @ example.lattice(change)[0]).norm(dim=1)
        output = example.output(strained - example.graph.dist, weight)
        found = example.estimate(output, "least_squares")
        torch.testing.assert_close(found, change, rtol=0, atol=2e-6)


@pytest.mark.parametrize("number", GROUPS)
def test_least_squares_weighs_edges_by_the_envelope(number):
    """The normal equations written out: envelope and multiplicity of the source."""
    example = Example(number, seed=2)
    g, own = example.graph, example.own
    output = torch.randn(len(g.dist), 2, dtype=torch.float64) * edge_weight(g).unsqueeze(1)
    ends = example.coordinates[:, :3]
    strain = (length_slope(ends) / cell_length(ends)).mean()
    count = g.multiplicity[g.source]
    gradient = example.gradient[:, own].numpy()
    left = np.einsum("e,ei,ej->ij", (edge_weight(g) * count).numpy(), gradient, gradient)
    right = (output[:, 1] * g.dist * strain * count).numpy() @ gradient
    expected = np.linalg.solve(left + scores.RIDGE * np.trace(left) * np.eye(len(own)), right)
    found = example.estimate(output, "least_squares")[own]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("number", NOT_CUBIC)
def test_mean_is_biased_low(number):
    """The mean of minimum-norm solutions loses part of any deformation with a choice."""
    example = Example(number)
    for seed in range(3):
        change = example.change(seed)
        found = example.estimate(example.linear(change, torch.ones(())), "mean")
        share = found @ change / (change @ change)
        assert 0 < share < 0.95
        assert found.norm() < change.norm()
        assert (found[~example.free[0]] == 0).all()


@pytest.mark.parametrize("number", [195, 205, 227])
def test_mean_is_exact_for_one_length(number):
    example = Example(number)
    change = example.change()
    found = example.estimate(example.linear(change, torch.ones(())), "mean")
    torch.testing.assert_close(found, change, rtol=0, atol=1e-12)


@pytest.mark.parametrize("number", GROUPS)
@pytest.mark.parametrize("estimate", ["least_squares", "mean"])
def test_only_free_coordinates_move(number, estimate):
    """Also where fewer are free than symmetry allows: a cell held fixed has no noise."""
    example = Example(number)
    torch.manual_seed(number)
    output = torch.randn(len(example.graph.dist), 2, dtype=torch.float64)
    found = example.estimate(output, estimate)
    assert (found[~example.free[0]] == 0).all()
    assert (found[example.free[0]] != 0).all()
    example.free = torch.zeros_like(example.free)
    assert (example.estimate(output, estimate) == 0).all()


@pytest.mark.parametrize("estimate", ["least_squares", "mean"])
def test_collapsed_and_empty_graphs_are_finite(estimate):
    """One atom in a flat layer: no edge feels c beyond its own images; nothing divides by zero."""
    lattice = np.diag([3.0, 3.0, 60.0])[None]
    crystal = CrystalArrays.of_groups(lattice, np.zeros((1, 3)), np.array([0, 1]), np.array([123]))
    layer = GraphSettings(cutoff=3.5, k_min=0, k_max=24)
    g = make_batch(torch.tensor([6]), crystal, layer, dtype=torch.float64)
    coordinates = torch.from_numpy(lattice_coordinates(lattice))
    driver = torch.from_numpy(lattice_driver(123))[None]
    free = torch.from_numpy(lattice_freedom(123))[None]
    output = torch.ones(len(g.dist), 2, dtype=torch.float64)
    found = lattice_noise(g, output, coordinates, driver, free, estimate)[0]
    assert found.isfinite().all()
    assert found[0] > 0
    assert (found[1:] == 0).all()
