"""``langevin-xtal predict``: formation energy, distance to the hull and band gap of structures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import options, structures
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config.screening import DEFAULT_PROPERTIES
from langevin_xtal.crystal.properties import PROPERTIES
from langevin_xtal.errors import InputError, LangevinXtalError

if TYPE_CHECKING:
    from langevin_xtal.crystal.entry import Entry
    from langevin_xtal.screen.properties import Prediction

DIGITS = 4


@click.command()
@structures.files
@click.option(
    "--model",
    default=DEFAULT_PROPERTIES,
    show_default=True,
    help="Property model: a shipped name, or a file that train --recipe mp20-properties wrote.",
)
@click.option(
    "--property",
    "wanted",
    multiple=True,
    help=f"Only these; repeatable: {', '.join(PROPERTIES)}.  [default: all of the model]",
    metavar="NAME",
)
@structures.symprec
@options.output_file("predicted.csv", "Table to write.")
@structures.force
def predict(
    files: tuple[Path, ...],
    model: str,
    wanted: tuple[str, ...],
    symprec: float,
    out: Path,
    force: bool,
) -> None:
    """Predict properties of structures, with error bars.

    FILES are structures in any format, folders of them, packed datasets, or the store of a
    search. Formation energy and energy above hull [eV/atom] and band gap [eV] are those of the
    Materials Project's PBE calculations, as the network learned them from relaxed crystals of up
    to 20 atoms; an error is one standard deviation. Of structures far from relaxed, neither is
    to be trusted.

    \b
    Examples:
      langevin-xtal predict candidates/ --out predicted.csv
      langevin-xtal predict POSCAR quartz.cif --property band_gap
    """
    from langevin_xtal.model.properties import load_properties
    from langevin_xtal.screen.properties import predict_properties

    structures.check_file(out, force=force)
    chosen = load_properties(model)
    for name in wanted:
        chosen.check(name)
    names = tuple(dict.fromkeys(wanted)) or chosen.names
    entries, refused = structures.read_structures(files)
    with options.progress_bar("predicting", "structure") as update:
        found = predict_properties(
            [entry.cell for entry in entries], chosen, symprec=symprec, progress=update
        )
    rows = [_row(entry, one, names) for entry, one in zip(entries, found, strict=True)]
    shown = ("name", "formula", "group", *(c for n in names for c in (n, f"{n}_error")), "note")
    rows = structures.write_results(out, rows, shown, refused)
    done = sum(not one.reason for one in found)
    if not done:
        message = (
            f"nothing could be predicted of {len(found)} structures; {out} says why: "
            f"{found[0].reason}"
        )
        raise InputError(message) if _all_unknown(found) else LangevinXtalError(message)
    units = ", ".join(f"{PROPERTIES[n].title} in {PROPERTIES[n].unit}" for n in names)
    echo(f"{done} of {len(rows)} structures predicted by {chosen.name}: {units}")


def _all_unknown(found: list[Prediction]) -> bool:
    """Whether the model knows the elements of none."""
    return all("no training crystal" in one.reason for one in found)


def _row(entry: Entry, found: Prediction, names: tuple[str, ...]) -> dict[str, str]:
    row = {
        "name": entry.uid,
        "formula": entry.formula,
        "group": "" if found.group is None else str(found.group),
    }
    for name in names:
        for key, table in ((name, found.values), (f"{name}_error", found.errors)):
            row[key] = structures.number_text(table.get(name, float("nan")), DIGITS)
    row["note"] = found.reason
    return row
