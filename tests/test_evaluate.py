"""The evaluation as a whole: itself against itself, noise, bad input, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import Composition
from pymatgen.io.cif import CifWriter

import langevin_xtal as lx
from langevin_xtal.cli import evaluation_sets, run
from langevin_xtal.config.evaluation import EvaluateOptions
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import DataError, InputError
from langevin_xtal.evaluation import targets as targets_module
from langevin_xtal.evaluation.controls import perturbed
from langevin_xtal.evaluation.prediction import atom_labels
from langevin_xtal.evaluation.protocol import evaluate
from langevin_xtal.evaluation.report import Report
from langevin_xtal.evaluation.structures import Missing, StructureSet, split_id
from langevin_xtal.evaluation.targets import (
    ALL_GROUPS,
    Target,
    assignment_ranks,
    choose_targets,
    predict,
)
from langevin_xtal.evaluation.trials import reference_targets
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.symmetry.assignments import assignments
from langevin_xtal.symmetry.wyckoff import wyckoff_positions

OPTIONS = EvaluateOptions(workers=1)


@pytest.fixture(scope="module")
def known(reference: PackedDataset) -> PackedDataset:
    """Twenty small crystals of groups 16 and above."""
    small = (reference.atom_counts <= 16) & (reference.group >= 16)
    return reference.select(np.flatnonzero(small)[::3][:20])


@pytest.fixture(scope="module")
def truth(known: PackedDataset) -> StructureSet:
    return StructureSet.from_packed(known, "truth")


@pytest.fixture(scope="module")
def noisy(known: PackedDataset, truth: StructureSet, tmp_path_factory: Any) -> Report:
    """The crystals themselves and three amounts of noise."""
    sets = [truth, *(perturbed(truth, sigma, seed=1) for sigma in (0.05, 0.3, 1.0))]
    options = EvaluateOptions(workers=1, cache=tmp_path_factory.mktemp("cache"))
    return evaluate(sets, known, training=known, options=options)


class TestItself:
    def test_perfect(self, noisy: Report, known: PackedDataset) -> None:
        found = noisy["truth"]
        assert found["attempted"] == found["targets"] == len(known)
        for key in ("match_1", "metre", "cov_recall", "cov_precision", "formula_right",
                    "cov_recall_joint", "cov_precision_joint", "struct_valid",
                    "kept_0.001", "kept_0.01", "kept_0.1"):  # fmt: skip
            assert found[key] == 1.0, key
        for key in ("fd_crystalnn", "fd_chgnet", "rmse_1", "crmse", "w_density", "w_energy",
                    "w_elements", "w_min_distance", "w_max_distance", "w_lengths", "js_groups",
                    "js_elements", "novel", "p1_share"):  # fmt: skip
            assert found[key] == pytest.approx(0, abs=1e-6), key

    def test_all_bins_are_perfect(self, noisy: Report) -> None:
        rates = noisy.columns[0].tables["by_freedom"]
        assert sum(r["targets"] for r in rates.values()) == noisy["truth"]["targets"]
        assert all(r["rate"] == 1.0 for r in rates.values() if r["targets"])


class TestNoise:
    @pytest.mark.parametrize(
        ("key", "sign"),
        [("match_1", -1), ("metre", -1), ("crmse", 1), ("fd_crystalnn", 1), ("fd_chgnet", 1),
         ("w_min_distance", 1), ("w_energy", 1), ("js_groups", 1), ("kept_0.1", -1),
         ("cov_precision", -1)],
    )  # fmt: skip
    def test_makes_it_worse(self, noisy: Report, key: str, sign: int) -> None:
        """Never better with more noise, and much worse in the end."""
        course = sign * np.array([column.summary[key] for column in noisy.columns], dtype=float)
        assert (np.diff(course) >= -1e-9).all(), course
        assert course[-1] > course[0]

    def test_leaves_alone_what_it_does_not_touch(self, noisy: Report) -> None:
        for column in noisy.columns:
            assert column.summary["w_density"] == pytest.approx(0, abs=1e-6)
            assert column.summary["js_elements"] == pytest.approx(0, abs=1e-9)
            assert column.summary["formula_right"] == 1.0


class TestReport:
    def test_json_holds_every_structure(self, noisy: Report, tmp_path: Path) -> None:
        noisy.save(tmp_path / "new")
        stored = json.loads((tmp_path / "new" / "evaluation.json").read_text())
        assert list(stored["columns"]) == [c.label for c in noisy.columns]
        for column in stored["columns"].values():
            assert len(column["structures"]) == column["summary"]["attempted"]
            entry = column["structures"][0]
            assert {"id", "formula", "target", "rms", "energy", "density", "groups_found",
                    "nearest_structure", "struct_valid", "comp_valid"} <= set(entry)  # fmt: skip
        assert stored["settings"]["versions"]["smact"]

    def test_table_says_what_it_measures(self, noisy: Report) -> None:
        text = noisy.table()
        for word in ("COV-R", "FD CrystalNN", "match rate, k = 1", "smact14", "ltol"):
            assert word in text
        assert "nan" not in text

    def test_rst(self, noisy: Report) -> None:
        lines = noisy.rst().splitlines()
        assert any("COV-P" in line for line in lines)


class TestRelaxed:
    def test_known_crystals_stay_where_they_are(self, known: PackedDataset) -> None:
        """A strained known crystal relaxes back; one that cannot be relaxed stays counted."""
        truth = StructureSet.from_packed(known, "truth")
        small = sorted(range(len(truth)), key=lambda k: len(truth.cell(k)[2]))[1:3]  # not Po
        cells = [(1.03 * lattice, frac, z) for lattice, frac, z in map(truth.cell, small)]
        overlap = (4.0 * np.eye(3), np.zeros((2, 3)), np.array([11, 17]))
        names = [f"{truth.ids[k]}__0" for k in small]
        strained = StructureSet.of("strained", [*cells, overlap], [*names, "overlap"])
        options = EvaluateOptions(features=(), workers=1, relax=["strained"])
        listed = [truth.ids[k] for k in small]
        report = evaluate(
            strained,
            known,
            training=known,
            targets=reference_targets(known, [strained], listed),
            options=options,
        )
        assert [c.label for c in report.columns] == ["strained", "strained relaxed"]
        found = report["strained relaxed"]
        assert found["attempted"] == 3
        assert found["relaxed_share"] == found["converged"] == pytest.approx(2 / 3)
        assert found["match_1"] == 1.0
        assert found["rmsd_relaxed"] == pytest.approx(0, abs=1e-3)
        assert found["sun"] == 0.0  # both are in the training data
        column = report.columns[1]
        assert [m["id"] for m in column.missing] == ["overlap"]
        for entry in column.structures:
            assert entry["energy"] < entry["start_energy"]
            assert np.isfinite(entry["e_above_hull"])
        assert "hull" in report.notes[-1]


class TestBadStructures:
    @pytest.fixture(scope="class")
    def report(self, known: PackedDataset, truth: StructureSet) -> Report:
        cells = list(truth.cells())[:4]
        lattice, frac, numbers = cells[0]
        overlap = (lattice, np.zeros_like(np.repeat(frac, 2, 0)), np.repeat(numbers, 2))
        lone = (np.eye(3) * 30.0, np.zeros((1, 3)), np.array([2]))
        unknown = (np.eye(3) * 4.0, np.zeros((1, 3)), np.array([118]))
        odd = StructureSet.of(
            "odd",
            [*cells, overlap, lone, unknown],
            [*(f"{name}__0" for name in truth.ids[:4]), "overlap", "lone", "unknown"],
            None,
            [Missing(f"{truth.ids[4]}__0", "could not be read")],
        )
        return evaluate(odd, known, training=known, options=OPTIONS)

    def test_stay_in_denominators(self, report: Report) -> None:
        found = report["odd"]
        assert found["attempted"] == 8 + 15
        assert found["missing"] == 1 + 15
        assert found["struct_valid"] == pytest.approx(6 / 23)
        assert found["cov_precision"] <= 6 / 23
        assert found["targets"] == 20
        assert found["predicted"] == 4
        assert found["match_1"] == pytest.approx(4 / 20)

    def test_are_listed(self, report: Report) -> None:
        column = report.columns[0]
        assert column.missing[0]["reason"] == "could not be read"
        assert {m["reason"] for m in column.missing[1:]} == {"no prediction of this target"}
        assert len({m["id"] for m in column.missing}) == 16
        assert {"overlap", "unknown"} <= set().union(*map(set, column.failures.values()))


class TestInput:
    def test_empty(self, known: PackedDataset) -> None:
        with pytest.raises(InputError, match="no structures"):
            evaluate(StructureSet.of("nothing", [], []), known)
        with pytest.raises(InputError, match="no structures"):
            evaluate([], known)

    def test_same_label(self, known: PackedDataset, truth: StructureSet) -> None:
        with pytest.raises(InputError, match="two sets"):
            evaluate([truth, truth], known)

    def test_unknown_feature(self) -> None:
        with pytest.raises(InputError, match="soap"):
            EvaluateOptions(features=("soap",))

    def test_trial_names(self) -> None:
        assert split_id("mp-12__3") == ("mp-12", 3)
        assert split_id("mp-12") == ("mp-12", 0)
        assert split_id("a__b__7") == ("a__b", 7)


class TestFormats:
    """The same structures from every kind of file."""

    @pytest.fixture(scope="class")
    def sources(self, truth: StructureSet, tmp_path_factory: Any) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp("formats")
        chosen = truth.select(np.arange(3))
        (folder / "cifs").mkdir()
        rows = ["id,cif"]
        atoms = []
        for k, name in enumerate(chosen.ids):
            text = str(CifWriter(chosen.structure(k)))
            (folder / "cifs" / f"{name}__0.cif").write_text(text)
            quoted = text.replace('"', '""')
            rows.append(f'{name}__0,"{quoted}"')
            lattice, frac, numbers = chosen.cell(k)
            atoms.append(Atoms(numbers, scaled_positions=frac, cell=lattice, pbc=True))
            atoms[-1].info["material_id"] = f"{name}__0"
        (folder / "cifs" / "broken.cif").write_text("data_x\n_atom_site_label\nnonsense")
        (folder / "table.csv").write_text("\n".join(rows) + "\n")
        ase.io.write(folder / "frames.xyz", atoms, format="extxyz")
        with ase.db.connect(folder / "rows.db") as database:
            for each in atoms:
                database.write(each, material_id=each.info["material_id"])
        chosen.save(folder / "own.structures.npz")
        return {p.name: p for p in folder.iterdir()}

    @pytest.mark.parametrize(
        "name", ["cifs", "table.csv", "frames.xyz", "rows.db", "own.structures.npz"]
    )
    def test_same_result(self, sources: dict[str, Path], known: PackedDataset, name: str) -> None:
        found = StructureSet.read(sources[name])
        report = evaluate(found, known, options=EvaluateOptions(features=(), workers=1))
        summary = report.columns[0].summary
        assert summary["attempted"] == 20 + (name == "cifs")
        assert summary["missing"] == 17 + (name == "cifs")
        assert summary["match_1"] == pytest.approx(3 / 20)
        assert (summary["targets"], summary["predicted"]) == (20, 3)

    def test_targets_can_be_listed(self, sources: dict[str, Path], known: PackedDataset) -> None:
        found = StructureSet.read(sources["table.csv"])
        names = known.id[:5].tolist()
        targets = reference_targets(known, [found], names)
        options = EvaluateOptions(features=(), workers=1)
        summary = evaluate(found, known, targets=targets, options=options).columns[0].summary
        assert (summary["targets"], summary["predicted"]) == (5, 3)
        assert summary["match_1"] == pytest.approx(3 / 5)
        with pytest.raises(InputError, match="no crystal 'nobody'"):
            reference_targets(known, [found], [*names, "nobody"])
        unknown = StructureSet.of("x", [found.cell(0)], ["mine"])
        assert reference_targets(known, [unknown]) == []

    def test_no_structures(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="does not exist"):
            StructureSet.read(tmp_path / "nowhere")
        (tmp_path / "bad.structures.npz").write_text("no")
        with pytest.raises(DataError, match=r"bad\.structures\.npz"):
            StructureSet.read(tmp_path / "bad.structures.npz")


class TestCompositions:
    """Rutile and anatase have the same atoms in the primitive cell."""

    def report(
        self, reference: PackedDataset, predicted: dict[str, str], **options: Any
    ) -> Report:
        names = ["rutile", "anatase", "fluorite"]
        data = reference.select(np.flatnonzero(np.isin(reference.id, names)))
        truth = StructureSet.from_packed(data, "truth")
        cells = [truth.cell(truth.index_of[name]) for name in predicted.values()]
        made = StructureSet.of("made", cells, list(predicted))
        given = EvaluateOptions(features=(), workers=1, **options)
        return evaluate(made, data, targets=choose_targets(data, None), options=given)

    def test_metre_has_as_many_structures_for_each_composition(
        self, reference: PackedDataset
    ) -> None:
        """Of two targets that share a composition the predictions of one count, for both."""
        data = reference.select(np.flatnonzero(np.isin(reference.id, ["rutile", "anatase"])))
        first, second = (t.id for t in choose_targets(data, None))
        crossed = {f"{first}__0": first, f"{second}__0": second, "fluorite__0": "fluorite"}
        assert self.report(reference, crossed)["made"]["metre"] == 1.0
        report = self.report(reference, crossed, per_composition=True)
        assert len(report.columns[0].structures) == 3  # all other numbers are over all
        assert report["made"]["match_1"] == 1.0
        assert report["made"]["metre"] == pytest.approx(2 / 3)
        assert any("3 targets have 2 compositions" in note for note in report.notes)
        both = {f"{name}__{k}": found for name in (first, second)
                for k, found in enumerate((first, second))}  # fmt: skip
        whole = both | {"fluorite__0": "fluorite", "fluorite__1": "fluorite"}
        assert self.report(reference, whole, per_composition=True)["made"]["metre"] == 1.0

    def test_bins(self) -> None:
        assert atom_labels([1, 4, 5, 8, 12, 13, 20, 21, 52, 53, 400]) == [
            "1-4", "1-4", "5-8", "5-8", "9-12", "13-16", "17-20", "21-52", "21-52", "53+", "53+",
        ]  # fmt: skip


class TestCandidates:
    def test_from_sample(self, known: PackedDataset, tiny_model: Any) -> None:
        request = lx.Request(221, {"Na": 1, "Cl": 1})
        candidates = lx.sample([request] * 3, tiny_model, seed=0)
        report = lx.evaluate(candidates, known, options=EvaluateOptions(features=(), workers=1))
        assert report["candidates"]["attempted"] == len(candidates)
        assert report["candidates"]["kept_0.001"] >= 0


class TestModes:
    """What a model is given of a target, and that it keeps to it."""

    @pytest.fixture(scope="class")
    def targets(self, reference: PackedDataset) -> list[Target]:
        """All structure types, monoclinic and triclinic ones too."""
        found = choose_targets(reference, None, groups=ALL_GROUPS)
        assert min(t.group.number for t in found) < 16
        return found

    def test_formula(self, targets: list[Target]) -> None:
        for t in targets:
            request = t.request("formula")
            assert request.space_group == t.group
            assert not request.sites
            elements = {SYMBOLS[z] for z in t.numbers.tolist()}
            asked = {s: t.multiplicity[t.numbers == SYMBOLS.index(s)].sum() for s in elements}
            assert dict(request.counts) == asked
            unit = Composition(request.formula)  # pymatgen: cannot be divided further
            assert unit.reduced_composition == unit
            assert request.z == sum(asked.values()) / unit.num_atoms

    def test_sites_tell_no_formula(self, targets: list[Target]) -> None:
        for t in targets:
            request = t.request()
            assert request.formula is None
            assert sorted(request.numbers) == sorted(t.numbers.tolist())

    def test_unknown_mode(self, targets: list[Target], tiny_model: CrystalModel) -> None:
        with pytest.raises(InputError, match="'cell' is not known"):
            targets[0].request("cell")  # type: ignore[arg-type]

    def test_positions_are_those_of_the_letters(self, targets: list[Target]) -> None:
        for t in targets:
            table = wyckoff_positions(t.group.number)
            assert [table[w].multiplicity for w in t.positions] == t.multiplicity.tolist()
            assert sum(table[w].freedom for w in t.positions) == t.freedom

    def test_predictions_have_the_formula(
        self, targets: list[Target], tiny_model: CrystalModel
    ) -> None:
        options = SampleOptions(sampler=lx.Ancestral(levels=3), workers=1, attempts=2)
        some = [t for t in targets if t.multiplicity.sum() <= 12][::4]
        assert any(t.group.number < 16 for t in some)
        made = predict(some, tiny_model, mode="formula", options=options)
        assert len(made) > len(some) / 2
        of = {t.id: t for t in some}
        for k, name in enumerate(made.ids):
            t = of[split_id(name)[0]]
            _, _, numbers = made.cell(k)
            counts = np.bincount(numbers, minlength=119) * len(t.group.centring)
            assert {z: counts[z] for z in t.counts()} == t.counts()
            assert made.group[k] == t.group.number

    def test_the_true_assignment_is_among_those_ranked(
        self, targets: list[Target], tiny_model: CrystalModel
    ) -> None:
        some = targets[::3]
        ranks = assignment_ranks(some, tiny_model)
        assert (ranks >= 0).all()
        for t, rank in zip(some, ranks.tolist(), strict=True):
            listed = list(assignments(t.group.number, list(t.counts().values())))
            assert t.assignment() in listed
            assert rank < len(listed)
            # without a ranker, few sites come first
            fewer = sum(sum(map(len, a)) < len(t.numbers) for a in listed)
            assert fewer <= rank <= sum(sum(map(len, a)) <= len(t.numbers) for a in listed)

    def test_letters(self, targets: list[Target]) -> None:
        for t in targets:
            request = t.request("letters")
            mine = zip(t.numbers.tolist(), t.positions, strict=True)
            theirs = zip(request.numbers, request.positions, strict=True)
            assert sorted(mine) == sorted(theirs)


class TestCommand:
    def test_formula_mode(
        self, reference: PackedDataset, tiny_path: Path, tmp_path: Path, capsys: Any
    ) -> None:
        """Groups 1 to 15 take part, formulas are right, the ranking is shown."""
        small = reference.select(np.flatnonzero(reference.atom_counts <= 8))
        assert (small.group < 16).any()
        small.save(tmp_path / "small.lxd")
        arguments = [
            "evaluate", "--model", str(tiny_path), "--reference", str(tmp_path / "small.lxd"),
            "--mode", "formula", "--n", "12", "--levels", "3", "--workers", "1", "--controls",
            "none", "--fingerprints", "none", "--out", str(tmp_path / "out"),
            "--cache", str(tmp_path / "cache"),
        ]  # fmt: skip
        assert run(arguments) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "given of each target: formula, formula units" in printed
        assert "the true one is ranked first for" in printed
        stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        assert stored["settings"]["mode"] == "formula"
        (column,) = stored["columns"].values()
        assert column["summary"]["attempted"] == 12
        there = 1 - column["summary"]["missing"] / 12
        assert column["summary"]["formula_right"] == pytest.approx(there)

    def test_composition_mode(
        self, reference: PackedDataset, tiny_open_path: Path, tmp_path: Path, capsys: Any
    ) -> None:
        """The default control knows no group; rates stand by number of atoms."""
        small = reference.select(np.flatnonzero(reference.atom_counts <= 8))
        small.save(tmp_path / "small.lxd")
        arguments = [
            "evaluate", "--model", str(tiny_open_path), "--reference", str(tmp_path / "small.lxd"),
            "--training", str(tmp_path / "small.lxd"), "--mode", "composition", "--n", "10",
            "--k", "2", "--levels", "3", "--workers", "1", "--fingerprints", "none",
            "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"),
        ]  # fmt: skip
        assert run(arguments) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "match rate, k = 1, by atoms in the primitive cell" in printed
        assert "match rate, best of trials, by atoms in the primitive cell" in printed
        assert "True settings by" in printed
        assert "10 targets have" in printed
        stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())["columns"]
        assert list(stored)[1:] == ["template-composition", "training"]
        control = stored["template-composition"]
        assert control["summary"]["metre"] == 1.0  # the targets are in the training data
        bins = control["tables"]["by_atoms"]
        assert list(bins) == [b for b in ("1-4", "5-8") if b in bins]
        assert sum(b["targets"] for b in bins.values()) == 10
        model = stored["tiny-open"]["summary"]
        there = 1 - model["missing"] / 10
        assert model["formula_right"] == pytest.approx(there)

    def test_de_novo(
        self,
        reference: PackedDataset,
        tiny_open_path: Path,
        tmp_path: Path,
        capsys: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Parts are saved and not made again; samples are those of the library."""
        reference.save(tmp_path / "all.lxd")
        monkeypatch.setattr(evaluation_sets, "DE_NOVO_PART", 3)
        made: list[range] = []
        plain = targets_module.de_novo_samples

        def counted(model: Any, places: range, **options: Any) -> StructureSet:
            if len(made) == stop:
                raise KeyboardInterrupt
            made.append(places)
            return plain(model, places, **options)

        monkeypatch.setattr(targets_module, "de_novo_samples", counted)
        arguments = [
            "evaluate", "--model", str(tiny_open_path), "--reference", str(tmp_path / "all.lxd"),
            "--training", str(tmp_path / "all.lxd"), "--mode", "de-novo", "--n", "8", "--seed",
            "3", "--levels", "3", "--workers", "1", "--fingerprints", "none",
            "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"),
        ]  # fmt: skip
        stop = 2
        assert run(arguments) != 0  # interrupted
        assert made == [range(0, 3), range(3, 6)]
        capsys.readouterr()
        stop = 9
        assert run(arguments) == 0
        assert made == [range(0, 3), range(3, 6), range(6, 8)]
        printed = " ".join(capsys.readouterr().out.split())
        assert "Models are given nothing" in printed
        assert "match rate" not in printed
        stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        assert stored["settings"]["mode"] == "de-novo"
        assert list(stored["columns"]) == ["tiny-open", "training"]
        column = stored["columns"]["tiny-open"]
        summary = column["summary"]
        assert summary["attempted"] == 8
        assert len(column["structures"]) + summary["missing"] == 8
        for key in ("struct_valid", "comp_valid", "unique", "novel", "p1_share", "js_groups",
                    "w_density", "w_elements"):  # fmt: skip
            assert summary[key] is not None, key
        options = SampleOptions(sampler=lx.Ancestral(levels=3), workers=1)
        model = lx.load_model(str(tiny_open_path))
        candidates = lx.sample([lx.Request()] * 8, model, seed=3, options=options)
        formulas = {f"de-novo-{c.index:06d}": c.formula for c in candidates}
        assert set(formulas) == {entry["id"] for entry in column["structures"]}
        for entry in column["structures"]:
            same = Composition(formulas[entry["id"]]).reduced_composition
            assert Composition(entry["formula"]).reduced_composition == same
            assert entry["group_asked"] in range(1, 231)

    def test_model_with_control(
        self, known: PackedDataset, tiny_path: Path, tmp_path: Path, capsys: Any
    ) -> None:
        known.save(tmp_path / "known.lxd")
        arguments = [
            "evaluate", "--model", str(tiny_path), "--reference", str(tmp_path / "known.lxd"),
            "--training", str(tmp_path / "known.lxd"), "--n", "4", "--k", "2", "--levels", "3",
            "--workers", "1", "--fingerprints", "none", "--out", str(tmp_path / "out"),
            "--cache", str(tmp_path / "cache"),
        ]  # fmt: skip
        assert run(arguments) == 0
        first = capsys.readouterr().out
        stored = json.loads((tmp_path / "out" / "evaluation.json").read_text())
        labels = list(stored["columns"])
        assert labels[1:] == ["random", "template", "training"]
        model = stored["columns"][labels[0]]["summary"]
        assert model["targets"] == model["attempted"] == 4
        assert model["trials"] == 2
        assert model["evaluations"] == 3
        # its own training set is the template
        assert stored["columns"]["template"]["summary"]["match_1"] == 1.0
        assert (tmp_path / "out" / "match_rate.png").exists()
        assert run(arguments) == 0  # from what was kept
        again = capsys.readouterr().out
        assert first.splitlines()[:-1] == again.splitlines()[:-1]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--reference", "none.lxd"], "nothing to evaluate"),
            (["nowhere", "--reference", "none.lxd"], "none.lxd"),
            (["nowhere", "--reference", "{known}"], "nowhere"),
            (["--model", "small", "--reference", "{known}", "--controls", "luck"], "luck"),
            (["--model", "small", "--reference", "{known}", "--controls", "template"],
             "--training"),
            (["--model", "small", "--reference", "{known}", "--mode", "composition", "--controls",
              "template-composition"], "--training"),
            (["--reference", "{known}", "--mode", "de-novo", "{known}"], "--model"),
            (["--model", "small", "--reference", "{known}", "--mode", "de-novo", "--k", "2"],
             "--n"),
            (["--model", "small", "--reference", "{known}", "--mode", "de-novo", "--controls",
              "random"], "random"),
            (["--model", "small", "--reference", "{known}", "--levels", "1"], "levels"),
            (["--model", "small", "--reference", "{known}", "--levels", "x"], "levels"),
            (["--model", "small", "--reference", "{known}", "--mode", "cell"], "cell"),
            (["nowhere", "--reference", "{known}", "--fingerprints", "soap"], "soap"),
            (["{known}", "--reference", "{known}", "--n", "3"], "--n"),
        ],
    )  # fmt: skip
    def test_bad_input(
        self, known: PackedDataset, tmp_path: Path, capsys: Any, arguments: list[str], message: str
    ) -> None:
        known.save(tmp_path / "known.lxd")
        filled = [a.format(known=tmp_path / "known.lxd") for a in arguments]
        code = run(["evaluate", *filled, "--out", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert code == 2
        assert error.count("\n") == 1
        assert message in error
