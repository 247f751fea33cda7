"""Fitting the prior over Wyckoff positions to a packed dataset."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.model.assignment import WyckoffPrior
from langevin_xtal.symmetry.wyckoff import locate, origin_shifts, table_start

BATCH = 256
RATE = 2e-3
DROPOUT = 0.2
WEIGHT_DECAY = 2e-2


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


def assignment_table(data: PackedDataset) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B,) groups, (B, S) atomic numbers and (B, S) position rows, in canonical order."""
    rows = site_positions(data)
    sites = np.diff(data.site_start)
    numbers = np.zeros((len(data), int(sites.max())), dtype=np.int64)
    chosen = np.tile(table_start()[data.group - 1][:, None], (1, numbers.shape[1]))
    for b, (start, stop) in enumerate(zip(data.site_start[:-1], data.site_start[1:], strict=True)):
        order = np.lexsort((rows[start:stop], data.numbers[start:stop]))
        numbers[b, : stop - start] = data.numbers[start:stop][order]
        chosen[b, : stop - start] = rows[start:stop][order]
    return torch.from_numpy(data.group.copy()), torch.from_numpy(numbers), torch.from_numpy(chosen)


def fit_prior(
    data: PackedDataset,
    *,
    epochs: int = 30,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> WyckoffPrior:
    """Maximum likelihood by AdamW with dropout and a one-cycle rate.

    Every crystal is shown from a random origin among those that keep its group, since the choice
    between them is arbitrary.

    Parameters
    ----------
    on_epoch
        Called with the number of epochs done and the mean negative log-likelihood of a crystal.
    """
    torch.manual_seed(seed)
    prior = WyckoffPrior()
    group, numbers, chosen = assignment_table(data)
    steps = max(1, -(-len(data) // BATCH)) * epochs
    optimiser = torch.optim.AdamW(prior.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps + 1)
    for epoch in range(epochs):
        total = 0.0
        for pick in torch.randperm(len(data)).split(BATCH):
            longest = int((numbers[pick] > 0).sum(1).max())
            told = _other_origins(group[pick], numbers[pick, :longest], chosen[pick, :longest])
            loss = -prior.log_likelihood(*told, DROPOUT).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(pick)
        if on_epoch is not None:
            on_epoch(epoch + 1, total / len(data))
    return prior.eval().requires_grad_(False)


@cache
def _renamings() -> tuple[torch.Tensor, torch.Tensor]:
    """(230, P, W) new row of every position under each shift of the origin; (230,) shifts."""
    start = table_start()
    shifts = [origin_shifts(number) for number in range(1, 231)]
    most, widest = max(len(s) for s in shifts), int(np.diff(start).max())
    table = np.zeros((230, most, widest), dtype=np.int64)
    for k, names in enumerate(shifts):
        table[k, : len(names), : names.shape[1]] = names + start[k]
    return torch.from_numpy(table), torch.tensor([len(s) for s in shifts])


def _other_origins(
    group: torch.Tensor, numbers: torch.Tensor, chosen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same crystals, each described from a random origin, in canonical order again."""
    table, count = _renamings()
    pick = (torch.rand(len(group)) * count[group - 1]).long()
    local = chosen - torch.from_numpy(table_start())[group - 1].unsqueeze(1)
    renamed = table[group - 1, pick].gather(1, local)
    # sites of one element from special to general; padding stays last
    key = torch.where(numbers > 0, numbers, 10**3) * 10**4 + renamed
    return group, numbers, renamed.gather(1, key.argsort(dim=1, stable=True))


def mean_log_likelihood(prior: WyckoffPrior, data: PackedDataset) -> float:
    """Mean log-likelihood of a crystal of ``data`` under the prior."""
    group, numbers, chosen = assignment_table(data)
    with torch.inference_mode():
        parts = [
            prior.log_likelihood(group[p], numbers[p], chosen[p])
            for p in torch.arange(len(data)).split(1024)
        ]
    return float(torch.cat(parts).mean())
