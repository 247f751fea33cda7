"""Relaxations of candidates, step by step: what the bound on their gain was learned on.

    python scripts/record_relaxations.py Li-Fe-O,Ti-Ni-Sn Mg-Al-N,La-Cr-Se --out relaxations.json

The first list is what :mod:`langevin_xtal.screen.stopping` was fitted to, the second what it is
checked on. Candidates are those a search would relax; each keeps its symmetry. Of each step the
file has the energy [eV/atom], the largest force [eV/Å] and the pull [eV]; of each relaxation how
far above the hull of known phases it ended [eV/atom].
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.files import write_text
from langevin_xtal.screen import relax
from langevin_xtal.screen.hull import HullReferences
from langevin_xtal.screen.stopping import PER_PULL, REST
from langevin_xtal.search.campaign import Campaign
from langevin_xtal.search.space import SearchSpace
from langevin_xtal.search.store import read_rows

DIGITS = 4


def record(system: str, samples: int, seed: int) -> list[dict[str, Any]]:
    """Relaxations of one system's candidates."""
    options, steps, found = RelaxOptions(), [], []
    state = relax._state

    def noted(atoms: Any) -> Any:
        energy, force, stress = state(atoms)
        pull = relax._pull(stress, options) * atoms.get_volume() / len(atoms)
        steps.append([round(float(x), DIGITS) for x in (energy, force, pull)])
        return energy, force, stress

    hull = HullReferences.shipped(options.potential)
    relax._state = noted
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "sampled.db"
            space = SearchSpace(system.split("-"), "common")
            Campaign(
                store, space, max_samples=samples, seed=seed, workers=1, properties=None
            ).run()
            rows = [row for row in read_rows(store) if row.state == "unique"]
        for row in rows:
            steps.clear()
            assert row.sampled is not None
            (end,) = relax.relax_folded([row.sampled], options, workers=1)
            if not end.reason:
                above = hull.energy_above_hull(end.cell[2], end.energy).e_above_hull
                found.append({"system": system, "above": above, "steps": list(steps)})
    finally:
        relax._state = state
    return found


def tell(name: str, found: list[dict[str, Any]]) -> None:
    """How often the bound is too small."""
    every = [np.array(one["steps"]) for one in found]
    over = [s[:, 0] - s[-1, 0] > REST + PER_PULL * (s[:, 1] + s[:, 2]) for s in every]
    click.echo(
        f"{name}: {len(every)} relaxations, {sum(map(len, every))} steps; more was gained from "
        f"{sum(int(o.sum()) for o in over)} steps on, in {sum(bool(o.any()) for o in over)}"
    )


@click.command(help=__doc__)
@click.argument("learned")
@click.argument("checked")
@click.option("--samples", default=24, show_default=True)
@click.option("--seed", default=7, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(learned: str, checked: str, samples: int, seed: int, out: Path) -> None:
    result = {}
    for name, systems in (("learned", learned), ("checked", checked)):
        result[name] = [r for s in systems.split(",") for r in record(s, samples, seed)]
        tell(name, result[name])
    write_text(out, json.dumps(result, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
