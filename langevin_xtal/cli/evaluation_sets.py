"""Sets of structures that an evaluation samples, kept in its folder to be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from langevin_xtal.cli import options
from langevin_xtal.errors import InputError
from langevin_xtal.files import clear_left
from langevin_xtal.version import __version__

if TYPE_CHECKING:
    from langevin_xtal.config.evaluation import Mode
    from langevin_xtal.evaluation.structures import StructureSet
    from langevin_xtal.evaluation.targets import Target
    from langevin_xtal.model.checkpoint import CrystalModel
    from langevin_xtal.sampling.sample import SampleOptions

DE_NOVO_PART = 500
"""Samples of one part, which is saved before the next begins."""


class KeptSets:
    """Sets that were made for this evaluation, kept in its folder to be resumed."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "sets"
        self.settings: dict[str, object] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            clear_left(out)
            clear_left(self.folder)
        except OSError as error:
            raise InputError(
                f"folder {out} cannot be written ({error.strerror}); give --out another folder"
            ) from None

    def get(self, label: str, settings: object, make: Callable[[], StructureSet]) -> StructureSet:
        """The set made with these settings: from the folder, else made and kept."""
        from langevin_xtal.evaluation.structures import StructureSet

        # another version may make another set with the same settings
        hashed = json.dumps([__version__, settings], sort_keys=True)
        digest = hashlib.sha256(hashed.encode()).hexdigest()[:12]
        path = self.folder / f"{digest}.structures.npz"
        if path.exists():
            return StructureSet.load(path, label)
        made = make()
        made.save(path)
        return made


class _Part(NamedTuple):
    """What is sampled and saved at a time."""

    title: str
    key: dict[str, object]  #: what makes it, beside weights and options
    sample: Callable[..., StructureSet]  #: takes options, label and progress


def predicted(
    folder: KeptSets,
    label: str,
    name: str,
    settings: SampleOptions,
    targets: Sequence[Target],
    trials: int,
    seed: int,
    mode: Mode,
) -> tuple[StructureSet, int]:
    """Predictions of a model, trial by trial, and its evaluations per structure."""
    from langevin_xtal.evaluation.targets import predict_trial
    from langevin_xtal.model.checkpoint import load_model

    model = load_model(name)
    base = key_of(targets, seed) | {"model_settings": model.settings_hash, "mode": mode}
    parts = (
        _Part(
            f"sampling {trial + 1}/{trials}",
            base | {"trial": trial},
            partial(predict_trial, targets, model, trial, mode=mode, seed=seed),
        )
        for trial in range(trials)
    )
    return _joined(folder, label, model, settings, parts)


def drawn(
    folder: KeptSets,
    label: str,
    name: str,
    settings: SampleOptions,
    count: int,
    groups: Collection[int] | None,
    seed: int,
) -> tuple[StructureSet, int]:
    """Samples of a model that is given nothing, and its evaluations per structure."""
    from langevin_xtal.evaluation.targets import de_novo_samples
    from langevin_xtal.model.checkpoint import load_model

    model = load_model(name)
    allowed = sorted(groups or ())
    base = {"mode": "de-novo", "groups": allowed, "seed": seed}
    starts = range(0, count, DE_NOVO_PART)
    parts = (
        _Part(
            f"samples {places.start + 1}-{places.stop} of {count}",
            base | {"places": [places.start, places.stop]},
            partial(de_novo_samples, model, places, groups=allowed, seed=seed),
        )
        for places in (range(k, min(k + DE_NOVO_PART, count)) for k in starts)
    )
    return _joined(folder, label, model, settings, parts)


def _joined(
    folder: KeptSets,
    label: str,
    model: CrystalModel,
    settings: SampleOptions,
    parts: Iterable[_Part],
) -> tuple[StructureSet, int]:
    """Parts from the folder or, where they are not there, sampled; evaluations per structure."""
    from dataclasses import replace

    from langevin_xtal.evaluation.targets import join

    recorded = repr(replace(settings, workers=None))  # which change no candidate
    base = {"model": [model.hash, model.settings_hash], "options": recorded}
    made = []
    for part in parts:

        def make(part: _Part = part) -> StructureSet:
            with options.progress_bar(f"{label}: {part.title}", "level") as update:
                return part.sample(options=settings, label=label, progress=update)

        made.append(folder.get(label, base | part.key, make))
    folder.settings[label] = {"weights": model.hash, "options": recorded}
    return join(label, made), settings.chains * settings.sampler.evaluations


def key_of(targets: Sequence[Target], seed: int) -> dict[str, object]:
    """What targets and their seed are, for the key of a set."""
    names = hashlib.sha256("\0".join(t.id for t in targets).encode()).hexdigest()
    return {"targets": names, "seed": seed}
