"""A GPU gives what the CPU gives. Skipped without one; ``pytest -m cuda`` runs these alone."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion.crystals import CrystalStore
from langevin_xtal.diffusion.losses import denoising_losses
from langevin_xtal.diffusion.noising import Noised, NoisingConfig, noise_batch
from langevin_xtal.graph import CrystalArrays, GraphSettings, build_multigraph, torch_builder
from langevin_xtal.graph.batch import GraphBatch, make_batch
from langevin_xtal.graph.snapping import all_operations
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.model.network import SIZES, EdgeNetwork
from langevin_xtal.model.scores import lattice_noise, position_noise
from langevin_xtal.report.bench import measure
from langevin_xtal.sampling.postprocess import contains_group
from langevin_xtal.sampling.sample import SampleOptions, sample
from langevin_xtal.sampling.samplers import Ancestral
from langevin_xtal.sampling.start import start_chains
from langevin_xtal.sampling.streams import stream_keys
from langevin_xtal.symmetry import lattice_coordinates, lattice_driver, lattice_freedom
from langevin_xtal.train import loop
from langevin_xtal.train.loop import TrainConfig, Trainer
from tests.conftest import TINY
from tests.crystals import merge, random_crystal

DEVICE = "cuda"

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

GROUPS = (2, 14, 15, 62, 63, 139, 148, 166, 186, 194, 216, 221, 225, 227, 229)
SPECIES = torch.tensor([11, 17, 8, 26])

RELATIVE = 1e-4
"""Of the largest value: the two devices add in other orders, in float32."""


def assert_close(a: torch.Tensor, b: torch.Tensor, relative: float = RELATIVE) -> None:
    assert a.shape == b.shape
    a, b = (x.detach().cpu().double() for x in (a, b))
    assert float((a - b).abs().max()) <= relative * float(a.abs().max())


def crystals(seed: int) -> CrystalArrays:
    """One random crystal of every group, with two to four sites."""
    return merge(*(random_crystal(n, 2 + k % 3, seed) for k, n in enumerate(GROUPS)))


@pytest.fixture(scope="module", params=["small", "base"])
def network(request: pytest.FixtureRequest) -> EdgeNetwork:
    """A network of a shipped size with random weights that say something."""
    torch.manual_seed(3)
    network = EdgeNetwork(SIZES[request.param])
    torch.nn.init.normal_(network.output[-1].weight, std=0.3)
    return network.eval().requires_grad_(False)


def scores(
    network: EdgeNetwork, graph: GraphBatch, arrays: CrystalArrays, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Edge outputs, position noise and lattice noise of a batch moved to the device."""
    g = graph.to(device)
    sigma = torch.linspace(0.05, 1.5, len(arrays), device=device)
    coordinates = torch.from_numpy(lattice_coordinates(arrays.lattice)).float()
    driver = torch.from_numpy(np.stack([lattice_driver(n) for n in GROUPS]))
    free = torch.from_numpy(np.stack([lattice_freedom(n) for n in GROUPS]))
    with torch.inference_mode():
        out = network.to(device)(g, sigma, 2 * sigma)
        position = position_noise(g, out, sigma)
        lattice = lattice_noise(g, out, coordinates.to(device), driver.to(device), free.to(device))
    return out, position, lattice


@pytest.mark.parametrize("seed", range(4))
def test_scores(network: EdgeNetwork, seed: int) -> None:
    arrays = crystals(seed)
    numbers = SPECIES[torch.arange(len(arrays.frac)) % len(SPECIES)]
    graph = make_batch(numbers, arrays, network.config.graph_settings())
    on_host = scores(network, graph, arrays, "cpu")
    on_device = scores(network, graph, arrays, DEVICE)
    for a, b in zip(on_host, on_device, strict=True):
        assert float(a.abs().max()) > 0
        assert_close(a, b)


@pytest.mark.parametrize("settings", [GraphSettings(), GraphSettings(cutoff=4.0, k_min=4)])
def test_multigraphs(settings: GraphSettings) -> None:
    arrays = crystals(9)
    on_host = build_multigraph(arrays, settings, threads=1)
    on_device = torch_builder.build(arrays, settings, device=DEVICE)
    for name in ("edge_index", "edge_op", "edge_shift", "multiplicity", "edge_is_long_range"):
        np.testing.assert_array_equal(getattr(on_device, name), getattr(on_host, name))
    np.testing.assert_allclose(on_device.edge_vec, on_host.edge_vec, atol=1e-9)


def noised_on(reference: PackedDataset, device: str, target: str) -> Noised:
    """The same batch of the reference set, noised where ``device`` says."""
    store = CrystalStore(reference)
    return noise_batch(
        store.batch(torch.arange(0, len(store), 4)).to(device),
        NoiseLevels(),
        NoisingConfig(target=target, confined=0.5),  # type: ignore[arg-type]
        TINY.graph_settings(),
        all_operations().to(device),
        torch.Generator().manual_seed(5),
    )


@pytest.mark.parametrize("target", ["orbit", "plain"])
def test_noising(reference: PackedDataset, tiny_model: CrystalModel, target: str) -> None:
    """Noise, targets and losses are those of the CPU, made on the device."""
    on_host, on_device = (noised_on(reference, d, target) for d in ("cpu", DEVICE))
    assert on_device.graph.vec.device.type == DEVICE
    for field in dataclasses.fields(Noised):
        if field.name != "graph":
            assert_close(getattr(on_host, field.name), getattr(on_device, field.name), 1e-5)
    assert len(on_host.graph.source) == len(on_device.graph.source)
    found = [
        denoising_losses(tiny_model.network.to(n.sigma_pos.device), n)
        for n in (on_device, on_host)  # the CPU last: others use this model
    ]
    for name in ("position", "lattice"):
        assert_close(getattr(found[1], name), getattr(found[0], name))


class TestTraining:
    CONFIG = TrainConfig(steps=6, batch_size=8, warmup=2, log_every=1, network=TINY)

    @pytest.fixture(scope="class")
    def small(self, reference: PackedDataset) -> PackedDataset:
        return reference.select(np.flatnonzero(reference.site_counts <= 4)[:30])

    @staticmethod
    def losses(trainer: Trainer) -> np.ndarray:
        """(rows, 2) of the rest of a run."""
        return np.array([(row.position, row.lattice) for row in trainer.run()])

    def test_steps_are_those_of_the_cpu(
        self, small: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Under the same noise, which the host draws here, wherever multigraphs are built."""
        genuine = loop._generator
        monkeypatch.setattr(loop, "_generator", lambda seed, index, *_: genuine(seed, index))
        on_host = self.losses(Trainer(small, tmp_path / "cpu", self.CONFIG))
        assert len(on_host) == 6
        for builder in ("torch", "host"):
            folder = tmp_path / builder
            trainer = Trainer(small, folder, self.CONFIG, device=DEVICE, builder=builder)
            on_device = self.losses(trainer)
            np.testing.assert_allclose(on_device, on_host, rtol=1e-3)
            np.testing.assert_allclose(on_device[0], on_host[0], rtol=RELATIVE)

    def test_crystals_and_noise_stay_there(self, small: PackedDataset, tmp_path: Path) -> None:
        trainer = Trainer(small, tmp_path, self.CONFIG, device=DEVICE)
        assert trainer.builder == "torch"
        crystals = trainer.store.batch(torch.arange(4))
        noised = trainer._prepare(0)
        for tensor in (crystals.frac, noised.tau_pos, noised.graph.vec, trainer.means.sums):
            assert tensor.device.type == DEVICE

    def test_the_host_seldom_waits(self, small: PackedDataset, tmp_path: Path) -> None:
        """The optimiser's part of a step asks for nothing, the builder for sizes of lists."""
        trainer = Trainer(small, tmp_path, self.CONFIG, device=DEVICE)
        trainer._advance(trainer._prepare(0))
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as of_building:
                warnings.simplefilter("always")
                batch = trainer._prepare(1)
            with warnings.catch_warnings(record=True) as of_learning:
                warnings.simplefilter("always")
                trainer._advance(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert sum("synchroniz" in str(w.message) for w in of_building) <= 40
        assert sum("synchroniz" in str(w.message) for w in of_learning) <= 2

    def test_the_same_seed_gives_the_same(self, small: PackedDataset, tmp_path: Path) -> None:
        """Also when it stops in between; up to the order of sums."""
        whole = self.losses(Trainer(small, tmp_path / "whole", self.CONFIG, device=DEVICE))
        run = Trainer(small, tmp_path / "parts", self.CONFIG, device=DEVICE).run()
        first = [next(run) for _ in range(3)]
        run.close()
        rest = self.losses(Trainer(small, tmp_path / "parts", self.CONFIG, device=DEVICE))
        parts = np.concatenate([[(row.position, row.lattice) for row in first], rest])
        np.testing.assert_allclose(parts, whole, rtol=RELATIVE)

    @pytest.mark.parametrize("precision", ["tf32", "bf16"])
    def test_lower_precision_is_near(
        self, small: PackedDataset, tmp_path: Path, precision: str
    ) -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        exact = self.losses(Trainer(small, tmp_path / "exact", self.CONFIG, device=DEVICE))
        config = dataclasses.replace(self.CONFIG, precision=precision)  # type: ignore[arg-type]
        near = self.losses(Trainer(small, tmp_path / precision, config, device=DEVICE))
        assert not np.array_equal(near, exact)
        np.testing.assert_allclose(near, exact, rtol=0.1)
        assert torch.backends.cuda.matmul.allow_tf32 == before

    def test_loss_falls(self, small: PackedDataset, tmp_path: Path) -> None:
        config = dataclasses.replace(
            self.CONFIG, steps=150, log_every=30, warmup=10, learning_rate=3e-3
        )
        run = Trainer(small, tmp_path, config, device=DEVICE).run()
        losses = [row.position + row.lattice for row in run]
        assert losses[-1] < 0.95 * losses[0]

    def test_a_run_goes_on_on_the_cpu(self, small: PackedDataset, tmp_path: Path) -> None:
        trainer = Trainer(small, tmp_path, self.CONFIG, device=DEVICE)
        run = trainer.run()
        assert next(run).step == 1
        run.close()
        assert [row.step for row in Trainer(small, tmp_path, self.CONFIG).run()] == [2, 3, 4, 5, 6]


class TestSampling:
    REQUESTS = tuple(
        Request(group, sites)
        for group, sites in (
            (225, {"Na": 1, "Cl": 1}),
            (62, {"Cu": 2, "Si": 1, "K": 1}),
            (15, {"Ca": 1, "O": 2}),
            (194, {"Zn": 1, "S": 1}),
            (2, {"K": 1, "F": 1}),
        )
    )
    OPTIONS = SampleOptions(sampler=Ancestral(levels=10), batch_size=4)

    @pytest.fixture(scope="class")
    def found(self, assigning_model: CrystalModel) -> list[Candidate]:
        pytest.importorskip("spglib", reason="finished structures are checked with it")
        return sample(self.REQUESTS, assigning_model, 11, device=DEVICE, options=self.OPTIONS)

    def test_candidates_are_valid(self, found: list[Candidate]) -> None:
        assert len(found) >= 3
        for candidate in found:
            request = self.REQUESTS[candidate.index]
            assert candidate.request == request
            assert sorted(candidate.numbers.tolist()) == sorted(request.numbers)
            assert np.isfinite(candidate.frac).all()
            assert candidate.min_distance >= self.OPTIONS.postprocess.min_distance
            numbers = candidate.numbers[candidate.atom_site]
            assert contains_group(
                candidate.lattice, candidate.atom_frac, numbers, request.space_group
            )

    def test_the_same_seed_gives_the_same(
        self, found: list[Candidate], assigning_model: CrystalModel
    ) -> None:
        again = sample(self.REQUESTS, assigning_model, 11, device=DEVICE, options=self.OPTIONS)
        assert [c.index for c in again] == [c.index for c in found]
        for a, b in zip(found, again, strict=True):
            np.testing.assert_array_equal(a.frac, b.frac)
            np.testing.assert_array_equal(a.lattice, b.lattice)

    @pytest.mark.parametrize("size", [1, 5])
    def test_whatever_the_batch_size(
        self, found: list[Candidate], assigning_model: CrystalModel, size: int
    ) -> None:
        options = dataclasses.replace(self.OPTIONS, batch_size=size)
        again = sample(self.REQUESTS, assigning_model, 11, device=DEVICE, options=options)
        assert [(c.index, c.attempt) for c in again] == [(c.index, c.attempt) for c in found]
        for a, b in zip(found, again, strict=True):
            np.testing.assert_allclose(a.frac @ a.lattice, b.frac @ b.lattice, atol=1e-3)


def test_starts_are_those_of_the_cpu(proposing_model: CrystalModel) -> None:
    """Proposals are drawn there, in float64: the same numbers but for a last bit."""
    keys = stream_keys(3, torch.arange(15), torch.zeros(15, dtype=torch.int64))
    asked, options = TestSampling.REQUESTS * 3, SampleOptions(proposals=2).start_options()
    here, there = (
        start_chains(asked, proposing_model.to(device), keys, options)
        for device in ("cpu", DEVICE)
    )
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a.frac, b.frac, atol=1e-6)
        np.testing.assert_allclose(a.coordinates, b.coordinates, atol=1e-5)


def test_bench(tiny_model: CrystalModel, reference: PackedDataset) -> None:
    pytest.importorskip("spglib", reason="finished structures are checked with it")
    small = reference.select(np.flatnonzero(reference.site_counts <= 3)[:12])
    stages = ("graph", "train", "sample", "profile")
    report = measure(tiny_model, small, stages=stages, device=DEVICE, batch_size=6, repeat=2)
    assert report["device_name"] == torch.cuda.get_device_name()
    for stage in stages:
        assert report[stage]["peak_memory"] > 0
