"""The dense triplet product of the network against an explicit list of triplets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from langevin_xtal.graph import build_multigraph, triplets
from langevin_xtal.graph.batch import GraphBatch, make_batch
from langevin_xtal.graph.contract import CrystalArrays, GraphSettings
from langevin_xtal.graph.snapping import Snapped
from langevin_xtal.model.bases import SphericalBasis, legendre
from langevin_xtal.model.network import EdgeNetwork, Interaction, NetworkConfig, edge_weight
from tests.crystals import merge, random_crystal

CONFIG = NetworkConfig(
    width=6, triplet_width=4, blocks=1, radial=3, spherical=4, cutoff=4.5, k_min=6, k_max=14
)
SETTINGS = CONFIG.graph_settings()
GROUPS = [
    1,
    2,
    5,
    14,
    15,
    19,
    43,
    62,
    70,
    82,
    99,
    122,
    141,
    146,
    155,
    166,
    180,
    194,
    205,
    216,
    227,
]


@pytest.fixture(scope="module")
def block() -> Interaction:
    torch.manual_seed(3)
    return Interaction(CONFIG).double()


class Inputs:
    """Random messages on the edges of a batch, and the angular basis the network would make."""

    def __init__(self, g: GraphBatch) -> None:
        torch.manual_seed(len(g.dist))
        torch.set_default_dtype(torch.float64)
        try:
            basis = SphericalBasis(CONFIG.spherical, CONFIG.radial, CONFIG.basis_cutoff)
        finally:
            torch.set_default_dtype(torch.float32)
        leaves = edge_weight(g) * ~(g.is_long_range | g.is_snap)
        self.x = torch.randn(len(g.dist), CONFIG.width, dtype=torch.float64)
        self.radial = torch.randn(len(g.dist), CONFIG.radial, dtype=torch.float64)
        self.angular = basis(g.dist) * leaves.view(-1, 1, 1)
        self.noise = torch.randn(len(g.volume_per_atom), CONFIG.width, dtype=torch.float64)


def dense(block: Interaction, g: GraphBatch, inputs: Inputs) -> Tensor:
    angle = legendre(CONFIG.spherical, g.cosine) * g.is_triplet.unsqueeze(-1)
    return block(inputs.x, inputs.radial, inputs.angular, angle, inputs.noise, g)


def explicit(
    block: Interaction, g: GraphBatch, inputs: Inputs, index: np.ndarray, cosine: np.ndarray
) -> Tensor:
    """The block's formula with the sum over triplets as a sum over triplets."""
    x_in = inputs.x + block.noise(inputs.noise)[g.site_crystal[g.source]]
    sent = functional.silu(block.sent(x_in)) * block.radial_gate(inputs.radial)
    sent = functional.silu(block.down(sent))
    heard = torch.zeros(len(inputs.x), CONFIG.triplet_width, dtype=torch.float64)
    for order in range(CONFIG.spherical):
        polynomial = np.polynomial.legendre.Legendre.basis(order)(cosine)
        for e, f, p in zip(*index.tolist(), polynomial.tolist(), strict=True):
            heard[e] += p * (inputs.angular[f, order] @ block.angular[order]) * sent[f]
    x = functional.silu(block.own(x_in)) + functional.silu(block.up(heard))
    return block.after(functional.silu(block.skip(block.before(x))) + x_in)


def batch_of(crystals: CrystalArrays, snapped: Snapped | None = None) -> GraphBatch:
    numbers = torch.full((len(crystals.frac),), 14)
    return make_batch(numbers, crystals, SETTINGS, snapped=snapped, dtype=torch.float64)


@pytest.mark.parametrize("number", GROUPS)
def test_dense_product_equals_the_sum_over_triplets(block, number):
    crystals = random_crystal(number, 2, seed=1)
    g = batch_of(crystals)
    index, cosine = triplets(build_multigraph(crystals, SETTINGS), crystals)
    assert len(cosine) > 0
    assert g.is_triplet.sum() == len(cosine)
    inputs = Inputs(g)
    with torch.no_grad():
        found = dense(block, g, inputs)
        expected = explicit(block, g, inputs, index, cosine)
        deaf = explicit(block, g, inputs, index[:, :0], cosine[:0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert (found - deaf).abs().max() > 1e-3


def test_dense_product_of_a_batch(block):
    """Several crystals of different size, rows and widths of one batch."""
    crystals = merge(*[random_crystal(n, k, seed=2) for n, k in [(62, 3), (1, 1), (194, 2)]])
    g = batch_of(crystals)
    index, cosine = triplets(build_multigraph(crystals, SETTINGS), crystals)
    inputs = Inputs(g)
    with torch.no_grad():
        expected = explicit(block, g, inputs, index, cosine)
        torch.testing.assert_close(dense(block, g, inputs), expected, rtol=0, atol=1e-10)


def test_snap_edges_hear_and_are_not_heard(block):
    """The edge to the special position meets the edges that leave its site, turned by nothing."""
    crystals = random_crystal(62, 2, seed=3)
    displacement = torch.tensor([[0.11, -0.07, 0.05], [0.0, 0.0, 0.0]], dtype=torch.float64)
    unused = torch.zeros(0)
    g = batch_of(crystals, Snapped(unused, displacement, unused, unused))
    graph = build_multigraph(crystals, SETTINGS)
    index, cosine = triplets(graph, crystals)
    own = np.arange(graph.edge_start[0], graph.edge_start[1])
    own = own[~graph.edge_is_long_range[own]]
    snap = len(graph.edge_dist)
    assert g.is_snap.nonzero().flatten().tolist() == [snap]
    assert (int(g.source[snap]), int(g.target[snap])) == (0, 0)
    torch.testing.assert_close(g.vec[snap], -displacement[0])
    unit = displacement[0].numpy() / np.linalg.norm(displacement[0])
    more = graph.edge_vec[own] @ unit / graph.edge_dist[own]
    index = np.concatenate([index, [np.full(len(own), snap), own]], axis=1)
    cosine = np.concatenate([cosine, more])
    inputs = Inputs(g)
    with torch.no_grad():
        expected = explicit(block, g, inputs, index, cosine)
        torch.testing.assert_close(dense(block, g, inputs), expected, rtol=0, atol=1e-10)


def test_the_network_calls_its_blocks_like_this():
    """What ``Inputs`` makes is what the network hands to a block."""
    torch.manual_seed(0)
    network = EdgeNetwork(CONFIG).double()
    g = batch_of(random_crystal(166, 2, seed=1))
    seen = {}

    def spy(_module, args):
        seen["angular"], seen["angle"], seen["g"] = args[2], args[3], args[5]

    handle = network.blocks[0].register_forward_pre_hook(spy)
    sigma = torch.ones(1, dtype=torch.float64)
    with torch.no_grad():
        network(g, sigma, sigma)
    handle.remove()
    assert seen["g"] is g
    expected = legendre(CONFIG.spherical, g.cosine) * g.is_triplet.unsqueeze(-1)
    torch.testing.assert_close(seen["angle"], expected)
    torch.testing.assert_close(seen["angular"], Inputs(g).angular, rtol=0, atol=1e-5)


@pytest.mark.parametrize("number", GROUPS)
def test_angles_turn_with_the_operation(number):
    """Cosines from explicit atoms: the origin of e, its end, and the end of f seen from there."""
    crystals = random_crystal(number, 2, seed=4)
    graph = build_multigraph(crystals, SETTINGS)
    (e, f), cosine = triplets(graph, crystals)
    lattice = crystals.lattice[0]
    w, t = crystals.operations(0)

    def image(edge: np.ndarray) -> np.ndarray:
        """Fractional position of the atom at the end of each edge."""
        h = graph.edge_op[edge]
        at = np.einsum("eij,ej->ei", w[h], crystals.frac[graph.edge_index[1, edge]])
        return at + t[h] + graph.edge_shift[edge]

    origin = crystals.frac[graph.edge_index[0, e]]
    middle = image(e)
    # the crystal around h(x_j) + n is the one around x_j, mapped by h and moved by n
    h = graph.edge_op[e]
    end = np.einsum("eij,ej->ei", w[h], image(f)) + t[h] + graph.edge_shift[e]
    back, on = (origin - middle) @ lattice, (end - middle) @ lattice
    lengths = np.linalg.norm(back, axis=1), np.linalg.norm(on, axis=1)
    np.testing.assert_allclose(lengths[0], graph.edge_dist[e], rtol=0, atol=1e-9)
    np.testing.assert_allclose(lengths[1], graph.edge_dist[f], rtol=0, atol=1e-9)
    expected = (back * on).sum(1) / (lengths[0] * lengths[1])
    np.testing.assert_allclose(cosine, expected, rtol=0, atol=1e-9)
    assert (np.linalg.norm((end - origin) @ lattice, axis=1) > 1e-3).all()
    # the end of the turned f is an atom of the crystal: an image of its target by one operation
    target = crystals.frac[graph.edge_index[1, f]]
    places = np.einsum("gij,ej->gei", w, target) + t[:, None]
    off = places - end
    off -= np.rint(off)
    assert (np.abs(off).max(axis=2).min(axis=0) < 1e-9).all()


def test_unturned_angles_are_wrong():
    """The mistake the rule is about shows on these crystals."""
    crystals = random_crystal(194, 2, seed=4)
    graph = build_multigraph(crystals, SETTINGS)
    (e, f), cosine = triplets(graph, crystals)
    plain = -(graph.edge_vec[e] * graph.edge_vec[f]).sum(1)
    plain = plain / (graph.edge_dist[e] * graph.edge_dist[f])
    assert np.abs(plain - cosine).max() > 0.1


def test_simple_cubic():
    """Six neighbours and 6 × 5 triplets, in the list and in the dense product."""
    crystals = CrystalArrays.of_groups(
        3.0 * np.eye(3)[None], np.zeros((1, 3)), np.array([0, 1]), np.array([221])
    )
    settings = GraphSettings(cutoff=3.5, k_min=6)
    graph = build_multigraph(crystals, settings)
    index, cosine = triplets(graph, crystals)
    assert graph.edge_index.shape == (2, 6)
    assert index.shape == (2, 30)
    assert sorted(np.rint(cosine).astype(int)) == [-1] * 6 + [0] * 24
    g = make_batch(torch.tensor([84]), crystals, settings, dtype=torch.float64)
    assert len(g.dist) == 6
    assert int(g.is_triplet.sum()) == 30
    assert sorted(g.cosine[g.is_triplet].round().int().tolist()) == [-1] * 6 + [0] * 24
