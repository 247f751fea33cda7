"""An evaluation up to the judgement: crystals, targets, and the sets to be judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langevin_xtal.cli import generators, options, structures
from langevin_xtal.cli.evaluation_controls import CONTROLS, control_sets, default_controls
from langevin_xtal.cli.evaluation_sets import KeptSets, drawn, predicted
from langevin_xtal.config.evaluation import DEFAULT_DE_NOVO, DEFAULT_TARGETS
from langevin_xtal.config.sampling import SamplingConfig
from langevin_xtal.errors import InputError

if TYPE_CHECKING:
    from langevin_xtal.cli.evaluate import Asked
    from langevin_xtal.dataset.packed import PackedDataset
    from langevin_xtal.evaluation.structures import StructureSet
    from langevin_xtal.evaluation.targets import Target
    from langevin_xtal.sampling.sample import SampleOptions

PAPER_GROUPS = range(16, 231)


class EvaluationRun:
    """An evaluation up to the judgement: crystals, targets, and the sets to be judged."""

    def __init__(self, asked: Asked, out: Path) -> None:
        self.asked = asked
        named = asked.generator
        self.other = None if named is None else generators.loaded(named, asked.weights)
        self.mode = asked.mode
        if self.other is not None:
            self.mode = generators.mode_for(self.other, asked.mode)
        self.is_sampled = bool(asked.models) or self.other is not None
        self.data, self.known, self.groups = self._crystals()
        self.sets = _read(asked.samples)
        self.targets = self._targets()
        self.controls = self._chosen_controls()
        self.folder = KeptSets(out)
        self.evaluations: dict[str, int] = {}
        self._notes: list[str] = []

    def _crystals(self) -> tuple[PackedDataset, PackedDataset | None, set[int] | None]:
        """Reference and training crystals of the groups that are kept, and these (None: all)."""
        import numpy as np

        from langevin_xtal.model.groups import parse_groups

        asked = self.asked
        data = structures.load_crystals(asked.reference)
        if self.other is not None:
            data = generators.served(self.other, data)
        known = None if asked.training is None else structures.load_crystals(asked.training)
        options.say_settings(asked.groups)
        kept = None if asked.groups is None else set(parse_groups(asked.groups))
        if kept is None and asked.models and self.mode == "sites":
            kept = set(PAPER_GROUPS)
        if kept is not None:
            data = data.select(np.isin(data.group, sorted(kept)))
            known = None if known is None else known.select(np.isin(known.group, sorted(kept)))
        return data, known, kept

    def _targets(self) -> list[Target]:
        from langevin_xtal.evaluation.targets import ALL_GROUPS, choose_targets
        from langevin_xtal.evaluation.trials import reference_targets

        asked = self.asked
        if asked.count is not None and not self.is_sampled:
            raise InputError("--n counts the targets of a --model; leave it out")
        if self.mode == "de-novo":
            _check_de_novo(self.is_sampled, asked.trials, asked.control_trials, asked.controls)
            return []
        if not self.is_sampled:
            listed = _listed(asked.chosen_targets, self.sets, self.data)
            return list(reference_targets(self.data, self.sets, listed))
        count = asked.count or DEFAULT_TARGETS
        targets = choose_targets(self.data, count, groups=ALL_GROUPS, seed=asked.seed)
        for target in targets[:1] if asked.models else ():
            target.request(self.mode)  # refuses a mode that cannot be given
        return targets

    def _chosen_controls(self) -> tuple[str, ...]:
        controls = self.asked.controls
        if controls is None:
            training = self.known is not None
            controls = default_controls(self.mode, bool(self.targets), training)
        needs = [name for name in controls if not name.startswith("random")]
        if needs and self.known is None:
            raise InputError(f"the control {needs[0]} needs --training FILE.lxd")
        return controls if self.targets else tuple(c for c in controls if c == "training")

    @property
    def _drawn(self) -> int:
        """Samples de novo."""
        return self.asked.count or DEFAULT_DE_NOVO

    def add_model(self, name: str, levels: str | None, sampling: Mapping[str, Any]) -> None:
        """Predictions or samples of a model, a set for each number of noise levels."""
        asked = self.asked
        if self.mode == "formula":
            self._notes.append(_ranking(name, self.targets))
        if self.mode == "composition":
            self._notes.append(_setting_ranking(name, self.targets))
        for label, settings in _runs(name, sampling, asked.workers, levels, asked.models):
            if self.mode == "de-novo":
                made, count = drawn(
                    self.folder, label, name, settings, self._drawn, self.groups, asked.seed
                )
            else:
                made, count = predicted(
                    self.folder, label, name, settings, self.targets, asked.trials, asked.seed,
                    self.mode,
                )  # fmt: skip
            self.sets.append(made)
            self.evaluations[label] = count

    def add_generator(self) -> None:
        """What the generator makes, where one is named."""
        asked, other = self.asked, self.other
        if other is not None:
            self.sets += generators.evaluated(
                other, self.folder.get, self.targets, asked.trials, self._drawn, asked.seed
            )
            self.folder.settings[other.name] = {"weights": other.hash, "card": other.card}

    def add_controls(self) -> None:
        """The sets that stand beside."""
        asked = self.asked
        compared = len(self.targets) or (self._drawn if self.mode == "de-novo" else None)
        self.sets += control_sets(
            self.folder, self.controls, self.targets, self.known,
            asked.control_trials or asked.trials, asked.seed, asked.workers, compared,
        )  # fmt: skip

    def record(self) -> dict[str, object]:
        """For the report: what was done."""
        return {
            "targets": len(self.targets),
            "trials": self.asked.trials,
            "seed": self.asked.seed,
            "mode": self.mode if self.is_sampled else None,
            "groups": None if self.groups is None else sorted(self.groups),
            "models": self.folder.settings,
        }

    def all_notes(self) -> list[str]:
        """Sentences below the table."""
        from langevin_xtal.evaluation.targets import GIVEN

        notes = []
        if self.mode == "de-novo":
            notes.append(
                "Models are given nothing: elements, stoichiometry, space group, cell content and "
                "Wyckoff positions are drawn from the model's distribution"
                + ("." if self.groups is None else ", among the space groups of --sg.")
            )
        elif self.asked.models:
            notes.append(f"Models are given of each target: {GIVEN[self.mode]}.")
        if self.other is not None:
            notes.append(f"Generator {self.other.name} serves {self.other.serves}.")
        controls = [f"Control {name}: {CONTROLS[name]}." for name in self.controls]
        return [*notes, *self._notes, *controls]


def _read(paths: Sequence[Path]) -> list[StructureSet]:
    from langevin_xtal.evaluation.structures import StructureSet
    from langevin_xtal.search.entries import read_structures
    from langevin_xtal.search.store import is_store

    sets: list[StructureSet] = []
    for path in paths:
        name = path.name or str(path)
        taken = {s.label for s in sets}
        label = name if name not in taken else str(path)
        if is_store(path):
            found = read_structures(path)
            sets.append(StructureSet.of(label, [s.cell for s in found], [s.id for s in found]))
            continue
        passed_over: dict[str, str] = {}
        sets.append(StructureSet.read(path, label, passed_over))
        structures.show_notes({}, passed_over)
    return sets


def _listed(chosen: str, sets: Sequence[StructureSet], data: PackedDataset) -> set[str] | None:
    """Identifiers of the targets, None for all.

    Raises
    ------
    InputError
        When the file of identifiers cannot be read or is empty.
    """
    from langevin_xtal.evaluation.structures import split_id

    if chosen == "all":
        return None
    if chosen == "named":
        names = [name for s in sets for name in [*s.ids, *(m.id for m in s.missing)]]
        return {split_id(name)[0] for name in names} & set(data.id.tolist())
    try:
        text = Path(chosen).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InputError(f"--targets {chosen}: give all, named, or a file ({reason})") from None
    listed = {line.strip() for line in text.splitlines()} - {""}
    if not listed:
        raise InputError(f"--targets {chosen}: the file names no crystal")
    return listed


def _runs(
    name: str,
    sampling: Mapping[str, Any],
    workers: int | None,
    levels: str | None,
    models: Sequence[str],
) -> Iterator[tuple[str, SampleOptions]]:
    """(label, options) of every number of levels asked for."""
    from langevin_xtal.sampling.sample import SampleOptions

    numbers: list[int | None] = [None]
    if levels is not None:
        try:
            numbers = [int(part) for part in levels.split(",")]
        except ValueError:
            raise InputError(
                f"--levels {levels!r} is not a list of numbers such as 10,25"
            ) from None
        if min(n for n in numbers if n is not None) < 2:
            raise InputError("--levels: at least 2 noise levels are needed")
    short = Path(name).stem if Path(name).suffix else name
    if len({Path(m).stem if Path(m).suffix else m for m in models}) < len(models):
        short = name
    for number in numbers:
        label = short if len(numbers) == 1 else f"{short}, {number} levels"
        yield (
            label,
            SampleOptions.of(SamplingConfig(**sampling, levels=number), workers=workers),
        )


def _check_de_novo(
    sampled: bool,
    trials: int,
    control_trials: int | None,
    controls: Sequence[str] | None,
) -> None:
    """Refuse what belongs to targets."""
    if not sampled:
        raise InputError("--mode de-novo samples a model: name it with --model")
    if trials > 1 or control_trials is not None:
        raise InputError(
            "--k and --control-trials count the trials of a target, and --mode de-novo has none; "
            "give the number of samples with --n"
        )
    wrong = [name for name in controls or () if name != "training"]
    if wrong:
        raise InputError(
            f"the control {wrong[0]} predicts targets, and --mode de-novo has none; give training "
            "or none"
        )


def _ranking(name: str, targets: Sequence[Target]) -> str:
    """How well a model ranks the true assignments, in a sentence."""
    from langevin_xtal.evaluation.targets import assignment_ranks
    from langevin_xtal.model.checkpoint import load_model

    ranks = assignment_ranks(targets, load_model(name))
    within = {k: ((ranks >= 0) & (ranks < k)).mean() for k in (1, 5, 20)}
    return (
        f"Assignments of Wyckoff positions by {name}: the true one is ranked first for "
        f"{within[1]:.3f} of the targets, in the top 5 for {within[5]:.3f}, in the top 20 for "
        f"{within[20]:.3f}, among those ranked for {(ranks >= 0).mean():.3f}."
    )


def _setting_ranking(name: str, targets: Sequence[Target]) -> str:
    """How well a model ranks the true settings, in two sentences."""
    from langevin_xtal.evaluation.targets import setting_ranks
    from langevin_xtal.model.checkpoint import load_model

    with options.progress_bar(f"{name}: settings", "target") as update:
        ranks = setting_ranks(targets, load_model(name), progress=update)
    text = []
    for what, places in (
        ("space group", ranks.group),
        ("assignment, the group given,", ranks.assignment),
        ("setting", ranks.setting),
    ):
        first, five, twenty = (((places >= 0) & (places < k)).mean() for k in (1, 5, 20))
        text.append(f"{what} first {first:.3f}, top 5 {five:.3f}, top 20 {twenty:.3f}")
    return f"True settings by {name}: {'; '.join(text)}."
