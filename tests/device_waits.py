"""Operations for which the host waits for a GPU, counted where there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

SIZES_FROM_VALUES = {
    "_local_scalar_dense",  # .item(), int(), float(), bool() of a tensor, one .tolist()
    "nonzero",
    "masked_select",
    "bincount",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "_linalg_check_errors",  # inv, solve, det without _ex
    "lift_fresh",  # a tensor of Python's numbers, copied to the device
}


COPIES_TO_HOST = (Tensor.tolist, Tensor.numpy, Tensor.cpu)


class HostWaits(TorchDispatchMode):
    """Counts operations whose result, or its size, the host has to know before it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self._copies = _Copies(self.count)

    def __enter__(self) -> HostWaits:
        self._copies.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._copies.__exit__(*error)

    @property
    def total(self) -> int:
        """Of all kinds."""
        return sum(self.count.values())

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Count and do."""
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]  # type: ignore[attr-defined]
        unsized = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in SIZES_FROM_VALUES or unsized:
            self.count[name] += 1
        elif name in ("index", "index_put", "index_put_", "_unsafe_index") and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        ):
            self.count["index by mask"] += 1
        return func(*args, **kwargs)


class _Copies(TorchFunctionMode):
    """What a CPU tensor does without an operation."""

    def __init__(self, count: Counter[str]) -> None:
        super().__init__()
        self.count = count

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Count and do."""
        if func in COPIES_TO_HOST:
            self.count[func.__name__] += 1
        return func(*args, **(kwargs or {}))
