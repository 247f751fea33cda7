"""Tensors in a file: safetensors with a JSON header entry. Data, never code.

A header names the format of the file and holds checksums of the tensors and of itself. Two things
keep files small without changing a number: large tables of whole numbers are deflated (RFC 1951),
and tensors that another file holds, exactly or rounded to half precision, may be left out; the
header entry ``base`` then names that file and these tensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Mapping
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
    path: Path,
    tensors: Tensors,
    header: Mapping[str, object],
    *,
    deflate: bool = False,
    beside: tuple[str, Path] | None = None,
) -> None:
    """Write a safetensors file, complete or not at all, with checksums in its header.

    Parameters
    ----------
    deflate
        Deflate large tables of whole numbers.
    beside
        Leave out what this file holds; the name is that by which ``bases`` of
        :func:`read_tensors` finds it.

    Raises
    ------
    CheckpointError
        When the folder is missing or the disk refuses.
    """
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    header = {**header, "checksum": weights_hash(contiguous)}
    left_out: set[str] = set()
    if beside is not None:
        header["base"], left_out = _left_out(contiguous, *beside)
    stored = {k: v for k, v in contiguous.items() if k not in left_out}
    tables = {k: _deflate(v) for k, v in stored.items() if deflate and _is_large_table(v)}
    if tables:
        stored |= tables
        header["deflated"] = {k: _kind_and_shape(contiguous[k]) for k in tables}
    header[HEADER_CHECKSUM] = _header_hash(header)
    try:
        # save_file would make a file that others may not read, whatever the user's umask
        data = save(stored, {HEADER: json.dumps(header, sort_keys=True)})
        write_bytes(path, data, durable=True)
    except OSError as error:
        raise unwritable(f"checkpoint {path}", error, CheckpointError) from None
    except (SafetensorError, InputError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be written ({error})") from None


def _left_out(tensors: Tensors, name: str, path: Path) -> tuple[dict[str, object], set[str]]:
    """The header entry of what the file ``path`` holds, and the names of these tensors."""
    held, header = _read(path)
    common = {k: v for k, v in tensors.items() if k in held}
    same = [k for k, v in common.items() if _is_equal(held[k], v)]
    halved = [
        k
        for k, v in common.items()
        if v.dtype == torch.float16 and k not in same and _is_equal(held[k].half(), v)
    ]
    entry = {"name": name, "checksum": header["checksum"], "same": same, "halved": halved}
    return entry, {*same, *halved}


def _is_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


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


def read_tensors(
    path: Path, *formats: str, bases: Callable[[str], Path] | None = None
) -> tuple[Tensors, dict[str, Any]]:
    """Tensors and header of a file written by :func:`write_tensors`.

    Parameters
    ----------
    formats
        What the header may name.
    bases
        Finds the file that holds the tensors left out, by its name; raises CheckpointError for
        names unknown to it. Without it files that leave tensors out are refused.

    Raises
    ------
    CheckpointError
        When the file is missing, truncated, foreign or of another format.
    """
    tensors, header = _read(path, *formats)
    if "base" in header:
        tensors |= _from_base(path, header.pop("base"), bases)
    if "checksum" in header and header["checksum"] != weights_hash(tensors):
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum does not match")
    return tensors, header


def _read(path: Path, *formats: str) -> tuple[Tensors, dict[str, Any]]:
    """What a file itself holds, tables inflated."""
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
    return tensors, header


def _from_base(path: Path, base: Any, bases: Callable[[str], Path] | None) -> Tensors:
    """The tensors that a file leaves to another."""
    where = f"checkpoint {path}"
    if bases is None:
        raise CheckpointError(f"{where} leaves tensors to another file, which only models may do")
    try:
        name, checksum = base["name"], base["checksum"]
        same, halved = list(base["same"]), list(base["halved"])
    except _DAMAGE as error:
        raise CheckpointError(f"{where} does not say what it leaves out ({error})") from None
    held, header = _read(bases(name))
    if header.get("checksum") != checksum:
        raise CheckpointError(
            f"{where} was made beside another version of the model {name!r} than the one "
            "installed; use both from one version of langevin-xtal"
        )
    try:
        return {k: held[k] for k in same} | {k: held[k].half() for k in halved}
    except _DAMAGE as error:
        raise CheckpointError(f"{where} does not fit the model {name!r} ({error})") from None


def _header_hash(header: Mapping[str, object]) -> str:
    """16 hexadecimal digits over a header but for its checksums."""
    hashed = {k: v for k, v in header.items() if k not in (HEADER_CHECKSUM, "checksum")}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]
