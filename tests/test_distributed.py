"""Several processes that share every batch do what one does; run under ``torchrun`` for real."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.diffusion.crystals import CrystalStore
from langevin_xtal.diffusion.losses import denoising_losses
from langevin_xtal.diffusion.noising import Noised, NoisingConfig, noise_batch
from langevin_xtal.errors import InputError, LangevinXtalError
from langevin_xtal.graph.snapping import all_operations
from langevin_xtal.model.checkpoint import CrystalModel, load_model
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.model.tensor_file import read_tensors
from langevin_xtal.train import fit, loop
from langevin_xtal.train.distributed import Team, join, part_of_total
from langevin_xtal.train.fit import STATE_FORMAT
from langevin_xtal.train.loop import TrainConfig, Trainer
from tests.conftest import TINY

QUICK = TrainConfig(
    steps=10,
    batch_size=7,
    learning_rate=3e-3,
    warmup=4,
    log_every=1,
    validate_every=5,
    validation_size=6,
    save_every=4,
    network=TINY,
)
STOP = 6
"""Steps done when the second process of two gets a signal."""

DEATH = 3
"""Steps done when the second process of two ends without a word."""


def split() -> tuple[PackedDataset, PackedDataset]:
    """Training and validation sets of small crystals."""
    data = reference_dataset()
    small = data.select(np.flatnonzero(data.site_counts <= 4))
    return small.select(np.arange(30)), small.select(np.arange(30, 40))


def rows(out: Path) -> dict[int, list[float]]:
    """Losses by step, of training, validation and by level."""
    with (out / "log.csv").open(newline="") as handle:
        table = list(csv.DictReader(handle))
    quiet = ("step", "seconds", "crystals_per_second")
    return {int(r["step"]): [float(v) for k, v in r.items() if k not in quiet] for r in table}


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes of a module."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [*command, "--nproc-per-node", "2", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )


def noised(share: slice | None = None) -> Noised:
    """A batch of eleven crystals of many sizes, or some of them as they are in it."""
    store = CrystalStore(reference_dataset())
    return noise_batch(
        store.batch(torch.arange(3, len(store), 10)[:11]),
        NoiseLevels(),
        NoisingConfig(confined=0.5),
        TINY.graph_settings(),
        all_operations(),
        torch.Generator().manual_seed(3),
        share=share,
    )


class TestShares:
    @given(total=st.integers(1, 200), size=st.integers(1, 20))
    def test_are_parts_of_the_batch(self, total: int, size: int) -> None:
        parts = [list(range(total))[Team(rank, size).share(total)] for rank in range(size)]
        assert [k for part in parts for k in part] == list(range(total))
        lengths = {len(part) for part in parts}
        assert max(lengths) - min(lengths) <= 1

    @pytest.mark.parametrize("size", [1, 2, 3, 11])
    def test_of_a_batch_have_the_losses_of_its_crystals(
        self, tiny_model: CrystalModel, size: int
    ) -> None:
        whole = denoising_losses(tiny_model.network, noised())
        shares = [Team(rank, size).share(11) for rank in range(size)]
        parts = [denoising_losses(tiny_model.network, noised(s)) for s in shares]
        for name in ("position", "lattice"):
            together = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(together, getattr(whole, name), rtol=1e-5, atol=1e-6)
        assert torch.equal(torch.cat([p.lattice_used for p in parts]), whole.lattice_used)
        lattices = float(whole.lattice_used.sum())
        assert 0 < lattices < 11
        total = sum(part_of_total(part, 0.7, 11.0, lattices) for part in parts)
        torch.testing.assert_close(total, whole.total(0.7), rtol=1e-5, atol=1e-6)

    def test_share_nothing(self) -> None:
        parts = [noised(Team(rank, 3).share(11)) for rank in range(3)]
        whole = noised()
        assert sum(len(part.graph.source) for part in parts) == len(whole.graph.source)
        for name in ("tau_pos", "tau_lat", "sigma_pos", "position_target", "lattice_target"):
            together = torch.cat([getattr(part, name) for part in parts])
            torch.testing.assert_close(together, getattr(whole, name), rtol=1e-5, atol=1e-6)

    def test_a_batch_without_a_noised_lattice(self, tiny_model: CrystalModel) -> None:
        batch = noised()
        clean = dataclasses.replace(batch, lattice_used=torch.zeros_like(batch.lattice_used))
        losses = denoising_losses(tiny_model.network, clean)
        assert torch.equal(part_of_total(losses, 1.0, 11.0, 0.0), losses.position.sum() / 11)


class TestTeam:
    """Sums, with the other process played by what it would add."""

    def test_alone_nothing_changes(self) -> None:
        team, values = Team(), np.arange(3.0)
        weights = torch.nn.Parameter(torch.ones(2))
        team.add(values)
        team.add_gradients([weights])
        team.check_same(5)
        assert values.tolist() == [0.0, 1.0, 2.0]
        assert weights.grad is None
        assert team.leads
        assert not team.stopping

    def test_sums(self, monkeypatch: pytest.MonkeyPatch) -> None:
        other = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0, 0.0, 0.0]).double()
        monkeypatch.setattr(Team, "_reduce", lambda self, tensor: tensor.add_(other))
        first, second = np.arange(4.0).reshape(2, 2), np.array([4.0])
        team = Team(1, 2)
        team.add(first, second)
        assert first.tolist() == [[10.0, 21.0], [32.0, 43.0]]
        assert second.tolist() == [54.0]
        assert not team.leads
        assert not team.stopping

    @pytest.mark.parametrize(("mine", "theirs"), [(True, 0.0), (False, 1.0), (True, 1.0)])
    def test_one_that_should_stop_or_end_takes_all_along(
        self, monkeypatch: pytest.MonkeyPatch, mine: bool, theirs: float
    ) -> None:
        for wanted in ("stopping", "ending"):
            flags = [theirs, 0.0] if wanted == "stopping" else [0.0, theirs]
            other = torch.tensor([1.0, *flags], dtype=torch.float64)
            monkeypatch.setattr(Team, "_reduce", lambda self, tensor, o=other: tensor.add_(o))
            asked = {"stop_asked" if wanted == "stopping" else "time_is_over": mine}
            team = Team(0, 2, **asked)
            team.add(np.zeros(1))
            assert {k: getattr(team, k) for k in ("stopping", "ending")} == {
                "stopping": wanted == "stopping",
                "ending": wanted == "ending",
            }

    def test_gradients_missing_on_one_side_count_as_zero(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Team, "_reduce", lambda self, t: t.add_(torch.arange(float(len(t)))))
        first, second = (torch.nn.Parameter(torch.ones(s)) for s in ((2, 2), (3,)))
        first.grad = torch.full((2, 2), 0.5)
        Team(0, 2).add_gradients([first, second])
        assert first.grad.tolist() == [[0.5, 1.5], [2.5, 3.5]]
        assert second.grad is not None
        assert second.grad.tolist() == [4.0, 5.0, 6.0]

    def test_processes_at_different_steps_are_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = torch.tensor([0.0, 500.0, 0.0, 0.0], dtype=torch.float64)
        monkeypatch.setattr(Team, "_reduce", lambda self, tensor: tensor.add_(other))
        Team(0, 2).check_same(500)
        with pytest.raises(InputError, match="steps 0, 500: the folder must be the same"):
            Team(0, 2).check_same(0)

    def test_without_torchrun_a_process_is_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
            monkeypatch.delenv(name, raising=False)
        assert join("cpu") == (Team(), "cpu")
        monkeypatch.setenv("WORLD_SIZE", "4")  # left over from something else
        assert join("cpu") == (Team(), "cpu")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there are CUDA devices")
    def test_more_processes_than_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_ADDR", "localhost")
        with pytest.raises(InputError, match="process 1 of this machine has no CUDA device"):
            join("cuda")

    def test_more_processes_than_crystals(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(loop, "join", lambda device: (Team(0, 8), device))
        with pytest.raises(InputError, match="batch_size 7 is smaller than the 8 processes"):
            Trainer(split()[0], tmp_path / "run", QUICK)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
class TestTwoProcesses:
    @pytest.fixture(scope="class")
    def alone(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The folder of a run in one process."""
        out = tmp_path_factory.mktemp("alone")
        data, validation = split()
        list(Trainer(data, out, QUICK, validation=validation).run())
        return out

    @pytest.fixture(scope="class")
    def together(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """What :func:`in_a_process` left behind in two processes."""
        out = tmp_path_factory.mktemp("together")
        done = torchrun("-m", "tests.test_distributed", str(out))
        assert done.returncode == 0, done.stdout + done.stderr
        return out

    def test_losses_are_those_of_one(self, alone: Path, together: Path) -> None:
        one, two = rows(alone), rows(together / "run")
        assert list(one) == list(two) == list(range(1, QUICK.steps + 1))
        for step in one:
            np.testing.assert_allclose(two[step], one[step], rtol=1e-5, atol=1e-7)
        assert np.isfinite(one[5][4:6]).all()  # validated

    def test_weights_and_moments_are_those_of_one(self, alone: Path, together: Path) -> None:
        one, header = read_tensors(alone / "state.safetensors", STATE_FORMAT)
        two, other = read_tensors(together / "run" / "state.safetensors", STATE_FORMAT)
        assert header["step"] == other["step"] == QUICK.steps
        assert header["config"] == other["config"]
        assert one.keys() == two.keys()
        for name, values in one.items():
            scale = float(values.abs().max())
            assert float((two[name] - values).abs().max()) <= 1e-4 * scale + 1e-12, name

    def test_a_signal_to_one_stops_both_after_the_step(self, together: Path) -> None:
        for rank in range(2):
            assert (together / f"interrupted_{rank}").read_text() == str(STOP + 1)
        _, header = read_tensors(together / "stopped.safetensors", STATE_FORMAT)
        assert header["step"] == STOP + 1

    def test_both_hold_the_same_weights(self, together: Path) -> None:
        first, second = ((together / f"weights_{rank}").read_text() for rank in range(2))
        assert first == second
        assert first == load_model(together / "run" / "model.safetensors").hash

    def test_the_second_writes_nothing(self, together: Path) -> None:
        assert (together / "written_0").read_text() == "True"
        assert (together / "written_1").read_text() == "False"
        assert (together / "rows_1").read_text() == "[]"

    def test_one_that_dies_ends_the_other_with_a_sentence(self, together: Path) -> None:
        said = (together / "died").read_text()
        assert "another process of this training has ended" in said
        assert "\n" not in said
        _, header = read_tensors(together / "lost" / "state.safetensors", STATE_FORMAT)
        assert header["step"] == DEATH

    def test_the_command(self, tmp_path: Path) -> None:
        data = split()[0].save(tmp_path / "some.lxd")
        arguments = ["--data", str(data), "--out", str(tmp_path / "run"), "--steps", "2"]
        arguments += ["--batch-size", "3", "--log-every", "1", "--prior-epochs", "1"]
        arguments += ["--ranker-epochs", "0", "--proposal-epochs", "0"]
        arguments += ["--device", "cpu", "--threads", "1"]
        done = torchrun("-m", "langevin_xtal", "train", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("weights in") == 1
        assert done.stdout.count("step      2") == 1
        model = load_model(tmp_path / "run" / "model.safetensors")
        assert model.card["steps"] == 2
        assert model.prior is not None
        assert sorted(rows(tmp_path / "run")) == [1, 2]


def in_a_process(out: Path) -> None:
    """One of two: a run stopped by a signal and resumed, and one in which the second dies."""
    torch.set_num_threads(1)
    data, validation = split()
    rank = int(os.environ["RANK"])
    written = []
    write = fit.write_tensors
    fit.write_tensors = lambda *args: (written.append(args[0]), write(*args))  # type: ignore
    trainer = Trainer(data, out / "run", QUICK, validation=validation)
    prepare = trainer._advance

    def signalled(noised: Noised) -> None:
        if trainer.step == STOP and rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        prepare(noised)

    trainer._advance = signalled  # type: ignore[method-assign]
    seen = []
    try:
        seen += [row.step for row in trainer.run()]
    except KeyboardInterrupt:
        (out / f"interrupted_{rank}").write_text(str(trainer.step))
    if trainer.team.leads:
        os.link(out / "run" / "state.safetensors", out / "stopped.safetensors")
    resumed = Trainer(data, out / "run", QUICK, validation=validation)
    seen += [row.step for row in resumed.run()]
    (out / f"weights_{rank}").write_text(resumed.model().hash)
    (out / f"written_{rank}").write_text(str(bool(written)))
    (out / f"rows_{rank}").write_text(str(seen))

    lost = Trainer(data, out / "lost", QUICK)
    advance = lost._advance

    def dies(noised: Noised) -> None:
        if lost.step == DEATH and rank == 1:
            os._exit(0)
        advance(noised)

    lost._advance = dies  # type: ignore[method-assign]
    try:
        list(lost.run())
    except LangevinXtalError as error:
        (out / "died").write_text(str(error))
    os._exit(0)  # the group cannot be left in order any more


if __name__ == "__main__":
    in_a_process(Path(sys.argv[1]))
