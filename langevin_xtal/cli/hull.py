"""``langevin-xtal hull``: how far structure files lie above the hull of known phases."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import options, structures
from langevin_xtal.cli.hull_table import (
    TABLE,
    by_distance,
    elements_of,
    place,
    row_of,
    show_references,
    symbols_of,
)
from langevin_xtal.cli.terminal import echo
from langevin_xtal.errors import InputError, LangevinXtalError

if TYPE_CHECKING:
    from langevin_xtal.config.screening import RelaxOptions
    from langevin_xtal.crystal.entry import Entry
    from langevin_xtal.screen.hull import HullReferences

SECOND = ("second_above_hull", "disagreement")
"""Columns of a second potential, after those of the first."""
OWN_HULL = "own"
"""References that are the energies given themselves."""

References = dict[frozenset[str], "HullReferences"]
"""By the elements they are for."""


class _Hull(click.Group):
    """``hull FILES`` and ``hull build``: whatever is no subcommand is a file or an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Arguments of ``hull build``, or of the command on files."""
        if not args or args[0] != "build":
            args = ["files", *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The subcommand; that on files has no name of its own."""
        name, command, rest = super().resolve_command(ctx, args)
        return ("" if name == "files" else name), command, rest


class EnergyOrigin(options.ParamType):
    """``potential``, ``file`` or a table."""

    name = "origin"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | Path:
        """The word, or the path of a CSV file."""
        if isinstance(value, Path):
            return value
        if value in ("potential", "file"):
            return str(value)
        path = Path(str(value))
        if path.suffix.lower() != ".csv":
            raise InputError(
                f"--energies {value!r} should be potential, file, or a CSV file of formulas and "
                "energies"
            )
        return path


@dataclass(frozen=True)
class Asked:
    """Which energies are placed on which hull, as the command line says it."""

    relax: bool
    origin: str | Path
    references: str | None
    fmax: float
    steps: int
    symprec: float
    key: str | None
    potential: str
    second: str | None
    second_references: Path | None

    def __post_init__(self) -> None:
        if self.references is not None and self.key is not None:
            raise InputError(
                "--references and --key are two sources of references: give one of them"
            )
        if self.second is not None and self.origin != "potential":
            raise InputError(
                "--second-opinion belongs to energies that are computed: leave out --energies"
            )
        if self.origin == "file" and self.relax:
            raise InputError("--energies file takes energies as they are: leave out --relax")
        if self.origin == "potential" and self.references == OWN_HULL:
            raise InputError("--references own needs energies that are given: --energies file")

    def relaxation(self, potential: str) -> RelaxOptions:
        """Options of a potential's energies, with relaxation or without."""
        from langevin_xtal.config.screening import RelaxOptions

        if not self.relax:
            return RelaxOptions(potential=potential, fmax=self.fmax, steps=0, keep_symmetry=False)
        return RelaxOptions(
            potential=potential, fmax=self.fmax, steps=self.steps, symprec=self.symprec
        )


@click.group(cls=_Hull)
def hull() -> None:
    """Energy above the hull of known phases."""


@hull.command("files")
@click.argument("files", nargs=-1, type=options.Source())
@structures.file_format
@click.option("--relax", is_flag=True, help="Relax first, keeping the symmetry.")
@click.option(
    "--energies",
    "origin",
    type=EnergyOrigin(),
    default="potential",
    show_default=True,
    help="Computed by the potential; or file: those of the files as they are, which must be of "
    "the same potential as the references; or a CSV file of formulas and energies.",
    metavar="potential|file|FILE.csv",
)
@click.option(
    "--references",
    help="Table that hull build wrote, or own: the hull of the energies that are given.",
    metavar="FILE",
)
@structures.fmax
@structures.steps
@structures.symprec
@structures.key
@structures.potential
@click.option(
    "--second-opinion",
    "second",
    help="Another potential, whose energies and hull distances are put beside.",
    metavar="NAME",
)
@structures.second_references
@options.workers
@structures.cache
@options.output_file("hull.csv", "Table to write.")
@structures.force
@options.on_engine
@options.gathered(Asked, *(field.name for field in dataclasses.fields(Asked)), into="asked")
def of_files(
    files: tuple[Path, ...],
    asked: Asked,
    workers: int | None,
    cache: Path | None,
    out: Path,
    force: bool,
) -> None:
    """Energy above the hull of known phases.

    FILES are structures in any format, folders of them, packed datasets, or the store of a
    search. Energies (eV/atom) are the potential's; the shipped references are CHGNet's for the
    Materials Project's near-stable phases of up to 52 atoms, and fewer of SevenNet-0's; what
    is missing in a chemical system is said. Every energy is kept, so that an interrupted command
    goes on where it stopped. Tables for other potentials: langevin-xtal hull build.

    \b
    Examples:
      langevin-xtal hull relaxed/ --out hull.csv
      langevin-xtal hull candidates/ --relax --key env
      langevin-xtal hull --energies mine.csv
    """
    structures.check_file(out, force=force)
    if isinstance(asked.origin, Path):
        _hull_of_table(asked.origin, files, asked, out)
        return
    if not files:
        raise InputError("give structure files, or --energies FILE.csv")
    opinion = structures.references_of_second(asked.second, asked.second_references)
    entries, refused = structures.read_structures(files)
    rows, of = _placed(entries, asked, workers, cache)
    if asked.second is not None:
        options_of_second = asked.relaxation(asked.second)
        _second(entries, rows, options_of_second, opinion, workers, cache)
    rows.sort(key=by_distance)
    columns = TABLE if asked.second is None else (*TABLE[:4], *SECOND, *TABLE[4:])
    rows = structures.write_results(out, rows, columns, refused)
    show_references(of)
    if not any(row.get("energy") for row in rows):
        raise LangevinXtalError(
            f"none of {len(entries)} structures has an energy; {out} says why: {rows[0]['note']}"
        )
    echo(f"{len(entries)} structures in {out}")


def _placed(
    entries: Sequence[Entry], asked: Asked, workers: int | None, cache: Path | None
) -> tuple[list[dict[str, str]], References]:
    """A line for each structure, and the references of its chemical system."""
    from langevin_xtal.screen.cached import PER_WORKER
    from langevin_xtal.screen.potentials import load_potential

    computed = asked.origin == "potential"
    if computed:
        structures.known_to(entries, asked.potential)
    of = _references(entries, asked.references, asked.key, asked.potential)
    whose = load_potential(asked.potential) if computed else None
    for table in of.values():
        if whose is not None:
            table.check(whose)
    if computed:
        _say_unused(entries, asked.potential)
        structures.say_workers(len(entries), workers, PER_WORKER)
        energies, reasons = _energies(entries, asked.relaxation(asked.potential), workers, cache)
    else:
        energies = [math.nan if e.energy is None else e.energy for e in entries]
        reasons = ["the file has no energy" if e.energy is None else "" for e in entries]
    rows = []
    for entry, energy, reason in zip(entries, energies, reasons, strict=True):
        table = of[elements_of(entry)]
        compared = energy if whose is None else table.energy_for(entry.cell, energy, whose)
        found = table.energy_above_hull(entry.cell[2], compared)
        rows.append(row_of(entry, energy, found, reason))
        if whose is not None and compared != energy and math.isfinite(compared):
            rows[-1]["energy_corrected"] = structures.number_text(compared, 6)
    return rows, of


def _hull_of_table(path: Path, files: Sequence[Path], asked: Asked, out: Path) -> None:
    """Place the phases of a user's table on the hull of them all, or on other references."""
    from langevin_xtal.screen.hull import HullReferences
    from langevin_xtal.screen.own_energies import own_references, read_energies

    if files or asked.relax:
        raise InputError(f"--energies {path} needs no structures: leave out FILES and --relax")
    phases = read_energies(path)
    if asked.key is not None:
        table = HullReferences.from_materials_project(
            sorted(symbols_of(phases)), options.secret(asked.key), potential=asked.potential
        )
    elif asked.references not in (None, OWN_HULL):
        table = HullReferences.load(str(asked.references))
    else:
        table = own_references(
            [phase.numbers for phase in phases],
            [phase.energy for phase in phases],
            [phase.name for phase in phases],
            path.name,
        )
    rows = []
    for phase in phases:
        found = table.energy_above_hull(phase.numbers, phase.energy)
        rows.append(
            {
                "name": phase.name,
                "formula": phase.formula,
                "energy": structures.number_text(phase.energy, 6),
                **place(found),
                "note": found.missing,
            }
        )
    rows.sort(key=by_distance)
    structures.write_table(out, rows)
    structures.show_table(rows, TABLE, out)
    show_references({frozenset(symbols_of(phases)): table})
    echo(f"{len(rows)} phases in {out}")


def _references(
    entries: Sequence[Entry], references: str | None, key: str | None, potential: str
) -> References:
    """The references of each structure's chemical system."""
    from langevin_xtal.screen.hull import HullReferences
    from langevin_xtal.screen.own_energies import own_references

    if key is not None:
        return _fetched(entries, options.secret(key), potential)
    if references is None:
        table = HullReferences.shipped(potential)
    elif references == OWN_HULL:
        having = [entry for entry in entries if entry.energy is not None]
        table = own_references(
            [entry.cell[2] for entry in having],
            [float(entry.energy or 0) for entry in having],
            [entry.uid for entry in having],
            "the structures given",
        )
    else:
        table = HullReferences.load(references)
    return {elements_of(entry): table for entry in entries}


@hull.command()
@click.option(
    "--data",
    type=options.Source(),
    required=True,
    help="Structures: a packed dataset (.lxd), a folder, or files in any format.",
    metavar="SOURCE",
)
@structures.potential
@click.option("--relax", is_flag=True, help="Relax first, keeping the symmetry.")
@structures.fmax
@structures.steps
@click.option(
    "--keep",
    type=click.FloatRange(min=0),
    default=0.1,
    show_default=True,
    help="Keep what is up to so far above the hull [eV/atom].",
)
@options.workers
@structures.cache
@options.output_file("hull_references.npz", "Table to write.")
@structures.force
def build(
    data: Path,
    potential: str,
    relax: bool,
    fmax: float,
    steps: int,
    keep: float,
    workers: int | None,
    cache: Path | None,
    out: Path,
    force: bool,
) -> None:
    """Compute a table of hull references for any potential.

    Energies are those of the potential, with the Materials Project's corrections where it
    predicts uncorrected ones. Every energy is kept: stop it at any time, and the same command
    goes on. A file of the name build is given to hull as ./build.

    \b
    Example:
      langevin-xtal hull build --potential sevennet-0 --data known.lxd --out sevennet-0.npz
    """
    from langevin_xtal.config.screening import RelaxOptions
    from langevin_xtal.screen.cached import PER_WORKER
    from langevin_xtal.screen.hull_building import build_references, lacking_elements

    structures.check_file(out, force=force)
    entries, refused = structures.read_structures([data])
    structures.known_to(entries, potential)
    structures.say_workers(len(entries), workers, PER_WORKER)
    relaxation = RelaxOptions(potential=potential, fmax=fmax, steps=steps) if relax else None
    with (
        structures.open_cache(cache) as store,
        options.progress_bar("relaxing" if relax else "energies", "structure") as update,
    ):
        table, failed = build_references(
            [entry.cell for entry in entries],
            [entry.uid for entry in entries],
            potential=potential,
            relaxation=relaxation,
            keep=keep,
            cache=store,
            workers=workers,
            progress=update,
        )
    table.save(out)
    structures.show_refused({**refused, **failed})
    lacking = lacking_elements(table, potential)
    echo(f"{out}: {table.describe()}")
    if lacking:
        echo(
            f"no phase of {len(lacking)} elements alone, so that energies above hull of crystals "
            f"with them may be unknown: {', '.join(lacking)}"
        )


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
    entries: Sequence[Entry], chosen: RelaxOptions, workers: int | None, cache: Path | None
) -> tuple[list[float], list[str]]:
    """Energy per atom of each structure [eV], NaN with a reason; and what to know of others."""
    from langevin_xtal.screen.energies import point_energies
    from langevin_xtal.screen.relax import relax_folded

    cells = [entry.cell for entry in entries]
    with (
        structures.open_cache(cache) as store,
        options.progress_bar("relaxing" if chosen.steps else "energies", "structure") as update,
    ):
        if not chosen.steps:
            points = point_energies(cells, chosen, cache=store, workers=workers, progress=update)
            return [p.energy for p in points], [p.reason for p in points]
        results = relax_folded(cells, chosen, cache=store, workers=workers, progress=update)
    notes = [
        r.reason or ("" if r.converged else "the relaxation ran out of steps") for r in results
    ]
    return [r.energy for r in results], notes


def _second(
    entries: Sequence[Entry],
    rows: Sequence[dict[str, str]],
    asked: RelaxOptions,
    references: HullReferences | None,
    workers: int | None,
    cache: Path | None,
) -> None:
    """Put what a second potential says into the rows, which are in the order of the entries."""
    from langevin_xtal.screen.second_opinion import disagreement, second_opinions

    structures.known_to(entries, asked.potential)
    with (
        structures.open_cache(cache) as store,
        options.progress_bar("second opinion", "structure") as update,
    ):
        opinions = second_opinions(
            [entry.cell for entry in entries],
            asked,
            references,
            cache=store,
            workers=workers,
            progress=update,
        )
    for row, opinion in zip(rows, opinions, strict=True):
        first = float(row["e_above_hull"]) if row["e_above_hull"] else None
        difference, flagged = disagreement(first, opinion.e_above_hull)
        above = math.nan if opinion.e_above_hull is None else opinion.e_above_hull
        row["second_potential"] = asked.potential
        row["second_energy"] = structures.number_text(opinion.energy, 6)
        row["second_above_hull"] = structures.number_text(above)
        row["disagreement"] = structures.number_text(difference)
        said = ["potentials disagree"] if flagged else []
        said += [f"{asked.potential}: {opinion.reason}"] if opinion.reason else []
        row["note"] = "; ".join([*([row["note"]] if row["note"] else []), *said])


def _fetched(entries: Sequence[Entry], key: str, potential: str) -> References:
    """References of the Materials Project: one query if it can hold all elements."""
    from langevin_xtal.dataset.fetch import MOST_ELEMENTS
    from langevin_xtal.screen.hull import HullReferences

    systems = list(dict.fromkeys(elements_of(entry) for entry in entries))
    together = frozenset().union(*systems)
    if len(together) <= MOST_ELEMENTS:
        table = HullReferences.from_materials_project(sorted(together), key, potential=potential)
        return dict.fromkeys(systems, table)
    return {
        system: HullReferences.from_materials_project(sorted(system), key, potential=potential)
        for system in systems
    }
