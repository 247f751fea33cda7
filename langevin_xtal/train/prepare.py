"""From structure files to a packed dataset: read, symmetrise, check, deduplicate, write.

Readers yield :class:`Record`; :func:`asymmetric_unit` turns a P1 cell into its conventional cell
in the package's setting with one exactly placed site per orbit, and checks that the group's
operations give the input back. What cannot be used becomes a reject with its reason.

Training itself needs none of this: spglib is needed here, pymatgen and ASE only for the formats
they read.
"""

from __future__ import annotations

import csv
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.errors import DataError, InputError, LangevinXtalError, LatticeError
from langevin_xtal.symmetry import SpaceGroup, wrap
from langevin_xtal.train.packed import (
    MAX_ATOMIC_NUMBER,
    PackedDataset,
    cell_from_parameters,
    ideal_cells,
    pack,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Cell = tuple[FloatArray, FloatArray, IntArray]  # lattice (3, 3) [Å], frac (N, 3), numbers (N,)

MIN_DISTANCE = 0.5
"""Atoms closer than this overlap [Å]."""
MAX_ATOMS = 500
"""Largest input cell; symmetry detection beyond it takes minutes."""
EXACT = 1e-8
"""How well a stored site must be invariant under its site symmetry (fractional)."""
FORMATS = (
    "an .npz of flat arrays, a folder of .cif files, a .cif, a .csv with a 'cif' column, "
    "extended XYZ (.xyz, .extxyz), an ASE database (.db) or pymatgen JSON (.json)"
)

_CHUNK = 64
_SHIFTS = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


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


@dataclass(frozen=True)
class AsymmetricUnit:
    """A crystal in its conventional cell, one site per orbit."""

    group: int  #: space-group number
    lattice: FloatArray  #: (3, 3) rows [Å], exactly of the crystal system's shape
    numbers: IntArray  #: (A,) atomic numbers
    frac: FloatArray  #: (A, 3) in [0, 1), exactly on its special position
    multiplicity: IntArray  #: (A,) atoms per conventional cell
    wyckoff: NDArray[np.str_]  #: (A,) letters as spglib gives them


@dataclass(frozen=True)
class Summary:
    """What :func:`prepare` did."""

    dataset: PackedDataset
    read: int  #: structures seen
    rejects: dict[str, int]  #: reason: count
    rejects_path: Path  #: CSV with one row per reject


# --- symmetry ---------------------------------------------------------------------------------


def asymmetric_unit(
    lattice: ArrayLike, frac: ArrayLike, numbers: ArrayLike, symprec: float = 0.01
) -> AsymmetricUnit:
    """Conventional cell, space group and independent sites of a P1 description.

    Parameters
    ----------
    lattice
        (3, 3) rows [Å].
    frac
        (N, 3) fractional coordinates.
    numbers
        (N,) atomic numbers.
    symprec
        Tolerance of spglib's symmetry search [Å].

    Raises
    ------
    RejectError
        When the structure cannot be used, with its reason.
    """
    import spglib

    lattice, frac, numbers = _checked_cell(lattice, frac, numbers)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = spglib.get_symmetry_dataset((lattice, frac, numbers), symprec=symprec)
    except Exception as error:  # spglib raises its own tree since 2.7; all mean the same here
        found, message = None, str(error)
    else:
        message = "no dataset"
    if found is None:
        if min_distance(lattice, frac) < MIN_DISTANCE:
            raise RejectError(f"atoms closer than {MIN_DISTANCE} Å")
        raise RejectError("spglib found no space group", message)
    group = SpaceGroup(int(found.number))
    if found.hall_number != group.hall_number:
        raise RejectError("spglib used another setting", f"Hall number {found.hall_number}")
    cell = ideal_cells(np.asarray(found.std_lattice, dtype=float), group.number)
    strain = np.abs(cell - found.std_lattice).max()
    if strain > max(symprec, 1e-6 * np.abs(cell).max()):
        raise RejectError("the standardised cell is not in the package's setting", f"{strain} Å")
    sites = _independent_sites(found, group, cell, symprec)
    _verify(sites, found, (lattice, frac, numbers), symprec)
    return sites


def _checked_cell(lattice: ArrayLike, frac: ArrayLike, numbers: ArrayLike) -> Cell:
    lattice = np.asarray(lattice, dtype=float)
    frac = np.asarray(frac, dtype=float).reshape(-1, 3)
    numbers = np.asarray(numbers, dtype=np.int64)
    if lattice.shape != (3, 3) or not np.isfinite(lattice).all():
        raise RejectError("the cell is not a finite 3 × 3 matrix")
    if abs(np.linalg.det(lattice)) < 1.0:
        raise RejectError("the cell is singular or smaller than 1 Å³")
    if len(numbers) == 0:
        raise RejectError("no atoms")
    if len(numbers) > MAX_ATOMS:
        raise RejectError(f"more than {MAX_ATOMS} atoms", str(len(numbers)))
    if len(numbers) != len(frac):
        raise RejectError("positions and elements differ in number")
    if not np.isfinite(frac).all():
        raise RejectError("positions are not finite")
    if numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
        raise RejectError("unknown element", f"atomic number {numbers.min()}..{numbers.max()}")
    return lattice, wrap(frac), numbers


def _independent_sites(
    found: Any, group: SpaceGroup, cell: FloatArray, symprec: float
) -> AsymmetricUnit:
    """One site per orbit of the standardised cell, averaged over its stabiliser."""
    of_primitive = np.empty(int(found.mapping_to_primitive.max()) + 1, dtype=np.int64)
    of_primitive[found.mapping_to_primitive] = np.arange(len(found.mapping_to_primitive))
    source = of_primitive[found.std_mapping_to_primitive]  # an input atom equivalent to each
    orbits = np.asarray(found.crystallographic_orbits)[source]
    _, first, counts = np.unique(orbits, return_index=True, return_counts=True)
    rotations, translations = group.rotations, group.translations
    points = []
    for point, count in zip(found.std_positions[first], counts, strict=True):
        if group.order % count:
            raise RejectError("an orbit's size does not divide the order of the group")
        for _ in range(2):
            delta = point @ np.swapaxes(rotations, 1, 2) + translations - point
            delta -= np.rint(delta)
            length = np.linalg.norm(delta @ cell, axis=1)
            nearest = np.argsort(length, kind="stable")[: group.order // count]
            if length[nearest[-1]] > 5 * symprec:
                raise RejectError("an orbit is not what the group's operations give")
            point = point + delta[nearest].mean(axis=0)
        delta = point @ np.swapaxes(rotations[nearest], 1, 2) + translations[nearest] - point
        if np.abs(delta - np.rint(delta)).max() > EXACT:
            raise RejectError("a site's symmetry is not a group")
        points.append(wrap(_tidy(point)))
    return AsymmetricUnit(
        group=group.number,
        lattice=cell,
        numbers=np.asarray(found.std_types, dtype=np.int64)[first],
        frac=np.array(points),
        multiplicity=counts.astype(np.int64),
        wyckoff=np.array([found.wyckoffs[source[k]] for k in first], dtype="<U1"),
    )


def _tidy(point: FloatArray) -> FloatArray:
    """Removes rounding next to multiples of 1/24, where all fixed coordinates lie."""
    nearest = np.rint(point * 24) / 24
    return np.where(np.abs(point - nearest) < 1e-12, nearest, point)


def expand(sites: AsymmetricUnit) -> tuple[FloatArray, IntArray]:
    """All atoms of the conventional cell: (N, 3) fractional coordinates and (N,) site indices.

    Raises
    ------
    RejectError
        When an orbit has another size than its multiplicity.
    """
    group = SpaceGroup(sites.group)
    rotations, translations = np.swapaxes(group.rotations, 1, 2), group.translations
    frac, owner = [], []
    for index, point in enumerate(sites.frac):
        images = wrap(_tidy(point @ rotations + translations))
        # coincident images agree to rounding, as the point is exact: a coarse grid tells them
        # apart unless it cuts through one, hence two grids half a step apart
        best = min(
            (
                np.unique(np.rint(images * 1e6 + shift) % 1000000, axis=0, return_index=True)[1]
                for shift in (0.0, 0.5)
            ),
            key=len,
        )
        if len(best) != sites.multiplicity[index]:
            raise RejectError("an orbit has another size than its multiplicity")
        frac.append(images[np.sort(best)])
        owner.append(np.full(len(best), index))
    return np.concatenate(frac), np.concatenate(owner)


def _verify(sites: AsymmetricUnit, found: Any, given: Cell, symprec: float) -> None:
    """The group's operations on the sites must give the input structure back."""
    lattice, frac, numbers = given
    atoms, owner = expand(sites)
    ratio = len(atoms) * abs(np.linalg.det(lattice)) / abs(np.linalg.det(sites.lattice))
    if abs(ratio / len(numbers) - 1) > 0.05:
        raise RejectError("the standardised cell has another atomic density")
    if min_distance(sites.lattice, sites.frac, atoms) < MIN_DISTANCE:
        raise RejectError(f"atoms closer than {MIN_DISTANCE} Å")
    moved = frac @ np.asarray(found.transformation_matrix).T + found.origin_shift
    delta = moved[:, None] - atoms
    delta -= np.rint(delta)
    distance = np.linalg.norm(delta @ sites.lattice, axis=-1)
    distance[numbers[:, None] != sites.numbers[owner]] = np.inf
    worst = distance.min(axis=1).max()
    # spglib averages positions over operations, each of which may miss by symprec
    if worst > max(10 * symprec, 0.02):
        raise RejectError("the symmetrised structure differs from the input", f"by {worst:.3f} Å")


def min_distance(lattice: FloatArray, frac: FloatArray, others: FloatArray | None = None) -> float:
    """Shortest distance [Å] between ``frac`` (N, 3) and ``others`` (default: itself).

    Exact below half the shortest height of the cell, which is all an overlap check needs.
    """
    others = frac if others is None else others
    delta = frac[:, None] - others
    delta -= np.rint(delta)
    square = np.full(delta.shape[:2], np.inf)
    for shift in _SHIFTS:
        length = ((delta + shift) @ lattice) ** 2
        total = length.sum(axis=-1)
        total[total < 1e-12] = np.inf  # the atom itself
        square = np.minimum(square, total)
    coincident = (np.abs(delta).max(axis=-1) < 1e-9).sum(axis=1).max() > 1
    return 0.0 if coincident else float(np.sqrt(square.min()))


# --- readers ----------------------------------------------------------------------------------


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
    text = str(error).strip().splitlines()
    reason = text[0] if text else type(error).__name__
    return DataError(f"{path} cannot be read: {reason}")


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

    def records() -> Iterator[Record]:
        csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a CIF is longer than the default
        with path.open(newline="", encoding="utf-8", errors="replace") as stream:
            reader = csv.DictReader(stream, fieldnames=names)
            next(reader)
            for k, row in enumerate(reader):
                name = (row.get(identifier) or "").strip() if identifier else ""
                properties = {
                    key: value
                    for key in names
                    if key
                    and key not in (column, identifier)
                    and (value := _number(row.get(key))) is not None
                }
                yield Record(name or f"{path.stem}-{k}", "cif", row.get(column) or "", properties)

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

    database = ase.db.connect(str(path), type="db")
    count = database.count()

    def convert(_: int, row: Any) -> Record:
        # ASE decodes the free-form ``data`` column lazily; it is never touched
        values = dict(row.key_value_pairs)
        name = str(values.pop("material_id", values.pop("id", f"{path.stem}-{row.id}")))
        record = _ase_record(row.toatoms(), name)
        properties = {k: n for k, v in values.items() if (n := _number(v)) is not None}
        return Record(name, record.kind, record.payload, properties)

    def records() -> Iterator[Record]:
        yield from _numbered(database.select(), path, convert)

    return records(), count


def _ase_record(atoms: Any, name: str) -> Record:
    values = {k: v for k, v in atoms.info.items() if isinstance(k, str)}
    name = str(values.pop("material_id", values.pop("id", name)))
    properties = {k: n for k, v in values.items() if (n := _number(v)) is not None}
    if not all(atoms.pbc) or abs(atoms.cell.volume) < 1e-6:
        return Record(name, "reject", ("not periodic in three directions", ""), properties)
    if "occupancy" in atoms.info or "spacegroup_kinds" in atoms.arrays:
        occupancy = atoms.info.get("occupancy") or {}
        if any(len(kinds) > 1 or min(kinds.values()) < 0.999 for kinds in occupancy.values()):
            return Record(name, "reject", ("partial occupancy", ""), properties)
    cell = (np.array(atoms.cell), atoms.get_scaled_positions(), np.array(atoms.numbers, np.int64))
    return Record(name, "cell", cell, properties)


def _numbered(
    items: Iterable[Any], path: Path, convert: Callable[[int, Any], Record]
) -> Iterator[Record]:
    """Records of ``items``; a file that breaks off becomes one last reject."""
    iterator, k = iter(items), 0
    while True:
        try:
            record = convert(k, next(iterator))
        except StopIteration:
            return
        except Exception as error:
            text = str(error).strip().splitlines()
            reason = text[0] if text else type(error).__name__
            yield Record(f"{path.stem}-{k}", "reject", ("the file cannot be read further", reason))
            return
        yield record
        k += 1


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

    def records() -> Iterator[Record]:
        for name, entry in items:
            entry = entry if isinstance(entry, dict) else {}
            structure = entry if _is_structure(entry) else entry.get("structure")
            values = {} if structure is entry else entry
            values = {**(entry.get("properties") or {}), **values}
            name = values.pop("material_id", values.pop("id", values.pop("entry_id", name)))
            properties = {k: n for k, v in values.items() if (n := _number(v)) is not None}
            if isinstance(structure, dict) and _is_structure(structure):
                # only these keys: pymatgen would import whatever module an "@module" names
                plain = {key: structure[key] for key in ("lattice", "sites")}
                yield Record(str(name), "pymatgen", plain, properties)
            else:
                yield Record(str(name), "reject", ("not a pymatgen structure", ""), properties)

    return records(), len(items)


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
        text = str(error).strip()
        if "occupanc" in text.lower():
            raise RejectError("partial occupancy", text.splitlines()[0]) from None
        detail = text.splitlines()[0] if text else type(error).__name__
        raise RejectError("the CIF cannot be parsed", detail) from None
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
    from pymatgen.core import Element, Species

    numbers, frac = [], []
    try:
        lattice = np.array(data["lattice"]["matrix"], dtype=float)
        for site in data["sites"]:
            kinds = site["species"]
            if len(kinds) != 1 or abs(float(kinds[0].get("occu", 1)) - 1) > 1e-3:
                raise RejectError("partial occupancy")
            symbol = str(kinds[0]["element"])
            try:
                numbers.append(Element(symbol).Z)
            except ValueError:
                numbers.append(Species.from_str(symbol).Z)
            frac.append(np.array(site["abc"], dtype=float).reshape(3))
    except RejectError:
        raise
    except Exception as error:
        raise RejectError("not a pymatgen structure", f"{type(error).__name__}: {error}") from None
    return lattice, np.array(frac).reshape(-1, 3), np.array(numbers, dtype=np.int64)


# --- the run ----------------------------------------------------------------------------------


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    symprec: float = 0.01,
    *,
    workers: int | None = None,
    limit: int | None = None,
    meta: dict[str, Any] | None = None,
    progress: bool | None = None,
) -> Summary:
    """Pack every usable structure of ``source`` into ``out``; list the others in a CSV beside it.

    Parameters
    ----------
    source
        See :data:`FORMATS`.
    out
        The packed file; rejects go to ``<out>.rejects.csv``.
    symprec
        Tolerance of the symmetry search [Å].
    workers
        Processes; default one per CPU. With more than one, a script must guard its entry point
        with ``if __name__ == "__main__"``.
    limit
        Read no more than this many structures.
    meta
        Further provenance to store, e.g. licence and attribution.
    progress
        Show a progress bar; default: when stderr is a terminal.

    Raises
    ------
    InputError
        For options out of range, a source that cannot be read, or one with no usable structure.
    """
    if not (math.isfinite(symprec) and 0 < symprec <= 1):
        raise InputError(f"symprec is {symprec}: it must lie above 0 and up to 1 Å")
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers were asked for: at least one is needed")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}: at least one structure is needed")
    out = Path(out)
    if not out.parent.is_dir():
        raise InputError(f"folder {out.parent} for the packed dataset does not exist")
    records, total = read_records(source)
    if limit is not None:
        records = islice(records, limit)
        total = limit if total is None else min(limit, total)
    workers = workers or os.cpu_count() or 1
    if total is not None:
        workers = max(1, min(workers, total // (2 * _CHUNK)))  # a process takes 1 s to start
    gathered = _Gathered()
    with _quiet_spglib():
        for outcome in _with_progress(_outcomes(records, symprec, workers), total, progress):
            gathered.add(outcome)
    rejects_path = out.with_name(out.name + ".rejects.csv")
    _write_rejects(rejects_path, gathered.rejects)
    if not gathered.kept:
        raise InputError(_all_rejected(source, gathered, rejects_path))
    provenance = _provenance(Path(source), symprec, gathered, meta or {})
    dataset = pack(gathered.kept, provenance)
    dataset.save(out)
    return Summary(dataset, gathered.read, dict(gathered.reasons), rejects_path)


@dataclass
class _Gathered:
    """Outcomes in the order of the source, without exact repeats."""

    kept: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[tuple[str, str, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    read: int = 0
    ids: set[str] = field(default_factory=set)
    geometries: dict[Any, str] = field(default_factory=dict)

    def add(self, outcome: tuple[Record, AsymmetricUnit | RejectError]) -> None:
        record, result = outcome
        self.read += 1
        if isinstance(result, RejectError):
            return self._reject(record.id, result.reason, result.detail)
        if record.id in self.ids:
            return self._reject(record.id, "identifier seen before", "")
        key = _geometry_key(result)
        if key in self.geometries:
            return self._reject(record.id, "repeat of another structure", self.geometries[key])
        self.ids.add(record.id)
        self.geometries[key] = record.id
        properties = {k: v for k, v in record.properties.items() if not math.isinf(v)}
        self.kept.append({"id": record.id, "properties": properties, **vars(result)})
        return None

    def _reject(self, name: str, reason: str, detail: str) -> None:
        self.rejects.append((name, reason, detail))
        self.reasons[reason] += 1


def _geometry_key(sites: AsymmetricUnit) -> Any:
    """Equal for exact repeats: group, elements and multiplicities, and rounded geometry."""
    frac = np.rint(sites.frac * 1e4).astype(np.int64) % 10000
    rows = sorted(
        (int(z), int(m), str(w), *map(int, f))
        for z, m, w, f in zip(sites.numbers, sites.multiplicity, sites.wyckoff, frac, strict=True)
    )
    return sites.group, tuple(rows), tuple(np.rint(sites.lattice.ravel() * 1e3).astype(int))


def _judge(
    records: list[Record], symprec: float
) -> list[tuple[Record, AsymmetricUnit | RejectError]]:
    """Runs in the workers."""
    outcomes: list[tuple[Record, AsymmetricUnit | RejectError]] = []
    for record in records:
        bare = Record(record.id, record.kind, None, record.properties)  # spare the way back
        try:
            outcomes.append((bare, asymmetric_unit(*cell_of(record), symprec=symprec)))
        except RejectError as reject:
            outcomes.append((bare, reject))
        except Exception as error:  # one strange structure must not end the run
            detail = f"{type(error).__name__}: {error}".splitlines()[0]
            outcomes.append((bare, RejectError("unexpected failure", detail)))
    return outcomes


@contextmanager
def _quiet_spglib() -> Iterator[None]:
    """spglib's C code writes each retry to stderr, here and in the workers, unless told not to."""
    before = os.environ.get("SPGLIB_WARNING")
    os.environ["SPGLIB_WARNING"] = "OFF"
    try:
        yield
    finally:
        if before is None:
            del os.environ["SPGLIB_WARNING"]
        else:
            os.environ["SPGLIB_WARNING"] = before


def _ignore_interrupts() -> None:
    """Ctrl-C reaches the whole process group; only the parent acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _outcomes(
    records: Iterator[Record], symprec: float, workers: int
) -> Iterator[tuple[Record, AsymmetricUnit | RejectError]]:
    """Judged records in the order they were read."""
    chunks = iter(lambda: list(islice(records, _CHUNK)), [])
    if workers == 1:
        for chunk in chunks:
            for record in chunk:
                yield from _judge([record], symprec)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts
    )
    try:
        waiting: dict[int, Future[Any]] = {}
        submitted = delivered = 0
        exhausted = False
        while not exhausted or waiting:
            while not exhausted and len(waiting) < 4 * workers:  # bounded memory
                chunk = next(chunks, None)
                if chunk is None:
                    exhausted = True
                    break
                waiting[submitted] = pool.submit(_judge, chunk, symprec)
                submitted += 1
            if waiting:
                wait([waiting[delivered]], return_when=FIRST_COMPLETED)
                yield from waiting.pop(delivered).result()
                delivered += 1
    except BrokenProcessPool:
        raise LangevinXtalError(
            "a worker process died; run again with one worker, or guard the calling script with "
            'if __name__ == "__main__"'
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _with_progress(
    outcomes: Iterator[Any], total: int | None, progress: bool | None
) -> Iterator[Any]:
    from tqdm import tqdm

    shown = sys.stderr.isatty() if progress is None else progress
    yield from tqdm(outcomes, total=total, desc="preparing", unit=" structures", disable=not shown)


def _write_rejects(path: Path, rejects: list[tuple[str, str, str]]) -> None:
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", newline="", encoding="utf-8") as stream:
                writer = csv.writer(stream)
                writer.writerow(["id", "reason", "detail"])
                writer.writerows(rejects)
            mode = os.umask(0)
            os.umask(mode)
            os.chmod(temporary, 0o666 & ~mode)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from None


def _all_rejected(source: Any, gathered: _Gathered, rejects_path: Path) -> str:
    if not gathered.read:
        return f"{source} holds no structure"
    reason, count = gathered.reasons.most_common(1)[0]
    return (
        f"none of the {gathered.read} structures of {source} can be used; most often "
        f"({count}×): {reason}; see {rejects_path}"
    )


def _provenance(
    source: Path, symprec: float, gathered: _Gathered, extra: dict[str, Any]
) -> dict[str, Any]:
    import spglib

    import langevin_xtal

    return {
        "source": source.name,
        "symprec": symprec,
        "read": gathered.read,
        "rejects": dict(gathered.reasons.most_common()),
        "versions": {
            "langevin_xtal": getattr(langevin_xtal, "__version__", "unknown"),
            "spglib": spglib.__version__,
            "numpy": np.__version__,
        },
        **extra,
    }
