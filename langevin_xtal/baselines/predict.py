"""A generator's answers as the sets of structures that an evaluation compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from langevin_xtal.baselines.base import Generator
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError, RequestError
from langevin_xtal.evaluation.structures import Missing, StructureSet
from langevin_xtal.evaluation.targets import Target, trial_id

Progress = Callable[[int, int], None]


def request_for(generator: Generator, target: Target) -> Request:
    """What a generator is given of a target.

    Raises
    ------
    RequestError
        When the target is more than it can serve.
    """
    if generator.given == "composition":
        request = target.request("composition")
    elif generator.given == "elements":
        elements = [SYMBOLS[z] for z in np.unique(target.numbers).tolist()]
        request = Request(target.group, elements=elements)
    else:
        request = Request()
    generator.check(request)
    return request


def served(generator: Generator, data: PackedDataset) -> PackedDataset:
    """The crystals of a reference that the generator can be asked for.

    Only a generator that is given elements and space group leaves any out here; what another one
    cannot serve counts as missing.

    Raises
    ------
    InputError
        When there are none.
    """
    if generator.given != "elements":
        return data
    kept = []
    for k in range(len(data)):
        elements = [SYMBOLS[z] for z in np.unique(data.numbers[data.sites_of(k)]).tolist()]
        try:
            generator.check(Request(int(data.group[k]), elements=elements))
        except RequestError:
            continue
        kept.append(k)
    if not kept:
        raise InputError(
            f"the reference has no crystal that generator {generator.name} can be asked for; it "
            f"serves {generator.serves}"
        )
    return data.select(kept)


def predictions(
    generator: Generator,
    targets: Sequence[Target],
    trial: int,
    *,
    seed: int = 0,
    label: str = "",
    progress: Progress | None = None,
) -> StructureSet:
    """One structure for every target; trial j of target t of T is of stream ``j T + t``."""
    requests, streams, reasons = [], [], {}
    for place, target in enumerate(targets):
        try:
            requests.append(request_for(generator, target))
            streams.append(trial * len(targets) + place)
        except RequestError as error:
            reasons[place] = str(error)
    found = generator.outcomes(requests, seed, indices=streams, progress=progress)
    first = trial * len(targets)
    reasons |= {r.index - first: r.reason for r in found.rejections}
    made = StructureSet.from_candidates(
        [replace(c, index=c.index - first) for c in found.candidates],
        label or generator.name,
        [trial_id(target, trial) for target in targets],
    )
    here = {trial_id(target, trial): target.group.number for target in targets}
    asked = [here[name] if generator.given == "elements" else 0 for name in made.ids]
    return _completed(made, asked, {trial_id(targets[k], trial): reasons[k] for k in reasons})


def unconditional(
    generator: Generator,
    count: int,
    *,
    seed: int = 0,
    label: str = "",
    progress: Progress | None = None,
) -> StructureSet:
    """``count`` structures of a generator that is given nothing."""
    found = generator.outcomes([Request()] * count, seed, progress=progress)
    ids = [f"{generator.name}-{k:06d}" for k in range(count)]
    made = StructureSet.from_candidates(found.candidates, label or generator.name, ids)
    reasons = {ids[r.index]: r.reason for r in found.rejections}
    return _completed(made, [0] * len(made), reasons)


def _completed(made: StructureSet, asked: Sequence[int], reasons: dict[str, str]) -> StructureSet:
    """With the groups that were asked for, 0 for none, and why structures are missing."""
    missing = tuple(Missing(m.id, reasons.get(m.id, m.reason)) for m in made.missing)
    return replace(made, group=np.array(asked, dtype=np.int64), missing=missing)
