"""Fitting the proposal of parameters and lattices to a packed dataset."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
from langevin_xtal.symmetry.description import Description, descriptions
from langevin_xtal.symmetry.lattice import lattice_coordinates
from langevin_xtal.symmetry.wyckoff import table_start
from langevin_xtal.train.assignments import (
    BATCH,
    REFIT,
    batches,
    site_positions,
    substitution,
)

RATE = 1.5e-3
DROPOUT = 0.1
WEIGHT_DECAY = 5e-2
SMOOTHING = 0.6
LATTICE_WEIGHT = 0.5

REVISIONS = (0.25, 0.5)
"""Shares of all epochs after which the variant learned of each crystal is chosen anew."""

VARIANTS, VARIANTS_P1 = 8, 3
"""Descriptions of a crystal from which the one learned is chosen; fewer in P1, where there are
many and sites are many too."""

VARIANT_WINDOW = 0.15
"""By how much a description may be worse than the canonical one and still be learned."""

_Job = tuple[
    int, NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], int
]


def describe_dataset(
    data: PackedDataset, statistics: Statistics, workers: int | None = None
) -> Descriptions:
    """The canonical description of every crystal."""
    return describe_variants(data, statistics, most=1, workers=workers)[0]


def describe_variants(
    data: PackedDataset,
    statistics: Statistics,
    *,
    most: int = VARIANTS,
    workers: int | None = None,
) -> tuple[Descriptions, NDArray[np.int64]]:
    """Up to ``most`` descriptions of every crystal, nearly as good as the canonical one.

    Returns
    -------
    tuple
        V descriptions, crystal after crystal, best first; (V,) the crystal of each.
    """
    rows = site_positions(data)
    crystal = np.repeat(np.arange(len(data)), np.diff(data.site_start))
    local = rows - table_start()[data.group[crystal] - 1]
    kinds = element_rank()[data.numbers]
    jobs: list[_Job] = []
    for k in range(len(data)):
        own = data.sites_of(k)
        group = int(data.group[k])
        told = local[own], data.frac[own], kinds[own], data.lattice[k]
        jobs.append((group, *told, min(most, VARIANTS_P1) if group == 1 else most))
    every = list(parallel_map(_described, jobs, workers=workers, chunk=256))
    owner = np.repeat(np.arange(len(data)), [len(found) for found in every])
    found = [f for one in every for f in one]
    numbers = [
        data.numbers[data.sites_of(k)][f.order] for k, f in zip(owner.tolist(), found, strict=True)
    ]
    groups = data.group[owner].tolist()
    result = padded(groups, numbers, [f.positions for f in found], statistics)
    for v, f in enumerate(found):
        for s, values in enumerate(f.parameters):
            result.values[v, s, : len(values)] = torch.from_numpy(values)
    cells = np.swapaxes(np.array([f.basis for f in found]), 1, 2) @ data.lattice[owner]
    coordinates = torch.from_numpy(lattice_coordinates(cells))
    result.lattice[:] = lattice_features(coordinates, result.size.double())
    return result, owner


def _described(job: _Job) -> list[Description]:
    group, positions, frac, kinds, lattice, most = job
    return descriptions(
        group, positions.tolist(), frac, kinds.tolist(), lattice, most=most, window=VARIANT_WINDOW
    )


def fit_proposal(
    data: Descriptions,
    owner: NDArray[np.int64] | None = None,
    *,
    epochs: int = 40,
    seed: int = 0,
    config: ProposalConfig | None = None,
    init: Proposal | None = None,
    like: Proposal | None = None,
    device: str = "cpu",
    on_epoch: Callable[[int, float, float], None] | None = None,
) -> Proposal:
    """Maximum likelihood by AdamW with dropout, a one-cycle rate and elements shown as their kin.

    Parameters
    ----------
    data, owner
        Descriptions, and the crystal of each, as by :func:`describe_variants`; without ``owner``
        each is a crystal. Of the variants of a crystal the first is learned, until after the
        epochs of :data:`REVISIONS` that which the network finds likeliest takes its place: so
        crystals of one structure type come to be described alike.
    init
        A single network whose weights are where the fit starts, in place of random ones; it
        chooses the variants learned first, too.
    like
        A proposal whose likeliest variants are learned instead: what it and this one say can be
        averaged then.
    on_epoch
        Called with the number of epochs done and the mean negative log-likelihoods of a crystal:
        of its parameters and of its lattice.
    """
    torch.manual_seed(seed)
    if init is None:
        proposal = Proposal(config or ProposalConfig(frames=True)).to(device)
    else:
        proposal = Proposal(dataclasses.replace(init.config, frames=True))
        proposal.load_state_dict(init.state_dict())
        proposal.to(device)
    owner = np.arange(len(data)) if owner is None else owner
    first = np.unique(owner, return_index=True)[1]
    data = data.to(torch.device(device), torch.float32)
    chosen = torch.from_numpy(first)
    guide = like or init
    if guide is not None and len(chosen) < len(data):
        chosen = likeliest_variants(copy.deepcopy(guide).to(device), data, owner)
    sites = (data.numbers > 0).sum(1).cpu()
    steps = -(-len(chosen) // BATCH) * epochs
    rate = RATE if init is None else REFIT * RATE
    optimiser = torch.optim.AdamW(
        proposal.parameters(), lr=rate, weight_decay=WEIGHT_DECAY, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + epochs + 1)
    revised = like is None and len(chosen) < len(data)
    revisions = {round(share * epochs) for share in REVISIONS} if revised else ()
    for epoch in range(epochs):
        totals = torch.zeros(2, device=device)
        for pick in batches(chosen, sites):
            some = data.pick(pick.to(device))
            shown = substitution().to(device)
            places, lattice = proposal.log_likelihood(some, DROPOUT, shown, SMOOTHING)
            loss = -(places + LATTICE_WEIGHT * lattice).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(proposal.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            totals -= torch.stack([places.detach().sum(), lattice.detach().sum()])
        if epoch + 1 in revisions:
            chosen = likeliest_variants(proposal, data, owner)
        if on_epoch is not None:
            on_epoch(epoch + 1, *(totals / len(chosen)).tolist())
    return proposal.cpu().eval().requires_grad_(False)


@torch.inference_mode()
def likeliest_variants(proposal: Proposal, data: Descriptions, owner: NDArray[np.int64]) -> Tensor:
    """(B,) of each crystal the description with the largest likelihood."""
    device = data.numbers.device
    sites = (data.numbers > 0).sum(1).cpu()
    score = torch.zeros(len(data))
    # only where there is a choice; crystals of one size together
    several = torch.from_numpy(np.flatnonzero(np.bincount(owner)[owner] > 1))
    for pick in several[sites[several].argsort(stable=True)].split(4 * BATCH):
        places, lattice = proposal.log_likelihood(data.pick(pick.to(device)))
        score[pick] = (places + LATTICE_WEIGHT * lattice).cpu()
    order = np.lexsort((-score.numpy(), owner))
    return torch.from_numpy(order[np.unique(owner[order], return_index=True)[1]])
