"""Targets of crystal structure prediction, and a model's predictions of them.

A target is a known crystal of which the sampler is told the elements, the number of sites of each
and the space group: neither the formula nor the Wyckoff letters, and nothing of the cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError
from langevin_xtal.evaluation.structures import Missing, StructureSet, primitive
from langevin_xtal.symmetry import SpaceGroup, orbit, wrap
from langevin_xtal.symmetry.wyckoff import locate

if TYPE_CHECKING:
    from langevin_xtal.crystal.candidate import Candidate
    from langevin_xtal.model.checkpoint import ScoreModel
    from langevin_xtal.sampling.sample import SampleOptions

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Progress = Callable[[int, int], None]
"""Called with the parts done and planned."""

SAMPLED_GROUPS = range(16, 231)
"""Groups whose cell angles are fixed by symmetry."""


@dataclass(frozen=True, eq=False)
class Target:
    """A known crystal in its conventional cell, with A symmetry-independent sites."""

    id: str
    group: SpaceGroup
    numbers: IntArray  #: (A,) atomic numbers
    frac: FloatArray  #: (A, 3) one representative of each orbit
    multiplicity: IntArray  #: (A,) atoms of the orbit in the conventional cell
    letters: NDArray[np.str_]  #: (A,) Wyckoff letters
    lattice: FloatArray  #: (3, 3) conventional cell, rows [Å]
    freedom: int  #: free coordinates of all sites together

    def request(self) -> Request:
        """Elements, sites of each and the group: all that a model is told.

        Raises
        ------
        RequestError
            When there are more sites than one request may have.
        """
        elements, sites = np.unique(self.numbers, return_counts=True)
        pairs = zip(elements.tolist(), sites.tolist(), strict=True)
        return Request(self.group, {SYMBOLS[z]: n for z, n in pairs})

    def cell(self) -> Cell:
        """The primitive cell: the answer."""
        return expanded(self.group, self.lattice, self.frac, self.numbers)


def expanded(group: SpaceGroup, lattice: FloatArray, frac: FloatArray, numbers: IntArray) -> Cell:
    """Primitive P1 cell of A sites.

    Parameters
    ----------
    lattice
        (3, 3) conventional cell, rows [Å].
    frac
        (A, 3) one representative of each orbit.
    numbers
        (A,) atomic numbers.
    """
    images = [orbit(f, group.rotations, group.translations, lattice)[0] for f in frac]
    atoms = np.repeat(numbers, [len(i) for i in images])
    return primitive(group, (lattice, wrap(np.concatenate(images)), atoms))


def choose_targets(
    data: PackedDataset,
    count: int | None,
    *,
    groups: range = SAMPLED_GROUPS,
    seed: int = 0,
) -> list[Target]:
    """Crystals of ``groups`` in random order, the first ``count`` of them (all for None).

    With the same seed, fewer targets are the beginning of more.

    Raises
    ------
    InputError
        For a negative count.
    SymmetryError
        When a site of the data lies near, but not on, a special position.
    """
    if count is not None and count < 0:
        raise InputError(f"{count} targets were asked for; give 0 or more")
    pool = np.flatnonzero(np.isin(data.group, np.array(groups)))
    chosen = np.random.default_rng(seed).permutation(pool)[:count]
    freedom: dict[tuple[int, str], int] = {}  # a letter names one position of its group
    targets = []
    for k in chosen.tolist():
        own = data.sites_of(k)
        number, lattice = int(data.group[k]), data.lattice[k]
        free = 0
        for letter, point in zip(data.wyckoff[own].tolist(), data.frac[own], strict=True):
            if (number, letter) not in freedom:
                freedom[number, letter] = locate(number, point, lattice).freedom
            free += freedom[number, letter]
        targets.append(
            Target(
                id=str(data.id[k]),
                group=SpaceGroup(number),
                numbers=data.numbers[own],
                frac=data.frac[own],
                multiplicity=data.multiplicity[own],
                letters=data.wyckoff[own],
                lattice=lattice,
                freedom=free,
            )
        )
    return targets


def trial_id(target: Target, trial: int) -> str:
    """Identifier of a prediction, read back by
    :func:`~langevin_xtal.evaluation.structures.split_id`."""
    return f"{target.id}__{trial}"


def predict(
    targets: Sequence[Target],
    model: ScoreModel | str,
    *,
    trials: int = 1,
    seed: int = 0,
    options: SampleOptions | None = None,
    label: str = "model",
    progress: Progress | None = None,
    on_part: Callable[[int, StructureSet], None] | None = None,
) -> StructureSet:
    """``trials`` samples of every target, a trial at a time.

    Parameters
    ----------
    progress
        Called with noise levels done and planned within the trial that runs.
    on_part
        Called with each trial's number and structures as soon as they are there, to save them. To
        resume, run :func:`predict_trial` for the trials that are not saved and :func:`join` all.

    Raises
    ------
    InputError
        For less than one trial.
    """
    check_trials(trials)
    parts = []
    for trial in range(trials):
        part = predict_trial(
            targets, model, trial, seed=seed, options=options, label=label, progress=progress
        )
        parts.append(part)
        if on_part is not None:
            on_part(trial, part)
    return join(label, parts)


def predict_trial(
    targets: Sequence[Target],
    model: ScoreModel | str,
    trial: int,
    *,
    seed: int = 0,
    options: SampleOptions | None = None,
    label: str = "model",
    progress: Progress | None = None,
) -> StructureSet:
    """One sample of every target.

    Trial j of target t of T is drawn from stream ``j T + t`` of ``seed``: it does not depend on
    how many trials there are, nor on which were run before. Requests that cannot be sampled and
    those whose attempts were all rejected are missing, with the last reason.
    """
    from langevin_xtal.sampling.sample import sample_batches

    requests: dict[int, Request] = {}
    reason: dict[int, str] = {}
    for place, target in enumerate(targets):
        try:
            request = target.request()
        except InputError as error:
            reason[place] = str(error)
        else:
            requests[place] = request
    first = trial * len(targets)
    found: list[Candidate] = []
    last = dict.fromkeys(requests, -1)
    for outcome in sample_batches(
        list(requests.values()),
        model,
        seed,
        indices=[first + place for place in requests],
        options=options,
        progress=progress,
    ):
        found += [replace(c, index=c.index - first) for c in outcome.candidates]
        for rejection in outcome.rejections:
            place = rejection.index - first
            if rejection.attempt > last[place]:
                last[place], reason[place] = rejection.attempt, rejection.reason
    ids = [trial_id(target, trial) for target in targets]
    reason_of = {ids[place]: text for place, text in reason.items()}
    sampled = StructureSet.from_candidates(found, label, ids)
    return replace(
        sampled,
        missing=tuple(Missing(m.id, reason_of.get(m.id, m.reason)) for m in sampled.missing),
    )


def join(label: str, sets: Sequence[StructureSet]) -> StructureSet:
    """One set of several, in order.

    Raises
    ------
    DataError
        When an identifier occurs twice.
    """
    return StructureSet.of(
        label,
        [cell for part in sets for cell in part.cells()],
        [name for part in sets for name in part.ids],
        np.concatenate([np.zeros(0, np.int64), *(part.group for part in sets)]),
        [missing for part in sets for missing in part.missing],
    )


def check_trials(trials: int) -> None:
    """Refuse less than one trial.

    Raises
    ------
    InputError
        When there is none.
    """
    if trials < 1:
        raise InputError(f"{trials} trials were asked for; give 1 or more")
