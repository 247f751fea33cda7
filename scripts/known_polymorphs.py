"""Known polymorphs of a few compositions among samples of the formula alone.

    python scripts/known_polymorphs.py --n 20 --out docs/results/known_polymorphs.json

Cells and coordinates of the polymorphs are facts from the literature (``structure_types.json``
and the table below). A sample is a polymorph where pymatgen's StructureMatcher, at its default
tolerances, says so.
"""

import json
import platform
import sys
import time
from importlib import resources
from pathlib import Path

import click
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

import langevin_xtal as lx
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.evaluation.structures import StructureSet

TYPES = {  # formula, polymorph: name in data/structure_types.json
    ("TiO2", "rutile"): "rutile",
    ("TiO2", "anatase"): "anatase",
    ("SiO2", "quartz (low)"): "alpha-quartz",
    ("ZnS", "sphalerite"): "zinc blende",
    ("BN", "hexagonal BN"): "hexagonal boron nitride",
    ("C", "diamond"): "diamond (C)",
    ("C", "graphite"): "graphite",
}
OTHERS = {  # group, (a, b, c) [Å], gamma [degrees], sites
    ("TiO2", "brookite"): (
        "Pbca", (9.184, 5.447, 5.145), 90,
        [("Ti", 0.1289, 0.0972, 0.8628), ("O", 0.0095, 0.1491, 0.1835),
         ("O", 0.2314, 0.1110, 0.5366)],
    ),
    ("SiO2", "cristobalite (low)"): (
        "P4_12_12", (4.971, 4.971, 6.928), 90,
        [("Si", 0.3003, 0.3003, 0.0), ("O", 0.2392, 0.1044, 0.1787)],
    ),
    ("SiO2", "stishovite"): (
        "P4_2/mnm", (4.179, 4.179, 2.665), 90, [("Si", 0, 0, 0), ("O", 0.3061, 0.3061, 0)],
    ),
    ("ZnS", "wurtzite"): (
        "P6_3mc", (3.823, 3.823, 6.261), 120,
        [("Zn", 1 / 3, 2 / 3, 0.0), ("S", 1 / 3, 2 / 3, 0.3748)],
    ),
    ("CsPbI3", "cubic perovskite"): (
        "Pm-3m", (6.29, 6.29, 6.29), 90,
        [("Cs", 0.5, 0.5, 0.5), ("Pb", 0, 0, 0), ("I", 0.5, 0, 0)],
    ),
    ("BN", "cubic BN"): (
        "F-43m", (3.615, 3.615, 3.615), 90, [("B", 0, 0, 0), ("N", 0.25, 0.25, 0.25)],
    ),
    ("BN", "wurtzite BN"): (
        "P6_3mc", (2.553, 2.553, 4.228), 120,
        [("B", 1 / 3, 2 / 3, 0.0), ("N", 1 / 3, 2 / 3, 0.375)],
    ),
    ("C", "lonsdaleite"): (
        "P6_3/mmc", (2.51, 2.51, 4.12), 120, [("C", 1 / 3, 2 / 3, 0.0625)],
    ),
}  # fmt: skip


def polymorphs() -> dict[tuple[str, str], Structure]:
    text = resources.files("langevin_xtal.reference_data").joinpath("structure_types.json")
    names = [entry["name"] for entry in json.loads(text.read_text("utf-8"))]
    data = reference_dataset()
    cells = StructureSet.from_packed(data, "types")
    place = {str(name): k for k, name in enumerate(data.id)}
    found = {}
    for key, name in TYPES.items():
        k = place[name] if name in place else names.index(name)
        lattice, frac, numbers = cells.cell(k)
        found[key] = Structure(Lattice(lattice), numbers, frac)
    for key, (group, lengths, gamma, sites) in OTHERS.items():
        symbols, points = [s for s, *_ in sites], [x for _, *x in sites]
        lattice = Lattice.from_parameters(*lengths, 90, 90, gamma)
        found[key] = Structure.from_spacegroup(group, lattice, symbols, points)
    return found


@click.command()
@click.option("--model", default="small", show_default=True)
@click.option("--n", "count", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(model: str, count: int, seed: int, out: Path | None) -> None:
    weights, matcher = lx.load_model(model), StructureMatcher()
    known = polymorphs()
    rows = []
    for formula in dict.fromkeys(formula for formula, _ in known):
        began = time.perf_counter()
        made = lx.sample([lx.Request(formula=formula)] * count, weights, seed, device="cpu")
        seconds = time.perf_counter() - began
        for (whose, name), structure in known.items():
            if whose != formula:
                continue
            hits = [c.index + 1 for c in made if matcher.fit(c.structure, structure)]
            row = {
                "formula": formula,
                "polymorph": name,
                "at": hits[0] if hits else None,
                "samples": count,
                "seconds": round(seconds, 1),
            }
            rows.append(row)
            click.echo(f"{formula:7} {name:20} {row['at'] or 'not found'}  ({seconds:.1f} s)")
    if out is not None:
        record = {
            "command": " ".join(["python", *sys.argv]),
            "version": lx.__version__,
            "weights": weights.hash,
            "machine": platform.machine(),
            "rows": rows,
        }
        out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
