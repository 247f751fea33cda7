"""A PostgreSQL server of the tests' own, where its programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path


class Server:
    """A server that listens on a socket in a folder of its own."""

    def __init__(self, programs: Path, become: list[str], folder: Path) -> None:
        self.programs, self.become, self.folder = programs, become, folder
        data = str(folder / "data")
        self._control = [str(programs / "pg_ctl"), "-D", data, "-w", "-l", str(folder / "log")]
        self._call(str(programs / "initdb"), "-D", data, "-A", "trust", "-U", "lx", "--no-sync")

    def start(self) -> None:
        """Begin to answer."""
        self._call(
            *self._control,
            "-o",
            f"-c listen_addresses='' -k {self.folder} -c fsync=off",
            "start",
        )

    def stop(self) -> None:
        """End at once, as in a crash."""
        self._call(*self._control, "-m", "immediate", "stop")

    def database(self, name: str) -> str:
        """The address of a new database, in the place of one of this name."""
        import psycopg2

        host = str(self.folder)
        with closing(psycopg2.connect(host=host, user="lx", dbname="postgres")) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            cursor.execute(f'CREATE DATABASE "{name}"')
        return f"postgresql://lx@/{name}?host={self.folder}"

    def _call(self, *arguments: str) -> None:
        subprocess.run(
            [*self.become, *arguments], check=True, cwd=self.folder, stdout=subprocess.DEVNULL
        )


@contextmanager
def running_server() -> Iterator[Server | None]:
    """A server that runs until the block ends; None where it cannot be had."""
    programs, become = _binaries(), _unprivileged()
    there = all(map(find_spec, ("psycopg2", "ase_db_backends")))
    if programs is None or become is None or not there:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="lx"))  # the path of a socket may have 100 characters
    if become:
        shutil.chown(folder, "postgres")
    try:
        server = Server(programs, become, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path | None:
    """Folder of PostgreSQL's programs, None where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    program = shutil.which("initdb")
    return None if program is None else Path(program).parent


def _unprivileged() -> list[str] | None:
    """What runs a program as somebody else than root, which PostgreSQL refuses; None: nothing."""
    if os.geteuid() != 0:
        return []
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        return None
    return ["runuser", "-u", "postgres", "--"] if shutil.which("runuser") else None
