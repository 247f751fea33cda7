"""Training: denoising score matching with EMA, exact resume, and losses by noise level.

Everything random in step ``s`` comes from a generator seeded with (seed, s), and the order of the
crystals in epoch ``p`` from one seeded with (seed, p), so a resumed run repeats an uninterrupted
one bit for bit on a CPU. Noising and graph building of the next step run in a second thread.
Several processes under ``torchrun`` share every batch (:mod:`langevin_xtal.train.distributed`).

On a GPU the whole dataset lies in its memory, and noising and building happen there. Its generator
draws other noise than that of the CPU for the same seed: the two train on the same crystals in the
same order, under other noise. Each repeats its own, also when resumed; on a GPU only sums whose
order is not fixed then differ, by rounding.

A run folder holds ``config.json``, ``log.csv``, ``state.safetensors`` (to resume) and
``model.safetensors`` (the averaged weights, to sample from).
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion.losses import Losses, Precision, denoising_losses
from langevin_xtal.diffusion.noising import Builder, Noised, NoisingConfig, noise_batch
from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.files import clear_left, replacing, write_text
from langevin_xtal.graph.snapping import all_operations
from langevin_xtal.model.checkpoint import (
    ScoreModel,
    load_model,
    read_tensors,
    save_model,
    weights_hash,
    write_tensors,
)
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.model.network import EdgeNetwork, NetworkConfig
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.runtime import keep_freed_memory
from langevin_xtal.train.distributed import join, orderly_stop, part_of_total
from langevin_xtal.train.starts import OnEpoch, StartEpochs, fit_starts
from langevin_xtal.train.store import CrystalStore

STATE_FORMAT = "langevin-xtal training state 1"
LEVEL_BINS = 10


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run; written to its folder."""

    steps: int = 20_000
    """Optimiser steps; 0 keeps the network that is started from."""
    batch_size: int = 32
    """Crystals in a step."""
    learning_rate: float = 1e-3
    """Peak rate of Adam; warmed up linearly, then a cosine to 1 % of it."""
    warmup: int = 500
    """Steps of the warm-up."""
    ema: float = 0.999
    """Decay of the averaged weights, ramped up from the start."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    lattice_weight: float = 1.0
    """Weight of the lattice loss."""
    seed: int = 0
    """Of weights, batches and noise."""
    log_every: int = 50
    """Steps averaged in one row of the log."""
    validate_every: int = 1000
    """Steps between validations of the averaged weights."""
    validation_size: int = 512
    """Crystals of the validation set used, with the same noise each time."""
    save_every: int = 500
    """Steps between saves."""
    precision: Precision = "float32"
    """Of the network's matrix products, in training alone; the rest is float32."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    levels: NoiseLevels = field(default_factory=NoiseLevels)
    noising: NoisingConfig = field(default_factory=NoisingConfig)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InputError(f"steps is {self.steps}; it must be 0 or more")
        counts = ("batch_size", "log_every", "validate_every", "save_every")
        for name in (*counts, "learning_rate"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be positive and finite")
        if self.precision not in get_args(Precision):
            known = ", ".join(get_args(Precision))
            raise InputError(f"precision {self.precision!r} is not known; give one of {known}")

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        share = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


@dataclass(frozen=True)
class LogRow:
    """One row of the log; losses are 1 for a network that predicts nothing."""

    step: int
    epoch: float
    seconds: float
    crystals_per_second: float
    rate: float
    position: float
    lattice: float
    validation_position: float  #: NaN in rows without a validation
    validation_lattice: float
    position_by_level: tuple[float, ...]  #: (10,) from the largest noise to the smallest
    lattice_by_level: tuple[float, ...]

    @staticmethod
    def columns() -> list[str]:
        """Header of ``log.csv``."""
        plain = [f.name for f in dataclasses.fields(LogRow)][:-2]
        return plain + [
            f"{kind}_{k}" for kind in ("position", "lattice") for k in range(LEVEL_BINS)
        ]

    def values(self) -> list[float]:
        """One row of ``log.csv``."""
        return [
            *(getattr(self, f.name) for f in dataclasses.fields(self)[:-2]),
            *self.position_by_level,
            *self.lattice_by_level,
        ]


class LevelMeans:
    """Running means of losses, in all and by noise level, on the device of the losses."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(2, LEVEL_BINS, dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.sums)

    def __bool__(self) -> bool:
        return bool(self.counts.any())

    def add(self, losses: Losses, noised: Noised) -> None:
        """Add the crystals of one batch, each process under its own noise level."""
        position, lattice = losses.position.detach().double(), losses.lattice.detach().double()
        used = losses.lattice_used.double()
        for k, (value, use, tau) in enumerate(
            ((position, torch.ones_like(used), noised.tau_pos), (lattice, used, noised.tau_lat))
        ):
            level = (tau * LEVEL_BINS).long().clamp(max=LEVEL_BINS - 1)
            self.sums[k].index_add_(0, level, value * use)
            self.counts[k].index_add_(0, level, use)

    def merge(self, other: LevelMeans) -> None:
        """Add what another one holds."""
        self.sums += other.sums
        self.counts += other.counts

    def mean(self, kind: int) -> float:
        """0 position, 1 lattice; NaN when nothing was added."""
        return float(self.sums[kind].sum() / self.counts[kind].sum())

    def by_level(self, kind: int) -> tuple[float, ...]:
        """(10,) means, NaN where nothing was added."""
        return tuple((self.sums[kind] / self.counts[kind]).tolist())


class Trainer:
    """A training run in a folder; iterate :meth:`run` to advance it.

    Parameters
    ----------
    device
        Where the network is.
    builder
        ``torch``: crystals lie on the device, and noise and multigraphs are made there. ``host``:
        on the CPU, and moved. By default ``torch`` on CUDA and ``host`` on a CPU.
    """

    def __init__(
        self,
        data: PackedDataset,
        out: Path,
        config: TrainConfig,
        *,
        validation: PackedDataset | None = None,
        device: str = "cpu",
        builder: Builder | None = None,
        name: str = "model",
        card: dict[str, Any] | None = None,
        start: ScoreModel | None = None,
    ) -> None:
        if not len(data):
            raise InputError("the training set holds no crystals")
        keep_freed_memory()
        self.team, device = join(device)
        if config.batch_size < self.team.size:
            raise InputError(
                f"batch_size {config.batch_size} is smaller than the {self.team.size} processes "
                "that share it; give at least one crystal for each"
            )
        on_cuda = device.startswith("cuda")
        if config.precision == "tf32" and not on_cuda:
            raise InputError("precision tf32 is of CUDA devices; give float32 or bf16 on a CPU")
        self.config, self.out, self.device, self.name = config, out, device, name
        self.card = card or {}
        self.data = data
        self.builder: Builder = builder or ("torch" if on_cuda else "host")
        self.noised_on = device if self.builder == "torch" else "cpu"
        self.store = CrystalStore(data, self.noised_on)
        self.validation = None if validation is None else CrystalStore(validation, self.noised_on)
        self.settings = config.network.graph_settings()
        self.operations = all_operations().to(self.noised_on)
        torch.manual_seed(config.seed)
        self.network = EdgeNetwork(config.network).to(device)
        if start is not None:
            self._start_from(start)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        # listed once: walking through the modules takes a millisecond
        self.weights = list(self.network.parameters())
        self.averages: list[Tensor] = list(self.average.parameters())
        # fused: one pass, and on a GPU it can be told there whether to step
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=config.learning_rate, fused=True
        )
        self.starts: dict[str, Any] = {}  #: parts of the model beside the network
        self.given = {} if start is None else start.parts()  #: those that their fits start from
        self.step = 0
        self.seconds = 0.0
        self.means = LevelMeans(device)  #: of the steps since the last row of the log
        self._changing = False
        self._orders: dict[int, Tensor] = {}
        try:
            out.mkdir(parents=True, exist_ok=True)
            if self.team.leads:
                clear_left(out)
            if self._state_path.exists():
                self._resume()
            elif self.team.leads:
                self._write_config()
        except OSError as error:
            raise InputError(
                f"folder {out} cannot be written ({error.strerror}); give another folder"
            ) from None
        self.team.check_same(self.step)

    def _start_from(self, start: ScoreModel) -> None:
        if start.network.config != self.config.network:
            raise InputError(
                f"model {start.name} has the network {start.network.config}, not the "
                f"{self.config.network} asked for; give a model of the same size"
            )
        self.network.load_state_dict(start.network.state_dict())
        self.card = {"started_from": start.hash} | self.card

    # -- the run

    def run(self, max_seconds: float = math.inf) -> Iterator[LogRow]:
        """Train to the last step, yielding a row for the log every ``log_every`` steps.

        Saves regularly, and when the generator is closed or interrupted; an interrupt amid the
        update of the weights leaves the last save, from which the steps since are repeated. Of
        several processes the first yields and saves, and an interrupt of any stops all of them
        after the step.

        Parameters
        ----------
        max_seconds
            Stop after the step in which this time is over; the run can be resumed.
        """
        config = self.config
        last, last_step = time.perf_counter(), self.step
        end = last + max_seconds
        self.team.time_is_over = self.team.ending = False
        with (
            _products(config.precision),
            orderly_stop(self.team),
            ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            ahead = pool.submit(self._prepare, self.step)
            try:
                while True:
                    # at once where a run stopped between step and row
                    if self._row_is_due and self.team.leads:
                        self._synchronise()
                        now = time.perf_counter()
                        self.seconds += now - last
                        rate = (self.step - last_step) * config.batch_size / (now - last)
                        row = self._row(self.means, rate)
                        self._log(row)
                        self.means, last_step = LevelMeans(self.device), self.step
                        yield row
                        last = time.perf_counter()
                    if self.step >= config.steps or self.team.ending:
                        break
                    self.team.time_is_over = time.perf_counter() >= end
                    if self.team.time_is_over and self.team.size == 1:
                        break
                    noised = ahead.result()
                    if self.step + 1 < config.steps:
                        ahead = pool.submit(self._prepare, self.step + 1)
                    self._advance(noised)
                    if self.team.stopping:
                        raise KeyboardInterrupt
                    if self.step % config.save_every == 0 and self.step < config.steps:
                        self.save()
            finally:
                ahead.cancel()
                if not self._changing:
                    self.save()

    def model(self) -> ScoreModel:
        """The averaged weights with the statistics of the training set."""
        data = self.data
        statistics = Statistics.of(
            data.group, data.lattice, data.site_start, data.numbers, data.multiplicity
        )
        card = self.card | {
            "steps": self.step,
            "crystals_seen": self.step * self.config.batch_size,
            "training": dataclasses.asdict(self.config),
            "data_hash": data.content_hash,
            "training_seconds": round(self.seconds, 1),
        }
        network = copy.deepcopy(self.average).cpu().eval()
        return ScoreModel(self.name, network, self.config.levels, statistics, card, **self.starts)

    def fit_starts(self, epochs: StartEpochs, on_epoch: OnEpoch | None = None) -> None:
        """Fit what says where chains start to the training set and save the model with it.

        Saved after each part; what a run of before has done is not done again.
        """
        if not self.team.leads:
            return
        self.card["start_epochs"] = dataclasses.asdict(epochs)
        for name, part in fit_starts(
            self.data,
            self.model().statistics,
            epochs,
            self.starts,
            init=self.given,
            seed=self.config.seed,
            device=self.device,
            on_epoch=on_epoch,
        ):
            self.starts[name] = part
            save_model(self.out / "model.safetensors", self.model())

    def validate(self) -> LevelMeans:
        """Losses of the averaged weights on the validation set, the same noise each time."""
        means = LevelMeans(self.device)
        if self.validation is None:
            return means
        size, batch = min(len(self.validation), self.config.validation_size), 64
        pick = torch.randperm(len(self.validation), generator=_generator(0, 1))[:size]
        for k in range(0, size, batch):
            noised = noise_batch(
                self.validation.batch(pick[k : k + batch]),
                self.config.levels,
                self.config.noising,
                self.settings,
                self.operations,
                _generator(1, k, self.noised_on),
                builder=self.builder,
            ).to(self.device)
            with torch.no_grad():
                means.add(denoising_losses(self.average, noised), noised)
        return means

    def save(self) -> None:
        """Write the state to resume from and the model to sample from."""
        if not self.team.leads:
            return
        tensors: dict[str, Tensor] = {}
        for kind, module in (("network", self.network), ("average", self.average)):
            tensors |= {f"{kind}.{k}": v for k, v in module.state_dict().items()}
        state = self.optimiser.state_dict()["state"]
        for index, values in state.items():
            tensors |= {f"adam.{index}.{k}": v for k, v in values.items()}
        for kind in ("sums", "counts"):
            tensors[f"means.{kind}"] = getattr(self.means, kind)
        header = {
            "format": STATE_FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "config": dataclasses.asdict(self.config),
            "data_hash": self.data.content_hash,
        }
        write_tensors(self._state_path, tensors, header)
        save_model(self.out / "model.safetensors", self.model())

    # -- one step

    def _prepare(self, step: int) -> Noised:
        index = self._batch_index(step)
        return noise_batch(
            self.store.batch(index),
            self.config.levels,
            self.config.noising,
            self.settings,
            self.operations,
            _generator(self.config.seed + 2, step, self.noised_on),
            share=self.team.share(self.config.batch_size) if self.team.size > 1 else None,
            builder=self.builder,
        )

    def _batch_index(self, step: int) -> Tensor:
        size, total = self.config.batch_size, len(self.store)
        place = torch.arange(step * size, (step + 1) * size)
        epochs = place // total
        parts = [self._order(int(p))[place[epochs == p] % total] for p in epochs.unique()]
        return torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            order = torch.randperm(len(self.store), generator=_generator(self.config.seed, epoch))
            self._orders = {k: v for k, v in self._orders.items() if k >= epoch - 1}
            self._orders[epoch] = order
        return self._orders[epoch]

    def _advance(self, noised: Noised) -> None:
        noised = noised.to(self.device)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.rate(self.step)
        losses = denoising_losses(self.network, noised, precision=self.config.precision)
        shared = self._shared_means(losses, noised)
        weight = self.config.lattice_weight
        self.optimiser.zero_grad(set_to_none=True)
        if shared is None:
            losses.total(weight).backward()
        else:
            part_of_total(losses, weight, *shared.counts.sum(1).tolist()).backward()
            self.team.add_gradients(self.weights)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, self.config.clip)
        self._changing = True
        # tells the optimiser, where the weights are, to leave them and its moments as they are
        self.optimiser.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.optimiser.step()
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, [*self.weights], 1 - decay)
        if shared is None:
            self.means.add(losses, noised)
        else:
            self.means.merge(shared)
        self.step += 1
        self._changing = False

    def _shared_means(self, losses: Losses, noised: Noised) -> LevelMeans | None:
        """Losses of the whole batch of several processes."""
        if self.team.size == 1:
            return None
        means = LevelMeans(self.device)
        means.add(losses, noised)
        sums, counts = means.sums.cpu().numpy(), means.counts.cpu().numpy()
        self.team.add(sums, counts)
        means.sums, means.counts = (torch.from_numpy(a).to(self.device) for a in (sums, counts))
        return means

    def _synchronise(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    # -- files

    @property
    def _row_is_due(self) -> bool:
        at_end = self.step == self.config.steps
        return (at_end or self.step % self.config.log_every == 0) and bool(self.means)

    @property
    def _state_path(self) -> Path:
        return self.out / "state.safetensors"

    def _write_config(self) -> None:
        text = json.dumps(dataclasses.asdict(self.config), indent=2)
        write_text(self.out / "config.json", text + "\n")
        with replacing(self.out / "log.csv", newline="") as handle:
            csv.writer(handle).writerow(LogRow.columns())

    def _log(self, row: LogRow) -> None:
        with (self.out / "log.csv").open("a", newline="") as handle:
            step, *rest = row.values()
            csv.writer(handle).writerow([f"{step:.0f}", *(f"{v:.6g}" for v in rest)])

    def _row(self, means: LevelMeans, rate: float) -> LogRow:
        due = self.step % self.config.validate_every == 0 or self.step == self.config.steps
        checked = self.validate() if due else LevelMeans()
        return LogRow(
            step=self.step,
            epoch=self.step * self.config.batch_size / len(self.store),
            seconds=self.seconds,
            crystals_per_second=rate,
            rate=self.config.rate(self.step - 1),
            position=means.mean(0),
            lattice=means.mean(1),
            validation_position=checked.mean(0),
            validation_lattice=checked.mean(1),
            position_by_level=means.by_level(0),
            lattice_by_level=means.by_level(1),
        )

    def _resume(self) -> None:
        tensors, header = read_tensors(self._state_path, STATE_FORMAT)
        mine, default = (
            json.loads(json.dumps(dataclasses.asdict(c))) for c in (self.config, TrainConfig())
        )
        theirs = header.get("config")
        # runs of older versions do not know of every setting
        found = default | theirs if isinstance(theirs, dict) else {}
        differing = sorted(key for key, value in mine.items() if found.get(key) != value)
        if differing:
            raise InputError(
                f"{self.out} holds a run with other settings ({', '.join(differing)}); "
                "use the same settings to resume it, or another folder"
            )
        if header.get("data_hash") != self.data.content_hash:
            raise InputError(
                f"{self.out} holds a run on other training data; give the same packed file to "
                "resume it, or use another folder"
            )
        try:
            for kind, module in (("network", self.network), ("average", self.average)):
                start = f"{kind}."
                module.load_state_dict(
                    {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
                )
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith("adam."):
                    _, index, name = key.split(".")
                    state.setdefault(int(index), {})[name] = value
            for place, parameter in enumerate(self.network.parameters()):
                moments = [state[place][k] for k in ("exp_avg", "exp_avg_sq")] if state else []
                if any(moment.shape != parameter.shape for moment in moments):
                    raise ValueError("the optimiser's moments do not fit the weights")
            full = self.optimiser.state_dict() | {"state": state}
            self.optimiser.load_state_dict(full)
            for kind in ("sums", "counts"):
                saved = tensors.get(f"means.{kind}", torch.zeros(2, LEVEL_BINS))
                saved = saved.double().reshape(2, LEVEL_BINS).to(self.device)
                setattr(self.means, kind, saved)
            self.step, self.seconds = int(header["step"]), float(header["seconds"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{self._state_path} cannot be resumed ({reason})") from None
        if self.team.leads:
            _drop_rows_after(self.out / "log.csv", self.step - self._row_is_due)
        finished = self.out / "model.safetensors"
        if self.step >= self.config.steps and finished.exists():
            self.starts = load_model(finished).parts()

    def __repr__(self) -> str:
        return (
            f"Trainer({self.out}, step {self.step} of {self.config.steps}, "
            f"{weights_hash(self.network.state_dict())})"
        )


def train(
    data: PackedDataset,
    out: Path,
    config: TrainConfig,
    *,
    validation: PackedDataset | None = None,
    device: str = "cpu",
    builder: Builder | None = None,
    name: str = "model",
    card: dict[str, Any] | None = None,
    on_row: Callable[[LogRow, Trainer], None] | None = None,
) -> ScoreModel:
    """Train to the end, or resume what ``out`` holds, and return the model."""
    trainer = Trainer(
        data,
        out,
        config,
        validation=validation,
        device=device,
        builder=builder,
        name=name,
        card=card,
    )
    for row in trainer.run():
        if on_row is not None:
            on_row(row, trainer)
    return trainer.model()


def _generator(seed: int, index: int, device: str = "cpu") -> torch.Generator:
    mixed = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(mixed >> np.uint64(1)))


@contextmanager
def _products(precision: Precision) -> Iterator[None]:
    """Let CUDA round the factors of matrix products to tf32 where that is asked for."""
    flags = torch.backends.cuda.matmul
    before = flags.allow_tf32
    flags.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        flags.allow_tf32 = before


def _drop_rows_after(path: Path, step: int) -> None:
    """Rows written after the state was saved are written again by the resumed run."""
    rows = []
    if path.exists():
        with path.open(newline="") as handle:
            rows = list(csv.reader(handle))[1:]
    with replacing(path, newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(LogRow.columns())
        writer.writerows(r for r in rows if r and r[0].isdigit() and int(r[0]) <= step)
