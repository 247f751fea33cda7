"""``langevin-xtal relax``: structure files, relaxed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import options, structures
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config.screening import FileRelaxOptions
from langevin_xtal.errors import InputError, LangevinXtalError
from langevin_xtal.files import write_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from langevin_xtal.config.screening import RelaxOptions
    from langevin_xtal.crystal.cell import Cell
    from langevin_xtal.crystal.entry import Entry
    from langevin_xtal.evaluation.cache import Cache
    from langevin_xtal.screen.relax import Relaxation

SUMMARY = "summary.csv"
TABLE = ("name", "formula", "energy", "change", "steps", "group_before", "group", "note")


@click.command()
@structures.files
@options.output_folder("relaxed")
@structures.fmax
@structures.steps
@click.option(
    "--release",
    is_flag=True,
    help="Relax a second time without symmetry, from a slightly displaced start.",
)
@structures.symprec
@options.of_config(FileRelaxOptions, "fix_atoms", "constant_volume", "constant_cell")
@structures.potential
@options.workers
@structures.cache
@structures.force
@options.on_engine
def relax(
    files: tuple[Path, ...],
    out: Path,
    fmax: float,
    steps: int,
    release: bool,
    symprec: float,
    fix_atoms: str,
    constant_volume: bool,
    constant_cell: bool,
    potential: str,
    workers: int | None,
    cache: Path | None,
    force: bool,
) -> None:
    """Relax structures with an interatomic potential, keeping their symmetry.

    FILES are structures in any format (CIF, POSCAR, extended XYZ, JSON, …), folders of them,
    packed datasets, or the store of a search. Writes a CIF for each and summary.csv (energies in
    eV/atom, changes in meV/atom; a change of volume by more than 25 % and layers that drift apart
    are noted). With --release also NAME_released.cif where symmetry broke.
    Every result is kept: an interrupted command goes on where it stopped.

    \b
    Examples:
      langevin-xtal relax candidates/ --out relaxed/
      langevin-xtal relax POSCAR perovskite.cif --release --fmax 0.02 --out relaxed/
      langevin-xtal relax slab.vasp --fix-atoms file --constant-cell --out relaxed/
    """
    from langevin_xtal.config.screening import RelaxOptions
    from langevin_xtal.screen.cached import PER_WORKER
    from langevin_xtal.screen.fixing import hold
    from langevin_xtal.screen.potentials import load_potential
    from langevin_xtal.screen.release import DEFAULT_RELEASE

    chosen = RelaxOptions(
        potential=potential,
        fmax=fmax,
        steps=steps,
        symprec=symprec,
        fix_atoms=fix_atoms,
        constant_volume=constant_volume,
        constant_cell=constant_cell,
    )
    if release and fix_atoms:
        raise InputError("--release displaces every atom: leave out --fix-atoms or --release")
    entries, refused = structures.read_structures(files, uses=["fixed"] if fix_atoms else [])
    held = _held(entries, fix_atoms)
    structures.known_to(entries, potential)
    structures.say_workers(len(entries), workers, PER_WORKER)
    settings = {
        "command": "relax",
        "relaxation": repr(chosen),
        "release": repr(DEFAULT_RELEASE) if release else None,
        "potential": load_potential(potential).version,
    }
    cells = [hold(entry.cell, own) for entry, own in zip(entries, held, strict=True)]
    record = structures.run_record(
        settings, {entry.uid: cell for entry, cell in zip(entries, cells, strict=True)}
    )
    with structures.open_cache(cache) as store:
        structures.open_folder(out, record, force=force)
        run = _with_release if release else _with_symmetry
        rows = run(entries, cells, chosen, store, workers, out)
    for row, own in zip(rows, held, strict=True):
        if fix_atoms:
            row["fixed_atoms"] = str(int(own.any(axis=1).sum()))
    rows = structures.write_results(out / SUMMARY, rows, TABLE, refused)
    done = sum(bool(row.get("energy")) for row in rows)
    if not done:
        raise LangevinXtalError(
            f"none of {len(entries)} structures could be relaxed; {out / SUMMARY} says why: "
            f"{rows[0]['note']}"
        )
    echo(f"{done} of {len(rows)} structures relaxed in {out} with {settings['potential']}")


def _held(entries: Sequence[Entry], selection: str) -> list[NDArray[np.bool_]]:
    """Of each structure, which atoms are held along which axes of the cell (N, 3).

    Raises
    ------
    InputError
        Naming the structure that lacks what is selected.
    """
    from langevin_xtal.screen.fixing import chosen_atoms

    return [chosen_atoms(selection, entry.cell[2], entry.fixed, entry.uid) for entry in entries]


def _with_symmetry(
    entries: Sequence[Entry],
    cells: Sequence[Cell],
    chosen: RelaxOptions,
    store: Cache,
    workers: int | None,
    out: Path,
) -> list[dict[str, str]]:
    from langevin_xtal.screen.relax import relax_folded
    from langevin_xtal.screen.release import found_groups

    with options.progress_bar("relaxing", "structure") as update:
        results = relax_folded(
            cells,
            chosen,
            cache=store,
            workers=workers,
            progress=update,
        )
    rows = []
    for entry, result in zip(entries, results, strict=True):
        note = result.reason or ("" if result.converged else "ran out of steps")
        before, after = found_groups(entry.cell), found_groups(result.cell)
        rows.append(_row(entry, result, before, after, note))
        if not result.reason:
            rows[-1]["file"] = _write(
                entry, result, after, chosen, out / structures.file_name(entry.uid, ".cif")
            )
    return rows


def _with_release(
    entries: Sequence[Entry],
    cells: Sequence[Cell],
    chosen: RelaxOptions,
    store: Cache,
    workers: int | None,
    out: Path,
) -> list[dict[str, str]]:
    from langevin_xtal.screen.release import relax_twice

    with options.progress_bar("relaxing", "structure") as update:
        results = relax_twice(
            cells,
            chosen,
            cache=store,
            workers=workers,
            progress=update,
        )
    rows = []
    for entry, both in zip(entries, results, strict=True):
        row = _row(entry, both.kept, both.groups_before, both.groups_kept, both.note)
        after = both.groups_released
        row |= {
            "released_energy": structures.number_text(both.released.energy, 6),
            "released_change": structures.number_text(1000 * both.gain, 1),
            "released_group": str(after[0.01] or ""),
            "released_group_0.1": str(after[0.1] or ""),
        }
        if not both.kept.reason:
            row["file"] = _write(
                entry,
                both.kept,
                both.groups_kept,
                chosen,
                out / structures.file_name(entry.uid, ".cif"),
            )
        if both.broke:
            target = out / structures.file_name(entry.uid, "_released.cif")
            row["released_file"] = _write(entry, both.released, after, chosen, target)
        rows.append(row)
    return rows


def _row(
    entry: Entry,
    result: Relaxation,
    before: Mapping[float, int],
    after: Mapping[float, int],
    note: str,
) -> dict[str, str]:
    from langevin_xtal.screen.changes import relaxation_warning

    number = structures.number_text
    warning = "" if result.reason else relaxation_warning(entry.cell, result.cell)
    note = "; ".join(text for text in (note, warning) if text)
    return {
        "name": entry.uid,
        "formula": entry.formula,
        "atoms": str(len(entry.cell[2])),
        "energy": number(result.energy, 6),
        "change": number(1000 * (result.energy - result.start_energy), 1),
        "steps": "" if result.reason else str(result.steps),
        "converged": "" if result.reason else str(result.converged).lower(),
        "max_force": number(result.max_force, 4),
        "group_before": str(before[0.01] or ""),
        "group_before_0.1": str(before[0.1] or ""),
        "group": "" if result.reason else str(after[0.01] or ""),
        "group_0.1": "" if result.reason else str(after[0.1] or ""),
        "note": note,
        "file": "",
    }


def _write(
    entry: Entry,
    result: Relaxation,
    groups: Mapping[float, int],
    chosen: RelaxOptions,
    path: Path,
) -> str:
    """Write the CIF of a relaxed structure; its name."""
    from langevin_xtal.export.structures import entry_cif
    from langevin_xtal.screen.potentials import load_potential

    relaxed = replace(
        entry,
        cell=result.cell,
        found_group=groups[0.01] or None,
        energy=result.energy,
        e_above_hull=None,
        potential=load_potential(chosen.potential).version,
        sampled=entry.cell,
        properties={"converged": result.converged},
    )
    write_text(path, entry_cif(relaxed, 0)[0])
    return path.name
