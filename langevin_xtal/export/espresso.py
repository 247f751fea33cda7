"""Quantum ESPRESSO inputs: ``pw.in`` for a pw.x run, by default a variable-cell relaxation.

Written through ASE's writer, with the cell as it is (``ibrav = 0``) and crystal coordinates.
Pseudopotential files are named by a pattern and never shipped.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.export import Calculation, CellChoice, PwConfig
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.errors import InputError
from langevin_xtal.export.cells import (
    ase_constraints,
    carried_notes,
    export_structure,
)
from langevin_xtal.export.folders import Inputs, write_folders
from langevin_xtal.export.jobs import Job
from langevin_xtal.export.manifest import Manifest
from langevin_xtal.export.notes import Notes

if TYPE_CHECKING:
    from pymatgen.core import Structure

MAGNETIC = frozenset([*range(24, 29), *range(58, 71)])
"""Atomic numbers whose presence makes a run spin-polarised: Cr to Ni, Ce to Yb."""
STARTING_MAGNETIZATION = 0.5
"""Of the magnetic elements, as a fraction of the valence electrons."""


class PwSettings(TypedDict):
    """What determines ``pw.in`` besides the structure."""

    export: str
    input_set: str
    pseudo_dir: str
    pseudo_name: str
    kspacing: float
    ecutwfc: float
    ecutrho: float
    overrides: dict[str, object]
    cell: CellChoice
    symprec: float


def export_qe(
    entries: Sequence[Entry],
    out: str | os.PathLike[str],
    *,
    calculation: Calculation = PwConfig.calculation,
    pseudo_dir: str = PwConfig.pseudo_dir,
    pseudo_name: str = PwConfig.pseudo_name,
    kspacing: float = PwConfig.kspacing,
    ecutwfc: float = PwConfig.ecutwfc,
    ecutrho: float = PwConfig.ecutrho,
    overrides: Mapping[str, object] | None = None,
    cell: CellChoice = PwConfig.cell,
    symprec: float = PwConfig.symprec,
    command: str = PwConfig.command,
    concurrent: int = PwConfig.concurrent,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """One folder with ``pw.in`` per candidate, a manifest and a job-array script.

    Parameters
    ----------
    entries
        By rank, the best first.
    out
        Folder, made when missing; an interrupted export continues.
    calculation
        ``"vc-relax"``, ``"relax"`` or ``"scf"``.
    pseudo_dir
        Written as it is given: where pw.x, running in a candidate's folder, finds the files.
    pseudo_name
        File name of a pseudopotential, ``{element}`` standing for the symbol.
    kspacing
        Largest distance between k-points [1/Å], with the factor 2π; the grid contains Γ.
    ecutwfc, ecutrho
        Cut-offs of the wave functions and the density [Ry]; they belong to the pseudopotentials.
    overrides
        Further pw.x variables, such as ``{"degauss": 0.02}``; None removes one.
    cell
        ``"primitive"``, ``"conventional"`` (both standardised) or ``"stored"``.
    symprec
        Tolerance of the symmetry search [Å].
    command
        Run in each folder by the job script; ``concurrent`` tasks at a time.
    force
        Replace folders that hold something else.
    progress
        Called with (done, planned).

    Raises
    ------
    InputError
        For options and variables that cannot be used, and folders that hold something else.
    LangevinXtalError
        When the disk is full, or no candidate could be written.
    """
    PwConfig(
        calculation=calculation,
        kspacing=kspacing,
        ecutwfc=ecutwfc,
        ecutrho=ecutrho,
        cell=cell,
        symprec=symprec,
    )
    _check_name(pseudo_name)
    settings: PwSettings = {
        "export": "qe",
        "input_set": calculation,
        "pseudo_dir": pseudo_dir,
        "pseudo_name": pseudo_name,
        "kspacing": kspacing,
        "ecutwfc": ecutwfc,
        "ecutrho": ecutrho,
        "overrides": _checked_variables(overrides or {}),
        "cell": cell,
        "symprec": symprec,
    }
    notes = Notes()
    missing = _missing_files(entries, pseudo_dir, pseudo_name)
    if missing:
        notes.say(f"{pseudo_dir} lacks the pseudopotential files {', '.join(missing)}")

    def make(entry: Entry, name: str, notes: Notes) -> Inputs:
        import ase

        structure = export_structure(entry, cell, symprec)
        text, note = pw_input(structure, settings)
        for said in (*carried_notes(entry, cell), *[note] * bool(note)):
            notes.add(name, said)
        files = {"pw.in": text}
        return Inputs(files, {"atoms": str(len(structure)), "writer": f"ase {ase.__version__}"})

    return write_folders(
        entries,
        out,
        make,
        settings=settings,
        job=Job("pwscf", command, concurrent),
        force=force,
        progress=progress,
        notes=notes,
    )


def pw_input(structure: Structure, settings: PwSettings) -> tuple[str, str]:
    """The text of ``pw.in``, and a note on what it does not hold.

    ``settings`` as :func:`export_qe` gathers them. Moments (site property ``magmom``) start in
    proportion, the largest with :data:`STARTING_MAGNETIZATION`; atoms of different moments are
    different types.
    """
    from ase import Atoms
    from ase.io.espresso import write_espresso_in

    numbers = np.array(structure.atomic_numbers)
    start = np.where(np.isin(numbers, list(MAGNETIC)), STARTING_MAGNETIZATION, 0.0)
    given = np.array(structure.site_properties.get("magmom", []), dtype=float)
    if given.any():
        start = np.round(STARTING_MAGNETIZATION * given / np.abs(given).max(), 3) + 0.0
    atoms = Atoms(
        numbers=numbers,
        scaled_positions=structure.frac_coords,
        cell=structure.lattice.matrix,
        pbc=True,
        magmoms=start if start.any() else None,
    )
    note = ""
    free = structure.site_properties.get("selective_dynamics")
    if free is not None:
        held, note = ase_constraints(~np.array(free, dtype=bool), structure.lattice.matrix)
        atoms.set_constraint(held)
    variables: dict[str, object] = {
        "calculation": settings["input_set"],
        "prefix": "pwscf",
        "outdir": "./out",
        "pseudo_dir": settings["pseudo_dir"],
        "tprnfor": True,
        "tstress": True,
        "etot_conv_thr": float(f"{1e-5 * len(atoms):.6g}"),
        "forc_conv_thr": 1e-4,
        "ecutwfc": float(settings["ecutwfc"]),
        "ecutrho": float(settings["ecutrho"]),
        "occupations": "smearing",
        "smearing": "cold",
        "degauss": 0.01,
        "conv_thr": float(f"{1e-10 * len(atoms):.6g}"),
        "mixing_beta": 0.4,
        "electron_maxstep": 200,
    }
    variables |= settings["overrides"]
    buffer = io.StringIO()
    write_espresso_in(
        buffer,
        atoms,
        input_data={k: v for k, v in variables.items() if v is not None},
        pseudopotentials={
            SYMBOLS[z]: settings["pseudo_name"].replace("{element}", SYMBOLS[z])
            for z in np.unique(numbers)
        },
        kpts=k_grid(structure.lattice.matrix, settings["kspacing"]),
        crystal_coordinates=True,
    )
    text = re.sub(r"&(FCP|RISM)\n/\n", "", buffer.getvalue())  # ASE writes all namelists
    return text.rstrip("\n") + "\n", note


def k_grid(lattice: NDArray[np.float64], kspacing: float) -> tuple[int, ...]:
    """Divisions of the reciprocal cell so that k-points are at most ``kspacing`` [1/Å] apart.

    ``n_i = ceil(2π |b_i| / kspacing)``, the b_i being rows of the inverse transpose of
    ``lattice`` (rows [Å]).
    """
    lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(lattice), axis=0)
    return tuple(max(1, math.ceil(n - 1e-6)) for n in lengths / kspacing)


def read_pw_variable(text: str) -> tuple[str, object]:
    """``"degauss=0.02"`` to a pw.x variable and its value; ``"degauss="`` removes it.

    Raises
    ------
    InputError
        When the text is of another form.
    """
    name, sign, value = (part.strip() for part in text.partition("="))
    if not sign or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(\([0-9, ]+\))?", name):
        raise InputError(f"--pw {text!r} should be like degauss=0.02")
    if not value:
        return name, None
    flags = {".true.": True, "true": True, ".false.": False, "false": False}
    if value.lower() in flags:
        return name, flags[value.lower()]
    for kind in (int, float):
        try:
            return name, kind(value.lower().replace("d", "e") if kind is float else value)
        except ValueError:
            continue
    return name, value.strip("'\"")


def _check_name(pseudo_name: str) -> None:
    if "{element}" not in pseudo_name or "/" in pseudo_name:
        raise InputError(
            f"pseudopotentials cannot be named {pseudo_name!r}: give a file name with {{element}} "
            "in it, such as {element}.upf"
        )


def _checked_variables(overrides: Mapping[str, object]) -> dict[str, object]:
    from ase.io.espresso_namelist.keys import ALL_KEYS

    known = {name.lower() for names in ALL_KEYS["pw"].values() for name in names}
    for name in overrides:
        if name.split("(")[0].lower() not in known:
            raise InputError(f"{name!r} is not a variable of pw.x")
    return {name.lower(): overrides[name] for name in sorted(overrides)}


def _missing_files(entries: Sequence[Entry], pseudo_dir: str, pseudo_name: str) -> list[str]:
    """Files that are not there, where the folder is one of this machine."""
    folder = Path(pseudo_dir)
    if not (folder.is_absolute() and folder.is_dir()):
        return []
    elements = sorted({SYMBOLS[z] for entry in entries for z in entry.cell[2]})
    names = [pseudo_name.replace("{element}", e) for e in elements]
    return [name for name in names if not (folder / name).is_file()]
