"""``langevin-xtal phonons``: are structure files minima of the potential?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import options, structures
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config.screening import PhononOptions
from langevin_xtal.errors import LangevinXtalError

if TYPE_CHECKING:
    from langevin_xtal.crystal.entry import Entry
    from langevin_xtal.screen.phonons import PhononResult

SUMMARY = "phonons.csv"
TABLE = ("name", "formula", "imaginary", "minimum", "at", "supercell", "atoms", "note")


@click.command()
@structures.files
@options.output_folder("phonons")
@options.of_config(
    PhononOptions, "fmax", "displacement", "length", "max_atoms", "tolerance", "potential"
)
@options.workers
@structures.cache
@structures.force
@options.on_engine
def phonons(
    files: tuple[Path, ...],
    out: Path,
    fmax: float,
    displacement: float,
    length: float,
    max_atoms: int,
    tolerance: float,
    potential: str,
    workers: int | None,
    cache: Path | None,
    force: bool,
) -> None:
    """Phonons with an interatomic potential, imaginary modes flagged.

    FILES are structures in any format (CIF, POSCAR, extended XYZ, JSON, …), folders of them,
    packed datasets, or the store of a search. Each structure is relaxed tightly, then its atoms
    are displaced in a supercell (phonopy). Writes phonons.csv (frequencies in THz, negative where
    imaginary) and a picture of the bands of each. Takes seconds to minutes for each structure;
    every result is kept, so that an interrupted command goes on where it stopped.

    \b
    Example:
      langevin-xtal phonons relaxed/ --out phonons/
    """
    from langevin_xtal.screen.phonons import phonon_checks
    from langevin_xtal.screen.potentials import load_potential

    entries, refused = structures.read_structures(files)
    structures.known_to(entries, potential)
    structures.say_workers(len(entries), workers, 1)
    chosen = PhononOptions(
        potential=potential,
        fmax=fmax,
        displacement=displacement,
        length=length,
        max_atoms=max_atoms,
        tolerance=tolerance,
    )
    settings = {
        "command": "phonons",
        "phonons": repr(chosen),
        "potential": load_potential(potential).version,
    }
    record = structures.run_record(settings, {entry.uid: entry.cell for entry in entries})
    with structures.open_cache(cache) as store:
        structures.open_folder(out, record, force=force)
        with options.progress_bar("phonons", "structure") as update:
            results = phonon_checks(
                [entry.cell for entry in entries],
                chosen,
                cache=store,
                workers=workers,
                progress=update,
            )
    rows = [_row(entry, result, out) for entry, result in zip(entries, results, strict=True)]
    rows = structures.write_results(out / SUMMARY, rows, TABLE, refused)
    done = [result for result in results if not result.reason]
    if not done:
        raise LangevinXtalError(
            f"none of {len(entries)} structures has phonons; {out / SUMMARY} says why: "
            f"{rows[0]['note']}"
        )
    flagged = sum(result.imaginary for result in done)
    echo(
        f"{len(done)} of {len(rows)} structures in {out} with {settings['potential']}; "
        f"{flagged} with imaginary modes (below {-tolerance:g} THz)"
    )


def _row(entry: Entry, result: PhononResult, out: Path) -> dict[str, str]:
    from langevin_xtal.screen.phonons import plot_bands, point_text

    name = {"name": entry.uid, "formula": entry.formula}
    if result.reason:
        return name | {"note": result.note}
    number = structures.number_text
    picture = ""
    if len(result.bands):
        picture = structures.file_name(entry.uid, ".png")
        plot_bands(result, out / picture, title=f"{entry.formula} ({entry.uid})")
    return name | {
        "imaginary": str(result.imaginary).lower(),
        "minimum": number(result.minimum, 3),
        "at": point_text(result.minimum_at),
        "exact_minimum": number(result.exact_minimum, 3),
        "exact_at": point_text(result.exact_at),
        "energy": number(result.energy, 6),
        "converged": str(result.converged).lower(),
        "supercell": "x".join(map(str, result.supercell.tolist())),
        "atoms": str(result.atoms),
        "edge": number(result.edge, 2),
        "displacements": str(result.displacements),
        "note": result.note,
        "file": picture,
    }
