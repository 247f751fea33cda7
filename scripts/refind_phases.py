"""How often a search finds the known phases of systems it has not seen.

Systems are those of the reference's crystals with three elements, near the published hull, of
which no training crystal has exactly these elements; they are drawn at random from a seed. Each is
searched as ``langevin-xtal search`` would, and the hull holds none of the system's ternary phases.
Candidates go to likely settings (``--allocate likely --samples 400``), or evenly to the common
groups and up to ``--max-sites`` sites, as before 0.6. A phase is found when a candidate equals it
after relaxation (StructureMatcher with pymatgen's defaults); its rank is by energy above hull.

    python scripts/refind_phases.py mp20_val.lxd --training all.lxd --training mp20_train.lxd \\
        --out refind/

Stores are kept in the folder: run again to go on.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from langevin_xtal.config.screening import DEFAULT_POTENTIAL
from langevin_xtal.config.search import SearchConfig
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.pymatgen import plain_formula
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.files import write_text
from langevin_xtal.model.checkpoint import load_model
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.search.campaign import Campaign
from langevin_xtal.search.rows import setting_of
from langevin_xtal.search.space import SearchSpace
from langevin_xtal.search.store import read_rows
from langevin_xtal.version import __version__

COLUMNS = (
    "system", "id", "formula", "group", "sites", "in_space", "published", "setting_rank", "rank",
    "above_hull", "candidates", "relaxed", "seconds",
)  # fmt: skip


def systems_of(data: PackedDataset) -> list[frozenset[int]]:
    """Elements of every crystal."""
    return [frozenset(data.numbers[data.sites_of(k)].tolist()) for k in range(len(data))]


def unseen(
    reference: PackedDataset, training: list[PackedDataset], most: float
) -> dict[frozenset[int], list[int]]:
    """Rows of the reference by system: ternary, unseen, with a phase near the hull."""
    seen = {system for data in training for system in systems_of(data)}
    elements = load_potential(DEFAULT_POTENTIAL).elements
    rows: dict[frozenset[int], list[int]] = {}
    for row, system in enumerate(systems_of(reference)):
        if len(system) == 3 and system not in seen and system <= elements:
            rows.setdefault(system, []).append(row)
    near = reference.properties["e_hull"] <= most
    return {system: own for system, own in rows.items() if near[own].any()}


def search(
    system: frozenset[int], rows: list[int], reference: PackedDataset, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Search one system; a line for each of its known phases."""
    symbols = [SYMBOLS[z] for z in sorted(system)]
    name = "-".join(symbols)
    likely = options["allocate"] == "likely"
    space = SearchSpace(
        symbols,
        None if likely else "common",
        max_sites=None if likely else options["max_sites"],
        model=options["model"],
    )
    campaign = Campaign(
        options["out"] / f"{name}.db",
        space,
        options["model"],
        allocate=options["allocate"],
        max_samples=options["samples"],
        samples_per_request=None if likely else options["samples"],
        relax=True,
        relax_best=options["relax_best"],
        release_within=options["release_within"],
        hull=HullReferences.shipped().without(symbols),
        reference=reference.select(rows),
        workers=options["workers"],
        seed=options["seed"],
    )
    begin = time.monotonic()
    if likely and campaign.remark:
        raise click.ClickException(campaign.remark)
    summary = campaign.run()
    click.echo(f"{name}: {time.monotonic() - begin:.0f} s")
    ranked = campaign.entries()
    energies = [entry for entry in ranked if entry.energy is not None]
    lines = []
    for row in rows:
        own = reference.sites_of(row)
        numbers = np.repeat(reference.numbers[own], reference.multiplicity[own])
        sites, group = len(reference.numbers[own]), int(reference.group[row])
        hit = [
            (rank, entry)
            for rank, entry in enumerate(ranked, start=1)
            if entry.properties.get("known") == str(reference.id[row])
        ]
        rank, entry = hit[0] if hit else (None, None)
        lines.append(
            {
                "system": name,
                "id": str(reference.id[row]),
                "formula": plain_formula(numbers),
                "group": group,
                "sites": sites,
                "in_space": likely or (sites <= options["max_sites"] and group in space.groups),
                "published": float(reference.properties["e_hull"][row]),
                "setting_rank": None if entry is None else setting_of(entry.provenance)[0],
                "rank": rank,
                "above_hull": None if entry is None else entry.e_above_hull,
                "candidates": len(read_rows(campaign.store)),
                "relaxed": len(energies),
                "seconds": round(sum(summary.seconds.values())),
            }
        )
    return lines


@click.command(help=__doc__)
@click.argument("reference", type=click.Path(exists=True, path_type=Path))
@click.option("--training", multiple=True, type=click.Path(exists=True, path_type=Path))
@click.option("--model", default="small", show_default=True)
@click.option("--systems", default=10, show_default=True)
@click.option(
    "--allocate", type=click.Choice(["likely", "even"]), default="even", show_default=True
)
@click.option("--samples", default=1000, show_default=True)
@click.option("--relax-best", default=60, show_default=True)
@click.option(
    "--release-within", default=SearchConfig.release_within, show_default=True, help="[eV/atom]"
)
@click.option("--max-sites", default=4, show_default=True)
@click.option("--near", default=0.05, show_default=True, help="Published hull [eV/atom].")
@click.option("--top", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", type=int)
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(
    reference: Path, training: tuple[Path, ...], model: str, systems: int, near: float, top: int,
    out: Path, **options: Any,
) -> None:  # fmt: skip
    data = PackedDataset.load(reference)
    found = unseen(data, [PackedDataset.load(path) for path in training], near)
    names = sorted(found, key=sorted)
    drawn = np.random.default_rng(options["seed"]).permutation(len(names))[:systems]
    click.echo(f"{len(names)} systems unseen; {len(drawn)} of them are searched")
    out.mkdir(parents=True, exist_ok=True)
    options |= {"out": out, "model": load_model(model)}
    lines = [line for k in drawn for line in search(names[k], found[names[k]], data, options)]
    ranks = [line["rank"] for line in lines]
    result = {
        "command": f"python scripts/{Path(sys.argv[0]).name} "
        + " ".join(Path(word).name if "/" in word else word for word in sys.argv[1:]),
        "version": __version__,
        "weights": options["model"].hash,
        "machine": f"{platform.machine()}, {options['workers'] or os.cpu_count()} processes",
        "systems": len(drawn),
        "phases": len(lines),
        "found": sum(rank is not None for rank in ranks),
        f"among the best {top}": sum(rank is not None and rank <= top for rank in ranks),
        "rows": lines,
    }
    write_text(out / "phases.json", json.dumps(result, indent=1) + "\n")
    with (out / "phases.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, lines[0].keys())
        table.writeheader()
        table.writerows(lines)
    click.echo("  ".join(COLUMNS))
    for line in lines:
        click.echo("  ".join(str(line[column]) for column in COLUMNS))
    stable = [line for line in lines if line["published"] <= near]
    for what, chosen in (("all", lines), (f"within {near} eV/atom of the hull", stable)):
        ranks = [line["rank"] for line in chosen if line["rank"] is not None]
        hits = sum(rank <= top for rank in ranks)
        click.echo(
            f"phases {what}: {len(chosen)}, found {len(ranks)}, among the best {top}: {hits}"
        )


if __name__ == "__main__":
    main()
