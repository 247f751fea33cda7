"""Predicted properties: network, fit and file, windows, the command, and searches by them."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import write
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from langevin_xtal.cli import run
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.crystal.properties import (
    LEAST_PROBABILITY,
    WINDOW_ENERGY,
    Window,
    window_energy,
    windows_of,
)
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import CheckpointError, DataError, InputError
from langevin_xtal.model import checkpoint, tensor_file
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.model.properties import (
    PropertyConfig,
    PropertyModel,
    load_properties,
    save_properties,
    shipped_properties,
)
from langevin_xtal.screen.properties import Prediction, predict_packed, predict_properties
from langevin_xtal.search import stages
from langevin_xtal.search.campaign import Campaign, ranked_table
from langevin_xtal.search.entries import rank_key, read_entries
from langevin_xtal.search.store import read_rows, read_summary
from langevin_xtal.train.fit import TimeIsOverError
from langevin_xtal.train.properties import PropertyFit, PropertyFitConfig, fit_properties
from langevin_xtal.train.recipe import parse_recipe
from tests.conftest import TINY
from tests.test_search import content, tiny_campaign

HEADS = PropertyConfig(width=16, element_width=8, members=3)


@pytest.fixture(scope="module")
def labelled(reference: PackedDataset) -> PackedDataset:
    """Known functions of composition and cell in place of energies and gaps; some unknown."""
    counts = reference.atom_counts
    volume = reference.volumes / counts
    owner = np.repeat(np.arange(len(reference)), reference.site_counts)
    sums = np.bincount(owner, weights=reference.numbers * reference.multiplicity)
    gap = np.maximum(0.0, 0.05 * (sums / counts - 25.0))
    gap[::7] = np.nan
    return dataclasses.replace(
        reference, properties={"e_form": -np.log(volume), "band_gap": gap, "charge": gap}
    )


@pytest.fixture(scope="module")
def fitted(labelled: PackedDataset) -> PropertyModel:
    config = PropertyFitConfig(epochs=30, batch_size=12, rate=5e-3)
    fit = PropertyFit(labelled, config, network=TINY, heads=HEADS)
    fit.finish()
    return fit.model("tried")


# -- windows


class TestWindows:
    @pytest.mark.parametrize(
        ("text", "window"),
        [
            ("band_gap=1.1:1.7", Window("band_gap", 1.1, 1.7)),
            (" e_form = : -0.5 ", Window("e_form", -math.inf, -0.5)),
            ("band_gap=2:", Window("band_gap", 2.0, math.inf)),
        ],
    )
    def test_texts(self, text: str, window: Window) -> None:
        assert Window.parse(text) == window
        assert Window.parse(str(window)) == window

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("gap=1:2", "'gap' is not known; give one of e_form, e_hull, band_gap"),
            ("band_gap=1.7:1.1", "upside down"),
            ("band_gap=1:1", "empty"),
            ("band_gap=nan:1", "empty"),
            ("band_gap=-2:-1", "no crystal lies in the window"),
            ("band_gap=1.1", "should be like band_gap=1.1:1.7"),
            ("band_gap", "should be like"),
            ("band_gap=:", "should be like"),
            ("band_gap=a:b", "should be like"),
        ],
    )
    def test_bad_texts(self, text: str, words: str) -> None:
        with pytest.raises(InputError, match=words):
            Window.parse(text)

    def test_one_window_of_a_property(self) -> None:
        assert len(windows_of(["band_gap=1:2", "e_form=:0"])) == 2
        with pytest.raises(InputError, match="two windows of band_gap"):
            windows_of(["band_gap=1:2", "band_gap=3:4"])

    @given(
        value=st.floats(-3, 8), error=st.floats(0.01, 3), low=st.floats(0.1, 4),
        size=st.floats(0.05, 4),
    )  # fmt: skip
    def test_probability_is_the_normal_one(
        self, value: float, error: float, low: float, size: float
    ) -> None:
        window = Window("band_gap", low, low + size)
        expected = norm.cdf(low + size, value, error) - norm.cdf(low, value, error)
        assert window.probability(value, error) == pytest.approx(expected, abs=1e-12)
        metal = Window("band_gap", 0.0, low)  # there is nothing below
        assert metal.probability(value, error) == pytest.approx(norm.cdf(low, value, error))
        total = metal.probability(value, error) + Window("band_gap", low, math.inf).probability(
            value, error
        )
        assert total == pytest.approx(1.0)

    def test_energy_of_a_probability(self) -> None:
        assert window_energy(1.0) == 0.0
        assert window_energy(math.exp(-2)) == pytest.approx(2 * WINDOW_ENERGY)
        assert window_energy(0.0) == window_energy(LEAST_PROBABILITY)


# -- the network and its fit


def rotated(cell: Cell) -> Cell:
    lattice, frac, numbers = cell
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    order = np.random.default_rng(1).permutation(len(numbers))
    return lattice @ turn, (frac[order] + [0.3, 0.1, 0.7]) % 1.0, numbers[order]


def doubled(cell: Cell) -> Cell:
    lattice, frac, numbers = cell
    half = frac / [1, 1, 2]
    return (
        lattice * [[1.0], [1.0], [2.0]],
        np.concatenate([half, half + np.array([0, 0, 0.5])]),
        np.tile(numbers, 2),
    )


def cell_of(atoms: Any) -> Cell:
    return np.array(atoms.cell), atoms.get_scaled_positions(), atoms.numbers.astype(np.int64)


def test_properties_do_not_depend_on_the_description(fitted: PropertyModel) -> None:
    for atoms in (bulk("NaCl", "rocksalt", a=5.64), bulk("ZnO", "wurtzite", a=3.25, c=5.2)):
        cell = cell_of(atoms)
        found = predict_properties(
            [cell, rotated(cell), doubled(cell), cell_of(atoms * (2, 1, 1))], fitted
        )
        assert not any(one.reason for one in found)
        for one in found[1:]:
            assert one.values == pytest.approx(found[0].values, abs=2e-4)
            assert one.errors == pytest.approx(found[0].errors, abs=2e-4)


def test_properties_do_not_depend_on_the_batch(
    fitted: PropertyModel, labelled: PackedDataset
) -> None:
    together = predict_packed(labelled, fitted)
    alone = predict_packed(labelled.select([17]), fitted)
    assert together.value[17] == pytest.approx(alone.value[0], abs=1e-5)
    assert together.error[17] == pytest.approx(alone.error[0], abs=1e-5)


def test_a_fit_learns(fitted: PropertyModel, labelled: PackedDataset) -> None:
    assert fitted.names == ("e_form", "band_gap")  # what there are no data for is left out
    found = predict_packed(labelled, fitted)
    for name in fitted.names:
        true = labelled.properties[name]
        value, error = found.column(name)
        known = np.isfinite(true)
        off = np.abs(value - true)[known]
        assert off.mean() < 0.5 * np.abs(true - np.nanmedian(true))[known].mean()
        assert (error > 0).all()
        assert 0.3 < (off < error[known]).mean() < 1.0
    gaps, _ = found.column("band_gap")
    assert gaps.min() >= 0.0


def test_a_stopped_fit_goes_on(labelled: PackedDataset, tmp_path: Path) -> None:
    data = labelled.select(np.arange(70))
    options: dict[str, Any] = {"epochs": 3, "network": TINY, "heads": HEADS}
    whole = fit_properties(data, **options)
    fit = PropertyFit(
        data, PropertyFitConfig(epochs=3), network=TINY, heads=HEADS, out=tmp_path / "fit"
    )
    rows = fit.run()
    next(rows)
    rows.close()
    with pytest.raises(TimeIsOverError):
        fit_properties(data, **options, out=tmp_path / "fit", until=-math.inf)
    resumed = fit_properties(data, **options, out=tmp_path / "fit")
    assert resumed.hash == whole.hash


def test_a_fit_needs_properties(reference: PackedDataset) -> None:
    with pytest.raises(InputError, match="none of e_form, e_hull, band_gap"):
        fit_properties(reference, network=TINY)


def test_the_trunk_starts_from_a_score_network(
    labelled: PackedDataset, tiny_model: CrystalModel
) -> None:
    config = PropertyFitConfig(epochs=1)
    fit = PropertyFit(labelled, config, heads=HEADS, init=tiny_model.network)
    trunk = fit.model_network.trunk.state_dict()
    given_weights = tiny_model.network.state_dict()
    assert {k for k in given_weights if k not in trunk} == {"output.2.weight"}
    assert all(torch.equal(v, given_weights[k]) for k, v in trunk.items())
    wider = dataclasses.replace(TINY, width=2 * TINY.width)
    with pytest.raises(InputError, match="cannot start from a network"):
        PropertyFit(labelled, config, init=tiny_model.network, network=wider)


RECIPE = """
name = "tried"
statistics = "known"
start = "{start}"
halve = ["properties"]
licence = "CC0-1.0"
attribution = "nobody"
weaknesses = ["It is tiny."]

[sources.known]
what = "made up"

[[fit]]
part = "properties"
data = "known"
epochs = 2
"""


def test_a_recipe_makes_model_and_card(
    labelled: PackedDataset, tiny_path: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "own.toml").write_text(RECIPE.format(start=tiny_path))
    data = labelled.select(np.arange(70)).save(tmp_path / "known.lxd")
    command = ["train", "--recipe", str(tmp_path / "own.toml"), "--data", str(data)]
    assert run([*command, "--threads", "1", "--out", str(tmp_path / "run")]) == 0
    assert "PropertyModel(tried: e_form, band_gap" in capsys.readouterr().out
    model = load_properties(tmp_path / "run" / "model.safetensors")
    start = checkpoint.load_model(tiny_path)
    assert model.card["started_from"] == start.hash
    assert model.card["weights"] == model.hash
    assert "5 % of the crystals were not learned" in model.card["split"]
    assert model.card["fits"][0]["log_ends"]["epoch"] == "2"
    assert all(torch.equal(p, p.half().float()) for p in model.network.parameters())
    page = (tmp_path / "run" / "card.md").read_text()
    assert page.startswith("# Model card: tried")
    again = [*command, "--threads", "1", "--out", str(tmp_path / "again"), "--max-minutes", "1e-6"]
    assert run(again) == 0
    assert "the time was over" in capsys.readouterr().out
    assert run([*again[:-1], "10"]) == 0
    same = load_properties(tmp_path / "again" / "model.safetensors")
    assert same.hash == model.hash


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('start = "{start}"', ""), "start from a model"),
        (("epochs = 2", "steps = 2"), "give epochs"),
    ],
)
def test_bad_property_recipes(change: tuple[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_recipe(RECIPE.replace(*change))


# -- files


class TestFiles:
    def test_there_and_back(
        self, fitted: PropertyModel, labelled: PackedDataset, tmp_path: Path
    ) -> None:
        save_properties(tmp_path / "p.safetensors", fitted)
        read = load_properties(tmp_path / "p.safetensors")
        assert (read.name, read.names, read.hash) == ("tried", fitted.names, fitted.hash)
        assert read.elements == frozenset(labelled.numbers.tolist())
        some = labelled.select([3, 40])
        assert np.array_equal(predict_packed(some, read).value, predict_packed(some, fitted).value)

    def test_weights_without_a_head(self, tiny_path: Path) -> None:
        with pytest.raises(CheckpointError, match="have no head for properties"):
            load_properties(tiny_path)
        with pytest.raises(CheckpointError, match="the weights small have no head"):
            load_properties("small")

    def test_unknown_and_damaged(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="neither shipped nor a file"):
            load_properties("other")
        (tmp_path / "p.safetensors").write_bytes(b"nothing")
        with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
            load_properties(tmp_path / "p.safetensors")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"properties": []}, "list of tables"),
            ({"properties": [{"name": "gap"}]}, "should have name"),
            ({"heads": {"width": 0}}, "width is 0"),
            ({"heads": {"members": 2}}, "does not fit its own configuration"),
            ({"elements": [0]}, "atomic numbers"),
            ({"elements": None}, "atomic numbers"),
            ({"network": {"deep": 1}}, "unknown keys"),
        ],
    )
    def test_untrusted_headers(
        self, fitted: PropertyModel, tmp_path: Path, change: dict[str, Any], words: str
    ) -> None:
        path = tmp_path / "p.safetensors"
        save_properties(path, fitted)
        tensors, header = tensor_file.read_tensors(path, "langevin-xtal properties 1")
        own = {k: v for k, v in header.items() if "checksum" not in k}
        tensor_file.write_tensors(path, tensors, own | change)
        with pytest.raises(CheckpointError, match=words):
            load_properties(path)


# -- the shipped model


@pytest.mark.parametrize("name", shipped_properties())
def test_the_shipped_model_knows_some_chemistry(name: str) -> None:
    """Values of the Materials Project (PBE): a salt, a semiconductor, a metal."""
    model = load_properties(name)
    assert model.card["licence"]
    assert model.card["metrics"]
    cells = [
        cell_of(bulk("NaCl", "rocksalt", a=5.69)),
        cell_of(bulk("GaAs", "zincblende", a=5.75)),
        cell_of(bulk("Cu", "fcc", a=3.62)),
    ]
    salt, semiconductor, metal = predict_properties(cells, model)
    assert salt.values["band_gap"] == pytest.approx(5.0, abs=1.5)
    assert salt.values["e_form"] == pytest.approx(-2.1, abs=0.3)
    assert semiconductor.values["band_gap"] < 1.5
    assert metal.values["band_gap"] < 0.3
    assert metal.values["e_form"] == pytest.approx(0.0, abs=0.3)


# -- the command


class TestPredict:
    @pytest.fixture
    def folder(self, fitted: PropertyModel, tmp_path: Path) -> Path:
        save_properties(tmp_path / "p.safetensors", fitted)
        write(tmp_path / "salt.cif", bulk("NaCl", "rocksalt", a=5.64))
        write(tmp_path / "einsteinium.cif", bulk("Es", "fcc", a=5.75))
        (tmp_path / "bad.cif").write_text("data_x\n_cell_length_a 3\n")
        return tmp_path

    def test_table(self, folder: Path, capsys: Any) -> None:
        files = [str(folder / f) for f in ("salt.cif", "einsteinium.cif", "bad.cif")]
        command = ["predict", *files, "--model", str(folder / "p.safetensors"), "--out"]
        out = folder / "predicted.csv"
        assert run([*command, str(out)]) == 0
        said = capsys.readouterr()
        assert "bad" in said.err
        with out.open() as handle:
            rows = list(csv.DictReader(handle))
        assert [row["formula"] for row in rows] == ["NaCl", "Es", ""]
        assert rows[0]["group"] == "225"
        assert rows[1]["note"] == "no training crystal of model tried has Es"
        assert rows[1]["band_gap"] == ""
        expected = predict_properties(
            [cell_of(bulk("NaCl", "rocksalt", a=5.64))],
            load_properties(folder / "p.safetensors"),
        )[0]
        assert float(rows[0]["e_form"]) == pytest.approx(expected.values["e_form"], abs=1e-4)
        assert float(rows[0]["band_gap_error"]) == pytest.approx(
            expected.errors["band_gap"], abs=1e-4
        )
        assert run([*command, str(out)]) == 2  # it is not overwritten
        chosen = [*command, str(out), "--force", "--property", "band_gap"]
        assert run(chosen) == 0
        assert "e_form" not in out.read_text()

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--property", "charge"], "'charge' is not one that model tried predicts"),
            (["--model", "small"], "no head for properties"),
            (["--model", "none.safetensors"], "neither shipped nor a file"),
        ],
    )
    def test_bad_input(self, folder: Path, more: list[str], words: str, capsys: Any) -> None:
        command = ["predict", str(folder / "salt.cif"), "--model", str(folder / "p.safetensors")]
        assert run([*command, "--out", str(folder / "o.csv"), *more]) == 2
        assert words in capsys.readouterr().err

    def test_nothing_can_be_predicted(self, folder: Path, capsys: Any) -> None:
        command = ["predict", str(folder / "einsteinium.cif"), "--out", str(folder / "o.csv")]
        assert run([*command, "--model", str(folder / "p.safetensors")]) == 2
        assert "no training crystal of model tried has Es" in capsys.readouterr().err


# -- searches


def by_gold(cells: list[Cell], *_: Any, **options: Any) -> list[Prediction]:
    """The share of gold, in place of a gap."""
    found = []
    for _, _, numbers in cells:
        values = {"band_gap": 4.0 * float((numbers == 79).mean()), "e_form": 0.0}
        found.append(Prediction(values, {"band_gap": 0.2, "e_form": 0.1}, 1))
    return found


def gold_of(numbers: np.ndarray) -> float:
    return float((numbers == 79).mean())


class TestTarget:
    @pytest.fixture(autouse=True)
    def predicted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(stages, "predict_properties", by_gold)

    def test_relaxed_and_ranked_by_the_window(
        self, tiny_model: CrystalModel, fitted: PropertyModel, tmp_path: Path
    ) -> None:
        def made(name: str, **options: Any) -> Campaign:
            return tiny_campaign(
                tmp_path / name, tiny_model, None, properties=fitted, relax_best=3, **options
            )

        aimed, plain = made("aimed.db", target="band_gap=1.2:1.5"), made("plain.db")
        for campaign in (aimed, plain):
            campaign.run()
        # as sampled, the lowest with a third of gold is the fourth in energy
        energies = {
            row.index: (float(row.facts["energy_sampled"]), gold_of(row.cell[2]))
            for row in read_rows(tmp_path / "plain.db")
            if row.cell is not None and "energy_sampled" in row.facts
        }
        wanted = min((k for k in energies if energies[k][1] == 1 / 3), key=lambda k: energies[k])
        assert sorted(energies, key=lambda k: energies[k]).index(wanted) == 3
        relaxed = {
            name: {row.index for row in read_rows(tmp_path / name) if "energy" in row.facts}
            for name in ("aimed.db", "plain.db")
        }
        assert len(relaxed["aimed.db"]) == len(relaxed["plain.db"]) == 3
        assert wanted in relaxed["aimed.db"] - relaxed["plain.db"]
        ranks = aimed.entries()
        score = [
            float(e.energy or 0.0) + window_energy(float(e.properties["target_probability"]))
            for e in ranks
            if e.energy is not None
        ]
        assert len(score) == 3
        assert score == sorted(score)
        table = ranked_table(ranks)
        own = table[table["uid"] == f"{wanted:06d}"].iloc[0]
        assert own["predicted_band_gap"] == pytest.approx(4 / 3, abs=1e-4)
        assert own["target_probability"] == pytest.approx(
            Window("band_gap", 1.2, 1.5).probability(4 / 3, 0.2), abs=1e-6
        )
        # that a target was given is kept, and another one is refused
        again = made("aimed.db")
        again.run()
        assert [e.uid for e in again.entries()] == [e.uid for e in ranks]
        with pytest.raises(DataError, match="another campaign: its target"):
            made("aimed.db", target="band_gap=1:2").run()

    def test_a_target_may_come_later(
        self, tiny_model: CrystalModel, fitted: PropertyModel, tmp_path: Path
    ) -> None:
        whole, later = tmp_path / "whole.db", tmp_path / "later.db"
        options: dict[str, Any] = {"relax": False, "properties": fitted}
        tiny_campaign(whole, tiny_model, None, target="band_gap=1.5:2.5", **options).run()
        tiny_campaign(later, tiny_model, None, **options).run()
        assert "target_probability" not in read_rows(later)[0].facts
        tiny_campaign(later, tiny_model, None, target="band_gap=1.5:2.5", **options).run()
        assert content(whole) == content(later)
        predicted = next(s for s in read_summary(later).stages if s.title == "predicted")
        assert predicted.done == len(read_entries(later))

    def test_refused(self, tiny_model: CrystalModel, fitted: PropertyModel) -> None:
        with pytest.raises(InputError, match="'e_hull' is not one that model tried predicts"):
            tiny_campaign("a.db", tiny_model, None, properties=fitted, target="e_hull=0:0.1")
        with pytest.raises(InputError, match="a target needs a model"):
            tiny_campaign("a.db", tiny_model, None, properties=None, target="band_gap=0:1")

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            (["--target", "gap=1:2"], "'gap' is not known"),
            (["--target", "band_gap=2:1"], "upside down"),
            (["--target", "band_gap=1:2", "--properties", "mp20"], "no head for properties"),
            (["--target", "band_gap=1:2", "--properties", "none"], "a target needs a model"),
        ],
    )
    def test_bad_options(self, tmp_path: Path, more: list[str], words: str, capsys: Any) -> None:
        command = ["search", "--elements", "Cu,Au", "--out", str(tmp_path / "s.db"), *more]
        assert run(command) == 2
        assert words in capsys.readouterr().err


def test_order_with_a_target() -> None:
    cell = cell_of(bulk("NaCl", "rocksalt", a=5.64))

    def entry(uid: str, above: float | None, probability: float | None) -> Entry:
        known = {} if probability is None else {"target_probability": probability}
        return Entry(uid, cell, "NaCl", 225, e_above_hull=above, properties=known)

    # 0.05 eV/atom for each factor e
    entries = [
        entry("b", 0.06, 0.9),
        entry("a", 0.0, 0.5),
        entry("c", 0.0, 0.01),
        entry("e", None, 0.1),
        entry("d", None, 0.9),
    ]
    assert [e.uid for e in sorted(entries, key=rank_key)] == ["a", "b", "c", "d", "e"]
