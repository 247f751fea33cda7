"""Displaced supercells for phonopy, each a folder with the inputs of a static VASP run.

The unit cell is sorted by element first, so that the supercells are, and the atoms of every
POSCAR stand in phonopy's order: forces read from the runs belong to the right atoms. When the
runs are done: ``phonopy-init -f disp-*/vasprun.xml`` within a candidate's folder.
"""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from langevin_xtal.config.export import CellChoice, PhonopyConfig, PotcarChoice
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.errors import InputError
from langevin_xtal.export.cells import (
    carried_notes,
    export_structure,
)
from langevin_xtal.export.folders import Inputs, write_folders
from langevin_xtal.export.jobs import Job
from langevin_xtal.export.manifest import Manifest
from langevin_xtal.export.notes import Notes
from langevin_xtal.export.vasp import (
    VaspWriter,
    vasp_notes,
    vasp_settings,
)

if TYPE_CHECKING:
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms
    from pymatgen.core import Structure

FORCES: Mapping[str, object] = {
    "IBRION": -1,
    "NSW": 0,
    "ISIF": 2,
    "ISYM": 2,
    "ISMEAR": 0,
    "SIGMA": 0.05,
    "ALGO": "Normal",
    "PREC": "Accurate",
    "EDIFF": 1e-7,
    "LREAL": False,
    "LCHARG": False,
    "LWAVE": False,
}
"""INCAR tags for forces on displaced atoms: nothing moves, tightly converged, no real-space
projection; the symmetry that the displaced cell still has is used, which forces obey."""
MAX_ATOMS = 600
"""A larger supercell is refused."""


def export_phonopy(
    entries: Sequence[Entry],
    out: str | os.PathLike[str],
    *,
    dim: Sequence[int] | None = None,
    min_height: float = PhonopyConfig.min_height,
    distance: float = PhonopyConfig.distance,
    input_set: str = PhonopyConfig.input_set,
    potcar: PotcarChoice = PhonopyConfig.potcar,
    overrides: Mapping[str, object] | None = None,
    cell: CellChoice = PhonopyConfig.cell,
    symprec: float = PhonopyConfig.symprec,
    command: str = PhonopyConfig.command,
    concurrent: int = PhonopyConfig.concurrent,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """One folder per candidate with phonopy's displacements as VASP runs, and a job-array script.

    A folder holds ``phonopy_disp.yaml``, ``POSCAR`` (the unit cell), ``SPOSCAR`` and
    ``disp-001/`` … with INCAR, KPOINTS, POSCAR, and POTCAR or POTCAR.spec.

    Parameters
    ----------
    entries
        By rank, the best first.
    out
        Folder, made when missing; an interrupted export continues.
    dim
        Multiples of the cell's three vectors; by default the smallest that keep opposite faces of
        the supercell ``min_height`` [Å] apart.
    distance
        Of a displacement [Å].
    input_set
        A set of :data:`langevin_xtal.export.vasp.INPUT_SETS`; :data:`FORCES` is laid over it.
    potcar, overrides
        As in :func:`langevin_xtal.export.vasp.export_vasp`; overrides win over :data:`FORCES`.
    cell
        ``"primitive"``, ``"conventional"`` (both standardised) or ``"stored"``.
    symprec
        Tolerance of the symmetry search [Å].
    command
        Run in each displacement's folder by the job script; ``concurrent`` tasks at a time.
    force
        Replace folders that hold something else.
    progress
        Called with (done, planned).

    Raises
    ------
    InputError
        For options that cannot be used, and folders that hold something else.
    LangevinXtalError
        When the disk is full, or no candidate could be written.
    """
    config = PhonopyConfig(
        input_set=input_set,
        potcar=potcar,
        cell=cell,
        symprec=symprec,
        min_height=min_height,
        distance=distance,
    )
    _check_multiples(dim)
    vasp = vasp_settings("phonopy", config, overrides)
    settings: dict[str, object] = {
        **vasp,
        "dim": None if dim is None else [int(n) for n in dim],
        "min_height": min_height if dim is None else None,
        "distance": distance,
    }
    tags = {**FORCES, **(overrides or {})}
    options = {"sort_structure": False, "force_gamma": True}
    writer = VaspWriter(input_set, vasp["potcar"], tags, options)

    def make(entry: Entry, name: str, notes: Notes) -> Inputs:
        entry = replace(entry, fixed=None)  # nothing but the displaced atom moves
        unit = export_structure(entry, cell, symprec)
        for note in carried_notes(entry, cell):
            notes.add(name, note)
        phonon = displaced(unit, dim or supercell_multiples(unit, min_height), distance)
        return _inputs(phonon, unit, writer, name, notes)

    return write_folders(
        entries,
        out,
        make,
        settings=settings,
        job=Job("phonopy", command, concurrent, needs="POTCAR"),
        force=force,
        progress=progress,
        notes=vasp_notes(potcar, vasp, os.fspath(out)),
    )


def displaced(unit: Structure, dim: Sequence[int], distance: float) -> Phonopy:
    """phonopy with the displacements of a supercell.

    Parameters
    ----------
    unit
        Unit cell, atoms grouped by element.
    dim
        Multiples of its vectors.
    distance
        Of a displacement [Å].

    Raises
    ------
    InputError
        When the supercell is larger than :data:`MAX_ATOMS`.
    """
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    atoms = len(unit) * math.prod(dim)
    if atoms > MAX_ATOMS:
        raise InputError(
            f"a supercell of {'×'.join(map(str, dim))} cells has {atoms} atoms, more than "
            f"{MAX_ATOMS}; give a smaller --dim or --min-height"
        )
    cell = PhonopyAtoms(
        symbols=[site.specie.symbol for site in unit],
        cell=unit.lattice.matrix,
        scaled_positions=unit.frac_coords,
        magnetic_moments=unit.site_properties.get("magmom"),
    )
    with warnings.catch_warnings():  # phonopy 4 tells that "auto" differs from version 3
        warnings.filterwarnings("ignore", message="primitive_matrix defaulted")
        phonon = Phonopy(
            cell, supercell_matrix=np.diag(dim), primitive_matrix="auto", calculator="vasp"
        )
    phonon.generate_displacements(distance=distance)
    return phonon


def supercell_multiples(unit: Structure, min_height: float) -> tuple[int, ...]:
    """Smallest multiples that keep opposite faces of the supercell ``min_height`` [Å] apart."""
    heights = 1 / np.linalg.norm(np.linalg.inv(unit.lattice.matrix), axis=0)
    return tuple(max(1, math.ceil(min_height / h - 1e-6)) for h in heights)


def _inputs(
    phonon: Phonopy, unit: Structure, writer: VaspWriter, name: str, notes: Notes
) -> Inputs:
    from pymatgen.io.vasp import Poscar

    supercell = _structure(phonon.supercell)
    files = {
        "phonopy_disp.yaml": _yaml(phonon),
        "POSCAR": str(Poscar(unit, comment=name)),
        "SPOSCAR": str(Poscar(supercell, comment=name)),
    }
    texts, columns = writer.inputs(supercell, name, notes)  # one k-point grid for all
    del texts["POSCAR"]
    cells = [c for c in phonon.supercells_with_displacements or [] if c is not None]
    width = max(3, len(str(len(cells))))
    jobs = [f"disp-{number:0{width}d}" for number in range(1, len(cells) + 1)]
    for job, moved in zip(jobs, cells, strict=True):
        files |= {f"{job}/{file}": text for file, text in texts.items()}
        files[f"{job}/POSCAR"] = str(Poscar(_structure(moved), comment=f"{name} {job}"))
    columns |= {"atoms": str(len(supercell)), "displacements": str(len(cells))}
    return Inputs(files, columns, tuple(jobs))


def _yaml(phonon: Phonopy) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "phonopy_disp.yaml"
        phonon.save(path, settings={"force_sets": False, "displacements": True})
        return path.read_text(encoding="utf-8")


def _structure(cell: PhonopyAtoms) -> Structure:
    from pymatgen.core import Lattice, Structure

    moments = cell.magnetic_moments
    properties = {} if moments is None else {"magmom": np.asarray(moments).tolist()}
    return Structure(
        Lattice(cell.cell), cell.symbols, cell.scaled_positions, site_properties=properties
    )


def _check_multiples(dim: Sequence[int] | None) -> None:
    if dim is not None and (len(dim) != 3 or min(dim) < 1):
        raise InputError(
            f"dim is {','.join(map(str, dim))}: give three whole numbers of 1 or more"
        )
