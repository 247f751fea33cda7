"""Arithmetic and bytes of each stage, counted, against what the machine can do, measured.

Counted are the operations that torch runs: of products of matrices two operations for every
multiplication, of everything the bytes of tensors read and written, as if none stayed in a cache
and none were fused. The larger of arithmetic over the machine's rate and bytes over its bandwidth
is the time a stage cannot fall below while it is made of these operations. Stages that run
outside torch, such as the C++ builder, have no such counts.
"""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

GATHERS = ("index", "index_select", "embedding", "gather", "_index_put_impl_", "index_put_")
"""Operations that touch only the rows they pick: read as much as they write."""

FREE = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach")
"""Operations that touch no values."""


class LimitsTable(TypedDict):
    """:class:`Limits` as a table."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Limits:
    """What the machine can do, as torch reaches it."""

    flops: float  #: operations per second of a large product of matrices, float32
    bandwidth: float  #: bytes per second read and written by a copy larger than the caches

    def table(self) -> LimitsTable:
        """Both numbers by name."""
        return {"flops": self.flops, "bandwidth": self.bandwidth}

    def floor(self, flops: float, size: float) -> float:
        """Seconds below which work of so many operations and bytes cannot fall."""
        return max(flops / self.flops, size / self.bandwidth)


def cpu_name() -> str:
    """Of this machine, as it says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [k.partition(":")[2].strip() for k in lines if k.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure_limits(
    device: str,
    synchronise: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
    runs: int = 5,
) -> Limits:
    """The fastest of several runs, with the threads torch has now."""
    on_cuda = device.startswith("cuda")
    width = 8192 if on_cuda else 1024
    rows = torch.randn(width, width, device=device)
    source = torch.ones(2**30 if on_cuda else 2**26, device=device)
    target = torch.zeros_like(source)

    def fastest(run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(runs + 1):  # the first fills caches
            synchronise()
            start = clock()
            run()
            synchronise()
            seconds.append(clock() - start)
        return min(seconds[1:])

    product = fastest(lambda: rows @ rows)
    copy = fastest(lambda: target.copy_(source))
    size = 2 * source.numel() * source.element_size()
    return Limits(flops=2.0 * width**3 / product, bandwidth=size / copy)


class StageRow(TypedDict):
    """What one stage takes and does, and how near the limit it is."""

    stage: str
    seconds: float
    share: float
    flops: float
    bytes: float
    operations: int
    floor_seconds: float
    bound_by: str
    share_of_limit: float


@dataclass
class Work:
    """What one stage does."""

    flops: float = 0.0
    bytes: float = 0.0
    operations: int = 0


class Tally:
    """Arithmetic and bytes of named stages, each without the stages entered inside it.

    Used like :class:`~langevin_xtal.report.instruments.Stopwatch`, in a run of its own: counting
    takes longer than what is counted.
    """

    def __init__(self) -> None:
        self.work: dict[str, Work] = {}
        self._lock, self._here = threading.Lock(), threading.local()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count a block."""
        stack: list[str] = getattr(self._here, "stack", [])
        self._here.stack = stack
        stack.append(name)
        try:
            if len(stack) > 1:
                yield
            else:
                with _Counting(self, stack):
                    yield
        finally:
            stack.pop()

    def add(self, name: str, flops: float, size: float) -> None:
        """One operation of a stage."""
        with self._lock:
            work = self.work.setdefault(name, Work())
            work.flops += flops
            work.bytes += size
            work.operations += 1


class _Counting(TorchDispatchMode):
    """Gives every operation to the stage that is on top of the stack."""

    def __init__(self, tally: Tally, stack: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tally, self.stack = tally, stack

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        # in inference mode linear layers and the like arrive whole
        if not func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CPU):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if not is_free(func):
            flops = 0.0
            if func.overloadpacket in flop_registry:
                flops = flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
            self.tally.add(self.stack[-1], flops, traffic(func, (args, kwargs), out))
        return out


def is_free(func: OpOverload) -> bool:
    """Whether an operation touches no values: views and empty tensors."""
    name = func._schema.name.split("::")[1]
    aliases = [r.alias_info for r in func._schema.returns]
    return name in FREE or any(a is not None and not a.is_write for a in aliases)


def traffic(
    func: OpOverload, given: tuple[tuple[Any, ...], dict[str, object]], out: object
) -> float:
    """Bytes of the tensors an operation reads and writes."""
    name = func._schema.name.split("::")[1]
    read, written = ([t for t in tree_leaves(x) if isinstance(t, Tensor)] for x in (given, out))
    if name in GATHERS:
        return _gathered(name, given[0], read, written)
    return float(sum(_size(t) for t in (*read, *written)))


def _gathered(
    name: str, args: tuple[Any, ...], read: list[Tensor], written: list[Tensor]
) -> float:
    picked = sum(_size(t) for t in read[1:])
    if "put" in name:  # values and indices are read, the rows read and written
        return float(picked + 2 * _size(args[2]))
    return float(picked + 2 * sum(_size(t) for t in written))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def stage_rows(
    seconds: Mapping[str, float], work: Mapping[str, Work], limits: Limits
) -> list[StageRow]:
    """One row for each stage: what it takes and does, and how near the limit it is."""
    whole = sum(seconds.values())
    rows: list[StageRow] = []
    for name, spent in seconds.items():
        done = work.get(name, Work())
        floor = limits.floor(done.flops, done.bytes)
        rows.append(
            {
                "stage": name,
                "seconds": spent,
                "share": spent / whole if whole else 0.0,
                "flops": done.flops,
                "bytes": done.bytes,
                "operations": done.operations,
                "floor_seconds": floor,
                "bound_by": (
                    "arithmetic"
                    if done.flops / limits.flops > done.bytes / limits.bandwidth
                    else "bytes"
                ),
                "share_of_limit": floor / spent if spent else 0.0,
            }
        )
    return rows
