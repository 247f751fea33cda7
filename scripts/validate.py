"""Crystal structure prediction on held-out crystals: sites and group given, one sample each.

For every target with group >= 16 the request is its elements, sites per element and space group:
not the formula, not the Wyckoff letters. A sample matches when pymatgen's StructureMatcher
(ltol 0.3, stol 0.5, angle_tol 10) says so; RMSE is its normalised one, over matches; nothing is
filtered. The control is PyXtal: random coordinates and cell with the **true** Wyckoff letters.

    python scripts/validate.py held_out.lxd --n 500 --out validation.json
"""

from __future__ import annotations

import contextlib
import io
import json
import time
import warnings
from pathlib import Path

import click
import numpy as np
import torch
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.model.checkpoint import load_model
from langevin_xtal.sampling.sample import SampleOptions, sample
from langevin_xtal.sampling.samplers import make_sampler
from langevin_xtal.symmetry import SpaceGroup, orbit
from langevin_xtal.symmetry.wyckoff import locate

BINS = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (6, 8), (9, 99))


class Target:
    """One held-out crystal."""

    def __init__(self, data: PackedDataset, k: int) -> None:
        own = slice(data.site_start[k], data.site_start[k + 1])
        self.group = SpaceGroup(int(data.group[k]))
        self.numbers, self.frac = data.numbers[own], data.frac[own]
        self.letters, self.multiplicity = data.wyckoff[own], data.multiplicity[own]
        self.lattice = data.lattice[k]
        self.freedom = sum(locate(self.group.number, f, self.lattice).freedom for f in self.frac)

    def request(self) -> Request:
        """Elements, sites and group, and nothing else."""
        z, n = np.unique(self.numbers, return_counts=True)
        return Request(self.group, {SYMBOLS[a]: int(b) for a, b in zip(z, n, strict=True)})

    def structure(self) -> Structure:
        """The primitive cell."""
        group, frac, species = self.group, [], []
        for point, z in zip(self.frac, self.numbers, strict=True):
            images, _ = orbit(point, group.rotations, group.translations, self.lattice)
            frac.append(images)
            species += [SYMBOLS[z]] * len(images)
        whole = Structure(Lattice(self.lattice), species, np.concatenate(frac))
        return whole.get_primitive_structure()

    def random(self, seed: int) -> Structure | None:
        """PyXtal's random crystal with the true letters; None when it gives up."""
        from pyxtal import pyxtal

        symbols, counts, sites = [], [], []
        for z in np.unique(self.numbers):
            mine = self.numbers == z
            symbols.append(SYMBOLS[z])
            counts.append(int(self.multiplicity[mine].sum()))
            pairs = zip(self.multiplicity[mine], self.letters[mine], strict=True)
            sites.append([f"{m}{letter}" for m, letter in pairs])
        crystal = pyxtal()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                crystal.from_random(
                    3, self.group.number, symbols, counts, sites=sites, random_state=seed
                )
        except Exception:  # PyXtal raises many kinds when it cannot place the atoms
            return None
        return crystal.to_pymatgen().get_primitive_structure() if crystal.valid else None


def summary(rms: np.ndarray, freedom: np.ndarray) -> dict[str, object]:
    """Match rate and RMSE, in all, with and without free coordinates, and by their number."""

    def rate(pick: np.ndarray) -> dict[str, float]:
        found = np.isfinite(rms[pick])
        rmse = float(np.mean(rms[pick][found])) if found.any() else float("nan")
        return {"targets": int(pick.sum()), "match_rate": float(found.mean()), "rmse": rmse}

    everything = np.ones(len(rms), dtype=bool)
    result: dict[str, object] = {"all": rate(everything), "free": rate(freedom > 0)}
    for low, high in BINS:
        pick = (freedom >= low) & (freedom <= high)
        if pick.any():
            result[f"{low}-{high}" if high > low else str(low)] = rate(pick)
    return result


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--n", "count", default=500, show_default=True)
@click.option("--model", default="small", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--positions", default="assigned", show_default=True)
@click.option("--temperature", default=1.0, show_default=True, help="Of the assignment.")
@click.option("--sampler", default="ancestral", show_default=True)
@click.option("--levels", type=int)
@click.option("--steps", type=int)
@click.option("--control/--no-control", default=True, show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    data: Path,
    count: int,
    model: str,
    seed: int,
    positions: str,
    temperature: float,
    sampler: str,
    levels: int | None,
    steps: int | None,
    control: bool,
    out: Path | None,
) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    held_out = PackedDataset.load(data)
    pool = np.flatnonzero(held_out.group >= 16)
    chosen = np.random.default_rng(seed).permutation(pool)[:count]
    targets = [Target(held_out, int(k)) for k in chosen]
    truth = [t.structure() for t in targets]
    freedom = np.array([t.freedom for t in targets])
    weights = load_model(model)
    engine = make_sampler(sampler, levels, steps)
    options = SampleOptions(
        sampler=engine,
        positions=positions,  # type: ignore[arg-type]
        assignment_temperature=temperature,
    )
    start = time.perf_counter()
    found = {
        c.index: c
        for c in sample([t.request() for t in targets], weights, seed + 1, options=options)
    }
    seconds = time.perf_counter() - start
    matcher = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
    formula = np.zeros(len(targets), dtype=bool)
    rms = np.full(len(targets), np.nan)
    for k, candidate in found.items():
        structure = candidate.structure.get_primitive_structure()
        formula[k] = structure.composition.reduced_formula == truth[k].composition.reduced_formula
        match = matcher.get_rms_dist(structure, truth[k]) if formula[k] else None
        rms[k] = np.nan if match is None else match[0]
    report: dict[str, object] = {
        "data": data.name,
        "targets": len(targets),
        "model": weights.name,
        "weights": weights.hash,
        "options": repr(options),
        "seed": seed,
        "seconds_per_structure": seconds / len(targets),
        "no_candidate": len(targets) - len(found),
        "formula_right": float(formula.mean()),
        "model_result": summary(rms, freedom),
    }
    if control:
        random = np.full(len(targets), np.nan)
        failed = 0
        for k, target in enumerate(targets):
            structure = target.random(seed + k)
            failed += structure is None
            match = None if structure is None else matcher.get_rms_dist(structure, truth[k])
            random[k] = np.nan if match is None else match[0]
        report["control_failed"] = failed
        report["control_result"] = summary(random, freedom)
    text = json.dumps(report, indent=2)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
