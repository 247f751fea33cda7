"""Writing files: each whole or not at all, and nothing replaced that is no file.

Text and tables go to a temporary file beside the target first, whose name belongs to this process
alone, and are then renamed: readers and other writers of the same file see the old one or the new
one. Symbolic links are followed, and stay. Folders, devices, pipes and sockets are refused.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from langevin_xtal.errors import InputError, LangevinXtalError
from langevin_xtal.runtime import host, is_running
from langevin_xtal.text import cell_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ErrorT = TypeVar("ErrorT", bound=LangevinXtalError)

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Errors of a disk that is full or fails: no fault of what was asked for."""
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)
_PREFIX = ".langevin-xtal."
_SUFFIX = ".part"


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse to write what is there and is no regular file.

    Raises
    ------
    InputError
        For folders, devices, pipes and sockets, also at the end of links.
    """
    try:
        _target(Path(path))
    except OSError as error:
        raise unwritable(path, error, InputError) from None


@contextmanager
def replacing(
    path: str | os.PathLike[str],
    *,
    binary: bool = False,
    newline: str | None = None,
    durable: bool = False,
) -> Iterator[IO[Any]]:
    """A stream whose content becomes the file when the block ends, and nothing when it fails.

    Parameters
    ----------
    binary
        Bytes rather than UTF-8.
    newline
        As of :func:`open`.
    durable
        Wait until the disk has the content before the old file goes.

    Raises
    ------
    InputError
        When there is something that is no regular file.
    OSError
        With the name of the file, when the folder is missing or the disk refuses.
    """
    path = Path(path)
    part: Path | None = None
    try:
        target, mode = _target(path)
        part = target.with_name(_temporary())
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        handle = os.open(part, flags, 0o666)
        text: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}
        with (
            os.fdopen(handle, "wb") if binary else os.fdopen(handle, "w", newline=newline, **text)
        ) as stream:
            if mode is not None:
                os.chmod(part, mode)
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(part, target)
        part = None
    except OSError as error:
        if error.filename not in (None, str(part)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        if part is not None:
            with suppress(OSError):
                part.unlink(missing_ok=True)


@contextmanager
def continued(part: str | os.PathLike[str], path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A stream at the end of a file that is to become another when the block ends.

    What is written stays when the block fails, so that it can be continued, and belongs to one
    process at a time.

    Parameters
    ----------
    part
        The unfinished file, beside ``path``.
    path
        What it becomes; links are followed, and stay.

    Raises
    ------
    InputError
        When there is something that is no regular file.
    BlockingIOError
        When another process continues it.
    OSError
        As of :func:`replacing`.
    """
    _target(Path(path))
    place, _ = _target(Path(part))
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        with os.fdopen(os.open(place, flags, 0o666), "a+b") as stream:
            _lock(stream)
            if not _is_still(stream, place):  # another process finished it meanwhile
                continue
            yield stream
            stream.flush()
            target, mode = _target(Path(path))
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            os.replace(place, target)
            return


def _lock(stream: IO[bytes]) -> None:
    """Claim a file until it is closed; nothing where the file system knows no locks."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return


def _is_still(stream: IO[bytes], place: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(place))
    except FileNotFoundError:
        return False


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all; raises as :func:`replacing`."""
    with replacing(path) as stream:
        stream.write(text)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, durable: bool = False) -> None:
    """Write bytes whole or not at all; raises as :func:`replacing`."""
    with replacing(path, binary=True, durable=durable) as stream:
        stream.write(data)


def write_rows(
    stream: IO[str],
    columns: Sequence[str],
    rows: Iterable[Mapping[str, object]],
    *,
    lineterminator: str = "\n",
) -> None:
    """Rows as CSV, empty where one lacks a column; cells as of ``cell_text``."""
    writer = csv.writer(stream, lineterminator=lineterminator)
    writer.writerow([cell_text(name) for name in columns])
    writer.writerows([cell_text(row.get(name, "")) for name in columns] for row in rows)


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: float) -> None:
    """A figure of matplotlib, in the format of the file's suffix; raises as :func:`replacing`."""
    with replacing(path, binary=True) as stream:
        figure.savefig(stream, format=Path(path).suffix.removeprefix(".") or "png", dpi=dpi)


def unwritable(
    path: str | os.PathLike[str], error: OSError, kind: type[ErrorT], advice: str = ""
) -> ErrorT:
    """What to raise when ``path`` cannot be written; a full disk is a failure, not bad input.

    Parameters
    ----------
    kind
        Of the error.
    advice
        What to do, where it is the path that is wrong.
    """
    reason = error.strerror or str(error)
    made: ErrorT
    if error.errno in FULL:
        made = kind(f"{path} cannot be written: {reason}; make room, and run the command again")
        made.exit_code = 1
        return made
    return kind(f"{path} cannot be written: {reason}" + (f"; {advice}" if advice else ""))


def clear_left(folder: Path) -> None:
    """Remove temporary files that killed processes of this computer left in a folder."""
    with suppress(OSError):
        for left in folder.glob(f"{_PREFIX}{_computer()}.*{_SUFFIX}"):
            process = left.name.removeprefix(f"{_PREFIX}{_computer()}.").split(".")[0]
            if process.isdecimal() and not is_running(int(process)):
                left.unlink(missing_ok=True)


def _target(path: Path) -> tuple[Path, int | None]:
    """The file at the end of all links, and its permissions where it is there.

    Raises
    ------
    InputError
        When it is no regular file.
    OSError
        When it cannot be looked at.
    """
    real = Path(os.path.realpath(path))
    try:
        mode = os.lstat(real).st_mode
    except FileNotFoundError:
        return real, None
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if not stat.S_ISREG(mode):
        what = next((name for is_one, name in _KINDS if is_one(mode)), "no file")
        raise InputError(f"{path} cannot be written: it is {what}; give the name of a file")
    return real, stat.S_IMODE(mode)


def _temporary() -> str:
    return f"{_PREFIX}{_computer()}.{os.getpid()}.{secrets.token_hex(4)}{_SUFFIX}"


def _computer() -> str:
    return hashlib.sha256(host().encode()).hexdigest()[:8]
