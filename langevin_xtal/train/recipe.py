"""Models by recipe: data, fits and card from a TOML file, ``langevin-xtal train --recipe NAME``.

A recipe names its sources (packed files), says how training sets are made of them and what is held
out, and lists the fits in their order. Each fit starts from what the fits before it gave, and is
kept in a folder of its own, so that a run that was stopped or killed goes on to the same weights.
The last one is followed by the model with its card, both written by the run.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import cast

from torch import nn

from langevin_xtal.config.tables import from_table, list_of, parse_toml, table_of
from langevin_xtal.config.training import Size, TrainingConfig
from langevin_xtal.crystal.properties import PROPERTIES
from langevin_xtal.dataset.join import join, near_duplicates, split
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError
from langevin_xtal.files import write_text
from langevin_xtal.model.checkpoint import CrystalModel, Part, load_model, save_model
from langevin_xtal.model.network import SIZES
from langevin_xtal.model.properties import PropertyModel, save_properties
from langevin_xtal.model.proposal import Proposal
from langevin_xtal.model.settings import SettingModel
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.train.card import page
from langevin_xtal.train.distributed import join as join_team
from langevin_xtal.train.fit import TimeIsOverError
from langevin_xtal.train.loop import MODEL, LogRow, TrainConfig, Trainer
from langevin_xtal.train.parts import PARTS, Fitting, PartEpochs, clear_states
from langevin_xtal.train.properties import PropertyFitConfig, fit_properties
from langevin_xtal.version import __version__

SCORE = "score"
"""Part that the score network is; the others are those of :data:`PARTS`."""
PROPERTY_FIT = "properties"
"""Fit of a property model, which is a file of its own and the only fit of its recipe."""
CARD = "card.md"
RECORD = "recipe.json"
HELD_OUT = 0.05
"""Share of a single file that is held out."""
MEMBERED = ("settings", "proposal")
"""Parts that may have several members, whose predictions are averaged."""
NOTHING = PartEpochs(**dict.fromkeys(PARTS, 0))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A packed file that the user gives."""

    what: str
    hash: str = ""
    """Content hash of the file that the shipped weights were made of."""
    held_out: bool = False
    """Whether it is for validation, and no training set."""


@dataclass(frozen=True, kw_only=True)
class DataStep:
    """A dataset made of others: joined, or split."""

    name: str
    join: Sequence[str] = ()
    without: str = ""
    """Leave out crystals that are nearly one of this dataset."""
    split: str = ""
    held_out: int = 0
    """Crystals drawn from ``split`` at random, and what is nearly one of them left out."""
    held_out_as: str = ""
    """Name of the dataset of those."""
    seed: int = 0

    def __post_init__(self) -> None:
        if bool(self.join) == bool(self.split):
            raise InputError(f"data {self.name}: give either join or split")
        if self.split and not (self.held_out > 0 and self.held_out_as):
            raise InputError(f"data {self.name}: split needs held_out and held_out_as")


@dataclass(frozen=True, kw_only=True)
class FitStep:
    """One fit: of the score network for some steps, or of another part for some epochs."""

    part: str
    data: str
    seed: int = 0
    most_sites: int | None = None
    """Only crystals of so many sites."""
    steps: int = 0
    stop_at: int | None = None
    learning_rate: float = TrainingConfig.learning_rate
    batch_size: int = TrainingConfig.batch_size
    validation: str = ""
    validate_every: int = TrainingConfig.validate_every
    log_every: int = TrainingConfig.log_every
    epochs: int = 0
    members: int = 1

    def __post_init__(self) -> None:
        known = (SCORE, *PARTS, PROPERTY_FIT)
        if self.part not in known:
            raise InputError(f"fit {self.part!r} is not known; give {', '.join(known)}")
        length = "steps" if self.part == SCORE else "epochs"
        if getattr(self, length) < 1:
            raise InputError(f"fit {self.part}: give {length}, 1 or more")

    def scaled(self, scale: float) -> FitStep:
        """The same with a share of the steps and epochs, at least one."""

        def some(count: int) -> int:
            return max(1, round(scale * count)) if count else 0

        return replace(
            self,
            steps=some(self.steps),
            stop_at=None if self.stop_at is None else some(self.stop_at),
            epochs=some(self.epochs),
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is made."""

    name: str
    statistics: str
    """Dataset whose statistics sampling goes by."""
    licence: str
    attribution: str
    size: str = "small"
    """Of the score network."""
    start: str = ""
    """Model to go on from: a shipped name or a file. A property model's fit starts from its score
    network; another model has all of it that no fit makes."""
    joined: Sequence[str] = ()
    """Parts whose members go behind those of the model that is started from."""
    halve: Sequence[str] = ()
    """Parts rounded to half precision in the end, which take half the space."""
    weaknesses: Sequence[str] = ()
    sources: Mapping[str, Source]
    data: Sequence[DataStep] = ()
    fit: Sequence[FitStep]

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise InputError(f"size {self.size!r} is not known; give one of {', '.join(SIZES)}")
        if any(fit.part == PROPERTY_FIT for fit in self.fit):
            if len(self.fit) > 1 or not self.start:
                raise InputError(
                    f"a fit of {PROPERTY_FIT} must be the only one, and start from a model: "
                    'start = "mp20"'
                )
        elif not self.fit or (self.fit[0].part != SCORE and not self.start):
            raise InputError(
                f"the first fit must be of the {SCORE} network, unless the recipe takes that of a "
                'model: start = "mp20"'
            )
        fitted = {fit.part for fit in self.fit}
        for part in self.joined:
            if part not in MEMBERED or part not in fitted or not self.start:
                raise InputError(
                    f"joined: {part!r} must be {' or '.join(MEMBERED)} and have a fit, and the "
                    "recipe a start, whose members go before"
                )
        for part in self.halve:
            if part not in (*PARTS, PROPERTY_FIT):
                known_parts = ", ".join((*PARTS, PROPERTY_FIT))
                raise InputError(f"halve: {part!r} is not known; give some of {known_parts}")
        known = set(self.sources)
        for step in self.data:
            self._check([*step.join, step.without, step.split], known, f"data {step.name}")
            known |= {step.name, step.held_out_as}
        for fit in self.fit:
            self._check([fit.data, fit.validation], known, f"fit {fit.part}")
        self._check([self.statistics], known, "statistics")

    @staticmethod
    def _check(names: Sequence[str], known: set[str], where: str) -> None:
        for name in names:
            if name and name not in known:
                raise InputError(f"{where}: there is no dataset {name!r} at that point")

    @property
    def hash(self) -> str:
        """16 hexadecimal digits over all that it says; what it leaves out may gain defaults."""
        text = json.dumps(_said(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _said(value: object) -> object:
    """As JSON, without what is as it is by default."""
    if dataclasses.is_dataclass(value):
        own = {f: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {f.name: _said(v) for f, v in own.items() if v != f.default}
    if isinstance(value, Mapping):
        return {k: _said(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_said(v) for v in value]
    return value


def shipped_recipes() -> tuple[str, ...]:
    """Names of the recipes inside the package."""
    names = (entry.name for entry in resources.files("langevin_xtal.recipes").iterdir())
    return tuple(sorted(n.removesuffix(".toml") for n in names if n.endswith(".toml")))


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by name, or one of your own by path.

    Raises
    ------
    InputError
        When there is none, or it cannot be used; the message says where and why.
    """
    if name_or_path in shipped_recipes():
        text = resources.files("langevin_xtal.recipes").joinpath(f"{name_or_path}.toml")
        return parse_recipe(text.read_text(encoding="utf-8"), f"recipe {name_or_path}")
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(
            f"recipe {name_or_path!r} is neither shipped ({', '.join(shipped_recipes())}) nor a "
            "file; give a shipped name or the path of a .toml file"
        )
    try:
        return parse_recipe(path.read_text(encoding="utf-8"), f"recipe {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} cannot be read ({error})") from None


def parse_recipe(text: str, where: str = "recipe") -> Recipe:
    """A recipe from TOML; unknown keys, missing ones and wrong types are refused.

    Raises
    ------
    InputError
        Naming the place.
    """
    table = parse_toml(text, where)
    try:
        sources = table_of(table.get("sources", {}), "sources")
        return from_table(
            Recipe,
            table
            | {
                "sources": {k: from_table(Source, v, f"sources.{k}") for k, v in sources.items()},
                "data": tuple(
                    from_table(DataStep, v, "data") for v in list_of(table.get("data", []))
                ),
                "fit": tuple(from_table(FitStep, v, "fit") for v in list_of(table.get("fit", []))),
            },
            "top",
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


@dataclass(frozen=True)
class Datasets:
    """What the fits of a recipe learn from, by name."""

    of: Mapping[str, PackedDataset]
    sources: Mapping[str, str]  #: content hash of each source
    note: str = ""  #: what is special about them


def named_files(recipe: Recipe, files: Sequence[str]) -> dict[str, Path]:
    """The file of each source: ``NAME=FILE``, or a file of the source's name.

    A single file that has no source's name stands for all of them: the dictionary has it under "".

    Raises
    ------
    InputError
        For a file of no source, and for sources without one.
    """
    found: dict[str, Path] = {}
    for text in files:
        name, given, path = text.partition("=")
        if not given:
            name, path = Path(text).stem, text
        if name not in recipe.sources:
            if len(files) == 1 and not given:
                return {"": Path(text)}
            raise InputError(
                f"{text} is no source of recipe {recipe.name}; its sources are "
                f"{', '.join(recipe.sources)}: give each as NAME=FILE"
            )
        if name in found:
            raise InputError(f"source {name} is given twice")
        found[name] = Path(path)
    missing = [name for name in recipe.sources if name not in found]
    if missing:
        raise InputError(
            f"recipe {recipe.name} needs {missing[0]} too: {recipe.sources[missing[0]].what}; "
            f"give it as --data {missing[0]}=FILE"
        )
    return found


def prepared(recipe: Recipe, files: Mapping[str, Path]) -> Datasets:
    """All datasets of a recipe, made of its sources.

    Of a single file (see :func:`named_files`) 5 % are held out, and stand for every validation
    set; the others, without what is nearly one of these, stand for every training set.
    """
    given = {name: PackedDataset.load(path) for name, path in files.items()}
    hashes = {name: data.content_hash for name, data in given.items()}
    if "" in given:
        whole = given[""]
        rest, others = split(whole, max(1, round(HELD_OUT * len(whole))))
        validation = {name for name, source in recipe.sources.items() if source.held_out}
        validation |= {step.held_out_as for step in recipe.data if step.held_out_as}
        names = [*recipe.sources, *(step.name for step in recipe.data), *validation]
        note = (
            f"one file stands for all sources of the recipe: {len(others)} of its {len(whole)} "
            f"crystals were held out, {len(rest)} learned from"
        )
        return Datasets({n: others if n in validation else rest for n in names}, hashes, note)
    made = dict(given)
    for step in recipe.data:
        if step.split:
            made[step.name], made[step.held_out_as] = split(
                made[step.split], step.held_out, seed=step.seed
            )
            continue
        whole = join([made[name] for name in step.join])
        if step.without:
            whole = whole.select(~near_duplicates(whole, made[step.without]))
        made[step.name] = whole
    other = [n for n, s in recipe.sources.items() if s.hash and s.hash != hashes[n]]
    note = f"not the files of the shipped weights: {', '.join(other)}" if other else ""
    return Datasets(made, hashes, note)


class RecipeRun:
    """A recipe carried out in a folder; the same recipe, data and scale continue it.

    Parameters
    ----------
    scale
        Share of the steps and epochs, to try a recipe out.
    command
        How it was asked for, for the card.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Datasets,
        out: Path,
        *,
        scale: float = 1.0,
        device: str = "cpu",
        name: str | None = None,
        command: str = "",
    ) -> None:
        if not 0 < scale <= 1:
            raise InputError(f"scale is {scale:g}; give a share of the fits, above 0 and up to 1")
        self.recipe, self.data, self.out = recipe, data, out
        self.scale, self.device, self.command = scale, device, command
        self.name = name or recipe.name
        self.fits = [step.scaled(scale) for step in recipe.fit]
        self.leads = join_team(device)[0].leads
        self.start = load_model(recipe.start) if recipe.start else None
        record = {"recipe": recipe.hash, "sources": dict(data.sources), "scale": scale}
        if self.start is not None:
            record["start"] = self.start.hash
            for part in recipe.joined:
                if part not in self.start.parts():
                    raise InputError(
                        f"joined: model {self.start.name} has no {part}, behind whose members "
                        "others could go"
                    )
        self._claim(record)

    def _claim(self, record: Mapping[str, object]) -> None:
        """Take the folder for this run, unless it holds another."""
        path = self.out / RECORD
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            text = path.read_text(encoding="utf-8") if path.exists() else None
            if text is None and self.leads:
                write_text(path, json.dumps(record, indent=2) + "\n")
        except OSError as error:
            raise InputError(
                f"folder {self.out} cannot be written ({error.strerror}); give another folder"
            ) from None
        try:
            same = text is None or json.loads(text) == record
        except (ValueError, RecursionError):
            raise InputError(f"{path} is damaged; give another folder") from None
        if not same:
            raise InputError(
                f"{self.out} holds a run of another recipe, of other data or scale; give the same "
                "to continue it, or another folder"
            )

    def run(
        self,
        *,
        max_seconds: float = math.inf,
        on_row: Callable[[LogRow, Trainer], None] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> CrystalModel | PropertyModel | None:
        """Go on to the end; None where the time was over, or in all processes but the first.

        Parameters
        ----------
        on_row
            Called with the rows of the score network's log.
        progress
            Called with the title of a fit, what is done of it and how much there is.
        """
        until = time.perf_counter() + max_seconds
        model = self.start
        made: set[str] = set()
        for k, step in enumerate(self.fits):
            title = f"fit {k + 1} of {len(self.fits)}: {step.part}"
            report = None if progress is None else _titled(progress, title)
            folder = self.out / f"{k + 1:02d}-{step.part}"
            try:
                if step.part == PROPERTY_FIT:
                    return self._properties(step, folder, until, report) if self.leads else None
                if step.part == SCORE:
                    model = self._score(step, folder, model, until, on_row, report)
                elif not self.leads:
                    return None
                else:
                    assert model is not None  # of the first fit, or where the recipe starts
                    model = self._part(step, folder, model, made, until, report)
                    made.add(step.part)
            except TimeIsOverError:
                return None
        assert model is not None
        return self._finished(model)

    def _learned(self, step: FitStep) -> PackedDataset:
        data = self.data.of[step.data]
        if step.most_sites is not None:
            data = data.select(data.site_counts <= step.most_sites)
        return data

    def _score(
        self,
        step: FitStep,
        folder: Path,
        model: CrystalModel | None,
        until: float,
        on_row: Callable[[LogRow, Trainer], None] | None,
        progress: Callable[[int, int], None] | None,
    ) -> CrystalModel:
        chosen = TrainingConfig(
            size=cast(Size, self.recipe.size),
            steps=step.steps,
            batch_size=step.batch_size,
            learning_rate=step.learning_rate,
            log_every=step.log_every,
            validate_every=step.validate_every,
        )
        config = replace(TrainConfig.of(chosen, seed=step.seed), stop_at=step.stop_at)
        trainer = Trainer(
            self._learned(step),
            folder,
            config,
            validation=self.data.of[step.validation] if step.validation else None,
            device=self.device,
            name=self.name,
            start=model,
        )
        if not trainer.done:
            for row in trainer.run(until - time.perf_counter()):
                if on_row is not None and self.leads:
                    on_row(row, trainer)
                if progress is not None:
                    progress(row.step, config.last)
            if not trainer.done:
                raise TimeIsOverError
        made = trainer.model()
        return made if model is None else made.with_parts(model.parts())

    def _part(
        self,
        step: FitStep,
        folder: Path,
        model: CrystalModel,
        made: Container[str],
        until: float,
        progress: Callable[[int, int], None] | None,
    ) -> CrystalModel:
        """The model with a part fitted; from random weights, unless an earlier fit made some."""
        path = folder / MODEL
        kept = load_model(path).parts().get(step.part) if path.exists() else None
        if kept is not None and getattr(kept.config, "members", 1) >= step.members:
            return model.with_parts({step.part: kept})
        done = {name: part for name, part in model.parts().items() if name != step.part}
        fitting = Fitting(
            self._learned(step),
            self._statistics(),
            replace(
                NOTHING,
                **{step.part: step.epochs},
                members=step.members,
                settings_members=step.members,
            ),
            done=done if kept is None else done | {step.part: kept},
            given={name: part for name, part in model.parts().items() if name in made},
            seed=step.seed,
            device=self.device,
            folder=folder,
            until=until,
            on_epoch=None if progress is None else lambda _, made, most: progress(made, most),
        )
        folder.mkdir(parents=True, exist_ok=True)
        for part in PARTS[step.part](fitting):
            model = model.with_parts({step.part: part})
            save_model(path, model)
            clear_states(folder)
        return model

    def _properties(
        self,
        step: FitStep,
        folder: Path,
        until: float,
        progress: Callable[[int, int], None] | None,
    ) -> PropertyModel:
        """The property model with its card, in the folder."""
        assert self.start is not None  # as recipes of property models must have it
        fitted = fit_properties(
            self._learned(step),
            seed=step.seed,
            epochs=step.epochs,
            init=self.start.network,
            on_epoch=None if progress is None else lambda e, *_: progress(e, step.epochs),
            out=folder,
            until=until,
            halved=PROPERTY_FIT in self.recipe.halve,
        )
        fitted = replace(fitted, name=self.name)
        card = self._card() | {"weights": fitted.hash}
        fitted = replace(fitted, card=card)
        save_properties(self.out / MODEL, fitted)
        write_text(self.out / CARD, page(self.name, fitted.card))
        return fitted

    def _statistics(self) -> Statistics:
        data = self.data.of[self.recipe.statistics]
        return Statistics.of(
            data.group, data.lattice, data.site_start, data.numbers, data.multiplicity
        )

    def _finished(self, model: CrystalModel) -> CrystalModel | None:
        """The model with its card, in the folder."""
        if not self.leads:
            return None
        parts = {name: copy.deepcopy(part) for name, part in model.parts().items()}
        for name in self.recipe.joined:
            parts[name] = self._behind(name, parts[name])
        for name in self.recipe.halve:
            part = parts.get(name)
            for weights in part.parameters() if isinstance(part, nn.Module) else ():
                weights.copy_(weights.half())
        network = copy.deepcopy(model.network).requires_grad_(False)
        model = replace(model, name=self.name, network=network, statistics=self._statistics())
        model = model.with_parts(parts)
        model = replace(model, card=self._card() | {"weights": model.hash})
        save_model(self.out / MODEL, model)
        write_text(self.out / CARD, page(self.name, model.card))
        return model

    def _behind(self, name: str, part: Part) -> Part:
        """All members of the part of the start, then those of the part."""
        assert self.start is not None  # as recipes with joined parts must have it
        before = self.start.parts()[name]
        if isinstance(before, Proposal):
            return Proposal.of_members([*before.singles(), *cast(Proposal, part).singles()])
        assert isinstance(before, SettingModel)
        return SettingModel.of_members([*before.singles(), *cast(SettingModel, part).singles()])

    def _card(self) -> dict[str, object]:
        """What went into the model, from the recipe and the logs of the run."""
        recipe, fits = self.recipe, list(self._fits())
        used = dict.fromkeys(name for step in self.fits for name in (step.data, step.validation))
        sets = {n: self.data.of[n] for n in used if n}
        scores = [step for step in self.fits if step.part == SCORE]
        left_out = [f"{s.without} from {s.name}" for s in recipe.data if s.without]
        left_out += [f"{s.held_out_as} from {s.name}" for s in recipe.data if s.split]
        split_text = "validation of the score network: " + (
            ", ".join(dict.fromkeys(s.validation for s in scores if s.validation)) or "none"
        )
        if not scores:
            split_text = "the card of the model that is started from says it of the score network"
        if left_out and "" not in self.data.sources:
            split_text += (
                "; left out is what has the formula, group and volume (within 12 %) of a crystal "
                f"of another set: {'; '.join(left_out)}"
            )
        if any(step.part == PROPERTY_FIT for step in self.fits):
            share = 100 * PropertyFitConfig.held_out
            split_text = f"{share:g} % of the crystals were not learned, but scale the error bars"
        if self.data.note:
            split_text += f"; {self.data.note}"
        taken: dict[str, object] = (
            {
                "steps": sum(s.steps if s.stop_at is None else s.stop_at for s in scores),
                "crystals_seen": sum(
                    s.batch_size * (s.steps if s.stop_at is None else s.stop_at) for s in scores
                ),
            }
            if scores
            else {}
        )
        if self.start is not None:
            taken["started_from"] = self.start.hash
        return {
            "data": "; ".join(
                f"{name}: {len(data):,} crystals, {data.content_hash[:16]}"
                for name, data in sets.items()
            )
            + ". Sources: "
            + "; ".join(f"{name}: {source.what}" for name, source in recipe.sources.items()),
            "split": split_text,
            "licence": recipe.licence,
            "attribution": recipe.attribution,
            "command": self.command or f"langevin-xtal train --recipe {recipe.name}",
            "recipe": f"{recipe.name} {recipe.hash}"
            + (f", {self.scale:g} of its steps and epochs" if self.scale < 1 else ""),
            "revision": f"langevin-xtal {__version__}",
            "fits": fits,
            **taken,
            "data_hash": self.data.of[recipe.statistics].content_hash,
            "weaknesses": list(recipe.weaknesses),
        }

    def _fits(self) -> Iterator[dict[str, object]]:
        """Each fit: what it was asked for, and the last rows of its logs."""
        default = FitStep(part=SCORE, data="", steps=1)
        for k, step in enumerate(self.fits):
            folder = self.out / f"{k + 1:02d}-{step.part}"
            asked = {
                f.name: getattr(step, f.name)
                for f in dataclasses.fields(step)
                if getattr(step, f.name) != getattr(default, f.name)
                or f.name in ("part", "data", "seed")
            }
            ends = {}
            for log in sorted(folder.rglob("log.csv")):
                lines = log.read_text(encoding="utf-8").splitlines()
                if len(lines) > 1:
                    row = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
                    where = log.parent.relative_to(folder).as_posix()
                    ends[where] = {n: v for n, v in row.items() if n in SHOWN and v != "nan"}
            yield asked | {"log_ends": ends.get(".", ends)}


SHOWN = ("step", "epoch", "position", "lattice", "validation_position", "validation_lattice",
         "loss", "held_out", "parameters",
         *(f"held_out_{name}" for name in PROPERTIES))  # fmt: skip
"""Columns of logs whose last values go into a card; times do not: a repeated run has the same."""


def _titled(progress: Callable[[str, int, int], None], title: str) -> Callable[[int, int], None]:
    return lambda done, planned: progress(title, done, planned)
