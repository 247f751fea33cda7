"""Controls of an evaluation: sets that stand beside those of models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from langevin_xtal.cli import options
from langevin_xtal.cli.evaluation_sets import KeptSets, key_of
from langevin_xtal.config.evaluation import DEFAULT_TARGETS

if TYPE_CHECKING:
    from langevin_xtal.dataset.packed import PackedDataset
    from langevin_xtal.evaluation.structures import StructureSet
    from langevin_xtal.evaluation.targets import Target

CONTROLS = {
    "random": "PyXtal's random coordinates and cell with the true Wyckoff letters, and so the "
    "true formula",
    "random-relaxed": "the same, relaxed",
    "template": "the nearest training crystal of the same group and sites, elements substituted",
    "template-letters": "the same, given the true Wyckoff letters",
    "template-composition": "the nearest training crystal with the same numbers of atoms in the "
    "primitive cell, of any space group, elements substituted",
    "training": "training crystals: the ceiling of measures of distributions",
}


def default_controls(mode: str, targets: bool, training: bool) -> tuple[str, ...]:
    """What stands beside the sets where nothing was said."""
    known = ("training",) if training else ()
    if not targets:
        return known
    if mode == "composition" and training:
        # random crystals are given the true letters, much more than a composition
        return ("template-composition", *known)
    return ("random", *(("template",) if training else ()), *known)


def control_sets(
    folder: KeptSets,
    controls: Sequence[str],
    targets: Sequence[Target],
    known: PackedDataset | None,
    trials: int,
    seed: int,
    workers: int | None,
    compared: int | None,
) -> list[StructureSet]:
    """Sets to print beside; ``compared`` is how many training crystals, by default some."""
    from langevin_xtal.evaluation import controls as make
    from langevin_xtal.evaluation.random_crystals import random_symmetric

    sets = []
    base = key_of(targets, seed) | {"trials": trials}
    if known is not None:
        base["training"] = known.content_hash

    def random() -> StructureSet:
        with options.progress_bar("control random", "structure") as update:
            return random_symmetric(
                targets, trials=trials, seed=seed, workers=workers, progress=update,
                label="random",
            )  # fmt: skip

    if {"random", "random-relaxed"} & set(controls):
        sets.append(folder.get("random", base | {"control": "random"}, random))
    for name in ("template", "template-letters"):
        if name in controls and known is not None:

            def template(name: str = name, known: PackedDataset = known) -> StructureSet:
                with options.progress_bar(f"control {name}", "structure") as update:
                    return make.nearest_template(
                        targets, known, trials=trials, with_letters=name.endswith("letters"),
                        label=name, progress=update,
                    )  # fmt: skip

            sets.append(folder.get(name, base | {"control": name}, template))
    if "template-composition" in controls and known is not None:

        def by_composition(known: PackedDataset = known) -> StructureSet:
            with options.progress_bar("control template-composition", "structure") as update:
                return make.composition_template(
                    targets, known, trials=trials, workers=workers,
                    label="template-composition", progress=update,
                )  # fmt: skip

        key = base | {"control": "template-composition"}
        sets.append(folder.get("template-composition", key, by_composition))
    if "training" in controls and known is not None:
        size = min(len(known), compared or DEFAULT_TARGETS)
        sets.append(make.training_sample(known, size, seed=seed, label="training"))
    return sets
