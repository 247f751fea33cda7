"""Tensors in a file: safetensors with a JSON header entry. Data, never code.

A header names the format of the file and holds checksums of the tensors and of itself. Large
tables of whole numbers may be deflated (RFC 1951), which changes no number.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.files import unwritable, write_bytes

HEADER = "langevin_xtal"
HEADER_CHECKSUM = "header_checksum"

# what safetensors, json, zlib and torch raise on damaged or foreign bytes
_DAMAGE = (
    SafetensorError,
    ValueError,
    OSError,
    RuntimeError,
    LookupError,
    AttributeError,
    TypeError,
    OverflowError,
    MemoryError,
    zlib.error,
)

_SHORTER = {torch.float32: torch.float16, torch.int32: torch.int16}
_TABLES = {"uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32}
_WORTH = 4096
"""Of deflating [bytes]."""
_LARGEST_TABLE = 1 << 28
"""Of a deflated table [bytes]: a small file must not fill the memory."""

Tensors: TypeAlias = dict[str, torch.Tensor]


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """16 hexadecimal digits over names and values."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        values = state[name].detach().cpu().contiguous()
        digest.update(values.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def compact(values: torch.Tensor) -> torch.Tensor:
    """In half the bytes where these hold the same numbers."""
    short = values.to(_SHORTER.get(values.dtype, values.dtype))
    return short if torch.equal(short.to(values.dtype), values) else values


def write_tensors(
    path: Path, tensors: Tensors, header: Mapping[str, object], *, deflate: bool = False
) -> None:
    """Write a safetensors file, complete or not at all, with checksums in its header.

    Parameters
    ----------
    deflate
        Deflate large tables of whole numbers.

    Raises
    ------
    CheckpointError
        When the folder is missing or the disk refuses.
    """
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    header = {**header, "checksum": weights_hash(contiguous)}
    tables = {k: _deflate(v) for k, v in contiguous.items() if deflate and _is_large_table(v)}
    if tables:
        header["deflated"] = {k: _kind_and_shape(contiguous[k]) for k in tables}
    header[HEADER_CHECKSUM] = _header_hash(header)
    try:
        # save_file would make a file that others may not read, whatever the user's umask
        data = save(contiguous | tables, {HEADER: json.dumps(header, sort_keys=True)})
        write_bytes(path, data, durable=True)
    except OSError as error:
        raise unwritable(f"checkpoint {path}", error, CheckpointError) from None
    except (SafetensorError, InputError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be written ({error})") from None


def _kind_and_shape(values: torch.Tensor) -> list[object]:
    return [str(values.dtype).removeprefix("torch."), list(values.shape)]


def _is_large_table(values: torch.Tensor) -> bool:
    return values.dtype in _TABLES.values() and _WORTH <= values.nbytes <= _LARGEST_TABLE


def _deflate(values: torch.Tensor) -> torch.Tensor:
    raw = values.numpy().astype(values.numpy().dtype.newbyteorder("<")).tobytes()
    return torch.from_numpy(np.frombuffer(zlib.compress(raw), np.uint8).copy())


def _inflate(data: torch.Tensor, how: Any) -> torch.Tensor:
    """Undo :func:`_deflate`.

    Raises
    ------
    ValueError, TypeError, LookupError, zlib.error
        When the description or the data are not what that function leaves.
    """
    kind, shape = how
    dtype = _TABLES[kind]
    count = math.prod(shape)
    size = count * dtype.itemsize
    if any(type(n) is not int or n < 0 for n in shape) or size > _LARGEST_TABLE:
        raise ValueError(f"a table of shape {shape} is refused")
    stream = zlib.decompressobj()
    raw = stream.decompress(data.numpy().tobytes(), size + 1)
    if len(raw) != size or not stream.eof or stream.unused_data:
        raise ValueError("a deflated table has another size than its shape")
    order = np.dtype(kind).newbyteorder("<")
    return torch.from_numpy(np.frombuffer(raw, order).astype(kind).reshape(shape))


def read_tensors(path: Path, *formats: str) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and header of a file written by :func:`write_tensors`.

    Parameters
    ----------
    formats
        What the header may name.

    Raises
    ------
    CheckpointError
        When the file is missing, truncated, foreign or of another format.
    """
    if not os.path.isfile(path):
        what = "is not a file" if os.path.exists(path) else "does not exist"
        raise CheckpointError(f"checkpoint {path} {what}")
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            header = json.loads(metadata.get(HEADER, "null"))
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except _DAMAGE as error:
        raise CheckpointError(
            f"checkpoint {path} is truncated or not a safetensors file ({error})"
        ) from None
    if not isinstance(header, dict) or "format" not in header:
        raise CheckpointError(f"checkpoint {path} was not written by langevin-xtal")
    if formats and header["format"] not in formats:
        raise CheckpointError(
            f"checkpoint {path} has format {header['format']!r}; "
            f"this version reads {' and '.join(repr(f) for f in formats)}"
        )
    # files of versions before 0.6 have none
    if HEADER_CHECKSUM in header and header[HEADER_CHECKSUM] != _header_hash(header):
        raise CheckpointError(
            f"checkpoint {path} is damaged: the checksum of its header does not match"
        )
    try:
        for name, how in header.pop("deflated", {}).items():
            tensors[name] = _inflate(tensors[name], how)
    except _DAMAGE as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from None
    if "checksum" in header and header["checksum"] != weights_hash(tensors):
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum does not match")
    return tensors, header


def _header_hash(header: Mapping[str, object]) -> str:
    """16 hexadecimal digits over a header but for its checksums."""
    hashed = {k: v for k, v in header.items() if k not in (HEADER_CHECKSUM, "checksum")}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]
