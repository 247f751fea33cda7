"""Everything that structures are read from: files of every format, folders, packed data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from langevin_xtal.crystal.asymmetric import AsymmetricUnit
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.structures.readers import FORMATS, Records
from langevin_xtal.structures.readers import read_records as read_files
from langevin_xtal.structures.record import ReadStructure, Record, first_line, read

__all__ = [
    "FORMATS",
    "ReadStructure",
    "Record",
    "Records",
    "cell_of",
    "first_line",
    "read",
    "read_records",
]


def read_records(source: str | os.PathLike[str], file_format: str = "") -> Records:
    """Records of a file, a folder or a packed dataset (``.lxd``), lazily.

    ``file_format`` as of :func:`langevin_xtal.structures.readers.read_records`.

    Raises
    ------
    InputError
        For a format that is not known.
    DataError
        When the source is missing, unreadable, or of no known format.
    """
    path = Path(source)
    if path.suffix.lower() == ".lxd" and not path.is_dir():
        data = PackedDataset.load(path)
        return Records(_of_packed(data, path.name), len(data), {})
    return read_files(path, file_format)


def cell_of(record: Record) -> Cell:
    """The P1 cell of a record; parses text.

    Raises
    ------
    RejectError
        When the record holds no ordered, three-dimensional crystal.
    """
    return read(record).cell


def _of_packed(data: PackedDataset, name: str) -> Iterator[Record]:
    for k in range(len(data)):
        properties = {key: float(values[k]) for key, values in data.properties.items()}
        yield Record(str(data.id[k]), data.unit(k), _conventional, properties, name)


def _conventional(unit: AsymmetricUnit) -> ReadStructure:
    """The conventional cell of a crystal of a packed dataset."""
    return ReadStructure(id="", cell=unit.cell())
