"""``langevin-xtal collect``: results of DFT, back into the store of a search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import options, structures
from langevin_xtal.cli.terminal import echo
from langevin_xtal.errors import LangevinXtalError

if TYPE_CHECKING:
    from langevin_xtal.screen.hull import HullReferences

SHOWN = 50
"""Folders whose reason is printed."""


@click.command()
@click.argument("folder", type=options.LocalPath(file_okay=False), metavar="DIR")
@click.option(
    "--into",
    "store",
    required=True,
    help="Store of the search that was exported.",
    metavar="STORE",
)
@click.option(
    "--continued",
    is_flag=True,
    help="Also take runs that began at another geometry of the same composition.",
)
@click.option(
    "--energies",
    "own",
    type=options.LocalPath(dir_okay=False),
    help="CSV file of your own DFT energies (formula, energy_per_atom), for its hull.",
    metavar="FILE.csv",
)
@structures.key
def collect(folder: Path, store: str, continued: bool, own: Path | None, key: str | None) -> None:
    """Read finished DFT calculations back into the store of a search.

    DIR is the folder of an export, with VASP's vasprun.xml (and OUTCAR), Quantum ESPRESSO's
    pw.out, or a .traj or .extxyz file of ASE in the folders of the candidates. Convergence,
    structure and INCAR are checked; what is unfinished or does not fit is listed with the reason.
    Final structure, energy, band gap and magnetisation are kept. Collecting again is harmless.

    \b
    Example:
      langevin-xtal collect vasp/ --into cu-si-k.db
    """
    from langevin_xtal.search.collect import collect as collect_results

    table = _references(store, own, key)
    with options.progress_bar("collecting", "folder") as update:
        found = collect_results(
            folder, store, continued=continued, references=table, progress=update
        )
    for what, reasons in (("not taken", found.refused), ("note", found.notes)):
        for name, reason in list(reasons.items())[:SHOWN]:
            echo(f"  {what}: {name}: {' '.join(reason.split())}", err=True)
        if len(reasons) > SHOWN:
            echo(f"  and {len(reasons) - SHOWN} more", err=True)
    taken = len(found.stored) + len(found.known)
    if not taken:
        raise LangevinXtalError(f"none of {len(found.refused)} folders has a result to collect")
    echo(
        f"{len(found.stored)} results stored, {len(found.known)} there already, "
        f"{len(found.refused)} folders not taken"
    )


def _references(store: str, own: Path | None, key: str | None) -> HullReferences | None:
    """DFT energies to compare with, None without any."""
    from langevin_xtal.errors import InputError
    from langevin_xtal.screen.hull import HullReferences
    from langevin_xtal.screen.own_energies import own_references, read_energies
    from langevin_xtal.search.store import read_summary

    if own is not None and key is not None:
        raise InputError("--energies and --key are two sources of references: give one of them")
    if own is not None:
        phases = read_energies(own)
        return own_references(
            [phase.numbers for phase in phases],
            [phase.energy for phase in phases],
            [phase.name for phase in phases],
            own.name,
        )
    if key is None:
        return None
    elements = read_summary(store).settings.get("elements", [])
    symbols = elements.split(",") if isinstance(elements, str) else list(elements)
    return HullReferences.from_materials_project(symbols, options.secret(key))
