"""Everything that structures are read from: files of every format, folders, packed data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from langevin_xtal.crystal.cell import Cell
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.structures.readers import FORMATS, Records
from langevin_xtal.structures.readers import read_records as read_files
from langevin_xtal.structures.record import (
    ReadStructure,
    Record,
    RejectError,
    first_line,
    read,
)
from langevin_xtal.symmetry import SpaceGroup, orbit, wrap

__all__ = [
    "FORMATS",
    "ReadStructure",
    "Record",
    "Records",
    "RejectError",
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
        own = data.sites_of(k)
        payload = (int(data.group[k]), data.lattice[k], data.frac[own], data.numbers[own])
        properties = {key: float(values[k]) for key, values in data.properties.items()}
        yield Record(str(data.id[k]), payload, expand_packed, properties, name)


def expand_packed(payload: tuple[int, Any, Any, Any]) -> ReadStructure:
    """The conventional cell of a crystal of a packed dataset."""
    number, lattice, points, numbers = payload
    group = SpaceGroup(number)
    images = [wrap(orbit(p, group.rotations, group.translations, lattice)[0]) for p in points]
    atoms = np.repeat(numbers, [len(i) for i in images])
    return ReadStructure(id="", cell=(lattice, np.concatenate(images), atoms))
