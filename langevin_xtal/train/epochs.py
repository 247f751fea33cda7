"""Fits of some epochs: AdamW, dropout, a one-cycle rate, the best epoch kept where asked for.

A new part of the model takes a subclass of :class:`EpochFit` and an entry in
:data:`langevin_xtal.train.parts.PARTS`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from langevin_xtal.config.fields import Dataclass
from langevin_xtal.config.tables import table_of
from langevin_xtal.errors import InputError
from langevin_xtal.model.tensor_file import weights_hash
from langevin_xtal.train.fit import (
    BatchT,
    Fit,
    TimeIsOverError,
    load_module,
    load_moments,
    module_tensors,
    moment_tensors,
    number_in,
)


@dataclass(frozen=True, kw_only=True)
class EpochConfig:
    """Settings of a fit of some epochs; every part of the model has defaults of its own."""

    epochs: int = 1
    """Times that every crystal is seen."""
    seed: int = 0
    """Of weights, order, dropout and what else is drawn."""
    batch_size: int = 64
    """Crystals in a step."""
    rate: float = 2e-3
    """Highest rate of AdamW, in a one-cycle schedule."""
    refit: float = 2 / 3
    """Share of the rate at which given weights are fitted anew."""
    weight_decay: float = 2e-2
    dropout: float = 0.1
    save_every: int = 500
    """Steps between saves."""

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise InputError(f"epochs is {self.epochs}; it must be 0 or more")

    def peak(self, given: bool) -> float:
        """Highest rate, for weights that are given or random."""
        return self.refit * self.rate if given else self.rate


@dataclass(frozen=True)
class EpochRow:
    """What an epoch gave."""

    epoch: int  #: epochs done
    seconds: float
    losses: tuple[float, ...]

    def values(self) -> list[float]:
        """One row of ``log.csv``."""
        return [self.epoch, self.seconds, *self.losses]


@dataclass(frozen=True)
class Randomness:
    """States of the generators: torch's of host and device, and numpy's."""

    torch: Tensor
    device: Tensor | None
    numpy: Mapping[str, object] | None


class EpochFit(Fit[EpochRow, BatchT | None], Generic[BatchT]):
    """A network fitted epoch by epoch: AdamW, dropout, a one-cycle rate, gradients clipped at 1.

    A subclass seeds torch, sets up the network and calls :meth:`begin` at the end of its
    constructor. What it draws it takes from torch's generator and from ``rng``; both are part of
    the state, so that a resumed fit goes on in the midst of an epoch.
    """

    config: EpochConfig
    losses: tuple[str, ...] = ("loss",)
    """Names of the numbers that :meth:`_epoch_losses` gives."""
    keeps_best = False
    """Whether the weights of the epoch with the lowest last loss are those in the end."""
    holds_out = True
    """Whether there are crystals held out, by which the best epoch is chosen; else the last is."""

    def __init__(
        self,
        network: nn.Module,
        config: EpochConfig,
        data_hash: str,
        out: Path | None,
        *,
        rate: float,
        total_steps: int,
        device: str = "cpu",
        fused: bool = False,
        rng: np.random.Generator | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(config, data_hash, out, save_every=config.save_every, device=device)
        self.network = network
        self.facts = dict(facts or {})  #: what else a resumed run must agree with
        self.rng = rng
        self.weights = list(network.parameters())
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            self.weights, lr=rate, weight_decay=config.weight_decay, fused=fused
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, rate, total_steps=total_steps
        )
        self.epoch = 0  #: epochs done and logged
        self.best: dict[str, Tensor] = {}
        self.best_loss = math.inf
        if self.keeps_best:
            self.best = copy.deepcopy(network.state_dict())
        self._order: Sequence[BatchT] | None = None  #: batches of the epoch; None before it
        self._place = 0  #: batches done of them
        self._sums = torch.zeros(len(self.losses), dtype=torch.float64, device=device)
        self._at_epoch = self._now = Randomness(torch.zeros(0), None, None)

    # -- what a subclass says

    @abstractmethod
    def _draw(self) -> Sequence[BatchT]:
        """Batches of one epoch."""

    @abstractmethod
    def _loss(self, batch: BatchT) -> tuple[Tensor, Tensor]:
        """What the step lowers, and sums to be added up over the epoch."""

    @abstractmethod
    def _epoch_losses(self) -> tuple[float, ...]:
        """The numbers named by ``losses``, after an epoch whose sums are ``_sums``.

        It may be asked for twice, where a run was stopped before the row was written.
        """

    def _epoch_ends(self) -> None:
        """After the numbers of an epoch are known; may be repeated, too."""

    def _more_state(self) -> dict[str, Tensor]:
        """Tensors that change beside the weights."""
        return {}

    def _restore_more(self, tensors: Mapping[str, Tensor]) -> None:
        """What :meth:`_more_state` gave."""

    # -- the engine

    def begin(self) -> None:
        """Note where the generators are, and resume what the folder holds."""
        # two copies: tensors that share memory cannot be saved
        self._at_epoch, self._now = self._randomness(), self._randomness()
        self.open()

    def recorded(self) -> dict[str, object]:
        """Settings, and what the fit starts from."""
        return super().recorded() | self.facts

    @property
    def done(self) -> bool:
        """Whether the last epoch is done and logged."""
        return self.epoch >= self.config.epochs

    def columns(self) -> list[str]:
        """Header of the log."""
        return ["epoch", "seconds", *self.losses]

    def finish(self, on_epoch: Callable[..., None] | None = None, until: float = math.inf) -> None:
        """Run to the end; ``on_epoch`` is called with the epochs done and the losses.

        Raises
        ------
        TimeIsOverError
            When ``until``, a reading of :func:`time.perf_counter`, comes first.
        """
        for row in self.run(until - time.perf_counter()):
            if on_epoch is not None:
                on_epoch(row.epoch, *row.losses)
        if not self.done:
            raise TimeIsOverError
        self.close()

    def close(self) -> None:
        """Put the weights in their final state."""
        if self.keeps_best:
            self.network.load_state_dict(self.best)
        self.network.eval().requires_grad_(False)

    @contextmanager
    def _running(self) -> Iterator[None]:
        self._set_randomness(self._now)
        yield

    def _batch(self) -> BatchT | None:
        if self._order is None:
            self._changing = True
            self._at_epoch = self._randomness()
            self._order, self._place = self._draw(), 0
            self._sums.zero_()
            self._now = self._randomness()
            self._changing = False
        return self._order[self._place] if self._place < len(self._order) else None

    def _advance(self, batch: BatchT | None) -> None:
        if batch is None:  # an epoch with nothing to learn
            return
        loss, sums = self._loss(batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self._changing = True
        self.optimiser.step()
        self.schedule.step()
        self._sums += sums.detach()
        self._place += 1
        self.step += 1
        self._now = self._randomness()
        self._changing = False

    @property
    def _row_is_due(self) -> bool:
        return self._order is not None and self._place >= len(self._order)

    def _row(self, steps_per_second: float) -> EpochRow:
        losses = self._epoch_losses()
        if self.keeps_best and (losses[-1] < self.best_loss or not self.holds_out):
            self.best, self.best_loss = copy.deepcopy(self.network.state_dict()), losses[-1]
        self._epoch_ends()
        return EpochRow(self.epoch + 1, self.seconds, losses)

    def _begin_row(self) -> None:
        self._changing = True
        self.epoch += 1
        self._order = None
        self._now = self._randomness()
        self._changing = False

    @property
    def _rows_written(self) -> int:
        return self.epoch

    # -- state

    def _state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        tensors = module_tensors("network", self.network) | moment_tensors(self.optimiser)
        tensors |= {f"best.{k}": v for k, v in self.best.items()} | self._more_state()
        tensors["sums"] = self._sums
        values: dict[str, object] = {
            "epoch": self.epoch,
            "place": None if self._order is None else self._place,
            "best_loss": self.best_loss,
        }
        for name, state in (("epoch", self._at_epoch), ("now", self._now)):
            tensors[f"random.{name}"] = state.torch
            if state.device is not None:
                tensors[f"random.{name}.device"] = state.device
            values[f"random_{name}"] = state.numpy
        return tensors, values

    def _restore(self, tensors: dict[str, Tensor], header: Mapping[str, object]) -> None:
        load_module("network", self.network, tensors)
        load_moments(self.optimiser, tensors)
        start = "best."
        best = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        if best.keys() != self.best.keys():
            raise ValueError("the best weights do not fit the network")
        self.best, self.best_loss = best, float(number_in(header, "best_loss"))
        self._sums = tensors["sums"].double().reshape(len(self.losses)).to(self.device)
        self._restore_more(tensors)
        self._at_epoch, self._now = (
            Randomness(
                tensors[f"random.{name}"],
                tensors.get(f"random.{name}.device"),
                table_of(state, "random") if (state := header[f"random_{name}"]) else None,
            )
            for name in ("epoch", "now")
        )
        self.epoch = int(number_in(header, "epoch"))
        if header["place"] is not None:
            self._set_randomness(self._at_epoch)
            self._order, self._place = self._draw(), int(number_in(header, "place"))
        # the rates and momenta of the step follow from its number
        self.schedule.last_epoch = int(number_in(header, "step")) - 1
        with warnings.catch_warnings():  # that no step was taken yet
            warnings.simplefilter("ignore", UserWarning)
            self.schedule.step()
        self._set_randomness(self._now)

    def _randomness(self) -> Randomness:
        on_cuda = self.device.startswith("cuda")
        return Randomness(
            torch.get_rng_state(),
            torch.cuda.get_rng_state(self.device) if on_cuda else None,
            None if self.rng is None else copy.deepcopy(dict(self.rng.bit_generator.state)),
        )

    def _set_randomness(self, state: Randomness) -> None:
        torch.set_rng_state(state.torch)
        if state.device is not None:
            torch.cuda.set_rng_state(state.device, self.device)
        if self.rng is not None:
            self.rng.bit_generator.state = state.numpy or {}


class Configured(Protocol):
    """A network that keeps its settings."""

    @property
    def config(self) -> Dataclass:
        """Sizes and the like."""
        ...


def starting_point(network: Configured, init: nn.Module | None) -> dict[str, object]:
    """What a fit starts from, for its record: the network's settings, and given weights."""
    given = None if init is None else weights_hash(init.state_dict())
    return {"network": dataclasses.asdict(network.config), "init": given}
