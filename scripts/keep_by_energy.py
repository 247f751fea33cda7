r"""What is gained where a potential chooses among the first samples of a target.

    python scripts/keep_by_energy.py mp20_val.lxd --mode formula --mode composition \
        --temperature 0.05 --out kept_by_energy.json

Samples go over settings as those of ``sample`` do, the likeliest first. The energies are those of
the samples as they stand, nothing is relaxed. Kept is, of the first few samples, that of the
lowest energy per atom, or that of the lowest E − T log p, p being the probability of its space
group, cell content and Wyckoff positions as far as these were the model's choice. Beside what each
keeps: the first sample, and whether any of them finds the target.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click
import numpy as np
import torch

from langevin_xtal.config.evaluation import Mode
from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.evaluation.cache import Cache
from langevin_xtal.evaluation.matching import match_pairs
from langevin_xtal.evaluation.targets import ALL_GROUPS, Target, choose_targets
from langevin_xtal.model.checkpoint import CrystalModel, load_model
from langevin_xtal.sampling.sample import SampleOptions, sample_batches
from langevin_xtal.sampling.spread import Spread, SpreadOptions
from langevin_xtal.screen.energies import point_energies
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.version import __version__


def concrete(asked: Request, model: CrystalModel, samples: int) -> list[Request]:
    """Requests of the samples of a target; known crystals of its composition count as others."""
    if not asked.leaves_choice:
        return [asked] * samples
    spread = Spread(asked, model, SpreadOptions(known_share=0.0))
    return [spread[k] for k in range(samples)]


def rates(
    targets: Sequence[Target],
    mode: Mode,
    model: CrystalModel,
    samples: int,
    proposal_temperature: float,
    potential: str,
    temperatures: Sequence[float],
    cache: Cache,
) -> list[dict[str, float]]:
    """Match rates of what is kept, of ever more samples."""
    count = len(targets)
    asked = [concrete(target.request(mode), model, samples) for target in targets]
    requests = [own[k] for k in range(samples) for own in asked]
    options = SampleOptions.preset("accurate", proposal_temperature=proposal_temperature)
    made: dict[int, Candidate] = {}
    for outcome in sample_batches(requests, model, 0, options=options):
        made |= {c.index: c for c in outcome.candidates}
    there, right = np.zeros((2, samples, count), bool)
    apart = match_pairs(
        [(c.cell, targets[k % count].cell()) for k, c in made.items()], cache=cache, workers=1
    )
    for k, rms in zip(made, apart.tolist(), strict=True):
        there[divmod(k, count)], right[divmod(k, count)] = True, not np.isnan(rms)
    energy, log_p = np.full((samples, count), np.inf), np.zeros((samples, count))
    relaxing = RelaxOptions(potential=potential)
    found = point_energies([c.cell for c in made.values()], relaxing, workers=1)
    for k, point in zip(made, found, strict=True):
        energy[divmod(k, count)] = np.nan_to_num(point.energy, nan=np.inf)
    for k, request in enumerate(requests):
        if request.choice is not None:
            log_p[divmod(k, count)] = np.log(request.choice.probability)
    rows, every = [], np.arange(count)
    for n in (1, 2, 4, 8, 16):
        if n > samples:
            break
        row: dict[str, float] = {"samples": n, "first": float(right[0].mean())}
        for name, t in [("lowest", 0.0), *((f"{t:g}", t) for t in temperatures)]:
            score = np.where(there, energy - t * log_p, np.inf)[:n]
            row[name] = float(right[score.argmin(0), every].mean())
        rows.append(row | {"any": float(right[:n].any(0).mean())})
    return rows


@click.command(help=__doc__)
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--model", default="small", show_default=True)
@click.option(
    "--mode", "modes", type=click.Choice(list(get_args(Mode))), multiple=True, default=["formula"]
)
@click.option("--skip", default=0, help="Targets before those that are taken.")
@click.option("--targets", "count", default=1000, show_default=True)
@click.option("--samples", default=8, show_default=True)
@click.option("--proposal-temperature", default=0.7, show_default=True)
@click.option("--potential", default="chgnet", show_default=True)
@click.option("--temperature", multiple=True, type=float, help="T [eV/atom]; repeatable.")
@click.option("--cache", type=click.Path(path_type=Path), help="Of comparisons.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    data: Path,
    model: str,
    modes: tuple[Mode, ...],
    skip: int,
    count: int,
    samples: int,
    proposal_temperature: float,
    potential: str,
    temperature: tuple[float, ...],
    cache: Path | None,
    out: Path,
) -> None:
    torch.set_num_threads(1)
    weights = load_model(model)
    targets = choose_targets(PackedDataset.load(data), skip + count, groups=ALL_GROUPS)[skip:]
    compared = Cache(cache or out.parent / "judge-cache")
    said = "".join(f"--mode {mode} " for mode in modes)
    said += f"--skip {skip} --targets {count} --samples {samples} "
    said += "".join(f"--temperature {t:g} " for t in temperature)
    record: dict[str, object] = {
        "command": f"python scripts/keep_by_energy.py {data.name} --model {model} {said}"
        f"--proposal-temperature {proposal_temperature:g} --potential {potential} "
        f"--out {out.name}",
        "version": __version__,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "model": {"name": weights.name, "weights": weights.hash},
        "potential": load_potential(potential).version,
    }
    for mode in modes:
        rows = rates(
            targets, mode, weights, samples, proposal_temperature, potential, temperature, compared
        )
        record[mode] = rows
        click.echo(f"{mode}: {json.dumps(rows)}")
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
