"""The one door for structure files: any format, compressed or not, alone or in folders.

A file's content decides over its name wherever it can. Files that are no structures are passed
over and named; a structure that cannot be used keeps its place in the order, with its reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from langevin_xtal.errors import DataError, InputError, LangevinXtalError, RejectError
from langevin_xtal.structures.cif import parse_cif, split_blocks
from langevin_xtal.structures.documents import holds_structures, read_json
from langevin_xtal.structures.files import (
    HEAD,
    Found,
    decoded,
    in_archive,
    in_folder,
    is_zip,
    plain_name,
)
from langevin_xtal.structures.foreign import KINDS, foreign_format, read_foreign
from langevin_xtal.structures.poscar import looks_like_poscar, parse_poscar
from langevin_xtal.structures.record import ReadStructure, Record, first_line, rejected
from langevin_xtal.structures.tables import read_csv, read_npz
from langevin_xtal.structures.xyz import looks_like_xyz, read_xyz

FORMATS = (
    "CIF, POSCAR, extended XYZ, CSV with a 'cif' column, an ASE database, pymatgen or OPTIMADE "
    "JSON, an .npz of flat arrays, another format that ASE reads, or a folder or archive of these"
)

OWN = ("cif", "poscar", "extxyz", "csv", "json", "npz")
FORMAT_NAMES = (*OWN, *KINDS)
"""Formats that may be named where neither name nor content of a file tells."""

_POSCAR_NAME = re.compile(r"(poscar|contcar)|.*\.(vasp|poscar|contcar)|.*_(poscar|contcar)", re.I)
_CIF_MARK = re.compile(r"^\s*data_|^\s*_(cell|atom_site|chemical)[_.]", re.MULTILINE | re.I)
_SQLITE = b"SQLite format 3\0"


class Records:
    """Structures of a source, lazily, each a :class:`Record`.

    Attributes
    ----------
    total
        Their number, None where it is not known beforehand.
    passed_over
        Files without structures by name, with the reason; complete after iteration.
    """

    def __init__(
        self, records: Iterator[Record], total: int | None, passed_over: dict[str, str]
    ) -> None:
        self._records, self.total, self.passed_over = records, total, passed_over

    def __iter__(self) -> Iterator[Record]:
        return self._records


class NoStructuresError(DataError):
    """A file that is none of the formats that hold structures."""


def read_records(source: str | os.PathLike[str], file_format: str = "") -> Records:
    """Records of a file or folder.

    Parameters
    ----------
    file_format
        One of :data:`FORMAT_NAMES`: of a file, whatever it looks like; of a folder or archive,
        what its files are whose name and content tell nothing.

    Raises
    ------
    InputError
        For a format that is not known.
    DataError
        When the source is missing, unreadable, or of no known format.
    """
    if file_format not in ("", *FORMAT_NAMES):
        raise InputError(f"format {file_format!r} is not known: {', '.join(FORMAT_NAMES)} are")
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.is_dir():
        return _of_many(path, list(in_folder(path)), "folder", file_format)
    if not path.is_file():
        raise DataError(f"{path} is no regular file; give {FORMATS}")
    if path.suffix.lower() not in (".npz", ".lxd") and is_zip(path):
        return _of_many(path, list(in_archive(path)), "archive", file_format)
    try:
        found, stem = Found(path), _stem(path)
        if file_format:
            records, total = _of_format(found, stem, file_format)
        else:
            records, total = _of_file(found, stem)
    except LangevinXtalError as error:
        if str(path) in str(error):
            raise
        raise DataError(f"{path} cannot be read: {error}") from None
    except Exception as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None
    return Records(_named(records, path.name), total, {})


def _stem(path: Path) -> str:
    """Identifier of a file given by itself; of a bare POSCAR with the name of its folder."""
    if path.name.upper() in ("POSCAR", "CONTCAR"):
        folder = path.resolve().parent.name
        return f"{folder}_{path.name}" if folder else path.name
    return plain_name(path.name)


def _named(records: Iterator[Record], source: str) -> Iterator[Record]:
    return (replace(record, source=source) for record in records)


def _of_many(path: Path, files: list[Found], what: str, file_format: str) -> Records:
    """Records of all files of a folder or archive that hold structures."""
    passed_over: dict[str, str] = {}
    simple = [f for f in files if f.suffix in (".cif", ".mcif") or _POSCAR_NAME.fullmatch(f.name)]
    if not any(_may_hold(found) for found in files):
        kinds = ", ".join(sorted({f.suffix or f.name for f in files})[:6]) or "nothing"
        raise DataError(
            f"{what} {path} holds no structure file, at any depth (it holds {kinds}); give "
            f"{FORMATS}"
        )

    def records() -> Iterator[Record]:
        for found in files:
            stem = plain_name(found.shown)
            try:
                own, _ = _of_file(found, stem, file_format)
                yield from _named(own, found.shown)
            except NoStructuresError as error:
                passed_over[found.shown] = str(error)
            except LangevinXtalError as error:
                reason = str(error).replace(f"{found} ", "the file ")
                detail = reason.removeprefix("the file cannot be read: ")
                yield Record(stem, ("the file cannot be read", detail), rejected)
            except Exception as error:
                yield Record(stem, ("the file cannot be read", first_line(error)), rejected)

    total = len(files) if len(simple) == len(files) else None
    return Records(records(), total, passed_over)


_NOT_STRUCTURES = re.compile(
    r".*\.(md|rst|py|sh|png|svg|pdf|html?|log|ini|toml|ya?ml|cfg\.bak|upf|zip|tar|tgz|lxd|"
    r"safetensors)|readme.*|license.*|incar.*|kpoints.*|potcar.*|.*\.spec|submit.*|run\.json|"
    r"manifest\.csv|candidates\.csv|changelog.*",
    re.I,
)


def _may_hold(found: Found) -> bool:
    """Whether a file's name does not rule out that it holds structures."""
    return not _NOT_STRUCTURES.fullmatch(found.name)


def _of_format(found: Found, stem: str, file_format: str) -> tuple[Iterator[Record], int | None]:
    """Records of one file of a format that is named; raises as :func:`_of_file`."""
    if file_format == "cif":
        return _of_cif(found.text(), stem)
    if file_format == "poscar":
        return iter([Record(stem, found.text(), parse_poscar)]), 1
    if file_format == "extxyz":
        return read_xyz(found.stream, stem), None
    if file_format == "csv":
        return read_csv(partial(found.stream, ""), stem, parse_text), None
    if file_format == "json":
        return read_json(found.text(), stem)
    if file_format == "npz":
        return read_npz(found.path)
    records = read_foreign(found, file_format, stem)
    return iter(records), len(records)


def _of_file(found: Found, stem: str, otherwise: str = "") -> tuple[Iterator[Record], int | None]:
    """Records of one file, its format known from name and content, or else given.

    Raises
    ------
    NoStructuresError
        When it is of no format that holds structures.
    DataError
        When it cannot be read.
    """
    suffix, name = found.suffix, found.name
    if suffix == ".npz" and found.is_plain:
        return read_npz(found.path)
    if _NOT_STRUCTURES.fullmatch(name) and found.shown:
        raise NoStructuresError("not a structure file")
    begin = found.bytes(HEAD)
    if begin.startswith(_SQLITE) or suffix == ".db":
        return _of_database(found, begin)
    head = decoded(begin)
    if suffix in (".cif", ".mcif", ".mmcif") and not (
        looks_like_poscar(head) and not _CIF_MARK.search(head)
    ):
        return _of_cif(found.text(), stem)
    if suffix == ".csv" or suffix == ".tsv":
        return _foldable(found, lambda: read_csv(partial(found.stream, ""), stem, parse_text))
    if suffix in (".xyz", ".extxyz"):
        return read_xyz(found.stream, stem), None
    if suffix == ".json" or head.lstrip()[:1] in ("{", "["):
        text = found.text()
        if found.shown and not holds_structures(text):
            raise NoStructuresError("JSON without structures")
        return read_json(text, stem)
    if _POSCAR_NAME.fullmatch(name) and not _CIF_MARK.search(head):
        return iter([Record(stem, found.text(), parse_poscar)]), 1
    if looks_like_poscar(head):
        return iter([Record(stem, found.text(), parse_poscar)]), 1
    kind = foreign_format(name, head)
    if kind is not None:
        records = read_foreign(found, kind, stem)
        return iter(records), len(records)
    if looks_like_xyz(head):
        return read_xyz(found.stream, stem), None
    if _CIF_MARK.search(head):
        return _of_cif(found.text(), stem)
    if otherwise:
        return _of_format(found, stem, otherwise)
    raise NoStructuresError(
        f"{found} is no structure file that is known; give {FORMATS}, or name its format"
    )


def _foldable(
    found: Found, make: Callable[[], Iterator[Record]]
) -> tuple[Iterator[Record], int | None]:
    """A CSV; one without structures in a folder is passed over."""
    try:
        return make(), None
    except DataError as error:
        if found.shown:
            raise NoStructuresError(str(error)) from None
        raise


def _of_cif(text: str, stem: str) -> tuple[Iterator[Record], int | None]:
    blocks = split_blocks(text)
    names = [title or str(k) for k, (title, _) in enumerate(blocks)]
    used: dict[str, int] = {}
    for k, name in enumerate(names):
        used[name] = used.get(name, 0) + 1
        names[k] = name if used[name] == 1 else f"{name}-{used[name]}"
    many = len(blocks) > 1
    return (
        Record(f"{stem}#{name}" if many else stem, block, parse_cif)
        for name, (_, block) in zip(names, blocks, strict=True)
    ), len(blocks)


def _of_database(found: Found, begin: bytes) -> tuple[Iterator[Record], int | None]:
    from langevin_xtal.structures.databases import read_database

    if not begin.startswith(_SQLITE):
        raise DataError(f"{found} is no SQLite file, as an ASE database would be")
    if not found.is_plain:
        raise DataError(f"{found} is a compressed database; unpack it first")
    return read_database(found.path)


def parse_text(text: str) -> ReadStructure:
    """The crystal of a text in any format of one structure: CIF, POSCAR, XYZ, JSON.

    Raises
    ------
    RejectError
        When there is none, or several.
    """
    from langevin_xtal.structures.record import read

    if looks_like_poscar(text) and not _CIF_MARK.search(text):
        return parse_poscar(text)
    if text.lstrip()[:1] in ("{", "["):
        try:
            records = list(read_json(text, "")[0])
        except DataError as error:
            raise RejectError("not a structure", str(error)) from None
        if len(records) != 1:
            raise RejectError("not one structure", str(len(records)))
        return read(records[0])
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    blocks = split_blocks(text)
    if len(blocks) > 1:
        raise RejectError("several data blocks in one", str(len(blocks)))
    return parse_cif(blocks[0][1])
