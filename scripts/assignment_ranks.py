"""How often the true assignment of Wyckoff positions is ranked first, among the first 5 and 20.

    python scripts/assignment_ranks.py fit mp20_train.lxd ranker.safetensors
    python scripts/assignment_ranks.py measure mp20_val.lxd ranker.safetensors \\
        --train mp20_train.lxd --prior small
    python scripts/assignment_ranks.py shipped mp20_val.lxd --model small

The first command fits a ranker (about five minutes on one core). The second asks for every crystal
with its group, elements and numbers of atoms in the conventional cell, and ranks all assignments
that exist, up to the limit of the enumeration and with those of remembered crystals; one that a
limit cut off counts as never found. Beside the ranker stand the order of enumeration, how often
the group's training crystals use such multiplicities, and (``--prior``, on every tenth crystal:
it is slow) the prior over the positions of given sites that a model holds. Ties count against the
method. Also shown: how long the enumeration takes.

The third command ranks with a model's ranker and prior as sampling does, with its limits, and
compares weights of the prior, with and without the memory; on the even and on the odd crystals,
so that a weight chosen on one half is judged on the other.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.model.beam import likely_assignments
from langevin_xtal.model.checkpoint import load_model
from langevin_xtal.model.memory import Memory, remember
from langevin_xtal.model.prior import WyckoffPrior
from langevin_xtal.model.ranking import (
    RESCORED,
    AssignmentRanker,
    shared_anew,
)
from langevin_xtal.sampling.positions import MOST_ASSIGNMENTS
from langevin_xtal.symmetry.assignments import Assignment, assignments, count_assignments
from langevin_xtal.symmetry.groups import CRYSTAL_SYSTEMS
from langevin_xtal.symmetry.normaliser import position_permutations
from langevin_xtal.symmetry.wyckoff import table_start, wyckoff_positions
from langevin_xtal.train.ranking import Labelled, fit_ranker, labelled, load_ranker, save_ranker

NEVER = 10**9
FREEDOMS = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (6, 8), (9, 999))
WEIGHTS = (0.0, 0.2, 0.3, 0.4)
WEIGHTS_ALONE = (0.0, 1.0)
PRIOR_EVERY = 10
PRIOR_CANDIDATES = 300  # the prior scores at most these, the first in order, and the true one

Score = Callable[[Labelled, Sequence[Assignment]], NDArray[np.float64]]


@click.group()
def main() -> None:
    torch.set_num_threads(1)


@main.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--epochs", default=6, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=1, show_default=True)
def fit(data: Path, out: Path, epochs: int, seed: int, workers: int) -> None:
    def report(epoch: int, loss: float) -> None:
        click.echo(f"epoch {epoch}: {loss:.4f} nats a crystal held out")

    crystals = PackedDataset.load(data)
    ranker = fit_ranker(crystals, seed=seed, epochs=epochs, workers=workers, on_epoch=report)
    save_ranker(out, ranker)
    click.echo(f"{out}: {out.stat().st_size / 2**20:.2f} MiB")


@main.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.argument("weights", type=click.Path(path_type=Path, exists=True))
@click.option("--train", type=click.Path(path_type=Path, exists=True))
@click.option("--prior", "model", help="Name or path of a model with a prior.")
@click.option("--every", default=1, show_default=True, help="Only every n-th crystal.")
def measure(data: Path, weights: Path, train: Path | None, model: str | None, every: int) -> None:
    ranker = load_ranker(weights)
    crystals = labelled(PackedDataset.load(data))[::every]
    for number in sorted({c.number for c in crystals}):
        position_permutations(number)  # made once, and not part of the time taken

    def by_ranker(c: Labelled, found: Sequence[Assignment]) -> NDArray[np.float64]:
        return ranker.log_probabilities(c.number, c.elements, c.counts, found)

    methods: dict[str, Score] = {"ranker": by_ranker, "order of enumeration": _by_order}
    if train is not None:
        methods["counts by multiplicities"] = _by_counts(labelled(PackedDataset.load(train)))
    prior = load_model(model).prior if model else None
    if prior is not None:
        methods["prior"] = _by_prior(prior)
    ranks: dict[str, list[int]] = {name: [] for name in methods}
    seconds, sizes, cut, missing, remembered = [], [], 0, 0, 0
    for k, crystal in enumerate(tqdm(crystals, desc="ranking", unit=" crystals", disable=None)):
        start = time.process_time()
        enumerated = assignments(crystal.number, crystal.counts)
        in_order = list(enumerated)
        seconds.append(time.process_time() - start)
        sizes.append(count_assignments(crystal.number, crystal.counts))
        cut += not enumerated.complete
        found, _ = ranker.candidates(crystal.number, crystal.elements, crystal.counts)
        missing += crystal.assignment not in set(in_order)
        remembered += crystal.assignment not in set(in_order) and crystal.assignment in set(found)
        for name, score in methods.items():
            if name == "prior" and k % PRIOR_EVERY:
                continue
            mine = found if name == "ranker" else in_order
            if name == "prior":
                mine = list(dict.fromkeys([crystal.assignment, *in_order[:PRIOR_CANDIDATES]]))
            ranks[name].append(_rank(crystal, mine, score))
    _report(crystals, ranks)
    ms, size = np.array(seconds) * 1e3, np.array(sizes)
    click.echo(
        f"\nenumeration: median {np.median(ms):.2f} ms, 99 % within {np.percentile(ms, 99):.0f} "
        f"ms, at most {ms.max():.0f} ms\nassignments: median {np.median(size):.0f}, one only for "
        f"{(size == 1).mean():.1%}, at most {size.max()}; a limit cut off {cut}, the true one in "
        f"{missing} of them, {remembered} of which the memory gives back"
    )


@main.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--model", default="small", show_default=True, help="Name or path.")
@click.option("--every", default=1, show_default=True, help="Only every n-th crystal.")
def shipped(data: Path, model: str, every: int) -> None:
    loaded = load_model(model)
    ranker, prior = loaded.ranker, loaded.prior
    if ranker is None or prior is None:
        raise click.ClickException(f"model {model} has no ranker, or no prior")
    crystals = labelled(PackedDataset.load(data))[::every]
    rankers = {
        "memory": (_remembering(ranker, ranker.memory), WEIGHTS),
        "no memory": (_remembering(ranker, remember([])[0]), WEIGHTS_ALONE),
    }
    ranks: dict[str, list[int]] = {
        f"{name}, weight {weight}": []
        for name, (_, weights) in rankers.items()
        for weight in weights
    }
    log_p: dict[str, list[float]] = {name: [] for name in ranks}
    found_by = {"enumeration": 0, "and the memory": 0, "and the beam": 0}
    seconds = []
    for crystal in tqdm(crystals, desc="ranking", unit=" crystals", disable=None):
        asked = crystal.number, crystal.elements, crystal.counts
        found, complete = ranker.candidates(*asked, limit=MOST_ASSIGNMENTS)
        in_order = remembered = set(found)
        if not complete:
            in_order = set(assignments(crystal.number, crystal.counts, limit=MOST_ASSIGNMENTS))
            start = time.process_time()
            found = list(dict.fromkeys([*found, *likely_assignments(prior, *asked)]))
            seconds.append(time.process_time() - start)
        for way, known in zip(found_by, (in_order, remembered, set(found)), strict=True):
            found_by[way] += crystal.assignment in known
        for name, (other, weights) in rankers.items():
            values = other.log_probabilities(*asked, found)
            best = np.argsort(-values, kind="stable")[:RESCORED]
            by_prior = prior.of_assignments(*asked[:2], [found[k] for k in best])
            for weight in weights:
                now = values.copy()
                now[best] = shared_anew(values[best], by_prior, weight)
                key = f"{name}, weight {weight}"
                if crystal.assignment not in found:
                    ranks[key].append(NEVER)
                    continue
                true = now[found.index(crystal.assignment)]
                ranks[key].append(int((now >= true).sum()) - 1)
                log_p[key].append(float(true))
    click.echo(
        f"{len(crystals)} crystals, {len(seconds)} of them cut off; true assignment among those "
        + ", ".join(f"{name} {n}" for name, n in found_by.items())
        + f"; seconds of the beam: median {np.median(seconds):.2f}, at most {max(seconds):.2f}"
    )
    for half, part in (
        ("even", slice(0, None, 2)),
        ("odd", slice(1, None, 2)),
        ("all", slice(0, None)),
    ):
        click.echo(f"\n{half:28s}{'first':>9s}{'top 5':>9s}{'top 20':>9s}")
        for name, values in ranks.items():
            mine = np.array(values)[part]
            shares = "".join(f"{(mine < k).mean():9.4f}" for k in (1, 5, 20))
            click.echo(f"{name:28s}{shares}")
    for name, values_of in log_p.items():
        click.echo(f"{name:28s}{np.mean(values_of):9.4f} log-likelihood where it is found")


def _remembering(ranker: AssignmentRanker, memory: Memory) -> AssignmentRanker:
    """A ranker with another memory."""
    other = AssignmentRanker(ranker.config, memory)
    other.load_state_dict(ranker.state_dict())
    return other.eval().requires_grad_(False)


def _rank(crystal: Labelled, found: Sequence[Assignment], score: Score) -> int:
    if crystal.assignment not in set(found):
        return NEVER
    values = score(crystal, found)
    return int((values >= values[found.index(crystal.assignment)]).sum()) - 1


def _by_order(crystal: Labelled, found: Sequence[Assignment]) -> NDArray[np.float64]:
    return -np.arange(len(found), dtype=float)


def _by_counts(crystals: Sequence[Labelled]) -> Score:
    """Training crystals of the group whose elements have such multiplicities; then the order."""

    def key(number: int, assignment: Assignment) -> tuple[object, ...]:
        size = [w.multiplicity for w in wyckoff_positions(number)]
        return number, tuple(sorted(tuple(sorted(size[w] for w in e)) for e in assignment))

    seen = Counter(key(c.number, c.assignment) for c in crystals)

    def score(crystal: Labelled, found: Sequence[Assignment]) -> NDArray[np.float64]:
        counts = np.array([seen[key(crystal.number, a)] for a in found], dtype=float)
        return counts - np.arange(len(found)) / (len(found) + 1)

    return score


def _by_prior(prior: WyckoffPrior) -> Score:
    """The likeliest of an assignment's permutations, and its sites from special to general."""

    def score(crystal: Labelled, found: Sequence[Assignment]) -> NDArray[np.float64]:
        first, best = int(table_start()[crystal.number - 1]), None
        for names in position_permutations(crystal.number).tolist():
            turned = [[sorted(names[w] for w in e) for e in a] for a in found]
            values = np.concatenate(
                [_likelihood(prior, crystal, turned[k : k + 256], first)
                 for k in range(0, len(turned), 256)]
            )  # fmt: skip
            best = values if best is None else np.maximum(best, values)
        assert best is not None
        return best

    return score


def _likelihood(
    prior: WyckoffPrior, crystal: Labelled, found: Sequence[Sequence[Sequence[int]]], first: int
) -> NDArray[np.float64]:
    sites = max(sum(map(len, a)) for a in found)
    numbers = np.zeros((len(found), sites), dtype=np.int64)
    chosen = np.full((len(found), sites), first, dtype=np.int64)
    for n, assignment in enumerate(found):
        placed = [(z, w) for z, e in zip(crystal.elements, assignment, strict=True) for w in e]
        numbers[n, : len(placed)] = [z for z, _ in placed]
        chosen[n, : len(placed)] = [first + w for _, w in placed]
    group = torch.full((len(found),), crystal.number)
    with torch.inference_mode():
        log_p = prior.log_likelihood(group, torch.from_numpy(numbers), torch.from_numpy(chosen))
    return log_p.double().numpy()


def _report(crystals: Sequence[Labelled], ranks: dict[str, list[int]]) -> None:
    freedom = np.array(
        [
            sum(wyckoff_positions(c.number)[w].freedom for e in c.assignment for w in e)
            for c in crystals
        ]
    )
    group = np.array([c.number for c in crystals])
    rows = {"all": np.ones(len(crystals), dtype=bool)}
    for low, high in FREEDOMS:
        name = f"{low}" if low == high else f"{low}-{high}" if high < 999 else f"{low}+"
        rows[f"{name} free coordinates"] = (freedom >= low) & (freedom <= high)
    for system, low, high in CRYSTAL_SYSTEMS:
        rows[system] = (group >= low) & (group <= high)
    for method, values in ranks.items():
        found = np.array(values)
        step = -(-len(crystals) // len(found))
        click.echo(f"\n{method:24s}{'crystals':>10s}{'first':>9s}{'top 5':>9s}{'top 20':>9s}")
        for name, mask in rows.items():
            mine = found[mask[::step]]
            if len(mine):
                shares = "".join(f"{(mine < k).mean():9.3f}" for k in (1, 5, 20))
                click.echo(f"{name:24s}{len(mine):10d}{shares}")


if __name__ == "__main__":
    main()
