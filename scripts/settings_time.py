"""How long the settings of a composition take to rank, and twenty samples of one to make.

Of each of ``--crystals`` of the reference, drawn at random, the composition and the number of
atoms are given: seconds until the first sample's setting is known, and those of twenty. Then
``langevin-xtal sample --formula F --n 20`` for three formulas, start-up aside. Run it on a quiet
machine.

    python scripts/settings_time.py mp20_val.lxd --out docs/results/settings_time.json
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

import click
import numpy as np
import torch

import langevin_xtal as lx
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.evaluation.targets import choose_targets
from langevin_xtal.files import write_text
from langevin_xtal.sampling.spread import Spread

WARM = 20
"""Compositions before the clock runs."""
FORMULAS = ("TiO2", "SiO2", "ZnS")


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and largest."""
    return {
        "median": round(float(np.median(seconds)), 3),
        "p99": round(float(np.quantile(seconds, 0.99)), 3),
        "max": round(max(seconds), 3),
    }


@click.command(help=__doc__)
@click.argument("reference", type=click.Path(exists=True, path_type=Path))
@click.option("--crystals", default=300, show_default=True)
@click.option("--model", default="small", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("settings_time.json"))
def main(reference: Path, crystals: int, model: str, seed: int, out: Path) -> None:
    torch.set_num_threads(1)
    weights = lx.load_model(model)
    data = PackedDataset.load(reference)
    chosen = np.random.default_rng(seed).permutation(len(data))[: WARM + crystals]
    targets = choose_targets(data.select(np.sort(chosen)), None, groups=range(1, 231))
    first, twenty = [], []
    for target in np.random.default_rng(seed).permutation(np.array(targets, dtype=object)):
        request = target.request("composition")
        begin = time.perf_counter()
        spread = Spread(request, weights)
        spread[0]
        first.append(time.perf_counter() - begin)
        for place in range(20):
            spread[place]
        twenty.append(time.perf_counter() - begin)
    candidates = {}
    for formula in FORMULAS:
        begin = time.perf_counter()
        lx.sample([lx.Request(formula=formula)] * 20, weights, seed=seed)
        candidates[formula] = round(time.perf_counter() - begin, 2)
    result = {
        "command": f"python scripts/settings_time.py {reference.name} --crystals {crystals}",
        "version": lx.__version__,
        "weights": weights.hash,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread for the ranking",
        "first_setting_s": quantiles(first[WARM:]),
        "twenty_samples_settled_s": quantiles(twenty[WARM:]),
        "twenty_candidates_s": candidates,
    }
    write_text(out, json.dumps(result, indent=1) + "\n")
    click.echo(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
