"""Crystals of a packed file solved from their simulated powder patterns and their compositions.

    python scripts/evaluate_patterns.py mp20_val.lxd --n 100 --out docs/results/patterns.json

Patterns are Cu Kα (both lines), 5 to 80 degrees, step 0.02, by pymatgen's XRDCalculator, with
pseudo-Voigt peaks whose widths follow Caglioti (about 0.12 to 0.2 degrees), a background falling
from 500 to 200 counts, 10,000 counts in the highest peak, and Poisson noise. Given besides: the
composition and the number of atoms in the primitive cell. Settings of known crystals of the
composition are left out of account, as in all evaluations on MP-20. A solution is right where
StructureMatcher (ltol 0.3, stol 0.5, angle_tol 10) says so. The control ranks the same candidates,
as sampled, by the probability of their settings alone.

The file is written after every crystal; the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from pymatgen.analysis.diffraction.xrd import XRDCalculator
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

import langevin_xtal as lx
from langevin_xtal.crystal.cell import expanded
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffraction.pattern import Pattern
from langevin_xtal.diffraction.simulate import Crystal
from langevin_xtal.diffraction.solve import Solution, SolveOptions, crystal_of, solve
from langevin_xtal.runtime import OutOfTime, time_limit
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.sampling.spread import SpreadOptions
from langevin_xtal.symmetry import SpaceGroup

LINES = (("CuKa1", 2 / 3), ("CuKa2", 1 / 3))
COUNTS = 10_000.0
MATCH_SECONDS = 20.0


def simulated(
    structure: Structure, rng: np.random.Generator, zero: float, broadening: float
) -> Pattern:
    """A pattern with noise, by pymatgen's sticks."""
    x = np.arange(5.0, 80.001, 0.02)
    y = np.zeros_like(x)
    for tube, share in LINES:
        sticks = XRDCalculator(tube, symprec=0).get_pattern(
            structure, two_theta_range=(4.0, 81.0), scaled=False
        )
        tangent = np.tan(np.radians(sticks.x / 2))
        widths = np.sqrt(0.02 * tangent**2 - 0.01 * tangent + 0.016 + broadening**2)
        for angle, height, width in zip(sticks.x, sticks.y, widths, strict=True):
            t = (x - angle - zero) / width
            peak = 0.5 * 2 / math.pi / (1 + 4 * t**2)
            peak += math.sqrt(math.log(2) / math.pi) * np.exp(-4 * math.log(2) * t**2)
            y += share * height * peak / width
    y *= COUNTS / y.max()
    y += 200 + 300 * np.exp(-(x - 5) / 15)
    return Pattern.of(x, rng.poisson(y), name="simulated")


def structure_of(crystal: Crystal) -> Structure:
    """Primitive cell."""
    group = SpaceGroup(crystal.group)
    return to_structure(expanded(group, crystal.lattice, crystal.frac, crystal.numbers))


def matches(crystal: Crystal, truth: Structure) -> bool:
    """Whether StructureMatcher finds the same structure; False where it takes too long."""
    try:
        with time_limit(MATCH_SECONDS, "cpu"):
            found = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10).get_rms_dist(
                structure_of(crystal), truth
            )
            return found is not None
    except OutOfTime:
        return False


def first_match(crystals: list[Crystal], truth: Structure) -> int | None:
    """Rank of the first that matches, 1 for the best; None when none of the first 20 does."""
    for rank, crystal in enumerate(crystals[:20], start=1):
        if matches(crystal, truth):
            return rank
    return None


def by_probability(solutions: list[Solution]) -> list[Crystal]:
    """The candidates as sampled, the likeliest setting first, in the order they were drawn."""
    order = sorted(
        solutions,
        key=lambda s: (s.candidate.request.choice.draw, s.candidate.request.choice.rank),
    )
    return [crystal_of(s.candidate) for s in order]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Match rates with binomial standard errors, and medians."""

    def rate(key: str, k: int) -> list[float]:
        share = sum(row[key] is not None and row[key] <= k for row in rows) / len(rows)
        return [round(share, 4), round(math.sqrt(share * (1 - share) / len(rows)), 4)]

    most = SolveOptions.good_gof
    explained = [row["gof"] is not None and row["gof"] <= most for row in rows]
    return {
        "patterns": len(rows),
        "match_1": rate("rank", 1),
        "match_20": rate("rank", 20),
        "control_probability_match_1": rate("rank_by_probability", 1),
        "control_probability_match_20": rate("rank_by_probability", 20),
        "explained": round(sum(explained) / len(rows), 4),
        "median_cpu_seconds": round(float(np.median([row["cpu_seconds"] for row in rows])), 2),
        "median_seconds": round(float(np.median([row["seconds"] for row in rows])), 2),
        "p90_cpu_seconds": round(float(np.quantile([r["cpu_seconds"] for r in rows], 0.9)), 2),
    }


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--n", "count", default=100, show_default=True, help="Crystals, drawn at random.")
@click.option("--seed", default=0, show_default=True)
@click.option("--samples", default=100, show_default=True, help="Candidates at most.")
@click.option("--model", default="small", show_default=True)
@click.option("--zero", default=0.0, show_default=True, help="Zero shift [degrees].")
@click.option("--broadening", default=0.0, show_default=True, help="Added width [degrees].")
@click.option("--part", default="0/1", show_default=True, help="k/m: every m-th crystal from k.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    data: Path,
    count: int,
    seed: int,
    samples: int,
    model: str,
    zero: float,
    broadening: float,
    part: str,
    out: Path,
) -> None:
    """Write match rates."""
    torch.set_num_threads(1)
    crystals = PackedDataset.load(data)
    weights = lx.load_model(model)
    chosen = np.random.default_rng(seed).permutation(len(crystals))[:count]
    first, step = (int(number) for number in part.split("/"))
    options = SolveOptions(
        samples=samples,
        sampling=SampleOptions(workers=1),
        spread=SpreadOptions(known_share=0),
    )
    words = [f"scripts/{Path(sys.argv[0]).name}", data.name]
    words += [a for a in sys.argv[2:] if a != str(out)] + [f"docs/results/{out.name}"]
    result: dict[str, Any] = {
        "command": "python " + " ".join(words),
        "version": lx.__version__,
        "weights": weights.hash,
        "machine": f"{platform.machine()}, one thread of {os.cpu_count()} shared cores",
        "rows": [],
    }
    if out.exists():
        result["rows"] = json.loads(out.read_text())["rows"]
    if result["rows"]:
        result["summary"] = summary(result["rows"])
        out.write_text(json.dumps(result, indent=1) + "\n")
    done = {row["id"] for row in result["rows"]}
    for place in chosen[first::step]:
        if str(crystals.id[place]) in done:
            continue
        sites = crystals.sites_of(int(place))
        crystal = Crystal(
            int(crystals.group[place]),
            crystals.lattice[place],
            crystals.numbers[sites],
            crystals.frac[sites],
            crystals.multiplicity[sites],
        )
        truth = structure_of(crystal)
        row: dict[str, Any] = {
            "id": str(crystals.id[place]),
            "formula": truth.composition.reduced_formula,
            "group": crystal.group,
            "atoms": len(truth),
        }
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(place),)))
        pattern = simulated(truth, rng, zero, broadening)
        request = lx.Request(formula=truth.composition.formula.replace(" ", ""), atoms=len(truth))
        began, cpu = time.perf_counter(), time.process_time()
        try:
            solutions = solve(pattern, request, weights, seed, options=options)
        except lx.LangevinXtalError as error:
            solutions, row["error"] = [], str(error)
        row["seconds"] = round(time.perf_counter() - began, 2)
        row["cpu_seconds"] = round(time.process_time() - cpu, 2)
        best = solutions[0] if solutions else None
        refined = None if best is None else best.refined
        row["samples"] = len(solutions)
        row["r_wp"] = None if refined is None else round(refined.r_wp, 4)
        row["gof"] = None if refined is None else round(refined.gof, 3)
        row["found_group"] = None if best is None else best.crystal.group
        row["rank"] = first_match([s.crystal for s in solutions], truth)
        row["rank_by_probability"] = first_match(by_probability(solutions), truth)
        result["rows"].append(row)
        result["summary"] = summary(result["rows"])
        out.write_text(json.dumps(result, indent=1) + "\n")
        click.echo(json.dumps(row))
    click.echo(json.dumps(result.get("summary")))


if __name__ == "__main__":
    main()
