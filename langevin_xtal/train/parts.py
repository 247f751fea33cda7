"""Fitting what says where chains start: settings, Wyckoff positions, assignments, proposals.

A part of the model that is fitted beside the score network has an entry in :data:`PARTS` (how it
is fitted), a field in :class:`~langevin_xtal.config.training.EpochsConfig` (how long) and one in
:data:`langevin_xtal.model.checkpoint.PARTS` (how it is read).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypedDict, TypeVar

from langevin_xtal.config.training import EpochsConfig
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.model.checkpoint import Part
from langevin_xtal.model.prior import WyckoffPrior
from langevin_xtal.model.proposal import Proposal
from langevin_xtal.model.ranking import AssignmentRanker
from langevin_xtal.model.settings import SettingModel, squared_distances
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.train.fit import STATE
from langevin_xtal.train.prior import fit_prior
from langevin_xtal.train.proposals import describe_variants, fit_proposal
from langevin_xtal.train.ranking import fit_ranker
from langevin_xtal.train.settings import fit_settings
from langevin_xtal.train.structure_types import structure_types

PartT = TypeVar("PartT", bound=Part)
EnsembleT = TypeVar("EnsembleT", SettingModel, Proposal)

OnEpoch = Callable[[str, int, int], None]
"""Called with the name of the part, epochs done and epochs planned."""


@dataclass(frozen=True, kw_only=True)
class PartEpochs(EpochsConfig):
    """Epochs of each part; with 0 it is the given model's, or left out where none is given."""

    def planned(self, name: str) -> int:
        """Epochs of a part in all."""
        epochs: int = getattr(self, name)
        return self.members_of(name) * epochs


class FitOptions(TypedDict):
    """Arguments that all fits have."""

    epochs: int
    out: Path | None
    until: float
    on_epoch: Callable[..., None]


@dataclass(frozen=True)
class Fitting:
    """What the fit of a part may go by."""

    data: PackedDataset
    statistics: Statistics
    epochs: PartEpochs
    done: Mapping[str, Part]  #: parts fitted so far
    given: Mapping[str, Part]  #: parts of another model, where fits start
    seed: int = 0
    device: str = "cpu"
    folder: Path | None = None  #: where fits keep themselves
    until: float = math.inf
    on_epoch: OnEpoch | None = field(default=None, repr=False)

    def options(self, name: str, *, fit: str = "", before: int = 0) -> FitOptions:
        """Arguments that all fits have: where to be kept, when to stop, whom to tell.

        Parameters
        ----------
        fit
            Folder, where a part has several fits; by default the part's name.
        before
            Epochs of the part that earlier fits have done.
        """

        def report(done: int, *losses: float) -> None:
            if self.on_epoch is not None:
                self.on_epoch(name, before + done, self.epochs.planned(name))

        return {
            "epochs": getattr(self.epochs, name),
            "out": None if self.folder is None else self.folder / (fit or name),
            "until": self.until,
            "on_epoch": report,
        }


def _known(parts: Mapping[str, Part], name: str, kind: type[PartT]) -> PartT | None:
    part = parts.get(name)
    assert part is None or isinstance(part, kind)
    return part


def _members(parts: Mapping[str, Part], name: str, kind: type[EnsembleT]) -> list[EnsembleT]:
    """The members of a part, none where it is not there."""
    part = _known(parts, name, kind)
    return [] if part is None else part.singles()


def _prior(fitting: Fitting) -> Iterator[Part]:
    given = _known(fitting.given, "prior", WyckoffPrior)
    yield fit_prior(fitting.data, seed=fitting.seed, init=given, **fitting.options("prior"))


def _ranker(fitting: Fitting) -> Iterator[Part]:
    given = _known(fitting.given, "ranker", AssignmentRanker)
    yield fit_ranker(fitting.data, seed=fitting.seed, init=given, **fitting.options("ranker"))


def _settings(fitting: Fitting) -> Iterator[Part]:
    ranker = _known({**fitting.given, **fitting.done}, "ranker", AssignmentRanker)
    if ranker is None:  # nothing says which elements resemble each other
        return
    epochs = fitting.epochs
    members = _members(fitting.done, "settings", SettingModel)
    fits_from = dict(enumerate(_members(fitting.given, "settings", SettingModel)))
    for k in range(len(members), epochs.settings_members):
        folder = f"settings-{k}" if epochs.settings_members > 1 else ""
        options = fitting.options("settings", fit=folder, before=k * epochs.settings)
        fit = fit_settings(
            fitting.data,
            ranker.resemblance(),
            seed=fitting.seed + k,
            init=fits_from.get(k),
            on_epoch=partial(_of_units, options["on_epoch"]),
            epochs=options["epochs"],
            out=options["out"],
            until=options["until"],
        )
        members.append(fit)
        yield SettingModel.of_members(members)


def _of_units(report: Callable[[int], None], classifier: str, done: int, _: float) -> None:
    """Tell the epochs of the second of the two classifiers, which end a member's fit."""
    if classifier == "units":
        report(done)


def _types(fitting: Fitting) -> Iterator[Part]:
    ranker = _known({**fitting.given, **fitting.done}, "ranker", AssignmentRanker)
    if ranker is None:
        return
    distances = squared_distances(ranker.resemblance())
    yield structure_types(fitting.data, fitting.statistics, distances, seed=fitting.seed)
    if fitting.on_epoch is not None:
        fitting.on_epoch("types", 1, 1)


def _proposal(fitting: Fitting) -> Iterator[Part]:
    """Member after member; the whole with each that it gains."""
    epochs = fitting.epochs
    members = _members(fitting.done, "proposal", Proposal)
    if len(members) >= epochs.members:
        return
    described = describe_variants(fitting.data, fitting.statistics)
    # a member more than the other model has starts from random weights
    fits_from = dict(enumerate(_members(fitting.given, "proposal", Proposal)))
    for k in range(len(members), epochs.members):
        members.append(
            fit_proposal(
                *described,
                seed=fitting.seed + k,
                config=members[0].config if members else None,
                init=fits_from.get(k),
                like=members[0] if members else None,
                device=fitting.device,
                **fitting.options("proposal", fit=f"proposal-{k}", before=k * epochs.proposal),
            )
        )
        yield Proposal.of_members(members)


PARTS: dict[str, Callable[[Fitting], Iterator[Part]]] = {
    "prior": _prior,
    "ranker": _ranker,
    "settings": _settings,
    "types": _types,
    "proposal": _proposal,
}
"""How each part is fitted, in the order of the fits."""


def fit_parts(
    data: PackedDataset,
    statistics: Statistics,
    epochs: PartEpochs,
    known: Mapping[str, Part],
    *,
    init: Mapping[str, Part] | None = None,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: OnEpoch | None = None,
    folder: Path | None = None,
    until: float = math.inf,
) -> Iterator[tuple[str, Part]]:
    """The parts of a :class:`~langevin_xtal.model.checkpoint.CrystalModel` beside its network.

    Parameters
    ----------
    known
        Parts that an interrupted fit had done.
    init
        Parts of another model, whose weights the fits start from. What its ranker remembers of
        crystals is not taken over.
    device
        Where the proposal is fitted; the others are smaller, and stay on the host.
    folder
        Where fits keep themselves, to go on in the midst of an epoch. Only configurations and
        logs stay there once a part was taken.
    until
        Reading of :func:`time.perf_counter` at which to stop.

    Yields
    ------
    tuple
        Name and part, as each is done; the proposal with every member it gains.

    Raises
    ------
    TimeIsOverError
        When ``until`` comes first.
    """
    given = init or {}
    done = dict(known)
    for name, part in given.items():
        if not getattr(epochs, name) and name not in known:
            done[name] = part
            yield name, part
    for name, fit in PARTS.items():
        # what has several members may lack some yet
        complete = name in known and epochs.members_of(name) == 1
        if not getattr(epochs, name) or complete:
            continue
        fitting = Fitting(
            data, statistics, epochs, done, given, seed, device, folder, until, on_epoch
        )
        for part in fit(fitting):
            done[name] = part
            yield name, part
            clear_states(folder)


def clear_states(folder: Path | None) -> None:
    """States of fits that are done: what they gave is in the model."""
    if folder is not None and folder.is_dir():
        for path in folder.rglob(STATE):
            path.unlink()
