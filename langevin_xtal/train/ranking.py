"""Fitting the ranking of Wyckoff assignments to a packed dataset."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langevin_xtal.config.training import EpochsConfig
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import CheckpointError
from langevin_xtal.model.checkpoint import config_from_dict
from langevin_xtal.model.memory import Encoded, encode, mendeleev_order, remember
from langevin_xtal.model.ranking import (
    AssignmentRanker,
    RankerConfig,
    collate,
)
from langevin_xtal.model.tensor_file import read_tensors, write_tensors
from langevin_xtal.parallel import parallel_map
from langevin_xtal.symmetry.assignments import Assignment, assignments, canonical_all
from langevin_xtal.symmetry.wyckoff import table_start
from langevin_xtal.train.epochs import EpochConfig, EpochFit, starting_point
from langevin_xtal.train.prior import site_positions, substitution

RANKER_FORMAT = "langevin-xtal ranker 1"

POOL = 16  # batches of requests with similar numbers of assignments
TOGETHER = 64  # requests whose losses are taken in one go
ENUMERATED = 2_000  # assignments of a request to learn from
SAMPLED = 160  # of them, a random choice of this size stands for all


@dataclass(frozen=True)
class Labelled:
    """A crystal as a request and the assignment it has."""

    number: int
    elements: tuple[int, ...]  #: atomic numbers, in the order of Mendeleev numbers
    counts: tuple[int, ...]  #: atoms of each in the conventional cell
    assignment: Assignment  #: canonical


def labelled(data: PackedDataset) -> list[Labelled]:
    """The request and the canonical assignment of every crystal."""
    rows = site_positions(data)
    local = rows - np.repeat(table_start()[data.group - 1], data.site_counts)
    crystals: list[Labelled] = []
    for k in range(len(data)):
        sites = data.sites_of(k)
        numbers, multiplicity = data.numbers[sites], data.multiplicity[sites]
        found = np.unique(numbers).tolist()
        elements = tuple(found[i] for i in mendeleev_order(found))
        counts = tuple(int(multiplicity[numbers == e].sum()) for e in elements)
        placed = tuple(tuple(sorted(local[sites][numbers == e].tolist())) for e in elements)
        crystals.append(Labelled(int(data.group[k]), elements, counts, placed))
    by_group: dict[int, list[int]] = {}
    for k, crystal in enumerate(crystals):
        by_group.setdefault(crystal.number, []).append(k)
    for number, members in by_group.items():
        names = canonical_all(number, [crystals[k].assignment for k in members])
        for k, name in zip(members, names, strict=True):
            crystals[k] = dataclasses.replace(crystals[k], assignment=name)
    return crystals


@dataclass(frozen=True)
class _Example:
    """A crystal among the assignments it could have had."""

    encoded: Encoded
    true: int  #: which of them it has
    stands_for: float  #: assignments that each of the others stands for
    row: int  #: of the crystal in the memory


@dataclass(frozen=True, kw_only=True)
class RankerFitConfig(EpochConfig):
    """Settings of the fit of the ranker."""

    epochs: int = EpochsConfig.ranker
    held_out: float = 0.05
    """Share of the crystals that decides which epoch is kept."""


class RankerFit(EpochFit[NDArray[np.int64]]):
    """Fit of the ranking of assignments, see :func:`fit_ranker`."""

    config: RankerFitConfig
    losses = ("held_out",)
    keeps_best = True

    def __init__(
        self,
        data: PackedDataset,
        config: RankerFitConfig,
        *,
        network: RankerConfig | None = None,
        init: AssignmentRanker | None = None,
        workers: int | None = 1,
        out: Path | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        rng = np.random.default_rng(config.seed)
        # where a group has one position there is nothing to rank, and nothing to remember
        choice = np.diff(table_start()) > 1
        crystals = [c for c in labelled(data) if choice[c.number - 1]]
        memory, rows = remember([(c.number, c.elements, c.assignment) for c in crystals])
        self.ranker = AssignmentRanker(network if init is None else init.config, memory)
        if init is not None:
            self.ranker.load_state_dict(init.state_dict())
        self.examples = _examples(self.ranker, crystals, rows, config.seed, workers)
        order = rng.permutation(len(self.examples))
        self.held_out = order[: int(config.held_out * len(order))]
        self.holds_out = bool(len(self.held_out))
        rest = order[len(self.held_out) :]
        several = [k for k in rest if len(self.examples[k].encoded.units) > 1]
        self.chosen = np.array(several, dtype=np.int64)
        size = config.batch_size
        most = len(several) // size + len(several) // (size * POOL) + 2
        super().__init__(
            self.ranker,
            config,
            data.content_hash,
            out,
            rate=config.peak(init is not None),
            total_steps=config.epochs * most + 1,
            rng=rng,
            facts=starting_point(self.ranker, init),
        )
        self.begin()

    def _draw(self) -> list[NDArray[np.int64]]:
        assert self.rng is not None
        return list(_batches(self.chosen, self.examples, self.rng, self.config.batch_size))

    def _loss(self, batch: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        some = [self.examples[k] for k in batch]
        loss = _loss(self.ranker, some, self.config.dropout, substitution()).mean()
        return loss, loss.detach()

    def _epoch_losses(self) -> tuple[float, ...]:
        return (_mean_loss(self.ranker, [self.examples[k] for k in self.held_out]),)


def fit_ranker(
    data: PackedDataset,
    *,
    seed: int = 0,
    epochs: int = RankerFitConfig.epochs,
    config: RankerConfig | None = None,
    init: AssignmentRanker | None = None,
    workers: int | None = 1,
    on_epoch: Callable[[int, float], None] | None = None,
    out: Path | None = None,
    until: float = math.inf,
) -> AssignmentRanker:
    """Maximum likelihood of the true assignments among all those of their requests.

    Of requests with many assignments the true one and a random choice of others are looked at,
    weighted as a sample. No crystal sees itself in the memory. One in twenty is held out, and the
    epoch that explains these best is kept.

    Parameters
    ----------
    init
        A ranker whose weights are where the fit starts, in place of random ones; what it
        remembers is not taken over.
    workers
        Processes that enumerate assignments; training itself is one process.
    on_epoch
        Called with the number of epochs done and the mean negative log-likelihood of the
        crystals held out.
    out, until
        As for :func:`~langevin_xtal.train.prior.fit_prior`.
    """
    chosen = RankerFitConfig(epochs=epochs, seed=seed)
    fit = RankerFit(data, chosen, network=config, init=init, workers=workers, out=out)
    fit.finish(on_epoch, until)
    return fit.ranker


def save_ranker(path: Path, ranker: AssignmentRanker) -> None:
    """Write a ranker to a file of its own.

    Raises
    ------
    CheckpointError
        When the folder is missing or the disk refuses.
    """
    header = {"format": RANKER_FORMAT, "ranker": dataclasses.asdict(ranker.config)}
    write_tensors(path, ranker.to_tensors(), header)


def load_ranker(path: Path) -> AssignmentRanker:
    """Read a ranker written by :func:`save_ranker`.

    Raises
    ------
    CheckpointError
        When the file is missing, damaged, foreign or does not fit its own configuration.
    """
    tensors, header = read_tensors(path, RANKER_FORMAT)
    where = f"checkpoint {path}"
    config = config_from_dict(RankerConfig, header.get("ranker"), where)
    try:
        return AssignmentRanker.from_tensors(config, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _examples(
    ranker: AssignmentRanker,
    crystals: Sequence[Labelled],
    rows: Sequence[int],
    seed: int,
    workers: int | None,
) -> list[_Example]:
    requests = sorted({(c.number, c.counts) for c in crystals})
    choose = partial(_choice, seed=seed)
    found = dict(
        zip(requests, parallel_map(choose, requests, workers=workers, chunk=32), strict=True)
    )
    examples = []
    for crystal, row in zip(crystals, rows, strict=True):
        sampled, of = found[crystal.number, crystal.counts]
        mine = list(dict.fromkeys([crystal.assignment, *sampled]))
        encoded = encode(ranker.memory, crystal.number, crystal.elements, crystal.counts, mine)
        stands_for = max(1.0, (of - 1) / max(1, len(mine) - 1))
        examples.append(_Example(encoded, 0, stands_for, row))
    return examples


def _choice(request: tuple[int, tuple[int, ...]], seed: int) -> tuple[list[Assignment], int]:
    """Some assignments of a request, and the number they stand for."""
    number, counts = request
    found = list(assignments(number, counts, limit=ENUMERATED))
    if len(found) <= SAMPLED:
        return found, len(found)
    rng = np.random.default_rng([seed, number, *counts])
    picked = np.sort(rng.choice(len(found), SAMPLED, replace=False))
    return [found[k] for k in picked], len(found)


def _loss(
    ranker: AssignmentRanker,
    examples: Sequence[_Example],
    dropout: float = 0.0,
    shown: Tensor | None = None,
) -> Tensor:
    """(B,) negative log-likelihood of the true assignments."""
    batch = collate([example.encoded for example in examples])
    if shown is not None:
        batch = batch._replace(element=shown[batch.element], match_roles=shown[batch.match_roles])
    own = torch.tensor([example.row for example in examples])
    scores = ranker.scores(batch, dropout=dropout, without=own)
    sizes = np.array([len(example.encoded.units) for example in examples])
    start = np.cumsum(sizes) - sizes
    true = torch.from_numpy(start + np.array([example.true for example in examples]))
    weight = torch.tensor([example.stands_for for example in examples]).log()[batch.request]
    weight[true] = 0.0
    return _log_sums(scores + weight, batch.request, len(examples)) - scores[true]


def _log_sums(scores: Tensor, of: Tensor, count: int) -> Tensor:
    """(count,) log of the sum of exponentials over each group of scores."""
    most = torch.full((count,), -torch.inf).scatter_reduce(0, of, scores.detach(), "amax")
    return torch.zeros(count).index_add(0, of, (scores - most[of]).exp()).log() + most


def _mean_loss(ranker: AssignmentRanker, examples: Sequence[_Example]) -> float:
    if not examples:
        return float("nan")
    with torch.inference_mode():
        parts = [
            _loss(ranker, examples[k : k + TOGETHER]) for k in range(0, len(examples), TOGETHER)
        ]
    return float(torch.cat(parts).mean())


def _batches(
    chosen: NDArray[np.int64],
    examples: Sequence[_Example],
    rng: np.random.Generator,
    count: int,
) -> Iterator[NDArray[np.int64]]:
    """Random batches of requests with similar numbers of assignments."""
    size = np.array([len(examples[k].encoded.units) for k in chosen], dtype=np.int64)
    order = rng.permutation(len(chosen))
    parts: list[NDArray[np.int64]] = []
    for start in range(0, len(order), count * POOL):
        pool = order[start : start + count * POOL]
        pool = pool[np.argsort(size[pool], kind="stable")]
        parts += [chosen[pool[k : k + count]] for k in range(0, len(pool), count)]
    return (parts[k] for k in rng.permutation(len(parts)))
