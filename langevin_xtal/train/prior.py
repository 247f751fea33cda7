"""Fitting the prior over Wyckoff positions to a packed dataset."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langevin_xtal.config.training import EpochsConfig
from langevin_xtal.crystal.elements import period_and_group
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.model.network import ELEMENTS
from langevin_xtal.model.prior import PriorConfig, WyckoffPrior, element_rank
from langevin_xtal.symmetry.wyckoff import locate, origin_shifts, table_start
from langevin_xtal.train.epochs import EpochConfig, EpochFit, starting_point

POOL = 32  # batches sorted by size together
SUBSTITUTED = 0.15  # share of the elements that may be shown as a similar one in a batch


def site_positions(data: PackedDataset) -> NDArray[np.int64]:
    """(A,) row in the table of Wyckoff positions of every site.

    A group's letters name its positions one to one, so each letter is located once.
    """
    crystal = np.repeat(np.arange(len(data)), np.diff(data.site_start))
    group = data.group[crystal]
    rows: dict[tuple[int, str], int] = {}
    for site, key in enumerate(zip(group.tolist(), data.wyckoff.tolist(), strict=True)):
        if key not in rows:
            number = key[0]
            position = locate(number, data.frac[site], data.lattice[crystal[site]])
            rows[key] = int(table_start()[number - 1]) + position.index
    return np.array(
        [rows[k] for k in zip(group.tolist(), data.wyckoff.tolist(), strict=True)], dtype=np.int64
    )


def assignment_table(data: PackedDataset) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) groups, (B, S) atomic numbers and (B, S) position rows, in canonical order.

    Of the origins that keep a crystal's group, the one with the smallest rows is taken: the choice
    between them is arbitrary, and made the same way for crystals that are alike.
    """
    rows = site_positions(data)
    sites = np.diff(data.site_start)
    numbers = np.zeros((len(data), int(sites.max())), dtype=np.int64)
    chosen = np.tile(table_start()[data.group - 1][:, None], (1, numbers.shape[1]))
    rank = element_rank()[data.numbers]
    for b, (start, stop) in enumerate(zip(data.site_start[:-1], data.site_start[1:], strict=True)):
        order = np.lexsort((rows[start:stop], rank[start:stop]))
        numbers[b, : stop - start] = data.numbers[start:stop][order]
        chosen[b, : stop - start] = rows[start:stop][order]
    read = torch.from_numpy(data.group.copy()), torch.from_numpy(numbers)
    return *read, _smallest(*read, torch.from_numpy(chosen))


@dataclass(frozen=True, kw_only=True)
class PriorFitConfig(EpochConfig):
    """Settings of the fit of the prior."""

    epochs: int = EpochsConfig.prior


class PriorFit(EpochFit[Tensor]):
    """Fit of the prior over Wyckoff positions, see :func:`fit_prior`."""

    config: PriorFitConfig

    def __init__(
        self,
        data: PackedDataset,
        config: PriorFitConfig,
        *,
        network: PriorConfig | None = None,
        init: WyckoffPrior | None = None,
        out: Path | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        if init is None:
            self.prior = WyckoffPrior(network)
        else:
            self.prior = copy.deepcopy(init).requires_grad_(True)
        self.crystals = len(data)
        self.group, self.numbers, self.chosen = assignment_table(data)
        self.sites = (self.numbers > 0).sum(1)
        # where a group has one position there is nothing to learn
        choice = np.diff(table_start())[data.group - 1] > 1
        self.open_to_choice = torch.from_numpy(np.flatnonzero(choice))
        steps = max(1, -(-len(self.open_to_choice) // config.batch_size)) * config.epochs
        super().__init__(
            self.prior,
            config,
            data.content_hash,
            out,
            rate=config.peak(init is not None),
            total_steps=steps + 1,
            facts=starting_point(self.prior, init),
        )
        self.begin()

    def _draw(self) -> list[Tensor]:
        return list(batches(self.open_to_choice, self.sites, self.config.batch_size))

    def _loss(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        longest = int(self.sites[batch].max())
        asked = self.group[batch], self.numbers[batch, :longest], self.chosen[batch, :longest]
        loss = -self.prior.log_likelihood(*asked, self.config.dropout, substitution()).mean()
        return loss, loss.detach() * len(batch)

    def _epoch_losses(self) -> tuple[float, ...]:
        return (float(self._sums[0]) / self.crystals,)


def fit_prior(
    data: PackedDataset,
    *,
    epochs: int = PriorFitConfig.epochs,
    seed: int = 0,
    config: PriorConfig | None = None,
    init: WyckoffPrior | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    out: Path | None = None,
    until: float = math.inf,
) -> WyckoffPrior:
    """Maximum likelihood by AdamW with dropout and a one-cycle rate.

    In every batch a share of the elements is shown as a similar one
    (:func:`similar_elements`), as if it had been substituted: what a position holds changes little
    then.

    Parameters
    ----------
    init
        A prior whose weights are where the fit starts, in place of random ones.
    on_epoch
        Called with the number of epochs done and the mean negative log-likelihood of a crystal.
    out
        Folder that keeps the fit, to go on from where it was stopped.
    until
        Reading of :func:`time.perf_counter` at which the fit stops
        (:class:`~langevin_xtal.train.fit.TimeIsOverError`).
    """
    fit = PriorFit(
        data, PriorFitConfig(epochs=epochs, seed=seed), network=config, init=init, out=out
    )
    fit.finish(on_epoch, until)
    return fit.prior


@cache
def similar_elements() -> Tensor:
    """(119, 4) elements of the same column up to two places away in Mendeleev's order.

    Where such a place holds an element of another column, or none, the element itself.
    """
    rank, itself = element_rank(), np.arange(ELEMENTS)[:, None]
    column = np.array([0] + [period_and_group(z)[1] for z in range(1, ELEMENTS)])
    near = np.argsort(rank)[np.clip(rank[:, None] + np.array([-2, -1, 1, 2]), 0, ELEMENTS - 1)]
    return torch.from_numpy(np.where(column[near] == column[:, None], near, itself))


def mean_log_likelihood(prior: WyckoffPrior, data: PackedDataset) -> float:
    """Mean log-likelihood of a crystal of ``data`` under the prior."""
    group, numbers, chosen = assignment_table(data)
    with torch.inference_mode():
        parts = [
            prior.log_likelihood(group[p], numbers[p], chosen[p])
            for p in torch.arange(len(data)).split(1024)
        ]
    return float(torch.cat(parts).mean())


def batches(crystals: Tensor, sites: Tensor, size: int) -> Iterator[Tensor]:
    """Random batches of crystals with similar numbers of sites, which need little padding."""
    parts: list[Tensor] = []
    for pool in crystals[torch.randperm(len(crystals))].split(size * POOL):
        parts += pool[sites[pool].argsort(stable=True)].split(size)
    return (parts[k] for k in torch.randperm(len(parts)).tolist() if len(parts[k]))


def substitution() -> Tensor:
    """(119,) atomic number to show in place of each."""
    table = similar_elements()
    other = table.gather(1, torch.randint(table.shape[1], (len(table), 1))).squeeze(1)
    return torch.where(torch.rand(len(table)) < SUBSTITUTED, other, torch.arange(len(table)))


@cache
def _permutation_tables() -> tuple[Tensor, Tensor]:
    """(230, P, W) new row of every position under each shift of the origin; (230,) shifts."""
    start = table_start()
    shifts = [origin_shifts(number) for number in range(1, 231)]
    most, widest = max(len(s) for s in shifts), int(np.diff(start).max())
    table = np.zeros((230, most, widest), dtype=np.int64)
    for k, names in enumerate(shifts):
        table[k, : len(names), : names.shape[1]] = names + start[k]
    return torch.from_numpy(table), torch.tensor([len(s) for s in shifts])


def _smallest(group: Tensor, numbers: Tensor, chosen: Tensor) -> Tensor:
    """(B, S) the rows from the origin where they come first in lexicographic order."""
    table, count = _permutation_tables()
    real = numbers > 0
    element = torch.from_numpy(element_rank())[numbers]
    local = chosen - torch.from_numpy(table_start())[group - 1].unsqueeze(1)
    best = chosen
    for shift in range(1, table.shape[1]):
        permuted = table[group - 1, shift % count[group - 1]].gather(1, local)
        # sites of one element from special to general again; padding stays last
        order = torch.where(real, element * 10**4 + permuted, 10**7).argsort(dim=1, stable=True)
        permuted = torch.where(real, permuted.gather(1, order), chosen)
        gap = permuted - best
        decides = (gap != 0).long().argmax(1, keepdim=True)
        best = torch.where(gap.gather(1, decides) < 0, permuted, best)
    return best
