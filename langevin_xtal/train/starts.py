"""Fitting what says where chains start: Wyckoff positions, assignments of a formula, proposals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langevin_xtal.dataset.packed import PackedDataset
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
    proposal: int = 40


def fit_starts(
    data: PackedDataset,
    statistics: Statistics,
    epochs: StartEpochs,
    *,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """The parts of a :class:`~langevin_xtal.model.checkpoint.ScoreModel` beside its network."""

    def report(name: str, planned: int) -> Callable[..., None]:
        return lambda done, *_: on_epoch(name, done, planned) if on_epoch else None

    parts: dict[str, Any] = {}
    if epochs.prior:
        parts["prior"] = fit_prior(
            data, epochs=epochs.prior, seed=seed, on_epoch=report("prior", epochs.prior)
        )
    if epochs.ranker:
        parts["ranker"] = fit_ranker(
            data, epochs=epochs.ranker, seed=seed, on_epoch=report("ranker", epochs.ranker)
        )
    if epochs.proposal:
        parts["proposal"] = fit_proposal(
            *describe_variants(data, statistics),
            epochs=epochs.proposal,
            seed=seed,
            on_epoch=report("proposal", epochs.proposal),
        )
    return parts
