"""Fitting what says where chains start: settings, Wyckoff positions, assignments, proposals."""

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
from langevin_xtal.train.settings import fit_settings

OnEpoch = Callable[[str, int, int], None]
"""Called with the name of the part, epochs done and epochs planned."""


@dataclass(frozen=True, kw_only=True)
class StartEpochs:
    """Epochs of each part; with 0 it is the given model's, or left out where none is given."""

    prior: int = 20
    ranker: int = 6
    proposal: int = 40  #: of each member
    members: int = 1  #: networks of the proposal, whose probabilities are averaged
    settings: int = 5


def fit_starts(
    data: PackedDataset,
    statistics: Statistics,
    epochs: StartEpochs,
    known: Mapping[str, Any],
    *,
    init: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
) -> Iterator[tuple[str, Any]]:
    """The parts of a :class:`~langevin_xtal.model.checkpoint.ScoreModel` beside its network.

    Parameters
    ----------
    known
        Parts that an interrupted fit had done.
    init
        Parts of another model, whose weights the fits start from. What its ranker remembers of
        crystals is not taken over.
    device
        Where the proposal is fitted; the others are smaller, and stay on the host.

    Yields
    ------
    tuple
        Name and part, as each is done; the proposal with every member it gains.
    """
    given = init or {}

    def report(name: str, planned: int, before: int = 0) -> Callable[..., None]:
        return lambda done, *_: on_epoch(name, before + done, planned) if on_epoch else None

    planned = {
        "prior": epochs.prior,
        "ranker": epochs.ranker,
        "settings": epochs.settings,
        "proposal": epochs.proposal,
    }
    for name, part in given.items():
        if not planned[name] and name not in known:
            yield name, part
    ranker = known.get("ranker", given.get("ranker"))
    for name in ("prior", "ranker"):
        if planned[name] and name not in known:
            fit: Callable[..., Any] = fit_prior if name == "prior" else fit_ranker
            told = report(name, planned[name])
            start = given.get(name)
            part = fit(data, epochs=planned[name], seed=seed, init=start, on_epoch=told)
            ranker = part if name == "ranker" else ranker
            yield name, part
    if epochs.settings and "settings" not in known and ranker is not None:
        yield (
            "settings",
            fit_settings(
                data,
                ranker.resemblance(),
                epochs=epochs.settings,
                seed=seed,
                init=given.get("settings"),
                on_epoch=lambda part, done, _: (
                    on_epoch("settings", done, epochs.settings)
                    if on_epoch and part == "units"
                    else None
                ),
            ),
        )
    members = known["proposal"].singles() if "proposal" in known else []
    if epochs.proposal and len(members) < epochs.members:
        described = describe_variants(data, statistics)
        # a member more than the other model has starts from random weights
        fits_from = dict(enumerate(given["proposal"].singles() if "proposal" in given else ()))
        for k in range(len(members), epochs.members):
            members.append(
                fit_proposal(
                    *described,
                    epochs=epochs.proposal,
                    seed=seed + k,
                    config=members[0].config if members else None,
                    init=fits_from.get(k),
                    like=members[0] if members else None,
                    device=device,
                    on_epoch=report(
                        "proposal", epochs.members * epochs.proposal, k * epochs.proposal
                    ),
                )
            )
            yield "proposal", Proposal.of_members(members)
