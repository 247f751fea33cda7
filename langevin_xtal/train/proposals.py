"""Fitting the proposal of parameters and lattices to a packed dataset."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.model.assignment import element_rank
from langevin_xtal.model.proposal import (
    Descriptions,
    Proposal,
    ProposalConfig,
    lattice_features,
    padded,
)
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.parallel import parallel_map
from langevin_xtal.symmetry.description import Description, describe
from langevin_xtal.symmetry.lattice import lattice_coordinates
from langevin_xtal.symmetry.wyckoff import table_start
from langevin_xtal.train.assignments import BATCH, batches, site_positions, substitution

RATE = 1.5e-3
DROPOUT = 0.1
WEIGHT_DECAY = 5e-2
SMOOTHING = 0.6
LATTICE_WEIGHT = 0.5

_Job = tuple[int, NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]


def describe_dataset(
    data: PackedDataset, statistics: Statistics, workers: int | None = None
) -> Descriptions:
    """The canonical description of every crystal."""
    rows = site_positions(data)
    crystal = np.repeat(np.arange(len(data)), np.diff(data.site_start))
    local = rows - table_start()[data.group[crystal] - 1]
    kinds = element_rank()[data.numbers]
    jobs: list[_Job] = []
    for k in range(len(data)):
        own = data.sites_of(k)
        jobs.append((int(data.group[k]), local[own], data.frac[own], kinds[own]))
    found = list(parallel_map(_described, jobs, workers=workers, chunk=256))
    numbers = [data.numbers[data.sites_of(k)][f.order] for k, f in enumerate(found)]
    result = padded(data.group.tolist(), numbers, [f.positions for f in found], statistics)
    for k, f in enumerate(found):
        for s, values in enumerate(f.parameters):
            result.values[k, s, : len(values)] = torch.from_numpy(values)
    coordinates = torch.from_numpy(lattice_coordinates(data.lattice))
    result.lattice[:] = lattice_features(coordinates, result.size.double())
    return result


def _described(job: _Job) -> Description:
    group, positions, frac, kinds = job
    return describe(group, positions.tolist(), frac, kinds.tolist())


def fit_proposal(
    data: Descriptions,
    *,
    epochs: int = 40,
    seed: int = 0,
    config: ProposalConfig | None = None,
    on_epoch: Callable[[int, float, float], None] | None = None,
) -> Proposal:
    """Maximum likelihood by AdamW with dropout, a one-cycle rate and elements shown as their kin.

    Parameters
    ----------
    on_epoch
        Called with the number of epochs done and the mean negative log-likelihoods of a crystal:
        of its parameters and of its lattice.
    """
    torch.manual_seed(seed)
    proposal = Proposal(config)
    sites = (data.numbers > 0).sum(1)
    steps = -(-len(data) // BATCH) * epochs
    optimiser = torch.optim.AdamW(proposal.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps + epochs + 1)
    for epoch in range(epochs):
        totals = np.zeros(2)
        for pick in batches(torch.arange(len(data)), sites):
            some = data.pick(pick)
            places, lattice = proposal.log_likelihood(some, DROPOUT, substitution(), SMOOTHING)
            loss = -(places + LATTICE_WEIGHT * lattice).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(proposal.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            totals -= [float(places.detach().sum()), float(lattice.detach().sum())]
        if on_epoch is not None:
            on_epoch(epoch + 1, *(totals / len(data)).tolist())
    return proposal.eval().requires_grad_(False)
