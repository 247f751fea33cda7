"""Time sampling: seconds per structure, and the share of it spent building multigraphs.

    python scripts/bench_sampling.py --n 64 --workers 2

Requests are the reference set's crystals with fixed cell angles, so sizes and groups vary.
"""

import json
import statistics
import time

import click
import numpy as np

from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.graph import batch
from langevin_xtal.model.checkpoint import load_model
from langevin_xtal.sampling.sample import SampleOptions, sample
from langevin_xtal.sampling.samplers import make_sampler


def requests(count: int) -> list[Request]:
    """``count`` requests, the reference set over and over."""
    data = reference_dataset()
    found = []
    for k in np.flatnonzero(data.group >= 16):
        own = slice(data.site_start[k], data.site_start[k + 1])
        z, n = np.unique(data.numbers[own], return_counts=True)
        sites = {SYMBOLS[a]: int(b) for a, b in zip(z, n, strict=True)}
        found.append(Request(int(data.group[k]), sites))
    return [found[k % len(found)] for k in range(count)]


@click.command()
@click.option("--n", "count", default=64, show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--model", default="small", show_default=True)
@click.option("--sampler", default="ancestral", show_default=True)
@click.option("--levels", type=int)
@click.option("--steps", type=int)
@click.option("--repeats", default=3, show_default=True)
def main(
    count: int,
    workers: int,
    model: str,
    sampler: str,
    levels: int | None,
    steps: int | None,
    repeats: int,
) -> None:
    weights = load_model(model)
    engine = make_sampler(sampler, levels, steps)
    options = SampleOptions(workers=workers, attempts=1, sampler=engine)
    build, spent = batch.build_multigraph, [0.0]

    def timed(*args, **kwargs):
        start = time.perf_counter()
        graph = build(*args, **kwargs)
        spent[0] += time.perf_counter() - start
        return graph

    batch.build_multigraph = timed
    sample(requests(4), weights, options=options)
    seconds, shares = [], []
    for _ in range(repeats):
        spent[0], start = 0.0, time.perf_counter()
        sample(requests(count), weights, options=options)
        seconds.append((time.perf_counter() - start) / count)
        shares.append(spent[0] / (seconds[-1] * count * min(workers, count)))
    click.echo(
        json.dumps(
            {
                "structures": count,
                "workers": workers,
                "evaluations": engine.evaluations,
                "seconds_per_structure": round(statistics.median(seconds), 4),
                "share_building": round(statistics.median(shares), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
