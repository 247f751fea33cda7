"""Coverage, Fréchet distance, distances between distributions and validity, against hand-computed
cases and other implementations."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.linalg
import smact
import spglib
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from smact.screening import pauling_test, smact_validity

from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import InputError, MissingPackageError
from langevin_xtal.evaluation import coverage as coverage_module
from langevin_xtal.evaluation.coverage import Coverage, coverage, row_blocks
from langevin_xtal.evaluation.distributions import (
    element_divergence,
    fingerprint_diversity,
    formula_diversity,
    group_retention,
    jensen_shannon,
    lattice_wasserstein,
    p1_share,
    space_group_divergence,
    wasserstein,
)
from langevin_xtal.evaluation.frechet import finite_rows, frechet_distance
from langevin_xtal.evaluation.structures import StructureSet
from langevin_xtal.evaluation.validity import (
    composition_fault,
    composition_valid,
    compositions_valid,
    describe,
    structure_valid,
)
from langevin_xtal.symmetry import SpaceGroup

Floats = NDArray[np.float64]
NAN = float("nan")
FARTHEST = math.sqrt(math.log(2))
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def reference() -> StructureSet:
    return StructureSet.from_packed(reference_dataset(), "reference")


def test_modules_are_light() -> None:
    names = ", ".join(
        f"langevin_xtal.evaluation.{n}" for n in ("distributions", "frechet", "validity")
    )
    code = (
        f"import sys, {names};"
        "print({'torch', 'pymatgen', 'smact', 'matminer', 'spglib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---------------------------------------------------------------- coverage


def fingerprints(rng: np.random.Generator, count: int, bad: float = 0.2) -> tuple[Floats, Floats]:
    """Structures and compositions on a coarse grid, so that distances equal the cut-offs at
    times; some rows lack a value."""
    structure = rng.integers(0, 4, (count, 3)).astype(float)
    composition = rng.integers(0, 4, (count, 2)).astype(float)
    structure[rng.random(count) < bad, 1] = NAN
    composition[rng.random(count) < bad, 0] = NAN
    return structure, composition


def brute_force(
    made: tuple[Floats, Floats],
    asked: tuple[Floats, Floats],
    attempted: int,
    cutoffs: tuple[float, float],
) -> tuple[list[float], list[list[float]]]:
    """[recall, precision, joint recall, joint precision] and, for references then for generated
    structures, nearest structures and nearest compositions; loops over pairs."""

    def usable(pair: tuple[Floats, Floats], k: int) -> bool:
        return not any(math.isnan(x) for part in pair for x in part[k])

    shares, distances = [], []
    for mine, others, total in ((asked, made, len(asked[0])), (made, asked, attempted)):
        near = joint = 0
        structures, compositions = [], []
        for k in range(len(mine[0])):
            pairs = [
                (math.dist(mine[0][k], others[0][j]), math.dist(mine[1][k], others[1][j]))
                for j in range(len(others[0]))
                if usable(mine, k) and usable(others, j)
            ]
            structures.append(min((p[0] for p in pairs), default=NAN))
            compositions.append(min((p[1] for p in pairs), default=NAN))
            near += structures[-1] <= cutoffs[0] and compositions[-1] <= cutoffs[1]
            joint += any(p[0] <= cutoffs[0] and p[1] <= cutoffs[1] for p in pairs)
        shares.append((near / total, joint / total))
        distances += [structures, compositions]
    (recall, joint_recall), (precision, joint_precision) = shares
    return [recall, precision, joint_recall, joint_precision], distances


def shares_of(found: Coverage) -> list[float]:
    return [found.recall, found.precision, found.joint_recall, found.joint_precision]


class TestCoverage:
    @given(SEEDS, st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.integers(1, 30))
    @settings(max_examples=60, deadline=None)
    def test_equals_loops_over_pairs(
        self, seed: int, made: int, asked: int, more: int, block: int
    ) -> None:
        rng = np.random.default_rng(seed)
        ours, theirs = fingerprints(rng, made), fingerprints(rng, asked)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(coverage_module, "BLOCK", block)
            found = coverage(
                *ours,
                *theirs,
                attempted=made + more,
                structure_cutoff=1.0,
                composition_cutoff=math.sqrt(2),
            )
        shares, distances = brute_force(ours, theirs, made + more, (1.0, math.sqrt(2)))
        assert shares_of(found) == pytest.approx(shares)
        for mine, expected in zip(
            (
                found.structure_recall,
                found.composition_recall,
                found.structure_precision,
                found.composition_precision,
            ),
            distances,
            strict=True,
        ):
            np.testing.assert_allclose(mine, expected, rtol=1e-12)

    def test_default_cutoffs_are_inclusive_and_those_of_cdvae(self) -> None:
        origin = [[0.0]]
        for structure, composition, covered in (
            (0.4, 10.0, 1.0),
            (0.4001, 10.0, 0.0),
            (0.4, 10.001, 0.0),
        ):
            found = coverage([[structure]], [[composition]], origin, origin, attempted=1)
            assert shares_of(found) == [covered] * 4

    def test_two_neighbours_may_share_the_work(self) -> None:
        """One crystal has the structure, another the composition: covered, but not jointly."""
        found = coverage(
            [[0.0], [9.0]], [[99.0], [0.0]], [[0.1], [50.0]], [[1.0], [900.0]], attempted=4
        )
        assert shares_of(found) == [0.5, 0.0, 0.0, 0.0]
        np.testing.assert_allclose(found.structure_recall, [0.1, 41.0])
        np.testing.assert_allclose(found.composition_recall, [1.0, 801.0])

    def test_what_is_missing_stays_in_the_denominator(self) -> None:
        point, gap = [[0.0], [NAN]], [[0.0], [0.0]]
        found = coverage(point, gap, [[0.0], [0.0], [NAN]], [[0.0]] * 3, attempted=8)
        assert shares_of(found) == [2 / 3, 1 / 8, 2 / 3, 1 / 8]
        assert np.isnan(found.structure_recall).tolist() == [False, False, True]
        assert np.isnan(found.composition_precision).tolist() == [False, True]

    @given(SEEDS, st.floats(0, 3), st.floats(0, 3), st.floats(0, 2), st.floats(0, 2))
    @settings(max_examples=40, deadline=None)
    def test_grows_with_the_cutoffs_and_with_what_is_made(
        self, seed: int, first: float, second: float, more: float, further: float
    ) -> None:
        rng = np.random.default_rng(seed)
        ours, theirs, extra = (fingerprints(rng, n) for n in (8, 9, 4))
        less = coverage(
            *ours, *theirs, attempted=8, structure_cutoff=first, composition_cutoff=second
        )
        wider = coverage(
            *ours,
            *theirs,
            attempted=8,
            structure_cutoff=first + more,
            composition_cutoff=second + further,
        )
        larger = coverage(
            np.vstack([ours[0], extra[0]]),
            np.vstack([ours[1], extra[1]]),
            *theirs,
            attempted=12,
            structure_cutoff=first,
            composition_cutoff=second,
        )
        assert all(a <= b for a, b in zip(shares_of(less), shares_of(wider), strict=True))
        assert less.recall <= larger.recall
        assert less.joint_recall <= larger.joint_recall
        for found in (less, wider, larger):
            assert 0 <= found.joint_recall <= found.recall <= 1
            assert 0 <= found.joint_precision <= found.precision <= 1

    @given(SEEDS)
    @settings(max_examples=20, deadline=None)
    def test_recall_is_precision_seen_from_the_other_side(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ours, theirs = fingerprints(rng, 7), fingerprints(rng, 10)
        one = coverage(*ours, *theirs, attempted=7, structure_cutoff=1, composition_cutoff=1)
        other = coverage(*theirs, *ours, attempted=10, structure_cutoff=1, composition_cutoff=1)
        assert (one.recall, one.joint_recall) == (other.precision, other.joint_precision)
        np.testing.assert_array_equal(one.structure_recall, other.structure_precision)

    def test_empty_sides(self) -> None:
        none, one = np.zeros((0, 2)), np.zeros((1, 2))
        nothing = coverage(none, none, one, one, attempted=3)
        assert shares_of(nothing) == [0.0] * 4
        assert np.isnan(nothing.structure_recall).all()
        no_reference = coverage(one, one, none, none, attempted=1)
        assert math.isnan(no_reference.recall)
        assert no_reference.precision == 0.0
        assert math.isnan(coverage(none, none, one, one, attempted=0).precision)

    def test_wrong_input(self) -> None:
        one, two, wide = np.zeros((1, 2)), np.zeros((2, 2)), np.zeros((1, 3))
        with pytest.raises(InputError, match="below the 2"):
            coverage(two, two, one, one, attempted=1)
        with pytest.raises(InputError, match="generated: fingerprints have shapes"):
            coverage(two, one, one, one, attempted=2)
        with pytest.raises(InputError, match="reference: fingerprints have shapes"):
            coverage(one, one, one, np.zeros(2), attempted=2)
        with pytest.raises(InputError, match="different lengths"):
            coverage(one, one, wide, one, attempted=1)

    @given(st.integers(0, 50), st.integers(0, 50))
    def test_blocks_cover_all_rows_once_within_the_limit(self, rows: int, columns: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(coverage_module, "BLOCK", 60)
            blocks = [range(rows)[block] for block in row_blocks(rows, columns)]
        assert [k for block in blocks for k in block] == list(range(rows))
        assert all(len(block) * columns <= 60 for block in blocks)


# ---------------------------------------------------------------- Fréchet distance


def by_square_root(a: Floats, b: Floats) -> float:
    """The formula as FID implementations have it, with scipy's matrix square root."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    shift = a.mean(0) - b.mean(0)
    return float((shift @ shift + np.trace(first + second - 2 * root)).real)


def crosses(widths: list[float], centre: list[float]) -> tuple[Floats, Floats]:
    """Rows whose covariance is diagonal, and its diagonal."""
    steps = np.diag(widths)
    rows = np.concatenate([steps, -steps]) + np.array(centre)
    return rows, 2 * np.array(widths) ** 2 / (len(rows) - 1)


class TestFrechet:
    def test_diagonal_gaussians(self) -> None:
        a, first = crosses([1.0, 2.0, 0.0], [0.0, 0.0, 0.0])
        b, second = crosses([3.0, 0.5, 4.0], [1.0, -2.0, 0.5])
        expected = 1 + 4 + 0.25 + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)

    def test_one_dimension(self) -> None:
        a, b = np.array([[1.0], [2.0], [6.0]]), np.array([[0.0], [4.0]])
        expected = (3 - 2) ** 2 + (math.sqrt(7) - math.sqrt(8)) ** 2
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)

    @given(SEEDS, st.integers(2, 6))
    @settings(max_examples=25, deadline=None)
    def test_equals_the_matrix_square_root(self, seed: int, columns: int) -> None:
        rng = np.random.default_rng(seed)
        mix = rng.normal(size=(columns, columns)) + 2 * np.eye(columns)
        a = rng.normal(size=(40, columns))
        b = rng.normal(size=(30, columns)) @ mix + 1
        assert frechet_distance(a, b) == pytest.approx(by_square_root(a, b), rel=1e-6)

    @given(SEEDS, st.integers(2, 30), st.integers(2, 30))
    @settings(max_examples=40, deadline=None)
    def test_is_a_squared_distance(self, seed: int, n: int, m: int) -> None:
        """Also with fewer rows than columns, where covariances are singular."""
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=(n, 8)), rng.normal(1, 2, size=(m, 8))
        c = rng.normal(-1, 1, size=(20, 8))
        turn = scipy.linalg.qr(rng.normal(size=(8, 8)))[0]
        shift = rng.normal(size=8)
        apart = frechet_distance(a, b)
        assert apart >= 0
        assert frechet_distance(b, a) == pytest.approx(apart, rel=1e-9)
        assert frechet_distance(a @ turn + shift, b @ turn + shift) == pytest.approx(
            apart, rel=1e-9
        )
        assert frechet_distance(a, rng.permutation(a)) == pytest.approx(0.0, abs=1e-12)
        assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * apart, rel=1e-9)
        assert math.sqrt(apart) <= math.sqrt(frechet_distance(a, c)) + math.sqrt(
            frechet_distance(c, b)
        )

    def test_singular_covariances(self) -> None:
        rng = np.random.default_rng(3)
        a, b = rng.normal(size=(50, 3)), rng.normal(1, 2, size=(40, 3))
        frame = scipy.linalg.qr(rng.normal(size=(30, 30)))[0][:3]
        assert frechet_distance(a @ frame, b @ frame) == pytest.approx(by_square_root(a, b))
        x, y = np.zeros((4, 2)), np.zeros((4, 2))
        x[:, 0], y[:, 1] = [-1, 1, -1, 1], [-2, 2, -2, 2]
        assert frechet_distance(x, y) == pytest.approx(4 / 3 + 16 / 3)

    def test_too_few_rows(self) -> None:
        assert math.isnan(frechet_distance(np.zeros((1, 2)), np.zeros((5, 2))))
        assert math.isnan(frechet_distance(np.zeros((5, 2)), np.zeros((0, 2))))

    def test_rows_without_features(self) -> None:
        rows = np.array([[1.0, 2.0], [NAN, 0.0], [3.0, np.inf], [4.0, 5.0]])
        np.testing.assert_array_equal(finite_rows(rows), [[1.0, 2.0], [4.0, 5.0]])
        with pytest.raises(InputError, match="finite"):
            frechet_distance(rows, rows)
        with pytest.raises(InputError, match="2 and 3 columns"):
            frechet_distance(np.zeros((4, 2)), np.zeros((4, 3)))

    def test_halves_tell_the_floor(self) -> None:
        """Two sets of h rows of d independent unit Gaussians: means are 2 d / h apart, covariances
        |ΔC|² / 4 = (2 d² + 2 d) / 4 h, to first order."""
        generator = np.random.default_rng(0)
        rows = generator.normal(size=(4000, 6))
        halves = (np.split(generator.permutation(rows), 2) for _ in range(200))
        mean = np.mean([frechet_distance(a, b) for a, b in halves])
        assert mean == pytest.approx((2 * 6 + (2 * 36 + 2 * 6) / 4) / 2000, rel=0.1)


# ---------------------------------------------------------------- distributions


class TestDistributions:
    @given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), SEEDS)
    def test_wasserstein_of_equal_counts_pairs_sorted_values(
        self, values: list[float], seed: int
    ) -> None:
        other = np.random.default_rng(seed).normal(size=len(values))
        expected = np.abs(np.sort(values) - np.sort(other)).mean()
        assert wasserstein(values, other) == pytest.approx(expected, abs=1e-9)
        assert wasserstein(other, values) == pytest.approx(expected, abs=1e-9)

    def test_wasserstein_by_hand(self) -> None:
        assert wasserstein([0.0, 2.0], [1.0]) == 1.0
        assert wasserstein([0.0, NAN, 2.0, np.inf], [1.0, NAN]) == 1.0
        assert math.isnan(wasserstein([], [1.0]))
        assert math.isnan(wasserstein([1.0], [NAN]))

    @given(
        st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=8).filter(
            lambda pairs: all(any(column) for column in zip(*pairs, strict=True))
        )
    )
    def test_jensen_shannon_by_its_definition(self, pairs: list[tuple[int, int]]) -> None:
        p, q = (np.array(column) / sum(column) for column in zip(*pairs, strict=True))
        middle = (p + q) / 2
        divergence = sum(
            0.5 * x * math.log(x / m)
            for side in (p, q)
            for x, m in zip(side, middle, strict=True)
            if x
        )
        found = jensen_shannon(*zip(*pairs, strict=True))
        assert found**2 == pytest.approx(divergence, abs=1e-12)
        assert 0 <= found <= FARTHEST + 1e-12
        assert jensen_shannon(*[column[::-1] for column in zip(*pairs, strict=True)]) == (
            pytest.approx(found, abs=1e-7)
        )

    def test_jensen_shannon_at_its_ends(self) -> None:
        assert jensen_shannon([1, 2, 3], [10, 20, 30]) == pytest.approx(0.0, abs=1e-7)
        assert jensen_shannon([1, 0], [0, 7]) == pytest.approx(FARTHEST)
        assert math.isnan(jensen_shannon([0, 0], [1, 2]))
        for wrong in ([-1, 2], [NAN, 1], [1, 2, 3]):
            with pytest.raises(InputError, match="histograms"):
                jensen_shannon(wrong, [1, 1])

    def test_all_230_groups_have_a_bin(self) -> None:
        assert space_group_divergence([229], [230]) == pytest.approx(FARTHEST)
        bins = range(1, 231)  # as published: 229 edges-to-edge bins, the last one closed
        assert np.histogram([229], bins)[0].tolist() == np.histogram([230], bins)[0].tolist()
        for number in range(1, 230):
            assert space_group_divergence([number], [number + 1]) == pytest.approx(FARTHEST)
        everything = np.arange(1, 231)
        assert space_group_divergence(everything, everything) == pytest.approx(0.0, abs=1e-7)

    def test_groups_by_hand(self) -> None:
        # p = (1/2, 1/2), q = (1, 0): JS² = ½[½ ln(2/3) + ½ ln 2] + ½ ln(4/3)
        expected = math.sqrt(0.25 * math.log(2 / 3) + 0.25 * math.log(2) + 0.5 * math.log(4 / 3))
        assert space_group_divergence([1, 225, 0], [1, 1, 1]) == pytest.approx(expected)
        assert element_divergence([11, 17], [11]) == pytest.approx(expected)
        assert math.isnan(space_group_divergence([0], [1]))
        with pytest.raises(InputError, match="231 is not in 0 to 230"):
            space_group_divergence([1, 231], [1])
        with pytest.raises(InputError, match="-1"):
            element_divergence([-1], [1])

    def test_reference_against_itself(self, reference: StructureSet) -> None:
        assert space_group_divergence(reference.group, reference.group) == pytest.approx(0.0)
        assert element_divergence(reference.numbers, reference.numbers) == pytest.approx(0.0)
        half = len(reference) // 2
        apart = space_group_divergence(reference.group[:half], reference.group[half:])
        assert 0 < apart < FARTHEST

    def test_lattices(self) -> None:
        a = np.array([[3.0, 4, 5, 90, 90, 90], [4.0, 4, 5, 90, 90, 120]])
        b = np.array([[3.0, 4, 6, 90, 80, 90]])
        np.testing.assert_allclose(lattice_wasserstein(a, b), [0.5, 0, 1, 0, 10, 15])
        assert np.isnan(lattice_wasserstein(a, np.zeros((0, 6)))).all()
        with pytest.raises(InputError, match="not \\(n, 6\\)"):
            lattice_wasserstein(a[:, :3], b[:, :3])


class TestGroups:
    def test_p1(self) -> None:
        assert p1_share([1, 2, 1, 0], attempted=8) == 0.25
        assert math.isnan(p1_share([], attempted=0))
        with pytest.raises(InputError, match="below the 2"):
            p1_share([1, 1], attempted=1)

    def test_retention_by_hand(self) -> None:
        """Fm-3m asked five times, Pm-3m once (Im-3m found: more translations, same point group),
        nothing asked once, one structure missing."""
        asked = [225, 225, 225, 225, 225, 221, 0]
        found = [[225, 225], [1, 225], [166, 225], [0, 1], [216, 225], [229, 221], [1, 225]]
        kept = group_retention(asked, found, attempted=8)
        np.testing.assert_allclose(kept.kept, [1 / 7, 5 / 7])
        np.testing.assert_allclose(kept.higher, [0, 0])
        np.testing.assert_allclose(kept.lost, [6 / 7, 2 / 7])
        up = group_retention([1, 216, 166, 62], [[2], [225], [225], [19]], attempted=4)
        assert (up.kept[0], up.higher[0], up.lost[0]) == (0, 0.75, 0.25)

    @given(
        st.lists(st.tuples(st.integers(0, 230), st.integers(0, 230)), min_size=1, max_size=20),
        st.integers(0, 5),
    )
    @settings(deadline=None)
    def test_retention_adds_up(self, pairs: list[tuple[int, int]], missing: int) -> None:
        asked, found = np.array(pairs).T
        result = group_retention(asked, found[:, None], attempted=len(pairs) + missing)
        total = np.count_nonzero(asked) + missing
        if not total:
            assert np.isnan([result.kept, result.higher, result.lost]).all()
            return
        same = sum(a == b for a, b in pairs if a)
        up = sum(rotations(b) > rotations(a) for a, b in pairs if a and b)
        assert result.kept[0] == pytest.approx(same / total)
        assert result.higher[0] == pytest.approx(up / total)
        assert result.kept[0] + result.higher[0] + result.lost[0] == pytest.approx(1)
        assert result.lost[0] >= missing / total - 1e-12

    def test_no_request(self) -> None:
        assert np.isnan(group_retention([0, 0], [[1], [2]], attempted=2).kept).all()

    def test_wrong_input(self) -> None:
        with pytest.raises(InputError, match="shape"):
            group_retention([1, 2], [1, 2], attempted=2)
        with pytest.raises(InputError, match="231"):
            group_retention([1], [[231]], attempted=1)
        with pytest.raises(InputError, match="below"):
            group_retention([1, 1], [[1], [1]], attempted=1)


ROTATIONS: dict[int, int] = {}


def rotations(number: int) -> int:
    """Different rotations of a space group in spglib's database: the order of its point group."""
    if number not in ROTATIONS:
        database = spglib.get_symmetry_from_database(SpaceGroup(number).hall_number)
        assert database is not None
        ROTATIONS[number] = len({r.tobytes() for r in database["rotations"]})
    return ROTATIONS[number]


class TestDiversity:
    def test_formulas(self, reference: StructureSet) -> None:
        assert formula_diversity(["Na1 Cl1", "K1 Cl1", "Na1 Cl1"], attempted=4) == 0.5
        assert math.isnan(formula_diversity([], attempted=0))
        with pytest.raises(InputError, match="below the 1"):
            formula_diversity(["K1"], attempted=0)
        again = [*reference.formulas, *reference.formulas]
        once = formula_diversity(reference.formulas, len(reference))
        assert formula_diversity(again, len(again)) == pytest.approx(once / 2)

    @given(SEEDS, st.integers(2, 12), st.integers(1, 40))
    @settings(max_examples=30, deadline=None)
    def test_fingerprints(self, seed: int, count: int, block: int) -> None:
        rows = np.random.default_rng(seed).normal(size=(count, 5))
        gaps = np.vstack([rows, np.full((2, 5), NAN)])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(coverage_module, "BLOCK", block)
            assert fingerprint_diversity(gaps) == pytest.approx(pdist(rows).mean())

    def test_too_few_fingerprints(self) -> None:
        assert fingerprint_diversity([[0.0, 0.0], [3.0, 4.0]]) == 5.0
        assert math.isnan(fingerprint_diversity([[1.0], [NAN]]))


# ---------------------------------------------------------------- validity


def by_enumeration(formula: str) -> bool:
    """CDVAE's loop over all combinations of oxidation states, with smact's own tests."""
    amounts = {part.rstrip("0123456789"): part for part in formula.split()}
    counts = [int(part[len(symbol) :]) for symbol, part in amounts.items()]
    elements = [smact.Element(symbol) for symbol in amounts]
    if len(elements) == 1 or all(symbol in smact.metals for symbol in amounts):
        return True
    for states in itertools.product(*(e.oxidation_states_smact14 or [] for e in elements)):
        choices = [(count,) for count in counts]
        if smact.neutral_ratios(states, stoichs=choices, threshold=max(counts)):
            try:
                passed = pauling_test(states, [e.pauling_eneg for e in elements])
            except TypeError:
                passed = True
            if passed:
                return True
    return False


KNOWN = {
    "Na1 Cl1": True,
    "Na1 Cl2": False,  # Cl is -1 or positive, Na at most +1
    "Mg1 O1": True,
    "Al2 O3": True,
    "Al1 O3": True,  # as Al3+ and 3 O-: the rules know peroxides, not their limits
    "Al3 O1": False,  # Al at least +1, O at least -2
    "Ca1 F2": True,
    "Ca1 F3": False,
    "Ba1 Ti1 O3": True,
    "Fe3 O4": False,  # one state per element: no mixed valence
    "Fe2 O3": True,
    "Li1 Fe1 O4 P1": True,
    "Cu1 Zn1": True,  # metals alone
    "Fe1": True,
    "C1": True,
    "C1 Si1": True,
    "Ga1 N1": True,
    "Cs1 Pb1 I3": True,
    "Li7 O1": False,
    "He1 Na2": False,
    "F1 O1": True,
}


MIXED = (
    *("H", "C", "N", "O", "F", "Na", "Mg", "P", "S", "Cl", "K"),
    *("Ti", "Mn", "Fe", "Se", "Zr", "Pm", "Eu", "Te", "Xe", "Ne"),
)


class TestStructureValidity:
    def test_limits(self) -> None:
        distances = [0.5, 0.4999, 2.0, 2.0, NAN, 2.0, np.inf]
        volumes = [0.1, 50.0, 0.0999, 50.0, 50.0, NAN, 20.0]
        expected = [True, False, False, True, False, False, True]
        assert structure_valid(distances, volumes).tolist() == expected


class TestCompositionValidity:
    @pytest.mark.parametrize("formula", KNOWN)
    def test_known_compositions(self, formula: str) -> None:
        assert composition_valid(formula) is KNOWN[formula]

    def test_reference_equals_smact_and_the_loop(self, reference: StructureSet) -> None:
        formulas = sorted(set(reference.formulas))
        valid, reasons = compositions_valid(formulas)
        theirs = [
            smact_validity(formula.replace(" ", ""), oxidation_states_set="smact14")
            for formula in formulas
        ]
        assert valid.tolist() == theirs == [by_enumeration(formula) for formula in formulas]
        assert set(reasons) == {f for f, ok in zip(formulas, valid, strict=True) if not ok}
        assert valid.any()

    @given(
        st.dictionaries(
            st.sampled_from(MIXED),
            st.integers(1, 6),
            min_size=1,
            max_size=4,
        )
    )
    @settings(max_examples=150, deadline=None)
    def test_any_composition_equals_smact(self, amounts: dict[str, int]) -> None:
        formula = " ".join(f"{symbol}{count}" for symbol, count in amounts.items())
        theirs = smact_validity(formula.replace(" ", ""), oxidation_states_set="smact14")
        assert composition_valid(formula) == theirs

    def test_multiples_and_order_do_not_matter(self) -> None:
        for formula in ("Al2 O3", "O6 Al4", "Al20 O30"):
            assert composition_valid(formula)

    def test_reasons(self) -> None:
        for formula, reason in {
            "Na1 Cl2": "no neutral combination",
            "He1 Na2": "no oxidation states for He",
            "O3 Pm2": "no electronegativity",
            "Li1 H1": "",
            "Rf1 O2": "smact does not know Rf",
            "Og1": "smact does not know Og",
            "X1 O1": "smact does not know X",
            "Na0.5 Cl0.5": "not whole numbers",
            "what?": "cannot be read",
            "": "cannot be read",
        }.items():
            fault = composition_fault(formula)
            assert (reason in fault) if reason else not fault

    def test_pauling_decides(self) -> None:
        """Five Na are neutral with P⁵⁺ only, as Na⁻; C and Se are equally electronegative."""
        assert "electronegative" in composition_fault("Na5 P1")
        assert composition_valid("Na3 P1")
        assert "electronegative" in composition_fault("C1 Se2")
        assert composition_valid("C1 S2")

    def test_many_elements_take_no_time(self) -> None:
        """About 4·10¹¹ combinations of states."""
        formula = "Mn7 Tc3 Os5 Ir2 Ru3 Re4 W5 Cr3 O1 P7 C9 N2 S3"
        composition_valid("Mn1 Tc1 Os1 Ir1 Ru1 Re1 W1 Cr1 O1 P1 C1 N1 S1")  # loads smact's tables
        started = time.perf_counter()
        composition_fault(formula)
        assert time.perf_counter() - started < 1.0

    def test_lists(self) -> None:
        valid, reasons = compositions_valid(["Na1 Cl2", "Na1 Cl1", "Na1 Cl2"])
        assert valid.tolist() == [False, True, False]
        assert list(reasons) == ["Na1 Cl2"]
        none, nothing = compositions_valid([])
        assert none.shape == (0,)
        assert none.dtype == bool
        assert nothing == {}

    def test_description(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert describe().startswith("smact ")
        assert describe().endswith(", smact14 oxidation states")
        monkeypatch.setitem(sys.modules, "smact", None)
        with pytest.raises(MissingPackageError, match="pip install"):
            describe()
