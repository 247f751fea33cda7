"""Training: it learns, stops and resumes exactly, and refuses what does not belong to it."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion.noising import Noised, NoisingConfig
from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.model.checkpoint import load_model, save_model
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.report.pictures import plot_losses
from langevin_xtal.train.fit import STATE_FORMAT
from langevin_xtal.train.loop import LevelMeans, LogRow, TrainConfig, Trainer, train
from tests.conftest import TINY

QUICK = TrainConfig(
    steps=24,
    batch_size=6,
    learning_rate=3e-3,
    warmup=4,
    log_every=5,
    validate_every=10,
    validation_size=12,
    save_every=7,
    network=TINY,
)
TIMINGS = {"seconds", "crystals_per_second"}


@pytest.fixture(scope="module")
def split(reference: PackedDataset) -> tuple[PackedDataset, PackedDataset]:
    """Training and validation sets of small crystals, so that a step takes milliseconds."""
    small = reference.select(np.flatnonzero(reference.site_counts <= 4))
    return small.select(np.arange(30)), small.select(np.arange(30, 50))


@pytest.fixture(scope="module")
def whole(split: tuple[PackedDataset, PackedDataset], tmp_path_factory: pytest.TempPathFactory):
    """The folder of a run that was never interrupted."""
    out = tmp_path_factory.mktemp("run") / "whole"
    train(split[0], out, QUICK, validation=split[1], name="quick", card={"licence": "CC0-1.0"})
    return out


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as handle:
        return [
            {k: v for k, v in row.items() if k not in TIMINGS} for row in csv.DictReader(handle)
        ]


def state(out: Path) -> dict[str, torch.Tensor]:
    """Weights, averages and Adam's moments of a run."""
    return load_file(out / "state.safetensors")


def assert_same_run(first: Path, second: Path) -> None:
    a, b = state(first), state(second)
    assert a.keys() == b.keys()
    assert {k.split(".")[0] for k in a} == {"network", "average", "adam", "means"}
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert load_model(first / "model.safetensors").hash == (
        load_model(second / "model.safetensors").hash
    )
    assert rows(first) == rows(second)


class TestRun:
    def test_loss_falls(self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path) -> None:
        config = dataclasses.replace(QUICK, steps=300, batch_size=8, log_every=60, warmup=10)
        losses = [row.position + row.lattice for row in Trainer(split[0], tmp_path, config).run()]
        assert len(losses) == 5
        assert losses[-1] < 0.9 * losses[0]

    def test_files(self, whole: Path, split: tuple[PackedDataset, PackedDataset]) -> None:
        assert sorted(p.name for p in whole.iterdir()) == [
            "config.json",
            "log.csv",
            "model.safetensors",
            "state.safetensors",
        ]
        config = json.loads((whole / "config.json").read_text())
        assert config == json.loads(json.dumps(dataclasses.asdict(QUICK)))
        model = load_model(whole / "model.safetensors")
        assert model.name == "quick"
        assert model.levels == QUICK.levels
        assert model.network.config == TINY
        assert model.card["licence"] == "CC0-1.0"
        assert model.card["steps"] == QUICK.steps
        assert model.card["crystals_seen"] == QUICK.steps * QUICK.batch_size
        assert model.card["data_hash"] == split[0].content_hash

    def test_log(self, whole: Path, split: tuple[PackedDataset, PackedDataset]) -> None:
        with (whole / "log.csv").open(newline="") as handle:
            reader = csv.reader(handle)
            header, *body = list(reader)
        assert header == LogRow.columns()
        assert header[:9] == [
            "step",
            "epoch",
            "seconds",
            "crystals_per_second",
            "rate",
            "position",
            "lattice",
            "validation_position",
            "validation_lattice",
        ]
        assert header[9:] == [f"{k}_{n}" for k in ("position", "lattice") for n in range(10)]
        table = np.array(body, dtype=float)
        assert table[:, 0].tolist() == [5, 10, 15, 20, 24]
        np.testing.assert_allclose(table[:, 1], table[:, 0] * 6 / len(split[0]), rtol=1e-5)
        assert np.isfinite(table[:, 2:7]).all()
        assert (np.diff(table[:, 2]) > 0).all()
        assert np.isfinite(table[:, 7]).tolist() == [False, True, False, True, True]
        by_level = table[:, 9:19]
        assert np.nanmin(by_level) >= 0
        assert np.isfinite(by_level).mean() > 0.9

    def test_loss_picture(self, whole: Path, tmp_path: Path) -> None:
        picture = tmp_path / "loss.png"
        plot_losses(whole / "log.csv", picture)
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert picture.stat().st_size > 5000

    def test_an_empty_log_gives_no_picture(self, whole: Path, tmp_path: Path) -> None:
        log = tmp_path / "log.csv"
        log.write_text((whole / "log.csv").read_text().splitlines()[0] + "\n")
        plot_losses(log, tmp_path / "loss.png")
        assert not (tmp_path / "loss.png").exists()

    def test_averages_differ_from_the_weights(self, whole: Path) -> None:
        tensors = state(whole)
        names = [k.removeprefix("average.") for k in tensors if k.startswith("average.")]
        moved = [not torch.equal(tensors[f"average.{k}"], tensors[f"network.{k}"]) for k in names]
        assert len(names) > 20
        assert all(moved)
        model = load_model(whole / "model.safetensors").network.state_dict()
        assert all(torch.equal(model[k], tensors[f"average.{k}"]) for k in names)

    def test_plain_target_is_another_run(
        self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path
    ) -> None:
        last = {}
        for target in ("plain", "orbit"):
            config = dataclasses.replace(QUICK, steps=5, noising=NoisingConfig(target=target))
            last[target] = list(Trainer(split[0], tmp_path / target, config).run())[-1]
        assert all(math.isfinite(row.position + row.lattice) for row in last.values())
        assert last["plain"].position > last["orbit"].position

    def test_validation_uses_the_same_noise_each_time(
        self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path
    ) -> None:
        trainer = Trainer(split[0], tmp_path, QUICK, validation=split[1])
        first, second = trainer.validate(), trainer.validate()
        assert np.array_equal(first.sums, second.sums)
        assert first.counts[0].sum() == QUICK.validation_size
        run = trainer.run()
        next(run)
        run.close()
        later = trainer.validate()
        assert np.array_equal(first.counts, later.counts)
        assert not np.array_equal(first.sums, later.sums)

    def test_without_a_validation_set(
        self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path
    ) -> None:
        config = dataclasses.replace(QUICK, steps=2, validate_every=1, log_every=1)
        found = list(Trainer(split[0], tmp_path, config).run())
        assert len(found) == 2
        assert all(math.isnan(row.validation_position) for row in found)

    def test_seed_decides(
        self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path
    ) -> None:
        config = dataclasses.replace(QUICK, steps=2)
        hashes = [
            train(split[0], tmp_path / str(k), dataclasses.replace(config, seed=seed)).hash
            for k, seed in enumerate((0, 0, 1))
        ]
        assert hashes[0] == hashes[1] != hashes[2]

    def test_every_epoch_sees_every_crystal_once(
        self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path
    ) -> None:
        config = dataclasses.replace(QUICK, batch_size=7)
        trainer = Trainer(split[0], tmp_path, config)
        seen = torch.cat([trainer._batch_index(step) for step in range(30)])
        epochs = seen.view(7, 30)
        assert all(sorted(e.tolist()) == list(range(30)) for e in epochs)
        assert not torch.equal(epochs[0], epochs[1])

    def test_a_step_without_a_gradient_changes_no_weight(
        self,
        split: tuple[PackedDataset, PackedDataset],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        trainer = Trainer(split[0], tmp_path, QUICK)
        before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
        prepare = trainer._prepare

        def poisoned(step: int) -> Noised:
            noised = prepare(step)
            return dataclasses.replace(noised, position_target=noised.position_target * torch.nan)

        monkeypatch.setattr(trainer, "_prepare", poisoned)
        run = trainer.run()
        next(run)
        run.close()
        after = trainer.network.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)


class TestResume:
    @pytest.mark.parametrize("pieces", [(5,), (10, 20), (15,)])
    def test_after_closing_the_generator(
        self,
        split: tuple[PackedDataset, PackedDataset],
        whole: Path,
        tmp_path: Path,
        pieces: tuple[int, ...],
    ) -> None:
        for stop in (*pieces, QUICK.steps):
            trainer = self._trainer(split, tmp_path)
            run = trainer.run()
            for row in run:
                if row.step == stop:
                    break
            run.close()
            assert trainer.step == stop
        assert_same_run(tmp_path, whole)

    @pytest.mark.parametrize("step", [0, 3, 7, 9, 19, 23])
    def test_after_an_interrupt_between_rows(
        self,
        split: tuple[PackedDataset, PackedDataset],
        whole: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        step: int,
    ) -> None:
        """As Ctrl-C does: in the midst of a step, before the weights change."""
        trainer = self._trainer(split, tmp_path)
        losses = self._interrupt_at(monkeypatch, trainer, step, "denoising_losses")
        assert losses == step + 1 + self._validations(step)
        assert trainer.step == step
        self._finish(split, tmp_path)
        assert_same_run(tmp_path, whole)

    def test_after_an_interrupt_amid_the_update(
        self,
        split: tuple[PackedDataset, PackedDataset],
        whole: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Half-changed weights are not saved: the run goes on from the last save."""
        trainer = self._trainer(split, tmp_path)
        step = trainer.optimiser.step

        def interrupted() -> None:
            step()
            if trainer.step == 12:
                raise KeyboardInterrupt

        monkeypatch.setattr(trainer.optimiser, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(trainer.run())
        assert self._trainer(split, tmp_path).step == 7
        self._finish(split, tmp_path)
        assert_same_run(tmp_path, whole)

    @pytest.mark.parametrize("step", [5, 10, 24])
    def test_after_an_interrupt_before_the_row_is_written(
        self,
        split: tuple[PackedDataset, PackedDataset],
        whole: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        step: int,
    ) -> None:
        trainer = self._trainer(split, tmp_path)
        write = trainer._log

        def interrupted(row: LogRow) -> None:
            if row.step == step:
                raise KeyboardInterrupt
            write(row)

        monkeypatch.setattr(trainer, "_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(trainer.run())
        assert [row["step"] for row in rows(tmp_path)] == [str(k) for k in range(5, step, 5)]
        self._finish(split, tmp_path)
        assert_same_run(tmp_path, whole)

    def test_after_an_interrupt_once_the_row_is_written(
        self,
        split: tuple[PackedDataset, PackedDataset],
        whole: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        trainer = self._trainer(split, tmp_path)
        write = trainer._log

        def interrupted(row: LogRow) -> None:
            write(row)
            if row.step == 10:
                raise KeyboardInterrupt

        monkeypatch.setattr(trainer, "_log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(trainer.run())
        self._finish(split, tmp_path)
        assert_same_run(tmp_path, whole)

    def test_after_being_killed(
        self,
        split: tuple[PackedDataset, PackedDataset],
        whole: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """No farewell: only the regular save at step 14 is there, and rows up to 20."""
        trainer = self._trainer(split, tmp_path)
        save = trainer.save
        monkeypatch.setattr(trainer, "save", lambda: trainer.step % 7 or save())
        run = trainer.run()
        for row in run:
            if row.step == 20:
                break
        run.close()
        assert [row["step"] for row in rows(tmp_path)] == ["5", "10", "15", "20"]
        assert self._trainer(split, tmp_path).step == 14
        assert [row["step"] for row in rows(tmp_path)] == ["5", "10"]
        self._finish(split, tmp_path)
        assert_same_run(tmp_path, whole)

    def test_a_finished_run_has_nothing_left(
        self, split: tuple[PackedDataset, PackedDataset], whole: Path
    ) -> None:
        before = (state(whole), rows(whole))
        assert list(self._trainer(split, whole).run()) == []
        after = (state(whole), rows(whole))
        assert all(torch.equal(before[0][k], after[0][k]) for k in before[0])
        assert before[1] == after[1]

    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            ({"steps": 50}, "steps"),
            ({"learning_rate": 1e-3}, "learning_rate"),
            ({"seed": 1}, "seed"),
            ({"network": dataclasses.replace(TINY, width=64)}, "network"),
            ({"levels": NoiseLevels(position_max=3.0)}, "levels"),
            ({"noising": NoisingConfig(target="plain")}, "noising"),
        ],
    )
    def test_other_settings(
        self,
        split: tuple[PackedDataset, PackedDataset],
        whole: Path,
        changes: dict[str, Any],
        name: str,
    ) -> None:
        config = dataclasses.replace(QUICK, **changes)
        with pytest.raises(InputError, match=rf"other settings \({name}\)") as error:
            Trainer(split[0], whole, config)
        assert "\n" not in str(error.value)

    def test_other_data(self, split: tuple[PackedDataset, PackedDataset], whole: Path) -> None:
        with pytest.raises(InputError, match="other training data") as error:
            Trainer(split[1], whole, QUICK)
        assert "\n" not in str(error.value)

    def test_damaged_state(
        self, split: tuple[PackedDataset, PackedDataset], whole: Path, tmp_path: Path
    ) -> None:
        data = (whole / "state.safetensors").read_bytes()
        path = tmp_path / "state.safetensors"
        flipped = bytearray(data)
        flipped[-5] ^= 1
        for damaged in (b"", data[:100], data[: len(data) // 2], data[:-1], bytes(flipped)):
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"truncated|damaged"):
                Trainer(split[0], tmp_path, QUICK)

    def test_foreign_state(
        self,
        split: tuple[PackedDataset, PackedDataset],
        whole: Path,
        tmp_path: Path,
    ) -> None:
        path = tmp_path / "state.safetensors"
        save_model(path, load_model(whole / "model.safetensors"))
        with pytest.raises(CheckpointError, match=f"reads '{STATE_FORMAT}'"):
            Trainer(split[0], tmp_path, QUICK)

    @pytest.mark.parametrize(
        "change",
        [
            {"network.embed.weight": torch.zeros(2)},
            {"adam.0.exp_avg": torch.zeros(2)},
            {"adam.x.exp_avg": torch.zeros(2)},
            {"adam.0": torch.zeros(2)},
            {"means.sums": torch.zeros(3)},
        ],
    )
    def test_state_that_does_not_fit(
        self,
        split: tuple[PackedDataset, PackedDataset],
        whole: Path,
        tmp_path: Path,
        change: dict[str, torch.Tensor],
    ) -> None:
        from langevin_xtal.model.tensor_file import read_tensors, write_tensors

        tensors, header = read_tensors(whole / "state.safetensors", STATE_FORMAT)
        write_tensors(tmp_path / "state.safetensors", tensors | change, header)
        with pytest.raises(CheckpointError, match="cannot be resumed"):
            Trainer(split[0], tmp_path, QUICK)

    @staticmethod
    def _trainer(split: tuple[PackedDataset, PackedDataset], out: Path) -> Trainer:
        card = {"licence": "CC0-1.0"}
        return Trainer(split[0], out, QUICK, validation=split[1], name="quick", card=card)

    def _finish(self, split: tuple[PackedDataset, PackedDataset], out: Path) -> None:
        trainer = self._trainer(split, out)
        steps = [row.step for row in trainer.run()]
        assert trainer.step == QUICK.steps
        assert steps[-1] == QUICK.steps

    @staticmethod
    def _validations(step: int) -> int:
        return step // QUICK.validate_every

    @staticmethod
    def _interrupt_at(
        monkeypatch: pytest.MonkeyPatch, trainer: Trainer, step: int, name: str
    ) -> int:
        """Run until the losses of a step are asked for; how often they were asked for."""
        from langevin_xtal.train import loop

        genuine, calls = getattr(loop, name), 0

        def interrupted(network: Any, noised: Noised, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if network is trainer.network and trainer.step == step:
                raise KeyboardInterrupt
            return genuine(network, noised, **options)

        with monkeypatch.context() as patch:
            patch.setattr(loop, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(trainer.run())
        return calls


class TestRefusals:
    @pytest.mark.parametrize(
        "changes",
        [
            {"steps": -1},
            {"batch_size": -1},
            {"learning_rate": math.nan},
            {"learning_rate": 0.0},
            {"learning_rate": math.inf},
            {"log_every": 0},
        ],
    )
    def test_settings(self, changes: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=next(iter(changes))):
            TrainConfig(**changes)

    def test_no_crystals(self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no crystals"):
            Trainer(split[0].select([]), tmp_path, QUICK)

    def test_a_file_in_the_way(
        self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path
    ) -> None:
        path = tmp_path / "run"
        path.write_text("")
        with pytest.raises(InputError, match="cannot be written"):
            Trainer(split[0], path, QUICK)

    def test_a_disk_that_refuses(
        self, split: tuple[PackedDataset, PackedDataset], tmp_path: Path
    ) -> None:
        trainer = Trainer(split[0], tmp_path / "run", dataclasses.replace(QUICK, steps=1))
        (tmp_path / "run" / "state.safetensors").mkdir()
        with pytest.raises(CheckpointError, match="cannot be written"):
            list(trainer.run())
        assert not list((tmp_path / "run").glob("*.part"))


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainConfig(steps=1000, warmup=100, learning_rate=1.0)
    rates = [config.rate(step) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[100] == pytest.approx(1.0)
    assert (np.diff(rates[:101]) >= 0).all()
    assert (np.diff(rates[100:]) <= 0).all()
    assert rates[-1] == pytest.approx(0.01)


def test_means_by_level() -> None:
    means = LevelMeans()
    assert not means
    assert math.isnan(means.mean(0))
    means.sums[0, 3], means.counts[0, 3] = 6.0, 4.0
    means.sums[0, 9], means.counts[0, 9] = 1.0, 1.0
    assert means
    assert means.mean(0) == pytest.approx(7 / 5)
    assert means.by_level(0)[3] == pytest.approx(1.5)
    assert math.isnan(means.by_level(0)[0])


class TestStartFromWeights:
    def test_first_weights_are_those_given(
        self, split: tuple[PackedDataset, PackedDataset], whole: Path, tmp_path: Path
    ) -> None:
        start = load_model(whole / "model.safetensors")
        trainer = Trainer(split[0], tmp_path / "run", QUICK, start=start)
        for mine, theirs in zip(
            trainer.average.parameters(), start.network.parameters(), strict=True
        ):
            assert torch.equal(mine, theirs)
        assert trainer.model().card["started_from"] == start.hash

    def test_no_steps_keep_them(
        self, split: tuple[PackedDataset, PackedDataset], whole: Path, tmp_path: Path
    ) -> None:
        start = load_model(whole / "model.safetensors")
        config = dataclasses.replace(QUICK, steps=0)
        assert list(Trainer(split[0], tmp_path / "run", config, start=start).run()) == []
        found = load_model(tmp_path / "run" / "model.safetensors")
        before, after = start.network.state_dict(), found.network.state_dict()
        assert all(torch.equal(before[k], after[k]) for k in before)

    def test_another_size_is_refused(
        self, split: tuple[PackedDataset, PackedDataset], whole: Path, tmp_path: Path
    ) -> None:
        start = load_model(whole / "model.safetensors")
        wider = dataclasses.replace(QUICK, network=dataclasses.replace(TINY, width=64))
        with pytest.raises(InputError, match="same size"):
            Trainer(split[0], tmp_path / "run", wider, start=start)
