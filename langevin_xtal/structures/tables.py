"""Tables of structures: CSV with a column of CIF or other text, and flat arrays of numpy."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np

from langevin_xtal.crystal.cell import cell_from_parameters
from langevin_xtal.errors import DataError, LatticeError, RejectError
from langevin_xtal.structures.files import check_archive
from langevin_xtal.structures.record import ReadStructure, Record, first_line, number, rejected

COLUMNS = ("cif", "structure", "poscar", "cif_string", "cif_text")
"""Columns that hold a structure as text, by preference."""


def read_csv(
    open_stream: Callable[[], TextIO], stem: str, parse: Callable[[str], ReadStructure]
) -> Iterator[Record]:
    """A record for every row; numbers of other columns are its properties.

    Raises
    ------
    DataError
        At once, when no column holds structures.
    """
    csv.field_size_limit(2**31 - 1)  # a CIF is longer than the default limit
    with open_stream() as stream:
        first = stream.readline()
    delimiter = _delimiter(first)
    try:
        names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    except csv.Error as error:
        raise DataError(f"it is no CSV: {first_line(error)}") from None
    lower = [name.lower() for name in names]
    column = next((lower.index(name) for name in COLUMNS if name in lower), None)
    if column is None:
        shown = ", ".join(names)[:200] or "none"
        raise DataError(f"it has no 'cif' column; its columns are {shown}")
    identifier = next((lower.index(n) for n in ("material_id", "id") if n in lower), None)
    return _rows(open_stream, stem, parse, delimiter, names, column, identifier)


def _rows(
    open_stream: Callable[[], TextIO],
    stem: str,
    parse: Callable[[str], ReadStructure],
    delimiter: str,
    names: list[str],
    column: int,
    identifier: int | None,
) -> Iterator[Record]:
    others = [
        (place, key)
        for place, key in enumerate(names)
        if key and place not in (column, identifier)
    ]
    with open_stream() as stream:
        rows = csv.reader(stream, delimiter=delimiter)
        for k in count(-1):
            try:
                row = next(rows, None)
            except (csv.Error, UnicodeError) as error:
                reason = ("the file cannot be read further", first_line(error))
                yield Record(f"{stem}-{max(k, 0)}", reason, rejected)
                return
            if row is None:
                return
            if k < 0:
                continue
            row += [""] * (len(names) - len(row))
            name = row[identifier].strip() if identifier is not None else ""
            properties = {key: n for j, key in others if (n := number(row[j])) is not None}
            yield Record(name or f"{stem}-{k}", row[column], parse, properties)


def _delimiter(header: str) -> str:
    return max(",;\t", key=lambda mark: (header.count(mark), mark == ","))


def read_npz(path: Path) -> tuple[Iterator[Record], int]:
    """Flat arrays: id, na, lat (n, 6) lengths and angles [Å, °], Z, F; other (n,) are values.

    Raises
    ------
    DataError
        When an array is missing, damaged, of another shape, or larger than its file can hold.
    """
    arrays = _arrays(path)
    for name in ("id", "na", "lat", "Z", "F"):
        if name not in arrays:
            raise DataError(f"{path} lacks the array {name!r}; it must have id, na, lat, Z and F")
    for name in ("na", "lat", "Z", "F"):
        if arrays[name].dtype.kind not in "biuf":
            raise DataError(f"{path}: array {name!r} holds {arrays[name].dtype}, not numbers")
    ids, counts = arrays["id"].astype(str), arrays["na"].astype(np.int64)
    if ids.ndim != 1 or counts.ndim != 1:
        raise DataError(f"{path}: arrays 'id' and 'na' must have one dimension")
    n, atoms = len(ids), int(counts.sum())
    shapes = {"na": (n,), "lat": (n, 6), "Z": (atoms,), "F": (atoms, 3)}
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise DataError(
                f"{path}: array {name!r} has shape {arrays[name].shape}, expected {shape}"
            )
    if n and counts.min() < 0:
        raise DataError(f"{path}: array 'na' has negative counts")
    values = {
        name: array.astype(float)
        for name, array in arrays.items()
        if name not in ("id", *shapes) and array.shape == (n,) and array.dtype.kind in "biuf"
    }
    start = np.concatenate([[0], np.cumsum(counts)])

    def records() -> Iterator[Record]:
        for k in range(n):
            s = slice(start[k], start[k + 1])
            properties = {name: float(array[k]) for name, array in values.items()}
            with np.errstate(invalid="ignore"):
                numbers = arrays["Z"][s].astype(np.int64)
            cell = (arrays["lat"][k].astype(float), arrays["F"][s].astype(float), numbers)
            yield Record(str(ids[k]), cell, parse_flat, properties)

    return records(), n


def parse_flat(payload: tuple[Any, Any, Any]) -> ReadStructure:
    """The crystal of cell parameters, fractional coordinates and atomic numbers.

    Raises
    ------
    RejectError
        When the parameters make no cell.
    """
    parameters, frac, numbers = payload
    try:
        lattice = cell_from_parameters(parameters)
    except LatticeError as error:
        raise RejectError("the cell lengths and angles form no cell", str(error)) from None
    return ReadStructure(id="", cell=(lattice, frac, numbers))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays, their declared sizes compared with the file's before any is made."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            check_archive(path, members)
            for info in members:
                if info.filename.endswith(".npy"):
                    with archive.open(info) as stream:
                        _check_header(stream, info.file_size, path, info.filename)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise anything on damaged bytes
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None


def _check_header(stream: IO[bytes], size: int, path: Path, name: str) -> None:
    """
    Raises
    ------
    DataError
        When an array declares more than its member holds.
    """
    version = np.lib.format.read_magic(stream)
    reader = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = reader(stream)
    declared = dtype.itemsize
    for length in shape:
        declared *= int(length)
    if declared > size or min(shape, default=0) < 0:
        raise DataError(f"{path}: array {name.removesuffix('.npy')!r} is larger than its file")
