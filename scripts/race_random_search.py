"""Settings from the model against random symmetric crystals, at equal processor time.

Targets are crystals of the reference with three elements, at most ``--atoms`` atoms in the
primitive cell and at least two free coordinates. Each way is given the composition and the number
of atoms, no space group, and ``--seconds`` of processor time for a target:

* model: what ``langevin-xtal sample --formula … --atoms …`` draws;
* random: PyXtal in a random one of the groups that have room for these atoms.

Every crystal is relaxed by the same potential with the same options, and compared with the target
(StructureMatcher with pymatgen's defaults). Recorded are the processor time until the target was
found and whether the lowest energy was the target's.

    python scripts/race_random_search.py mp20_val.lxd --out race.json

Targets done are kept in the file: run again to go on.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher

from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.cell import Cell, primitive
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.evaluation.random_crystals import random_crystal
from langevin_xtal.evaluation.targets import Target, choose_targets
from langevin_xtal.files import write_text
from langevin_xtal.model.checkpoint import CrystalModel, load_model
from langevin_xtal.sampling.sample import SampleOptions, sample_batches
from langevin_xtal.sampling.spread import Spread
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.screen.relax import relax_cell
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.version import __version__

ATOMS = 10
BATCH = 8
"""Samples drawn before the next are relaxed."""
WAYS = ("model", "random")


def targets_of(data: PackedDataset, count: int, atoms: int, seed: int) -> list[Target]:
    """Targets drawn at random from the crystals that qualify."""
    known = load_potential().elements
    fit = [
        target
        for target in choose_targets(data, None, groups=range(1, 231), seed=seed)
        if len(target.counts()) == 3
        and target.primitive_atoms <= atoms
        and target.freedom >= 2
        and set(target.counts()) <= known
    ]
    return fit[:count]


def from_model(target: Target, model: CrystalModel, seed: int) -> Iterator[Cell]:
    """Primitive cells of the samples of a target's composition."""
    spread = Spread(target.request("composition"), model)
    first = 0
    while True:
        indices = range(first, first + BATCH)
        outcomes = sample_batches(
            [spread[k] for k in indices],
            model,
            seed,
            indices=indices,
            options=SampleOptions(workers=1),
        )
        made = [candidate for outcome in outcomes for candidate in outcome.candidates]
        for c in sorted(made, key=lambda c: c.index):
            yield primitive(c.space_group, (c.lattice, c.atom_frac, c.numbers[c.atom_site]))
        first += BATCH


@cache
def group_of(number: int) -> Any:
    """PyXtal's group."""
    from pyxtal.symmetry import Group

    return Group(number)


def at_random(target: Target, model: CrystalModel, seed: int) -> Iterator[Cell | None]:
    """Primitive cells of PyXtal's random crystals in random fitting groups; None for a failure."""
    generator = np.random.default_rng([seed, *target.id.encode()])
    factor = len(target.group.centring)
    primitive_counts = {z: n // factor for z, n in target.counts().items()}
    groups = []
    for number in range(1, 231):
        group = SpaceGroup(number)
        counts = [n * len(group.centring) for n in primitive_counts.values()]
        if group_of(number).check_compatible(counts)[0]:
            groups.append((group, counts))
    symbols = [SYMBOLS[z] for z in primitive_counts]
    while True:
        group, counts = groups[int(generator.integers(len(groups)))]
        try:
            made = random_crystal(group, symbols, counts, generator)
        except Exception:  # PyXtal raises many kinds when it cannot place the atoms
            yield None
            continue
        yield None if isinstance(made, str) else primitive(group, made)


def race(cells: Iterator[Cell | None], target: Target, seconds: float) -> dict[str, Any]:
    """Relax crystals until the time is up."""
    matcher, answer = StructureMatcher(), to_structure(target.cell())
    options = RelaxOptions()
    begin = time.process_time()
    made = relaxed = 0
    found: float | None = None
    lowest, lowest_is_target = np.inf, False
    for cell in cells:
        if cell is not None:
            made += 1
            result = relax_cell(cell, options)
            if not result.reason:
                relaxed += 1
                same = bool(matcher.fit(to_structure(result.cell), answer))
                if same and found is None:
                    found = time.process_time() - begin
                # below the noise of a relaxation the earlier one stays the lowest
                if result.energy < lowest - 1e-3 or (same and result.energy < lowest + 1e-3):
                    lowest, lowest_is_target = min(lowest, result.energy), same
        if time.process_time() - begin > seconds:
            break
    return {
        "made": made,
        "relaxed": relaxed,
        "found": None if found is None or found > seconds else round(found, 2),
        "lowest": None if not relaxed else round(float(lowest), 4),
        "lowest_is_target": lowest_is_target,
    }


@click.command(help=__doc__)
@click.argument("reference", type=click.Path(exists=True, path_type=Path))
@click.option("--model", "name", default="small", show_default=True)
@click.option("--targets", "count", default=30, show_default=True)
@click.option("--atoms", default=ATOMS, show_default=True, help="Of the primitive cell, at most.")
@click.option("--seconds", default=100.0, show_default=True, help="Of a target and a way.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", default="race.json", show_default=True, type=click.Path(path_type=Path))
def main(
    reference: Path, name: str, count: int, atoms: int, seconds: float, seed: int, out: Path
) -> None:
    torch.set_num_threads(1)
    model = load_model(name)
    targets = targets_of(PackedDataset.load(reference), count, atoms, seed)
    command = command_of(name, atoms, seconds, seed)
    rows = rows_of(out, command)
    done = {row["id"] for row in rows}
    ways: dict[str, Callable[..., Iterator[Cell | None]]] = {
        "model": from_model,
        "random": at_random,
    }
    relax_cell(targets[0].cell(), RelaxOptions(steps=1))  # loads the potential
    for target in targets:
        if target.id in done:
            continue
        row: dict[str, Any] = {
            "id": target.id,
            "formula": target.request("composition").formula,
            "atoms": target.primitive_atoms,
            "group": target.group.number,
            "free": target.freedom,
        }
        for way in WAYS:
            row[way] = race(ways[way](target, model, seed), target, seconds)
        rows.append(row)
        click.echo(json.dumps(row))
        write_text(out, json.dumps(report(rows, command), indent=2) + "\n")


def command_of(name: str, atoms: int, seconds: float, seed: int) -> str:
    """The command line of a race: what tells one from another."""
    most = "" if atoms == ATOMS else f" --atoms {atoms}"
    return (
        "python scripts/race_random_search.py mp20_val.lxd "
        f"--model {name}{most} --seconds {seconds:g} --seed {seed}"
    )


def rows_of(out: Path, command: str) -> list[dict[str, Any]]:
    """Targets that are done; a file of another race is refused."""
    if not out.exists():
        return []
    try:
        known = json.loads(out.read_text(encoding="utf-8"))
        theirs, rows = str(known["command"]), list(known["targets"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise click.UsageError(
            f"{out} is no file of a race ({error}); give another --out"
        ) from None
    if theirs != command:
        raise click.UsageError(
            f"{out} is of another race ({theirs}); give its --model, --atoms, --seconds and "
            "--seed, or another --out"
        )
    return rows


def report(rows: list[dict[str, Any]], command: str) -> dict[str, Any]:
    """Rows with their sums."""
    totals = {}
    for way in WAYS:
        times = [row[way]["found"] for row in rows if row[way]["found"] is not None]
        totals[way] = {
            "found": len(times),
            "median seconds until found": statistics.median(times) if times else None,
            "lowest energy is the target": sum(row[way]["lowest_is_target"] for row in rows),
            "relaxed": sum(row[way]["relaxed"] for row in rows),
        }
    return {
        "command": command,
        "version": __version__,
        "machine": f"{platform.machine()}, one thread; processor seconds",
        "of": len(rows),
        "totals": totals,
        "targets": rows,
    }


if __name__ == "__main__":
    main()
