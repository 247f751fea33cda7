"""Fitting what says where chains start: Wyckoff positions, assignments of a formula, proposals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.model.proposal import Proposal
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.train.assignments import fit_prior
from langevin_xtal.train.proposals import describe_variants, fit_proposal
from langevin_xtal.train.ranking import fit_ranker

OnEpoch = Callable[[str, int, int], None]
"""Called with the name of the part, epochs done and epochs planned."""


@dataclass(frozen=True, kw_only=True)
class StartEpochs:
    """Epochs of each part; 0 leaves it out."""

    prior: int = 20
    ranker: int = 6
    proposal: int = 40  #: of each member
    members: int = 1  #: networks of the proposal, whose probabilities are averaged


def fit_starts(
    data: PackedDataset,
    statistics: Statistics,
    epochs: StartEpochs,
    known: Mapping[str, Any],
    *,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
) -> Iterator[tuple[str, Any]]:
    """The parts of a :class:`~langevin_xtal.model.checkpoint.ScoreModel` beside its network.

    Parameters
    ----------
    known
        Parts that an interrupted fit had done.
    device
        Where the proposal is fitted; the others are smaller, and stay on the host.

    Yields
    ------
    tuple
        Name and part, as each is done; the proposal with every member it gains.
    """

    def report(name: str, planned: int, before: int = 0) -> Callable[..., None]:
        return lambda done, *_: on_epoch(name, before + done, planned) if on_epoch else None

    if epochs.prior and "prior" not in known:
        told = report("prior", epochs.prior)
        yield "prior", fit_prior(data, epochs=epochs.prior, seed=seed, on_epoch=told)
    if epochs.ranker and "ranker" not in known:
        told = report("ranker", epochs.ranker)
        yield "ranker", fit_ranker(data, epochs=epochs.ranker, seed=seed, on_epoch=told)
    members = known["proposal"].singles() if "proposal" in known else []
    if epochs.proposal and len(members) < epochs.members:
        described = describe_variants(data, statistics)
        for k in range(len(members), epochs.members):
            members.append(
                fit_proposal(
                    *described,
                    epochs=epochs.proposal,
                    seed=seed + k,
                    like=members[0] if members else None,
                    device=device,
                    on_epoch=report(
                        "proposal", epochs.members * epochs.proposal, k * epochs.proposal
                    ),
                )
            )
            yield "proposal", Proposal.of_members(members)
