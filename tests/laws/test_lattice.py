"""Lattice coordinates: φ and its inverse, closed-form gradients, the two lattice estimates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from langevin_xtal.diffusion.noising import free_coordinates, lattice_of
from langevin_xtal.errors import LatticeError, SymmetryError
from langevin_xtal.graph.batch import GraphBatch, make_batch
from langevin_xtal.graph.contract import CrystalArrays, GraphSettings
from langevin_xtal.model import scores
from langevin_xtal.model.network import edge_weight
from langevin_xtal.model.scores import cell_length, lattice_noise, length_gradients, length_slope
from langevin_xtal.symmetry import (
    SpaceGroup,
    axis_coordinate,
    cell_directions,
    cell_lengths,
    coordinate_from_length,
    free_lengths,
    has_fixed_angles,
    length_from_coordinate,
)
from tests.crystals import random_crystal

SETTINGS = GraphSettings(cutoff=4.5, k_min=12, k_max=24)
GROUPS = [16, 19, 43, 62, 74, 75, 99, 122, 139, 143, 146, 155, 166, 168, 180, 194, 195, 205, 227]
"""Every crystal system with fixed angles, primitive and centred."""

NOT_CUBIC = [n for n in GROUPS if n < 195]


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


@pytest.mark.parametrize("number", range(1, 231))
def test_free_lengths(number):
    system = SpaceGroup(number).crystal_system
    expected = {"cubic": [0, 0, 0], "tetragonal": [0, 0, 1], "trigonal": [0, 0, 1]}
    expected |= {"hexagonal": [0, 0, 1]}
    axis = axis_coordinate(number)
    assert axis.tolist() == expected.get(system, [0, 1, 2])
    free = {"cubic": 1, "tetragonal": 2, "trigonal": 2, "hexagonal": 2}.get(system, 3)
    assert free_lengths(number) == free
    assert has_fixed_angles(number) == (system not in ("triclinic", "monoclinic"))
    used = free_coordinates(torch.from_numpy(axis)[None])[0]
    assert used.tolist() == [True] * free + [False] * (3 - free)


@pytest.mark.parametrize("number", [0, 231, -1])
def test_no_such_group(number):
    with pytest.raises(SymmetryError, match="does not exist"):
        axis_coordinate(number)


def test_directions_need_fixed_angles():
    with pytest.raises(LatticeError, match="monoclinic: its cell angles"):
        cell_directions(14)


class Example:
    """A crystal of a group with its graph and lattice coordinates, float64."""

    def __init__(self, number: int, seed: int = 1) -> None:
        self.crystal = random_crystal(number, 2, seed)
        self.graph = graph_of(self.crystal)
        lengths = cell_lengths(self.crystal.lattice)
        self.coordinates = torch.from_numpy(coordinate_from_length(lengths))
        self.axis = torch.from_numpy(axis_coordinate(number))[None]
        self.directions = torch.from_numpy(cell_directions(number))[None]
        self.free = free_lengths(number)

    def lattice(self, change: Tensor) -> Tensor:
        """(1, 3, 3) rows where the free coordinates (3,) change by this."""
        return lattice_of(self.coordinates + change[self.axis], self.directions)

    @property
    def gradient(self) -> Tensor:
        return length_gradients(self.graph, self.coordinates, self.axis)

    def output(self, change: Tensor, weight: Tensor) -> Tensor:
        """(E, 2) edge outputs that say: lengths change as when the coordinates change so."""
        strain = (length_slope(self.coordinates) / cell_length(self.coordinates)).mean()
        second = self.gradient @ change / (self.graph.dist.clamp(min=1e-3) * strain)
        return torch.stack([torch.zeros_like(second), second * weight], dim=1)

    def estimate(self, output: Tensor, estimate: scores.LatticeEstimate) -> Tensor:
        return lattice_noise(self.graph, output, self.coordinates, self.axis, estimate)[0]


def graph_of(crystal: CrystalArrays) -> GraphBatch:
    numbers = torch.full((len(crystal.frac),), 14)
    return make_batch(numbers, crystal, SETTINGS, dtype=torch.float64)


def small_change(free: int, seed: int = 0) -> Tensor:
    change = torch.zeros(3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    change[:free] = torch.randn(free, generator=generator, dtype=torch.float64)
    return change


@pytest.mark.parametrize("number", GROUPS)
def test_lattice_of_gives_the_cell_back(number):
    """Up to the choice of frame, which is that of the directions."""
    example = Example(number)
    lattice = example.lattice(torch.zeros(3, dtype=torch.float64))
    expected = torch.from_numpy(example.crystal.lattice)
    torch.testing.assert_close(lattice, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("number", GROUPS)
def test_length_gradients_are_finite_differences(number):
    """Edge vectors keep their fractional coordinates as the lattice changes."""
    example = Example(number)
    frac = example.graph.vec @ torch.linalg.inv(torch.from_numpy(example.crystal.lattice[0]))
    h = 1e-4
    assert example.gradient.shape == (len(frac), 3)
    for k in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[k] = h
        if k >= example.free:
            assert (example.gradient[:, k] == 0).all()
            continue
        up, down = ((frac @ example.lattice(s)[0]).norm(dim=1) for s in (step, -step))
        numeric = (up - down) / (2 * h)
        torch.testing.assert_close(example.gradient[:, k], numeric, rtol=0, atol=1e-8)
        assert numeric.abs().max() > 0.1


@pytest.mark.parametrize("number", GROUPS)
def test_least_squares_recovers_a_deformation(number, monkeypatch):
    """Exactly without the ridge; with it, less by what the ridge takes, never more."""
    example = Example(number)
    for seed in range(3):
        change = small_change(example.free, seed)
        output = example.output(change, edge_weight(example.graph))
        with monkeypatch.context() as patch:
            patch.setattr(scores, "RIDGE", 1e-14)
            exact = example.estimate(output, "least_squares")
        torch.testing.assert_close(exact, change, rtol=0, atol=1e-9)
        found = example.estimate(output, "least_squares")
        assert (found[example.free :] == 0).all()
        assert 0 < (found - change).norm() < 0.5 * change.norm()
        assert found @ change < change @ change


@pytest.mark.parametrize("number", GROUPS)
def test_least_squares_weighs_edges_by_the_envelope(number):
    """The normal equations written out: envelope and multiplicity of the source."""
    example = Example(number, seed=2)
    g = example.graph
    output = torch.randn(len(g.dist), 2, dtype=torch.float64) * edge_weight(g).unsqueeze(1)
    strain = (length_slope(example.coordinates) / cell_length(example.coordinates)).mean()
    count = g.multiplicity[g.source]
    gradient = example.gradient[:, : example.free].numpy()
    left = np.einsum("e,ei,ej->ij", (edge_weight(g) * count).numpy(), gradient, gradient)
    right = (output[:, 1] * g.dist * strain * count).numpy() @ gradient
    expected = np.linalg.solve(left + scores.RIDGE * np.trace(left) * np.eye(example.free), right)
    found = example.estimate(output, "least_squares")[: example.free]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("number", NOT_CUBIC)
def test_mean_is_biased_low(number):
    """The mean of minimum-norm solutions loses part of any deformation with a choice."""
    example = Example(number)
    for seed in range(3):
        change = small_change(example.free, seed)
        found = example.estimate(example.output(change, torch.ones(())), "mean")
        share = found @ change / (change @ change)
        assert 0 < share < 0.95
        assert found.norm() < change.norm()
        assert (found[example.free :] == 0).all()


@pytest.mark.parametrize("number", [195, 205, 227])
def test_mean_is_exact_for_one_length(number):
    example = Example(number)
    change = small_change(1)
    found = example.estimate(example.output(change, torch.ones(())), "mean")
    torch.testing.assert_close(found, change, rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimate", ["least_squares", "mean"])
def test_collapsed_and_empty_graphs_are_finite(estimate):
    """One atom in a flat layer: no edge feels c beyond its own images; nothing divides by zero."""
    lattice = np.diag([3.0, 3.0, 60.0])[None]
    crystal = CrystalArrays.of_groups(lattice, np.zeros((1, 3)), np.array([0, 1]), np.array([123]))
    settings = GraphSettings(cutoff=3.5, k_min=0, k_max=24)
    g = make_batch(torch.tensor([6]), crystal, settings, dtype=torch.float64)
    coordinates = torch.from_numpy(coordinate_from_length(cell_lengths(lattice)))
    axis = torch.from_numpy(axis_coordinate(123))[None]
    output = torch.ones(len(g.dist), 2, dtype=torch.float64)
    found = lattice_noise(g, output, coordinates, axis, estimate)[0]
    assert found.isfinite().all()
    assert found[0] > 0
    assert found[1] == found[2] == 0
