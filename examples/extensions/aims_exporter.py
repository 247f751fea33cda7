"""An exporter: ``geometry.in`` of FHI-aims, one folder for each candidate.

Run: python aims_exporter.py export aims candidates/ --out aims/
"""

from pathlib import Path

import click

from langevin_xtal.cli import main, options, structures
from langevin_xtal.cli.export import export, sources
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.export.folders import Inputs, write_folders
from langevin_xtal.export.jobs import Job
from langevin_xtal.export.notes import Notes


def inputs(entry: Entry, name: str, notes: Notes) -> Inputs:
    """The files of one candidate."""
    lattice, frac, numbers = entry.cell
    lines = [f"# {entry.formula}, space group {entry.space_group}"]
    lines += ["lattice_vector " + " ".join(f"{x:.10f}" for x in row) for row in lattice]
    lines += [
        "atom_frac " + " ".join(f"{x:.10f}" for x in point) + f" {SYMBOLS[z]}"
        for point, z in zip(frac, numbers, strict=True)
    ]
    return Inputs({"geometry.in": "\n".join(lines) + "\n"})


@export.command()  # the registration: a command of the group "export"
@sources
@structures.top
@options.output("Where to.", "FOLDER")
def aims(sources: tuple[str, ...], top: int | None, out: Path) -> None:
    """FHI-aims geometries, one folder per candidate."""
    entries, refused = structures.read_structures(sources, top=top)
    structures.show_refused(refused)
    job = Job("aims", "srun aims.x > aims.out")
    manifest = write_folders(entries, out, inputs, settings={"export": "aims"}, job=job)
    click.echo(f"{len(manifest)} candidates in {out}")


if __name__ == "__main__":
    main()
