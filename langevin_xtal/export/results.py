"""What DFT codes left behind in a folder: VASP, Quantum ESPRESSO, and anything ASE reads."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langevin_xtal.crystal.ase import from_atoms
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

VASP_FILES = ("vasprun.xml", "vasprun.xml.gz", "vasprun.xml.bz2")
QE_FILES = ("pw.out", "espresso.pwo", "pw.pwo")
ASE_ENDINGS = (".traj", ".extxyz")
FMAX = 0.05
"""Largest force that counts as relaxed where a file does not say [eV/Å]."""
NOT_COMPARED = frozenset(
    {"SYSTEM", "NPAR", "KPAR", "NCORE", "LPLANE", "LWAVE", "LCHARG", "MAGMOM"}
)
"""INCAR tags that do not change energies, or that vasprun.xml writes otherwise."""


@dataclass(frozen=True, eq=False)
class DftResult:
    """A finished, converged calculation."""

    code: str  #: such as ``"vasp 6.4.2"``
    first: Cell  #: where it started
    last: Cell  #: where it ended
    energy: float  #: at the end [eV/atom]
    gap: float | None = None  #: band gap [eV], 0 for a metal
    magnetisation: float | None = None  #: total [μB/atom]
    settings: Mapping[str, object] = field(default_factory=dict)  #: INCAR tags it ran with
    notes: tuple[str, ...] = ()  #: what was not checked, or differs


def find_result(folder: Path) -> Path | None:
    """The file of results in a folder, None without one."""
    for name in (*VASP_FILES, *QE_FILES):
        if (folder / name).is_file():
            return folder / name
    others = sorted(p for p in folder.iterdir() if p.suffix in ASE_ENDINGS and p.is_file())
    return others[0] if others else None


def read_result(path: Path) -> DftResult:
    """The calculation of a file.

    Raises
    ------
    DataError
        When it is cut short, unfinished or not converged, in one sentence.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.name in VASP_FILES:
                return _vasp(path)
            return _qe(path) if path.name in QE_FILES else _ase(path)
    except DataError:
        raise
    except Exception as error:  # parsers raise anything on damaged files
        first = (str(error).splitlines() or [""])[0][:200]
        raise DataError(f"{path.name} cannot be read ({type(error).__name__}: {first})") from None


def _cell(structure: Structure) -> Cell:
    """Of a pymatgen Structure."""
    return (
        np.array(structure.lattice.matrix, dtype=float),
        np.array(structure.frac_coords, dtype=float),
        np.array(structure.atomic_numbers, dtype=np.int64),
    )


def _vasp(path: Path) -> DftResult:
    from pymatgen.io.vasp.outputs import Vasprun

    try:
        run = Vasprun(str(path), parse_dos=False, parse_potcar_file=False)
    except (SyntaxError, EOFError) as error:  # that of both XML parsers is a SyntaxError
        raise DataError(
            f"{path.name} is cut short ({error}): the run was killed or is not finished"
        ) from None
    if not run.ionic_steps:
        raise DataError(f"{path.name} has no ionic step: the run is not finished")
    if not run.converged_electronic:
        raise DataError(
            f"the electrons did not converge within NELM = {run.parameters.get('NELM', '?')} steps"
        )
    if not run.converged_ionic:
        raise DataError(
            f"the geometry did not converge within NSW = {run.parameters.get('NSW', '?')} steps"
        )
    last = run.final_structure
    energy = float(run.final_energy) / len(last)
    if not math.isfinite(energy):
        raise DataError(f"{path.name} has no finite energy")
    try:
        width: Any = run.eigenvalue_band_properties[0]
        gap: float | None = float(width)
    except Exception:  # without eigenvalues
        gap = None
    moment, notes = _outcar(path.parent, len(last))
    return DftResult(
        code=f"vasp {run.vasp_version}",
        first=_cell(run.initial_structure),
        last=_cell(last),
        energy=energy,
        gap=gap if gap is None or math.isfinite(gap) else None,
        magnetisation=moment,
        settings=dict(run.incar),
        notes=notes,
    )


def _outcar(folder: Path, atoms: int) -> tuple[float | None, tuple[str, ...]]:
    """Total magnetisation [μB/atom], which vasprun.xml does not have."""
    from pymatgen.io.vasp.outputs import Outcar

    path = next((folder / n for n in ("OUTCAR", "OUTCAR.gz") if (folder / n).is_file()), None)
    if path is None:
        return None, ("without OUTCAR the magnetisation is not known",)
    try:
        total = Outcar(str(path)).total_mag
    except Exception:  # anything, of damaged files
        return None, (f"{path.name} cannot be read, so the magnetisation is not known",)
    return (None if total is None else float(total) / atoms), ()


def incar_differences(ran: Mapping[str, object], exported: str) -> list[str]:
    """INCAR tags a run had otherwise than the file that was exported, in words."""
    from pymatgen.io.vasp.inputs import Incar

    wanted = Incar.from_str(exported)
    said = []
    for tag in sorted(set(wanted) - NOT_COMPARED):
        if tag not in ran:
            said.append(f"{tag} was left out (exported {wanted[tag]})")
        elif not _same(ran[tag], wanted[tag]):
            said.append(f"{tag} was {ran[tag]} (exported {wanted[tag]})")
    return said


def _same(one: object, other: object) -> bool:
    if isinstance(one, (list, tuple)) or isinstance(other, (list, tuple)):
        left, right = np.ravel([one]).tolist(), np.ravel([other]).tolist()
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)
    return str(one).strip().lower() == str(other).strip().lower()


def _qe(path: Path) -> DftResult:
    from ase.io import read

    text = path.read_text(encoding="utf-8", errors="replace")
    if "Program PWSCF" not in text:
        raise DataError(f"{path.name} is no output of pw.x")
    if "convergence NOT achieved" in text:
        raise DataError("the electrons did not converge (convergence NOT achieved)")
    if "JOB DONE" not in text:
        raise DataError(f"{path.name} is cut short (no JOB DONE): the run was killed or goes on")
    relaxing = "BFGS Geometry Optimization" in text
    if relaxing and "bfgs converged" not in text and "End of BFGS" not in text:
        raise DataError("the geometry did not converge")
    if "The maximum number of steps has been reached" in text:
        raise DataError("the geometry did not converge (the maximum number of steps was reached)")
    frames: Any = read(str(path), index=":", format="espresso-out")
    last = frames[-1]
    energy = float(last.get_potential_energy()) / len(last)
    levels = re.findall(r"highest occupied, lowest unoccupied level \(ev\):\s*(\S+)\s+(\S+)", text)
    moments = re.findall(r"total magnetization\s*=\s*(-?[\d.]+)", text)
    version = re.search(r"Program PWSCF v\.?(\S+)", text)
    return DftResult(
        code=f"pw.x {version.group(1) if version else ''}".strip(),
        first=from_atoms(frames[0]),
        last=from_atoms(last),
        energy=energy,
        gap=float(levels[-1][1]) - float(levels[-1][0]) if levels else None,
        magnetisation=float(moments[-1]) / len(last) if moments else None,
    )


def _ase(path: Path) -> DftResult:
    from ase.io import read

    return of_frames(read(str(path), index=":"), path.name)  # type: ignore[arg-type]


def of_frames(frames: Sequence[Atoms], name: str) -> DftResult:
    """A relaxation, or a single point, as ASE's atoms with energies.

    Raises
    ------
    DataError
        When the last has no energy, or forces above :data:`FMAX` after a relaxation.
    """
    if not frames:
        raise DataError(f"{name} is empty")
    last = frames[-1]
    if last.calc is None or "energy" not in last.calc.results:
        raise DataError(f"{name} has no energy")
    results = last.calc.results
    notes: tuple[str, ...] = ("whether the electrons converged is not recorded",)
    if len(frames) > 1 and "forces" in results:
        largest = float(np.linalg.norm(last.get_forces(), axis=1).max())  # without fixed atoms
        if largest > FMAX:
            raise DataError(
                f"the geometry did not converge (forces up to {largest:.3g} eV/Å, the most is "
                f"{FMAX})"
            )
    moment = results.get("magmom")
    energy = float(results["energy"]) / len(last)
    if not math.isfinite(energy):
        raise DataError(f"{name} has no finite energy")
    return DftResult(
        code=f"ASE, {getattr(last.calc, 'name', '') or 'calculator not named'}",
        first=from_atoms(frames[0]),
        last=from_atoms(last),
        energy=energy,
        magnetisation=None if moment is None else float(np.sum(moment)) / len(last),
        notes=notes,
    )
