"""Filters, duplicates, relaxation with and without symmetry, references, commands."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.io import write
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pymatgen.analysis.phase_diagram import PhaseDiagram
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.entries.computed_entries import ComputedEntry
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from langevin_xtal.config.screening import FilterOptions, RelaxOptions, ReleaseOptions
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.folding import fold
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import InputError, LangevinXtalError, MissingPackageError, RequestError
from langevin_xtal.evaluation.cache import Cache
from langevin_xtal.evaluation.duplicates import FARTHEST, Known, fingerprint, group_duplicates
from langevin_xtal.screen.energies import single_point
from langevin_xtal.screen.fetch import materials_project_phases
from langevin_xtal.screen.filters import is_alloy, reject_reason
from langevin_xtal.screen.hull import HullReferences, coverage_note
from langevin_xtal.screen.relax import relax_cell, relax_folded
from langevin_xtal.screen.release import found_groups, perturbed, relax_twice
from langevin_xtal.symmetry import SpaceGroup, orbit
from tests.test_screen import Memory

HERE = __name__
EMT_NAME = "ase.calculators.emt:EMT"
FloatArray = NDArray[np.float64]


def cell_of(atoms: Atoms) -> Cell:
    return np.array(atoms.cell.array), atoms.get_scaled_positions(), atoms.numbers.astype(np.int64)


def conventional(data: PackedDataset, k: int) -> Cell:
    group, own = SpaceGroup(int(data.group[k])), data.sites_of(k)
    images = [
        orbit(f, group.rotations, group.translations, data.lattice[k])[0] for f in data.frac[own]
    ]
    numbers = np.repeat(data.numbers[own], [len(i) for i in images])
    return data.lattice[k], np.concatenate(images), numbers


def named(data: PackedDataset, start: str) -> Cell:
    return conventional(data, next(k for k, n in enumerate(data.id) if str(n).startswith(start)))


def displaced(cell: Cell, size: float, seed: int, scale: float = 1.0) -> Cell:
    lattice, frac, numbers = cell
    moves = np.random.default_rng(seed).normal(0, size, frac.shape)
    return lattice * scale, frac + moves @ np.linalg.inv(lattice), numbers


class TestFilters:
    def test_what_is_sound_passes(self, reference: PackedDataset) -> None:
        reasons = {
            str(reference.id[k]): reject_reason(conventional(reference, k))
            for k in range(len(reference))
        }
        assert {name: reason for name, reason in reasons.items() if reason} == {}

    @pytest.mark.parametrize(
        ("atoms", "options", "reason"),
        [
            (bulk("Cu"), FilterOptions(min_distance=2.6), "atoms are 2.553 Å apart"),
            (bulk("Cu"), FilterOptions(volume_per_atom=(12, 20)), "11.8 Å³, lies outside 12"),
            (bulk("Cu"), FilterOptions(volume_per_atom=(3, 11)), "lies outside 3 to 11"),
            (bulk("Cu", cubic=True), FilterOptions(max_atoms=3), "4 atoms in the cell"),
            (Atoms("Cu", cell=[np.nan, 4, 4]), FilterOptions(), "not finite"),
            (Atoms(cell=[4, 4, 4]), FilterOptions(), "empty"),
            (Atoms("Cu", cell=[4, 4, 0]), FilterOptions(), "volume per atom"),
        ],
        ids=str,
    )
    def test_reasons(self, atoms: Atoms, options: FilterOptions, reason: str) -> None:
        cell = np.array(atoms.cell.array), np.zeros((len(atoms), 3)), atoms.numbers
        if len(atoms) > 1:
            cell = cell_of(atoms)
        assert reason in reject_reason(cell, options)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 10**6), st.floats(0.3, 3.0))
    def test_distance_by_brute_force(self, seed: int, limit: float) -> None:
        rng = np.random.default_rng(seed)
        lattice = np.diag(rng.uniform(2.5, 5, 3)) + rng.uniform(-0.8, 0.8, (3, 3))
        frac = rng.uniform(0, 1, (3, 3))
        numbers = np.array([11, 17, 8])
        shifts = np.array(list(itertools.product(range(-3, 4), repeat=3)))
        apart = frac[:, None, None] + shifts - frac[None, :, None]
        distances = np.linalg.norm(apart @ lattice, axis=-1)
        nearest = distances[distances > 1e-9].min()
        options = FilterOptions(min_distance=limit, volume_per_atom=(0.1, 1000))
        assert bool(reject_reason((lattice, frac, numbers), options)) == (nearest < limit)

    @pytest.mark.parametrize(
        ("formula", "passes"),
        [
            ("NaCl", True),
            ("NaCl2", False),
            ("Cu15Si4", True),  # SMACT itself says no: Si is no metal
            ("Cu3Si", True),
            ("CuZn", True),
            ("Cu2KSi", True),
            ("Si", True),
            ("BaTiO3", True),
            ("MgF3", False),
        ],
    )
    def test_charges(self, formula: str, passes: bool) -> None:
        amounts = Composition(formula)
        numbers = np.repeat([el.Z for el in amounts], [int(n) for n in amounts.values()])
        side = 3.0
        frac = np.zeros((len(numbers), 3))
        frac[:, 0] = np.arange(len(numbers)) / len(numbers)
        cell = np.diag([side * len(numbers), side, side]), frac, numbers
        assert reject_reason(cell) == ""
        assert (reject_reason(cell, FilterOptions(charge_neutral=True)) == "") == passes

    def test_alloys(self) -> None:
        assert is_alloy("Cu15 Si4")
        assert is_alloy("Cu1 Zn1")
        assert not is_alloy("Si1 B1")
        assert not is_alloy("Na1 Cl1")

    def test_without_smact(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from langevin_xtal.screen import filters

        filters._element.cache_clear()
        monkeypatch.setitem(sys.modules, "smact", None)
        with pytest.raises(MissingPackageError, match=r"langevin-xtal\[screen\]"):
            reject_reason(cell_of(bulk("Cu")), FilterOptions(charge_neutral=True))
        filters._element.cache_clear()

    @pytest.mark.parametrize(
        "wrong",
        [
            {"min_distance": -1.0},
            {"min_distance": math.nan},
            {"volume_per_atom": (10.0, 5.0)},
            {"max_atoms": 0},
        ],
        ids=str,
    )
    def test_options_out_of_range(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=next(iter(wrong))):
            FilterOptions(**wrong)


DATA = reference_dataset()
POLYMORPHS = [named(DATA, name) for name in ("rutile", "anatase", "zinc blende", "wurtzite")]


def components(cells: list[Cell]) -> list[int]:
    """Groups by brute force: all pairs, then connected components."""
    matcher = StructureMatcher()
    structures = [to_structure(cell) for cell in cells]
    pairs = [
        (a, b)
        for a, b in itertools.combinations(range(len(cells)), 2)
        if matcher.fit(structures[a], structures[b])
    ]
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    size = (len(cells), len(cells))
    labels = connected_components(coo_matrix((np.ones(len(pairs)), (rows, columns)), size))[1]
    return [int(np.flatnonzero(labels == label)[0]) for label in labels]


class TestDuplicates:
    cells = [displaced(c, 0.15 * t, t, 1 + 0.03 * t) for c in POLYMORPHS for t in range(4)]  # noqa: RUF012
    store = Cache(None)

    def test_equals_brute_force(self) -> None:
        expected = components(self.cells)
        assert group_duplicates(self.cells, workers=1, farthest=math.inf) == expected
        assert 4 <= len(set(expected)) < 16

    def test_strange_ones_are_not_compared(self) -> None:
        """Crystals displaced a little are equal; farther ones stay apart, by fingerprints."""
        near = [displaced(c, 0.02 * t, t, 1 + 0.03 * t) for c in POLYMORPHS for t in range(4)]
        assert group_duplicates(near, workers=1) == components(near)
        found = group_duplicates(self.cells, workers=1)
        prints = [fingerprint(cell) for cell in self.cells]
        assert len(set(found)) > len(set(components(self.cells)))
        for place, first in enumerate(found):
            if place != first:
                chain = [k for k in range(16) if found[k] == first and k != place]
                gaps = [np.abs(prints[place] - prints[k]).mean() for k in chain]
                assert min(gaps) <= FARTHEST

    @settings(max_examples=4, deadline=None)
    @given(st.permutations(range(16)))
    def test_order_does_not_matter(self, order: list[int]) -> None:
        groups = group_duplicates(self.cells, workers=1, cache=self.store)
        other = group_duplicates([self.cells[k] for k in order], workers=1, cache=self.store)
        assert {frozenset(k for k in range(16) if groups[k] == g) for g in groups} == {
            frozenset(order[k] for k in range(16) if other[k] == g) for g in other
        }
        assert all(first <= k for k, first in enumerate(other))

    def test_the_same_crystal_given_otherwise(self) -> None:
        atoms = bulk("NaCl", "rocksalt", 5.6)
        tripled = make_supercell(atoms, [[2, 0, 0], [1, 1, 0], [0, 0, 1]])
        moved = atoms.copy()
        moved.translate([0.3, 0.7, -0.2])
        turned = bulk("NaCl", "rocksalt", 6.1, cubic=True)[::-1]
        turned.rotate(33, (1, 2, 3), rotate_cell=True)
        other = bulk("NaCl", "cesiumchloride", 3.5)
        cells = [cell_of(a) for a in (other, atoms, tripled, moved, turned, atoms, bulk("Cu"))]
        assert group_duplicates(cells, workers=1) == [0, 1, 1, 1, 1, 1, 6]

    def test_what_cannot_be_compared_is_alone(self) -> None:
        sound = cell_of(bulk("NaCl", "rocksalt", 5.6))
        broken = np.full((3, 3), np.nan), sound[1], sound[2]
        flat = np.diag([4.0, 4.0, 0.0]), sound[1], sound[2]
        failures: dict[tuple[int, int], str] = {}
        found = group_duplicates([broken, sound, flat, sound], workers=1, failures=failures)
        assert found == [0, 1, 2, 1]
        assert all("finite" in reason or "volume" in reason for reason in failures.values())
        assert len(failures) == 3
        assert group_duplicates([]) == []

    def test_comparisons_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from langevin_xtal.evaluation import matching

        asked: list[Any] = []
        ask = matching._ask
        monkeypatch.setattr(matching, "_ask", lambda *given: asked.append(1) or ask(*given))
        store = Cache(None)
        seen: list[tuple[int, int]] = []
        progress = lambda *now: seen.append(now)  # noqa: E731
        options: Any = {"workers": 1, "cache": store, "farthest": math.inf}
        first = group_duplicates(self.cells, **options, progress=progress)
        pairs = 8 * 7 // 2 + 2 * (4 * 3 // 2)  # two polymorphs of TiO2; ZnS; ZnO
        assert 0 < len(asked) < pairs  # connected pairs are not asked for
        assert seen[-1] == (pairs, pairs)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        count = len(asked)
        assert group_duplicates(self.cells, **options) == first
        assert len(asked) == count

    def test_fingerprint_of_fcc(self) -> None:
        found = fingerprint(cell_of(bulk("Cu", cubic=True)), 18)
        a = 4 ** (1 / 3)  # edge in (V/N)^(1/3)
        np.testing.assert_allclose(found, [a / math.sqrt(2)] * 12 + [a] * 6, rtol=1e-9)
        np.testing.assert_allclose(fingerprint(cell_of(bulk("Cu", "fcc", 5.0)), 18), found)

    def test_known(self) -> None:
        known = Known(DATA)
        cells = [
            displaced(named(DATA, "rutile"), 0.02, 1, 1.05),
            displaced(named(DATA, "anatase"), 0.02, 2),
            cell_of(bulk("TiO", "rocksalt", 4.2)),
            cell_of(bulk("NaCl", "rocksalt", 5.5)),
            cell_of(bulk("NaCl", "zincblende", 6.1)),
        ]
        found = known.match(cells, workers=1)
        assert [name.split()[0] if name else "" for name in found] == [
            "rutile", "anatase", "", "rock", "",
        ]  # fmt: skip
        assert known.match([]) == []


class Wells(Calculator):
    """Two unlike atoms; the second sits on a hill of height A²/4B amid an elastic cube.

    E = B u⁴ - A u² + K |L Lᵀ - L0²|²/64,  u from the centre of the cell.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012
    A, B, K, EDGE = 0.5, 1.25, 2.0, 4.0

    def _energy(self, lattice: FloatArray, frac: FloatArray) -> float:
        u = (frac[1] - frac[0] - 0.5 - np.rint(frac[1] - frac[0] - 0.5)) @ lattice
        metric = lattice @ lattice.T - self.EDGE**2 * np.eye(3)
        return float(self.B * (u @ u) ** 2 - self.A * (u @ u) + self.K * (metric**2).sum() / 64)

    def calculate(self, *given: Any, **more: Any) -> None:
        super().calculate(*given, **more)
        lattice, frac = np.array(self.atoms.cell.array), self.atoms.get_scaled_positions()
        u = (frac[1] - frac[0] - 0.5 - np.rint(frac[1] - frac[0] - 0.5)) @ lattice
        force = 2 * self.A * u - 4 * self.B * (u @ u) * u
        stress = np.zeros((3, 3))
        for i, j in itertools.product(range(3), repeat=2):
            strain = np.zeros((3, 3))
            strain[i, j] = 1e-5
            up, down = (self._energy(lattice @ (np.eye(3) + s), frac) for s in (strain, -strain))
            stress[i, j] = (up - down) / 2e-5
        stress = (stress + stress.T) / 2 / self.atoms.get_volume()
        energy = self._energy(lattice, frac)
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": np.array([-force, force]),
            "stress": stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],
        }


class Shallow(Wells):
    A, B = 0.1, 0.5  # 5 meV in all, 2.5 per atom


class Counting(EMT):
    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1


CAESIUM_CHLORIDE = cell_of(bulk("CsCl", "cesiumchloride", a=4.1))
EMT_OPTIONS = RelaxOptions(potential=EMT_NAME)


class TestRelaxTwice:
    def test_symmetry_breaks_by_the_depth_of_the_well(self) -> None:
        options = RelaxOptions(potential=f"{HERE}:Wells", fmax=0.01)
        found = relax_twice([CAESIUM_CHLORIDE], options, workers=1)[0]
        assert found.broke
        assert found.kept.energy == pytest.approx(0, abs=1e-4)
        assert found.gain == pytest.approx(-(0.5**2) / (4 * 1.25) / 2, abs=5e-4)
        assert found.groups_before == {0.01: 221, 0.1: 221}
        assert found.groups_kept == {0.01: 221, 0.1: 221}
        group = found.groups_released[0.1]
        assert group != 221
        assert found.note == f"symmetry broke, ΔE = -25 meV/atom (221 to {group})"
        assert found.best is found.released
        lattice, frac, _ = found.released.cell
        away = (frac[1] - frac[0] - 0.5 + 0.5) % 1 - 0.5
        assert np.linalg.norm(away @ lattice) == pytest.approx(math.sqrt(0.5 / 2.5), abs=0.02)

    def test_a_small_gain_is_none(self) -> None:
        options = RelaxOptions(potential=f"{HERE}:Shallow", fmax=0.005)
        found = relax_twice([CAESIUM_CHLORIDE], options, workers=1)[0]
        assert found.groups_released[0.1] != 221
        assert found.gain == pytest.approx(-0.0025, abs=5e-4)
        assert not found.broke
        assert found.note == ""
        assert found.best is found.kept
        strict = ReleaseOptions(tolerance=0.001)
        assert relax_twice([CAESIUM_CHLORIDE], options, release=strict, workers=1)[0].broke

    def test_a_minimum_stays(self) -> None:
        """The conventional cell of Cu comes back, as the primitive one relaxes."""
        cell = cell_of(bulk("Cu", cubic=True, a=3.7))
        found = relax_twice([cell], EMT_OPTIONS, workers=1)[0]
        alone = relax_cell(cell_of(bulk("Cu", a=3.7)), EMT_OPTIONS)
        assert found.kept.energy == pytest.approx(alone.energy, abs=1e-6)
        assert found.kept.cell[0] == pytest.approx(np.eye(3) * (4 * abs(
            np.linalg.det(alone.cell[0]))) ** (1 / 3), abs=1e-3)  # fmt: skip
        np.testing.assert_allclose(found.kept.cell[1], cell[1], atol=1e-6)
        assert (found.broke, found.note) == (False, "")
        assert found.groups_released[0.1] == 225
        assert abs(found.gain) < 0.001
        assert len(found.released.cell[2]) == 4

    def test_failures_have_a_note(self) -> None:
        bad = cell_of(Atoms("Cu", cell=[1, 1, 1], pbc=True))
        iron = cell_of(bulk("Fe"))
        first, second = relax_twice([bad, iron], EMT_OPTIONS, workers=1)
        assert first.note == f"not relaxed: {first.kept.reason}"
        assert "volume per atom" in first.note
        assert first.kept.cell is bad
        assert math.isnan(first.gain)
        assert not first.broke
        assert "unexpected failure" in second.note

    def test_out_of_steps(self) -> None:
        cell = cell_of(bulk("Cu", a=3.9))
        options = dataclasses.replace(EMT_OPTIONS, steps=1)
        found = relax_twice([cell], options, release=ReleaseOptions(more_steps=0), workers=1)[0]
        assert "ran out of steps" in found.note

    def test_nothing_is_done_twice(self) -> None:
        options = RelaxOptions(potential=f"{HERE}:Counting")
        bad = cell_of(Atoms("Cu", cell=[1, 1, 1], pbc=True))
        cells = [cell_of(bulk("Cu", a=a)) for a in (3.5, 3.6, 3.7)] + [bad]
        store = Memory()

        def interrupt(done: int, planned: int) -> None:
            if done == 2:
                raise KeyboardInterrupt

        Counting.made = 0
        with pytest.raises(KeyboardInterrupt):
            relax_twice(cells, options, cache=store, workers=1, progress=interrupt)
        assert Counting.made == 2
        first = relax_twice(cells, options, cache=store, workers=1)
        # three relaxed, three released, and three energies of what came back
        assert Counting.made == 9
        again = relax_twice(cells, options, cache=store, workers=1)
        assert Counting.made == 9
        strict = ReleaseOptions(tolerance=0.001)  # another judgement of the same geometries
        assert len(relax_twice(cells, options, release=strict, cache=store, workers=1)) == 4
        assert Counting.made == 9
        for a, b in zip(first, again, strict=True):
            assert (a.note, a.broke) == (b.note, b.broke)
            assert a.groups_released == b.groups_released
            for x, y in ((a.kept, b.kept), (a.released, b.released)):
                np.testing.assert_equal(x.energy, y.energy)
                assert (x.reason, x.steps, x.converged) == (y.reason, y.steps, y.converged)
                for one, other in zip(x.cell, y.cell, strict=True):
                    np.testing.assert_array_equal(one, other)

    @pytest.mark.parametrize(
        "wrong", [{"perturbation": 0.0}, {"tolerance": math.nan}, {"seed": -1}], ids=str
    )
    def test_options_out_of_range(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=next(iter(wrong))):
            ReleaseOptions(**wrong)


class TestPrimitiveCells:
    @pytest.mark.parametrize("k", range(0, len(DATA), 4), ids=lambda k: str(DATA.id[k]))
    def test_there_and_back(self, k: int) -> None:
        cell = conventional(DATA, k)
        folded = fold(cell, 1e-3)
        centring = len(SpaceGroup(int(DATA.group[k])).centring)
        assert len(folded.primitive[2]) * centring == len(cell[2])
        back = folded.expand(folded.primitive)
        np.testing.assert_allclose(back[0], cell[0], atol=1e-9)
        apart = back[1] - cell[1]
        np.testing.assert_allclose(apart - np.rint(apart), 0, atol=1e-9)
        np.testing.assert_array_equal(back[2], cell[2])

    def test_equal_to_relaxing_all_atoms(self) -> None:
        cell = cell_of(bulk("Cu", cubic=True, a=3.8))
        whole = relax_cell(cell, EMT_OPTIONS)
        folded = relax_folded([cell], EMT_OPTIONS, workers=1)[0]
        assert folded.energy == pytest.approx(whole.energy, abs=2e-4)
        np.testing.assert_allclose(folded.cell[0], whole.cell[0], atol=0.02)

    def test_perturbed(self) -> None:
        cell = cell_of(bulk("NaCl", "rocksalt", 5.6, cubic=True))
        first, second = perturbed(cell, 0.05, 1), perturbed(cell, 0.05, 1)
        np.testing.assert_array_equal(first[1], second[1])
        assert not np.array_equal(first[1], perturbed(cell, 0.05, 2)[1])
        apart = first[1] - cell[1]
        moves = (apart - np.rint(apart)) @ cell[0]
        assert 0.02 < moves.std() < 0.1
        np.testing.assert_allclose(moves.mean(axis=0), 0, atol=1e-12)
        assert found_groups(first) == {0.01: 1, 0.1: found_groups(first)[0.1]}
        alone = perturbed(cell_of(bulk("Cu", "bcc", 2.9)), 0.1, 0)
        assert found_groups(alone)[0.01] in (1, 2)  # the strain alone breaks the symmetry


class Nothing(Calculator):
    """No energy at all."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def calculate(self, *given: Any, **more: Any) -> None:
        super().calculate(*given, **more)
        forces = np.zeros((len(self.atoms), 3))
        self.results = {"energy": 0.0, "free_energy": 0.0, "forces": forces, "stress": np.zeros(6)}


class FakeProject:
    """Stands in for MPRester."""

    db_version = "2026.10.1"
    asked: list[Any] = []  # noqa: RUF012

    def __init__(self, key: str) -> None:
        if key == "wrong":
            raise RuntimeError("REST query returned with error status code 401 on URL x")
        if key == "short":
            raise RuntimeError("Please obtain a valid API key. Valid API keys are 32 characters.")
        if key == "offline":
            raise ConnectionError("Max retries exceeded with url: /heartbeat")
        if key == "strange":
            raise RuntimeError("unexpected field\nsecond line")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        return None

    def get_entries_in_chemsys(self, elements: list[str], **more: Any) -> list[Any]:
        self.asked.append((elements, more))
        table = {"Na": 0.0, "Cl2": -2.0, "NaCl": -6.0, "Na2Cl": -3.0, "X2": -1.0}
        return [
            SimpleNamespace(
                composition=Composition(name),
                energy_per_atom=energy / Composition(name).num_atoms,
                data={"material_id": f"mp-{k}"},
                entry_id=f"mp-{k}-GGA",
            )
            for k, (name, energy) in enumerate(table.items())
        ]


class TestReferences:
    hand = HullReferences(
        formulas=("K1", "Cl1 K1", "Cl1 K3", "Cu1", "Cu3 Si1"),
        energy=np.array([0.0, -1.0, -0.4, 0.0, -0.1]),
        ids=tuple("abcde"),
        potential="none",
        version="0",
    )

    def test_above_all(self) -> None:
        """Against pymatgen's phase diagram of references and crystals together."""
        table = HullReferences(
            ("Cu1", "Au1", "Au1 Cu1"), np.array([-3.0, -2.0, -2.9]), ("a", "b", "c"), "x", "x"
        )
        crystals = [
            np.array([29, 79]), np.array([29, 29, 79]), np.array([29, 29, 79]),
            np.array([29, 79, 79, 79]), np.array([79]), np.array([29, 8]),
        ]  # fmt: skip
        energies = [-2.95, -3.1, -3.3, -2.3, -1.9, -5.0]
        above = table.above_all(crystals, energies)
        entries = [
            ComputedEntry({"Cu": 1}, -3.0), ComputedEntry({"Au": 1}, -2.0),
            ComputedEntry({"Au": 1, "Cu": 1}, 2 * -2.9),
        ]  # fmt: skip
        own = [
            ComputedEntry(Composition({SYMBOLS[z]: (n == z).sum() for z in n}), e * len(n))
            for n, e in zip(crystals[:-1], energies, strict=False)
        ]
        diagram = PhaseDiagram(entries + own)
        expected = [diagram.get_e_above_hull(entry) for entry in own]
        np.testing.assert_allclose(above[:-1], expected, atol=1e-9)
        assert above[2] == 0
        assert math.isnan(above[-1])  # there is no oxygen
        assert not len(table.above_all([], []))

    def test_without_a_system(self) -> None:
        shipped = HullReferences.shipped()
        left = shipped.without(["Cl", "Na"])
        assert left.coverage(["Na", "Cl"]) == {("Na",): 1, ("Cl",): 1, ("Na", "Cl"): 0}
        gone = set(shipped.formulas) - set(left.formulas)
        assert gone
        assert all(re.sub(r"\d", "", formula) == "Cl Na" for formula in gone)
        salt = np.array([11, 17])
        assert left.hull_energy(salt)[0] > shipped.hull_energy(salt)[0] + 1

    def test_coverage(self) -> None:
        assert self.hand.coverage(["K", "Cl"]) == {("K",): 1, ("Cl",): 0, ("K", "Cl"): 2}
        assert self.hand.coverage(["Cu", "Si", "K"])["Cu", "Si"] == 1
        note = coverage_note(["K", "Cl"], self.hand)
        assert note.startswith("3 reference phases in K-Cl (K 1, K-Cl 2); none of Cl alone")
        assert "none of Cu-K, Si-K, Cu-Si-K" in coverage_note(["Cu", "Si", "K"], self.hand)
        with pytest.raises(RequestError, match="Xx"):
            coverage_note(["Xx"], self.hand)

    def test_note_of_the_shipped_table(self) -> None:
        table = HullReferences.shipped()
        note = coverage_note(["Cu", "Si", "K"])
        of = [{part.rstrip("0123456789") for part in f.split()} for f in table.formulas]
        inside = [elements for elements in of if elements <= {"Cu", "Si", "K"}]
        assert note.startswith(f"{len(inside)} reference phases in Cu-Si-K (Cu 1, Si 1, K 1")
        assert "test splits of MP-20" in note
        many = coverage_note(["Na", "Cl", "O", "H", "Si", "Al"])
        assert "6 of 1 elements" in many
        assert "of 63 subsystems have none" in many

    def test_materials_project(self) -> None:
        FakeProject.asked.clear()
        table = HullReferences.from_materials_project(["Na", "Cl"], "good", client=FakeProject)
        elements, more = FakeProject.asked[0]
        assert elements == ["Cl", "Na"]
        assert more["additional_criteria"] == {"thermo_types": ["GGA_GGA+U"]}
        assert table.version == "Materials Project 2026.10.1"
        assert "error of the potential" in table.describe()
        assert dict(zip(table.formulas, table.ids, strict=True)) == {
            "Cl1": "mp-1", "Cl1 Na1": "mp-2", "Cl1 Na2": "mp-3", "Na1": "mp-0",
        }  # fmt: skip
        # Na2Cl: hull of Na and NaCl at -6/3 eV/atom, itself at -1
        found = table.energy_above_hull(np.array([11, 11, 17]), -1.0)
        assert found.e_above_hull == pytest.approx(1.0)
        assert table.energy_above_hull(np.array([17]), -0.9).e_above_hull == pytest.approx(0.1)

    @pytest.mark.parametrize(
        ("key", "kind", "words"),
        [
            ("wrong", InputError, "does not accept this key"),
            ("short", InputError, "does not accept this key"),
            ("", InputError, "is empty"),
            ("offline", LangevinXtalError, "cannot be reached"),
            ("strange", LangevinXtalError, "cannot be used .unexpected field."),
        ],
    )
    def test_refusals(self, key: str, kind: type[Exception], words: str) -> None:
        with pytest.raises(kind, match=words) as caught:
            materials_project_phases(["Na"], key, client=FakeProject)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, InputError) == (kind is InputError)

    def test_what_cannot_be_asked(self) -> None:
        with pytest.raises(InputError, match="1 to 9"):
            materials_project_phases([], "good", client=FakeProject)
        with pytest.raises(RequestError, match="Xx"):
            materials_project_phases(["Xx"], "good", client=FakeProject)
        with pytest.raises(InputError, match="must not be compared"):
            HullReferences.from_materials_project(
                ["Na"], "good", potential=EMT_NAME, client=FakeProject
            )

    def test_without_the_client(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mp_api.client", None)
        with pytest.raises(MissingPackageError, match=r"langevin-xtal\[mp\]"):
            materials_project_phases(["Na"], "x" * 32)


class TestHullOfKnownPhases:
    table = HullReferences.shipped()

    @pytest.mark.parametrize(
        "atoms",
        [bulk("Si"), bulk("Cu"), bulk("NaCl", "rocksalt", 5.69), bulk("MgO", "rocksalt", 4.25)],
        ids=str,
    )
    def test_on_it(self, atoms: Atoms) -> None:
        found = relax_cell(cell_of(atoms))
        result = self.table.energy_above_hull(found.cell[2], found.energy)
        assert result.e_above_hull == pytest.approx(0, abs=0.02)

    def test_a_copper_silicide(self) -> None:
        """Cu15Si4 (Morral & Westgren 1934), 38 atoms and so not among the references: CHGNet has
        it below the line from Cu3Si to Cu, as it should be for a phase that forms."""
        crystal = Structure.from_spacegroup(
            "I-43d",
            Lattice.cubic(9.694),
            ["Cu", "Cu", "Si"],
            [[3 / 8, 0, 1 / 4], [0.12, 0.16, 0.96], [0.208] * 3],
        ).get_primitive_structure()
        numbers = np.array(crystal.atomic_numbers, dtype=np.int64)
        assert len(numbers) == 38
        energy = single_point((crystal.lattice.matrix, crystal.frac_coords, numbers))
        result = self.table.energy_above_hull(numbers, energy)
        assert set(result.phases) == {"Cu3 Si1", "Cu1"}
        assert result.e_above_hull == pytest.approx(-0.02, abs=0.02)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write(tmp_path / "cu.cif", bulk("Cu", a=3.7, cubic=True))
    (tmp_path / "au").mkdir()
    write(tmp_path / "au" / "POSCAR", bulk("Au", a=4.2), format="vasp")
    write(tmp_path / "two.xyz", [bulk("Ni", a=3.6), bulk("Fe", a=2.9)], format="extxyz")
    (tmp_path / "broken.cif").write_text("data_x\n_cell_length_a 4\n", encoding="utf-8")
    return tmp_path


def invoke(command: str, *arguments: Any) -> Any:
    import importlib

    function = getattr(importlib.import_module(f"langevin_xtal.cli.{command}"), command)
    return CliRunner().invoke(function, [str(a) for a in arguments])


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return {row["name"]: row for row in csv.DictReader(stream)}


class TestRelaxCommand:
    def arguments(self, files: Path, *more: Any) -> list[Any]:
        names = ("cu.cif", "au/POSCAR", "two.xyz", "broken.cif")
        return [
            *(files / name for name in names), "--out", files / "out", "--potential", EMT_NAME,
            "--cache", files / "cache", "--workers", 1, *more,
        ]  # fmt: skip

    def test_files(self, files: Path) -> None:
        result = invoke("relax", *self.arguments(files))
        assert result.exit_code == 0, result.output
        rows = rows_of(files / "out" / "summary.csv")
        assert list(rows)[:4] == ["cu", "au_POSCAR", "two-0", "two-1"]
        assert rows["cu"]["group"] == rows["au_POSCAR"]["group"] == "225"
        expected = relax_cell(cell_of(bulk("Cu", a=3.7)), EMT_OPTIONS).energy
        assert float(rows["cu"]["energy"]) == pytest.approx(expected, abs=1e-3)
        assert float(rows["cu"]["change"]) < 0
        assert "unexpected failure" in rows["two-1"]["note"]  # EMT has no Fe
        assert rows["two-1"]["file"] == ""
        assert "holds no structure" in rows[str(files / "broken.cif")]["note"]
        assert "broken.cif is left out" in result.output
        written = Structure.from_file(files / "out" / rows["cu"]["file"])
        assert len(written) == 4
        assert written.lattice.a == pytest.approx(3.58, abs=0.03)

    def test_large_changes_of_volume_are_noted(self, files: Path) -> None:
        write(files / "wide.cif", bulk("Cu", a=4.2))
        result = invoke(
            "relax", files / "wide.cif", files / "cu.cif", "--out", files / "out", "--potential",
            EMT_NAME, "--cache", files / "cache", "--workers", 1,
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        rows = rows_of(files / "out" / "summary.csv")
        edge = Structure.from_file(files / "out" / rows["wide"]["file"]).lattice.a
        change = 100 * ((edge / 4.2) ** 3 - 1)
        assert edge == pytest.approx(3.59, abs=0.02)  # EMT's lattice constant of copper
        assert rows["wide"]["note"] == f"volume {change:+.0f} % in relaxation"
        assert rows["cu"]["note"] == ""

    def test_goes_on_and_never_overwrites(self, files: Path) -> None:
        assert invoke("relax", *self.arguments(files)).exit_code == 0
        (files / "out" / "cu.cif").unlink()
        assert invoke("relax", *self.arguments(files)).exit_code == 0
        assert (files / "out" / "cu.cif").exists()
        other = invoke("relax", *self.arguments(files, "--fmax", 0.01))
        assert isinstance(other.exception, InputError)
        assert "holds something else" in str(other.exception)
        assert invoke("relax", *self.arguments(files, "--fmax", 0.01, "--force")).exit_code == 0
        own = files / "mine"
        own.mkdir()
        (own / "thesis.txt").write_text("x", encoding="utf-8")
        refused = invoke("relax", files / "cu.cif", "--out", own, "--potential", EMT_NAME)
        assert isinstance(refused.exception, InputError)

    def test_release(self, files: Path) -> None:
        result = invoke("relax", *self.arguments(files, "--release"))
        assert result.exit_code == 0, result.output
        row = rows_of(files / "out" / "summary.csv")["cu"]
        assert row["released_group_0.1"] == "225"
        assert abs(float(row["released_change"])) < 1

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["nothing.cif"], "does not exist"),
            (["broken.cif"], "holds no structure"),
            (["cu.cif", "--potential", "nonsense"], "'nonsense' is unknown"),
            (["cu.cif", "--potential", "mace"], "'mace' needs the file of its model"),
            (["cu.cif", "--potential", "nopackage.ase:Calc"], "cannot be imported"),
            (["po.cif"], "chgnet does not know Po"),
            (["VASP4.vasp"], "does not name its elements"),
            (["cu.cif", "--out", "cu.cif", "--potential", EMT_NAME], "cannot be written"),
        ],
    )
    def test_bad_input(
        self, files: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(files)
        write("po.cif", bulk("Po", "sc", 3.3))
        Path("VASP4.vasp").write_text(
            "x\n1.0\n3 0 0\n0 3 0\n0 0 3\n1\nDirect\n0 0 0\n", encoding="utf-8"
        )
        result = invoke("relax", *arguments, "--cache", files / "cache")
        assert isinstance(result.exception, InputError)
        assert words in str(result.exception)
        assert "\n" not in str(result.exception)
        assert not (files / "relaxed").exists()

    def test_nothing_relaxed(self, files: Path) -> None:
        arguments = ["--out", files / "o", "--potential", EMT_NAME, "--cache", files / "cache"]
        write(files / "fe.cif", bulk("Fe"))
        result = invoke("relax", files / "fe.cif", *arguments)
        assert isinstance(result.exception, LangevinXtalError)
        assert not isinstance(result.exception, InputError)
        assert "none of 1 structures" in str(result.exception)


class TestHullCommand:
    def test_files(self, files: Path) -> None:
        write(files / "mgo.cif", bulk("MgO", "zincblende", 4.6))
        write(files / "nacl.cif", bulk("NaCl", "rocksalt", 5.69))
        arguments = [
            files / "mgo.cif", files / "nacl.cif", files / "broken.cif", "--out",
            files / "hull.csv", "--cache", files / "cache", "--workers", 1,
        ]  # fmt: skip
        result = invoke("hull", *arguments)
        assert result.exit_code == 0, result.output
        rows = rows_of(files / "hull.csv")
        assert list(rows)[:2] == ["nacl", "mgo"]  # best first
        assert float(rows["mgo"]["e_above_hull"]) == pytest.approx(0.12, abs=0.05)
        assert rows["mgo"]["phases"] == "1.000 MgO"
        energy = single_point(cell_of(bulk("MgO", "zincblende", 4.6)))
        assert float(rows["mgo"]["energy"]) == pytest.approx(energy, abs=1e-4)
        assert "reference phases in Mg-O" in result.output
        assert "test splits of MP-20" in result.output
        again = invoke("hull", *arguments)
        assert isinstance(again.exception, InputError)
        assert "is there already" in str(again.exception)

    def test_bad_input(self, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MP_API_KEY", raising=False)
        out = ["--out", files / "h.csv", "--cache", files / "cache"]
        for arguments, words in (
            (["--key", "env"], "MP_API_KEY; it is not set"),
            (["--key", " "], "key of the Materials Project is empty"),
            (["--potential", EMT_NAME], "hull references for 'chgnet' and 'sevennet-0' only"),
            (["--potential", EMT_NAME, "--key", "x"], "must not be compared"),
        ):
            result = invoke("hull", files / "cu.cif", *arguments, *out)
            assert isinstance(result.exception, InputError), words
            assert words in str(result.exception)
        assert not (files / "h.csv").exists()

    def test_with_a_key(self, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from langevin_xtal.dataset import fetch

        monkeypatch.setattr(fetch, "_client", FakeProject)
        monkeypatch.setenv("MP_API_KEY", "good")
        write(files / "nacl.cif", bulk("NaCl", "rocksalt", 5.69))
        out = ["--out", files / "h.csv", "--cache", files / "cache", "--workers", 1]
        result = invoke("hull", files / "nacl.cif", "--key", "env", *out)
        assert result.exit_code == 0, result.output
        row = rows_of(files / "h.csv")["nacl"]
        assert float(row["e_above_hull"]) == pytest.approx(float(row["energy"]) + 3, abs=1e-4)
        assert "Materials Project 2026.10.1" in result.output
