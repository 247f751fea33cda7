"""What is written for other programs, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from langevin_xtal.config.fields import check, setting
from langevin_xtal.config.tolerances import USUAL

CellChoice = Literal["primitive", "conventional", "stored"]
PotcarChoice = Literal["auto", "spec", "files"]
Calculation = Literal["vc-relax", "relax", "scf"]

CELL_HELP = "Standardised by spglib, or the cell as it is stored."
SET_HELP = "Input set of pymatgen."
COMMAND_HELP = "What submit.sh runs in each folder."
VASP = "srun vasp_std"


@dataclass(frozen=True, kw_only=True)
class CifConfig:
    """CIF files; and what all exports have.

    Raises
    ------
    InputError
        For values out of range, here and in the classes below.
    """

    symprec: float = setting(USUAL, "Tolerance of the symmetry search [Å].", above=0, high=1)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class XyzConfig(CifConfig):
    """An extended XYZ file."""

    cell: CellChoice = setting("stored", CELL_HELP, choices=get_args(CellChoice))


@dataclass(frozen=True, kw_only=True)
class JobConfig(CifConfig):
    """Folders that a job array runs in."""

    cell: CellChoice = setting("primitive", CELL_HELP, choices=get_args(CellChoice))
    command: str = setting(VASP, COMMAND_HELP)
    concurrent: int = setting(16, "Array tasks that run at a time.", low=1, metavar="N")


@dataclass(frozen=True, kw_only=True)
class VaspConfig(JobConfig):
    """Inputs of VASP."""

    input_set: str = setting("MPRelaxSet", SET_HELP, metavar="NAME", flag="--set")
    potcar: PotcarChoice = setting(
        "auto",
        "POTCAR files, names in POTCAR.spec, or files where they are installed.",
        choices=get_args(PotcarChoice),
    )


@dataclass(frozen=True, kw_only=True)
class PhonopyConfig(VaspConfig):
    """Displaced supercells as VASP runs."""

    input_set: str = setting("MPStaticSet", SET_HELP, metavar="NAME", flag="--set")
    cell: CellChoice = setting("conventional", CELL_HELP, choices=get_args(CellChoice))
    min_height: float = setting(
        10.0, "Opposite faces of the supercell are at least this far apart [Å].", above=0
    )
    distance: float = setting(0.01, "Of a displacement [Å].", above=0, high=0.5)


@dataclass(frozen=True, kw_only=True)
class PwConfig(JobConfig):
    """Inputs of Quantum ESPRESSO's pw.x."""

    command: str = setting("srun pw.x -in pw.in > pw.out", COMMAND_HELP)
    calculation: Calculation = setting("vc-relax", choices=get_args(Calculation))
    pseudo_dir: str = setting(
        "../pseudo",
        "Written as given: where pw.x, running in a candidate's folder, finds the files.",
        metavar="FOLDER",
    )
    pseudo_name: str = setting(
        "{element}.upf", "File name of a pseudopotential.", metavar="PATTERN"
    )
    kspacing: float = setting(
        0.2, "Largest distance between k-points, with the factor 2π [1/Å].", above=0
    )
    ecutwfc: float = setting(60.0, "Wave-function cut-off [Ry].", above=0)
    ecutrho: float = setting(480.0, "Density cut-off [Ry].", above=0)
