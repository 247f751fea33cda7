"""One way to fit: steps, a log, saves, exact resume.

:class:`Fit` runs whatever is fitted and keeps it in a folder: ``config.json``, ``log.csv`` and
``state.safetensors``, from which a run that was stopped or killed goes on as if it had not been.
The score network is fitted by :class:`~langevin_xtal.train.loop.Trainer`; all other parts of the
model by :class:`~langevin_xtal.train.epochs.EpochFit`.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from langevin_xtal.config.fields import Dataclass
from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.files import clear_left, replacing, write_text
from langevin_xtal.model.tensor_file import read_tensors, write_tensors
from langevin_xtal.train.distributed import Team

STATE_FORMAT = "langevin-xtal training state 1"
STATE = "state.safetensors"


class TimeIsOverError(Exception):
    """A fit was stopped by the clock; it can be resumed."""


class Row(Protocol):
    """A row of ``log.csv``; its first value, a whole number, counts up."""

    def values(self) -> list[float]:
        """One for each column."""
        ...


RowT = TypeVar("RowT", bound=Row)
BatchT = TypeVar("BatchT")


class Fit(ABC, Generic[RowT, BatchT]):
    """Something that is fitted step by step; iterate :meth:`run` to advance it.

    A subclass sets up its weights and data, calls :meth:`open` at the end of its constructor, and
    says what a step, a row of the log and the state are.

    Parameters
    ----------
    config
        Frozen settings, written to the folder; a run with others is refused there.
    data_hash
        Of the training data, likewise.
    out
        Folder to keep the run in; without one nothing is kept.
    save_every
        Steps between saves.
    team
        Processes that share the fit.
    """

    config: Dataclass

    def __init__(
        self,
        config: Dataclass,
        data_hash: str,
        out: Path | None,
        *,
        save_every: int,
        device: str = "cpu",
        team: Team | None = None,
    ) -> None:
        self.config, self.data_hash, self.out = config, data_hash, out
        self.save_every, self.device, self.team = save_every, device, team or Team()
        self.step = 0  #: steps done
        self.seconds = 0.0  #: spent on the steps so far
        self._changing = False  #: amid an update, when there is nothing sound to save

    # -- what a subclass says

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether the last step was taken."""

    @abstractmethod
    def columns(self) -> list[str]:
        """Header of the log."""

    @abstractmethod
    def _batch(self) -> BatchT:
        """What the next step learns from."""

    @abstractmethod
    def _advance(self, batch: BatchT) -> None:
        """One step; ``_changing`` is set while weights, moments and counts disagree."""

    @property
    @abstractmethod
    def _row_is_due(self) -> bool: ...

    @abstractmethod
    def _row(self, steps_per_second: float) -> RowT:
        """The row that is due."""

    @abstractmethod
    def _begin_row(self) -> None:
        """Begin the next one: the last is written."""

    @property
    @abstractmethod
    def _rows_written(self) -> int:
        """First value of the last row that a sound log has at this step."""

    @abstractmethod
    def _state(self) -> tuple[dict[str, Tensor], dict[str, object]]:
        """Tensors and plain values to resume from."""

    @abstractmethod
    def _restore(self, tensors: dict[str, Tensor], header: Mapping[str, object]) -> None:
        """Take over what :meth:`_state` gave."""

    def _running(self) -> AbstractContextManager[None]:
        """What holds while steps are taken."""
        return nullcontext()

    def _saved(self) -> None:
        """After every save."""

    def recorded(self) -> dict[str, object]:
        """Settings to keep and to compare."""
        return dataclasses.asdict(self.config)

    # -- the run

    def open(self) -> None:
        """Resume what the folder holds, or begin there.

        Raises
        ------
        InputError
            When it cannot be written or holds a run with other settings or data.
        CheckpointError
            When its state is damaged.
        """
        if self.out is not None:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                if self.team.leads:
                    clear_left(self.out)
                if self._state_path.exists():
                    self._resume()
                elif self.team.leads:
                    self._write_config()
            except OSError as error:
                raise InputError(
                    f"folder {self.out} cannot be written ({error.strerror}); give another folder"
                ) from None
        self.team.check_same(self.step)

    def run(self, max_seconds: float = math.inf) -> Iterator[RowT]:
        """Go on to the last step, yielding each row of the log.

        Saves regularly, and when the generator is closed or interrupted; an interrupt amid the
        update of the weights leaves the last save, from which the steps since are repeated. Of
        several processes the first yields and saves, and an interrupt of any stops all of them
        after the step.

        Parameters
        ----------
        max_seconds
            Stop after the step in which this time is over; the run can be resumed.
        """
        last, last_step = time.perf_counter(), self.step
        end = last + max_seconds
        self.team.time_is_over = self.team.ending = False
        with self._running():
            try:
                while True:
                    # at once where a run stopped between step and row
                    if self._row_is_due and self.team.leads:
                        self._synchronise()
                        now = time.perf_counter()
                        self.seconds += now - last
                        row = self._row((self.step - last_step) / (now - last))
                        self._log(row)
                        self._begin_row()
                        last_step = self.step
                        yield row
                        last = time.perf_counter()
                    if self.done or self.team.ending:
                        break
                    self.team.time_is_over = time.perf_counter() >= end
                    if self.team.time_is_over and self.team.size == 1:
                        break
                    self._advance(self._batch())
                    if self.team.stopping:
                        raise KeyboardInterrupt
                    if self.step % self.save_every == 0 and not self.done:
                        self.save()
            finally:
                if not self._changing:
                    self.save()

    def save(self) -> None:
        """Write the state to resume from."""
        if self.out is None or not self.team.leads:
            return
        tensors, values = self._state()
        header = {
            "format": STATE_FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "config": self.recorded(),
            "data_hash": self.data_hash,
        }
        write_tensors(self._state_path, tensors, header | values)
        self._saved()

    def _synchronise(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    # -- files

    @property
    def _state_path(self) -> Path:
        assert self.out is not None
        return self.out / STATE

    @property
    def _log_path(self) -> Path:
        assert self.out is not None
        return self.out / "log.csv"

    def _write_config(self) -> None:
        assert self.out is not None
        write_text(self.out / "config.json", json.dumps(self.recorded(), indent=2) + "\n")
        with replacing(self._log_path, newline="") as handle:
            csv.writer(handle).writerow(self.columns())

    def _log(self, row: RowT) -> None:
        if self.out is None:
            return
        with self._log_path.open("a", newline="") as handle:
            place, *rest = row.values()
            csv.writer(handle).writerow([f"{place:.0f}", *(f"{v:.6g}" for v in rest)])

    def _resume(self) -> None:
        tensors, header = read_tensors(self._state_path, STATE_FORMAT)
        mine = json.loads(json.dumps(self.recorded()))
        default = json.loads(json.dumps(dataclasses.asdict(type(self.config)())))
        theirs = header.get("config")
        # runs of older versions do not know of every setting
        found = default | theirs if isinstance(theirs, dict) else {}
        differing = sorted(key for key, value in mine.items() if found.get(key) != value)
        if differing:
            raise InputError(
                f"{self.out} holds a run with other settings ({', '.join(differing)}); "
                "use the same settings to resume it, or another folder"
            )
        if header.get("data_hash") != self.data_hash:
            raise InputError(
                f"{self.out} holds a run on other training data; give the same packed file to "
                "resume it, or use another folder"
            )
        try:
            self._restore(tensors, header)
            self.step = int(number_in(header, "step"))
            self.seconds = float(number_in(header, "seconds"))
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{self._state_path} cannot be resumed ({reason})") from None
        if self.team.leads:
            self._drop_rows_after(self._rows_written)

    def _drop_rows_after(self, place: int) -> None:
        """Rows written after the state was saved are written again by the resumed run."""
        rows = []
        if self._log_path.exists():
            with self._log_path.open(newline="") as handle:
                rows = list(csv.reader(handle))[1:]
        with replacing(self._log_path, newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(self.columns())
            writer.writerows(r for r in rows if r and r[0].isdigit() and int(r[0]) <= place)


def number_in(header: Mapping[str, object], name: str) -> int | float:
    """A number of what was saved.

    Raises
    ------
    KeyError, TypeError
        When there is none.
    """
    value = header[name]
    if not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}, which is no number")
    return value


# -- tensors of modules and optimisers


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Weights by name, behind a prefix."""
    return {f"{prefix}.{k}": v for k, v in module.state_dict().items()}


def load_module(prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Weights that :func:`module_tensors` gave."""
    start = f"{prefix}."
    own = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    module.load_state_dict(own)


def moment_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and counts."""
    state = optimiser.state_dict()["state"]
    return {f"adam.{k}.{name}": v for k, own in state.items() for name, v in own.items()}


def load_moments(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """What :func:`moment_tensors` gave.

    Raises
    ------
    ValueError, KeyError
        When it does not fit the optimiser's weights.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("adam."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    weights = [p for group in optimiser.param_groups for p in group["params"]]
    for place, own in state.items():
        if not 0 <= place < len(weights) or any(
            own[k].shape != weights[place].shape for k in ("exp_avg", "exp_avg_sq")
        ):
            raise ValueError("the optimiser's moments do not fit the weights")
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
