"""How every metric answers to noise: held-out crystals against themselves with atoms displaced.

    python scripts/noise_study.py held_out.lxd --n 300 --out docs/pictures/noise.png

Prints the table; every metric must get worse, and none better, as the noise grows.
"""

from pathlib import Path

import click
import numpy as np
from matplotlib.figure import Figure

from langevin_xtal.config.evaluation import EvaluateOptions
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.evaluation.cache import default_folder
from langevin_xtal.evaluation.controls import perturbed
from langevin_xtal.evaluation.protocol import evaluate
from langevin_xtal.evaluation.report import SECTIONS
from langevin_xtal.evaluation.structures import StructureSet

SIGMAS = (0.0, 0.03, 0.1, 0.3, 1.0)
SHOWN = (
    "match_1", "rmse_1", "metre", "crmse", "cov_recall", "cov_precision", "fd_crystalnn",
    "fd_chgnet", "w_energy", "w_min_distance", "w_max_distance", "js_groups", "kept_0.1",
    "struct_valid", "p1_share", "w_lengths",
)  # fmt: skip


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--n", "count", default=300, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="noise.png", show_default=True)
def main(data: Path, count: int, seed: int, cache: Path | None, out: Path) -> None:
    held_out = PackedDataset.load(data)
    pool = np.flatnonzero(held_out.group >= 16)
    chosen = held_out.select(np.random.default_rng(seed).permutation(pool)[:count])
    truth = StructureSet.from_packed(chosen, "0 Å")
    sets = [perturbed(truth, s, seed, label=f"{s:g} Å") if s else truth for s in SIGMAS]
    options = EvaluateOptions(cache=cache or default_folder())
    report = evaluate(sets, chosen, options=options)
    click.echo(report.table())
    titles = {m.key: m.title for _, metrics in SECTIONS for m in metrics}
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    for axis, key in zip(figure.subplots(4, 4).ravel(), SHOWN, strict=True):
        values = [np.nan if (v := c.summary.get(key)) is None else v for c in report.columns]
        axis.plot(range(len(SIGMAS)), values, "o-")
        axis.set_xticks(range(len(SIGMAS)), [f"{s:g}" for s in SIGMAS])
        axis.set_title(titles[key], fontsize=9)
    figure.supxlabel("displacement of every atom, standard deviation per axis [Å]")
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main()
