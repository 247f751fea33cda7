"""Targets, predictions of them, and the controls to print beside a model."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import signal
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import spglib
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Element

import langevin_xtal as lx
from langevin_xtal.crystal.cell import Cell, reduced_formula
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import DataError, InputError, MissingPackageError
from langevin_xtal.evaluation import random_crystals
from langevin_xtal.evaluation.controls import (
    composition_template,
    element_distances,
    element_volumes,
    nearest_template,
    perturbed,
    template_ranks,
    training_sample,
)
from langevin_xtal.evaluation.random_crystals import random_symmetric
from langevin_xtal.evaluation.structures import Missing, StructureSet, split_id
from langevin_xtal.evaluation.targets import (
    ALL_GROUPS,
    Target,
    choose_targets,
    join,
    predict,
    predict_trial,
)
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.sampling.postprocess import PostprocessConfig
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.sampling.samplers import Ancestral
from langevin_xtal.symmetry import SpaceGroup, orbit
from langevin_xtal.symmetry.lattice import ideal_cells
from langevin_xtal.symmetry.wyckoff import wyckoff_positions

EVERY = range(1, 231)
MATCHER = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
TINY = Ancestral(levels=4)


def options(**changes: object) -> SampleOptions:
    kept = PostprocessConfig(min_distance=0.05)
    settings = {"sampler": TINY, "workers": 1, "postprocess": kept, "attempts": 2}
    return SampleOptions(**(settings | changes))  # type: ignore[arg-type]


def same(first: StructureSet, second: StructureSet) -> bool:
    """To the last bit, label aside."""
    return (
        first.ids == second.ids
        and first.missing == second.missing
        and all(
            np.array_equal(getattr(first, name), getattr(second, name))
            for name in ("lattice", "site_start", "numbers", "frac", "group")
        )
    )


def detected(cell: Cell, symprec: float = 0.01) -> int:
    dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)  # type: ignore[arg-type]
    return 0 if dataset is None else int(dataset.number)


def named(data: PackedDataset, *names: str) -> PackedDataset:
    """The crystals whose id begins with each name."""
    places = [k for name in names for k, i in enumerate(data.id) if str(i).startswith(name)]
    assert len(places) == len(names)
    return data.select(places)


def target(data: PackedDataset, name: str) -> Target:
    (one,) = choose_targets(named(data, name), None, groups=EVERY)
    return one


def renamed(data: PackedDataset, names: dict[str, str], scale: float = 1.0) -> PackedDataset:
    """Other elements, another size, other ids."""
    new = np.arange(len(SYMBOLS))
    for old, other in names.items():
        new[SYMBOLS.index(old)] = SYMBOLS.index(other)
    return dataclasses.replace(
        data,
        numbers=new[data.numbers],
        lattice=data.lattice * scale,
        id=np.array([f"{i} with {','.join(names.values())}" for i in data.id]),
    )


@pytest.fixture(scope="module")
def targets(reference: PackedDataset) -> list[Target]:
    """All structure types."""
    return choose_targets(reference, None, groups=EVERY)


class TestTargets:
    def test_permutation(self, reference: PackedDataset) -> None:
        pool = np.flatnonzero(reference.group >= 16)
        expected = reference.id[np.random.default_rng(3).permutation(pool)].tolist()
        for count in (0, 7, None):
            chosen = choose_targets(reference, count, seed=3)
            assert [t.id for t in chosen] == expected[:count]
        assert len(expected) == len(reference) - 4

    def test_groups(self, reference: PackedDataset) -> None:
        cubic = choose_targets(reference, None, groups=range(195, 231))
        assert sorted(t.id for t in cubic) == sorted(reference.id[reference.group >= 195])

    def test_negative_count(self, reference: PackedDataset) -> None:
        with pytest.raises(InputError, match="-1 targets"):
            choose_targets(reference, -1)

    def test_freedom_is_that_of_the_letters_in_pyxtal(self, targets: list[Target]) -> None:
        from pyxtal.symmetry import Group

        for t in targets:
            free = {w.letter: w.get_dof() for w in Group(t.group.number)}
            assert t.freedom == sum(free[letter] for letter in t.letters.tolist())
        assert sum(t.freedom == 0 for t in targets) > 20
        assert max(t.freedom for t in targets) > 10

    def test_request_tells_elements_sites_and_group(self, reference: PackedDataset) -> None:
        request = target(reference, "olivine").request()
        assert str(request) == "O:3,Mg:2,Si:1 in Pnma (62)"
        known_to_model = (
            request.positions,
            request.formula,
            request.lattice,
            request.start,
            request.fixed,
        )
        assert known_to_model == (None, None, None, None, ())

    def test_cell_is_the_primitive_one(self, targets: list[Target]) -> None:
        for t in targets:
            lattice, frac, numbers = t.cell()
            assert len(numbers) * len(t.group.centring) == t.multiplicity.sum()
            assert detected((lattice, frac, numbers)) == t.group.number
            found = spglib.find_primitive((lattice, frac, numbers))  # type: ignore[arg-type]
            assert found is not None
            assert len(found[2]) == len(numbers)


class TestPredict:
    @pytest.fixture(scope="class")
    def five(self, reference: PackedDataset) -> list[Target]:
        """One of them monoclinic."""
        data = named(reference, "rock salt", "rutile", "tenorite", "wurtzite", "Heusler (L2_1)")
        return choose_targets(data, None, groups=EVERY, seed=1)

    @pytest.fixture(scope="class")
    def two_trials(self, five: list[Target], tiny_model: CrystalModel) -> StructureSet:
        return predict(five, tiny_model, trials=2, seed=5, options=options())

    def test_ids_and_groups(self, five: list[Target], two_trials: StructureSet) -> None:
        expected = {f"{t.id}__{j}": t.group.number for j in (0, 1) for t in five}
        assert set(two_trials.ids) | {m.id for m in two_trials.missing} == set(expected)
        assert any("tenorite" in name for name in two_trials.ids)
        assert two_trials.group.tolist() == [expected[name] for name in two_trials.ids]
        for name in two_trials.ids:
            t = next(t for t in five if t.id == split_id(name)[0])
            _, _, numbers = two_trials.cell(two_trials.index_of[name])
            assert set(numbers.tolist()) == set(t.numbers.tolist())

    def test_one_trial_is_the_first_of_two(
        self, five: list[Target], tiny_model: CrystalModel, two_trials: StructureSet
    ) -> None:
        one = predict(five, tiny_model, trials=1, seed=5, options=options())
        first = two_trials.select([split_id(name)[1] == 0 for name in two_trials.ids])
        assert same(dataclasses.replace(one, missing=()), first)
        second = two_trials.select([split_id(name)[1] == 1 for name in two_trials.ids])
        assert not np.array_equal(first.lattice, second.lattice)

    def test_streams(
        self, five: list[Target], tiny_model: CrystalModel, two_trials: StructureSet
    ) -> None:
        """The second trial is what a list of all requests, twice, would have given."""
        found = lx.sample([t.request() for t in five] * 2, tiny_model, 5, options=options())
        index = {f"{t.id}__1": len(five) + k for k, t in enumerate(five)}
        for name, place in index.items():
            if name not in two_trials.index_of:
                continue
            (candidate,) = [c for c in found if c.index == place]
            lattice, _, numbers = two_trials.cell(two_trials.index_of[name])
            volume = candidate.volume / len(candidate.space_group.centring)
            assert np.linalg.det(lattice) == pytest.approx(volume, rel=1e-12)
            atoms = candidate.numbers[candidate.atom_site]
            assert reduced_formula(numbers) == reduced_formula(atoms)

    def test_parts_and_resuming(
        self, five: list[Target], tiny_model: CrystalModel, two_trials: StructureSet
    ) -> None:
        parts: dict[int, StructureSet] = {}
        seen: list[tuple[int, int]] = []
        whole = predict(
            five,
            tiny_model,
            trials=2,
            seed=5,
            options=options(),
            label="parts",
            progress=lambda done, planned: seen.append((done, planned)),
            on_part=lambda trial, part: parts.update({trial: part}),
        )
        assert same(whole, two_trials)
        assert list(parts) == [0, 1]
        assert seen
        again = predict_trial(five, tiny_model, 1, seed=5, options=options())
        assert same(again, parts[1])
        assert same(join("parts", [parts[0], again]), whole)
        assert join("parts", [parts[0], again]).label == "parts"

    def test_rejected_requests_are_missing_with_their_reason(
        self, five: list[Target], tiny_model: CrystalModel
    ) -> None:
        overlapping = options(postprocess=PostprocessConfig(min_distance=100.0))
        made = predict(five, tiny_model, options=overlapping)
        assert len(made) == 0
        assert made.attempted == 5
        reasons = [m.reason for m in made.missing if "tenorite" not in m.id]
        assert len(reasons) == 4
        assert all(text.startswith("overlap: ") for text in reasons)

    def test_the_last_reason_counts(
        self, five: list[Target], tiny_model: CrystalModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from langevin_xtal.sampling import sample
        from langevin_xtal.sampling.postprocess import Rejection

        def batches(requests: Any, *_: object, indices: Any, **__: object) -> Any:
            for attempt in (2, 0, 1):  # batches end in any order
                yield sample.Outcome(
                    rejections=[
                        Rejection(r, i, attempt, f"attempt {attempt}")
                        for r, i in zip(requests, indices, strict=True)
                    ]
                )

        monkeypatch.setattr(sample, "sample_batches", batches)
        made = predict_trial(five[:2], tiny_model, 3)
        assert {m.reason for m in made.missing if "tenorite" not in m.id} == {"attempt 2"}

    def test_no_trial(self, five: list[Target], tiny_model: CrystalModel) -> None:
        with pytest.raises(InputError, match="0 trials"):
            predict(five, tiny_model, trials=0)

    def test_join_refuses_the_same_twice(self, two_trials: StructureSet) -> None:
        with pytest.raises(DataError, match="occurs twice"):
            join("both", [two_trials, two_trials])


class TestLetters:
    @pytest.mark.slow
    def test_pyxtal_means_the_same_by_a_letter(self) -> None:
        """In all 230 groups, whatever the choice of origin: multiplicity and freedom agree."""
        from pyxtal.symmetry import Group

        positions = 0
        for number in EVERY:
            group = SpaceGroup(number)
            skew = np.array([[7.1, 0, 0], [0.9, 8.3, 0], [1.3, 0.7, 9.7]])
            lattice = ideal_cells(skew if number < 3 else np.diag(np.diag(skew)), number)
            ours = {}
            fixed = [
                orbit(np.array(p), group.rotations, group.translations, lattice)[0]
                for p in ((0.1371, 0.2213, 0.0917), (0.0571, 0.3113, 0.4317))
            ]
            for position in wyckoff_positions(number):
                point = position.base + position.projector @ np.array([0.0127, 0.0211, 0.0173])
                images = orbit(point, group.rotations, group.translations, lattice)[0]
                frac = np.concatenate([*fixed, images])
                kinds = np.repeat([1, 2, 3], [len(fixed[0]), len(fixed[1]), len(images)])
                dataset = spglib.get_symmetry_dataset(
                    (lattice, frac, kinds),  # type: ignore[arg-type]
                    symprec=1e-4,
                    hall_number=group.hall_number,
                )
                assert dataset is not None
                ours[dataset.wyckoffs[-1]] = (len(images), position.freedom)
                positions += 1
            theirs = {w.letter: (w.multiplicity, w.get_dof()) for w in Group(number)}
            assert ours == theirs, number
        assert positions == 1731


class TestRandomSymmetric:
    @pytest.fixture(scope="class")
    def twenty(self, targets: list[Target]) -> list[Target]:
        """Small ones of many groups, all monoclinic and triclinic ones among them."""
        small = [t for t in targets if t.multiplicity.sum() <= 24]
        low = [t for t in small if t.group.number < 16]
        assert len(low) >= 3
        return low + [t for t in small if t.group.number >= 16][: 20 - len(low)]

    @pytest.fixture(scope="class")
    def made(self, twenty: list[Target]) -> StructureSet:
        return random_symmetric(twenty, trials=2, seed=4, workers=1)

    def test_composition_and_group(self, twenty: list[Target], made: StructureSet) -> None:
        assert made.attempted == 40
        assert len(made) >= 38
        by_id = {t.id: t for t in twenty}
        for name, group, cell in zip(made.ids, made.group, made.cells(), strict=True):
            t = by_id[split_id(name)[0]]
            assert group == t.group.number
            assert sorted(cell[2]) == sorted(t.cell()[2])
            assert detected(cell) == t.group.number, name
            assert np.linalg.det(cell[0]) > 0

    def test_free_coordinates_are_random(self, twenty: list[Target], made: StructureSet) -> None:
        for t in twenty:
            names = [f"{t.id}__{j}" for j in (0, 1)]
            if not all(name in made.index_of for name in names):
                continue
            first, second = (made.cell(made.index_of[name]) for name in names)
            assert not np.allclose(first[0], second[0])
            if t.freedom:
                assert not np.allclose(first[1], second[1])

    def test_one_trial_is_the_first_of_two(self, twenty: list[Target], made: StructureSet) -> None:
        np.random.seed(99)  # the global generator must not matter
        one = random_symmetric(twenty, trials=1, seed=4, workers=1)
        first = made.select([split_id(name)[1] == 0 for name in made.ids])
        assert same(dataclasses.replace(one, missing=()), first)
        few = random_symmetric(twenty[:3], trials=1, seed=4, workers=1)
        assert few.ids == one.ids[: len(few)]
        assert np.array_equal(few.frac, one.frac[: len(few.frac)])

    @pytest.mark.slow
    def test_workers_change_nothing(self, twenty: list[Target], made: StructureSet) -> None:
        seen: list[tuple[int, int]] = []
        two = random_symmetric(
            twenty,
            trials=2,
            seed=4,
            workers=2,
            progress=lambda done, planned: seen.append((done, planned)),
        )
        assert same(two, made)
        assert seen == [(k, 40) for k in range(1, 41)]

    def test_another_seed(self, twenty: list[Target], made: StructureSet) -> None:
        other = random_symmetric(twenty[:2], seed=5, workers=1)
        assert not np.allclose(other.lattice[0], made.lattice[0])

    def test_the_answer_is_not_looked_at(self, twenty: list[Target], made: StructureSet) -> None:
        """Neither cell nor coordinates of the target."""
        blind = [
            dataclasses.replace(t, frac=np.full_like(t.frac, np.nan), lattice=np.zeros((3, 3)))
            for t in twenty
        ]
        assert same(random_symmetric(blind, trials=2, seed=4, workers=1), made)

    def test_refused(self, twenty: list[Target]) -> None:
        with pytest.raises(InputError, match="0 trials"):
            random_symmetric(twenty, trials=0)
        with pytest.raises(InputError, match="seed is -1"):
            random_symmetric(twenty, seed=-1)

    def test_without_pyxtal(self, twenty: list[Target], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pyxtal", None)
        with pytest.raises(MissingPackageError, match="pyxtal"):
            random_symmetric(twenty[:1], workers=1)


class TestPyxtalFails:
    """A PyXtal that misbehaves costs one structure, not the run."""

    @pytest.fixture
    def salt(self, reference: PackedDataset) -> Target:
        return target(reference, "periclase")

    def run(
        self, monkeypatch: pytest.MonkeyPatch, one: Target, act: Any, seconds: float = 20.0
    ) -> StructureSet:
        class Crystal:
            valid = True
            atom_sites: tuple[object, ...] = ()
            lattice = SimpleNamespace(matrix=np.eye(3) * 4)

            def from_random(self, *_: object, **__: object) -> None:
                act(self)

        monkeypatch.setattr(random_crystals, "require", lambda *_: SimpleNamespace(pyxtal=Crystal))
        return random_symmetric([one], workers=1, seconds=seconds)

    def reason(self, made: StructureSet) -> str:
        assert len(made) == 0
        (missing,) = made.missing
        assert missing.id.endswith("__0")
        return missing.reason

    def test_raises(
        self, monkeypatch: pytest.MonkeyPatch, salt: Target, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def act(_: Any) -> None:
            print("noise")
            raise RuntimeError("long time\nto generate")

        made = self.run(monkeypatch, salt, act)
        assert self.reason(made) == "PyXtal: RuntimeError: long time"
        assert capsys.readouterr().out == ""

    def test_hangs(self, monkeypatch: pytest.MonkeyPatch, salt: Target) -> None:
        before = signal.getsignal(signal.SIGALRM)
        start = time.perf_counter()
        made = self.run(monkeypatch, salt, lambda _: time.sleep(30), seconds=0.2)
        assert self.reason(made) == "PyXtal: not done after 0.2 s"
        assert time.perf_counter() - start < 5
        assert signal.getsignal(signal.SIGALRM) is before
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)

    def test_hangs_and_swallows_the_first_alarm(
        self, monkeypatch: pytest.MonkeyPatch, salt: Target
    ) -> None:
        def act(_: Any) -> None:
            with contextlib.suppress(BaseException):
                time.sleep(30)
            time.sleep(30)

        start = time.perf_counter()
        made = self.run(monkeypatch, salt, act, seconds=0.2)
        assert self.reason(made) == "PyXtal: not done after 0.2 s"
        assert time.perf_counter() - start < 8

    def test_outside_the_main_thread_there_is_no_alarm(
        self, monkeypatch: pytest.MonkeyPatch, salt: Target
    ) -> None:
        made: list[StructureSet] = []

        def act(_: Any) -> None:
            raise ValueError("none")

        thread = threading.Thread(target=lambda: made.append(self.run(monkeypatch, salt, act)))
        thread.start()
        thread.join()
        assert self.reason(made[0]) == "PyXtal: ValueError: none"

    def test_gives_up(self, monkeypatch: pytest.MonkeyPatch, salt: Target) -> None:
        made = self.run(monkeypatch, salt, lambda crystal: setattr(crystal, "valid", False))
        assert self.reason(made) == "PyXtal: no valid crystal"

    @staticmethod
    def sites(*pairs: tuple[str, NDArray[np.float64]]) -> tuple[object, ...]:
        return tuple(SimpleNamespace(specie=s, multiplicity=len(f), coords=f) for s, f in pairs)

    def test_other_composition(self, monkeypatch: pytest.MonkeyPatch, salt: Target) -> None:
        def act(crystal: Any) -> None:
            crystal.atom_sites = self.sites(("Mg", np.zeros((4, 3))), ("O", np.zeros((8, 3))))

        assert self.reason(self.run(monkeypatch, salt, act)) == "PyXtal: another composition"

    def test_not_finite(self, monkeypatch: pytest.MonkeyPatch, salt: Target) -> None:
        def act(crystal: Any) -> None:
            crystal.atom_sites = self.sites(
                ("Mg", np.full((4, 3), np.nan)), ("O", np.zeros((4, 3)))
            )

        assert self.reason(self.run(monkeypatch, salt, act)) == "PyXtal: not finite"

    def test_what_it_gives_is_kept(self, monkeypatch: pytest.MonkeyPatch, salt: Target) -> None:
        faces = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])

        def act(crystal: Any) -> None:
            crystal.atom_sites = self.sites(("Mg", faces), ("O", faces + 0.5))

        made = self.run(monkeypatch, salt, act)
        assert made.missing == ()
        assert sorted(made.numbers) == [8, 12]
        assert np.linalg.det(made.lattice[0]) == pytest.approx(16.0)
        assert detected(made.cell(0)) == 225


class TestNearestTemplate:
    def test_a_target_in_the_training_data_is_found(
        self, reference: PackedDataset, targets: list[Target]
    ) -> None:
        for with_letters in (False, True):
            made = nearest_template(targets, reference, with_letters=with_letters, workers=1)
            assert made.missing == ()
            for t, name, cell in zip(targets, made.ids, made.cells(), strict=True):
                assert name == f"{t.id}__0"
                rms = MATCHER.get_rms_dist(to_structure(cell), to_structure(t.cell()))
                assert rms is not None, name
                assert rms[0] < 1e-6, name
                assert np.linalg.det(cell[0]) == pytest.approx(np.linalg.det(t.cell()[0]))

    def test_composition_and_group(self, reference: PackedDataset, targets: list[Target]) -> None:
        """Without the target itself, elements and group are still the target's."""
        found = 0
        for t in targets:
            others = reference.select(reference.id != t.id)
            made = nearest_template([t], others, workers=1)
            if not len(made):
                assert made.missing[0].reason == (
                    "no training crystal of this group and site pattern"
                )
                continue
            found += 1
            cell = made.cell(0)
            assert set(cell[2].tolist()) == set(t.numbers.tolist())
            assert detected(cell) == t.group.number == made.group[0]
        assert 30 < found < len(targets)

    def test_substitution_by_hand(self, reference: PackedDataset) -> None:
        """FeS from MgO: the same positions, the cell scaled by the expected volumes."""
        training = named(reference, "periclase", "cuprite", "marcasite")
        salt = renamed(named(reference, "periclase"), {"Mg": "Fe", "O": "S"}, 1.7)
        (t,) = choose_targets(salt, None)
        made = nearest_template([t], training, workers=1)
        volume = element_volumes(training)
        expected = float(named(reference, "periclase").volumes[0]) / 4
        expected *= (volume[26] + volume[16]) / (volume[12] + volume[8])
        structure = made.structure(0)
        assert structure.volume == pytest.approx(expected)
        assert structure.composition.formula == "Fe1 S1"
        neighbours = structure.get_neighbors(structure[0], 0.51 * np.cbrt(4 * expected))
        assert len(neighbours) == 6
        assert all(n.nn_distance == pytest.approx(np.cbrt(4 * expected) / 2) for n in neighbours)

    def test_elements_take_the_place_of_similar_ones(self, reference: PackedDataset) -> None:
        """Perovskite: Ca for Sr, Zr for Ti, S for O, whatever their atomic numbers' order."""
        training = named(reference, "cubic perovskite", "antiperovskite")
        new = renamed(
            named(reference, "cubic perovskite"), {"Sr": "Ca", "Ti": "Hf", "O": "F"}, 1.1
        )
        (t,) = choose_targets(new, None)
        made = nearest_template([t], training, trials=2, workers=1)
        first, second = made.structure(0), made.structure(1)
        assert first.composition.reduced_formula == "CaHfF3"
        assert MATCHER.fit(first, to_structure(t.cell()))
        assert second.composition.reduced_formula != "CaHfF3"

    def test_only_what_a_model_is_given(
        self, reference: PackedDataset, targets: list[Target]
    ) -> None:
        """Letters, formula, coordinates and cell of the target change nothing."""
        blind = [
            dataclasses.replace(
                t,
                frac=np.full_like(t.frac, np.nan),
                lattice=np.zeros((3, 3)),
                letters=np.full_like(t.letters, "?"),
                multiplicity=np.zeros_like(t.multiplicity),
                freedom=-1,
            )
            for t in targets
        ]
        half = reference.select(np.arange(0, len(reference), 2))
        first = nearest_template(targets, half, trials=2, workers=1)
        assert same(nearest_template(blind, half, trials=2, workers=1), first)

    def test_letters(self, reference: PackedDataset) -> None:
        """CsCl (a, b) and Cu3Au (a, c) are one request but not one set of letters."""
        training = named(reference, "nickel aluminide", "Cu3Au")
        new = renamed(named(reference, "Cu3Au"), {"Cu": "Ni", "Au": "Al"})
        (t,) = choose_targets(new, None)
        known_to_model = nearest_template([t], training, workers=1)
        ceiling = nearest_template([t], training, with_letters=True, workers=1)
        assert known_to_model.formulas == ("Al1 Ni1",)
        assert ceiling.formulas == ("Al1 Ni3",)
        assert known_to_model.label != ceiling.label
        none = nearest_template([t], training.select([0]), with_letters=True, workers=1)
        assert none.missing[0].reason == "no training crystal of this group and site pattern"

    def test_letters_belong_to_their_elements(self, reference: PackedDataset) -> None:
        """Fe on a and c, N on b is not Fe on a and b, N on c."""
        salt = named(reference, "roaldite")
        assert list(zip(salt.numbers, salt.wyckoff, strict=True)) == [
            (7, "b"),
            (26, "a"),
            (26, "c"),
        ]
        swapped = dataclasses.replace(salt, numbers=np.array([26, 26, 7]))
        (t,) = choose_targets(swapped, None)
        made = nearest_template([t], salt, with_letters=True, workers=1)
        assert len(made) == 0
        assert len(nearest_template([t], salt, workers=1)) == 1

    def test_ranks_are_trials(self, reference: PackedDataset) -> None:
        t = target(reference, "rock salt")
        others = named(reference, "periclase", "titanium carbide", "zircon", "fluorite")
        made = nearest_template([t], others, trials=5, workers=1)
        name = t.id
        assert made.ids == tuple(f"{name}__{j}" for j in range(3))
        assert made.missing == tuple(
            Missing(f"{name}__{j}", "only 3 training crystals of this group and site pattern")
            for j in (3, 4)
        )
        one = nearest_template([t], others, workers=1)
        assert np.array_equal(one.frac, made.cell(0)[1])
        # volume and Mendeleev distances of Na, Cl to each pair, by hand
        distance = element_distances(element_volumes(others))
        costs = {}
        for place, pair in enumerate([(12, 8), (22, 6), (20, 9)]):
            costs[place] = min(
                distance[11, a] + distance[17, b] for a, b in itertools.permutations(pair)
            )
        order = sorted(costs, key=costs.__getitem__)
        formulas = [("Cl1 Na1", "Cl1 Na1", "fluorite")[k] for k in order]
        for formula, wanted in zip(made.formulas, formulas, strict=True):
            assert formula == wanted or (wanted == "fluorite" and "2" in formula)

    @pytest.mark.slow
    def test_workers_change_nothing(self, reference: PackedDataset, targets: list[Target]) -> None:
        half = reference.select(np.arange(0, len(reference), 2))
        seen: list[tuple[int, int]] = []
        one = nearest_template(targets, half, trials=2, workers=1)
        two = nearest_template(
            targets,
            half,
            trials=2,
            workers=2,
            progress=lambda done, planned: seen.append((done, planned)),
        )
        assert same(one, two)
        assert seen[-1] == (one.attempted, 2 * len(targets))
        assert len(one.missing) > 0

    def test_refused(self, reference: PackedDataset, targets: list[Target]) -> None:
        with pytest.raises(InputError, match="0 trials"):
            nearest_template(targets, reference, trials=0)
        with pytest.raises(DataError, match="no training crystal"):
            nearest_template(targets, reference.select([]))


def atoms_in_primitive_cell(cell: Cell) -> dict[int, int]:
    numbers, counts = np.unique(cell[2], return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


class TestCompositionTemplate:
    def test_against_all_matchings(self, reference: PackedDataset) -> None:
        """Templates and volumes of a search through everything, by pymatgen's numbers."""
        targets = choose_targets(reference, 40, groups=ALL_GROUPS, seed=3)
        volume = element_volumes(reference)
        known = [named(reference, name) for name in reference.id.tolist()]
        cells = [choose_targets(k, None, groups=ALL_GROUPS)[0].cell() for k in known]
        made = composition_template(targets, reference, trials=6, workers=1)
        place = {name: k for k, name in enumerate(made.ids)}
        several = 0
        for t in targets:
            mine = atoms_in_primitive_cell(t.cell())
            costs: list[tuple[float, int]] = []
            for k, cell in enumerate(cells):
                theirs = atoms_in_primitive_cell(cell)
                if sorted(mine.values()) != sorted(theirs.values()):
                    continue
                apart = min(
                    sum(
                        abs(Element.from_Z(a).mendeleev_no - Element.from_Z(b).mendeleev_no)
                        for a, b in zip(mine, order, strict=True)
                    )
                    for order in itertools.permutations(theirs)
                    if all(mine[a] == theirs[b] for a, b in zip(mine, order, strict=True))
                )
                costs.append((apart, k))
            costs.sort()
            several += len(costs) > 6
            assert costs[0][0] == 0.0
            for trial in range(6):
                name = f"{t.id}__{trial}"
                if trial >= len(costs):
                    assert name not in place
                    continue
                _, k = costs[trial]
                lattice, _, numbers = made.cell(place[name])
                assert made.group[place[name]] == reference.group[k]
                ratio = volume[numbers].sum() / volume[cells[k][2]].sum()
                wanted = abs(np.linalg.det(cells[k][0])) * ratio
                assert abs(np.linalg.det(lattice)) == pytest.approx(wanted, rel=1e-6)
        assert several > 10

    def test_the_composition_is_the_targets(self, reference: PackedDataset) -> None:
        targets = choose_targets(reference, None, groups=ALL_GROUPS)
        of = {t.id: t for t in targets}
        made = composition_template(targets, reference, trials=3, workers=1)
        assert {name for name in of if f"{name}__0" in made.ids} == set(of)
        for name, cell, group in zip(made.ids, made.cells(), made.group, strict=True):
            t = of[split_id(name)[0]]
            assert atoms_in_primitive_cell(cell) == atoms_in_primitive_cell(t.cell())
            assert detected(cell) == group or group < 3
        others = {of[split_id(n)[0]].group.number != g
                  for n, g in zip(made.ids, made.group, strict=True)}  # fmt: skip
        assert others == {True, False}

    def test_fewer_trials_are_the_beginning(self, reference: PackedDataset) -> None:
        targets = choose_targets(reference, 20, groups=ALL_GROUPS)
        one = composition_template(targets, reference, workers=1)
        many = composition_template(targets, reference, trials=5, workers=1)
        assert same(many.select(np.arange(len(one))), dataclasses.replace(one, missing=()))

    def test_no_group_and_no_letters_are_seen(self, reference: PackedDataset) -> None:
        targets = choose_targets(reference, 30, groups=ALL_GROUPS)
        blind = [
            dataclasses.replace(
                t,
                frac=np.full_like(t.frac, np.nan),
                lattice=np.zeros((3, 3)),
                letters=np.full_like(t.letters, "?"),
                positions=(),
                freedom=-1,
                group=SpaceGroup(1),
                multiplicity=t.multiplicity // len(t.group.centring),
            )
            for t in targets
        ]
        half = reference.select(np.arange(0, len(reference), 2))
        first = composition_template(targets, half, trials=2, workers=1)
        assert same(composition_template(blind, half, trials=2, workers=1), first)

    def test_missing_templates_are_counted(self, reference: PackedDataset) -> None:
        t = target(reference, "rock salt")
        two = named(reference, "periclase", "titanium carbide", "zircon")
        made = composition_template([t], two, trials=3, workers=1)
        assert len(made) == 2
        assert made.missing == (
            Missing(f"{t.id}__2", "only 2 training crystals with these numbers of atoms"),
        )
        none = composition_template([t], two.select(two.id == "zircon"), workers=1)
        assert none.missing[0].reason == "no training crystal with these numbers of atoms"
        with pytest.raises(InputError, match="0 trials"):
            composition_template([t], two, trials=0)
        with pytest.raises(DataError, match="no training crystal"):
            composition_template([t], two.select([]))


class TestRanks:
    @given(st.integers(0, 10**6), st.lists(st.integers(1, 3), min_size=1, max_size=5))
    @settings(max_examples=60, deadline=None)
    def test_against_all_permutations(self, seed: int, sites: list[int]) -> None:
        rng = np.random.default_rng(seed)
        pattern = tuple(("",) * n for n in sorted(sites))
        distance = rng.random((119, 119))
        count = len(pattern)
        elements = rng.choice(np.arange(1, 119), count, replace=False)
        others = np.array([rng.choice(np.arange(1, 119), count, replace=False) for _ in range(4)])
        cost, assigned = template_ranks(pattern, elements, others, distance)
        for k in range(4):
            costs = {
                p: sum(
                    len(pattern[i]) * distance[others[k, i], elements[p[i]]] for i in range(count)
                )
                / sum(sites)
                for p in itertools.permutations(range(count))
                if all(pattern[i] == pattern[p[i]] for i in range(count))
            }
            assert cost[k] == pytest.approx(min(costs.values()))
            assert costs[tuple(assigned[k].tolist())] == pytest.approx(cost[k])


class TestElements:
    def test_volumes_that_add_up_are_found(self, reference: PackedDataset) -> None:
        truth = np.random.default_rng(0).uniform(5, 40, len(SYMBOLS))
        owner = np.repeat(np.arange(len(reference)), reference.site_counts)
        whole = np.bincount(owner, reference.multiplicity * truth[reference.numbers])
        scaled = dataclasses.replace(
            reference,
            lattice=reference.lattice * np.cbrt(whole / reference.volumes)[:, None, None],
        )
        found = element_volumes(scaled)
        again = np.bincount(owner, reference.multiplicity * found[reference.numbers])
        assert again == pytest.approx(whole, rel=0.01)
        alone = [29, 74, 12, 57, 6, 14, 50, 49, 33, 34, 92, 15, 25]  # of elemental crystals
        assert found[alone] == pytest.approx(truth[alone], rel=0.01)

    def test_unknown_elements_get_the_mean(self, reference: PackedDataset) -> None:
        found = element_volumes(named(reference, "face-centred cubic", "simple cubic"))
        known = found[[29, 84]]
        assert known[0] != pytest.approx(known[1])
        assert found[[0, 1, 118]] == pytest.approx(known.mean(), rel=1e-3)

    def test_distances(self) -> None:
        number = [e.mendeleev_no for e in map(Element.from_Z, range(1, 104))]
        spread = np.std(np.array(number, dtype=float))
        distance = element_distances(np.full(119, 10.0))
        assert np.allclose(distance, distance.T)
        assert np.allclose(np.diag(distance), 0)
        for a, b in ((3, 11), (8, 16), (26, 92)):
            gap = abs(number[a - 1] - number[b - 1])
            assert distance[a, b] == pytest.approx(gap / spread)
        volume = np.full(119, 10.0)
        volume[11] = 30.0
        assert element_distances(volume)[3, 11] > element_distances(volume)[3, 19]


class TestTrainingSample:
    def test_crystals_are_the_data_s(self, reference: PackedDataset) -> None:
        some = training_sample(reference, 30, 2)
        assert len(set(some.ids)) == 30
        places = [int(np.flatnonzero(reference.id == name)[0]) for name in some.ids]
        assert same(some, StructureSet.from_packed(reference, "all", places))
        assert same(training_sample(reference, 10, 2), some.select(range(10)))
        assert training_sample(reference, 30, 3).ids != some.ids

    def test_groups(self, reference: PackedDataset) -> None:
        high = training_sample(reference, 1000, groups=range(16, 231))
        assert sorted(high.ids) == sorted(reference.id[reference.group >= 16])
        assert high.group.min() >= 16
        assert len(training_sample(reference, 1000)) == len(reference)

    def test_negative_count(self, reference: PackedDataset) -> None:
        with pytest.raises(InputError, match="-1 training crystals"):
            training_sample(reference, -1)


class TestPerturbed:
    @pytest.fixture(scope="class")
    def crystals(self, reference: PackedDataset) -> StructureSet:
        whole = StructureSet.from_packed(reference, "types")
        return dataclasses.replace(whole, missing=(Missing("gone", "why"),))

    @staticmethod
    def moved(before: StructureSet, after: StructureSet) -> NDArray[np.float64]:
        """(N, 3) Cartesian displacements, in the cells after."""
        parts = []
        for (_, f, _), (lattice, g, _) in zip(before.cells(), after.cells(), strict=True):
            delta = g - f
            parts.append((delta - np.rint(delta)) @ lattice)
        return np.concatenate(parts)

    @pytest.mark.parametrize("strain", [0.0, 0.02])
    def test_noise_has_the_standard_deviation(self, crystals: StructureSet, strain: float) -> None:
        noise = self.moved(crystals, perturbed(crystals, 0.1, 1, strain=strain))
        count = len(noise)
        assert count > 800
        assert noise.std(axis=0) == pytest.approx(0.1, rel=5 / np.sqrt(2 * count))
        assert np.abs(noise.mean(axis=0)).max() < 5 * 0.1 / np.sqrt(count)
        correlation = np.corrcoef(noise.T) - np.eye(3)
        assert np.abs(correlation).max() < 5 / np.sqrt(count)

    def test_strain(self, crystals: StructureSet) -> None:
        noisy = perturbed(crystals, 0.0, 1, strain=0.05)
        lengths = np.linalg.norm(noisy.lattice, axis=2) / np.linalg.norm(crystals.lattice, axis=2)
        assert np.log(lengths).std() == pytest.approx(0.05, rel=5 / np.sqrt(2 * lengths.size))
        directions = noisy.lattice / np.linalg.norm(noisy.lattice, axis=2, keepdims=True)
        before = crystals.lattice / np.linalg.norm(crystals.lattice, axis=2, keepdims=True)
        assert directions == pytest.approx(before)
        assert np.abs(self.moved(crystals, noisy)).max() < 1e-9

    def test_nothing_else_changes(self, crystals: StructureSet) -> None:
        noisy = perturbed(crystals, 0.1, 1)
        assert noisy.ids == crystals.ids
        assert noisy.missing == crystals.missing
        for name in ("lattice", "site_start", "numbers", "group"):
            assert np.array_equal(getattr(noisy, name), getattr(crystals, name))
        assert np.abs(self.moved(crystals, perturbed(crystals, 0.0))).max() < 1e-12
        assert noisy.label == "types, 0.1 Å noise"

    def test_symmetry_is_lost(self, crystals: StructureSet) -> None:
        noisy = perturbed(crystals, 0.1, 1)
        many = [k for k in range(len(noisy)) if noisy.site_counts[k] >= 4]
        assert {detected(noisy.cell(k)) for k in many} == {1}

    def test_seeds(self, crystals: StructureSet) -> None:
        first = perturbed(crystals, 0.1, 1)
        assert same(perturbed(crystals, 0.1, 1), first)
        assert not np.allclose(perturbed(crystals, 0.1, 2).frac, first.frac)
        few = perturbed(crystals.select(range(5)), 0.1, 1)
        assert np.array_equal(few.frac, first.frac[: len(few.frac)])

    @pytest.mark.parametrize("sigma", [-0.1, np.nan, np.inf])
    def test_refused(self, crystals: StructureSet, sigma: float) -> None:
        with pytest.raises(InputError, match="sigma"):
            perturbed(crystals, sigma)
        with pytest.raises(InputError, match="strain"):
            perturbed(crystals, 0.1, strain=sigma)
