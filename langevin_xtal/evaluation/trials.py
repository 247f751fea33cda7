"""Sets with several predictions of each target: which of them count."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError
from langevin_xtal.evaluation.structures import Missing, StructureSet, split_id
from langevin_xtal.evaluation.targets import ALL_GROUPS, Target, choose_targets


def reference_targets(
    data: PackedDataset, sets: Sequence[StructureSet], only: Collection[str] | None = None
) -> list[Target]:
    """All crystals of the reference where identifiers of the structures name any; else none.

    Parameters
    ----------
    only
        Identifiers of the crystals that are targets; by default all.

    Raises
    ------
    InputError
        For an identifier that the reference lacks.
    """
    if only is not None:
        lacking = sorted(set(only) - set(data.id.tolist()))
        if lacking:
            raise InputError(
                f"the reference has no crystal {lacking[0]!r}"
                + (f", nor {len(lacking) - 1} more of the targets" if len(lacking) > 1 else "")
            )
        return choose_targets(
            data.select(np.flatnonzero(np.isin(data.id, sorted(only)))), None, groups=ALL_GROUPS
        )
    named = {split_id(name)[0] for s in sets for name in [*s.ids, *(m.id for m in s.missing)]}
    if not named & set(data.id.tolist()):
        return []
    return choose_targets(data, None, groups=ALL_GROUPS)


def completed(
    structures: StructureSet, targets: Sequence[Target], known: Collection[str]
) -> StructureSet:
    """A set of predictions with those of targets it lacks as missing; other sets unchanged."""
    if not trials_in(structures, known):
        return structures
    names = [*structures.ids, *(m.id for m in structures.missing)]
    there = {target for target, trial in map(split_id, names) if trial == 0}
    lacking = [t.id for t in targets if t.id not in there]
    more = tuple(Missing(f"{name}__0", "no prediction of this target") for name in lacking)
    return replace(structures, missing=(*structures.missing, *more)) if more else structures


def trials_in(structures: StructureSet, known: Collection[str]) -> int:
    """Most trials of a target; 0 when no identifier names a crystal of the reference."""
    names = [*structures.ids, *(m.id for m in structures.missing)]
    numbers = [trial for target, trial in map(split_id, names) if target in known]
    return max(numbers) + 1 if numbers else 0


def some_trials(
    structures: StructureSet, known: Collection[str], trials: int, label: str | None = None
) -> StructureSet:
    """The first trials of every target, and all that predict no target."""

    def early(name: str) -> bool:
        target, trial = split_id(name)
        return target not in known or trial < trials

    picked: list[int] = [k for k, name in enumerate(structures.ids) if early(name)]
    chosen = structures.select(picked, label)
    missing = [m for m in structures.missing if early(m.id)]
    return StructureSet.of(chosen.label, list(chosen.cells()), chosen.ids, chosen.group, missing)


def of_compositions(targets: Sequence[Target]) -> list[str]:
    """Identifiers of the first targets of their composition, atoms in the primitive cell."""
    first: dict[tuple[tuple[int, int], ...], str] = {}
    for target in targets:
        units = len(target.group.centring)
        atoms = tuple((z, n // units) for z, n in target.counts().items())
        first.setdefault(atoms, target.id)
    return list(first.values())


def per_composition(structures: StructureSet, targets: Sequence[Target]) -> StructureSet:
    """Predictions of the first target of each composition, and all that predict no target."""
    left_out = {t.id for t in targets} - set(of_compositions(targets))
    return structures.select(
        [k for k, name in enumerate(structures.ids) if split_id(name)[0] not in left_out]
    )
