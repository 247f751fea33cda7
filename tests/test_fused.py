"""The kernels of the network against its plain path, which is the specification."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion.crystals import CrystalStore
from langevin_xtal.diffusion.losses import denoising_losses
from langevin_xtal.diffusion.noising import Noised, NoisingConfig, noise_batch
from langevin_xtal.graph.batch import GraphBatch, make_batch
from langevin_xtal.graph.contract import CrystalArrays, GraphSettings
from langevin_xtal.graph.snapping import all_operations
from langevin_xtal.model import fused
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.model.network import SIZES, EdgeNetwork, NetworkConfig
from tests.crystals import merge, random_crystal

pytestmark = pytest.mark.skipif(fused._kernels() is None, reason="needs the C++ extension")

MIDDLE = NetworkConfig(width=48, triplet_width=16, blocks=2, radial=5, spherical=4, k_max=16)
CONFIGS = {
    "small": SIZES["small"],
    "base": SIZES["base"],
    "middle": MIDDLE,
    "no blocks": dataclasses.replace(MIDDLE, blocks=0),
    "one order": dataclasses.replace(MIDDLE, spherical=1, radial=1, blocks=1),
    "two orders": dataclasses.replace(MIDDLE, spherical=2, radial=13, width=16, blocks=1),
    "many neighbours": dataclasses.replace(MIDDLE, k_max=40, cutoff=7.0),
    "wide": dataclasses.replace(MIDDLE, width=176, triplet_width=80, blocks=1),
}


def network_of(config: NetworkConfig, seed: int = 5) -> EdgeNetwork:
    torch.manual_seed(seed)
    network = EdgeNetwork(config)
    torch.nn.init.normal_(network.output[2].weight, std=0.3)
    return network


def batch_of(
    data: PackedDataset, config: NetworkConfig, count: int = 24, confined: float = 0.5
) -> Noised:
    store = CrystalStore(data)
    crystals = store.batch(torch.linspace(0, len(store) - 1, count).long())
    generator = torch.Generator().manual_seed(2)
    noising = NoisingConfig(confined=confined)
    settings = config.graph_settings()
    return noise_batch(crystals, NoiseLevels(), noising, settings, all_operations(), generator)


def in_double(batch: Any) -> Any:
    """A graph or a noised batch."""
    changes = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, GraphBatch):
            changes[field.name] = in_double(value)
        elif value.is_floating_point():
            changes[field.name] = value.double()
    return dataclasses.replace(batch, **changes)


def answers(network: EdgeNetwork, batch: Noised) -> list[Tensor]:
    """Outputs, then gradients of the loss by all weights."""
    network.zero_grad()
    output = network(batch.graph, batch.sigma_pos, batch.sigma_lat)
    denoising_losses(network, batch).total().backward()
    return [output.detach(), *(p.grad.clone() for p in network.parameters())]


def plain(network: EdgeNetwork) -> EdgeNetwork:
    other = copy.deepcopy(network)
    other.fused = False
    return other


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every call of the kernels' forward pass."""
    calls: list[int] = []
    genuine = fused._forward

    def forward(*given: object) -> Tensor:
        calls.append(1)
        return genuine(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(fused, "_forward", forward)
    return calls


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_gradients(
    reference: PackedDataset, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As near to float64 as the plain path in float32, or within 1e-5 of the largest value."""
    network = network_of(CONFIGS[name])
    batch = batch_of(reference, CONFIGS[name])
    assert batch.graph.is_snap.any()
    assert batch.graph.is_long_range.any()
    calls = counted(monkeypatch)
    found = answers(network, batch)
    assert len(calls) == 2
    rounded = answers(plain(network), batch)
    assert len(calls) == 2
    exact = answers(copy.deepcopy(network).double(), in_double(batch))
    assert len(calls) == 2
    assert len(found) == len(exact) > 15
    for a, b, c in zip(found, rounded, exact, strict=True):
        scale = float(c.abs().max())
        allowed = max(2.0 * float((b - c).abs().max()), 1e-5 * scale) + 1e-12
        torch.testing.assert_close(a.double(), c, rtol=0, atol=allowed)
    moved = [c for c in exact if float(c.abs().max()) > 1e-6]
    assert len(moved) > len(exact) - 2


def graph_alone(crystals: CrystalArrays, settings: GraphSettings) -> GraphBatch:
    numbers = torch.arange(11, 11 + len(crystals.frac))
    return make_batch(numbers, crystals, settings)


ONE_ATOM = CrystalArrays.of_groups(
    4.0 * np.eye(3)[None], np.zeros((1, 3)), np.array([0, 1]), np.array([221])
)
SPARSE = GraphSettings(cutoff=1.0, k_min=0, k_max=4)
CASES = {
    "no edges": (ONE_ATOM, dataclasses.replace(SPARSE, all_pairs=False)),
    "one neighbour shell": (ONE_ATOM, dataclasses.replace(SPARSE, cutoff=4.1, k_max=6)),
    "long-range edges alone": (random_crystal(1, 3, seed=4, volume=400.0), SPARSE),
    "single edges": (
        random_crystal(1, 2, seed=1, volume=300.0),
        GraphSettings(cutoff=1.0, k_min=1, k_max=1, all_pairs=False),
    ),
    "several crystals": (
        merge(*[random_crystal(n, k, seed=2) for n, k in [(62, 3), (1, 1), (194, 2), (225, 1)]]),
        MIDDLE.graph_settings(),
    ),
    "large": (random_crystal(2, 40, seed=3), MIDDLE.graph_settings()),
}


@pytest.mark.parametrize("name", CASES)
def test_graphs(name: str) -> None:
    crystals, settings = CASES[name]
    g = graph_alone(crystals, settings)
    network = network_of(MIDDLE)
    sigma = torch.linspace(0.2, 0.9, len(crystals))
    found, expected = [], []
    for net, results in ((network, found), (plain(network), expected)):
        output = net(g, sigma, 2 * sigma)
        output.square().sum().backward()
        results += [output.detach(), *(p.grad for p in net.parameters())]
    for a, b in zip(found, expected, strict=True):
        scale = float(b.abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * scale)
    assert name == "no edges" or float(found[0].abs().max()) > 1e-7


class TestBits:
    """Nothing around a crystal changes its scores, to the last bit."""

    def test_batches(self, reference: PackedDataset) -> None:
        config = SIZES["small"]
        network = network_of(config)
        crystals = [random_crystal(1 + 7 * k, 1 + k % 4, seed=5) for k in range(32)]
        numbers = [torch.arange(len(c.frac)) + 11 for c in crystals]
        sigma = torch.linspace(0.1, 1.0, 32)
        settings = config.graph_settings()
        with torch.inference_mode():
            g = make_batch(torch.cat(numbers), merge(*crystals), settings)
            together = network(g, sigma, sigma)
            at = 0
            for k, crystal in enumerate(crystals):
                own = make_batch(numbers[k], crystal, settings)
                alone = network(own, sigma[k : k + 1], sigma[k : k + 1])
                assert torch.equal(together[at : at + len(alone)], alone)
                at += len(alone)
        assert at == len(together)

    def test_threads_and_whether_gradients_are_wanted(
        self, reference: PackedDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        batch = batch_of(reference, SIZES["small"], count=200)
        assert len(batch.graph.first_edge) > 3000  # several parts and sums
        network = network_of(SIZES["small"])
        genuine = torch.get_num_threads
        with torch.inference_mode():
            bare = network(batch.graph, batch.sigma_pos, batch.sigma_lat)
        one = answers(network, batch)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        three = answers(network, batch)
        again = answers(network, batch)
        assert genuine() == 1
        assert torch.equal(bare, one[0])
        assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(three, again, strict=True))

    @pytest.mark.slow
    def test_instructions(self, tmp_path: Path) -> None:
        """Vectors of 8 and 16 numbers round alike; without fused multiply-add, nearly."""
        code = """
import sys, torch
from langevin_xtal.graph import _multigraph
from tests.test_fused import MIDDLE, answers, batch_of, network_of
from langevin_xtal.dataset.reference import reference_dataset
torch.set_num_threads(1)
torch.save(answers(network_of(MIDDLE), batch_of(reference_dataset(), MIDDLE)), sys.argv[1])
print(_multigraph.network_instructions())
"""
        found = {}
        for name in ("avx512", "avx2", "base"):
            done = subprocess.run(
                [sys.executable, "-c", code, str(tmp_path / name)],
                env=os.environ | {"LANGEVIN_XTAL_INSTRUCTIONS": name},
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            found[done.stdout.strip()] = torch.load(tmp_path / name)
        if {"avx512", "avx2"} <= set(found):
            assert all(
                torch.equal(a, b) for a, b in zip(found["avx512"], found["avx2"], strict=True)
            )
        best = next(iter(found.values()))
        for a, b in zip(found["base"], best, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * float(b.abs().max()) + 1e-12)


class TestFallingBack:
    """What the kernels do not take goes the plain way, silently."""

    def test_widths(self, reference: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
        config = dataclasses.replace(MIDDLE, width=40)
        calls = counted(monkeypatch)
        batch = batch_of(reference, config, count=4)
        network_of(config)(batch.graph, batch.sigma_pos, batch.sigma_lat)
        assert not calls

    def test_precision(self, reference: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = counted(monkeypatch)
        network = network_of(MIDDLE)
        batch = batch_of(reference, MIDDLE, count=4)
        denoising_losses(network, batch, precision="bf16")
        denoising_losses(network.double(), in_double(batch))
        assert not calls

    def test_without_the_extension(
        self, reference: PackedDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network = network_of(MIDDLE)
        batch = batch_of(reference, MIDDLE, count=4)
        given = (batch.graph, batch.sigma_pos, batch.sigma_lat)
        expected = plain(network)(*given)
        monkeypatch.setattr(fused, "_kernels", lambda: None)
        assert torch.equal(network(*given), expected)


def test_arrays_that_do_not_fit_are_refused() -> None:
    g = graph_alone(ONE_ATOM, dataclasses.replace(SPARSE, cutoff=4.1, k_max=6))
    kernels = fused._kernels()
    arrays = [
        g.source[g.first_edge].numpy(),
        g.target[g.first_edge].numpy(),
        np.ones(len(g.first_edge), dtype=bool),
        g.site_crystal.numpy(),
        g.out_message.numpy(),
        g.row_of_message.numpy(),
        g.cosine.numpy(),
        g.is_triplet.numpy(),
    ]
    kernels.Plan(*arrays, crystals=1, orders=3)
    wrong = [*arrays]
    wrong[1] = arrays[1] + 5
    with pytest.raises(ValueError, match="from site to site"):
        kernels.Plan(*wrong, crystals=1, orders=3)
    wrong = [*arrays]
    wrong[4] = arrays[4] + 100
    with pytest.raises(ValueError, match="out_message is out of range"):
        kernels.Plan(*wrong, crystals=1, orders=3)
    plan = kernels.Plan(*arrays, crystals=1, orders=3)
    with pytest.raises(ValueError, match="multiples of 16"):
        plan.saved_size([40, 16, 1, 5, 3, 10])
