"""Readers of structure files: each yields records, lazily, and never fails for one structure.

ASE and pymatgen are imported only for the formats they read.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.dataset.packed import cell_from_parameters
from langevin_xtal.errors import DataError, LangevinXtalError, LatticeError, RequestError

FORMATS = (
    "an .npz of flat arrays, a folder of .cif files, a .cif, a .csv with a 'cif' column, "
    "extended XYZ (.xyz, .extxyz), an ASE database (.db) or pymatgen JSON (.json)"
)


class RejectError(Exception):
    """A structure that cannot be used; the message says why, without numbers that vary."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Record:
    """One structure as read, not yet judged.

    ``payload`` is a :data:`Cell`, the text of a CIF (``kind="cif"``), a dictionary of a pymatgen
    Structure (``kind="pymatgen"``) or, for ``kind="reject"``, why it could not be read. Text is
    parsed by the worker that symmetrises it, so that parsing runs in parallel.
    """

    id: str
    kind: str
    payload: Any
    properties: dict[str, float] = field(default_factory=dict)


def read_records(source: str | os.PathLike[str]) -> tuple[Iterator[Record], int | None]:
    """Records of a file or folder, lazily, and their number where it is known beforehand.

    Raises
    ------
    DataError
        When the source is missing, unreadable, or of no known format.
    """
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path} does not exist; give {FORMATS}")
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() == ".cif" and p.is_file())
        if not files:
            raise DataError(f"folder {path} holds no .cif file, at any depth")
        return _read_cif_files(files, path), len(files)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} has an unknown format; give {FORMATS}")
    try:
        return reader(path)
    except LangevinXtalError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> DataError:
    return DataError(f"{path} cannot be read: {first_line(error)}")


def _read_npz(path: Path) -> tuple[Iterator[Record], int]:
    """Flat arrays: id, na, lat (n, 6) lengths and angles [Å, °], Z, F; other (n,) are values."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name in ("id", "na", "lat", "Z", "F"):
        if name not in arrays:
            raise DataError(f"{path} lacks the array {name!r}; it must have id, na, lat, Z and F")
    ids, counts = arrays["id"].astype(str), arrays["na"].astype(np.int64)
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
            try:
                lattice = cell_from_parameters(arrays["lat"][k])
            except LatticeError as error:
                reason = ("the cell lengths and angles form no cell", str(error))
                yield Record(str(ids[k]), "reject", reason, properties)
                continue
            cell = (lattice, arrays["F"][s].astype(float), arrays["Z"][s].astype(np.int64))
            yield Record(str(ids[k]), "cell", cell, properties)

    return records(), n


def _read_cif_files(files: list[Path], root: Path) -> Iterator[Record]:
    for file in files:
        name = file.relative_to(root).with_suffix("").as_posix() if file != root else file.stem
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            yield Record(name, "reject", ("the file cannot be read", str(error.strerror)))
            continue
        blocks = _cif_blocks(text)
        for title, block in blocks:
            yield Record(name if len(blocks) == 1 else f"{name}#{title}", "cif", block)


def _cif_blocks(text: str) -> list[tuple[str, str]]:
    """(name, text) of the data blocks that hold atoms; the whole text when none does."""
    parts = re.split(r"(?im)^(?=data_)", text)
    blocks = [part for part in parts if "_atom_site_" in part.lower()]
    if len(blocks) <= 1:
        return [("", blocks[0] if blocks else text)]
    return [(block.split(None, 1)[0][5:], block) for block in blocks]


def _read_cif(path: Path) -> tuple[Iterator[Record], None]:
    return _read_cif_files([path], path), None


def _read_csv(path: Path) -> tuple[Iterator[Record], None]:
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        header = next(csv.reader(stream), [])
    names = [name.strip() for name in header]
    column = next((name for name in names if name.lower() == "cif"), None)
    if column is None:
        raise DataError(
            f"{path} has no 'cif' column; its columns are {', '.join(names) or 'none'}"
        )
    identifier = next((name for name in ("material_id", "id") if name in names), None)

    def convert(k: int, row: dict[str, Any]) -> Record:
        name = (row.get(identifier) or "").strip() if identifier else ""
        properties = {
            key: value
            for key in names
            if key
            and key not in (column, identifier)
            and (value := _number(row.get(key))) is not None
        }
        return Record(name or f"{path.stem}-{k}", "cif", row.get(column) or "", properties)

    def records() -> Iterator[Record]:
        csv.field_size_limit(2**31 - 1)  # a CIF is longer than the default limit
        with path.open(newline="", encoding="utf-8", errors="replace") as stream:
            rows = csv.DictReader(stream, fieldnames=names)
            next(rows)
            yield from _numbered(rows, path, convert)

    return records(), None


def _number(value: Any) -> float | None:
    """``value`` as a finite float, or None."""
    if isinstance(value, (bool, np.bool_, int, float, np.integer, np.floating, str)):
        try:
            number = float(value)
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    return None


def _read_xyz(path: Path) -> tuple[Iterator[Record], None]:
    from ase.io import iread

    def records() -> Iterator[Record]:
        frames = iread(str(path), index=":", format="extxyz")
        yield from _numbered(frames, path, lambda k, atoms: _ase_record(atoms, f"{path.stem}-{k}"))

    return records(), None


def _read_ase_db(path: Path) -> tuple[Iterator[Record], int]:
    import ase.db
    from ase import Atoms

    database = ase.db.connect(str(path), type="db")
    total = database.count()

    def convert(_: int, row: Any) -> Record:
        # not row.toatoms(), which would decode the free-form data column
        atoms = Atoms(row.numbers, row.positions, cell=row.cell, pbc=row.pbc)
        values = dict(row.key_value_pairs)
        name = str(values.pop("material_id", values.pop("id", f"{path.stem}-{row.id}")))
        atoms.info = {**values, "material_id": name}
        return _ase_record(atoms, name)

    def records() -> Iterator[Record]:
        yield from _numbered(database.select(), path, convert)

    return records(), total


def _ase_record(atoms: Any, name: str) -> Record:
    values = {k: v for k, v in atoms.info.items() if isinstance(k, str)}
    name = str(values.pop("material_id", values.pop("id", name)))
    properties = {k: n for k, v in values.items() if (n := _number(v)) is not None}
    if not all(atoms.pbc) or abs(atoms.cell.volume) < 1e-6:
        return Record(name, "reject", ("not periodic in three directions", ""), properties)
    for key in ("occupancy", "occupancies"):
        values = atoms.arrays.get(key)
        if values is not None and values.dtype.kind == "f" and (values < 0.999).any():
            return Record(name, "reject", ("partial occupancy", ""), properties)
    cell = (np.array(atoms.cell), atoms.get_scaled_positions(), np.array(atoms.numbers, np.int64))
    return Record(name, "cell", cell, properties)


def _numbered(
    items: Iterable[Any], path: Path, convert: Callable[[int, Any], Record]
) -> Iterator[Record]:
    """Records of ``items``; a file that breaks off becomes one last reject."""
    iterator = iter(items)
    for k in count():
        try:
            item = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            reason = ("the file cannot be read further", first_line(error))
            yield Record(f"{path.stem}-{k}", "reject", reason)
            return
        try:
            record = convert(k, item)
        except Exception as error:
            reason = ("not a structure", first_line(error))
            record = Record(f"{path.stem}-{k}", "reject", reason)
        yield record


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _read_pymatgen_json(path: Path) -> tuple[Iterator[Record], int]:
    """A list of structures, of entries with a ``structure``, or a dictionary id → structure."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(data, dict) and _is_structure(data):
        data = [data]
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list):
        items = [(f"{path.stem}-{k}", entry) for k, entry in enumerate(data)]
    else:
        raise DataError(f"{path} is not a list of pymatgen structures")

    def convert(_: int, item: tuple[str, Any]) -> Record:
        name, entry = item
        entry = entry if isinstance(entry, dict) else {}
        structure = entry if _is_structure(entry) else entry.get("structure")
        stored = entry.get("properties")
        values = dict(stored) if isinstance(stored, dict) else {}
        if structure is not entry:
            values |= entry
        name = str(values.pop("material_id", values.pop("id", values.pop("entry_id", name))))
        properties = {k: n for k, v in values.items() if (n := _number(v)) is not None}
        if not isinstance(structure, dict) or not _is_structure(structure):
            return Record(name, "reject", ("not a pymatgen structure", ""), properties)
        # plain data only: decoding it with pymatgen would import the modules it names
        plain = {key: structure[key] for key in ("lattice", "sites")}
        return Record(name, "pymatgen", plain, properties)

    return _numbered(items, path, convert), len(items)


def _is_structure(entry: Any) -> bool:
    return isinstance(entry, dict) and "lattice" in entry and "sites" in entry


_READERS: dict[str, Callable[[Path], tuple[Iterator[Record], int | None]]] = {
    ".npz": _read_npz,
    ".cif": _read_cif,
    ".csv": _read_csv,
    ".xyz": _read_xyz,
    ".extxyz": _read_xyz,
    ".db": _read_ase_db,
    ".json": _read_pymatgen_json,
}


def cell_of(record: Record) -> Cell:
    """The P1 cell of a record; parses text.

    Raises
    ------
    RejectError
        When the record holds no ordered, three-dimensional crystal.
    """
    if record.kind == "reject":
        raise RejectError(*record.payload)
    if record.kind == "cif":
        return _cell_from_cif(record.payload)
    if record.kind == "pymatgen":
        return _cell_from_dict(record.payload)
    return record.payload


def _cell_from_cif(text: str) -> Cell:
    from pymatgen.io.cif import CifParser

    if "_atom_site_" not in text.lower():
        raise RejectError("the CIF holds no atoms")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser = CifParser.from_str(text, occupancy_tolerance=1.0 + 1e-6)
            structure = parser.parse_structures(primitive=False, on_error="raise")[0]
    except Exception as error:
        detail = first_line(error)
        reason = "partial occupancy" if "occupanc" in detail else "the CIF cannot be parsed"
        raise RejectError(reason, detail) from None
    return _cell_from_structure(structure)


def _cell_from_structure(structure: Any) -> Cell:
    if not structure.is_ordered:
        raise RejectError("partial occupancy")
    numbers = [getattr(site.specie, "Z", 0) for site in structure]
    if any(type(site.specie).__name__ == "DummySpecies" for site in structure):
        raise RejectError("unknown element")
    return structure.lattice.matrix.copy(), structure.frac_coords, np.array(numbers, np.int64)


def _cell_from_dict(data: dict[str, Any]) -> Cell:
    """A pymatgen dictionary read as plain data: lattice matrix, species, fractional positions."""
    numbers, frac = [], []
    try:
        lattice = np.array(data["lattice"]["matrix"], dtype=float)
        for site in data["sites"]:
            kinds = site["species"]
            if len(kinds) != 1 or abs(float(kinds[0].get("occu", 1)) - 1) > 1e-3:
                raise RejectError("partial occupancy")
            numbers.append(_atomic_number(str(kinds[0]["element"])))
            frac.append(np.array(site["abc"], dtype=float).reshape(3))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        detail = f"{type(error).__name__}: {first_line(error)}"
        raise RejectError("not a pymatgen structure", detail) from None
    return lattice, np.array(frac).reshape(-1, 3), np.array(numbers, dtype=np.int64)


def _atomic_number(species: str) -> int:
    """Of an element or ion: ``"Fe"``, ``"Fe3+"``, ``"D"``."""
    start = re.match(r"[A-Z][a-z]?", species)
    symbol = start[0] if start else ""
    symbol = {"D": "H", "T": "H"}.get(symbol, symbol)
    try:
        return atomic_number(symbol)
    except RequestError:
        raise RejectError("unknown element", species) from None
