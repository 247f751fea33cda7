"""The other published generators and the package's own model on the same targets.

    python scripts/baselines.py FOLDER --reference mp20_val.lxd --training mp20_train.lxd --n 100

FOLDER holds a fit of each generator that is to be compared, as ``langevin-xtal train --generator
NAME --out FOLDER/NAME`` leaves it. Each comparison has what its generators are given: the
composition, elements and space group, or nothing. Pictures are judged by their papers' measures,
too: the variance of values that CrysTens repeats, and how many atoms there are in slices. Writes
docs/results/baselines.json; what was evaluated is kept in FOLDER/evaluations, so a run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import langevin_xtal as lx
from langevin_xtal.baselines.base import WEIGHTS, Generator, primitive_cells
from langevin_xtal.baselines.crystens import CrysTensDiffusion, CrysTensGan
from langevin_xtal.baselines.crystens_encoding import variances
from langevin_xtal.baselines.density_slices import (
    MOST_ATOMS,
    DensitySlices,
    atoms_counted,
    counts_apart,
    random_slice,
)
from langevin_xtal.baselines.predict import request_for, served
from langevin_xtal.baselines.registry import GENERATORS, load_generator
from langevin_xtal.cli import run
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.evaluation.targets import ALL_GROUPS, choose_targets
from langevin_xtal.version import __version__

TIMED = 16
PICTURES = 256
"""Drawn by each generator of pictures."""
MODEL = "small"
KEYS = (
    "attempted", "missing", "struct_valid", "comp_valid", "valid", "match_1", "rmse_1",
    "cov_recall", "cov_precision", "fd_crystalnn", "w_density", "w_min_distance",
    "w_max_distance", "p1_share", "kept_0.01", "kept_0.1", "unique", "novel", "formula_diversity",
)  # fmt: skip
MODES = {"composition": "composition", "elements": "sites", "nothing": "de-novo"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("docs/results/baselines.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    loaded = {
        name: load_generator(name, given.folder / name / WEIGHTS)
        for name in GENERATORS
        if (given.folder / name / WEIGHTS).exists()
    }
    result: dict[str, Any] = {
        "command": f"python scripts/baselines.py FOLDER --reference {given.reference.name} "
        f"--training {given.training.name} --n {given.n}",
        "version": __version__,
        "machine": "one thread of a CPU that was shared with other work",
        "generators": {},
        "columns": {},
    }
    for name, generator in loaded.items():
        facts = {
            "crystals": generator.card["crystals"],
            "epochs": generator.card["epochs"],
            "steps": generator.card["steps"],
            "parameters": sum(p.numel() for p in generator.network.parameters()),
            "hours": generator.card["seconds"] / 3600,
        }
        if isinstance(generator, CrysTensDiffusion | CrysTensGan):
            result.setdefault("variances", {})[name] = repeated(generator)
        if isinstance(generator, DensitySlices):
            seconds = timed(lambda made=generator: made.slices(TIMED, seed=1))
            result["generators"][name] = facts | {"seconds_per_structure": seconds}
            result["slices"] = sliced(given, generator)
            continue
        reference = compared(given, generator)
        seconds = timed(generator_sampling(generator, reference))
        result["generators"][name] = facts | {"seconds_per_structure": seconds}
        label = f"{name} ({generator.given})"
        source = ["--generator", name, "--weights", str(given.folder / name / WEIGHTS)]
        found = evaluated(given, name, generator.given, source, reference)
        result["columns"][label] = found[name]
        for control in ("training", "template-composition", "template", "random"):
            if control in found:
                result["columns"].setdefault(f"{control} ({generator.given})", found[control])
        own = f"{MODEL} ({generator.given})"
        if own not in result["columns"]:
            source = ["--model", MODEL]
            found = evaluated(
                given, f"{MODEL}-{generator.given}", generator.given, source, reference
            )
            result["columns"][own] = found[MODEL]
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    none = dict.fromkeys(("crystals", "epochs", "steps", "parameters", "hours"))
    result["generators"][MODEL] = {**none, "seconds_per_structure": timed(own_sampling)}
    given.out.write_text(json.dumps(result, indent=1) + "\n")


def compared(given: argparse.Namespace, generator: Generator) -> Path:
    """Packed crystals that the generator is compared on: some of those that it serves."""
    path: Path = given.folder / f"targets-{generator.given}-{given.n}.lxd"
    if not path.exists():
        data = served(generator, PackedDataset.load(given.reference))
        chosen = np.random.default_rng(0).permutation(len(data))[: given.n]
        data.select(np.sort(chosen)).save(path)
    return path


def evaluated(
    given: argparse.Namespace, name: str, what: str, source: list[str], reference: Path
) -> dict[str, dict[str, Any]]:
    """Summaries of all columns of one evaluation."""
    out = given.folder / "evaluations" / f"{name}-{given.n}"
    if not (out / "evaluation.json").exists():
        code = run([
            "evaluate", *source, "--mode", MODES[what], "--reference", str(reference),
            "--training", str(given.training), "--n", str(given.n), "--fingerprints",
            "crystalnn,magpie", "--workers", "1", "--out", str(out),
        ])  # fmt: skip
        assert code == 0, name
    columns = json.loads((out / "evaluation.json").read_text())["columns"]
    return {
        label: {key: column["summary"].get(key) for key in KEYS}
        for label, column in columns.items()
    }


def repeated(generator: CrysTensDiffusion | CrysTensGan) -> dict[str, float]:
    """Means of the variances of repeated values, in the units of the values."""
    found = []
    for first in range(0, PICTURES, TIMED):
        with torch.no_grad():
            found += [variances(p) for p in generator.pictures(2, range(first, first + TIMED))]
    kept = [asdict(one) for one in found if one is not None]
    return {"without_atoms": len(found) - len(kept)} | {
        key: float(np.mean([one[key] for one in kept])) for key in (kept[0] if kept else ())
    }


def sliced(given: argparse.Namespace, generator: DensitySlices) -> dict[str, dict[str, float]]:
    """Numbers of atoms in slices: generated ones and those of training crystals, each compared
    with those of the reference."""
    rng = np.random.default_rng(3)
    counts = {"generated": atoms_counted(generator.slices(PICTURES, seed=2))}
    for name, path in (("training", given.training), ("reference", given.reference)):
        cells, _ = primitive_cells(PackedDataset.load(path), MOST_ATOMS)
        chosen = rng.choice(len(cells), PICTURES)
        counts[name] = atoms_counted([random_slice(cells[k], rng) for k in chosen])
    found = {}
    for name in ("generated", "training"):
        statistic, p = counts_apart(counts[name], counts["reference"])
        found[name] = {"mean": float(counts[name].mean()), "statistic": statistic, "p": p}
    found["reference"] = {"mean": float(counts["reference"].mean())}
    return found


def generator_sampling(generator: Generator, reference: Path) -> Callable[[], Any]:
    """Samples of the first targets that the generator serves."""
    targets = choose_targets(PackedDataset.load(reference), TIMED, groups=ALL_GROUPS)
    requests = [request_for(generator, target) for target in targets]
    return lambda: generator.outcomes(requests, seed=1)


def own_sampling() -> None:
    """Samples of the package's model for formulas."""
    lx.sample([lx.Request(formula="SrTiO3", atoms=5)] * TIMED, model=MODEL, seed=1)


def timed(work: Callable[[], Any]) -> float:
    """Seconds of the CPU for each structure, the second time."""
    work()
    began = time.process_time()
    work()
    return (time.process_time() - began) / TIMED


if __name__ == "__main__":
    main()
