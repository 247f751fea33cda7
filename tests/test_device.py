"""What runs wholly on a device, tried on the CPU: the same training, and few questions."""

from __future__ import annotations

import dataclasses
import json
import runpy
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from itertools import chain as joined
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from langevin_xtal.cli.train import train
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion import noising
from langevin_xtal.diffusion.crystals import CrystalStore
from langevin_xtal.diffusion.losses import denoising_losses
from langevin_xtal.diffusion.noising import Builder, Noised, NoisingConfig, noise_batch
from langevin_xtal.errors import InputError
from langevin_xtal.graph.batch import GraphBatch
from langevin_xtal.graph.snapping import all_operations
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.model.network import SIZES, EdgeNetwork
from langevin_xtal.model.proposal import Proposal, ProposalConfig
from langevin_xtal.report.bench import requests_like
from langevin_xtal.sampling import chain
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.sampling.samplers import Ancestral
from langevin_xtal.sampling.samplers import run as run_sampler
from langevin_xtal.sampling.start import start_chains
from langevin_xtal.sampling.streams import stream_keys
from langevin_xtal.train.loop import LevelMeans, TrainConfig, Trainer
from langevin_xtal.train.proposals import describe_variants, fit_proposal
from tests.conftest import TINY
from tests.device_waits import HostWaits
from tests.pretended import DEVICE, PretendedDevice

QUICK = TrainConfig(
    steps=8,
    batch_size=6,
    learning_rate=3e-3,
    warmup=4,
    log_every=2,
    validate_every=4,
    validation_size=6,
    save_every=3,
    network=TINY,
)


@pytest.fixture(scope="module")
def split(reference: PackedDataset) -> tuple[PackedDataset, PackedDataset]:
    """Training and validation sets of small crystals."""
    small = reference.select(np.flatnonzero(reference.site_counts <= 4))
    return small.select(np.arange(30)), small.select(np.arange(30, 40))


def noised(
    data: PackedDataset, builder: Builder, seed: int = 3, waits: HostWaits | None = None
) -> Noised:
    """Some crystals of the set; noising and building are watched by ``waits``."""
    store = CrystalStore(data)
    crystals = store.batch(torch.linspace(0, len(store) - 1, 24).long())
    generator = torch.Generator().manual_seed(seed)
    given = (NoiseLevels(), NoisingConfig(confined=0.5), SIZES["small"].graph_settings())
    operations = all_operations()
    with waits or nullcontext():
        return noise_batch(crystals, *given, operations, generator, builder=builder)


def edge_rows(g: GraphBatch) -> np.ndarray:
    """(E, 11) everything of an edge, in an order that does not depend on the builder's."""
    columns = [g.source, g.target, g.is_self_image, g.is_long_range, g.is_snap, g.dist, g.reach]
    rows = torch.cat([torch.stack([c.double() for c in columns], 1), g.vec.double()], 1)
    return sorted_rows(rows)


def triplet_rows(g: GraphBatch) -> np.ndarray:
    """(T, 6) ends, lengths and cosine of every triplet, ordered likewise.

    Triplets of a message count once for every edge that carries it.
    """
    carrying = torch.bincount(g.message)
    count = torch.zeros_like(g.row_edge).view(-1)
    count[g.row_of_message] = carrying
    row, arriving, leaving = g.is_triplet.nonzero(as_tuple=True)
    e, f = g.row_edge[row, arriving], g.out_edge[g.row_site[row], leaving]
    columns = [g.source[e], g.target[e], g.target[f], g.dist[e], g.dist[f]]
    columns += [g.cosine[row, arriving, leaving]]
    times = count.view(g.row_edge.shape)[row, arriving]
    return sorted_rows(torch.stack([c.double() for c in columns], 1).repeat_interleave(times, 0))


def sorted_rows(rows: Tensor) -> np.ndarray:
    """By the values to 1e-4, so that rounding does not decide."""
    table = rows.numpy()
    return table[np.lexsort(np.round(table, 4).T)]


class TestNoising:
    @pytest.mark.parametrize("seed", range(3))
    def test_both_builders_make_the_same(self, reference: PackedDataset, seed: int) -> None:
        host, device = (noised(reference, b, seed) for b in ("host", "torch"))
        for field in dataclasses.fields(Noised):
            if field.name == "position_target":  # the host sums over each image once
                torch.testing.assert_close(
                    host.position_target, device.position_target, rtol=0, atol=1e-6
                )
            elif field.name != "graph":
                assert torch.equal(getattr(host, field.name), getattr(device, field.name))
        a, b = edge_rows(host.graph), edge_rows(device.graph)
        assert len(a) > 500
        np.testing.assert_allclose(b, a, atol=1e-5)
        a, b = triplet_rows(host.graph), triplet_rows(device.graph)
        assert len(a) > 5000
        np.testing.assert_allclose(b, a, atol=1e-5)

    def test_losses_and_gradients_are_the_same(self, reference: PackedDataset) -> None:
        torch.manual_seed(0)
        network = EdgeNetwork(SIZES["small"])
        torch.nn.init.normal_(network.output[-1].weight, std=0.3)
        found = []
        for builder in ("host", "torch"):
            losses = denoising_losses(network, noised(reference, builder))
            network.zero_grad()
            losses.total().backward()
            found.append((losses, [p.grad.clone() for p in network.parameters()]))
        for name in ("position", "lattice"):
            a, b = (getattr(losses, name) for losses, _ in found)
            assert float(a.detach().max()) > 0.5
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
        for a, b in zip(found[0][1], found[1][1], strict=True):
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4 * float(a.abs().max()) + 1e-9)

    def test_a_batch_is_gathered_as_it_is_stored(self, reference: PackedDataset) -> None:
        store = CrystalStore(reference)
        pick = torch.tensor([5, 0, 17, 5])
        batch = store.batch(pick)
        for k, index in enumerate(pick.tolist()):
            own = slice(int(batch.site_start[k]), int(batch.site_start[k + 1]))
            sites = reference.sites_of(index)
            np.testing.assert_array_equal(batch.numbers[own], reference.numbers[sites])
            np.testing.assert_array_equal(batch.frac[own], reference.frac[sites])


@pytest.mark.usefixtures("plain_path")
class TestQuestions:
    """How often the host would wait for a GPU; the numbers may fall, not rise."""

    def test_gathering_a_batch(self, reference: PackedDataset) -> None:
        store = CrystalStore(reference)
        with HostWaits() as waits:
            store.batch(torch.arange(8))
        assert waits.count == {"_local_scalar_dense": 1}  # of the host's own numbers

    @pytest.mark.parametrize("seed", range(3))
    def test_noising_and_building(self, reference: PackedDataset, seed: int) -> None:
        waits = HostWaits()
        noised(reference, "torch", seed, waits)
        assert waits.total <= 28, waits.count

    def test_a_step_of_the_optimiser(
        self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path
    ) -> None:
        trainer = Trainer(split[0], tmp_path, QUICK, builder="torch")
        batch = trainer._prepare(0)
        trainer._advance(batch)
        with HostWaits() as waits:
            trainer._advance(batch)
        assert not waits.count

    def test_they_are_counted(self) -> None:
        values = torch.tensor([1.0, 0.0, 2.0])
        with HostWaits() as waits:
            float(values[0])
            values.nonzero()
            values[values > 0]
            values.tolist()
            torch.repeat_interleave(values, values.long())
            torch.repeat_interleave(values, values.long(), output_size=3)
            torch.linalg.inv(torch.eye(3))
            torch.bincount(values.long())
        assert waits.count == {
            "_local_scalar_dense": 1,
            "nonzero": 1,
            "index by mask": 1,
            "tolist": 1,
            "repeat_interleave": 1,
            "_linalg_check_errors": 1,
            "bincount": 1,
        }


@pytest.mark.usefixtures("plain_path")
class TestNothingStaysBehind:
    """On a pretended device: what a GPU would refuse, because a tensor is the host's, fails."""

    def test_it_is_noticed(self) -> None:
        with PretendedDevice():
            there, here = torch.ones(3).to(DEVICE), torch.ones(3)
            assert there.device.type == DEVICE
            assert (there + torch.tensor([1.0, 2.0, 3.0], device=DEVICE)).tolist() == [2, 3, 4]
            assert (there * torch.tensor(2.0)).cpu().tolist() == [2, 2, 2]
            with pytest.raises(RuntimeError, match="add meets tensors of the host"):
                there + here
            with pytest.raises(RuntimeError, match="index_select meets"):
                there.index_select(0, torch.tensor([1, 0]))

    @pytest.mark.parametrize("target", ["orbit", "plain"])
    def test_a_step_of_training(self, reference: PackedDataset, target: str) -> None:
        pick = torch.arange(0, len(reference), 5)
        config = NoisingConfig(target=target, confined=0.5)  # type: ignore[arg-type]
        given = (NoiseLevels(), config, SIZES["small"].graph_settings())
        torch.manual_seed(0)
        network = EdgeNetwork(SIZES["small"])
        torch.nn.init.normal_(network.output[-1].weight, std=0.3)

        def step(device: str) -> tuple[Tensor, list[Tensor], Tensor]:
            crystals = CrystalStore(reference, device).batch(pick)
            generator = torch.Generator().manual_seed(3)
            operations = all_operations().to(device)
            batch = noise_batch(crystals, *given, operations, generator, builder="torch")
            assert batch.graph.vec.device.type == batch.position_target.device.type == device
            mine = EdgeNetwork(SIZES["small"])
            mine.load_state_dict(network.state_dict())
            mine = mine.to(device)
            losses = denoising_losses(mine, batch)
            losses.total().backward()
            means = LevelMeans(device)
            means.add(losses, batch)
            gradients = [p.grad.cpu() for p in mine.parameters() if p.grad is not None]
            return losses.total().detach().cpu(), gradients, means.sums.cpu()

        here = step("cpu")
        with PretendedDevice():
            there = step(DEVICE)
        assert torch.equal(here[0], there[0])
        assert len(here[1]) > 50
        assert all(torch.equal(a, b) for a, b in zip(here[1], there[1], strict=True))
        assert torch.equal(here[2], there[2])

    def test_sampling(
        self,
        proposing_model: CrystalModel,
        reference: PackedDataset,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """With the networks there: the same chains as on the CPU by the same builder."""
        # a pretended device has no tensors of inference mode
        monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
        monkeypatch.setattr(chain, "graph_of", partial(noising.graph_of, builder="torch"))
        small = reference.select(np.flatnonzero(reference.site_counts <= 3)[:6])
        asked = requests_like(small, 6)
        keys = stream_keys(0, torch.arange(6), torch.zeros(6, dtype=torch.int64))
        options = SampleOptions(proposals=2).start_options()
        groups = [request.space_group.number for request in asked]

        def ends(device: str) -> tuple[Tensor, Tensor]:
            model = proposing_model.to(device)
            starts = start_chains(asked, model, keys, options)
            chains = chain.Chains.start(model, starts, groups, keys, device)
            for _ in run_sampler(Ancestral(levels=4), chains):
                assert chains.frac.device.type == device
            return chains.frac.cpu(), chains.lattice.cpu()

        here = ends("cpu")
        with PretendedDevice():
            there = ends(DEVICE)
        assert torch.equal(here[0], there[0])
        assert torch.equal(here[1], there[1])

    def test_fitting_a_proposal(
        self, reference: PackedDataset, tiny_model: CrystalModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An epoch there, and the choice of variants, as on the CPU."""
        monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
        # nor fused optimisers
        genuine = torch.optim.AdamW
        monkeypatch.setattr(
            torch.optim, "AdamW", lambda weights, fused, **kwargs: genuine(weights, **kwargs)
        )
        small = reference.select(np.flatnonzero(reference.site_counts <= 3)[:24])
        described, owner = describe_variants(small, tiny_model.statistics, most=2, workers=1)
        config = ProposalConfig(width=16, layers=1, heads=2, frames=True)

        def fitted(device: str) -> Proposal:
            return fit_proposal(described, owner, epochs=2, config=config, device=device)

        here = fitted("cpu")
        with PretendedDevice():
            there = fitted(DEVICE)
        for name, value in here.state_dict().items():
            torch.testing.assert_close(there.state_dict()[name], value, atol=1e-6, rtol=1e-5)


class TestTraining:
    def test_steps_are_those_of_the_host(
        self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path
    ) -> None:
        host, device = (
            list(Trainer(split[0], tmp_path / b, QUICK, validation=split[1], builder=b).run())
            for b in ("host", "torch")
        )
        assert [row.step for row in device] == [2, 4, 6, 8]
        for a, b in zip(host, device, strict=True):
            assert b.position == pytest.approx(a.position, rel=1e-3)
            assert b.lattice == pytest.approx(a.lattice, rel=1e-3)
            # where symmetry makes the loss 0, it is the square of rounding, under 1e-20
            np.testing.assert_allclose(
                b.position_by_level, a.position_by_level, rtol=1e-2, atol=1e-15
            )
        assert device[0].position == pytest.approx(host[0].position, rel=1e-5)
        assert device[-1].validation_position == pytest.approx(
            host[-1].validation_position, rel=1e-3
        )

    def test_resume_is_exact(
        self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path
    ) -> None:
        whole = Trainer(split[0], tmp_path / "whole", QUICK, builder="torch")
        list(whole.run())
        for _ in range(2):
            parts = Trainer(split[0], tmp_path / "parts", QUICK, builder="torch")
            run = parts.run()
            stopped = any(row.step == 4 for row in run)
            run.close()
            assert stopped == (parts.step == 4)
        assert parts.step == QUICK.steps
        for a, b in zip(whole.average.parameters(), parts.average.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_a_time_limit_changes_nothing_but_when(
        self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path
    ) -> None:
        whole = Trainer(split[0], tmp_path / "whole", QUICK)
        list(whole.run())
        steps = []
        for _ in range(3 * QUICK.steps):
            parts = Trainer(split[0], tmp_path / "parts", QUICK)
            clock = joined([0.0, 0.0], repeat(1.0))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("time.perf_counter", clock.__next__)
                list(parts.run(max_seconds=1.0))
            steps.append(parts.step)
            if parts.step == QUICK.steps:
                break
        assert steps == list(range(1, QUICK.steps + 1))
        for a, b in zip(whole.average.parameters(), parts.average.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_runs_of_before_go_on(
        self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path
    ) -> None:
        """States without a setting that is new: it had its default."""
        from langevin_xtal.model.tensor_file import read_tensors, write_tensors
        from langevin_xtal.train.fit import STATE_FORMAT

        run = Trainer(split[0], tmp_path, QUICK).run()
        next(run)
        run.close()
        state = tmp_path / "state.safetensors"
        tensors, header = read_tensors(state, STATE_FORMAT)
        del header["config"]["precision"]
        write_tensors(state, tensors, header)
        assert Trainer(split[0], tmp_path, QUICK).step == 2
        other = dataclasses.replace(QUICK, precision="bf16")
        with pytest.raises(InputError, match=r"other settings \(precision\)"):
            Trainer(split[0], tmp_path, other)


class TestPrecision:
    def test_bf16_is_near_and_learns(
        self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path
    ) -> None:
        config = dataclasses.replace(QUICK, steps=30, log_every=10, precision="bf16")
        rows = {
            name: list(Trainer(split[0], tmp_path / name, c).run())
            for name, c in (
                ("bf16", config),
                ("float32", dataclasses.replace(config, precision="float32")),
            )
        }
        last = {name: found[-1].position + found[-1].lattice for name, found in rows.items()}
        assert last["bf16"] != last["float32"]
        assert last["bf16"] == pytest.approx(last["float32"], rel=0.05)
        assert last["bf16"] < rows["bf16"][0].position + rows["bf16"][0].lattice

    def test_only_products_round(self, reference: PackedDataset, tiny_model: CrystalModel) -> None:
        batch = noised(reference, "host")
        exact = denoising_losses(tiny_model.network, batch)
        rounded = denoising_losses(tiny_model.network, batch, precision="bf16")
        for name in ("position", "lattice"):
            a, b = getattr(exact, name), getattr(rounded, name)
            assert b.dtype == torch.float32
            assert not torch.equal(a, b)
            torch.testing.assert_close(b, a, rtol=0.05, atol=0.02)

    def test_refusals(self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path) -> None:
        with pytest.raises(InputError, match="precision 'half' is not known"):
            dataclasses.replace(QUICK, precision="half")
        with pytest.raises(InputError, match="tf32 is of CUDA devices"):
            Trainer(split[0], tmp_path, dataclasses.replace(QUICK, precision="tf32"))


class TestCommand:
    def test_it_stops_and_goes_on(self, tmp_path: Path) -> None:
        arguments = ["--out", str(tmp_path / "run"), "--steps", "3", "--batch-size", "4"]
        arguments += ["--device", "cpu", "--threads", "1", "--prior-epochs", "0"]
        arguments += ["--ranker-epochs", "0", "--proposal-epochs", "0", "--precision", "bf16"]
        call = CliRunner().invoke
        done = call(train, [*arguments, "--max-minutes", "1e-9"], catch_exceptions=False)
        assert "0 of 3 steps when the time was over" in done.output
        done = call(train, arguments, catch_exceptions=False)
        assert "3 steps; weights in" in done.output
        for bad in (["--max-minutes", "0"], ["--precision", "half"]):
            assert call(train, [*arguments, *bad]).exit_code == 2


BLOCKED = ("ase", "chgnet", "matminer", "phonopy", "pymatgen", "smact", "spglib")

ALONE = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, Blocked())
import langevin_xtal.cli.bench, langevin_xtal.cli.train, langevin_xtal.sampling.sample
from langevin_xtal.cli.train import train
train.main(sys.argv[1:], standalone_mode=False)
"""


@pytest.mark.slow
def test_training_needs_no_package_of_crystals(tmp_path: Path) -> None:
    """As on machines lent for their GPU: torch, numpy and little else."""
    arguments = ["--out", str(tmp_path / "run"), "--steps", "2", "--batch-size", "4"]
    arguments += ["--device", "cpu", "--threads", "1", "--prior-epochs", "1"]
    arguments += ["--ranker-epochs", "1", "--proposal-epochs", "1"]
    command = [sys.executable, "-c", ALONE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert "2 steps; weights in" in done.stdout


class TestSession:
    """The script for a lent GPU."""

    SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_session.py"

    @pytest.fixture(scope="class")
    def script(self) -> dict[str, Any]:
        return runpy.run_path(str(self.SCRIPT))

    def test_what_is_measured_is_kept(self, script: dict[str, Any], tmp_path: Path) -> None:
        calls = []

        def fails() -> None:
            raise RuntimeError("out of memory\nand more")

        for _ in range(2):
            record = script["Record"](tmp_path / "bench.json")
            assert record.measure("one", lambda: calls.append(1) or {"rate": 2.0}) == {"rate": 2.0}
            assert record.measure("two", fails) == {"error": "RuntimeError: out of memory"}
        assert calls == [1]
        assert json.loads((tmp_path / "bench.json").read_text()) == {"one": {"rate": 2.0}}

    def test_sampling_goes_without_checks(
        self, script: dict[str, Any], assigning_model: CrystalModel, reference: PackedDataset
    ) -> None:
        small = reference.select(np.flatnonzero(reference.site_counts <= 3)[:4])
        found = script["chains"](assigning_model, small, 4, "cpu")["structures_per_second"]
        assert 0 < found["low"] <= found["median"] <= found["high"]

    def test_refusals(self, tmp_path: Path) -> None:
        for bad, message in (
            (["fly"], "step 'fly' is not known"),
            (["train", "--data", str(tmp_path / "no.lxd")], "is not there"),
        ):
            command = [sys.executable, str(self.SCRIPT), *bad]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 2
            assert message in done.stderr
