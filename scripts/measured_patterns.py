"""Measured powder patterns of known structures, solved from their compositions.

The patterns come with Fox, a program for crystal structure solution (V. Favre-Nicolin and R.
Černý, J. Appl. Cryst. 35, 734 (2002)); Debian has them in its package ``objcryst-fox``. They stay
where they are; nothing of them is kept but the outcome.

* anglesite, PbSO4: Cu Kα pattern of the Rietveld round robin (R. J. Hill, J. Appl. Cryst. 25, 589
  (1992)). Structure: M. Miyake, I. Minato, H. Morikawa, S. Iwai, Am. Mineral. 63, 506 (1978).
* brucite, Mg(OH)2: Cu Kα, plates that lie flat. Structure: M. Catti, G. Ferraris, S. Hull, A.
  Pavese, Phys. Chem. Minerals 22, 200 (1995).

Fox's other two patterns are of molecular crystals with more atoms than the weights know.

    apt-get download objcryst-fox && dpkg -x objcryst-fox_*.deb fox
    python scripts/measured_patterns.py fox/usr/share/doc/objcryst-fox/example \\
        --out docs/results/measured_patterns.json
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

import langevin_xtal as lx
from langevin_xtal.crystal.cell import expanded
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.diffraction.pattern import Pattern
from langevin_xtal.diffraction.solve import Solution, SolveOptions, solve
from langevin_xtal.files import write_text
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.symmetry import SpaceGroup

RANGE = (10.0, 100.0)
"""Part of each pattern that is used [degrees]."""


def columns(path: Path) -> Pattern:
    """First angle, step and last angle, then intensities in rows."""
    first, *rest = gzip.decompress(path.read_bytes()).decode().splitlines()
    start, step = (float(word) for word in first.split()[:2])
    counts = np.array(" ".join(rest).split(), dtype=float)
    return Pattern.of(start + step * np.arange(len(counts)), counts, name=path.name)


def fox(path: Path) -> Pattern:
    """Fox's XML: rows of intensity, error and weight."""
    text = gzip.decompress(path.read_bytes()).decode()
    found = re.search(
        r'<IobsSigmaWeightList TThetaMin="([\d.]+)" TThetaStep="([\d.]+)">(.*?)</Iobs', text, re.S
    )
    if found is None:
        raise click.ClickException(f"{path}: no measured pattern in it")
    table = np.array(found[3].split(), dtype=float).reshape(-1, 3)
    angles = float(found[1]) + float(found[2]) * np.arange(len(table))
    return Pattern.of(angles, table[:, 0], error=table[:, 1], name=path.name)


@dataclass(frozen=True)
class Known:
    """A pattern and the structure it is of."""

    name: str
    formula: str
    file: str
    read: Callable[[Path], Pattern]
    group: str
    lattice: Lattice
    species: str
    frac: tuple[tuple[float, float, float], ...]
    orientation: bool = False

    def structure(self) -> Structure:
        """As published."""
        return Structure.from_spacegroup(self.group, self.lattice, self.species.split(), self.frac)


KNOWN = (
    Known(
        "anglesite",
        "PbSO4",
        "tutorial-pbso4/xray.dat.gz",
        columns,
        "Pnma",
        Lattice.orthorhombic(8.482, 5.398, 6.959),
        "Pb S O O O",
        (
            (0.1879, 0.25, 0.1667),
            (0.0633, 0.25, 0.6842),
            (-0.0949, 0.25, 0.5961),
            (0.1816, 0.25, 0.5448),
            (0.0797, 0.0278, 0.8073),
        ),
    ),
    Known(
        "brucite",
        "Mg(OH)2",
        "brucite-textured.xml.gz",
        fox,
        "P-3m1",
        Lattice.hexagonal(3.150, 4.770),
        "Mg O H",
        ((0.0, 0.0, 0.0), (1 / 3, 2 / 3, 0.2203), (1 / 3, 2 / 3, 0.4130)),
        orientation=True,
    ),
)


def structure_of(solution: Solution) -> Structure:
    """As refined."""
    crystal = solution.crystal
    cell = expanded(SpaceGroup(crystal.group), crystal.lattice, crystal.frac, crystal.numbers)
    return to_structure(cell)


def distance(one: Structure, other: Structure) -> float | None:
    """Root mean square distance of matched atoms over the cube root of the volume of one."""
    found = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10).get_rms_dist(one, other)
    return None if found is None else float(found[0])


def outcome(known: Known, folder: Path, model: str, samples: int, atoms: bool) -> dict[str, Any]:
    """The row of one pattern."""
    pattern = known.read(folder / known.file).within(*RANGE)
    truth = known.structure()
    given = len(truth.get_primitive_structure()) if atoms else None
    options = SolveOptions(
        samples=samples,
        orientation=known.orientation,
        sampling=SampleOptions(workers=1),
    )
    began, cpu = time.perf_counter(), time.process_time()
    request = lx.Request(formula=known.formula, atoms=given)
    solutions = solve(pattern, request, model, options=options)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    structures = [structure_of(solution) for solution in solutions[:20]]
    rms = [distance(structure, truth) for structure in structures]
    right = next((k for k, value in enumerate(rms) if value is not None), None)
    heavy = [crystal.copy().remove_species(["H"]) for crystal in (structures[0], truth)]
    heavy_rms = distance(*heavy)
    best = solutions[0]
    return {
        "name": known.name,
        "formula": known.formula,
        "atoms given": given or "no",
        "candidates": len(solutions),
        "first": f"{SpaceGroup(best.crystal.group).symbol}",
        "r_wp": round(best.r_wp, 4),
        "rank of the right one": "not found" if right is None else right + 1,
        "rms": None if right is None else round(rms[right] or 0.0, 4),
        "first without hydrogen": "another" if heavy_rms is None else f"{heavy_rms:.4f}",
        "seconds": round(seconds),
        "cpu_seconds": round(cpu),
    }


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", default="small", show_default=True)
@click.option("--samples", default=100, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("measured_patterns.json"))
def main(folder: Path, model: str, samples: int, out: Path) -> None:
    torch.set_num_threads(1)
    rows = []
    for known in KNOWN:
        for atoms in (True, False):
            rows.append(outcome(known, folder, model, samples, atoms))
            click.echo(json.dumps(rows[-1]))
    result = {
        "command": f"python scripts/measured_patterns.py example --out docs/results/{out.name}",
        "version": lx.__version__,
        "weights": lx.load_model(model).hash,
        "machine": f"{platform.machine()}, one thread of {os.cpu_count()} shared cores",
        "rows": rows,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
