"""Crystals of a packed file solved from their simulated powder patterns and their compositions.

    python scripts/evaluate_patterns.py mp20_val.lxd --n 100 --out docs/results/patterns.json
    python scripts/evaluate_patterns.py mp20_val.lxd --n 12 --seed 7 --condition all \\
        --controls mp20_train.lxd --out docs/results/patterns_robustness.json

Patterns are Cu Kα (both lines), 5 to 80 degrees, step 0.02, by pymatgen's XRDCalculator, with
pseudo-Voigt peaks whose widths follow Caglioti (about 0.12 to 0.2 degrees), a background falling
from 500 to 200 counts, 10,000 counts in the highest peak, and Poisson noise. Given besides: the
composition and the number of atoms in the primitive cell. Settings of known crystals of the
composition are left out of account, as in all evaluations on MP-20. A solution is right where
StructureMatcher (ltol 0.3, stol 0.5, angle_tol 10) says so.

Conditions are what is wrong with a pattern, or with what is given besides. Impurities are the
peaks of another crystal of the file, at a share of the highest peak. Preferred orientation is
March and Dollase's along c, by this package's own sticks (equal to pymatgen's without it).
Controls: the same candidates, as sampled, ranked by the probability of their settings alone; with
--controls, by their energy alone (CHGNet, as sampled), and the nearest training crystal with the
elements put in (by composition and number of atoms), its cell fitted and refined like a candidate.

The file is written after every pattern; the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from pymatgen.analysis.diffraction.xrd import XRDCalculator
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

import langevin_xtal as lx
from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.asymmetric import asymmetric_unit
from langevin_xtal.crystal.cell import Cell, expanded
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.join import near_duplicates
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffraction.cells import Bins, fitted_cells
from langevin_xtal.diffraction.pattern import Pattern
from langevin_xtal.diffraction.radiation import radiation
from langevin_xtal.diffraction.refine import Target as PatternTarget
from langevin_xtal.diffraction.refine import cell_parameters
from langevin_xtal.diffraction.simulate import Crystal, PatternModel
from langevin_xtal.diffraction.solve import (
    Solution,
    SolveOptions,
    refined_or_none,
    solve,
)
from langevin_xtal.errors import RejectError
from langevin_xtal.evaluation.controls import composition_template
from langevin_xtal.evaluation.targets import choose_targets
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.runtime import OutOfTime, time_limit
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.sampling.spread import SpreadOptions
from langevin_xtal.screen.relax import relax_folded
from langevin_xtal.symmetry import SpaceGroup

LINES = (("CuKa1", 2 / 3), ("CuKa2", 1 / 3))
COUNTS = 10_000.0
MATCH_SECONDS = 20.0


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What is wrong with a pattern, or with what is given."""

    zero: float = 0.0  #: shift [degrees]
    broadening: float = 0.0  #: added width [degrees], in quadrature
    impurity: float = 0.0  #: highest peak of another crystal, as a share of the highest
    march: float = 1.0  #: March and Dollase's parameter along c
    orientation: bool = False  #: refine that parameter
    times: int = 1  #: atoms in the primitive cell given, as a multiple of the right number
    cell: bool = False  #: give the conventional cell


CONDITIONS = {
    "plain": Condition(),
    "zero 0.1": Condition(zero=0.1),
    "zero 0.3": Condition(zero=0.3),
    "broadening 0.2": Condition(broadening=0.2),
    "broadening 0.4": Condition(broadening=0.4),
    "impurity 0.02": Condition(impurity=0.02),
    "impurity 0.1": Condition(impurity=0.1),
    "orientation 0.8": Condition(march=0.8),
    "orientation 0.6": Condition(march=0.6),
    "orientation 0.6, refined": Condition(march=0.6, orientation=True),
    "atoms doubled": Condition(times=2),
    "cell given": Condition(cell=True),
}


def sticks(crystal: Crystal, tube: str, march: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles and intensities up to 81 degrees."""
    if march == 1.0:
        found = XRDCalculator(tube, symprec=0).get_pattern(
            structure_of(crystal), two_theta_range=(4.0, 81.0), scaled=False
        )
        return found.x, found.y
    model = PatternModel(crystal, radiation(tube), 81.0, margin=1.0)
    angle, height = model.sticks(
        torch.from_numpy(crystal.frac),
        torch.from_numpy(crystal.lattice),
        torch.zeros((), dtype=torch.float64),
        torch.tensor(march, dtype=torch.float64),
    )
    return angle.numpy(), height.numpy()


def profile(crystal: Crystal, x: np.ndarray, condition: Condition, march: float) -> np.ndarray:
    """Peaks, the highest of height 1."""
    y = np.zeros_like(x)
    for tube, share in LINES:
        angles, heights = sticks(crystal, tube, march)
        tangent = np.tan(np.radians(angles / 2))
        widths = np.sqrt(0.02 * tangent**2 - 0.01 * tangent + 0.016 + condition.broadening**2)
        for angle, height, width in zip(angles, heights, widths, strict=True):
            t = (x - angle - condition.zero) / width
            peak = 0.5 * 2 / math.pi / (1 + 4 * t**2)
            peak += math.sqrt(math.log(2) / math.pi) * np.exp(-4 * math.log(2) * t**2)
            y += share * height * peak / width
    return y / y.max()


def simulated(
    crystal: Crystal, other: Crystal, rng: np.random.Generator, condition: Condition
) -> Pattern:
    """A pattern with noise."""
    x = np.arange(5.0, 80.001, 0.02)
    y = profile(crystal, x, condition, condition.march)
    if condition.impurity:
        y += condition.impurity * profile(other, x, condition, 1.0)
    y *= COUNTS / y.max()
    y += 200 + 300 * np.exp(-(x - 5) / 15)
    return Pattern.of(x, rng.poisson(y), name="simulated")


def structure_of(crystal: Crystal) -> Structure:
    """Primitive cell."""
    group = SpaceGroup(crystal.group)
    return to_structure(expanded(group, crystal.lattice, crystal.frac, crystal.numbers))


def cell_of(crystal: Crystal) -> Cell:
    """The conventional cell."""
    frac, site = crystal.atoms()
    return crystal.lattice, frac, crystal.numbers[site]


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
    return [s.candidate.unit for s in order]


def by_energy(solutions: list[Solution]) -> list[Crystal]:
    """The candidates as sampled, the lowest energy first; those without one are left out."""
    crystals = [s.candidate.unit for s in solutions]
    still = relax_folded([cell_of(c) for c in crystals], RelaxOptions(steps=0), workers=1)
    pairs = [(r.energy, k) for k, r in enumerate(still) if not r.reason]
    return [crystals[k] for _, k in sorted(pairs)]


def template_of(
    data: PackedDataset, place: int, training: PackedDataset, pattern: Pattern
) -> Crystal | None:
    """The nearest training crystal with the elements put in, refined; None where there is none."""
    targets = choose_targets(data.select([place]), None, groups=range(1, 231))
    made = composition_template(targets, training, workers=1)
    if not len(made):
        return None
    try:
        unit = asymmetric_unit(*made.cell(0))
        crystal = Crystal(unit.group, unit.lattice, unit.numbers, unit.frac, unit.multiplicity)
        aim = PatternTarget.of(pattern)
        cells = fitted_cells(crystal, aim, Bins(aim), np.random.default_rng(0))
    except (RejectError, lx.LangevinXtalError):
        return None
    refined = [refined_or_none(c, aim, SolveOptions()) for _, c in cells]
    found = sorted((r for r in refined if r is not None), key=lambda r: r.r_wp)
    return found[0].crystal if found else cells[0][1]


def rate(rows: list[dict[str, Any]], key: str, k: int) -> list[float]:
    """Share of the rows with a rank up to ``k``, and its binomial standard error."""
    share = sum(row[key] is not None and row[key] <= k for row in rows) / len(rows)
    return [round(share, 4), round(math.sqrt(share * (1 - share) / len(rows)), 4)]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Match rates of each condition with binomial standard errors, and medians."""
    return {
        name: summary_of([row for row in rows if row["condition"] == name])
        for name in dict.fromkeys(row["condition"] for row in rows)
    }


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one condition."""
    most = SolveOptions.good_gof
    explained = [row["gof"] is not None and row["gof"] <= most for row in rows]
    found = {
        "patterns": len(rows),
        "match_1": rate(rows, "rank", 1),
        "match_20": rate(rows, "rank", 20),
        "control_probability_match_1": rate(rows, "rank_by_probability", 1),
        "control_probability_match_20": rate(rows, "rank_by_probability", 20),
        "explained": round(sum(explained) / len(rows), 4),
        "median_cpu_seconds": round(float(np.median([row["cpu_seconds"] for row in rows])), 2),
        "median_seconds": round(float(np.median([row["seconds"] for row in rows])), 2),
        "p90_cpu_seconds": round(float(np.quantile([r["cpu_seconds"] for r in rows], 0.9)), 2),
    }
    controlled = [row for row in rows if "rank_by_energy" in row]
    if controlled:
        found |= {
            "controlled": len(controlled),
            "control_energy_match_1": rate(controlled, "rank_by_energy", 1),
            "control_energy_match_20": rate(controlled, "rank_by_energy", 20),
            "control_template_match_1": rate(controlled, "template", 1),
        }
    return found


def crystal_at(data: PackedDataset, place: int) -> Crystal:
    """Of a packed file."""
    sites = data.sites_of(place)
    return Crystal(
        int(data.group[place]),
        data.lattice[place],
        data.numbers[sites],
        data.frac[sites],
        data.multiplicity[sites],
    )


def solved(
    data: PackedDataset,
    place: int,
    name: str,
    weights: CrystalModel,
    seed: int,
    samples: int,
    training: PackedDataset | None,
) -> dict[str, Any]:
    """The row of one pattern."""
    crystal, condition = crystal_at(data, place), CONDITIONS[name]
    truth = structure_of(crystal)
    row: dict[str, Any] = {
        "id": str(data.id[place]),
        "condition": name,
        "formula": truth.composition.reduced_formula,
        "group": crystal.group,
        "atoms": len(truth),
    }
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(place,)))
    other = crystal_at(data, int(rng.integers(len(data))))
    pattern = simulated(crystal, other, rng, condition)
    formula = truth.composition.formula.replace(" ", "")
    request = lx.Request(formula=formula, atoms=condition.times * len(truth))
    options = SolveOptions(
        samples=samples,
        orientation=condition.orientation,
        cell=tuple(cell_parameters(crystal.lattice).tolist()) if condition.cell else None,
        sampling=SampleOptions(workers=1),
        spread=SpreadOptions(known_share=0),
    )
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
    if training is not None and name == "plain":
        row["rank_by_energy"] = first_match(by_energy(solutions), truth)
        template = template_of(data, place, training, pattern)
        row["template"] = None if template is None else first_match([template], truth)
    return row


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--n", "count", default=100, show_default=True, help="Crystals, drawn at random.")
@click.option("--seed", default=0, show_default=True)
@click.option("--samples", default=100, show_default=True, help="Candidates at most.")
@click.option("--model", default="small", show_default=True)
@click.option(
    "--condition",
    "names",
    type=click.Choice(["all", *CONDITIONS]),
    multiple=True,
    default=["plain"],
    show_default=True,
)
@click.option(
    "--controls", type=click.Path(exists=True, path_type=Path), help="Training crystals."
)
@click.option("--part", default="0/1", show_default=True, help="k/m: every m-th crystal from k.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    data: Path,
    count: int,
    seed: int,
    samples: int,
    model: str,
    names: tuple[str, ...],
    controls: Path | None,
    part: str,
    out: Path,
) -> None:
    """Write match rates."""
    torch.set_num_threads(1)
    crystals = PackedDataset.load(data)
    training = None
    if controls is not None:
        training = PackedDataset.load(controls)
        training = training.select(~near_duplicates(training, crystals))
    weights = lx.load_model(model)
    chosen = np.random.default_rng(seed).permutation(len(crystals))[:count]
    first, step = (int(number) for number in part.split("/"))
    words = [f"docs/results/{out.name}" if a == str(out) else a for a in sys.argv[1:]]
    words = [Path(a).name if a in (str(data), str(controls)) else a for a in words]
    result: dict[str, Any] = {
        "command": f"python scripts/{Path(sys.argv[0]).name} " + " ".join(words),
        "version": lx.__version__,
        "weights": weights.hash,
        "machine": f"{platform.machine()}, one thread of {os.cpu_count()} shared cores",
        "rows": json.loads(out.read_text())["rows"] if out.exists() else [],
    }
    done = {(row["id"], row["condition"]) for row in result["rows"]}
    for place in chosen[first::step].tolist():
        for name in CONDITIONS if "all" in names else names:
            if (str(crystals.id[place]), name) in done:
                continue
            row = solved(crystals, place, name, weights, seed, samples, training)
            result["rows"].append(row)
            result["summary"] = summary(result["rows"])
            out.write_text(json.dumps(result, indent=1) + "\n")
            click.echo(json.dumps(row))
    click.echo(json.dumps(result.get("summary")))


if __name__ == "__main__":
    main()
