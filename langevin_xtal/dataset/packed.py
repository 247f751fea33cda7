"""Packed datasets: crystals as flat arrays in one file, read with numpy alone.

A ``.lxd`` file is a zip of ``.npy`` members, one per array of :class:`PackedDataset`, plus
``meta`` (JSON text). Nothing in it is ever unpickled. Crystal ``k`` owns the sites
``site_start[k] : site_start[k + 1]``; the other atoms of its conventional cell follow from the
space group.

>>> data = PackedDataset.load("train.lxd")                           # doctest: +SKIP
>>> len(data), data.group[0], data.frac[data.sites_of(0)]            # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.crystal.asymmetric import AsymmetricUnit
from langevin_xtal.crystal.batch import CrystalBatch
from langevin_xtal.errors import DataError
from langevin_xtal.files import replacing, unwritable
from langevin_xtal.structures.files import check_archive
from langevin_xtal.structures.record import first_line
from langevin_xtal.symmetry import cell_lengths, operation_table
from langevin_xtal.symmetry.lattice import ideal_cells

FORMAT_VERSION = 1
"""Version of the file layout; readers refuse any other."""

MAX_ATOMIC_NUMBER = 118
LATTICE_TOLERANCE = 1e-6
"""Largest deviation of a stored cell from its crystal system, relative to its longest axis."""

_ARRAYS: dict[str, tuple[str, int]] = {  # name: (dtype, number of dimensions)
    "group": ("int64", 1),
    "lattice": ("float64", 3),
    "site_start": ("int64", 1),
    "numbers": ("int64", 1),
    "frac": ("float64", 2),
    "multiplicity": ("int64", 1),
    "wyckoff": ("<U1", 1),
    "id": ("U", 1),
}
_PROPERTY = "property."
_META = "meta"
# deflate cannot expand further than this, so a member that claims more is not genuine
_DEFLATE_LIMIT = 1032

# what zipfile, zlib and numpy raise on damaged bytes
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    KeyError,
    EOFError,
    OSError,
    RuntimeError,
    OverflowError,
    MemoryError,
    IndexError,
    TypeError,
    SyntaxError,
)


@dataclass(frozen=True)
class PackedDataset(CrystalBatch[NDArray[Any]]):
    """B crystals with A symmetry-independent sites in total.

    Cells are conventional, in the package's setting and standard orientation:
    ``diag(lengths) @ cell_directions(group)`` for groups 16 to 230, and a along x, b in the xy
    plane for groups 1 to 15.

    Raises
    ------
    DataError
        When the arrays do not fit each other or hold values that no crystal has.
    """

    PER_SITE = ("numbers", "frac", "multiplicity", "wyckoff")
    PER_CRYSTAL = ("group", "lattice", "id")

    group: NDArray[np.int64]  #: (B,) space-group numbers
    lattice: NDArray[np.float64]  #: (B, 3, 3) conventional cells, rows a, b, c [Å]
    site_start: NDArray[np.int64]  #: (B + 1,) offsets of each crystal's sites
    numbers: NDArray[np.int64]  #: (A,) atomic numbers
    frac: NDArray[np.float64]  #: (A, 3) one representative per orbit, in [0, 1)
    multiplicity: NDArray[np.int64]  #: (A,) atoms of the orbit in the conventional cell
    wyckoff: NDArray[np.str_]  #: (A,) Wyckoff letters
    id: NDArray[np.str_]  #: (B,) identifiers
    properties: dict[str, NDArray[np.float64]] = field(default_factory=dict)  #: (B,), NaN unknown
    meta: dict[str, Any] = field(default_factory=dict)  #: provenance, JSON-serialisable

    def __post_init__(self) -> None:
        _validate(self)

    def __repr__(self) -> str:
        names = f", properties: {', '.join(self.properties)}" if self.properties else ""
        return (
            f"PackedDataset({len(self)} crystals, {len(self.numbers)} sites, "
            f"{len(np.unique(self.group))} space groups{names})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedDataset):
            return NotImplemented
        return self.content_hash == other.content_hash

    __hash__ = None  # type: ignore[assignment]

    def unit(self, index: int) -> AsymmetricUnit:
        """The asymmetric unit of crystal ``index``."""
        own = self.sites_of(index)
        return AsymmetricUnit(
            group=int(self.group[index]),
            lattice=self.lattice[index],
            numbers=self.numbers[own],
            frac=self.frac[own],
            multiplicity=self.multiplicity[own],
            wyckoff=self.wyckoff[own],
        )

    @property
    def atom_counts(self) -> NDArray[np.int64]:
        """(B,) atoms in the conventional cell."""
        return _segment_sums(self.multiplicity, self.site_start)

    @property
    def volumes(self) -> NDArray[np.float64]:
        """(B,) volume of the conventional cell [Å³]."""
        return np.abs(np.linalg.det(self.lattice))

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of all arrays (not of ``meta``), as 64 hexadecimal digits."""
        digest = hashlib.sha256(b"lxd%d" % FORMAT_VERSION)
        for name, array in self._arrays():
            little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
            if little.dtype.kind == "U":  # the width of a string array carries no content
                data = "\0".join(little.tolist()).encode()
            else:
                data = little.tobytes()
            digest.update(f"{name}:{little.dtype.kind}:{little.shape}:".encode() + data)
        return digest.hexdigest()

    def _arrays(self) -> Iterable[tuple[str, NDArray[Any]]]:
        for name in _ARRAYS:
            yield name, getattr(self, name)
        for name in sorted(self.properties):
            yield _PROPERTY + name, self.properties[name]

    def select(self, indices: ArrayLike) -> PackedDataset:
        """The crystals at ``indices`` (integers, a slice's range, or a (B,) boolean mask)."""
        picked = self.places(indices)
        properties = {name: values[picked] for name, values in self.properties.items()}
        return replace(self, **self.picked(picked), properties=properties)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to ``path``: to a temporary file beside it first, which is then renamed.

        Raises
        ------
        DataError
            When the folder is missing or the disk refuses.
        """
        path = Path(path)
        meta = {**self.meta, "format_version": FORMAT_VERSION, "content_hash": self.content_hash}
        try:
            with replacing(path, binary=True, durable=True) as stream:
                self._write(stream, json.dumps(meta, sort_keys=True))  # type: ignore[arg-type]
        except OSError as error:
            raise unwritable(
                path, error, DataError, "give a path in an existing, writable folder"
            ) from None
        return path

    def _write(self, stream: io.BufferedIOBase, meta: str) -> None:
        # fixed dates: the same content gives the same bytes
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, array in [(_META, np.array(meta)), *self._arrays()]:
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, array, allow_pickle=False)
                info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = 0o644 << 16
                archive.writestr(info, buffer.getvalue(), compresslevel=6)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PackedDataset:
        """Read a packed file.

        Raises
        ------
        DataError
            When the file is missing, is not a packed dataset, is damaged, or is of another
            version; the message names it.
        """
        path = Path(path)
        if not path.exists():
            raise DataError(f"packed dataset {path} does not exist")
        if path.is_dir():
            raise DataError(f"{path} is a folder; a packed dataset is one .lxd file")
        arrays = _read_members(path)
        meta = _read_meta(path, arrays.pop(_META, None))
        missing = [name for name in _ARRAYS if name not in arrays]
        if missing:
            raise DataError(f"packed dataset {path} lacks the array {missing[0]!r}")
        properties = {
            name.removeprefix(_PROPERTY): arrays.pop(name)
            for name in list(arrays)
            if name.startswith(_PROPERTY)
        }
        unknown = sorted(set(arrays) - set(_ARRAYS))
        if unknown:
            raise DataError(f"packed dataset {path} has an unknown array {unknown[0]!r}")
        try:
            dataset = cls(**arrays, properties=properties, meta=meta)
        except DataError as error:
            raise DataError(f"packed dataset {path}: {error}") from None
        if meta.get("content_hash") != dataset.content_hash:
            raise DataError(f"packed dataset {path} is damaged: its content hash does not match")
        return dataset


def pack(
    units: Sequence[AsymmetricUnit],
    ids: Sequence[str] = (),
    properties: Sequence[Mapping[str, float]] = (),
    meta: Mapping[str, object] | None = None,
) -> PackedDataset:
    """One dataset of asymmetric units.

    Parameters
    ----------
    ids
        Identifier of each.
    properties
        Numbers known of each, by name; of none by default.
    meta
        See :class:`PackedDataset`.
    """
    known = properties or [{}] * len(units)
    names = dict.fromkeys(name for own in known for name in own)

    def joined(name: str, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        parts = [np.asarray(getattr(unit, name), dtype=dtype).reshape(shape) for unit in units]
        return np.concatenate([np.zeros((0, *shape[1:]), dtype=dtype), *parts])

    return PackedDataset(
        group=np.array([unit.group for unit in units], dtype=np.int64),
        lattice=joined("lattice", (1, 3, 3), "float64"),
        site_start=np.cumsum([0, *(len(unit.numbers) for unit in units)]).astype(np.int64),
        numbers=joined("numbers", (-1,), "int64"),
        frac=joined("frac", (-1, 3), "float64"),
        multiplicity=joined("multiplicity", (-1,), "int64"),
        wyckoff=joined("wyckoff", (-1,), "<U1"),
        id=np.array(list(ids), dtype=np.str_),
        properties={
            name: np.array([own.get(name, np.nan) for own in known], float) for name in names
        },
        meta=dict(meta or {}),
    )


def _segment_sums(values: NDArray[np.int64], start: NDArray[np.int64]) -> NDArray[np.int64]:
    cumulative = np.concatenate([[0], np.cumsum(values)])
    return cumulative[start[1:]] - cumulative[start[:-1]]


def _read_members(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of the file, each member's checksum verified before it is interpreted."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            arrays = {}
            check_archive(path, archive.infolist())
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    raise ValueError(f"unexpected member {info.filename!r}")
                genuine = info.compress_size <= size
                if not genuine or info.file_size > _DEFLATE_LIMIT * info.compress_size + 1024:
                    raise ValueError(f"member {info.filename!r} claims an impossible size")
                arrays[info.filename.removesuffix(".npy")] = _parse_npy(archive.read(info))
            return arrays
    except DataError:
        raise
    except PermissionError:
        raise DataError(f"packed dataset {path} cannot be read: permission denied") from None
    except _DAMAGE as error:
        if not _looks_like_zip(path):
            raise DataError(
                f"{path} is not a packed dataset; make one with `langevin-xtal data prepare`"
            ) from None
        raise DataError(
            f"packed dataset {path} is truncated or damaged: {first_line(error)}"
        ) from None


def _looks_like_zip(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def _parse_npy(data: bytes) -> NDArray[Any]:
    """The array in the bytes of a ``.npy`` file; its size is checked before memory is taken."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"npy version {version} is not supported")
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject or dtype.kind not in "iufU":
        raise ValueError(f"dtype {dtype} is not allowed in a packed dataset")
    count = 1
    for extent in shape:
        count *= extent
    if count < 0 or count * dtype.itemsize != len(data) - stream.tell():
        raise ValueError("an array's length does not match its header")
    if dtype.itemsize == 0:
        return np.zeros(shape, dtype=dtype)
    flat = np.frombuffer(data, dtype=dtype, offset=stream.tell(), count=count)
    return flat.reshape(shape, order="F" if fortran else "C").copy(order="C")


def _read_meta(path: Path, text: NDArray[Any] | None) -> dict[str, Any]:
    if text is None or text.shape != () or text.dtype.kind != "U":
        raise DataError(
            f"{path} is not a packed dataset (it has no 'meta' entry); make one with "
            "`langevin-xtal data prepare`"
        )
    try:
        meta = json.loads(str(text))
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise DataError(f"packed dataset {path} is damaged: its 'meta' entry is not JSON")
    version = meta.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            f"packed dataset {path} has format version {version!r}; this release reads version "
            f"{FORMAT_VERSION}: prepare it again with `langevin-xtal data prepare`"
        )
    return meta


def _validate(data: PackedDataset) -> None:
    for name, (dtype, ndim) in _ARRAYS.items():
        array = getattr(data, name)
        if not isinstance(array, np.ndarray) or array.ndim != ndim:
            raise DataError(f"array {name!r} must have {ndim} dimension(s)")
        right = array.dtype.kind == "U" if dtype == "U" else array.dtype == np.dtype(dtype)
        if not right:
            wanted = "str" if dtype == "U" else dtype
            raise DataError(f"array {name!r} has dtype {array.dtype}, not {wanted}")
        if array.dtype.kind == "U":
            try:
                "".join(array.tolist()).encode()
            except ValueError:  # numbers that are no letters, or half of one
                raise DataError(f"array {name!r} holds no text") from None
    crystals, sites = len(data.group), len(data.numbers)
    shapes = {
        "lattice": (crystals, 3, 3),
        "site_start": (crystals + 1,),
        "frac": (sites, 3),
        "multiplicity": (sites,),
        "wyckoff": (sites,),
        "id": (crystals,),
    }
    for name, shape in shapes.items():
        if getattr(data, name).shape != shape:
            raise DataError(
                f"array {name!r} has shape {getattr(data, name).shape}, expected {shape} for "
                f"{crystals} crystals and {sites} sites"
            )
    if not isinstance(data.meta, dict):
        raise DataError("'meta' must be a dictionary")
    for name, values in data.properties.items():
        if not isinstance(values, np.ndarray) or values.dtype != np.float64:
            raise DataError(f"property {name!r} must be a float64 array")
        if values.shape != (crystals,):
            raise DataError(f"property {name!r} has shape {values.shape}, expected {(crystals,)}")
        if np.isinf(values).any():
            raise DataError(f"property {name!r} has infinite values; NaN stands for unknown")
    start = data.site_start
    if start[0] != 0 or start[-1] != sites or (np.diff(start) < 1).any():
        raise DataError("'site_start' must rise from 0 to the number of sites, one site or more")
    if crystals == 0:
        return
    if data.group.min() < 1 or data.group.max() > 230:
        raise DataError("a space group lies outside 1 to 230")
    if data.numbers.min() < 1 or data.numbers.max() > MAX_ATOMIC_NUMBER:
        raise DataError(f"an atomic number lies outside 1 to {MAX_ATOMIC_NUMBER}")
    if not np.isfinite(data.frac).all() or data.frac.min() < 0 or data.frac.max() >= 1:
        raise DataError("fractional coordinates must be finite and lie in [0, 1)")
    table = operation_table()
    order = np.repeat(np.diff(table.start)[data.group - 1], data.site_counts)
    if data.multiplicity.min() < 1 or (order % np.maximum(data.multiplicity, 1)).any():
        raise DataError("a site multiplicity does not divide the order of its space group")
    if (data.wyckoff == "").any():
        raise DataError("a Wyckoff letter is empty")
    if not np.isfinite(data.lattice).all() or np.abs(data.lattice).max() > 1e6:
        raise DataError("lattice vectors must be finite and shorter than 1e6 Å")
    if (np.linalg.det(data.lattice) < 1e-3).any():
        raise DataError("a cell is singular or left-handed")
    _validate_cells(data)


def _validate_cells(data: PackedDataset) -> None:
    """Cells must have the shape their crystal system demands, in the standard orientation."""
    lengths = cell_lengths(data.lattice)
    for number in np.unique(data.group):
        rows = np.flatnonzero(data.group == number)
        ideal = ideal_cells(data.lattice[rows], int(number))
        error = np.abs(ideal - data.lattice[rows]).max(axis=(1, 2)) / lengths[rows].max(axis=1)
        if error.max() > LATTICE_TOLERANCE:
            worst = data.id[rows[int(error.argmax())]]
            raise DataError(
                f"the cell of {str(worst)!r} does not have the shape and orientation of space "
                f"group {number}"
            )
