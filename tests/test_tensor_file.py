"""Files of tensors: small without changing a number, and refused when damaged."""

from __future__ import annotations

import json
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from langevin_xtal.errors import CheckpointError
from langevin_xtal.model.checkpoint import shipped_models
from langevin_xtal.model.tensor_file import (
    HEADER,
    HEADER_CHECKSUM,
    compact,
    read_tensors,
    weights_hash,
    write_tensors,
)

FORMAT = "test 1"
TABLE = torch.arange(9000, dtype=torch.int16).reshape(3000, 3) % 17


def stored_header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as handle:
        header = json.loads(handle.metadata()[HEADER])
    assert isinstance(header, dict)
    return header


def refusal(path: Path, **more: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        read_tensors(path, FORMAT, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


@given(
    arrays.arrays(
        st.sampled_from([np.uint8, np.int16, np.int32]),
        st.tuples(st.integers(80, 90), st.integers(100, 120)),
        elements=st.integers(0, 3),
        fill=st.just(0),
    )
)
def test_tables_come_back(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray[Any, Any]
) -> None:
    path = tmp_path_factory.mktemp("t") / "t.safetensors"
    tensors = {"table": torch.from_numpy(values), "short": torch.arange(5, dtype=torch.uint8)}
    write_tensors(path, tensors, {"format": FORMAT}, deflate=True)
    read, header = read_tensors(path, FORMAT)
    assert set(read) == set(tensors)
    assert all(torch.equal(read[k], v) and read[k].dtype == v.dtype for k, v in tensors.items())
    assert header["checksum"] == weights_hash(tensors)
    assert path.stat().st_size < values.nbytes


def test_deflated_files_are_rewritten_from_what_was_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"t": TABLE}, {"format": FORMAT}, deflate=True)
    tensors, header = read_tensors(tmp_path / "a", FORMAT)
    write_tensors(tmp_path / "b", tensors, header)
    assert "deflated" not in stored_header(tmp_path / "b")
    assert torch.equal(read_tensors(tmp_path / "b", FORMAT)[0]["t"], TABLE)
    write_tensors(tmp_path / "c", tensors, header, deflate=True)
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()


@pytest.mark.parametrize(
    ("how", "data"),
    [
        (["int16", [3000, 4]], None),
        (["int16", [2999, 3]], None),
        (["int16", [-3000, -3]], None),
        (["int16", [3000.0, 3]], None),
        (["float32", [4500]], None),
        (["int16"], None),
        ("int16", None),
        (["uint8", [1 << 40]], None),
        (["uint8", [1 << 20]], zlib.compress(bytes(1 << 21))),
        (["int16", [3000, 3]], b"nothing of the kind"),
        (["int16", [3000, 3]], zlib.compress(TABLE.numpy().tobytes())[:-5]),
        (["int16", [3000, 3]], zlib.compress(TABLE.numpy().tobytes()) + b"more"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, how: object, data: bytes | None) -> None:
    write_tensors(tmp_path / "a", {"t": TABLE}, {"format": FORMAT}, deflate=True)
    header = stored_header(tmp_path / "a") | {"deflated": {"t": how}}
    header.pop(HEADER_CHECKSUM)
    tensors = load_file(tmp_path / "a")
    if data is not None:
        tensors = {"t": torch.from_numpy(np.frombuffer(data, np.uint8).copy())}
    save_file(tensors, tmp_path / "b", metadata={HEADER: json.dumps(header)})
    assert "is damaged" in refusal(tmp_path / "b")


def test_shipped_models_are_of_moderate_size() -> None:
    folder = resources.files("langevin_xtal.weights")
    for name in shipped_models():
        assert Path(str(folder / f"{name}.safetensors")).stat().st_size < 16 << 20, name


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (torch.tensor([0.5, -2.0, 0.0]), torch.float16),
        (torch.tensor([0.1]), torch.float32),
        (torch.tensor([65536.0]), torch.float32),
        (torch.tensor([0, -32768, 32767], dtype=torch.int32), torch.int16),
        (torch.tensor([65536 + 7], dtype=torch.int32), torch.int32),
        (torch.tensor([200], dtype=torch.uint8), torch.uint8),
    ],
)
def test_half_the_bytes_where_they_hold_the_numbers(
    values: torch.Tensor, dtype: torch.dtype
) -> None:
    found = compact(values)
    assert found.dtype == dtype
    assert torch.equal(found.to(values.dtype), values)
