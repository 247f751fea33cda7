"""Equivalent edges: found by site symmetry, and the same to the network."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion import noising
from langevin_xtal.diffusion.crystals import CrystalStore
from langevin_xtal.diffusion.losses import denoising_losses
from langevin_xtal.diffusion.noising import Noised, NoisingConfig, noise_batch
from langevin_xtal.graph import (
    CrystalArrays,
    SymmetryMultigraph,
    available,
    batch,
    build_multigraph,
)
from langevin_xtal.graph.equivalence import distinct_images, equivalent_edges
from langevin_xtal.graph.snapping import all_operations
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.model.network import EdgeNetwork, NetworkConfig
from tests.crystals import expand_to_p1, merge, random_crystal

pytestmark = pytest.mark.skipif("cpp" not in available(), reason="needs the C++ extension")

CONFIG = NetworkConfig(width=8, triplet_width=6, blocks=2, radial=5, spherical=4, k_max=16)
SETTINGS = CONFIG.graph_settings()


def by_operations(crystal: CrystalArrays, graph: SymmetryMultigraph) -> np.ndarray:
    """(E,) the first equivalent edge of one crystal, by moving the ends of edges themselves."""
    rotations, translations = crystal.operations(0)
    cell = crystal.lattice[0]
    source, target = graph.edge_index
    end = crystal.frac[source] + graph.edge_vec @ np.linalg.inv(cell)
    first = np.arange(len(source))
    for w, t in zip(rotations, translations, strict=True):
        step = crystal.frac @ w.T + t - crystal.frac
        whole = np.rint(step)
        stays = np.linalg.norm((step - whole) @ cell, axis=1) < 1e-6
        moved = end @ w.T + t - whole[source]
        gap = np.linalg.norm((moved[:, None] - end[None]) @ cell, axis=2)
        same = (gap < 1e-5) & (source[:, None] == source) & (target[:, None] == target)
        for e, f in zip(*np.nonzero(same & stays[source][:, None]), strict=True):
            first[f] = min(first[f], e)
    return first


@pytest.mark.parametrize("number", range(1, 231))
def test_they_are_what_site_symmetry_says(number: int) -> None:
    crystal = random_crystal(number, 3, seed=11, special=0.8)
    graph = build_multigraph(crystal, SETTINGS)
    found = equivalent_edges(crystal, graph)
    np.testing.assert_array_equal(found, by_operations(crystal, graph))


def test_rock_salt_has_one_message_per_shell() -> None:
    crystal = CrystalArrays.of_groups(
        5.64 * np.eye(3)[None], np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), [0, 2], [225]
    )
    graph = build_multigraph(crystal, SETTINGS)
    found = equivalent_edges(crystal, graph)
    source, target = graph.edge_index
    shells = {
        (i, j, d) for i, j, d in zip(source, target, np.round(graph.edge_dist, 6), strict=True)
    }
    assert len(graph.edge_dist) > 3 * len(shells)
    assert len(np.unique(found)) == len(shells)


def test_without_symmetry_every_edge_has_its_own_message() -> None:
    crystal, _, _ = expand_to_p1(random_crystal(221, 2, seed=1))
    graph = build_multigraph(crystal, SETTINGS)
    np.testing.assert_array_equal(
        equivalent_edges(crystal, graph), np.arange(len(graph.edge_dist))
    )


def test_a_batch_is_its_crystals() -> None:
    crystals = [random_crystal(n, k, seed=2) for n, k in [(62, 3), (1, 1), (194, 2), (225, 1)]]
    parts = [build_multigraph(c, SETTINGS) for c in crystals]
    edges = np.cumsum([0] + [len(p.edge_dist) for p in parts])
    expected = [
        equivalent_edges(c, g) + e for c, g, e in zip(crystals, parts, edges, strict=False)
    ]
    together = merge(*crystals)
    found = equivalent_edges(together, build_multigraph(together, SETTINGS))
    np.testing.assert_array_equal(found, np.concatenate(expected))


def test_a_site_off_its_position_has_no_symmetry() -> None:
    on = random_crystal(225, 2, seed=3, special=1.0)
    off = CrystalArrays.of_groups(
        on.lattice, on.frac + np.array([1e-4, 2.3e-4, 3.7e-4]), on.site_start, np.array([225])
    )
    graph = build_multigraph(off, SETTINGS)
    np.testing.assert_array_equal(equivalent_edges(off, graph), np.arange(len(graph.edge_dist)))


def test_images_are_distinct_and_all_there() -> None:
    crystals = merge(*[random_crystal(n, 3, seed=6) for n in (1, 14, 166, 194, 225, 227)])
    pairs = distinct_images(crystals)
    graph = build_multigraph(crystals, SETTINGS)
    assert np.bincount(pairs.site).tolist() == graph.multiplicity.tolist()
    site, op = pairs.site.numpy(), pairs.op.numpy()
    image = np.einsum("pij,pj->pi", crystals.rotations[op], crystals.frac[site])
    image += crystals.translations[op]
    for j in range(len(crystals.frac)):
        own = image[site == j]
        gap = own[:, None] - own[None]
        gap = np.linalg.norm(gap - np.rint(gap), axis=2) + np.eye(len(own))
        assert gap.min() > 1e-6
    assert len(site) < crystals.op_count[np.repeat(np.arange(6), 3)].sum()


@pytest.mark.parametrize("seed", range(2))
def test_the_layout_of_triplets_is_that_of_torch(reference: PackedDataset, seed: int) -> None:
    given: list[tuple[Any, ...]] = []
    genuine = batch._host_triplets

    def kept(*arguments: Any) -> Any:
        given.append(arguments)
        return genuine(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "_host_triplets", kept)
        g = noised(reference, seed).graph
        patch.setattr(batch, "_host_triplets", lambda *_: None)
        expected = noised(reference, seed).graph
    assert len(given) == 1
    for field in dataclasses.fields(g):
        a, b = getattr(g, field.name), getattr(expected, field.name)
        if field.name == "cosine":
            torch.testing.assert_close(a * g.is_triplet, b * g.is_triplet, rtol=0, atol=1e-12)
        else:
            assert torch.equal(a, b), field.name
    assert g.is_snap.any()
    assert int(g.is_triplet.sum()) > 1000


def noised(data: PackedDataset, seed: int) -> Noised:
    store = CrystalStore(data)
    crystals = store.batch(torch.linspace(0, len(store) - 1, 40).long())
    return noise_batch(
        crystals,
        NoiseLevels(),
        NoisingConfig(confined=0.5),
        SETTINGS,
        all_operations(),
        torch.Generator().manual_seed(seed),
        dtype=torch.float64,
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_network_says_the_same_of_every_edge(
    reference: PackedDataset, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Outputs, losses and gradients in float64, confined and free crystals, against one message
    per edge."""
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float64)
    try:
        network = EdgeNetwork(CONFIG)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.nn.init.normal_(network.output[2].weight)
    found = []
    for merged in (True, False):
        if not merged:
            monkeypatch.setattr(noising, "edge_messages", lambda crystals, graph: None)
        noise = noised(reference, seed)
        output = network(noise.graph, noise.sigma_pos, noise.sigma_lat)
        losses = denoising_losses(network, noise)
        network.zero_grad()
        losses.total().backward()
        gradients = [p.grad.clone() for p in network.parameters()]
        found.append((noise.graph, output.detach(), losses, gradients))
    (g, output, losses, gradients), (whole, expected, wanted, each_gradient) = found
    assert g.is_snap.any()
    assert len(whole.first_edge) == len(whole.source) == len(g.source)
    assert len(g.first_edge) < 0.7 * len(g.source)
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-9)
    for name in ("position", "lattice"):
        torch.testing.assert_close(
            getattr(losses, name), getattr(wanted, name), rtol=1e-8, atol=1e-12
        )
    for a, b in zip(gradients, each_gradient, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8 * max(1.0, float(b.abs().max())))
