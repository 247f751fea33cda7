"""``langevin-xtal export``: candidates as inputs of other programs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import options, structures
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config.export import CifConfig, PhonopyConfig, PwConfig, VaspConfig, XyzConfig
from langevin_xtal.errors import InputError, LangevinXtalError

if TYPE_CHECKING:
    from langevin_xtal.export.manifest import Manifest

SHOWN = 5


class Multiples(options.ParamType):
    """``2,2,2`` to three whole numbers."""

    name = "multiples"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Three multiples of 1 or more."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if len(parts) != 3 or not all(p.isdecimal() and len(p) < 4 and int(p) for p in parts):
            raise InputError(f"--dim {value!r} should be three whole numbers, such as 2,2,2")
        return tuple(int(p) for p in parts)


def sources(command: options.Command) -> options.Command:
    """Structures of any source, and ``--format``."""
    argument = click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
    return argument(structures.file_format(command))


incar = click.option(
    "--incar",
    multiple=True,
    help="INCAR tag such as ENCUT=600 or MAGMOM=Fe:5,O:0.6; ENCUT= removes it. Repeatable.",
    metavar="TAG=VALUE",
)


@click.group()
def export() -> None:
    """Write candidates for other programs.

    SOURCE is the store of a search, a folder written by sample, or structure files. Folders that
    are there already and hold the same are kept, so an interrupted export continues.

    \b
    Examples:
      langevin-xtal export vasp cu-si-k.db --top 20 --out vasp/ --set MPRelaxSet
      langevin-xtal export cif candidates/ --out cif/
    """


@export.command()
@sources
@structures.top
@options.output("Where to.", "FOLDER")
@options.of_config(VaspConfig, "input_set", "potcar")
@incar
@options.of_config(VaspConfig, "cell", "symprec", "command", "concurrent")
@structures.force
def vasp(
    sources: tuple[str, ...],
    top: int | None,
    out: Path,
    incar: tuple[str, ...],
    **settings: object,
) -> None:
    """VASP inputs, one folder per candidate.

    \b
    Example:
      langevin-xtal export vasp cu-si-k.db --top 20 --out vasp/ --set MPRelaxSet
    """
    from langevin_xtal.export.vasp import export_vasp, read_incar_tag

    settings["overrides"] = dict(read_incar_tag(text) for text in incar)
    _write(export_vasp, sources, top, out, settings, "submit.sh", ("moments", "fixed"))


@export.command()
@sources
@structures.top
@options.output("Where to.", "FOLDER")
@options.of_config(
    PwConfig, "calculation", "pseudo_dir", "pseudo_name", "kspacing", "ecutwfc", "ecutrho"
)
@click.option(
    "--pw",
    "variables",
    multiple=True,
    help="Variable of pw.x such as degauss=0.02; degauss= removes it. Repeatable.",
    metavar="NAME=VALUE",
)
@options.of_config(PwConfig, "cell", "symprec", "command", "concurrent")
@structures.force
def qe(
    sources: tuple[str, ...],
    top: int | None,
    out: Path,
    variables: tuple[str, ...],
    **settings: object,
) -> None:
    """Quantum ESPRESSO inputs (pw.in), one folder per candidate.

    \b
    Example:
      langevin-xtal export qe cu-si-k.db --top 20 --out qe/ --pseudo-dir /opt/sssp
    """
    from langevin_xtal.export.espresso import export_qe, read_pw_variable

    settings["overrides"] = dict(read_pw_variable(text) for text in variables)
    _write(export_qe, sources, top, out, settings, "submit.sh", ("moments", "fixed"))


@export.command()
@sources
@structures.top
@options.output("Where to.", "FOLDER")
@click.option(
    "--dim",
    type=Multiples(),
    help="Multiples of the cell, such as 2,2,2.  [default: by --min-height]",
    metavar="A,B,C",
)
@options.of_config(PhonopyConfig, "min_height", "distance", "input_set", "potcar")
@incar
@options.of_config(PhonopyConfig, "cell", "symprec", "command", "concurrent")
@structures.force
def phonopy(
    sources: tuple[str, ...],
    top: int | None,
    out: Path,
    incar: tuple[str, ...],
    **settings: object,
) -> None:
    """Displaced supercells of phonopy as VASP runs.

    \b
    Example:
      langevin-xtal export phonopy cu-si-k.db --top 3 --out phonons/ --dim 2,2,2
    """
    from langevin_xtal.export.phonons import export_phonopy
    from langevin_xtal.export.vasp import read_incar_tag

    settings["overrides"] = dict(read_incar_tag(text) for text in incar)
    _write(export_phonopy, sources, top, out, settings, "submit.sh", ("moments",))


@export.command()
@sources
@structures.top
@options.output("Where to.", "FOLDER")
@options.of_config(CifConfig)
@structures.force
def cif(sources: tuple[str, ...], top: int | None, out: Path, **settings: object) -> None:
    """CIF files with the symmetry that was asked for.

    \b
    Example:
      langevin-xtal export cif cu-si-k.db --top 20 --out cif/
    """
    from langevin_xtal.export.structures import export_cif

    _write(export_cif, sources, top, out, settings)


@export.command()
@sources
@structures.top
@options.output("Where to.", "FILE")
@options.of_config(XyzConfig, "cell", "symprec")
@structures.force
def xyz(sources: tuple[str, ...], top: int | None, out: Path, **settings: object) -> None:
    """One extended XYZ file, with energies and provenance.

    \b
    Example:
      langevin-xtal export xyz cu-si-k.db --top 20 --out best.xyz
    """
    from langevin_xtal.export.structures import export_xyz

    _write(export_xyz, sources, top, out, settings, uses=("moments", "fixed"))


def _write(
    write: Callable[..., Manifest],
    sources: tuple[str, ...],
    top: int | None,
    out: Path,
    settings: dict[str, object],
    script: str | None = None,
    uses: tuple[str, ...] = (),
) -> None:
    """Export the best of the sources by a function of the package, and say what came of it."""
    entries, refused = structures.read_structures(sources, top=top, uses=uses)
    structures.show_refused(refused)
    with _exporting() as progress:
        manifest = write(entries, out, progress=progress, **settings)
    _summary(manifest, out, script)


@contextmanager
def _exporting() -> Iterator[Callable[[int, int], None]]:
    """A progress bar; warnings of the export are printed by the summary instead."""
    from langevin_xtal.export.manifest import ExportWarning

    with warnings.catch_warnings(), options.progress_bar("exporting", " candidates") as update:
        warnings.simplefilter("ignore", ExportWarning)
        yield update


def _summary(manifest: Manifest, out: Path, script: str | None) -> None:
    for note in manifest.notes:
        echo(f"Warning: {note}", err=True)
    echo(
        f"{len(manifest)} candidates in {out}: {manifest.written} written, "
        f"{manifest.kept} there already"
        + ("" if manifest.path == out else f"; table in {manifest.path}")
        + ("" if script is None else f"; submit with: cd {out} && sbatch {script}")
    )
    for uid, reason in list(manifest.failures.items())[:SHOWN]:
        echo(f"  not written: {uid}: {reason}", err=True)
    if manifest.failures:
        raise LangevinXtalError(f"{len(manifest.failures)} candidates could not be exported")
