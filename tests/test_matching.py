"""Matching: against StructureMatcher itself, displacements by hand, and brute force."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from pymatgen.analysis.structure_matcher import StructureMatcher
from scipy.spatial.transform import Rotation
from scipy.stats import binomtest

from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import DataError, InputError
from langevin_xtal.evaluation import duplicates, matching
from langevin_xtal.evaluation.cache import Cache
from langevin_xtal.evaluation.duplicates import metre, novel, unique_groups
from langevin_xtal.evaluation.matching import (
    STRICT,
    TOLERANCES,
    Tolerances,
    fit_pairs,
    match_pairs,
)
from langevin_xtal.evaluation.prediction import (
    FREEDOM_BINS,
    FREEDOM_LABELS,
    PredictionTable,
    freedom_labels,
    match_rate,
    predict_table,
    rates_by,
    system_labels,
    wilson,
)
from langevin_xtal.evaluation.structures import Missing, StructureSet
from langevin_xtal.symmetry import SpaceGroup

REFERENCE = StructureSet.from_packed(reference_dataset(), "ref")
POLYMORPHS = (
    "diamond (C)",
    "graphite",
    "rutile",
    "anatase",
    "pyrite",
    "marcasite",
    "alpha-quartz",
    "high cristobalite (ideal)",
)


def cell_of(name: str) -> Cell:
    return REFERENCE.cell(REFERENCE.index_of[name])


def noisy(cell: Cell, sigma: float, seed: int) -> Cell:
    lattice, frac, numbers = cell
    shift = np.random.default_rng(seed).normal(0, sigma, frac.shape)
    return lattice, frac + shift @ np.linalg.inv(lattice), numbers


def written_otherwise(cell: Cell, seed: int) -> Cell:
    """The same crystal: other axes, origin, orientation, size and order of atoms."""
    lattice, frac, numbers = cell
    rng = np.random.default_rng(seed)
    axes = np.eye(3)
    for _ in range(2):
        i, j = rng.choice(3, 2, replace=False)
        step = np.eye(3)
        step[i, j] = rng.choice([-1, 1])
        axes = step @ axes
    order = rng.permutation(len(numbers))
    moved = (frac + rng.random(3)) @ np.linalg.inv(axes)
    turned = 1.1 * axes @ lattice @ Rotation.random(random_state=seed).as_matrix()
    return turned, (moved % 1)[order], numbers[order]


def silicon(atoms: int, seed: int) -> Cell:
    """Atoms anywhere in a cube: slow to compare."""
    frac = np.random.default_rng(seed).random((atoms, 3))
    return np.eye(3) * (15 * atoms) ** (1 / 3), frac, np.full(atoms, 14)


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache(None) as memory:
        yield memory


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the matcher was asked for, one entry a time."""
    calls: list[str] = []
    ask = matching._ask

    def count(pair: tuple[Cell, Cell], measure: matching.Measure, tol: Tolerances) -> float:
        calls.append(measure)
        return ask(pair, measure, tol)

    monkeypatch.setattr(matching, "_ask", count)
    return calls


def real_pairs() -> list[tuple[Cell, Cell]]:
    """Near copies and polymorphs."""
    names = REFERENCE.ids[::6]
    pairs = [
        (noisy(cell_of(name), sigma, k), cell_of(name))
        for k, name in enumerate(names)
        for sigma in (0.1, 0.5)
    ]
    return pairs + [
        (cell_of(a), cell_of(b))
        for first, second in zip(POLYMORPHS[::2], POLYMORPHS[1::2], strict=True)
        for a, b in ((first, second), (second, first))
    ]


class TestPairs:
    @pytest.mark.parametrize("name", REFERENCE.ids[::9])
    def test_the_same_crystal_written_otherwise(self, name: str, cache: Cache) -> None:
        pairs = [(written_otherwise(cell_of(name), seed), cell_of(name)) for seed in (0, 1)]
        assert_allclose(match_pairs(pairs, cache=cache, workers=1), 0, atol=1e-6)
        assert fit_pairs(pairs, cache=cache, workers=1).all()

    def test_a_supercell_is_the_same_crystal(self, cache: Cache) -> None:
        lattice, frac, numbers = cell_of("rutile")
        double = (
            np.diag([2, 1, 1]) @ lattice,
            np.concatenate([frac, frac + np.array([1, 0, 0])]) / [2, 1, 1],
            np.concatenate([numbers, numbers]),
        )
        rms = match_pairs([(double, cell_of("rutile"))], cache=cache, workers=1)
        assert_allclose(rms, 0, atol=1e-6)

    def test_one_atom(self, cache: Cache) -> None:
        def atom(number: int, edge: float, place: float) -> Cell:
            return np.eye(3) * edge, np.full((1, 3), place), np.array([number])

        pairs = [
            (atom(84, 3.3, 0.2), atom(84, 3.4, 0.7)),
            (atom(84, 3.3, 0.2), atom(29, 3.3, 0.2)),
        ]
        rms = match_pairs(pairs, cache=cache, workers=1)
        assert_allclose(rms[0], 0, atol=1e-12)
        assert np.isnan(rms[1])

    @settings(
        max_examples=15,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        name=st.sampled_from(["caesium chloride", "cubic perovskite", "rock salt", "fluorite"]),
        length=st.floats(0.01, 0.25),
        seed=st.integers(0, 99),
    )
    def test_one_displaced_atom(self, name: str, length: float, seed: int, cache: Cache) -> None:
        """One of N atoms moved by d, all shifted back by d/N: rms² = (d²(1−1/N)² + (N−1)d²/N²)/N,
        that is d √(N−1)/N, over (V/N)^(1/3)."""
        lattice, frac, numbers = cell_of(name)
        direction = np.random.default_rng(seed).normal(size=3)
        moved = frac.copy()
        moved[0] += length * direction / np.linalg.norm(direction) @ np.linalg.inv(lattice)
        n = len(numbers)
        expected = length * math.sqrt(n - 1) / n * (n / abs(np.linalg.det(lattice))) ** (1 / 3)
        rms = match_pairs(
            [((lattice, moved, numbers), (lattice, frac, numbers))], cache=cache, workers=1
        )
        assert_allclose(rms, expected, rtol=1e-6)

    def test_as_the_matcher_called_directly(self, cache: Cache) -> None:
        pairs = real_pairs()
        direct = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
        found = [direct.get_rms_dist(*map(to_structure, pair)) for pair in pairs]
        rms = match_pairs(pairs, cache=cache, workers=1)
        assert_allclose(rms, [np.nan if f is None else f[0] for f in found], atol=1e-9)
        assert 0 < np.isfinite(rms).sum() < len(pairs)
        fits = [StructureMatcher().fit(*map(to_structure, pair)) for pair in pairs]
        assert fit_pairs(pairs, cache=cache, workers=1).tolist() == fits
        assert 0 < sum(fits) < len(pairs)

    def test_tolerances_are_those_of_the_field(self) -> None:
        assert Tolerances(0.3, 0.5, 10.0) == TOLERANCES
        default = StructureMatcher()
        assert Tolerances(default.ltol, default.stol, default.angle_tol) == STRICT

    def test_workers_give_the_same_answers(
        self, monkeypatch: pytest.MonkeyPatch, cache: Cache
    ) -> None:
        pairs = real_pairs()
        alone = match_pairs(pairs, cache=cache, workers=1)
        monkeypatch.setattr(matching, "PAIRS_PER_WORKER", 10)
        assert matching._useful(2, len(pairs)) == 2
        together = match_pairs(pairs, cache=Cache(None), workers=2)
        # pymatgen keeps reduced cells of structures it takes as equal, so rounding depends on
        # which pairs a process saw before
        assert_allclose(together, alone, rtol=1e-9, atol=1e-12)

    def test_workers_worth_starting(self) -> None:
        assert [matching._useful(8, n) for n in (0, 99, 250, 10_000)] == [1, 1, 2, 8]

    def test_another_formula_needs_no_matcher(self, cache: Cache, asked: list[str]) -> None:
        pairs = [
            (cell_of("rutile"), cell_of("graphite")),
            (cell_of("caesium chloride"), cell_of("rock salt")),
        ]
        assert np.isnan(match_pairs(pairs, cache=cache, workers=1)).all()
        assert not fit_pairs(pairs, cache=cache, workers=1).any()
        assert asked == []

    def test_nothing_to_compare(self, cache: Cache) -> None:
        assert match_pairs([], cache=cache).shape == (0,)
        assert fit_pairs([], cache=cache).dtype == bool


class TestCache:
    def test_each_pair_is_compared_once(self, tmp_path: Path, asked: list[str]) -> None:
        pairs = [(noisy(cell_of("rutile"), 0.1, k % 3), cell_of("rutile")) for k in range(9)]
        pairs.append((cell_of("diamond (C)"), cell_of("graphite")))
        with Cache(tmp_path) as cache:
            first = match_pairs(pairs, cache=cache, workers=1)
        assert len(asked) == 4
        with Cache(tmp_path) as cache:
            assert_array_equal(match_pairs(pairs, cache=cache, workers=1), first)
            assert len(asked) == 4
            fit_pairs(pairs, cache=cache, workers=1)
            assert asked[4:] == ["fit"] * 4
            match_pairs(pairs, tolerances=STRICT, cache=cache, workers=1)
            assert asked[8:] == ["rms"] * 4
            match_pairs([(b, a) for a, b in pairs], cache=cache, workers=1)
            assert asked[12:] == ["rms"] * 4

    def test_the_kind_names_matcher_and_tolerances(self) -> None:
        from importlib.metadata import version

        kinds = {matching._kind(m, t) for m in ("rms", "fit") for t in (STRICT, TOLERANCES)}
        assert len(kinds) == 4
        assert all(f"pymatgen {version('pymatgen')}" in kind for kind in kinds)

    def test_an_interrupted_run_keeps_what_it_has(
        self, monkeypatch: pytest.MonkeyPatch, cache: Cache
    ) -> None:
        calls: list[int] = []

        def interrupted(*_: object) -> float:
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return 0.25

        monkeypatch.setattr(matching, "_ask", interrupted)
        pairs = [(noisy(cell_of("rutile"), 0.1, k), cell_of("rutile")) for k in range(6)]
        with pytest.raises(KeyboardInterrupt):
            match_pairs(pairs, cache=cache, workers=1)
        assert_array_equal(match_pairs(pairs, cache=cache, workers=1), [0.25] * 6)
        assert len(calls) == 4 + 3

    def test_progress(self, cache: Cache) -> None:
        pairs = [(noisy(cell_of("rutile"), 0.1, k % 2), cell_of("rutile")) for k in range(4)]
        pairs.append((cell_of("rutile"), cell_of("graphite")))
        seen: list[tuple[int, int]] = []
        match_pairs(pairs, cache=cache, workers=1, progress=lambda d, p: seen.append((d, p)))
        assert seen == [(1, 5), (3, 5), (5, 5)]


CUBE = np.eye(3) * 4.0
BAD: dict[str, tuple[Cell, str]] = {
    "position": ((CUBE, np.full((2, 3), np.nan), np.array([6, 6])), "not finite"),
    "lattice": ((np.full((3, 3), np.inf), np.zeros((1, 3)), np.array([6])), "not finite"),
    "no volume": ((np.ones((3, 3)), np.zeros((1, 3)), np.array([6])), "no volume"),
    "needle": ((np.diag([1, 1, 2000.0]), np.zeros((1, 3)), np.array([6])), "too long or too flat"),
    "flake": (
        (np.diag([3000, 3000, 0.3]), np.zeros((1, 3)), np.array([6])),
        "too long or too flat",
    ),
}


class TestBadStructures:
    @pytest.mark.parametrize("name", BAD)
    def test_are_listed_and_do_not_match(self, name: str, cache: Cache) -> None:
        bad, reason = BAD[name]
        good = cell_of("rutile")
        failures: dict[int, str] = {}
        pairs = [(good, good), (bad, bad)]
        rms = match_pairs(pairs, cache=cache, workers=1, failures=failures)
        assert_allclose(rms, [0, np.nan], atol=1e-6)
        assert list(failures) == [1]
        assert reason in failures[1]
        again: dict[int, str] = {}
        match_pairs(pairs, cache=cache, workers=1, failures=again)
        assert again == failures

    def test_skewed_axes_of_a_good_cell_are_no_reason(self, cache: Cache) -> None:
        lattice, frac, numbers = cell_of("rutile")
        axes = np.array([[1, 40, 0], [0, 1, 40], [0, 0, 1.0]])
        skewed = axes @ lattice, (frac @ np.linalg.inv(axes)) % 1, numbers
        failures: dict[int, str] = {}
        pair = (cell_of("rutile"), skewed)
        assert_allclose(
            match_pairs([pair], cache=cache, workers=1, failures=failures), 0, atol=1e-6
        )
        assert failures == {}

    def test_atoms_in_one_place_and_flat_cells(self, cache: Cache) -> None:
        heap = (CUBE, np.full((4, 3), 0.5), np.full(4, 6))
        flat = (np.diag([4, 4, 0.05]), np.zeros((1, 3)), np.array([6]))
        pairs = [(a, b) for a in (heap, flat) for b in (heap, flat, cell_of("diamond (C)"))]
        rms = match_pairs(pairs, cache=cache, workers=1)
        assert rms.shape == (6,)
        assert np.isnan(rms[[1, 3]]).all()  # of each other they are no copies

    def test_an_error_of_the_matcher(self, monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
        def broken(*_: object) -> float:
            raise ZeroDivisionError("division by zero")

        monkeypatch.setattr(matching, "_ask", broken)
        failures: dict[int, str] = {}
        pair = (cell_of("rutile"), cell_of("rutile"))
        for _ in range(2):
            assert np.isnan(match_pairs([pair], cache=cache, workers=1, failures=failures)).all()
            assert failures.pop(0) == "StructureMatcher failed: division by zero"

    def test_a_pair_that_takes_too_long(self, cache: Cache, asked: list[str]) -> None:
        pair = (silicon(40, 0), noisy(silicon(40, 0), 0.02, 1))
        for _ in range(2):
            failures: dict[int, str] = {}
            rms = match_pairs([pair], cache=cache, workers=1, failures=failures, seconds=0.02)
            assert np.isnan(rms).all()
            assert failures == {0: "not compared within 0.02 s of CPU time"}
        assert len(asked) == 1
        rms = match_pairs([pair], cache=cache, workers=1, failures=(failures := {}), seconds=60)
        assert np.isfinite(rms).all()
        assert failures == {}
        assert len(asked) == 2
        match_pairs([pair], cache=cache, workers=1, seconds=0.02)
        assert len(asked) == 2


def table(rms: Sequence[Sequence[float]], **changes: object) -> PredictionTable:
    values = np.array(rms, dtype=float)
    every = np.ones(values.shape, dtype=bool)
    fields: dict[str, object] = {
        "targets": tuple(f"t{k}" for k in range(len(values))),
        "freedom": np.zeros(len(values), dtype=np.int64),
        "rms": values,
        "present": every,
        "prediction_valid": every,
        "target_valid": every[:, 0],
        "formula_right": every,
    }
    return PredictionTable(**{**fields, **changes})  # type: ignore[arg-type]


NAN = math.nan


class TestMatchRate:
    RMS = ((0.1, 0.05), (NAN, 0.3), (0.2, NAN), (NAN, NAN), (0.4, 0.1))
    VALID = np.array([[1, 0], [1, 1], [0, 1], [1, 1], [1, 0]], dtype=bool)
    TARGETS = np.array([1, 1, 1, 1, 0], dtype=bool)

    @pytest.mark.parametrize(
        ("k", "filtered", "hits"),
        [
            (1, False, [0.1, 0.2, 0.4]),
            (2, False, [0.05, 0.3, 0.2, 0.1]),
            (1, True, [0.1]),  # t2: prediction not valid; t4: target not valid
            (2, True, [0.1, 0.3, 0.4]),  # targets are not filtered, better trials not valid are
        ],
    )
    def test_by_hand(self, k: int, filtered: bool, hits: list[float]) -> None:
        all_five = table(self.RMS, prediction_valid=self.VALID, target_valid=self.TARGETS)
        rate = match_rate(all_five, k, filtered=filtered)
        assert (rate.targets, rate.matched, rate.rate) == (5, len(hits), len(hits) / 5)
        assert_allclose(rate.rmse, np.mean(hits))
        assert rate.interval == wilson(len(hits), 5)

    def test_some_targets(self) -> None:
        rate = match_rate(table(self.RMS), 1, pick=np.array([0, 1, 1, 1, 0], dtype=bool))
        assert (rate.targets, rate.matched, rate.rmse) == (3, 1, 0.2)

    def test_of_nothing(self) -> None:
        none = match_rate(table([[NAN]]), 1)
        assert (none.rate, none.interval[0]) == (0.0, 0.0)
        assert math.isnan(none.rmse)
        empty = match_rate(table([[NAN]]), 1, pick=np.array([False]))
        assert empty.targets == 0
        assert math.isnan(empty.rate)
        assert math.isnan(empty.interval[0])

    @pytest.mark.parametrize("k", [0, 3])
    def test_only_trials_that_are_there(self, k: int) -> None:
        with pytest.raises(InputError, match=f"k is {k}; the table has 2 trials"):
            match_rate(table(self.RMS), k)

    @given(st.integers(1, 3000), st.data())
    def test_wilson(self, of: int, data: st.DataObject) -> None:
        hits = data.draw(st.integers(0, of))
        theirs = binomtest(hits, of).proportion_ci(0.95, method="wilson")
        assert_allclose(wilson(hits, of), (theirs.low, theirs.high), rtol=1e-9, atol=1e-12)

    @given(
        st.lists(st.lists(st.sampled_from([NAN, 0.1, 0.4]), min_size=3, max_size=3), min_size=1)
    )
    def test_more_trials_never_hurt(self, rms: list[list[float]]) -> None:
        rates = [match_rate(table(rms), k).rate for k in (1, 2, 3)]
        assert rates == sorted(rates)


class TestLabels:
    @given(st.integers(0, 300))
    def test_freedom(self, freedom: int) -> None:
        (place,) = [k for k, (a, b) in enumerate(FREEDOM_BINS) if a <= freedom <= b]
        assert freedom_labels([freedom]) == [FREEDOM_LABELS[place]]

    def test_systems(self) -> None:
        labels = system_labels(range(1, 231))
        assert labels == [SpaceGroup(k).crystal_system for k in range(1, 231)]
        assert system_labels([0, 231]) == ["unknown", "unknown"]

    def test_rates(self) -> None:
        rms = [[0.1, NAN], [NAN, 0.3], [NAN, NAN], [0.2, 0.1]]
        four = table(rms)
        by = rates_by(four, ["9+", "0", "0", "4-5"])
        assert list(by) == ["0", "4-5", "9+"]
        assert [(r.targets, r.matched) for r in by.values()] == [(2, 0), (1, 1), (1, 1)]
        assert rates_by(four, ["9+", "0", "0", "4-5"], 2)["0"].matched == 1
        named = rates_by(four, ["cubic", "trigonal", "b", "a"])
        assert list(named) == ["trigonal", "cubic", "a", "b"]


def predictions(cells: dict[str, Cell], missing: tuple[str, ...] = ()) -> StructureSet:
    gone = [Missing(name, "gave up") for name in missing]
    return StructureSet.of("made", list(cells.values()), list(cells), missing=gone)


def made_table(
    made: StructureSet, targets: list[str], trials: int, reference: StructureSet = REFERENCE
) -> PredictionTable:
    return predict_table(
        made,
        reference,
        targets=targets,
        trials=trials,
        prediction_valid={name: not name.startswith("rutile") for name in made.ids},
        target_valid={name: name != "anatase" for name in targets},
        freedom={name: len(name) for name in targets},
        cache=Cache(None),
        workers=1,
    )


class TestPredictTable:
    def test_by_trial_and_target(self) -> None:
        made = predictions(
            {
                "anatase__1": noisy(cell_of("anatase"), 0.05, 0),
                "anatase": cell_of("rutile"),
                "rutile__0": cell_of("rutile"),
                "rutile__2": cell_of("rutile"),  # beyond the trials asked for
                "graphite__1": cell_of("caesium chloride"),
                "somebody else__1": cell_of("caesium chloride"),
            },
            missing=("rutile__1", "graphite__0"),
        )
        found = made_table(made, ["anatase", "graphite", "rutile"], 2)
        assert found.targets == ("anatase", "graphite", "rutile")
        assert np.isfinite(found.rms).tolist() == [[False, True], [False, False], [True, False]]
        assert found.present.tolist() == [[True, True], [False, True], [True, False]]
        assert found.formula_right.tolist() == [[True, True], [False, False], [True, False]]
        assert found.prediction_valid.tolist() == [[True, True], [False, True], [False, False]]
        assert found.target_valid.tolist() == [False, True, True]
        assert found.freedom.tolist() == [7, 8, 6]
        assert found.failures == {}
        (direct,) = match_pairs([(made.cell(0), cell_of("anatase"))], cache=Cache(None), workers=1)
        assert found.rms[0, 1] == direct > 0
        assert match_rate(found, 1).rate == 1 / 3
        assert match_rate(found, 2).rate == 2 / 3
        assert match_rate(found, 1, filtered=True).rate == 0

    def test_what_cannot_be_compared_is_listed(self) -> None:
        lattice, frac, numbers = cell_of("rutile")
        made = predictions({"rutile__1": (lattice * 0, frac, numbers)})
        found = made_table(made, ["rutile"], 2)
        assert found.present.tolist() == [[False, True]]
        assert np.isnan(found.rms).all()
        assert found.failures == {"rutile__1": "the cell has no volume"}

    def test_a_target_may_have_underscores(self) -> None:
        reference = predictions({"my__1": cell_of("rutile")})
        made = predictions({"my__1": cell_of("rutile"), "my__1__1": cell_of("anatase")})
        found = made_table(made, ["my__1"], 2, reference)
        assert np.isfinite(found.rms).tolist() == [[True, False]]
        assert found.present.all()

    def test_no_predictions(self) -> None:
        found = made_table(predictions({}, missing=("rutile__0",)), ["rutile"], 1)
        assert match_rate(found, 1)[:3] == (1, 0, 0.0)

    def test_refuses(self) -> None:
        twice = predictions({"rutile": cell_of("rutile"), "rutile__0": cell_of("rutile")})
        with pytest.raises(DataError, match="'rutile' and 'rutile__0' are both trial 0"):
            made_table(twice, ["rutile"], 1)
        with pytest.raises(DataError, match="target 'unobtainium' is not in ref"):
            made_table(twice, ["unobtainium"], 1)
        with pytest.raises(InputError, match="trials is 0"):
            made_table(twice, ["rutile"], 0)


class TestMetre:
    def test_polymorphs_by_hand(self, cache: Cache) -> None:
        """CsCl with one atom moved by d has rms d/2 over (V/2)^(1/3)."""
        names = ["rutile", "anatase", "graphite", "caesium chloride"]
        reference = REFERENCE.select([REFERENCE.index_of[name] for name in names])
        lattice, frac, numbers = cell_of("caesium chloride")
        moved = frac.copy()
        moved[0, 0] += 0.2 / lattice[0, 0]
        made = predictions(
            {
                "rutile__0": cell_of("anatase"),  # right formula, another polymorph
                "anatase__0": cell_of("anatase"),
                "x": (lattice, moved, numbers),
                "y": cell_of("diamond (C)"),
            }
        )
        result = metre(made, reference, cache=cache, workers=1)
        rms = 0.1 * (2 / np.linalg.det(lattice)) ** (1 / 3)
        assert result.rate == 0.5
        assert_allclose(result.best, [np.nan, 0, np.nan, rms], atol=1e-7)
        assert_allclose(result.crmse, (0.5 + 0 + 0.5 + rms) / 4, atol=1e-7)

    def test_everything_finds_itself(self, cache: Cache) -> None:
        some = REFERENCE.select(np.arange(0, len(REFERENCE), 12))
        rate, crmse, best = metre(some, some, cache=cache, workers=1)
        assert rate == 1
        assert_allclose(crmse, 0, atol=1e-6)
        assert best.shape == (len(some),)

    def test_empty(self, cache: Cache) -> None:
        none, some = predictions({}), REFERENCE.select([0, 1])
        assert metre(none, some, cache=cache)[:2] == (0.0, TOLERANCES.stol)
        assert math.isnan(metre(some, none, cache=cache).rate)


def greedy(fits: np.ndarray) -> list[int]:
    """A structure joins the first group whose first member it fits."""
    firsts: list[int] = []
    labels = []
    for b in range(len(fits)):
        label = next((k for k, a in enumerate(firsts) if fits[a, b]), len(firsts))
        if label == len(firsts):
            firsts.append(b)
        labels.append(label)
    return labels


class TestSets:
    def test_unique_as_group_structures(self, cache: Cache) -> None:
        cells = [
            noisy(cell_of(name), sigma, k)
            for k, sigma in enumerate((0.0, 0.05, 0.3, 0.6))
            for name in (*POLYMORPHS[:6], "caesium chloride")
        ]
        made = StructureSet.of("made", cells, [str(k) for k in range(len(cells))])
        labels = unique_groups(made, cache=cache, workers=1)
        structures = [to_structure(cell) for cell in cells]
        place = {id(s): k for k, s in enumerate(structures)}
        theirs = StructureMatcher().group_structures(structures)
        assert {frozenset(np.flatnonzero(labels == k).tolist()) for k in set(labels)} == {
            frozenset(place[id(s)] for s in group) for group in theirs
        }
        assert 7 <= len(theirs) < len(cells)
        assert labels[0] == 0
        assert_array_equal(np.unique(labels), np.arange(len(theirs)))

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(size=st.integers(0, 30), density=st.floats(0, 0.6), seed=st.integers(0, 999))
    def test_unique_is_greedy_in_order(self, size: int, density: float, seed: int) -> None:
        """Whatever fits, also where fitting is neither symmetric nor transitive."""
        rng = np.random.default_rng(seed)
        fits = rng.random((size, size)) < density
        formulas = rng.integers(0, 2, size)
        cells = [(np.eye(3) * (k + 1), np.zeros((1, 3)), np.array([6 + f])) for k, f in
                 enumerate(formulas)]  # fmt: skip
        made = StructureSet.of("made", cells, [str(k) for k in range(size)])

        def answer(pairs: list[tuple[Cell, Cell]], **_: object) -> np.ndarray:
            places = [(round(a[0][0, 0]) - 1, round(b[0][0, 0]) - 1) for a, b in pairs]
            return np.array([fits[p] for p in places], dtype=bool)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(duplicates, "fit_pairs", answer)
            labels = unique_groups(made, cache=Cache(None), workers=1)
        assert labels.tolist() == greedy(fits & (formulas[:, None] == formulas))

    def test_unique_progress_and_failures(self, cache: Cache) -> None:
        lattice, frac, numbers = cell_of("rutile")
        bad = (lattice * 0, frac, numbers)
        cells = [
            cell_of("rutile"),
            cell_of("anatase"),
            bad,
            cell_of("rutile"),
            cell_of("caesium chloride"),
        ]
        made = StructureSet.of("made", cells, list("abcde"))
        seen: list[tuple[int, int]] = []
        failures: dict[tuple[str, str], str] = {}
        labels = unique_groups(
            made,
            cache=cache,
            workers=1,
            progress=lambda done, planned: seen.append((done, planned)),
            failures=failures,
        )
        assert labels.tolist() == [0, 1, 2, 0, 3]
        assert set(failures) == {("a", "c"), ("b", "c")}
        assert seen[-1] == (4, 4)  # a with b, c, d; then b with c
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)

    def test_novel(self, cache: Cache, asked: list[str]) -> None:
        training = REFERENCE.select(
            [REFERENCE.index_of[n] for n in ("rutile", "graphite", "caesium chloride")]
        )
        lattice, frac, numbers = cell_of("rutile")
        made = predictions(
            {
                "polymorph": cell_of("anatase"),
                "known": written_otherwise(noisy(cell_of("rutile"), 0.02, 0), 1),
                "formula": cell_of("rock salt"),
                "bad": (lattice * 0, frac, numbers),
            }
        )
        failures: dict[tuple[str, str], str] = {}
        new = novel(made, training, cache=cache, workers=1, failures=failures)
        assert new.tolist() == [True, False, True, True]
        assert failures == {("bad", "rutile"): "the cell has no volume"}
        assert asked == ["fit", "fit"]

    def test_empty(self, cache: Cache) -> None:
        none = predictions({})
        assert unique_groups(none, cache=cache).shape == (0,)
        assert novel(none, REFERENCE, cache=cache).shape == (0,)
        assert novel(REFERENCE.select([3, 4]), none, cache=cache).all()
