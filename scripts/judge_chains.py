"""Several chains of a target, of which one is kept: the likeliest, or the one most agree with.

    python scripts/judge_chains.py mp20_val.lxd --targets 200 --chains 8 --out judged_chains.json

Targets are given with their Wyckoff positions. Every chain starts from uniform positions, or with
``--start proposal`` from a proposal drawn at temperature 0.7, refined from noise of 0.25 Å. The
proposal says how likely it would draw each crystal; that is what ``sample --chains`` goes by. For
the score network a crystal is noised at six levels, with the same noise for all chains of a target
(as long as no chain of its batch failed), and the squared errors of what the network makes of it,
summed over all free coordinates, bound its likelihood (variational bound of a diffusion model,
equal weights on a geometric schedule). With ``--agreement`` also the crystal that most others
match by the evaluation's StructureMatcher, of equals the nearest to them: the best guess there
is, if the chains are fair samples. With ``--mode formula`` each chain draws its Wyckoff positions
as well; likelihoods cannot be compared then, and are left out. Beside what each keeps: one chain,
and whether any chain finds the target.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

from langevin_xtal.config.evaluation import Mode
from langevin_xtal.config.sampling import Start
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.diffusion.losses import denoising_losses
from langevin_xtal.diffusion.noising import Crystals, NoisingConfig, noise_batch
from langevin_xtal.evaluation.cache import Cache
from langevin_xtal.evaluation.matching import match_pairs
from langevin_xtal.evaluation.targets import ALL_GROUPS, choose_targets
from langevin_xtal.graph.snapping import all_operations
from langevin_xtal.model.checkpoint import CrystalModel, load_model
from langevin_xtal.model.likelihood import log_likelihoods
from langevin_xtal.sampling.sample import SampleOptions, sample_batches
from langevin_xtal.symmetry.lattice import lattice_coordinates
from langevin_xtal.version import __version__

TAU = (0.2, 0.35, 0.5, 0.6, 0.75, 0.9)
"""Places on the noise schedule, 0 for the most noise."""
DRAWS = 4
BATCH = 32
OPTIONS: dict[Start, SampleOptions] = {
    "noise": SampleOptions(start="noise"),
    "proposal": SampleOptions.preset("accurate", proposal_temperature=0.7),
}
NOISING = NoisingConfig(clean_lattice=0.0, confined=1.0, decoupling=0.0)


def errors(model: CrystalModel, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    """(C,) sum of squared errors of the predicted noise; the noise depends on places alone."""
    sites = [len(c.numbers) for c in candidates]
    crystals = Crystals.of_groups(
        np.array([c.space_group.number for c in candidates]),
        sites,
        numbers=np.concatenate([c.numbers for c in candidates]),
        frac=np.concatenate([c.frac for c in candidates]),
        coordinates=np.stack([lattice_coordinates(c.lattice) for c in candidates]),
    )
    settings, found = model.network.config.graph_settings(), np.zeros(len(candidates))
    for place, tau in enumerate(TAU):
        sigma, sigma_lat = (
            float(level(torch.tensor(tau)))
            for level in (model.levels.position, model.levels.lattice)
        )
        levels = replace(
            model.levels, position_max=sigma, position_min=sigma,
            lattice_max=sigma_lat, lattice_min=sigma_lat,
        )  # fmt: skip
        for draw in range(DRAWS):
            generator = torch.Generator().manual_seed(DRAWS * place + draw)
            noised = noise_batch(crystals, levels, NOISING, settings, all_operations(), generator)
            with torch.no_grad():
                losses = denoising_losses(model.network, noised)
            found += losses.position.numpy() * 3 * np.array(sites)
            found += (losses.lattice * noised.lattice_used.sum(1)).numpy()
    return found


def likeness(
    made: Mapping[int, Candidate], chains: int, total: int, cache: Cache
) -> NDArray[np.float64]:
    """(C, C, T) of chains of a target: 0 where they do not match, up to 1 for the same crystal."""
    pairs = [
        (a, b, t)
        for t in range(total)
        for a, b in combinations(range(chains), 2)
        if a * total + t in made and b * total + t in made
    ]
    cells = [(made[a * total + t].cell, made[b * total + t].cell) for a, b, t in pairs]
    found = np.zeros((chains, chains, total))
    for (a, b, t), rms in zip(pairs, match_pairs(cells, cache=cache, workers=1), strict=True):
        if not np.isnan(rms):
            # every match counts, then how near it is
            found[a, b, t] = found[b, a, t] = 1.0 - 0.01 * rms
    for k in made:
        found[k // total, k // total, k % total] = 1.0
    return found


@click.command(help=__doc__)
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--model", default="small", show_default=True)
@click.option("--targets", "count", type=int, default=200, show_default=True)
@click.option("--chains", type=int, default=8, show_default=True)
@click.option("--start", type=click.Choice(["noise", "proposal"]), default="noise")
@click.option("--mode", type=click.Choice(["letters", "formula"]), default="letters")
@click.option("--agreement", is_flag=True, help="Compare chains with each other, which is slow.")
@click.option("--cache", type=click.Path(path_type=Path), help="Of comparisons.")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    data: Path,
    model: str,
    count: int,
    chains: int,
    start: Start,
    mode: Mode,
    agreement: bool,
    cache: Path | None,
    out: Path,
) -> None:
    torch.set_num_threads(1)
    weights = load_model(model)
    assert weights.precise_proposal is not None
    targets = choose_targets(PackedDataset.load(data), count, groups=ALL_GROUPS)
    requests = [target.request(mode) for target in targets]
    total = len(targets)
    made: dict[int, Candidate] = {}
    for outcome in sample_batches(requests * chains, weights, 0, options=OPTIONS[start]):
        made |= {c.index: c for c in outcome.candidates}
    compared = Cache(cache or out.parent / "judge-cache")
    apart = match_pairs(
        [(c.cell, targets[k % total].cell()) for k, c in made.items()], cache=compared, workers=1
    )
    right, error = np.zeros((chains, total), bool), np.full((chains, total), np.inf)
    likely = np.full((chains, total), -np.inf)
    for k, rms in zip(made, apart.tolist(), strict=True):
        right[divmod(k, total)] = not np.isnan(rms)
    alike = likeness(made, chains, total, compared) if agreement else None
    for chain in range(chains if mode == "letters" else 0):
        for first in range(0, total, BATCH):
            places = range(first, min(first + BATCH, total))
            kept = [t for t in places if chain * total + t in made]
            if kept:
                own = [made[chain * total + t] for t in kept]
                error[chain, kept] = errors(weights, own)
                likely[chain, kept] = log_likelihoods(
                    weights.precise_proposal, weights.statistics, [c.unit for c in own]
                )
    rows = []
    for n in (1, 2, 4, 8, 16, 32):
        if n > chains:
            break
        picked = {}
        if mode == "letters":
            picked = {"by_proposal": likely[:n].argmax(0), "by_network": error[:n].argmin(0)}
        if alike is not None:
            picked["by_agreement"] = alike[:n, :n].sum(1).argmax(0)
        shares = {how: float(right[own, np.arange(total)].mean()) for how, own in picked.items()}
        rows.append({"chains": n} | shares | {"any": float(right[:n].any(0).mean())})
    record = {
        "command": f"python scripts/judge_chains.py {data.name} --model {model} "
        f"--targets {count} --chains {chains} --start {start} --mode {mode} "
        f"{'--agreement ' if agreement else ''}--out {out.name}",
        "version": __version__,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "model": {"name": weights.name, "weights": weights.hash},
        "each_chain": right.mean(1).tolist(),
        "rows": rows,
    }
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(rows))


if __name__ == "__main__":
    main()
