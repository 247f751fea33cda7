"""Training in several processes that share every batch, as ``torchrun`` starts them.

Every process holds the same weights, averages and moments and draws the random numbers of the
whole batch. It noises its own share of the crystals and computes their losses; the gradients of
all are added, so N processes do what one does with the same batch, up to the rounding of that sum.
The first process writes the files and shows progress.

.. code-block:: bash

    torchrun --standalone --nproc-per-node 2 -m langevin_xtal train --out run/

Processes on a CPU talk through gloo, on CUDA through NCCL, one device each. Ctrl-C and SIGTERM
wait for the end of the step, at which all processes stop together: a process that left amid a
step would leave the others waiting.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from langevin_xtal import signals
from langevin_xtal.diffusion.losses import Losses
from langevin_xtal.errors import InputError, LangevinXtalError

STOP_SECONDS = 25.0
"""From a signal until all processes have ended; ``torchrun`` kills them after 30."""


@dataclass
class Team:
    """The processes of one training run, seen from one of them."""

    rank: int = 0
    size: int = 1
    stop_asked: bool = False  #: of this process, by a signal
    stopping: bool = False  #: of any process, as known to all since the last sum
    time_is_over: bool = False  #: of this process
    ending: bool = False  #: time is over in any process, as known to all since the last sum

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows progress."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """This process's part of ``total`` crystals; parts differ by one at most."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def add(self, *arrays: NDArray[np.float64]) -> None:
        """Replace every array by its sum over the processes, and learn whether any stops or ends.

        Waits for all processes, also with nothing to add.
        """
        if self.size == 1:
            return
        flags = [float(self.stop_asked), float(self.time_is_over)]
        tensor = torch.from_numpy(np.concatenate([*(a.ravel() for a in arrays), flags]))
        self._reduce(tensor)
        *parts, found = np.split(tensor.numpy(), np.cumsum([a.size for a in arrays]))
        for array, part in zip(arrays, parts, strict=True):
            array[...] = part.reshape(array.shape)
        self.stopping, self.ending = (bool(flag) for flag in found)

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes."""
        if self.size == 1:
            return
        used = list(parameters)
        flat = torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).ravel() for p in used]
        )
        self._reduce(flat)
        for p, part in zip(used, flat.split([p.numel() for p in used]), strict=True):
            p.grad = part.view_as(p)

    def check_same(self, step: int) -> None:
        """Wait for all processes, which must have resumed from the same step.

        Raises
        ------
        InputError
            When they have not.
        """
        if self.size == 1:
            return
        steps = np.zeros(self.size)
        steps[self.rank] = step
        self.add(steps)
        if (steps != step).any():
            found = ", ".join(f"{s:.0f}" for s in steps)
            raise InputError(
                f"the processes of this run resumed from the steps {found}: the folder must be "
                "the same for all of them; give one on a shared file system"
            )

    def _reduce(self, tensor: Tensor) -> None:
        try:
            distributed.all_reduce(tensor)
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            raise LangevinXtalError(
                f"another process of this training has ended ({reason}); the run can be resumed"
            ) from None


def join(device: str) -> tuple[Team, str]:
    """The processes ``torchrun`` started, and this one's device; a team of one without it.

    Raises
    ------
    InputError
        When there are more processes than CUDA devices on this machine.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        return Team(), device
    on_cuda = device.startswith("cuda")
    if on_cuda:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise InputError(
                f"process {local} of this machine has no CUDA device of its own: there are "
                f"{torch.cuda.device_count()}; start as many processes with --nproc-per-node"
            )
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    else:
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cores = max(1, (os.cpu_count() or 1) // beside)
        torch.set_num_threads(min(cores, torch.get_num_threads()))
    if not distributed.is_initialized():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
        atexit.register(_leave)
    return Team(distributed.get_rank(), distributed.get_world_size()), device


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def orderly_stop(team: Team) -> Iterator[None]:
    """While the block runs, Ctrl-C and SIGTERM ask the whole team to stop instead of raising.

    The block raises KeyboardInterrupt when the team is stopping. At its end all wait for the first
    process, which is saving. Nothing changes for a team of one.
    """
    if team.size == 1:
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        team.stop_asked = True

    signals.allow(STOP_SECONDS)
    in_main = threading.current_thread() is threading.main_thread()
    watched = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    before = {number: signal.signal(number, ask) for number in watched}
    try:
        yield
        team.add()
        if team.stopping:  # asked too late for the last step
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        team.add()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def part_of_total(
    losses: Losses, lattice_weight: float, crystals: float, lattices: float
) -> Tensor:
    """A process's part of :meth:`Losses.total` of a whole batch: the parts add up to it.

    Parameters
    ----------
    crystals, lattices
        Crystals of the whole batch, and those of them whose lattice counts.
    """
    lattice = losses.lattice.sum() / max(1.0, lattices)
    return losses.position.sum() / crystals + lattice_weight * lattice
