"""The benchmark: its stopwatch and sums are right whatever the machine's speed."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from langevin_xtal.cli.bench import bench, table
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion import losses, noising
from langevin_xtal.errors import InputError
from langevin_xtal.graph import available
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.network import EdgeNetwork
from langevin_xtal.report import bench as measuring
from langevin_xtal.report.bench import (
    SAMPLE_POINTS,
    TRAIN_POINTS,
    measure,
    noised_crystals,
    requests_like,
)
from langevin_xtal.report.instruments import PeakMemory, Spread, Stopwatch, watched
from langevin_xtal.report.roofline import Limits, Tally, Work, measure_limits, stage_rows
from langevin_xtal.sampling.samplers import Ancestral, AnnealedLangevin
from langevin_xtal.train import loop
from langevin_xtal.train.loop import Trainer
from langevin_xtal.version import __version__

FEW = Ancestral(levels=4)


class Clock:
    """Time that passes when it is asked to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(scope="module")
def small(reference: PackedDataset) -> PackedDataset:
    """A dozen crystals of few sites, so that a step takes milliseconds."""
    return reference.select(np.flatnonzero(reference.site_counts <= 3)[:12])


@pytest.fixture(scope="module")
def report(tiny_model: CrystalModel, small: PackedDataset) -> dict[str, Any]:
    """All stages."""
    return measure(tiny_model, small, batch_size=6, repeat=3, threads=1, sampler=FEW, device="cpu")


class TestStopwatch:
    def test_a_stage_excludes_those_inside_it(self) -> None:
        clock = Clock()
        watch = Stopwatch(clock=clock)
        with watch.stage("outer"):
            clock.work(1.0)
            with watch.stage("inner"):
                clock.work(10.0)
                with watch.stage("outer"):
                    clock.work(100.0)
            clock.work(1000.0)
        clock.work(5000.0)
        assert watch.seconds == {"outer": 1101.0, "inner": 10.0}

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=12))
    def test_stages_add_up_to_the_whole(self, steps: list[tuple[str, int]]) -> None:
        clock = Clock()
        watch = Stopwatch(clock=clock)

        def nest(rest: list[tuple[str, int]]) -> None:
            if rest:
                with watch.stage(rest[0][0]):
                    clock.work(rest[0][1])
                    nest(rest[1:])

        nest(steps)
        for name in "abc":
            assert watch.seconds.get(name, 0) == sum(t for n, t in steps if n == name)

    def test_an_error_ends_the_stage(self) -> None:
        clock = Clock()
        watch = Stopwatch(clock=clock)

        def fails() -> None:
            clock.work(2.0)
            raise KeyError

        with pytest.raises(KeyError), watch.stage("fails"):
            fails()
        with watch.stage("after"):
            clock.work(3.0)
        assert watch.seconds == {"fails": 2.0, "after": 3.0}

    def test_threads_do_not_mix(self) -> None:
        clock = Clock()
        watch = Stopwatch(clock=clock)

        def other() -> None:
            with watch.stage("other"):
                clock.work(7.0)

        with watch.stage("mine"):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert watch.seconds == {"other": 7.0, "mine": 7.0}

    def test_waits_for_the_device_before_every_reading(self) -> None:
        order: list[str] = []

        def clock() -> float:
            order.append("read")
            return 0.0

        watch = Stopwatch(lambda: order.append("wait"), clock)
        with watch.stage("a"), watch.stage("b"):
            order.append("work")
        assert order == ["wait", "read"] * 2 + ["work"] + ["wait", "read"] * 2


class TestWatched:
    def test_functions_are_timed_wherever_they_are_imported(self) -> None:
        genuine = losses.denoising_losses
        assert loop.denoising_losses is genuine
        with watched(Stopwatch(), {"langevin_xtal.diffusion.losses:denoising_losses": "x"}):
            assert loop.denoising_losses is not genuine
            assert losses.denoising_losses is not genuine
            assert loop.denoising_losses.__wrapped__ is genuine
        assert loop.denoising_losses is genuine
        assert losses.denoising_losses is genuine

    def test_methods_and_class_methods(self) -> None:
        clock = Clock()
        watch = Stopwatch(clock=clock)
        genuine = EdgeNetwork.forward
        module = sys.modules[__name__]
        point = f"{module.__name__}:Counted.made"
        with watched(watch, {"langevin_xtal.model.network:EdgeNetwork.forward": "f", point: "m"}):
            assert EdgeNetwork.forward is not genuine
            Counted.clock = clock
            assert Counted.made() is Counted
        assert EdgeNetwork.forward is genuine
        assert Counted.made() is Counted
        assert watch.seconds == {"m": 1.0}

    def test_put_back_after_an_error(self) -> None:
        genuine = noising.graph_of
        broken = TRAIN_POINTS | {"langevin_xtal.train.loop:Trainer.no_such_method": "x"}
        with pytest.raises(AttributeError), watched(Stopwatch(), broken):
            pass
        assert noising.graph_of is genuine
        assert not hasattr(torch.Tensor.backward, "__wrapped__")

    @pytest.mark.parametrize("points", [TRAIN_POINTS, SAMPLE_POINTS])
    def test_what_is_timed_exists(self, points: dict[str, str]) -> None:
        watch = Stopwatch()
        with watched(watch, points):
            pass
        assert watch.seconds == {}


class Counted:
    """Something with a class method."""

    clock = Clock()

    @classmethod
    def made(cls) -> type[Counted]:
        """Takes a second."""
        cls.clock.work(1.0)
        return cls


class TestMeasuring:
    @given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9))
    def test_spread(self, values: list[float]) -> None:
        spread = Spread.of(values)
        assert spread.low == min(values)
        assert spread.high == max(values)
        assert spread.median == pytest.approx(float(np.median(values)))

    @pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
    def test_peak_memory_is_of_the_block(self) -> None:
        size = 300 * 2**20
        with PeakMemory("cpu") as before:
            pass
        with PeakMemory("cpu") as large, mmap.mmap(-1, size) as block:
            block.write(b"x" * size)
        with PeakMemory("cpu") as after:
            pass
        assert large.bytes > before.bytes + 0.9 * size
        assert after.bytes < large.bytes - 0.9 * size

    def test_rates_of_training(
        self, tiny_model: CrystalModel, small: PackedDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Steps that take a quarter of a second on a clock of our own."""
        clock = Clock()
        advance = Trainer._advance

        def slow(trainer: Trainer, noised: noising.Noised) -> None:
            advance(trainer, noised)
            clock.work(0.25)

        monkeypatch.setattr(Trainer, "_advance", slow)
        monkeypatch.setattr(measuring.time, "perf_counter", clock)
        monkeypatch.setattr(Trainer, "_log", lambda trainer, row: None)
        part = measuring.measure_training(
            tiny_model, small, device="cpu", batch_size=5, repeat=2, threads=1
        )
        for value in part["crystals_per_second"].values():
            assert value == pytest.approx(5 / 0.25)
        for value in part["seconds_per_step"].values():
            assert value == pytest.approx(0.25)

    def test_no_noise_leaves_crystals_where_they_are(self, small: PackedDataset) -> None:
        arrays = noised_crystals(small, 1e-9)
        np.testing.assert_allclose(arrays.frac, small.frac, atol=1e-6)
        np.testing.assert_array_equal(arrays.lattice, small.lattice)

    def test_noise_has_the_size_asked_for(self, reference: PackedDataset) -> None:
        general = reference.select(np.flatnonzero(reference.group <= 15))
        sigma = 0.05
        arrays = noised_crystals(general, sigma)
        crystal = np.repeat(np.arange(len(general)), np.diff(general.site_start))
        moved = np.einsum("ai,aij->aj", arrays.frac - general.frac, general.lattice[crystal])
        assert 0 < np.sqrt((moved**2).mean()) < 2 * sigma
        assert np.abs(moved).max() < 6 * sigma

    @pytest.mark.parametrize("count", [1, 5, 12, 30])
    def test_requests(self, small: PackedDataset, count: int) -> None:
        asked = requests_like(small, count)
        assert len(asked) == count
        sites = small.site_counts
        known = {(int(g), int(n)) for g, n in zip(small.group, sites, strict=True)}
        assert {(r.space_group.number, len(r.numbers)) for r in asked} <= known
        assert len({str(r) for r in asked}) >= min(count, len(small)) - 1


@pytest.mark.slow
class TestReport:
    def test_is_json_with_its_surroundings(
        self, report: dict[str, Any], tiny_model: CrystalModel, small: PackedDataset
    ) -> None:
        assert json.loads(json.dumps(report)) == report
        assert report["langevin_xtal"] == __version__
        assert report["torch"] == torch.__version__
        assert report["weights"] == tiny_model.hash
        assert report["data"] == {"crystals": len(small), "hash": small.content_hash}
        assert report["device"] == "cpu"

    def test_spreads_are_in_order(self, report: dict[str, Any]) -> None:
        found = 0
        for part in (report["train"], report["sample"], *report["graph"]["rows"]):
            for value in part.values():
                if isinstance(value, dict) and "median" in value:
                    assert 0 < value["low"] <= value["median"] <= value["high"]
                    found += 1
        assert found == 2 + 3 + 2 * len(report["graph"]["rows"])

    def test_every_builder_at_every_noise(self, report: dict[str, Any]) -> None:
        rows = report["graph"]["rows"]
        assert {row["backend"] for row in rows} == set(available())
        assert len(rows) == 4 * len(available())
        sigmas = sorted({row["sigma"] for row in rows})
        np.testing.assert_allclose(np.diff(np.log(sigmas)), np.log(sigmas[1] / sigmas[0]))
        for sigma in sigmas:
            same = [r for r in rows if r["sigma"] == sigma and r["backend"] != "reference"]
            assert len({r["edges_per_site"] for r in same}) == 1

    @pytest.mark.parametrize(
        ("stage", "names"),
        [
            ("train", {"noising", "graph", "forward", "backward", "optimiser"}),
            ("sample", {"start", "graph", "network", "steps", "post-processing", "other"}),
        ],
    )
    def test_shares(self, report: dict[str, Any], stage: str, names: set[str]) -> None:
        shares = report[stage]["shares"]
        assert set(shares) == names
        assert sum(shares.values()) == pytest.approx(1.0)
        assert all(share > 0 for name, share in shares.items() if name != "other")

    def test_evaluations(self, report: dict[str, Any]) -> None:
        part = report["sample"]
        assert part["requests"] == 6
        assert 0 < part["candidates"] <= 6
        assert part["candidates"] <= part["attempts"] <= 6 * 8
        each = part["attempts"] * FEW.evaluations / part["candidates"]
        assert part["evaluations_per_structure"] == pytest.approx(each)
        for place in ("low", "median", "high"):
            ratio = part["evaluations_per_second"][place] / part["structures_per_second"][place]
            assert ratio == pytest.approx(each)

    def test_stages_are_those_asked_for(
        self, tiny_model: CrystalModel, small: PackedDataset
    ) -> None:
        seen: list[tuple[int, int]] = []
        report = measure(
            tiny_model,
            small,
            stages=["sample"],
            device="cpu",
            batch_size=2,
            repeat=1,
            threads=1,
            sampler=AnnealedLangevin(levels=2, steps=1),
            progress=lambda done, planned: seen.append((done, planned)),
        )
        assert "graph" not in report
        assert "train" not in report
        assert report["sample"]["shares"]["steps"] > 0
        assert report["sample"]["sampler"].startswith("AnnealedLangevin")
        assert seen == [(0, 1), (1, 1)]

    def test_threads_are_left_as_they_were(self, report: dict[str, Any]) -> None:
        assert torch.get_num_threads() == 1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"stages": ["sampel"]}, "stage 'sampel' is not known; give some of graph, train"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"repeat": -1}, "repeat is -1"),
            ({"device": "tpu"}, "'tpu'"),
        ],
    )
    def test_bad_input(
        self,
        tiny_model: CrystalModel,
        small: PackedDataset,
        changes: dict[str, Any],
        message: str,
    ) -> None:
        with pytest.raises(InputError, match=message):
            measure(tiny_model, small, **({"device": "cpu"} | changes))

    def test_no_crystals(self, tiny_model: CrystalModel, small: PackedDataset) -> None:
        with pytest.raises(InputError, match="no crystals"):
            measure(tiny_model, small.select([]), device="cpu")


class TestCommand:
    @pytest.fixture(scope="class")
    def call(self, tiny_path: Path, small: PackedDataset, tmp_path_factory: Any) -> Callable:
        data = small.save(tmp_path_factory.mktemp("data") / "small.lxd")
        quick = ["--data", str(data), "--model", str(tiny_path), "--device", "cpu"]
        quick += ["--batch-size", "2", "--repeat", "1", "--threads", "1"]
        return lambda *extra: CliRunner().invoke(bench, [*quick, *extra])

    def test_table_and_file(self, call: Callable, tmp_path: Path) -> None:
        out = tmp_path / "numbers.json"
        done = call("--stage", "train,graph", "--json", str(out))
        assert done.exit_code == 0, done.output
        report = json.loads(out.read_text())
        assert done.output.splitlines()[:-1] == table(report)
        assert list(report)[-2:] == ["graph", "train"]
        for text in ("crystals/s", "cpp", "peak memory", "optimiser", report["weights"]):
            assert text in done.output

    def test_sampling(self, call: Callable) -> None:
        done = call("--stage", "sample", "--levels", "3")
        assert done.exit_code == 0, done.output
        for text in ("structures/s", "levels=3", "network", "post-processing"):
            assert text in done.output

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            (["--stage", "grap"], "stage 'grap' is not known"),
            (["--stage", ","], "no stage was given"),
            (["--json", "/nowhere/at/all.json"], "is not a folder"),
            (["--steps", "3"], "steps per level belong to the langevin sampler"),
            (["--model", "tiny"], "neither shipped"),
            (["--data", "/nowhere.lxd"], "/nowhere.lxd"),
        ],
    )
    def test_bad_input(self, call: Callable, extra: list[str], message: str) -> None:
        done = call(*extra)
        assert isinstance(done.exception, InputError)
        assert message in str(done.exception)
        assert "\n" not in str(done.exception)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_no_cuda(self, call: Callable) -> None:
        done = call("--device", "cuda")
        assert isinstance(done.exception, InputError)
        assert "finds no CUDA device" in str(done.exception)


def test_python_m_langevin_xtal() -> None:
    command = [sys.executable, "-m", "langevin_xtal", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"langevin-xtal, version {__version__}"
    done = subprocess.run([*command[:-1], "model", "info", "nothing"], capture_output=True)
    assert done.returncode == 2
    assert done.stderr.startswith(b"Error: model 'nothing'")


@pytest.mark.slow
def test_only_the_first_process_of_torchrun_speaks() -> None:
    code = (
        "import sys, os; os.environ['TORCHELASTIC_RUN_ID'] = 'x'; os.environ['RANK'] = sys.argv[1]"
        "; import runpy; sys.argv[1:] = sys.argv[2:]"
        "; runpy.run_module('langevin_xtal', run_name='__main__')"
    )
    said = {}
    for rank in "01":
        for arguments in (["--version"], ["model", "info", "nothing"]):
            done = subprocess.run(
                [sys.executable, "-c", code, rank, *arguments], capture_output=True, text=True
            )
            said[rank, arguments[0]] = (done.stdout, done.stderr, done.returncode)
    assert said["0", "--version"][0].startswith("langevin-xtal")
    assert said["1", "--version"] == ("", "", 0)
    assert said["0", "model"] == said["1", "model"]
    assert said["1", "model"][2] == 2


class TestRoofline:
    def test_products_are_counted(self) -> None:
        tally = Tally()
        a, b = torch.ones(30, 40, requires_grad=True), torch.ones(40, 50)
        with tally.stage("forward"):
            c = a @ b
        with tally.stage("backward"):
            c.backward(torch.ones(30, 50))
        work = tally.work["forward"]
        assert (work.flops, work.operations) == (2 * 30 * 40 * 50, 1)
        assert work.bytes == 4 * (30 * 40 + 40 * 50 + 30 * 50)
        assert tally.work["backward"].flops == 2 * 30 * 40 * 50

    @pytest.mark.parametrize("inference", [False, True])
    def test_a_linear_layer(self, inference: bool) -> None:
        tally, layer, x = Tally(), torch.nn.Linear(8, 16), torch.ones(5, 8)
        with torch.inference_mode(inference), torch.no_grad(), tally.stage("layer"):
            layer(x)
        assert tally.work["layer"].flops == 2 * 5 * 8 * 16
        assert tally.work["layer"].bytes == 4 * (5 * 8 + 8 * 16 + 16 + 5 * 16)

    def test_what_is_one_kernel_is_one_operation(self) -> None:
        tally, x = Tally(), torch.ones(100, requires_grad=True)
        y, ones = torch.nn.functional.silu(x), torch.ones(100)
        with tally.stage("backward"):
            y.backward(ones)
        assert tally.work["backward"].bytes == 3 * 400
        assert tally.work["backward"].operations == 1

    def test_views_cost_nothing_and_gathers_their_rows(self) -> None:
        tally, table = Tally(), torch.zeros(1000, 3)
        with tally.stage("view"):
            table.t()[1:].unsqueeze(0)
        with tally.stage("rows"):
            table[torch.tensor([1, 7])]
        with tally.stage("sum"):
            table + table
        assert "view" not in tally.work
        assert tally.work["rows"].bytes == 2 * 8 + 2 * 2 * 3 * 4
        assert tally.work["sum"].bytes == 3 * 12_000

    def test_stages_do_not_count_each_other(self) -> None:
        tally, x = Tally(), torch.ones(10)
        with tally.stage("outer"):
            x.exp()
            with tally.stage("inner"):
                x.exp().exp()
            x.exp()
        assert {k: w.operations for k, w in tally.work.items()} == {"outer": 2, "inner": 2}

    def test_rows(self) -> None:
        limits = Limits(flops=100.0, bandwidth=10.0)
        work = {"a": Work(50.0, 2.0, 3), "b": Work(10.0, 20.0, 4)}
        a, b, c = stage_rows({"a": 1.0, "b": 4.0, "c": 5.0}, work, limits)
        assert (a["floor_seconds"], a["bound_by"], a["share_of_limit"]) == (0.5, "arithmetic", 0.5)
        assert (b["floor_seconds"], b["bound_by"], b["share_of_limit"]) == (2.0, "bytes", 0.5)
        assert (c["floor_seconds"], c["share"], c["operations"]) == (0.0, 0.5, 0)

    def test_limits(self) -> None:
        clock = Clock()

        def passes() -> None:
            clock.work(0.5)

        limits = measure_limits("cpu", passes, clock)
        assert limits == Limits(flops=2 * 1024**3 / 0.5, bandwidth=8 * 2**26 / 0.5)

    def test_profile(self, tiny_model: CrystalModel, small: PackedDataset) -> None:
        found = measure(
            tiny_model,
            small,
            stages=["profile"],
            device="cpu",
            batch_size=4,
            repeat=1,
            sampler=FEW,
        )
        json.dumps(found)
        profile = found["profile"]
        assert min(profile["limits"].values()) > 0
        for kind, stages in (
            ("train", ["noising", "graph", "forward", "backward", "optimiser"]),
            ("sample", ["start", "graph", "network", "post-processing", "steps"]),
        ):
            assert [row["stage"] for row in profile[kind]] == stages
            assert sum(row["share"] for row in profile[kind]) == pytest.approx(1.0)
        by_stage = {row["stage"]: row for row in profile["train"]}
        # gradients of weights and of what comes in: twice the products, but for the first layers
        ratio = by_stage["backward"]["flops"] / by_stage["forward"]["flops"]
        assert 1.5 < ratio <= 2.0
        network = next(row for row in profile["sample"] if row["stage"] == "network")
        assert network["flops"] > 0
        lines = "\n".join(table(found))
        assert "train: backward" in lines
        assert "sample: network" in lines
