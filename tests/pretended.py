"""A device that is not there: tensors say they are on it, and may not meet those of the host.

The values are computed on the CPU. What would fail on a GPU because some tensor stayed behind
fails here too, without one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "meta"
"""A device type that needs no driver; nothing of torch's own runs on it here."""

CROSSING = ("_to_copy", "copy_")


class _There(Tensor):
    """A tensor of the pretended device."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> _There:
        """Around a tensor of the CPU."""
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        made.values = values
        return made

    def tolist(self) -> Any:
        """What torch does not do for subclasses."""
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """As on the CPU."""
        return _run(func, args, kwargs or {})


class _Made(TorchFunctionMode):
    """Tensors of Python's numbers, which reach a device without an operation."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """On the CPU first, then over."""
        kwargs = dict(kwargs or {})
        if func not in (torch.tensor, torch.as_tensor) or kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = kwargs.pop("device")
        return func(*args, **kwargs).to(device)


class PretendedDevice(TorchDispatchMode):
    """While active, tensors made on, or moved to, ``DEVICE`` are kept apart from the host's."""

    def __init__(self) -> None:
        super().__init__()
        self._made = _Made()

    def __enter__(self) -> PretendedDevice:
        self._made.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._made.__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """As on the CPU."""
        return _run(func, args, kwargs or {})


def _run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.split("::")[1]  # type: ignore[attr-defined]
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = [t for t in tensors if isinstance(t, _There)]
    # numbers of the host are welcome on a device
    here = [t for t in tensors if not isinstance(t, _There) and t.dim()]
    if there and here and name not in CROSSING:
        shapes = ", ".join(str(tuple(t.shape)) for t in here)
        raise RuntimeError(f"{name} meets tensors of the host ({shapes}) on a device")
    asked = kwargs.get("device")
    stays = bool(there) if asked is None else torch.device(asked).type == DEVICE
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    inner = {id(t.values): t for t in there}
    args, kwargs = tree_map(lambda t: t.values if isinstance(t, _There) else t, (args, kwargs))
    found = func(*args, **kwargs)

    def back(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in inner:  # changed in place
            return inner[id(value)]
        return _There(value) if stays and name != "copy_" else value

    return tree_map(back, found)
