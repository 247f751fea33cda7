"""``langevin-xtal hull``: how far structure files lie above the hull of known phases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import options, structures
from langevin_xtal.cli.terminal import echo
from langevin_xtal.errors import InputError, LangevinXtalError

if TYPE_CHECKING:
    from langevin_xtal.crystal.entry import Entry
    from langevin_xtal.screen.hull import HullReferences, HullResult

TABLE = ("name", "formula", "energy", "e_above_hull", "phases", "note")
YTTERBIUM = 70
NOTES = 3
"""Chemical systems whose references are described on the terminal."""

References = dict[frozenset[str], "HullReferences"]
"""By the elements they are for."""


@click.command()
@structures.files
@click.option("--relax", is_flag=True, help="Relax first, keeping the symmetry.")
@click.option(
    "--energies",
    "origin",
    type=click.Choice(["potential", "file"]),
    default="potential",
    show_default=True,
    help="Computed by the potential, or those of the files as they are: these must be of the "
    "same potential as the references.",
)
@structures.fmax
@structures.steps
@structures.symprec
@click.option(
    "--key",
    help="Key of the Materials Project, to take its phases as references; 'env' reads "
    f"{options.KEY_VARIABLE}.",
    metavar="KEY",
)
@structures.potential
@structures.workers
@structures.cache
@click.option(
    "--out",
    type=options.LocalPath(),
    default="hull.csv",
    show_default=True,
    help="Table to write.",
    metavar="FILE",
)
@structures.force
@options.on_engine
def hull(
    files: tuple[Path, ...],
    relax: bool,
    origin: str,
    fmax: float,
    steps: int,
    symprec: float,
    key: str | None,
    potential: str,
    workers: int | None,
    cache: Path | None,
    out: Path,
    force: bool,
) -> None:
    """Energy above the hull of known phases.

    FILES are structures in any format, folders of them, packed datasets, or the store of a
    search. Energies (eV/atom) are the potential's; the shipped
    references are CHGNet's for the Materials Project's near-stable phases of up to 52 atoms, and
    what is missing in a chemical system is said. Every energy is kept, so that an interrupted
    command goes on where it stopped.

    \b
    Examples:
      langevin-xtal hull relaxed/ --out hull.csv
      langevin-xtal hull candidates/ --relax --key env
    """
    from langevin_xtal.screen.hull import HullReferences
    from langevin_xtal.screen.relax import PER_WORKER

    structures.check_file(out, force=force)
    if origin == "file" and relax:
        raise InputError("--energies file takes energies as they are: leave out --relax")
    entries, refused = structures.read_structures(files)
    if origin == "potential":
        structures.known_to(entries, potential)
    if key is None:
        shipped = HullReferences.shipped(potential)
        of = {_elements(entry): shipped for entry in entries}
    else:
        of = _fetched(entries, options.secret(key), potential)
    if origin == "file":
        energies = [math.nan if e.energy is None else e.energy for e in entries]
        reasons = ["the file has no energy" if e.energy is None else "" for e in entries]
    else:
        _say_unused(entries, potential)
        structures.say_workers(len(entries), workers, PER_WORKER)
        energies, reasons = _energies(
            entries, relax, fmax, steps, symprec, potential, workers, cache
        )
    rows = []
    for entry, energy, reason in zip(entries, energies, reasons, strict=True):
        found = of[_elements(entry)].energy_above_hull(entry.cell[2], energy)
        rows.append(_row(entry, energy, found, reason))
    rows.sort(key=lambda row: (row["e_above_hull"] == "", float(row["e_above_hull"] or 0)))
    rows += [{"name": name, "note": reason} for name, reason in refused.items()]
    structures.write_table(out, rows)
    structures.show_table(rows[: len(entries)], TABLE, out)
    structures.show_refused(refused)
    _notes(of)
    if not any(row.get("energy") for row in rows):
        raise LangevinXtalError(
            f"none of {len(entries)} structures has an energy; {out} says why: {rows[0]['note']}"
        )
    echo(f"{len(entries)} structures in {out}")


def _say_unused(entries: Sequence[Entry], potential: str) -> None:
    """Say where files have energies that are not taken."""
    having = [e for e in entries if e.energy is not None and not e.potential]
    if having:
        echo(
            f"Note: energies of {len(having)} structures in the files are not used; those here "
            f"are of {potential}, as the references are (--energies file takes the files')",
            err=True,
        )


def _energies(
    entries: Sequence[Entry],
    relax: bool,
    fmax: float,
    steps: int,
    symprec: float,
    potential: str,
    workers: int | None,
    cache: Path | None,
) -> tuple[list[float], list[str]]:
    """Energy per atom of each structure [eV], NaN with a reason; and what to know of others."""
    from langevin_xtal.screen.relax import RelaxOptions, relax_folded

    chosen = RelaxOptions(
        potential=potential,
        fmax=fmax,
        steps=steps if relax else 0,
        keep_symmetry=relax,
        symprec=symprec if relax else 1e-3,
    )
    with (
        structures.open_cache(cache) as store,
        options.progress_bar("relaxing" if relax else "energies", "structure") as update,
    ):
        results = relax_folded(
            [entry.cell for entry in entries],
            chosen,
            cache=store,
            workers=workers,
            progress=update,
        )
    stopped = "the relaxation ran out of steps" if relax else ""
    notes = [r.reason or ("" if r.converged else stopped) for r in results]
    return [r.energy for r in results], notes


def _row(entry: Entry, energy: float, found: HullResult, reason: str) -> dict[str, str]:
    above = found.e_above_hull
    return {
        "name": entry.uid,
        "formula": entry.formula,
        "energy": structures.number_text(energy, 6),
        "e_above_hull": "" if above is None else f"{round(above, 4) + 0.0:.4f}",  # + 0.0: no -0
        "phases": " + ".join(f"{share:.3f} {_pretty(f)}" for f, share in found.phases.items()),
        "note": reason or found.missing or _doubt(entry),
    }


def _doubt(entry: Entry) -> str:
    """What is known to be wrong with the references of an element."""
    if YTTERBIUM not in entry.cell[2]:
        return ""
    return (
        "the references of Yb rest on the pseudopotential Yb_2, which suits Yb2+ only: of Yb3+ "
        "the energy above hull is too high"
    )


def _pretty(formula: str) -> str:
    """``"Cl1 Na1"`` as ``"NaCl"``."""
    from pymatgen.core import Composition

    return str(Composition(formula).reduced_formula)


def _elements(entry: Entry) -> frozenset[str]:
    from langevin_xtal.crystal.elements import SYMBOLS

    return frozenset(SYMBOLS[z] for z in entry.cell[2].tolist())


def _fetched(entries: Sequence[Entry], key: str, potential: str) -> References:
    """References of the Materials Project: one query if it can hold all elements."""
    from langevin_xtal.dataset.fetch import MOST_ELEMENTS
    from langevin_xtal.screen.hull import HullReferences

    systems = list(dict.fromkeys(_elements(entry) for entry in entries))
    together = frozenset().union(*systems)
    if len(together) <= MOST_ELEMENTS:
        table = HullReferences.from_materials_project(sorted(together), key, potential=potential)
        return dict.fromkeys(systems, table)
    return {
        system: HullReferences.from_materials_project(sorted(system), key, potential=potential)
        for system in systems
    }


def _notes(of: Mapping[frozenset[str], HullReferences]) -> None:
    """What the numbers rest on."""
    from langevin_xtal.screen.hull import coverage_note

    first = next(iter(of.values()))
    gaps = f"; {first.gaps}" if first.gaps else ""
    echo(f"\nReferences: {first.describe()}{gaps}")
    for system, table in list(of.items())[:NOTES]:
        echo(f"  {coverage_note(sorted(system), replace(table, gaps=''))}")
    if len(of) > NOTES:
        echo(f"  and {len(of) - NOTES} more chemical systems")
