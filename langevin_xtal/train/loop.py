"""Training: denoising score matching with EMA, exact resume, and losses by noise level.

Everything random in step ``s`` comes from a generator seeded with (seed, s), and the order of the
crystals in epoch ``p`` from one seeded with (seed, p), so a resumed run repeats an uninterrupted
one bit for bit on a CPU. Noising and graph building of the next step run in a second thread.
Several processes under ``torchrun`` share every batch (:mod:`langevin_xtal.train.distributed`).

On a GPU the whole dataset lies in its memory, and noising and building happen there. Its generator
draws other noise than that of the CPU for the same seed: the two train on the same crystals in the
same order, under other noise. Each repeats its own, also when resumed; on a GPU only sums whose
order is not fixed then differ, by rounding.

A run folder holds ``config.json``, ``log.csv``, ``state.safetensors`` (to resume),
``model.safetensors`` (the averaged weights, to sample from) and ``fits`` (configurations and logs
of what says where chains start).
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from langevin_xtal.config.sampling import LatticeEstimate
from langevin_xtal.config.training import Precision, TrainingConfig
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion.crystals import CrystalStore
from langevin_xtal.diffusion.losses import Losses, denoising_losses
from langevin_xtal.diffusion.noising import Builder, Noised, NoisingConfig, noise_batch
from langevin_xtal.errors import InputError
from langevin_xtal.graph.snapping import all_operations
from langevin_xtal.model.checkpoint import CrystalModel, Part, load_model, save_model
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.model.network import SIZES, EdgeNetwork, NetworkConfig
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.model.tensor_file import weights_hash
from langevin_xtal.runtime import keep_freed_memory
from langevin_xtal.train.distributed import join, orderly_stop, part_of_total
from langevin_xtal.train.fit import (
    Fit,
    TimeIsOverError,
    load_module,
    load_moments,
    module_tensors,
    moment_tensors,
    number_in,
)
from langevin_xtal.train.parts import OnEpoch, PartEpochs, fit_parts

LEVEL_BINS = 10
MODEL = "model.safetensors"
"""The averaged weights and all that is fitted beside them."""
FITS = "fits"
"""Folder of the fits of what says where chains start."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training run; written to its folder."""

    steps: int = TrainingConfig.steps
    """Optimiser steps; 0 keeps the network that is started from."""
    stop_at: int | None = None
    """Step to end at, where the rate falls as if there were more."""
    batch_size: int = TrainingConfig.batch_size
    """Crystals in a step."""
    learning_rate: float = TrainingConfig.learning_rate
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
    log_every: int = TrainingConfig.log_every
    """Steps averaged in one row of the log."""
    validate_every: int = TrainingConfig.validate_every
    """Steps between validations of the averaged weights."""
    validation_size: int = 512
    """Crystals of the validation set used, with the same noise each time."""
    save_every: int = TrainingConfig.save_every
    """Steps between saves."""
    precision: Precision = TrainingConfig.precision
    """Of the network's matrix products, in training alone; the rest is float32."""
    lattice_estimate: LatticeEstimate = TrainingConfig.lattice_estimate
    """How the changes of all edges make that of the cell in the loss."""
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

    @classmethod
    def of(cls, config: TrainingConfig, *, seed: int = 0) -> TrainConfig:
        """Settings by a configuration, such as ``TrainingConfig.preset("paper")``."""
        return cls(
            steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            warmup=cls.warmup_of(config.steps),
            seed=seed,
            log_every=config.log_every,
            validate_every=config.validate_every,
            save_every=config.save_every,
            precision=config.precision,
            lattice_estimate=config.lattice_estimate,
            network=SIZES[config.size],
            levels=NoiseLevels.paper() if config.noise == "paper" else NoiseLevels(),
            noising=NoisingConfig(target=config.target),
        )

    @property
    def last(self) -> int:
        """Steps that are taken."""
        return self.steps if self.stop_at is None else min(self.steps, self.stop_at)

    @staticmethod
    def warmup_of(steps: int) -> int:
        """Steps of the warm-up of a run of so many."""
        return min(TrainConfig.warmup, max(1, steps // 10))

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


class Trainer(Fit[LogRow, Noised]):
    """Fit of the score network in a folder; iterate :meth:`run` to advance it.

    Parameters
    ----------
    device
        Where the network is.
    builder
        ``torch``: crystals lie on the device, and noise and multigraphs are made there. ``host``:
        on the CPU, and moved. By default ``torch`` on CUDA and ``host`` on a CPU.
    """

    config: TrainConfig

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
        card: Mapping[str, object] | None = None,
        start: CrystalModel | None = None,
    ) -> None:
        if not len(data):
            raise InputError("the training set holds no crystals")
        keep_freed_memory()
        team, device = join(device)
        super().__init__(
            config,
            data.content_hash,
            out,
            save_every=config.save_every,
            device=device,
            team=team,
        )
        self.out: Path = out
        if config.batch_size < self.team.size:
            raise InputError(
                f"batch_size {config.batch_size} is smaller than the {self.team.size} processes "
                "that share it; give at least one crystal for each"
            )
        on_cuda = device.startswith("cuda")
        if config.precision == "tf32" and not on_cuda:
            raise InputError("precision tf32 is of CUDA devices; give float32 or bf16 on a CPU")
        self.name, self.card = name, dict(card or {})
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
        # fused: one pass, and on a GPU it can be said there whether to step
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=config.learning_rate, fused=True
        )
        self.parts: dict[str, Part] = {}  #: parts of the model beside the network
        self.given = {} if start is None else start.parts()  #: those that their fits start from
        self.means = LevelMeans(device)  #: of the steps since the last row of the log
        self._orders: dict[int, Tensor] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: Future[Noised] | None = None  #: the next batch, being prepared
        self.open()

    def _start_from(self, start: CrystalModel) -> None:
        if start.network.config != self.config.network:
            raise InputError(
                f"model {start.name} has the network {start.network.config}, not the "
                f"{self.config.network} asked for; give a model of the same size"
            )
        self.network.load_state_dict(start.network.state_dict())
        self.card = {"started_from": start.hash} | self.card

    # -- the run

    @property
    def done(self) -> bool:
        """Whether the last step was taken."""
        return self.step >= self.config.last

    def columns(self) -> list[str]:
        """Header of the log."""
        return LogRow.columns()

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Rounding of products, an orderly stop, and a thread that prepares the next batch."""
        with (
            _products(self.config.precision),
            orderly_stop(self.team),
            ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        ):
            self._pool, self._ahead = pool, pool.submit(self._prepare, self.step)
            try:
                yield
            finally:
                self._ahead.cancel()
                self._pool = self._ahead = None

    def _batch(self) -> Noised:
        if self._pool is None or self._ahead is None:
            return self._prepare(self.step)
        noised = self._ahead.result()
        if self.step + 1 < self.config.last:
            self._ahead = self._pool.submit(self._prepare, self.step + 1)
        return noised

    def model(self) -> CrystalModel:
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
        bare = CrystalModel(self.name, network, self.config.levels, statistics, card)
        return bare.with_parts(self.parts)

    def fit_parts(
        self,
        epochs: PartEpochs,
        on_epoch: OnEpoch | None = None,
        max_seconds: float = math.inf,
    ) -> bool:
        """Fit what says where chains start to the training set and save the model with it.

        Saved after each part; what a run of before has done is not done again, and a fit that was
        stopped goes on.

        Returns
        -------
        bool
            Whether all was done before the time was over.
        """
        if not self.team.leads:
            return True
        self.card["start_epochs"] = dataclasses.asdict(epochs)
        try:
            for name, part in fit_parts(
                self.data,
                self.model().statistics,
                epochs,
                self.parts,
                init=self.given,
                seed=self.config.seed,
                device=self.device,
                on_epoch=on_epoch,
                folder=self.out / FITS,
                until=time.perf_counter() + max_seconds,
            ):
                self.parts[name] = part
                save_model(self.out / MODEL, self.model())
        except TimeIsOverError:
            return False
        return True

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
                estimate = self.config.lattice_estimate
                means.add(denoising_losses(self.average, noised, estimate=estimate), noised)
        return means

    def _state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        tensors = module_tensors("network", self.network)
        tensors |= module_tensors("average", self.average) | moment_tensors(self.optimiser)
        for kind in ("sums", "counts"):
            tensors[f"means.{kind}"] = getattr(self.means, kind)
        return tensors, {}

    def _saved(self) -> None:
        """The model to sample from goes with the state."""
        save_model(self.out / MODEL, self.model())

    def _restore(self, tensors: dict[str, Tensor], header: Mapping[str, object]) -> None:
        load_module("network", self.network, tensors)
        load_module("average", self.average, tensors)
        load_moments(self.optimiser, tensors)
        for kind in ("sums", "counts"):
            saved = tensors.get(f"means.{kind}", torch.zeros(2, LEVEL_BINS))
            saved = saved.double().reshape(2, LEVEL_BINS).to(self.device)
            setattr(self.means, kind, saved)
        finished = self.out / MODEL
        if int(number_in(header, "step")) >= self.config.last and finished.exists():
            self.parts = load_model(finished).parts()

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
        losses = denoising_losses(
            self.network,
            noised,
            estimate=self.config.lattice_estimate,
            precision=self.config.precision,
        )
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
        finite = torch.isfinite(norm)
        if self.builder == "host" and norm.device.type == "cpu":
            if finite:
                self.optimiser.step()
        else:
            # tells the optimiser, where the weights are, to leave them and its moments as they are
            self.optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined]
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

    # -- the log

    @property
    def _row_is_due(self) -> bool:
        at_end = self.step == self.config.last
        return (at_end or self.step % self.config.log_every == 0) and bool(self.means)

    @property
    def _rows_written(self) -> int:
        return self.step - self._row_is_due

    def _row(self, steps_per_second: float) -> LogRow:
        means = self.means
        due = self.step % self.config.validate_every == 0 or self.done
        checked = self.validate() if due else LevelMeans()
        return LogRow(
            step=self.step,
            epoch=self.step * self.config.batch_size / len(self.store),
            seconds=self.seconds,
            crystals_per_second=steps_per_second * self.config.batch_size,
            rate=self.config.rate(self.step - 1),
            position=means.mean(0),
            lattice=means.mean(1),
            validation_position=checked.mean(0),
            validation_lattice=checked.mean(1),
            position_by_level=means.by_level(0),
            lattice_by_level=means.by_level(1),
        )

    def _begin_row(self) -> None:
        self.means = LevelMeans(self.device)

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
    card: Mapping[str, object] | None = None,
    on_row: Callable[[LogRow, Trainer], None] | None = None,
) -> CrystalModel:
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
