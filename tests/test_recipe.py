"""Recipes: a model and its card from nothing, and on to the same weights after any stop."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from langevin_xtal.cli import run
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError
from langevin_xtal.model import network as network_module
from langevin_xtal.model.checkpoint import CrystalModel, load_model
from langevin_xtal.model.properties import load_properties, shipped_properties
from langevin_xtal.model.tensor_file import weights_hash
from langevin_xtal.train import recipe as recipes
from langevin_xtal.train.epochs import EpochFit
from langevin_xtal.train.fit import Fit
from langevin_xtal.train.loop import Trainer
from langevin_xtal.train.recipe import (
    FitStep,
    RecipeRun,
    load_recipe,
    named_files,
    parse_recipe,
    prepared,
    shipped_recipes,
)
from tests.conftest import TINY

TEXT = """
name = "tried"
statistics = "known"
halve = ["prior"]
licence = "CC0-1.0"
attribution = "nobody"
weaknesses = ["Knows little."]

[sources.known]
what = "some crystals"

[sources.others]
what = "other crystals"
held_out = true

[[data]]
name = "learned"
join = ["known"]
without = "others"

[[fit]]
part = "score"
data = "known"
validation = "others"
steps = 6
batch_size = 4
log_every = 3
learning_rate = 1e-3

[[fit]]
part = "score"
data = "learned"
steps = 6
stop_at = 4
batch_size = 4
log_every = 4
seed = 1

[[fit]]
part = "prior"
data = "learned"
epochs = 2

[[fit]]
part = "ranker"
data = "learned"
epochs = 2

[[fit]]
part = "settings"
data = "learned"
epochs = 2
seed = 3

[[fit]]
part = "proposal"
data = "learned"
epochs = 4
members = 2
most_sites = 5

[[fit]]
part = "proposal"
data = "known"
epochs = 1
members = 2
seed = 5
"""
FITS = ("01-score", "02-score", "03-prior", "04-ranker", "05-settings", "06-proposal",
        "07-proposal")  # fmt: skip


class Killed(BaseException):
    """As if the process had ended."""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(network_module.SIZES, "small", TINY)


@pytest.fixture(scope="module")
def files(reference: PackedDataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    small = reference.select(np.flatnonzero(reference.site_counts <= 6))
    folder = tmp_path_factory.mktemp("data")
    parts = {"known": slice(0, -12), "others": slice(-12, None)}
    return {
        name: small.select(np.arange(len(small))[part]).save(folder / f"{name}.lxd")
        for name, part in parts.items()
    }


@pytest.fixture(scope="module")
def whole(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(network_module.SIZES, "small", TINY)
        assert made(files, out) is not None
    return out


def made(files: dict[str, Path], out: Path, **options: Any) -> Any:
    recipe = parse_recipe(TEXT)
    return RecipeRun(recipe, prepared(recipe, files), out).run(**options)


def test_a_model_and_its_card_from_nothing(files: dict[str, Path], whole: Path) -> None:
    model = load_model(whole / "model.safetensors")
    assert model.name == "tried"
    assert set(model.parts()) == {"prior", "ranker", "settings", "proposal"}
    assert model.proposal is not None
    assert model.proposal.config.members == 2
    assert model.prior is not None
    assert all((w == w.half()).all() for w in model.prior.parameters())
    assert sorted(p.name for p in whole.iterdir() if p.is_dir()) == list(FITS)
    card = model.card
    assert card["weights"] == model.hash
    assert card["licence"] == "CC0-1.0"
    assert card["steps"] == 6 + 4
    assert card["crystals_seen"] == 4 * (6 + 4)
    assert [fit["part"] for fit in card["fits"]] == [name[3:] for name in FITS]
    known = PackedDataset.load(files["known"])
    assert card["data_hash"] == known.content_hash
    learned = card["data"].split("learned: ")[1].split(" ")[0]
    assert 0 < int(learned) <= len(known)
    page = (whole / "card.md").read_text(encoding="utf-8")
    for text in ("# Model card: tried", model.hash, "Knows little.", "others from learned"):
        assert text in page
    # states of fits that are done are gone, their logs are not
    left = {p.parent.name for p in whole.rglob("state.safetensors")}
    assert left == {"01-score", "02-score"}
    assert (whole / "05-settings" / "settings" / "group" / "log.csv").exists()


def test_each_fit_starts_from_the_one_before(whole: Path) -> None:
    first = load_model(whole / "01-score" / "model.safetensors")
    second = load_model(whole / "02-score" / "model.safetensors")
    assert second.card["started_from"] == first.hash
    recorded = json.loads((whole / FITS[6] / "proposal-1" / "config.json").read_text())
    assert recorded["init"] is not None
    assert recorded["seed"] == 5 + 1


@pytest.mark.parametrize("way", [pytest.param("interrupted", marks=pytest.mark.slow), "killed"])
def test_stopped_in_the_midst_of_every_fit_it_ends_the_same(
    files: dict[str, Path],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """Interrupted: saved at the step. Killed: nothing is written any more, not even on the way."""
    out = tmp_path / "run"
    stopped: list[str] = []
    for kind in (Trainer, EpochFit):
        monkeypatch.setattr(kind, "_advance", stopping(kind, out, stopped, way))
    save = Fit.save
    monkeypatch.setattr(Fit, "save", lambda fit: None if hasattr(fit, "dead") else save(fit))
    for _ in range(20):
        try:
            model = made(files, out)
        except (KeyboardInterrupt, Killed):
            continue
        break
    assert model is not None
    names = ["01-score", "02-score", "03-prior/prior", "04-ranker/ranker",
             "05-settings/settings/group", "05-settings/settings/units",
             "06-proposal/proposal-0", "06-proposal/proposal-1",
             "07-proposal/proposal-0", "07-proposal/proposal-1"]  # fmt: skip
    assert stopped == names
    for name in ("model.safetensors", "card.md"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    for name in names[2:]:
        ours, theirs = (
            [line.split(",")[::2] for line in (p / name / "log.csv").read_text().splitlines()]
            for p in (out, whole)
        )
        assert ours == theirs  # but for the seconds


def stopping(
    kind: type[Fit[Any]], out: Path, stopped: list[str], way: str
) -> Callable[[Any, Any], None]:
    """A step that stops every fit once, after its first or later."""
    advance = kind._advance

    def step(fit: Any, batch: Any) -> None:
        name = fit.out.relative_to(out).as_posix()
        if fit.step >= 1 and name not in stopped:
            stopped.append(name)
            if way == "interrupted":
                raise KeyboardInterrupt
            fit.dead = True
            raise Killed
        advance(fit, batch)

    return step


ONWARD = """
name = "onward"
statistics = "known"
start = "START"
licence = "CC0-1.0"
attribution = "nobody"
joined = ["proposal"]

[sources.known]
what = "some crystals"

[[fit]]
part = "prior"
data = "known"
epochs = 1

[[fit]]
part = "proposal"
data = "known"
epochs = 2
seed = 7

[[fit]]
part = "proposal"
data = "known"
epochs = 1
"""


def test_on_from_a_model(files: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    """What no fit makes is the start's; what is fitted knows nothing of it but for members."""
    start = load_model(whole / "model.safetensors")
    model = onward(ONWARD, whole, files, tmp_path / "run").run()
    assert isinstance(model, CrystalModel)
    assert weights(model.network) == weights(start.network)
    assert weights(model.ranker) == weights(start.ranker)
    assert weights(model.settings) == weights(start.settings)
    assert weights(model.prior) != weights(start.prior)
    assert model.proposal is not None
    assert start.proposal is not None
    singles = [weights(p) for p in model.proposal.singles()]
    assert singles[:2] == [weights(p) for p in start.proposal.singles()]
    assert len(singles) == 3
    assert model.card["started_from"] == start.hash
    assert "steps" not in model.card
    assert start.hash in (tmp_path / "run" / "card.md").read_text(encoding="utf-8")

    fits = [json.loads(p.read_text()) for p in sorted((tmp_path / "run").rglob("config.json"))]
    assert [fit["init"] is None for fit in fits] == [True, True, False]
    apart = ONWARD.replace('joined = ["proposal"]', "")
    alone = onward(apart, whole, files, tmp_path / "alone").run()
    assert isinstance(alone, CrystalModel)
    assert weights(alone.proposal) == singles[2]


def onward(text: str, whole: Path, files: dict[str, Path], out: Path) -> RecipeRun:
    recipe = parse_recipe(text.replace("START", str(whole / "model.safetensors")))
    return RecipeRun(recipe, prepared(recipe, {"known": files["known"]}), out)


def weights(part: nn.Module | None) -> str:
    assert part is not None
    return weights_hash(part.state_dict())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('joined = ["proposal"]', 'joined = ["prior"]'), ("joined", "'prior'", "settings")),
        (('joined = ["proposal"]', 'joined = ["settings"]'), ("joined", "'settings'", "fit")),
        (('start = "START"\n', "", 'joined = ["proposal"]', ""), ("first fit", "score")),
        (('"START"', '"nowhere"'), ("nowhere",)),
    ],
)
def test_recipes_that_cannot_go_on(
    files: dict[str, Path], whole: Path, tmp_path: Path, change: tuple[str, ...],
    words: tuple[str, ...],
) -> None:  # fmt: skip
    text = ONWARD
    for old, new in zip(change[::2], change[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(InputError) as refusal:
        onward(text, whole, files, tmp_path / "run")
    for word in words:
        assert word in str(refusal.value)


def test_what_a_recipe_says_names_it() -> None:
    """Not its comments, nor what it leaves to the defaults."""
    recipe = parse_recipe(TEXT)
    assert parse_recipe("# a comment\n" + TEXT).hash == recipe.hash
    said = TEXT.replace("seed = 5", f"seed = 5\nbatch_size = {FitStep.batch_size}")
    assert parse_recipe(said).hash == recipe.hash
    assert parse_recipe(TEXT.replace("seed = 5", "seed = 6")).hash != recipe.hash


def test_time_over_and_on(files: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    assert made(files, tmp_path / "run", max_seconds=0.0) is None
    assert made(files, tmp_path / "run") is not None
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (
        whole / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("name", shipped_properties())
def test_shipped_property_recipes(name: str) -> None:
    recipe, model = load_recipe(name), load_properties(name)
    assert recipe.name == name == model.name
    (fit,) = recipe.fit
    assert fit.part == "properties"
    assert model.card["recipe"] == f"{name} {recipe.hash}"
    assert model.card["started_from"] == load_model(recipe.start).hash
    (made,) = model.card["fits"]
    assert (fit.epochs, fit.seed) == (made["epochs"], made["seed"])
    assert recipe.sources[recipe.statistics].hash == model.card["data_hash"]


@pytest.mark.parametrize("name", sorted({*shipped_recipes()} - {*shipped_properties()}))
def test_shipped_recipes(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    model = load_model(name)
    assert model.card["recipe"] == f"{name} {recipe.hash}"
    start = load_model(recipe.start).parts() if recipe.start else {}
    made = {step.part for step in recipe.fit} - {"score"}
    assert made | set(start) == set(model.parts())
    assert model.proposal is not None
    members = max(step.members for step in recipe.fit if step.part == "proposal")
    assert members == model.proposal.config.members
    assert recipe.sources[recipe.statistics].hash == model.card["data_hash"]


class TestCommand:
    def test_small_on_one_file(
        self, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "run"
        command = ["train", "--recipe", "small", "--data", str(files["known"]), "--threads", "1",
                   "--scale", "0.0003", "--out", str(out)]  # fmt: skip
        assert run(command) == 0
        said = capsys.readouterr()
        assert "one file stands for all sources" in said.err
        model = load_model(out / "model.safetensors")
        assert model.name == "small"
        assert set(model.parts()) == {"prior", "ranker", "settings", "types", "proposal"}
        page = (out / "card.md").read_text(encoding="utf-8")
        assert model.hash in page
        assert "0.0003 of its steps and epochs" in page
        assert "one input column more" not in page
        before = (out / "model.safetensors").read_bytes()
        assert run(command) == 0
        assert (out / "model.safetensors").read_bytes() == before
        sample = ["sample", "--model", str(out / "model.safetensors"), "--formula", "NaCl", "--sg"]
        sample += ["225", "--n", "1", "--levels", "2", "--out", str(tmp_path / "c"),
                   "--min-distance", "0"]  # fmt: skip
        assert run(sample) == 0

    def test_options_of_its_own(
        self, files: dict[str, Path], tmp_path: Path, refused: Any
    ) -> None:
        command = ["train", "--recipe", "small", "--data", str(files["known"]), "--out"]
        refused([*command, str(tmp_path), "--steps", "3"], "--steps", "--recipe")
        refused([*command, str(tmp_path), "--preset", "paper"], "--preset", "--recipe")
        refused(["train", "--recipe", "huge", "--data", "a.lxd"], "huge", "small")
        refused(["train", "--recipe", "small"], "mp20_train", "--data")
        refused(["train", "--scale", "0.5"], "--scale", "--recipe")
        two = ["--data", "a.lxd", "--data", "b.lxd"]
        refused(["train", *two], "2 files", "--recipe")
        refused(["train", "--recipe", "small", *two], "a.lxd", "no source")

    def test_another_recipe_in_the_folder(
        self, files: dict[str, Path], whole: Path, refused: Any
    ) -> None:
        command = ["train", "--recipe", "mp20", "--data", str(files["known"]), "--out"]
        refused([*command, str(whole)], str(whole), "another recipe")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    def check(command: list[str], *words: str) -> None:
        assert run(command) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        for word in words:
            assert word in said

    return check


class TestFiles:
    def test_by_name(self) -> None:
        recipe = parse_recipe(TEXT)
        found = named_files(recipe, ["known=a.lxd", "folder/others.lxd"])
        assert found == {"known": Path("a.lxd"), "others": Path("folder/others.lxd")}
        assert named_files(recipe, ["mine.lxd"]) == {"": Path("mine.lxd")}

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (["known=a.lxd"], "needs others too: other crystals"),
            (["known=a.lxd", "known=b.lxd"], "known is given twice"),
            (["known=a.lxd", "more=b.lxd"], "more=b.lxd is no source"),
            (["more=b.lxd"], "no source"),
        ],
    )
    def test_refused(self, given: list[str], words: str) -> None:
        with pytest.raises(InputError, match=words):
            named_files(parse_recipe(TEXT), given)

    def test_one_file(self, files: dict[str, Path]) -> None:
        data = prepared(parse_recipe(TEXT), {"": files["known"]})
        ids = {name: set(some.id.tolist()) for name, some in data.of.items()}
        assert ids["known"] == ids["learned"]
        assert not ids["known"] & ids["others"]
        assert len(ids["others"]) == round(0.05 * len(PackedDataset.load(files["known"])))

    def test_split(self, files: dict[str, Path]) -> None:
        text = TEXT.replace(
            'join = ["known"]\nwithout = "others"',
            'split = "known"\nheld_out = 7\nheld_out_as = "apart"',
        )
        data = prepared(parse_recipe(text), files)
        assert len(data.of["apart"]) == 7
        assert not set(data.of["apart"].id) & set(data.of["learned"].id)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("name =", "nam ="), r"unknown keys \['nam'\]"),
        (('licence = "CC0-1.0"\n', ""), "licence missing"),
        (("steps = 6\nbatch", "steps = true\nbatch"), "steps = True should be int"),
        (("steps = 6\nbatch", "steps = 0\nbatch"), "fit score: give steps"),
        (('part = "prior"', 'part = "posterior"'), "fit 'posterior' is not known"),
        (('data = "known"\nepochs', 'data = "unknown"\nepochs'), "no dataset 'unknown'"),
        (('join = ["known"]', 'join = ["known", 3]'), "should be Sequence"),
        (('join = ["known"]', 'join = ["learned"]'), "no dataset 'learned' at that point"),
        (('halve = ["prior"]', 'halve = ["score"]'), "halve: 'score'"),
        (('name = "tried"', 'name = "tried'), "not TOML"),
        (('name = "tried"', 'name = "tried"\nsize = "huge"'), "size 'huge'"),
    ],
)
def test_recipes_are_checked(change: tuple[str, str], words: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(InputError, match=words) as error:
        parse_recipe(TEXT.replace(*change))
    assert "\n" not in str(error.value)


def test_a_recipe_is_its_table() -> None:
    """Every key of a shipped file is a field, and every step is there."""
    for name in shipped_recipes():
        text = resources.files("langevin_xtal.recipes").joinpath(f"{name}.toml").read_text()
        table, recipe = tomllib.loads(text), load_recipe(name)
        assert len(table["fit"]) == len(recipe.fit)
        for given, step in zip(table["fit"], recipe.fit, strict=True):
            assert given == {k: getattr(step, k) for k in given}
        assert dataclasses.replace(recipe, name="other").hash != recipe.hash
        assert recipes.load_recipe(name).hash == recipe.hash
