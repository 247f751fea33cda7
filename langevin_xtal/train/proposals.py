"""Fitting the proposal of parameters and lattices to a packed dataset."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langevin_xtal.config.training import EpochsConfig
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.model.likelihood import VARIANT_WINDOW, VARIANTS, VARIANTS_P1, assembled
from langevin_xtal.model.prior import element_rank
from langevin_xtal.model.proposal import Descriptions, Proposal, ProposalConfig
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.model.tensor_file import weights_hash
from langevin_xtal.parallel import parallel_map
from langevin_xtal.symmetry.description import Description, descriptions
from langevin_xtal.symmetry.wyckoff import table_start
from langevin_xtal.train.epochs import EpochConfig, EpochFit, starting_point
from langevin_xtal.train.prior import batches, site_positions, substitution

TOGETHER = 256
"""Descriptions whose likelihoods are taken in one go."""

CHUNK = 256
"""Crystals that a worker describes at a time."""

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
        site_data = local[own], data.frac[own], kinds[own], data.lattice[k]
        jobs.append((group, *site_data, min(most, VARIANTS_P1) if group == 1 else most))
    if len(jobs) <= CHUNK:  # one worker's share: others would only be started
        workers = 1
    every = list(parallel_map(_described, jobs, workers=workers, chunk=CHUNK))
    owner = np.repeat(np.arange(len(data)), [len(found) for found in every])
    found = [f for one in every for f in one]
    lattices = data.lattice[owner]
    numbers = [data.numbers[data.sites_of(k)] for k in owner.tolist()]
    result = assembled(found, data.group[owner].tolist(), numbers, lattices, statistics)
    return result, owner


def _described(job: _Job) -> list[Description]:
    group, positions, frac, kinds, lattice, most = job
    return descriptions(
        group, positions.tolist(), frac, kinds.tolist(), lattice, most=most, window=VARIANT_WINDOW
    )


@dataclass(frozen=True, kw_only=True)
class ProposalFitConfig(EpochConfig):
    """Settings of the fit of one network of the proposal."""

    epochs: int = EpochsConfig.proposal
    rate: float = 1.5e-3
    weight_decay: float = 5e-2
    smoothing: float = 0.6
    """Of the bins of parameters."""
    lattice_weight: float = 0.5
    """Weight of the cell's likelihood beside that of the parameters."""
    revisions: tuple[float, ...] = (0.25, 0.5)
    """Shares of all epochs after which the variant learned of each crystal is chosen anew."""


class ProposalFit(EpochFit[Tensor]):
    """Fit of one network of the proposal, see :func:`fit_proposal`."""

    config: ProposalFitConfig
    losses = ("parameters", "lattice")

    def __init__(
        self,
        data: Descriptions,
        owner: NDArray[np.int64] | None,
        config: ProposalFitConfig,
        *,
        network: ProposalConfig | None = None,
        init: Proposal | None = None,
        like: Proposal | None = None,
        device: str = "cpu",
        out: Path | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        if init is None:
            self.proposal = Proposal(network or ProposalConfig(frames=True)).to(device)
        else:
            self.proposal = Proposal(dataclasses.replace(init.config, frames=True))
            self.proposal.load_state_dict(init.state_dict())
            self.proposal.to(device)
        data_hash = weights_hash({f.name: getattr(data, f.name) for f in fields(data)})
        self.owner = np.arange(len(data)) if owner is None else owner
        first = np.unique(self.owner, return_index=True)[1]
        self.data = data.to(torch.device(device), torch.float32)
        self.chosen = torch.from_numpy(first)  #: description that is learned of each crystal
        several = len(self.chosen) < len(data)
        guide = like or init
        if guide is not None and several:
            guide = copy.deepcopy(guide).to(device)
            self.chosen = likeliest_variants(guide, self.data, self.owner)
        self.sites = (self.data.numbers > 0).sum(1).cpu()
        self.revisions: set[int] = set()  #: epochs after which they are chosen anew
        if like is None and several:
            self.revisions = {round(share * config.epochs) for share in config.revisions}
        facts = starting_point(self.proposal, init)
        facts["like"] = None if like is None else weights_hash(like.state_dict())
        super().__init__(
            self.proposal,
            config,
            data_hash,
            out,
            rate=config.peak(init is not None),
            total_steps=(-(-len(self.chosen) // config.batch_size) + 1) * config.epochs + 1,
            device=device,
            fused=True,
            facts=facts,
        )
        self.begin()

    def _draw(self) -> list[Tensor]:
        return list(batches(self.chosen, self.sites, self.config.batch_size))

    def _loss(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        some = self.data.pick(batch.to(self.device))
        shown = substitution().to(self.device)
        config = self.config
        places, lattice = self.proposal.log_likelihood(
            some, config.dropout, shown, config.smoothing
        )
        loss = -(places + config.lattice_weight * lattice).mean()
        return loss, -torch.stack([places.detach().sum(), lattice.detach().sum()])

    def _epoch_losses(self) -> tuple[float, ...]:
        return tuple((self._sums / len(self.chosen)).tolist())

    def _epoch_ends(self) -> None:
        if self.epoch + 1 in self.revisions:
            self.chosen = likeliest_variants(self.proposal, self.data, self.owner)

    def _more_state(self) -> dict[str, Tensor]:
        return {"chosen": self.chosen}

    def _restore_more(self, tensors: Mapping[str, Tensor]) -> None:
        chosen = tensors["chosen"]
        if chosen.shape != self.chosen.shape:
            raise ValueError("the descriptions chosen do not fit the crystals")
        self.chosen = chosen


def fit_proposal(
    data: Descriptions,
    owner: NDArray[np.int64] | None = None,
    *,
    epochs: int = ProposalFitConfig.epochs,
    seed: int = 0,
    config: ProposalConfig | None = None,
    init: Proposal | None = None,
    like: Proposal | None = None,
    device: str = "cpu",
    on_epoch: Callable[[int, float, float], None] | None = None,
    out: Path | None = None,
    until: float = math.inf,
) -> Proposal:
    """Maximum likelihood by AdamW with dropout, a one-cycle rate and similar elements substituted.

    Parameters
    ----------
    data, owner
        Descriptions, and the crystal of each, as by :func:`describe_variants`; without ``owner``
        each is a crystal. Of the variants of a crystal the first is learned, until after the
        epochs of :attr:`ProposalFitConfig.revisions` that which the network finds likeliest takes
        its place: so crystals of one structure type come to be described alike.
    init
        A single network whose weights are where the fit starts, in place of random ones; it
        chooses the variants learned first, too.
    like
        A proposal whose likeliest variants are learned instead: what it and this one say can be
        averaged then.
    on_epoch
        Called with the number of epochs done and the mean negative log-likelihoods of a crystal:
        of its parameters and of its lattice.
    out, until
        As for :func:`~langevin_xtal.train.prior.fit_prior`.
    """
    chosen = ProposalFitConfig(epochs=epochs, seed=seed)
    fit = ProposalFit(
        data, owner, chosen, network=config, init=init, like=like, device=device, out=out
    )
    fit.finish(on_epoch, until)
    return fit.proposal.cpu()


@torch.inference_mode()
def likeliest_variants(proposal: Proposal, data: Descriptions, owner: NDArray[np.int64]) -> Tensor:
    """(B,) of each crystal the description with the largest likelihood."""
    device = data.numbers.device
    sites = (data.numbers > 0).sum(1).cpu()
    score = torch.zeros(len(data))
    # only where there is a choice; crystals of one size together
    several = torch.from_numpy(np.flatnonzero(np.bincount(owner)[owner] > 1))
    for pick in several[sites[several].argsort(stable=True)].split(TOGETHER):
        places, lattice = proposal.log_likelihood(data.pick(pick.to(device)))
        score[pick] = (places + ProposalFitConfig.lattice_weight * lattice).cpu()
    order = np.lexsort((-score.numpy(), owner))
    return torch.from_numpy(order[np.unique(owner[order], return_index=True)[1]])
