"""Formats of other programs that ASE reads well: results of VASP, Quantum ESPRESSO, FHI-aims, …"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from langevin_xtal.errors import DataError, RejectError
from langevin_xtal.structures.files import Found
from langevin_xtal.structures.record import ReadStructure, Record, first_line

if TYPE_CHECKING:
    from ase import Atoms
from langevin_xtal.structures.xyz import of_atoms

BY_SUFFIX = {
    ".xsf": "xsf",
    ".axsf": "xsf",
    ".res": "res",
    ".cell": "castep-cell",
    ".gen": "gen",
    ".cfg": "cfg",
    ".pwi": "espresso-in",
    ".pwo": "espresso-out",
    ".traj": "traj",
    ".struct": "struct",
    ".pdb": "proteindatabank",
}
"""ASE's format by the suffix of a file."""
BY_NAME = (
    (re.compile(r"vasprun.*\.xml"), "vasp-xml"),
    (re.compile(r"outcar.*"), "vasp-out"),
    (re.compile(r"xdatcar.*"), "vasp-xdatcar"),
    (re.compile(r"geometry(\.in)?(\.next_step)?"), "aims"),
    (re.compile(r".*\.in\.pw|.*\.pw\.in|pw\.in"), "espresso-in"),
    (re.compile(r".*\.pw\.out|pw\.out"), "espresso-out"),
)
"""ASE's format by the name of a file."""
BY_CONTENT = (
    (re.compile(r"^\s*<modeling>", re.MULTILINE), "vasp-xml"),
    (re.compile(r"^\s*(CRYSTAL|PRIMVEC|ANIMSTEPS\s+\d+)\s*$", re.MULTILINE), "xsf"),
    (re.compile(r"^\s*%BLOCK\s+(LATTICE|POSITIONS)", re.MULTILINE | re.IGNORECASE), "castep-cell"),
    (re.compile(r"^TITL\s.*\n(?:.*\n)*?CELL\s", re.MULTILINE), "res"),
    (re.compile(r"^\s*lattice_vector\s", re.MULTILINE), "aims"),
    (re.compile(r"^\s*&(control|system)\b", re.MULTILINE | re.IGNORECASE), "espresso-in"),
    (re.compile(r"Program PWSCF", re.MULTILINE), "espresso-out"),
)
"""ASE's format by a mark in the text."""
KINDS = tuple(
    sorted(
        {*BY_SUFFIX.values(), *(kind for _, kind in BY_NAME), *(kind for _, kind in BY_CONTENT)}
    )
)
"""All formats above, by ASE's names."""
LAST_ONLY = frozenset({"vasp-xml", "vasp-out", "vasp-xdatcar", "espresso-out"})
"""Results of a run: its last structure is read."""
MOST = 2**26
"""Bytes of a file that is read whole."""


def foreign_format(name: str, head: str | None) -> str | None:
    """ASE's name of the format of a file, None when it is none of those above."""
    lower = name.lower()
    for pattern, kind in BY_NAME:
        if pattern.fullmatch(lower):
            return kind
    found = BY_SUFFIX.get(Path(lower).suffix)
    if found or head is None:
        return found
    return next((kind for pattern, kind in BY_CONTENT if pattern.search(head)), None)


def read_foreign(found: Found, kind: str, stem: str) -> list[Record]:
    """Records of a file in one of ASE's formats.

    Raises
    ------
    DataError
        When it cannot be read.
    """
    import io

    from ase.io import read
    from ase.io.formats import ioformats

    data = found.bytes(MOST + 1)
    if len(data) > MOST:
        raise DataError(f"{found} is larger than {MOST >> 20} MiB, too large for its format")
    stream: IO[bytes] | IO[str] | str
    stream = io.BytesIO(data) if ioformats[kind].isbinary else io.StringIO(found.text())
    if not ioformats[kind].acceptsfd:
        if not found.is_plain:
            raise DataError(f"{found} is compressed, which {kind} cannot be; unpack it first")
        stream = str(found.path)
    notes: tuple[str, ...] = ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            index = -1 if kind in LAST_ONLY else slice(None)
            frames = read(stream, index=index, format=kind, do_not_split_by_at_sign=True)
    except (Exception, SystemExit) as error:  # ase raises anything on damaged files
        raise DataError(f"{found} cannot be read as {kind}: {first_line(error)}") from None
    frames = frames if isinstance(frames, list) else [frames]
    if kind in LAST_ONLY:
        notes = ("the last structure of the run is read",)
    names = [stem] if len(frames) == 1 else [f"{stem}-{k}" for k in range(len(frames))]
    return [
        Record(name, (atoms, notes), parse_atoms)
        for name, atoms in zip(names, frames, strict=True)
    ]


def parse_atoms(payload: tuple[Atoms, tuple[str, ...]]) -> ReadStructure:
    """The crystal of an ase.Atoms object.

    Raises
    ------
    RejectError
        When it is not three-dimensional.
    """
    atoms, notes = payload
    if not len(atoms) or not np.isfinite(np.array(atoms.cell)).all():
        raise RejectError("there are no atoms, or the cell is not finite")
    return of_atoms(atoms, notes)
