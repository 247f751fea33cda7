"""Which potential tells stable crystals from others, and what each costs.

    python scripts/compare_potentials.py mp20_val.lxd le20.lxd 21to52.lxd

Of packed crystals whose energy above the published hull is known, as many are drawn near it (at
most 0.1 eV/atom) as far from it (up to --farthest), from every source alike. Each potential gives
the energy of the published geometry, placed on the hull of its own references, of which the
crystal itself is left out: it is judged as a new candidate would be. A distance below zero counts
as zero. Precision, recall and F1 are of "at most 0.1 eV/atom above the hull"; the crystals are
balanced, so they are not those of a search, where most candidates are far.

Seconds are processor time: of an energy, and of relaxations that keep the symmetry, begun where
all atoms are displaced and the cell is strained by 0.1 Å.

Energies are kept beside --out (``<out>.energies.json``): stop it, and the same command goes on.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import langevin_xtal as lx
from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.evaluation.structures import StructureSet
from langevin_xtal.files import write_text
from langevin_xtal.screen.energies import point_energy
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.screen.relax import relax_cell
from langevin_xtal.screen.release import perturbed

STABLE = 0.1
"""Near the hull [eV/atom]."""
DISPLACED = 0.1
"""Of the starts of timed relaxations [Å]."""


def drawn(
    sources: tuple[Path, ...], count: int, farthest: float, seed: int
) -> list[dict[str, Any]]:
    """Crystals with a published distance, half of them near the hull, as many of each source."""
    rng = np.random.default_rng(seed)
    each = count // (2 * len(sources))
    chosen: list[dict[str, Any]] = []
    seen: set[str] = set()
    known = set(load_potential("chgnet").elements)
    for source in sources:
        data = PackedDataset.load(source)
        above = np.asarray(data.properties["e_hull"], dtype=float)
        for near in (True, False):
            fits = (above <= STABLE) if near else (above > STABLE) & (above <= farthest)
            taken: list[int] = []
            for k in rng.permutation(np.flatnonzero(fits)).tolist():
                if len(taken) == each:
                    break
                numbers = data.unit(k).numbers
                name = str(data.id[k])
                if name not in seen and set(numbers.tolist()) <= known:
                    seen.add(name)
                    taken.append(k)
            crystals = StructureSet.from_packed(data, source.stem, taken)
            chosen += [
                {"id": crystals.ids[i], "source": source.stem, "published": float(above[k]),
                 "cell": crystals.cell(i)}
                for i, k in enumerate(taken)
            ]  # fmt: skip
    return chosen


def computed(
    crystals: list[dict[str, Any]], potential: str, known: dict[str, Any], path: Path
) -> list[float]:
    """Energies [eV/atom] of the crystals, kept as they come; seconds are kept beside."""
    own = known.setdefault(potential, {})
    options = RelaxOptions(potential=potential)
    point_energy(crystals[0]["cell"], options)  # loads the weights
    for done, crystal in enumerate(crystals):
        if crystal["id"] not in own:
            start = time.process_time()
            found = point_energy(crystal["cell"], options)
            energy = None if found.reason else found.energy
            own[crystal["id"]] = [energy, time.process_time() - start]
            if done % 50 == 0:
                write_text(path, json.dumps(known))
    write_text(path, json.dumps(known))
    return [math.nan if own[c["id"]][0] is None else own[c["id"]][0] for c in crystals]


def rows_of(table: HullReferences, chosen: NDArray[np.bool_]) -> HullReferences:
    """The references that are chosen."""
    left = np.flatnonzero(chosen)
    return replace(
        table,
        formulas=tuple(table.formulas[i] for i in left),
        energy=table.energy[left],
        ids=tuple(table.ids[i] for i in left),
        _known={},
    )


def distances(
    crystals: list[dict[str, Any]], energies: list[float], potential: str, table: HullReferences
) -> NDArray[np.float64]:
    """(N,) distance of each to the hull of the others [eV/atom], NaN where unknown."""
    whose = load_potential(potential)
    table.check(whose)
    place = {name: k for k, name in enumerate(table.ids)}
    above = np.full(len(crystals), np.nan)
    for k, (crystal, energy) in enumerate(zip(crystals, energies, strict=True)):
        own = place.get(crystal["id"])
        others = table if own is None else rows_of(table, np.arange(len(table)) != own)
        found = others.energy_above_hull(
            crystal["cell"][2], others.energy_for(crystal["cell"], energy, whose)
        )
        if found.e_above_hull is not None:
            above[k] = max(0.0, found.e_above_hull)
    return above


def judged(above: NDArray[np.float64], published: NDArray[np.float64]) -> dict[str, Any]:
    """What the distances are worth."""
    known = np.isfinite(above)
    above, published = above[known], published[known]
    says, true = above <= STABLE, published <= STABLE
    hits = int((says & true).sum())
    error = np.abs(above - published)
    return {
        "crystals": int(known.sum()),
        "unknown": int((~known).sum()),
        "precision": round(hits / max(1, int(says.sum())), 3),
        "recall": round(hits / max(1, int(true.sum())), 3),
        "f1": round(2 * hits / max(1, int(says.sum()) + int(true.sum())), 3),
        "mae": round(float(error.mean()), 4),
        "mae_near": round(float(error[true].mean()), 4),
        "median_error": round(float(np.median(above - published)), 4),
    }


def timed(cells: list[Cell], potential: str) -> dict[str, Any]:
    """Relaxations of a few crystals from displaced starts."""
    relax_cell(cells[0], RelaxOptions(potential=potential, steps=1))
    seconds, steps = [], []
    for k, cell in enumerate(cells):
        start = time.process_time()
        options = RelaxOptions(potential=potential, keep_symmetry=False)
        steps.append(relax_cell(perturbed(cell, DISPLACED, k), options).steps)
        seconds.append(time.process_time() - start)
    return {
        "relaxations": len(cells),
        "seconds": round(float(np.mean(seconds)), 1),
        "steps": round(float(np.mean(steps)), 1),
        "atoms": round(float(np.mean([len(cell[2]) for cell in cells])), 1),
    }


@click.command(help=__doc__)
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--n", "count", default=300, show_default=True, help="Crystals in all.")
@click.option("--farthest", default=0.5, show_default=True, help="Above the hull [eV/atom].")
@click.option("--relaxations", default=6, show_default=True, help="Timed, for each potential.")
@click.option("--potential", "potentials", multiple=True, default=("chgnet", "sevennet-0"))
@click.option("--other", help="Potential without references: its energies are timed only.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--out", default=Path("docs/results/potentials.json"), type=click.Path(path_type=Path)
)
def main(
    sources: tuple[Path, ...],
    count: int,
    farthest: float,
    relaxations: int,
    potentials: tuple[str, ...],
    other: str | None,
    seed: int,
    out: Path,
) -> None:
    crystals = drawn(sources, count, farthest, seed)
    published = np.array([crystal["published"] for crystal in crystals])
    kept = out.with_name(out.name + ".energies.json")
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    some = [c["cell"] for c in crystals if 4 <= len(c["cell"][2]) <= 20]
    some = [some[k] for k in np.random.default_rng(seed).permutation(len(some))[:relaxations]]
    rows: dict[str, Any] = {}
    above: dict[str, NDArray[np.float64]] = {}
    for potential in (*potentials, *([other] if other else [])):
        some_only = crystals if potential != other else crystals[::20]
        energies = computed(some_only, potential, known, kept)
        spent = [known[potential][crystal["id"]][1] for crystal in some_only]
        row: dict[str, Any] = {"energy_seconds": round(float(np.mean(spent)), 3)}
        if potential != other:
            table = HullReferences.shipped(potential)
            above[potential] = distances(crystals, energies, potential, table)
            row |= {"references": len(table), **judged(above[potential], published)}
        rows[potential] = row | {"relaxation": timed(some, potential)}
        click.echo(f"{potential}: {rows[potential]}")
    if len(above) > 1:
        rows["mean"] = judged(np.mean(list(above.values()), axis=0), published)
        rows["both within"] = judged(np.max(list(above.values()), axis=0), published)
        first, *rest = potentials
        formulas = [set(HullReferences.shipped(other).formulas) for other in rest]
        table = HullReferences.shipped(first)
        common = np.array([all(f in own for own in formulas) for f in table.formulas])
        energies = [known[first][crystal["id"]][0] or math.nan for crystal in crystals]
        few = distances(crystals, energies, first, rows_of(table, common))
        rows[f"{first}, phases common to all tables"] = {
            "references": int(common.sum()),
            **judged(few, published),
            "farther_by": round(float(np.nanmean(np.abs(few - above[first]))), 4),
        }
        for name in list(rows)[-3:]:
            click.echo(f"{name}: {rows[name]}")
    result = {
        "command": "python scripts/compare_potentials.py "
        + " ".join(Path(word).name if "/" in word else word for word in sys.argv[1:]),
        "version": lx.__version__,
        "machine": f"{platform.machine()}, one thread, other work beside it",
        "crystals": len(crystals),
        "near": int((published <= STABLE).sum()),
        "rows": rows,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
