"""Space groups as users name them: numbers, symbols, ranges, crystal systems, common, all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from langevin_xtal.errors import InputError, SymmetryError
from langevin_xtal.symmetry.groups import CRYSTAL_SYSTEMS, SpaceGroup
from langevin_xtal.symmetry.settings import setting_note

if TYPE_CHECKING:
    from langevin_xtal.model.checkpoint import CrystalModel

COMMON = 32
"""Groups that ``"common"`` stands for: the most frequent ones of the model's training data."""

Groups = str | int | SpaceGroup | Iterable[str | int | SpaceGroup]

_SYSTEMS = {name: range(first, last + 1) for name, first, last in CRYSTAL_SYSTEMS}


def parse_groups(groups: Groups, model: CrystalModel | str = "small") -> tuple[int, ...]:
    """Numbers of the groups named, each once, in order.

    Names are numbers, symbols in any spelling that
    :func:`~langevin_xtal.symmetry.settings.settings_of` reads, ranges such as ``140-142``,
    crystal systems, ``common`` (see :data:`COMMON`) and ``all``; several are separated by commas,
    numbers and ranges by blanks too.

    Raises
    ------
    SymmetryError
        For a group that does not exist.
    InputError
        For an empty range, or no group at all.
    """
    items = [groups] if isinstance(groups, (str, int, SpaceGroup)) else list(groups)
    found: dict[int, None] = {}
    for item in items:
        for part in _parts(str(item.number if isinstance(item, SpaceGroup) else item)):
            found |= dict.fromkeys(_named(part, model))
    if not found:
        raise InputError(
            "no space group was given: give all, common, a crystal system, numbers, symbols or "
            "ranges, such as 62,Fm-3m,140-142"
        )
    return tuple(found)


def setting_notes(groups: Groups) -> list[str]:
    """A sentence for every symbol that means another setting than the package computes in."""
    if not isinstance(groups, str):
        return []
    notes = []
    for part in _parts(groups):
        with suppress(SymmetryError):  # not one symbol: a range, a crystal system, …
            notes.append(setting_note(part))
    return list(filter(None, notes))


def compact(numbers: Iterable[int]) -> str:
    """Numbers in their order as text, runs as ranges: ``"62,225-230"``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def common_groups(model: CrystalModel | str = "small") -> tuple[int, ...]:
    """The most frequent groups of the model's training data, by frequency."""
    from langevin_xtal.model.checkpoint import load_model

    weights = (load_model(model) if isinstance(model, str) else model).statistics.group_weight
    order = np.argsort(-weights, kind="stable")
    return tuple(int(n) for n in order if n and weights[n] > 0)[:COMMON]


def _parts(text: str) -> list[str]:
    """Names of a list: commas part them, and blanks where all are numbers, ranges or words."""
    parts = []
    for part in text.split(","):
        words = part.split()
        plain = len(words) > 1 and all(re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?", w) for w in words)
        parts += words if plain else [part.strip()]
    return parts


def _named(text: str, model: CrystalModel | str) -> Sequence[int]:
    name = text.lower()
    if name in ("", "all"):
        return range(1, 231) if name else ()
    if name == "common":
        return common_groups(model)
    if name in _SYSTEMS:
        return _SYSTEMS[name]
    span = re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", text)
    if span is None:
        try:
            return (SpaceGroup.parse(text).number,)
        except SymmetryError as error:
            if not name.isalpha():
                raise
            others = f"{', '.join(_SYSTEMS)}, common and all stand for several"
            raise SymmetryError(f"{error}; {others}") from None
    first, last = SpaceGroup(int(span[1])).number, SpaceGroup(int(span[2])).number
    if first > last:
        raise InputError(f"range {text} of space groups is empty; give the smaller number first")
    return range(first, last + 1)
