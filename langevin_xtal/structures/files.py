"""Files and folders as they lie about: compressed, in archives, under any name.

What is read is never written to. Sizes are checked before anything is unpacked.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from langevin_xtal.errors import DataError

MOST_UNPACKED = 2**28
"""Bytes of one compressed file when unpacked."""
MOST_IN_ARCHIVE = 2**31
"""Bytes of all files of an archive when unpacked."""
MOST_MEMBERS = 200_000
RATIO = 200
"""An archive that unpacks to more times its size, beyond 64 MiB, is refused."""
_LONGEST_REASON = 120
HEAD = 2**16
"""Bytes looked at to tell a format."""

_OPENERS: dict[str, Any] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".lzma": lzma.open,
}
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, ValueError,
           NotImplementedError, RuntimeError)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A file that may hold structures: on disk, compressed, or a member of an archive."""

    path: Path
    """The file on disk."""
    member: str = ""
    """Within a zip archive."""
    shown: str = ""
    """Relative to the folder or archive that was asked for; the name otherwise."""

    @property
    def name(self) -> str:
        """File name without a suffix of compression."""
        name = PurePosixPath(self.member).name if self.member else self.path.name
        stem, dot, suffix = name.rpartition(".")
        return stem if dot and f".{suffix.lower()}" in _OPENERS and stem else name

    @property
    def suffix(self) -> str:
        """Last suffix in lower case, without one of compression."""
        return PurePosixPath(self.name).suffix.lower()

    @property
    def is_plain(self) -> bool:
        """Whether it lies on disk uncompressed."""
        return not self.member and self.path.suffix.lower() not in _OPENERS

    def bytes(self, most: int | None = None) -> bytes:
        """Contents, or their beginning.

        Raises
        ------
        DataError
            When they cannot be read, or unpack to more than :data:`MOST_UNPACKED`.
        """
        limit = MOST_UNPACKED if most is None else most
        try:
            if self.member:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                    data = stream.read(limit + 1)
                inner = PurePosixPath(self.member).suffix.lower()
                if inner in _OPENERS:
                    data = _unpacked(data, inner, limit)
            elif self.is_plain:
                with self.path.open("rb") as stream:
                    data = stream.read(limit + 1)
            else:
                with _OPENERS[self.path.suffix.lower()](self.path, "rb") as stream:
                    data = stream.read(limit + 1)
        except _DAMAGE as error:
            raise DataError(f"{self} cannot be read: {_reason(error)}") from None
        if most is None and len(data) > limit:
            raise DataError(f"{self} holds more than {limit >> 20} MiB when unpacked; split it")
        return data[:limit]

    def text(self) -> str:
        """Contents as text, line ends as ``\\n``, without a byte-order mark."""
        return decoded(self.bytes())

    def stream(self, newline: str | None = None) -> TextIO:
        """Contents as a stream of text; of a plain file nothing is held in memory.

        Raises
        ------
        DataError
            As :meth:`bytes`.
        """
        if not self.is_plain or self.bytes(2) in (b"\xff\xfe", b"\xfe\xff"):
            return io.StringIO(self.text(), newline=newline)
        try:
            return self.path.open(encoding="utf-8-sig", errors="replace", newline=newline)
        except OSError as error:
            raise DataError(f"{self} cannot be read: {_reason(error)}") from None

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)


def _unpacked(data: bytes, suffix: str, limit: int) -> bytes:
    with _OPENERS[suffix](io.BytesIO(data), "rb") as stream:
        found: bytes = stream.read(limit + 1)
    return found


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = " ".join(str(text).split())
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "…"


def decoded(data: bytes) -> str:
    """Bytes of a text file as text: UTF-8, UTF-16 with its mark, else Latin-1."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive of other files, and no array archive of numpy."""
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"PK\x03\x04":
                return False
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:50]
    except _DAMAGE:
        return False
    return not (names and all(name.endswith(".npy") for name in names))


def in_folder(folder: Path) -> Iterator[Found]:
    """Files of a folder at any depth, by name; hidden ones are left out."""
    for path in sorted(folder.rglob("*")):
        shown = path.relative_to(folder)
        if not any(part.startswith(".") for part in shown.parts) and path.is_file():
            yield Found(path, shown=shown.as_posix())


def in_archive(path: Path) -> Iterator[Found]:
    """Files of a zip archive, by name.

    Raises
    ------
    DataError
        When the archive is damaged, or unpacks to too much.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
    except _DAMAGE as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}") from None
    check_archive(path, members)
    for info in sorted(members, key=lambda info: info.filename):
        if not any(part.startswith((".", "__MACOSX")) for part in info.filename.split("/")):
            yield Found(path, info.filename, info.filename)


def check_archive(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive that unpacks to too much.

    Raises
    ------
    DataError
        Naming the file.
    """
    total = sum(info.file_size for info in members)
    size = os.stat(path).st_size
    if len(members) > MOST_MEMBERS:
        raise DataError(f"{path} holds {len(members)} files; the most is {MOST_MEMBERS}")
    if total > MOST_IN_ARCHIVE or (total > 2**26 and total > RATIO * size):
        raise DataError(
            f"{path} of {size >> 10} KiB unpacks to {total >> 20} MiB; more than {RATIO} times "
            f"its size, or {MOST_IN_ARCHIVE >> 30} GiB, is refused"
        )


def plain_name(shown: str) -> str:
    """A path without suffixes of compression and format: an identifier."""
    path = PurePosixPath(shown)
    if path.suffix.lower() in _OPENERS:
        path = path.with_suffix("")
    if path.suffix and not re.fullmatch(r"\.\d+", path.suffix):
        path = path.with_suffix("")
    return path.as_posix()
