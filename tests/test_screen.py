"""Potentials, relaxation and hull: against ASE, CHGNet's own calculator, pymatgen and by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from langevin_xtal.config.screening import RelaxOptions
from langevin_xtal.crystal.cell import Cell, cell_key
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.errors import DataError, InputError, LangevinXtalWarning
from langevin_xtal.screen.descent import RISE, descending_lbfgs, direction
from langevin_xtal.screen.energies import single_point
from langevin_xtal.screen.hull import FILE, HullReferences
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.screen.potentials.chgnet import CHGNET_ELEMENTS
from langevin_xtal.screen.relax import relax, relax_cell, relax_folded
from langevin_xtal.screen.stopping import Returned, largest_gain

EMT_NAME = "ase.calculators.emt:EMT"
EMT_OPTIONS = RelaxOptions(potential=EMT_NAME)
HERE = __name__


def cell_of(atoms: Atoms) -> Cell:
    return np.array(atoms.cell.array), atoms.get_scaled_positions(), atoms.numbers.astype(np.int64)


def group_of(cell: Cell, symprec: float = 1e-4) -> int:
    return int(spglib.get_symmetry_dataset(cell, symprec=symprec).number)


def conventional(cell: Cell) -> float:
    """Edge of the cubic cell [Å] of a face-centred primitive one."""
    return float((4 * abs(np.linalg.det(cell[0]))) ** (1 / 3))


class Memory:
    """A store that counts."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], NDArray[np.float64]] = {}

    def get(self, kind: str, keys: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        return {key: self.values[kind, key] for key in keys if (kind, key) in self.values}

    def put(self, kind: str, values: Mapping[str, NDArray[np.float64]]) -> None:
        self.values |= {(kind, key): value.copy() for key, value in values.items()}


class Counting(EMT):
    """EMT that counts how often it is made."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1


class Wrong(Calculator):
    """What a potential may do outside of its training set."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012
    energy, stress = 0.0, 0.0

    def calculate(self, *given: Any, **more: Any) -> None:
        super().calculate(*given, **more)
        self.results = {
            "energy": self.energy,
            "free_energy": self.energy,
            "forces": np.zeros((len(self.atoms), 3)),
            "stress": np.array([self.stress] * 3 + [0.0] * 3),
        }


class NotFinite(Wrong):
    energy = math.nan


class Explosive(Wrong):
    stress = -1.0


class Raising(Wrong):
    def calculate(self, *given: Any, **more: Any) -> None:
        raise RuntimeError("no parameters\nsecond line")


class TestPotentials:
    @pytest.mark.parametrize("name", ["nonsense", "", "ase.calculators.emt:", ":EMT"])
    def test_unknown(self, name: str) -> None:
        with pytest.raises(InputError, match="chgnet"):
            load_potential(name)

    @pytest.mark.parametrize(
        "name", ["no.such.module:EMT", "ase.calculators.emt:Missing", "math:pi"]
    )
    def test_not_importable(self, name: str) -> None:
        with pytest.raises(InputError, match=name):
            load_potential(name)

    def test_any_calculator(self) -> None:
        found = load_potential(EMT_NAME)
        assert isinstance(found.calculator(), EMT)
        atoms = bulk("Cu")
        atoms.calc = EMT()
        assert single_point(cell_of(atoms), EMT_OPTIONS) == pytest.approx(
            atoms.get_potential_energy()
        )

    def test_chgnet_says_what_it_is(self) -> None:
        found = load_potential()
        assert found.name == "chgnet"
        assert found.version.endswith("weights 0.3.0")
        assert "MP2020" in found.energies
        assert len(found.elements) == 89

    def test_chgnet_elements_are_the_trained_ones(self) -> None:
        from langevin_xtal.screen.potentials.chgnet import _chgnet

        weights = _chgnet("cpu").atom_embedding.embedding.weight.numpy()
        length = np.linalg.norm(weights, axis=1)
        # 64 standard normal numbers have length 8 ± 0.7
        assert set((np.flatnonzero(length > 10.5) + 1).tolist()) == CHGNET_ELEMENTS

    @pytest.mark.parametrize(
        "atoms",
        [
            bulk("NaCl", "rocksalt", 5.5),
            bulk("Cu", "fcc", 3.5),
            bulk("Si", "diamond", 5.3, cubic=True),
        ],
        ids=str,
    )
    def test_chgnet_equals_its_own_calculator(self, atoms: Atoms) -> None:
        from chgnet.model.dynamics import CHGNetCalculator

        rng = np.random.default_rng(3)
        atoms.rattle(0.1, rng=rng)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, 0.02, (3, 3))), True)
        other = atoms.copy()
        atoms.calc = load_potential().calculator()
        other.calc = CHGNetCalculator(use_device="cpu")
        count = len(atoms)
        energy = float(other.get_potential_energy())
        assert atoms.get_potential_energy() / count == pytest.approx(energy / count, abs=2e-6)
        np.testing.assert_allclose(atoms.get_forces(), other.get_forces(), atol=2e-4)
        np.testing.assert_allclose(atoms.get_stress(), other.get_stress(), atol=2e-5)
        assert single_point(cell_of(atoms)) == pytest.approx(energy / count, abs=2e-5)

    def test_no_energy(self) -> None:
        assert math.isnan(single_point(cell_of(bulk("Po", "sc", 3.3))))
        apart = Atoms("He", cell=[20, 20, 20], pbc=True)
        assert math.isnan(single_point(cell_of(apart)))
        dense = Atoms("H", cell=[0.6, 0.6, 0.6], pbc=True)  # thousands of neighbours
        assert math.isnan(single_point(cell_of(dense)))


class TestRelaxCell:
    @pytest.mark.parametrize(
        ("atoms", "edge"),  # measured at room temperature, CRC Handbook [Å]
        [
            (bulk("NaCl", "rocksalt", 5.2), 5.640),
            (bulk("MgO", "rocksalt", 4.5), 4.212),
            (bulk("Cu", "fcc", 3.9), 3.615),
        ],
        ids=str,
    )
    def test_known_crystals(self, atoms: Atoms, edge: float) -> None:
        found = relax_cell(cell_of(atoms))
        assert found.reason == ""
        assert found.converged
        assert 0 < found.steps <= 30
        assert conventional(found.cell) == pytest.approx(edge, rel=0.02)
        assert group_of(found.cell) == 225
        assert found.energy < found.start_energy
        assert found.max_force <= 0.05

    def test_equals_ase_by_hand(self) -> None:
        """Another optimiser, filter and calculator, no symmetry: the same minimum."""
        from chgnet.model.dynamics import CHGNetCalculator

        atoms = bulk("ZnS", "wurtzite", a=3.7, c=6.5)
        hand = atoms.copy()
        hand.calc = CHGNetCalculator(use_device="cpu")
        FIRE(FrechetCellFilter(hand), logfile=None).run(fmax=0.005, steps=200)
        found = relax_cell(cell_of(atoms), RelaxOptions(fmax=0.005))
        assert found.converged
        energy = float(hand.get_potential_energy()) / 4
        assert found.energy == pytest.approx(energy, abs=2e-4)
        lengths = np.linalg.norm(found.cell[0], axis=1)
        np.testing.assert_allclose(lengths, hand.cell.lengths(), rtol=2e-3)
        assert group_of(found.cell) == 186

    def test_reported_numbers_are_those_of_the_cell(self) -> None:
        found = relax_cell(cell_of(bulk("Cu", "fcc", 3.9)), EMT_OPTIONS)
        lattice, frac, numbers = found.cell
        again = Atoms(
            numbers=numbers, cell=lattice, scaled_positions=frac, pbc=True, calculator=EMT()
        )
        assert found.energy == pytest.approx(again.get_potential_energy(), abs=1e-9)
        assert found.max_stress == pytest.approx(np.abs(again.get_stress()).max(), abs=1e-9)
        assert found.max_stress * again.get_volume() <= 0.05

    @pytest.mark.parametrize("optimiser", ["LBFGS", "BFGS", "FIRE"])
    def test_symmetry_is_kept_where_it_costs_energy(self, optimiser: str) -> None:
        """Body-centred Cu is a saddle point of EMT: a free cell falls to close packing."""
        base = bulk("Cu", "bcc", 2.8, cubic=True)
        kept = relax_cell(cell_of(base), dataclasses.replace(EMT_OPTIONS, optimiser=optimiser))
        assert group_of(kept.cell) == 229
        base.set_cell(base.cell.array @ np.diag([1.05, 1, 0.97]), scale_atoms=True)
        free = dataclasses.replace(
            EMT_OPTIONS, keep_symmetry=False, optimiser=optimiser, fmax=0.01, steps=300
        )
        fallen = relax_cell(cell_of(base), free)
        assert kept.converged
        assert fallen.converged
        assert fallen.energy < kept.energy - 0.01
        assert group_of(fallen.cell, 0.05) == 225

    def test_out_of_steps(self) -> None:
        found = relax_cell(
            cell_of(bulk("Cu", "fcc", 3.9)), dataclasses.replace(EMT_OPTIONS, steps=1)
        )
        assert (found.converged, found.steps, found.reason) == (False, 1, "")
        assert found.energy < found.start_energy

    def test_no_steps_is_the_energy_as_it_stands(self) -> None:
        cell = cell_of(bulk("Cu", "fcc", 3.9))
        found = relax_cell(cell, dataclasses.replace(EMT_OPTIONS, steps=0))
        assert found.energy == found.start_energy
        assert found.energy == pytest.approx(single_point(cell, EMT_OPTIONS), abs=1e-9)

    @pytest.mark.parametrize(
        ("atoms", "reason"),
        [
            (Atoms("Cu2", [[0, 0, 0], [0, 0, 0.4]], cell=[4, 4, 4]), "0.400 Å apart"),
            (Atoms("Cu2", [[0, 0, 0], [0, 0, 3.9]], cell=[4, 4, 4]), "0.100 Å apart"),
            (Atoms("Cu2", [[0, 0, 0], [0, 0, 0]], cell=[4, 4, 4]), "0.000 Å apart"),
            (Atoms("Cu", cell=[0.4, 8, 8]), "0.400 Å apart"),
            (Atoms("Cu", cell=[1, 1, 1]), "volume per atom, 1 Å³"),
            (Atoms("Cu", cell=[7, 7, 7]), "volume per atom, 343 Å³"),
            (Atoms("Cu", cell=[np.nan, 4, 4]), "not finite"),
            (Atoms("Cu", cell=[4, 4, 0]), "volume per atom, 0 Å³"),
            (Atoms(cell=[4, 4, 4]), "empty"),
            (Atoms("Fe", cell=[3, 3, 3]), "unexpected failure: "),  # EMT has no Fe
        ],
        ids=str,
    )
    def test_bad_cells_get_a_reason(self, atoms: Atoms, reason: str) -> None:
        frac = np.zeros((len(atoms), 3))
        if len(atoms) > 1:
            frac = atoms.positions / 4
        cell = np.array(atoms.cell.array), frac, atoms.numbers.astype(np.int64)
        found = relax_cell(cell, EMT_OPTIONS)
        assert reason in found.reason
        assert math.isnan(found.energy)
        assert not found.converged
        assert found.cell is cell

    def test_element_the_potential_does_not_know(self) -> None:
        found = relax_cell(cell_of(bulk("Po", "sc", 3.3)))
        assert found.reason == "chgnet does not know Po"

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("NotFinite", "the potential's energy, forces or stress are not finite"),
            ("Explosive", "lies outside 3 to 200"),
            ("Raising", "unexpected failure: no parameters"),
        ],
    )
    def test_bad_potentials_get_a_reason(self, name: str, reason: str) -> None:
        options = RelaxOptions(potential=f"{HERE}:{name}", steps=500)
        found = relax_cell(cell_of(bulk("Cu")), options)
        assert reason in found.reason
        assert "second line" not in found.reason
        assert math.isnan(found.energy)
        assert math.isnan(found.start_energy) == (name != "Explosive")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"fmax": 0.0},
            {"fmax": math.nan},
            {"symprec": 2.0},
            {"max_step": -0.1},
            {"steps": -1},
            {"optimiser": "Newton"},
            {"min_distance": -1.0},
        ],
        ids=str,
    )
    def test_options_out_of_range(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=next(iter(wrong))):
            RelaxOptions(**wrong)


class TestRelax:
    def cells(self, count: int = 5) -> list[Cell]:
        return [cell_of(bulk("Cu", "fcc", a)) for a in np.linspace(3.4, 3.9, count)]

    def test_order_repeats_and_failures(self) -> None:
        bad = cell_of(Atoms("Cu", cell=[1, 1, 1], pbc=True))
        cells = [*self.cells(), bad, self.cells()[0]]
        found = relax(cells, EMT_OPTIONS, workers=1)
        assert [bool(r.reason) for r in found] == [False] * 5 + [True, False]
        assert found[6] is found[0]
        alone = [relax_cell(cell, EMT_OPTIONS) for cell in cells]
        starts = [r.start_energy for r in found]
        np.testing.assert_array_equal(starts, [r.start_energy for r in alone])
        assert len(set(starts[:5])) == 5

    def test_processes_change_nothing(self) -> None:
        cells = self.cells(9)  # enough for two
        one = relax(cells, EMT_OPTIONS, workers=1)
        two = relax(cells, EMT_OPTIONS, workers=2)
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a.cell[0], b.cell[0])
            assert (a.energy, a.steps, a.converged) == (b.energy, b.steps, b.converged)

    def test_nothing_is_done_twice(self) -> None:
        options = RelaxOptions(potential=f"{HERE}:Counting")
        bad = cell_of(Atoms("Cu", cell=[1, 1, 1], pbc=True))
        cells, store = [*self.cells(), bad], Memory()
        Counting.made = 0
        seen: list[tuple[int, int]] = []
        first = relax(
            cells, options, cache=store, workers=1, progress=lambda *now: seen.append(now)
        )
        assert Counting.made == 5
        assert seen == [(done, 6) for done in range(7)]
        second = relax(cells, options, cache=store, workers=1)
        assert Counting.made == 5
        for a, b in zip(first, second, strict=True):
            for x, y in zip(a.cell, b.cell, strict=True):
                np.testing.assert_array_equal(x, y)
            np.testing.assert_equal(
                dataclasses.astuple(dataclasses.replace(a, cell=b.cell)), dataclasses.astuple(b)
            )
        relax(cells, dataclasses.replace(options, fmax=0.01), cache=store, workers=1)
        assert Counting.made == 10

    def test_an_interrupted_run_continues(self) -> None:
        options = RelaxOptions(potential=f"{HERE}:Counting")
        cells, store = self.cells(), Memory()

        def interrupt(done: int, planned: int) -> None:
            if done == 3:
                raise KeyboardInterrupt

        Counting.made = 0
        with pytest.raises(KeyboardInterrupt):
            relax(cells, options, cache=store, workers=1, progress=interrupt)
        assert len(store.values) == 3
        assert len(relax(cells, options, cache=store, workers=1)) == 5
        assert Counting.made == 5

    def test_none(self) -> None:
        assert relax([], EMT_OPTIONS) == []

    def test_unknown_potential(self) -> None:
        with pytest.raises(InputError, match="nonsense"):
            relax(self.cells(), RelaxOptions(potential="nonsense"))


def references(energies: dict[str, float]) -> HullReferences:
    return HullReferences(
        formulas=tuple(energies),
        energy=np.array(list(energies.values()), dtype=float),
        ids=tuple(f"x-{k}" for k in range(len(energies))),
        potential="none",
        version="0",
    )


class TestHull:
    # K 0, Cl 0; KCl -1 per atom; K3Cl -0.4 lies 0.1 above the line from K to KCl
    hand = references({"K1": 0.0, "Cl1": 0.0, "Cl1 K1": -1.0, "Cl1 K3": -0.4})

    @pytest.mark.parametrize(
        ("numbers", "energy", "above", "phases"),
        [
            ([19, 19, 19, 17], -0.4, 0.1, {"K1": 0.5, "Cl1 K1": 0.5}),
            ([19, 17], -1.0, 0.0, {"Cl1 K1": 1.0}),
            ([19, 17, 19, 17], -1.2, -0.2, {"Cl1 K1": 1.0}),
            ([19, 17, 17], -0.5, 1 / 6, {"Cl1 K1": 2 / 3, "Cl1": 1 / 3}),
            ([19], 0.3, 0.3, {"K1": 1.0}),
        ],
    )
    def test_by_hand(
        self, numbers: list[int], energy: float, above: float, phases: dict[str, float]
    ) -> None:
        found = self.hand.energy_above_hull(np.array(numbers), energy)
        assert found.e_above_hull == pytest.approx(above, abs=1e-9)
        assert found.phases == pytest.approx(phases, abs=2e-6)
        assert list(found.phases) == list(phases)
        assert found.missing == ""

    def test_missing_element(self) -> None:
        found = self.hand.energy_above_hull(np.array([11, 17]), -1.0)
        assert found.e_above_hull is None
        assert found.missing == "no reference phase contains Na"

    def test_composition_out_of_reach(self) -> None:
        table = references({"Cl1 K1": -1.0, "Cl1": 0.0})
        assert table.energy_above_hull(np.array([19, 17, 17]), -0.6).e_above_hull == pytest.approx(
            1 / 15
        )
        found = table.energy_above_hull(np.array([19, 19, 17]), -0.6)
        assert found.e_above_hull is None
        assert "no mixture" in found.missing

    def test_no_energy(self) -> None:
        assert self.hand.energy_above_hull(np.array([19]), math.nan).e_above_hull is None

    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 10**6))
    def test_equals_pymatgen(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        elements = np.array([3, 8, 14, 26])
        table = {f"{SYMBOLS[z]}1": float(rng.normal()) for z in elements}
        entries = [PDEntry(Composition(name), energy) for name, energy in table.items()]
        for _ in range(12):
            numbers = rng.choice(elements, rng.integers(2, 6))
            energy = float(rng.normal(-1))
            composition = Composition(
                {SYMBOLS[z]: int((numbers == z).sum()) for z in set(numbers)}
            )
            reduced = composition.reduced_composition
            name = " ".join(sorted(f"{el}{int(n)}" for el, n in reduced.items()))
            if name not in table:
                table[name] = energy
                entries.append(PDEntry(reduced, energy * reduced.num_atoms))
        diagram = PhaseDiagram(entries)
        mine = references(table)
        for _ in range(5):
            numbers = rng.choice(elements, 6)
            composition = Composition(
                {SYMBOLS[z]: int((numbers == z).sum()) for z in set(numbers)}
            )
            expected = -0.5 - diagram.get_hull_energy_per_atom(composition)
            assert mine.energy_above_hull(numbers, -0.5).e_above_hull == pytest.approx(
                expected, abs=1e-7
            )

    def test_build_keeps_the_lowest_near_the_hull(self) -> None:
        compositions = [
            [19],
            [17],
            [19, 17],
            [19, 17, 19, 17],
            [19, 19, 19, 17],
            [19, 17, 17],
            [3],
        ]
        energy = [0.0, 0.0, -0.9, -1.0, -0.35, -0.6, math.nan]
        table = HullReferences.build(
            [np.array(c) for c in compositions],
            np.array(energy),
            list("abcdefg"),
            potential="none",
            version="0",
            keep=0.1,
        )
        # K3Cl lies 0.15 above the hull, KCl2 1/15; Li has no energy
        assert dict(zip(table.formulas, table.ids, strict=True)) == {
            "K1": "a",
            "Cl1": "b",
            "Cl1 K1": "d",
            "Cl2 K1": "f",
        }
        assert table.energy_above_hull(np.array([19, 17]), -1.0).e_above_hull == pytest.approx(0)

    def test_files(self, tmp_path: Path) -> None:
        path = tmp_path / "hull.npz"
        self.hand.save(path)
        again = HullReferences.load(path)
        assert again.formulas == self.hand.formulas
        assert again.ids == self.hand.ids
        np.testing.assert_allclose(again.energy, self.hand.energy, atol=1e-7)
        assert (again.potential, again.version) == ("none", "0")
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(DataError, match=r"hull\.npz"):
            HullReferences.load(path)
        with pytest.raises(DataError, match="nothing"):
            HullReferences.load(tmp_path / "nothing")

    def test_arrays_that_do_not_fit(self) -> None:
        with pytest.raises(DataError, match="do not fit"):
            dataclasses.replace(self.hand, ids=("a",))
        with pytest.raises(DataError, match="twice"):
            dataclasses.replace(self.hand, formulas=("K1",) * 4)
        with pytest.raises(DataError, match="finite"):
            dataclasses.replace(self.hand, energy=np.full(4, np.nan))


class TestShippedHull:
    table = HullReferences.shipped()

    def test_says_what_it_is(self) -> None:
        assert (
            self.table.version.split("weights")[1] == load_potential().version.split("weights")[1]
        )
        assert "CC-BY 4.0" in self.table.attribution
        assert "not relaxed" in self.table.statement
        assert str(len(self.table))[:2] in self.table.describe()
        path = Path(__file__).parents[1] / "langevin_xtal" / "screen" / FILE
        assert path.stat().st_size <= 2**20

    def test_other_potentials_have_none(self) -> None:
        with pytest.raises(InputError, match=EMT_NAME):
            HullReferences.shipped(EMT_NAME)

    @pytest.mark.parametrize(("formula", "edge"), [("NaCl", 5.69), ("MgO", 4.25)])
    def test_known_crystals_are_on_it(self, formula: str, edge: float) -> None:
        found = relax_cell(cell_of(bulk(formula, "rocksalt", edge)))
        above = self.table.energy_above_hull(found.cell[2], found.energy).e_above_hull
        assert above is not None
        assert abs(above) <= 0.03

    def test_a_wrong_structure_is_not(self) -> None:
        """Magnesium oxide as zinc blende is a known 0.1 to 0.3 eV/atom above rock salt."""
        found = relax_cell(cell_of(bulk("MgO", "zincblende", 4.6)))
        above = self.table.energy_above_hull(found.cell[2], found.energy).e_above_hull
        assert above is not None
        assert above > 0.05


class TestDamagedEntries:
    """Results of a cache that are no results are computed again."""

    @pytest.mark.parametrize(
        "damage",
        [
            lambda values: values[:5],
            lambda values: np.concatenate([values, values]),
            lambda values: np.full_like(values, 1e18),
            lambda values: values * np.nan,
            lambda values: np.concatenate([[np.nan], values[1:], [-1.0]]),
            lambda values: np.zeros(0),
        ],
    )
    def test_are_computed_again(self, damage: Any) -> None:
        cell = (np.eye(3) * 3.6, np.zeros((1, 3)), np.array([29]))
        options = RelaxOptions(potential="ase.calculators.emt:EMT", steps=1)
        store = MemoryStore()
        (sound,) = relax([cell], options, cache=store, workers=1)
        store.values = {name: damage(values) for name, values in store.values.items()}
        with pytest.warns(LangevinXtalWarning, match="1 entries of the cache are damaged"):
            (again,) = relax([cell], options, cache=store, workers=1)
        assert again.energy == sound.energy
        assert np.array_equal(again.cell[0], sound.cell[0])


class MemoryStore:
    def __init__(self) -> None:
        self.values: dict[tuple[str, str], Any] = {}

    def get(self, kind: str, keys: Any) -> dict[str, Any]:
        return {key: self.values[kind, key] for key in keys if (kind, key) in self.values}

    def put(self, kind: str, values: Any) -> None:
        self.values |= {(kind, key): value for key, value in values.items()}


class TestEndedEarly:
    RECORDED = json.loads((Path(__file__).parent / "recorded/relaxations.json").read_text())
    HIGH = bulk("Cu", "fcc", 3.2)
    """Far from its minimum, with a large pull."""

    @pytest.mark.parametrize(
        ("part", "relaxations", "steps", "over", "ended", "wrong"),
        [("learned", 159, 2365, 3, 24, 1), ("checked", 43, 675, 1, 8, 0)],
    )
    def test_recorded_relaxations_gain_no_more(
        self, part: str, relaxations: int, steps: int, over: int, ended: int, wrong: int
    ) -> None:
        """Of 202 by CHGNet four do, and one that would have been ended came within the limit."""
        every = [np.array(one["steps"]) for one in self.RECORDED[part]]
        assert (len(every), sum(map(len, every))) == (relaxations, steps)
        bound = [[largest_gain(force, pull) for _, force, pull in one] for one in every]
        gain = [one[:, 0] - one[-1, 0] for one in every]
        more = [bool((g > b).any()) for g, b in zip(gain, bound, strict=True)]
        assert sum(more) <= over
        above = [one["above"] for one in self.RECORDED[part]]
        early = [
            a is not None and bool((a + g - b > 0.2).any())
            for a, g, b in zip(above, gain, bound, strict=True)
        ]
        assert sum(early) >= ended
        assert sum(e and a <= 0.2 for e, a in zip(early, above, strict=True)) <= wrong

    def test_where_the_energy_cannot_come_below(self) -> None:
        cell = cell_of(self.HIGH)
        whole = relax_cell(cell, EMT_OPTIONS)
        assert not whole.ended_early
        below = relax_cell(cell, EMT_OPTIONS, limit=whole.energy - 0.3)
        assert below.ended_early
        assert not below.converged
        assert 0 < below.steps < whole.steps
        assert whole.energy - 0.3 < below.least < whole.energy < below.energy
        gain = largest_gain(below.max_force, below.max_stress * math.sqrt(3) * 20)
        assert below.energy - below.least <= gain
        at_once = relax_cell(cell, EMT_OPTIONS, limit=-50.0)
        assert (at_once.steps, at_once.ended_early) == (0, True)
        assert at_once.energy == at_once.start_energy
        reached = relax_cell(cell, EMT_OPTIONS, limit=whole.energy)
        assert not reached.ended_early
        assert reached.energy == whole.energy

    @pytest.mark.parametrize("workers", [1, 2])
    def test_limits_by_cell_and_from_the_cache(self, workers: int) -> None:
        cells = [cell_of(bulk("Cu", "fcc", a)) for a in np.linspace(3.2, 3.9, 10)]
        limits = {cell_key(cell): -50.0 for cell in cells[::2]}
        store = Memory()
        first = relax_folded(cells, EMT_OPTIONS, limits=limits, cache=store, workers=workers)
        assert [r.ended_early for r in first] == [True, False] * 5
        again = relax_folded(cells, EMT_OPTIONS, limits=limits, cache=store, workers=1)
        alone = [relax_cell(c, EMT_OPTIONS, limit=limits.get(cell_key(c), 9.0)) for c in cells]
        for found in (again, alone):
            assert [r.least for r in found] == pytest.approx([r.least for r in first], nan_ok=True)
            assert [r.energy for r in found] == [r.energy for r in first]
        whole = relax_folded(cells, EMT_OPTIONS, cache=store, workers=1)
        assert not any(r.ended_early for r in whole)

    def test_a_damaged_limit_is_computed_again(self) -> None:
        cell, store = cell_of(self.HIGH), Memory()
        limits = {cell_key(cell): -50.0}
        relax_folded([cell], EMT_OPTIONS, limits=limits, cache=store, workers=1)
        ((key, values),) = store.values.items()
        store.values[key] = np.append(values[:-1], math.inf)
        with pytest.warns(LangevinXtalWarning, match="damaged"):
            (found,) = relax_folded([cell], EMT_OPTIONS, limits=limits, cache=store, workers=1)
        assert found.ended_early


class TestReturned:
    def test_what_breaks_the_symmetry_counts(self) -> None:
        atoms = bulk("NaCl", "rocksalt", 5.6)
        home = cell_of(atoms)
        returned = Returned(home, EMT_OPTIONS)
        lattice, frac, numbers = home
        assert returned.distance(home) == pytest.approx(0, abs=1e-9)
        # a cubic crystal may swell, and be elsewhere; its ions have no free coordinate
        assert returned.distance((1.03 * lattice, frac + 0.3, numbers)) == pytest.approx(
            0, abs=1e-9
        )
        moved = frac + np.array([[0, 0, 0], [0.03, 0, 0]])
        length = 0.03 * np.linalg.norm(lattice[0])
        apart = length / math.sqrt(2)  # half of it each, the centre where it was
        assert returned.distance((lattice, moved, numbers)) == pytest.approx(apart, abs=1e-6)
        strained = lattice @ (np.eye(3) + np.array([[0, 0.01, 0], [0.01, 0, 0], [0, 0, 0]]))
        size = abs(np.linalg.det(lattice)) ** (1 / 3)
        found = returned.distance((strained, frac, numbers))
        assert found == pytest.approx(0.01 * math.sqrt(2) * size, rel=0.02)

    def test_near_and_nearer(self) -> None:
        lattice, frac, numbers = home = cell_of(bulk("NaCl", "rocksalt", 5.6))

        def said(*lengths: float) -> list[bool]:
            returned = Returned(home, EMT_OPTIONS)
            step = np.array([[0, 0, 0], [math.sqrt(2) / np.linalg.norm(lattice[0]), 0, 0]])
            return [returned((lattice, frac + length * step, numbers)) for length in lengths]

        assert said(0.4, 0.3, 0.25, 0.2, 0.12, 0.04) == [False] * 5 + [True]
        assert said(0.06, 0.05, 0.04, 0.03, 0.02, 0.01) == [False] * 5 + [True]
        assert said(0.2, 0.048, 0.049, 0.04, 0.03, 0.02, 0.01, 0.005) == [False] * 7 + [True]
        assert not any(said(0.6, 0.5, 0.4, 0.3, 0.2, 0.11, 0.055))
        # the path of Hf3Ga9Rh2 to a lower energy
        assert not any(said(0.147, 0.13, 0.118, 0.101, 0.095, 0.09, 0.087, 0.086, 0.086, 0.089))

    def test_without_symmetry_all_counts(self) -> None:
        rng = np.random.default_rng(0)
        lattice = np.array([[5.1, 0, 0], [0.7, 5.9, 0], [0.4, 0.9, 6.7]])
        home = lattice, rng.uniform(size=(3, 3)), np.array([29, 47, 79])
        returned = Returned(home, EMT_OPTIONS)
        moves = rng.normal(0, 0.05, (3, 3))
        moves -= moves.mean(axis=0)
        moved = lattice, home[1] + moves @ np.linalg.inv(lattice), home[2]
        assert returned.distance(moved) == pytest.approx(np.linalg.norm(moves), abs=1e-6)


class TestDescent:
    def test_direction_is_newtons_on_a_quadratic_form(self) -> None:
        """With as many pairs as dimensions, conjugate ones, the inverse Hessian is exact."""
        rng = np.random.default_rng(2)
        root = rng.normal(size=(5, 5))
        hessian = root @ root.T + np.eye(5)
        axes = np.linalg.eigh(hessian)[1]
        pairs = [(axis, hessian @ axis) for axis in axes.T]
        gradient = rng.normal(size=5)
        expected = -np.linalg.solve(hessian, gradient)
        np.testing.assert_allclose(direction(gradient, pairs, 40.0), expected, atol=1e-9)
        np.testing.assert_allclose(direction(gradient, [], 40.0), -gradient / 40, atol=1e-12)

    def test_never_ends_higher_than_it_was(self) -> None:
        """From far away, where the energy is not convex; each step that is kept leads down."""
        rng = np.random.default_rng(4)
        base = bulk("Cu", "fcc", 3.6, cubic=True) * (2, 1, 1)
        for _ in range(3):
            atoms = base.copy()
            atoms.positions += rng.normal(0, 0.45, (len(atoms), 3))
            atoms.calc = EMT()
            optimiser = descending_lbfgs()(atoms, maxstep=0.2, alpha=40.0, logfile=None)
            kept = []
            for _ in optimiser.irun(fmax=0.01, steps=300):
                if optimiser.base is not None and optimiser.tries == 0:
                    kept.append(optimiser.base[0])
            assert np.linalg.norm(atoms.get_forces(), axis=1).max() <= 0.01
            assert (np.diff(kept) <= RISE * len(atoms)).all()
            assert atoms.get_potential_energy() <= min(kept) + RISE * len(atoms)
            assert len(kept) < 200
