"""Crystals to train on from public places, and the way to the Materials Project."""

from __future__ import annotations

import csv
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from itertools import combinations
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.dataset.readers import first_line
from langevin_xtal.errors import DataError, InputError, LangevinXtalError
from langevin_xtal.extras import require
from langevin_xtal.files import check_target, continued, replacing, write_text
from langevin_xtal.text import hide_secrets, learn_secret

KEY_PAGE = "https://next-gen.materialsproject.org/api"
REFUSALS = ("api key", "401", "403", "unauthorized", "forbidden", "authentication")
"""Words of an answer that refuses the key."""
MOST_ELEMENTS = 9
"""In one query: the address would become too long."""

SECONDS = 30.0
"""Without a byte, after which a connection is given up."""
CHUNK = 2**18

COLUMNS = ("material_id", "formula", "e_above_hull", "formation_energy_per_atom", "cif")
FIELDS = (
    "material_id", "formula_pretty", "energy_above_hull", "formation_energy_per_atom", "structure",
)  # fmt: skip

Client = Callable[[str], Any]
"""Makes, from a key, a context manager that asks the Materials Project, as ``MPRester``."""

Progress = Callable[[int, int], None]
"""Called with what is done and what is planned; 0 where that is not known."""


@dataclass(frozen=True)
class Split:
    """One file of a published dataset."""

    name: str
    crystals: int  #: as published; a file with another number is not this one


MP20_ADDRESS = "https://raw.githubusercontent.com/txie-93/cdvae/main/data/mp_20/"
MP20 = (Split("train.csv", 27_136), Split("val.csv", 9_047), Split("test.csv", 9_046))
"""MP-20 (Xie et al. 2022): crystals of up to 20 atoms near the Materials Project's hull."""


def fetch_mp20(
    folder: Path, *, address: str = MP20_ADDRESS, progress: Progress | None = None
) -> list[Path]:
    """MP-20's three splits as CSV files, for ``data prepare``.

    A file whose checksum (``FILE.sha256``, written when it was complete) is right is not fetched
    again; an interrupted one goes on where it stopped.

    Raises
    ------
    DataError
        When what came is not MP-20, or a file of before was changed.
    LangevinXtalError
        When the network fails; what has come is kept.
    """
    paths = []
    for split in MP20:
        path = folder / split.name
        if not _complete(path):
            _download(address + split.name, path, progress)
            found = _rows(path)
            if found != split.crystals:
                path.unlink()
                raise DataError(
                    f"{address}{split.name} holds {found} crystals where MP-20 has "
                    f"{split.crystals}: it is another file, and was not kept"
                )
            write_text(_sum_file(path), f"{_digest(path)}  {path.name}\n")
        paths.append(path)
    return paths


def fetch_materials_project(
    path: Path,
    key: str,
    *,
    elements: Sequence[str] = (),
    max_atoms: int = 20,
    max_above_hull: float = 0.1,
    client: Client | None = None,
    progress: Progress | None = None,
) -> int:
    """Crystals of the Materials Project as a CSV with a ``cif`` column, for ``data prepare``.

    Fetched by number of atoms, each number a file of its own in ``PATH.parts``: an interrupted
    fetch goes on with the first that is missing. GNoME's entries, whose licence forbids
    commercial use, are left out.

    Parameters
    ----------
    elements
        Symbols; crystals of them and of their subsystems. None given, of all elements.
    max_atoms
        In the cell as the Materials Project has it.
    max_above_hull
        eV/atom.

    Returns
    -------
    int
        Crystals fetched.

    Raises
    ------
    InputError
        When the key is refused, or there are too many elements.
    MissingPackageError
        When mp-api is not installed.
    DataError
        When the parts of another question lie in ``PATH.parts``.
    LangevinXtalError
        When the Materials Project cannot be reached, or the disk refuses; what has come is kept.
    """
    question: dict[str, object] = {"energy_above_hull": (0.0, max_above_hull)}
    if elements:
        question["chemsys"] = _systems(elements)
    parts = path.with_name(path.name + ".parts")
    with _writing(parts):
        parts.mkdir(parents=True, exist_ok=True)
        _check_question(parts / "question.txt", f"{question}\n")
    with connected(key, client) as project:
        for atoms in range(1, max_atoms + 1):
            part = parts / f"{atoms}.csv"
            if not part.exists():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = project.materials.summary.search(
                        **question,
                        num_sites=(atoms, atoms),
                        deprecated=False,
                        include_gnome=False,
                        all_fields=False,
                        fields=list(FIELDS),
                    )
                with _writing(part):
                    _write(part, map(_row, found))
            if progress is not None:
                progress(atoms, max_atoms)
    csv.field_size_limit(2**31 - 1)  # a CIF is longer than the default limit
    with _writing(path):
        _write(path, _lines(parts / f"{atoms}.csv" for atoms in range(1, max_atoms + 1)))
    return _rows(path)


@contextmanager
def connected(key: str, client: Client | None = None, instead: str = "") -> Iterator[Any]:
    """The Materials Project's client, its many kinds of errors made few.

    Parameters
    ----------
    key
        The user's own, from :data:`KEY_PAGE`.
    client
        By default ``mp_api.client.MPRester``.
    instead
        What else may be done where it cannot be reached, for the message.

    Raises
    ------
    InputError
        When the key is refused.
    MissingPackageError
        When mp-api is not installed.
    LangevinXtalError
        When the Materials Project cannot be reached, or answers something else.
    """
    if not key.strip():
        raise InputError(f"the key of the Materials Project is empty: get one at {KEY_PAGE}")
    learn_secret(key)
    make = client or _client
    try:
        with make(key.strip()) as project:
            yield project
    except LangevinXtalError:
        raise
    except Exception as error:  # requests, mp_api and pydantic raise many kinds
        raise _explained(error, instead) from None


def _client(key: str) -> Any:
    rester = require("mp_api.client", "mp", "asking the Materials Project").MPRester
    return rester(key, mute_progress_bars=True)


def _explained(error: Exception, instead: str) -> LangevinXtalError:
    text = str(error).lower()
    unreachable = isinstance(error, OSError) or "max retries" in text or "connection" in text
    if not unreachable and any(word in text for word in REFUSALS):
        return InputError(
            f"the Materials Project does not accept this key: get one of 32 characters at "
            f"{KEY_PAGE}"
        )
    if unreachable:
        return LangevinXtalError(
            f"the Materials Project cannot be reached: check the network{instead}"
        )
    return LangevinXtalError(
        "the Materials Project gave an answer that cannot be used "
        f"({hide_secrets(first_line(error))})"
    )


def _systems(elements: Sequence[str]) -> list[str]:
    """Chemical systems of elements: all of them, and all subsystems."""
    wanted = sorted(set(elements))
    if len(wanted) > MOST_ELEMENTS:
        raise InputError(
            f"{len(wanted)} elements were asked of the Materials Project: give at most "
            f"{MOST_ELEMENTS}, or none for all"
        )
    for symbol in wanted:
        atomic_number(symbol)
    return ["-".join(c) for n in range(1, len(wanted) + 1) for c in combinations(wanted, n)]


def _row(found: object) -> tuple[object, ...]:
    identifier, formula, above, formation, structure = (getattr(found, name) for name in FIELDS)
    return str(identifier), formula, above, formation, structure.to(fmt="cif")


def _check_question(file: Path, question: str) -> None:
    if not any(file.parent.glob("*.csv")):
        write_text(file, question)
    if file.read_text(encoding="utf-8") != question:
        raise DataError(
            f"{file.parent} holds crystals that were asked for otherwise; remove it, or write to "
            "another file"
        )


def _write(path: Path, rows: Iterator[Sequence[object]]) -> None:
    """A table with :data:`COLUMNS`, complete or not at all."""
    with replacing(path, newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def _lines(paths: Iterator[Path]) -> Iterator[list[str]]:
    for path in paths:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = csv.reader(stream)
            next(rows)
            yield from rows


def _download(address: str, path: Path, progress: Progress | None) -> None:
    """A file, by way of ``FILE.part``, which a later call continues."""
    part, tag = path.with_name(path.name + ".part"), path.with_name(path.name + ".etag")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        check_target(tag)
    with _writing(path), continued(part, path) as stream:
        known = tag.read_text(encoding="utf-8") if tag.exists() else ""
        done = stream.seek(0, os.SEEK_END) if known else 0
        with _reading(address), _answer(address, done, known) as answer:
            if not done or answer.status != HTTPStatus.PARTIAL_CONTENT:
                with _writing(path):
                    stream.truncate(0)
                done = 0
            length = answer.headers.get("Content-Length")
            planned = done + int(length) if length else 0
            with _writing(path):
                write_text(tag, answer.headers.get("ETag") or "")
                while block := _block(answer, address):
                    stream.write(block)
                    done += len(block)
                    if progress is not None:
                        progress(done, planned)
        if planned and done < planned:
            raise LangevinXtalError(
                f"{address} broke off after {done} of {planned} bytes; the same command goes on"
            )
    with _writing(path):
        tag.unlink(missing_ok=True)


def _answer(address: str, done: int, known: str) -> HTTPResponse:
    """What is missing after ``done`` bytes of the file ``known`` by this tag.

    All of it where it has become another file, or is no longer than that.
    """
    headers = {"User-Agent": "langevin-xtal"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": known}
    try:
        answer: HTTPResponse = urlopen(Request(address, headers=headers), timeout=SECONDS)
    except HTTPError as error:
        if not done or error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        return _answer(address, 0, "")
    return answer


def _block(answer: HTTPResponse, address: str) -> bytes:
    with _reading(address):
        block: bytes = answer.read(CHUNK)
        return block


@contextmanager
def _reading(address: str) -> Iterator[None]:
    try:
        yield
    except HTTPError as error:
        raise LangevinXtalError(f"{address} answers {error.code} ({error.reason})") from None
    except (OSError, HTTPException) as error:
        cause = error.reason if isinstance(error, URLError) else first_line(error)
        raise LangevinXtalError(
            f"{address} cannot be reached ({cause}): check the network; what has come is kept, "
            "and the same command goes on"
        ) from None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except BlockingIOError:
        raise LangevinXtalError(
            f"{path} is being fetched by another process; wait for it, or give another folder"
        ) from None
    except OSError as error:
        raise LangevinXtalError(
            f"{path} cannot be written ({error.strerror or first_line(error)})"
        ) from None


def _complete(path: Path) -> bool:
    """Whether a file was fetched whole before, and is as it was then."""
    if not path.exists() or not _sum_file(path).exists():
        return False
    if _sum_file(path).read_text(encoding="utf-8").split()[:1] != [_digest(path)]:
        raise DataError(
            f"{path} was changed since it was fetched: its checksum is not that of "
            f"{_sum_file(path).name}; remove both to fetch it again"
        )
    return True


def _sum_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _rows(path: Path) -> int:
    """Rows of a CSV file below its header; 0 for what is none."""
    csv.field_size_limit(2**31 - 1)
    with path.open(newline="", encoding="utf-8", errors="replace") as stream:
        try:
            return max(0, sum(1 for _ in csv.reader(stream)) - 1)
        except csv.Error:
            return 0
