"""Targets of crystal structure prediction, and a model's predictions of them.

A target is a known crystal of which the sampler is given, by :data:`Mode`,

* ``composition``: the reduced formula and the number of atoms in the primitive cell, not the space
  group: the protocol of the field's benchmarks;
* ``sites``: the space group, the elements and the number of sites of each, as in the paper;
* ``formula``: the space group and the exact composition of the conventional cell;
* ``letters``: the space group and the Wyckoff position of every site, and so the formula.

Nothing is ever given of the cell or the free coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.evaluation import Mode
from langevin_xtal.crystal.cell import Cell, expanded
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError, RequestError
from langevin_xtal.evaluation.structures import Missing, StructureSet
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.symmetry.assignments import Assignment, canonical
from langevin_xtal.symmetry.wyckoff import WyckoffPosition, locate

if TYPE_CHECKING:
    from langevin_xtal.crystal.candidate import Candidate
    from langevin_xtal.model.checkpoint import CrystalModel
    from langevin_xtal.sampling.sample import SampleOptions
    from langevin_xtal.sampling.spread import Spread

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

Progress = Callable[[int, int], None]
"""Called with the parts done and planned."""

PAPER_GROUPS = range(16, 231)
"""Groups whose cell angles are fixed by symmetry: those of the paper."""

ALL_GROUPS = range(1, 231)

GIVEN: dict[Mode, str] = {
    "sites": "elements, numbers of sites and group",
    "formula": "formula, formula units in the conventional cell and group",
    "letters": "elements, group and the Wyckoff position of every site",
    "composition": "reduced formula and atoms in the primitive cell",
}
"""Of each mode, in words."""


@dataclass(frozen=True, eq=False)
class Target:
    """A known crystal in its conventional cell, with A symmetry-independent sites."""

    id: str
    group: SpaceGroup
    numbers: IntArray  #: (A,) atomic numbers
    frac: FloatArray  #: (A, 3) one representative of each orbit
    multiplicity: IntArray  #: (A,) atoms of the orbit in the conventional cell
    letters: NDArray[np.str_]  #: (A,) Wyckoff letters
    positions: tuple[int, ...]  #: (A,) the same as indices within the group, see ``symmetry``
    lattice: FloatArray  #: (3, 3) conventional cell, rows [Å]
    freedom: int  #: free coordinates of all sites together

    def request(self, mode: Mode = "sites") -> Request:
        """All that a model is given, elements by atomic number.

        Raises
        ------
        RequestError
            When there are more sites or atoms than one request may have.
        InputError
            For a mode that is not known.
        """
        if mode not in get_args(Mode):
            raise InputError(
                f"mode {mode!r} is not known; give one of {', '.join(get_args(Mode))}"
            )
        if mode in ("formula", "composition"):
            counts = self.counts()
            units = int(np.gcd.reduce(list(counts.values())))
            formula = "".join(
                f"{SYMBOLS[z]}{n // units if n > units else ''}" for z, n in counts.items()
            )
            if mode == "composition":
                return Request(formula=formula, atoms=self.primitive_atoms)
            return Request(self.group, formula=formula, z=units)
        elements, sites = np.unique(self.numbers, return_counts=True)
        pairs = zip(elements.tolist(), sites.tolist(), strict=True)
        extra: dict[str, Any] = {}
        if mode == "letters":
            order = np.argsort(self.numbers, kind="stable")
            extra["positions"] = tuple(self.positions[k] for k in order)
        return Request(self.group, {SYMBOLS[z]: n for z, n in pairs}, **extra)

    def counts(self) -> dict[int, int]:
        """Atoms of each element in the conventional cell, by atomic number."""
        atoms = np.bincount(self.numbers, self.multiplicity).astype(np.int64)
        return {int(z): int(atoms[z]) for z in np.flatnonzero(atoms)}

    @property
    def primitive_atoms(self) -> int:
        """Atoms in the primitive cell."""
        return int(self.multiplicity.sum()) // len(self.group.centring)

    def assignment(self) -> Assignment:
        """Positions of each element's sites, elements by atomic number, in the one way that
        :mod:`~langevin_xtal.symmetry.assignments` tells."""
        sites = [
            tuple(sorted(self.positions[k] for k in np.flatnonzero(self.numbers == z)))
            for z in self.counts()
        ]
        return canonical(self.group.number, tuple(sites))[0]

    def cell(self) -> Cell:
        """The primitive cell: the answer."""
        return expanded(self.group, self.lattice, self.frac, self.numbers)


def choose_targets(
    data: PackedDataset,
    count: int | None,
    *,
    groups: range = PAPER_GROUPS,
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
    # a letter names one position of its group
    position: dict[tuple[int, str], WyckoffPosition] = {}
    targets = []
    for k in chosen.tolist():
        own = data.sites_of(k)
        number, lattice = int(data.group[k]), data.lattice[k]
        where = []
        for letter, point in zip(data.wyckoff[own].tolist(), data.frac[own], strict=True):
            if (number, letter) not in position:
                position[number, letter] = locate(number, point, lattice)
            where.append(position[number, letter])
        targets.append(
            Target(
                id=str(data.id[k]),
                group=SpaceGroup(number),
                numbers=data.numbers[own],
                frac=data.frac[own],
                multiplicity=data.multiplicity[own],
                letters=data.wyckoff[own],
                positions=tuple(w.index for w in where),
                lattice=lattice,
                freedom=sum(w.freedom for w in where),
            )
        )
    return targets


def trial_id(target: Target, trial: int) -> str:
    """Identifier of a prediction, read back by
    :func:`~langevin_xtal.evaluation.structures.split_id`."""
    return f"{target.id}__{trial}"


def predict(
    targets: Sequence[Target],
    model: CrystalModel | str,
    *,
    mode: Mode = "sites",
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
    mode
        What the model is given.
    progress
        Called with noise levels done and planned within the trial that runs.
    on_part
        Called with each trial's number and structures as soon as they are there, to save them. To
        resume, run :func:`predict_trial` for the trials that are not saved and :func:`join` all.

    Raises
    ------
    InputError
        For less than one trial, or a mode that is not known.
    """
    check_trials(trials)
    parts = []
    for trial in range(trials):
        part = predict_trial(
            targets,
            model,
            trial,
            mode=mode,
            seed=seed,
            options=options,
            label=label,
            progress=progress,
        )
        parts.append(part)
        if on_part is not None:
            on_part(trial, part)
    return join(label, parts)


def predict_trial(
    targets: Sequence[Target],
    model: CrystalModel | str,
    trial: int,
    *,
    mode: Mode = "sites",
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
    from langevin_xtal.model.checkpoint import load_model

    model = load_model(model) if isinstance(model, str) else model
    first = trial * len(targets)
    requests: dict[int, Request] = {}
    reason: dict[int, str] = {}
    for place, target in enumerate(targets):
        try:
            request = target.request(mode)
            if request.leaves_choice:
                request = _spread(request, model)[trial]
        except InputError as error:
            reason[first + place] = str(error)
        else:
            requests[first + place] = request
    ids = {first + place: trial_id(target, trial) for place, target in enumerate(targets)}
    return _sampled(requests, ids, reason, model, seed, options, label, progress)


def de_novo_samples(
    model: CrystalModel | str,
    places: range,
    *,
    groups: Sequence[int] = (),
    seed: int = 0,
    options: SampleOptions | None = None,
    label: str = "model",
    progress: Progress | None = None,
) -> StructureSet:
    """Samples of requests that name nothing: elements, stoichiometry and setting are drawn too.

    Sample k is drawn from stream k of ``seed``: those of one range are the same in a longer one.
    Requests that cannot be sampled and those whose attempts were all rejected are missing, with
    the last reason.

    Parameters
    ----------
    places
        Which samples.
    groups
        Space groups that may be drawn, by number; all by default.

    Raises
    ------
    RequestError
        Where the model has no distribution over settings.
    """
    from langevin_xtal.model.checkpoint import load_model
    from langevin_xtal.sampling.spread import de_novo

    model = load_model(model) if isinstance(model, str) else model
    if model.settings is None:
        raise RequestError(
            f"model {model.name} has no distribution over settings: it cannot sample de novo; use "
            "a model that has"
        )
    nothing = Request(groups=groups)
    requests: dict[int, Request] = {}
    reason: dict[int, str] = {}
    for k in places:
        try:
            requests[k] = de_novo(nothing, model, seed, k)
        except RequestError as error:
            reason[k] = str(error)
    ids = {k: f"de-novo-{k:06d}" for k in places}
    return _sampled(requests, ids, reason, model, seed, options, label, progress)


def _sampled(
    requests: dict[int, Request],
    ids: dict[int, str],
    reason: dict[int, str],
    model: CrystalModel,
    seed: int,
    options: SampleOptions | None,
    label: str,
    progress: Progress | None,
) -> StructureSet:
    """One sample of every request, by stream; those of ``ids`` that are not there are missing.

    Parameters
    ----------
    reason
        Why streams that have no request have none.
    """
    from langevin_xtal.sampling.sample import sample_batches

    found: list[Candidate] = []
    last = dict.fromkeys(requests, -1)
    place = {k: n for n, k in enumerate(ids)}
    for outcome in sample_batches(
        list(requests.values()),
        model,
        seed,
        indices=list(requests),
        options=options,
        progress=progress,
    ):
        found += [replace(c, index=place[c.index]) for c in outcome.candidates]
        for rejection in outcome.rejections:
            if rejection.attempt > last[rejection.index]:
                last[rejection.index] = rejection.attempt
                reason[rejection.index] = rejection.reason
    reason_of = {ids[k]: text for k, text in reason.items()}
    sampled = StructureSet.from_candidates(found, label, list(ids.values()))
    return replace(
        sampled,
        missing=tuple(Missing(m.id, reason_of.get(m.id, m.reason)) for m in sampled.missing),
    )


@lru_cache(maxsize=20_000)
def _spread(request: Request, model: CrystalModel) -> Spread:
    """Samples of a request that leaves a choice, which go on from trial to trial.

    Settings of training crystals of the very composition get no share of their own: those held out
    are other crystals than those.
    """
    from langevin_xtal.sampling.spread import Spread, SpreadOptions

    return Spread(request, model, SpreadOptions(known_share=0.0))


@dataclass(frozen=True)
class SettingRanks:
    """Places of true settings among those of T open requests; −1 where not among those looked at.

    0 is the likeliest.
    """

    group: IntArray  #: (T,) of the space group (and Z with it)
    assignment: IntArray  #: (T,) of the assignment among those of the true group
    setting: IntArray  #: (T,) of group and assignment together


def setting_ranks(
    targets: Sequence[Target],
    model: CrystalModel,
    *,
    most: int = 20,
    progress: Progress | None = None,
) -> SettingRanks:
    """How a model ranks the true settings of targets, their composition and atoms given.

    Parameters
    ----------
    most
        Settings of each target that are looked at.
    """
    ranks = np.full((3, len(targets)), -1, dtype=np.int64)
    within = assignment_ranks(targets, model)
    for place, target in enumerate(targets):
        if progress is not None:
            progress(place, len(targets))
        request = target.request("composition")
        true = target.assignment()
        spread = _spread(request, model)
        for setting in islice(spread.settings(), most):
            mine = dict(zip(setting.composition.elements, setting.assignment, strict=True))
            same = setting.group == target.group.number and true == tuple(
                mine[z] for z in target.counts()
            )
            if same:
                ranks[2, place] = setting.rank
                break
        order = spread.group_order()
        if target.group.number in order:
            ranks[0, place] = order.index(target.group.number)
    ranks[1] = within
    return SettingRanks(*ranks)


def assignment_ranks(targets: Sequence[Target], model: CrystalModel) -> IntArray:
    """(T,) place of each target's true assignment of Wyckoff positions among those of its formula.

    0 is the likeliest by the model; −1 where the true one is not among those ranked
    (:data:`~langevin_xtal.sampling.positions.MOST_ASSIGNMENTS`), or the formula is too large to
    ask for. Exact samples can match a target only where its assignment is drawn.
    """
    from langevin_xtal.sampling.positions import ranked_assignments

    ranks = []
    for target in targets:
        counts = target.counts()
        try:
            target.request("formula")
        except InputError:
            ranks.append(-1)
            continue
        ranked = ranked_assignments(
            model.ranker, model.prior, target.group.number, tuple(counts), tuple(counts.values())
        )
        found = ranked[0] if ranked is not None else []
        true = target.assignment()
        ranks.append(found.index(true) if true in found else -1)
    return np.array(ranks, dtype=np.int64)


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
