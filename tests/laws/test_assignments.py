"""Enumeration of Wyckoff assignments, against brute force, counting and crystals built."""

from __future__ import annotations

from collections import Counter
from itertools import combinations_with_replacement, islice, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import RequestError, SymmetryError
from langevin_xtal.symmetry import SpaceGroup, site_by_site
from langevin_xtal.symmetry import assignments as module
from langevin_xtal.symmetry.assignments import (
    LIMIT,
    Assignment,
    assignments,
    canonical,
    canonical_all,
    count_assignments,
)
from langevin_xtal.symmetry.explanations import explain
from langevin_xtal.symmetry.fitting import first_z, fits, smallest_z
from langevin_xtal.symmetry.normaliser import position_permutations
from langevin_xtal.symmetry.site_by_site import Partial, SiteBySite
from langevin_xtal.symmetry.sites import orbit
from langevin_xtal.symmetry.wyckoff import locate, origin_shifts, wyckoff_positions
from tests.crystals import random_lattice

ALL_GROUPS = range(1, 231)


def every_way(number: int, counts: tuple[int, ...]) -> set[Assignment]:
    """All assignments, equivalent ones too, by trying every multiset of positions."""
    positions = wyckoff_positions(number)
    smallest = min(w.multiplicity for w in positions)
    choices = [
        [
            chosen
            for sites in range(1, count // smallest + 1)
            for chosen in combinations_with_replacement(range(len(positions)), sites)
            if sum(positions[w].multiplicity for w in chosen) == count
        ]
        for count in counts
    ]
    found = set()
    for ways in product(*choices):
        used = Counter(w for element in ways for w in element)
        if all(n == 1 or positions[w].freedom for w, n in used.items()):
            found.add(ways)
    return found


def images(number: int, assignment: Assignment) -> set[Assignment]:
    return {
        tuple(tuple(sorted(int(row[w]) for w in element)) for element in assignment)
        for row in position_permutations(number)
    }


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_against_brute_force(number):
    positions = wyckoff_positions(number)
    least = positions[0].multiplicity
    for counts in ((2 * least, least), (least, 3 * least) if len(positions) < 15 else (least,)):
        found = assignments(number, counts)
        listed = list(found)
        assert found.complete
        assert len(set(listed)) == len(listed) == count_assignments(number, counts)
        everything: set[Assignment] = set()
        for assignment in listed:
            mine = images(number, assignment)
            assert not everything & mine, "an equivalent assignment was listed twice"
            everything |= mine
            assert canonical(number, assignment)[0] == assignment
        assert everything == every_way(number, counts)
        assert fits(number, counts) == bool(listed)


@pytest.mark.parametrize("number", ALL_GROUPS)
def test_permutations_are_a_group_that_keeps_what_positions_are(number):
    rows = position_permutations(number)
    as_set = {tuple(row) for row in rows.tolist()}
    positions = wyckoff_positions(number)
    assert rows[0].tolist() == list(range(len(positions)))
    assert {tuple(row) for row in origin_shifts(number).tolist()} <= as_set
    assert {tuple(a[b].tolist()) for a in rows for b in rows} == as_set
    for row in rows:
        for w, image in zip(positions, row.tolist(), strict=True):
            assert w.multiplicity == positions[image].multiplicity
            assert w.freedom == positions[image].freedom


GAINED = (22, 82, 93, 98, 119, 149, 174, 195, 196, 200, 208, 214, 216, 220)


@pytest.mark.parametrize("number", [*GAINED, 2, 14, 47, 123, 166, 221, 225, 227])
def test_renamed_crystals_match(number):
    """Built on positions without freedom, a crystal and its images are the same for pymatgen."""
    positions = [w for w in wyckoff_positions(number) if not w.freedom]
    group, rng = SpaceGroup(number), np.random.default_rng(number)
    lattice = random_lattice(number, rng, 400.0)
    if not positions:
        pytest.skip("no position without freedom")
    chosen = [positions[k].index for k in rng.permutation(len(positions))[:3]]

    def crystal(names: list[int]) -> Structure:
        species, frac = [], []
        for symbol, name in zip(("Na", "Cl", "K"), names, strict=False):
            w = wyckoff_positions(number)[name]
            points, _ = orbit(w.base, group.rotations, group.translations, lattice)
            species += [symbol] * len(points)
            frac += points.tolist()
        return Structure(lattice, species, frac)

    matcher = StructureMatcher(ltol=0.01, stol=0.01, angle_tol=0.1, scale=False)
    first = crystal(chosen)
    for row in position_permutations(number)[1:]:
        assert matcher.fit(first, crystal([int(row[w]) for w in chosen]))


@given(data=st.data(), number=st.integers(1, 230))
@settings(max_examples=100, deadline=None)
def test_canonical_is_the_same_for_all_images(data, number):
    count = len(wyckoff_positions(number))
    sites = st.lists(st.integers(0, count - 1), min_size=1, max_size=5).map(sorted).map(tuple)
    assignment = tuple(data.draw(st.lists(sites, min_size=1, max_size=4)))
    best, row = canonical(number, assignment)
    names = position_permutations(number)[row]
    assert best == tuple(tuple(sorted(int(names[w]) for w in e)) for e in assignment)
    same = sorted(images(number, assignment))
    assert {canonical(number, image)[0] for image in same} == {best}
    assert canonical_all(number, same) == [best] * len(same)


@given(
    number=st.integers(1, 230),
    units=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    z=st.integers(1, 8),
)
@settings(max_examples=150, deadline=None)
def test_any_request_is_answered_within_its_limit(number, units, z):
    counts = [z * n for n in units]
    found = assignments(number, counts, limit=300)
    listed = list(found)
    assert len(listed) == min(300, count_assignments(number, counts))
    assert found.complete == (count_assignments(number, counts) <= 300)
    positions = wyckoff_positions(number)
    for assignment in listed:
        for count, element in zip(counts, assignment, strict=True):
            assert sum(positions[w].multiplicity for w in element) == count
            assert list(element) == sorted(element)
        used = Counter(w for element in assignment for w in element)
        assert all(n == 1 or positions[w].freedom for w, n in used.items())


@pytest.mark.parametrize("number", [65, 123, 166, 225])
def test_four_elements_in_large_cells(number):
    """The first ones come at once, however many there are."""
    counts = [24, 48, 72, 96]
    found = assignments(number, counts)
    listed = list(islice(found, 30))
    assert len(set(listed)) == 30
    assert not found.complete
    assert count_assignments(number, counts) > 10**3


BEYOND_LIMIT = {"YBa2Cu3O7"}
"""Of eight million assignments in Pmmm, the first 20,000 lack the true one."""


class TestSiteBySite:
    """Steps that can be completed, against every way there is."""

    @staticmethod
    def walk(steps: SiteBySite, partial: Partial, number: int) -> list[tuple[int, ...]]:
        """Positions of every completion, one site after the other; no step leads nowhere."""
        if partial.element == len(steps.counts) - 1 and not partial.sites_left:
            return [()]
        found = []
        for w in range(len(wyckoff_positions(number))):
            after = steps.after(partial, w)
            if after is not None:
                found += [(w, *rest) for rest in TestSiteBySite.walk(steps, after, number)]
        assert found, "a step was allowed that cannot be completed"
        return found

    @given(
        number=st.sampled_from([1, 2, 12, 14, 25, 62, 115, 139, 166, 174, 191, 216, 221, 225]),
        units=st.lists(st.integers(1, 3), min_size=1, max_size=3),
        data=st.data(),
    )
    @settings(max_examples=60, deadline=None)
    def test_it_makes_all_and_only_those(self, number, units, data):
        least = wyckoff_positions(number)[0].multiplicity
        z = data.draw(st.sampled_from([least, 2 * least]))
        counts = tuple(z * n for n in units)
        if count_assignments(number, counts) > 150:
            return
        steps, made = SiteBySite(number, counts), set()
        for sites, share in steps.site_counts().items():
            assert 0 < share <= 1
            begun = steps.start(sites)
            assert begun is not None
            for chosen in self.walk(steps, begun, number):
                ends = np.cumsum(sites)
                listed = zip(ends, sites, strict=True)
                assignment = tuple(chosen[end - n : end] for end, n in listed)
                assert assignment not in made
                made.add(assignment)
        everything = {
            image for found in assignments(number, counts) for image in images(number, found)
        }
        assert made == everything

    def test_shares_are_those_of_the_costs(self):
        """Summed over all ways to place AB3 in Pmmm, position by position."""
        counts = (2, 4)
        cost = {w: kind.cost for kind in module._kinds(47).ordered for w in kind.positions}
        weights: Counter[tuple[int, ...]] = Counter()
        for way in every_way(47, counts):
            spent = sum(cost[w] for element in way for w in element)
            weights[tuple(map(len, way))] += np.exp(-spent / 4)
        shares = SiteBySite(47, counts).site_counts()
        assert shares.keys() == weights.keys()
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
        for sites, share in shares.items():
            assert share == pytest.approx(weights[sites] / sum(weights.values()))

    def test_numbers_of_sites_that_nothing_has(self):
        assert SiteBySite(225, [4, 4]).site_counts() == {(1, 1): pytest.approx(1.0)}
        assert SiteBySite(225, [4, 4]).start((2, 1)) is None
        assert SiteBySite(225, [12]).start((2,)) is not None  # 4 + 8
        assert SiteBySite(225, [4, 4, 4]).site_counts() == {}
        with pytest.raises(RequestError, match="give 1 to"):
            SiteBySite(225, [0])

    def test_elements_leave_positions_for_those_after_them(self):
        """Cs takes 1a or 1b, so that 1 + 1 + 3 and 3 more atoms fit; not 3c and 3d both."""
        steps = SiteBySite(221, [3, 1, 1])
        begun = steps.start((1, 1, 1))
        assert begun is not None
        after = steps.after(begun, 2)
        assert after is not None
        assert [w for w in range(14) if steps.after(after, w) is not None] == [0, 1]

    def test_large_cells_are_bounded(self):
        """Hundreds of atoms: what is left out is said in the documentation, and the rest fits."""
        counts = [16, 24, 32, 40, 48]
        steps = SiteBySite(47, counts)
        shares = steps.site_counts()
        assert 0 < len(shares) <= site_by_site.LIKELY_SITES
        for sites in shares:
            assert sum(sites) <= site_by_site.MOST_SITES
            assert steps.start(sites) is not None


class TestKnownCounts:
    def test_textbook_structures(self):
        assert count_assignments(225, [4, 4]) == 1  # rock salt
        assert count_assignments(225, [8, 4]) == 1  # fluorite
        assert count_assignments(216, [4, 4, 4]) == 3  # half-Heusler: which one is in between
        assert count_assignments(221, [1, 1, 3]) == 2  # perovskite: which one is at the corners
        assert count_assignments(227, [8]) == 1  # diamond
        assert list(assignments(227, [8])) == [((0,),)]

    def test_large_numbers_are_exact(self):
        assert count_assignments(1, [500, 300]) == 1
        # Pm: two mirrors, a shift swaps them; of n atoms on mirrors k lie on the first
        per_pair = sum((20 - 2 * general) // 2 + 1 for general in range(11))
        assert count_assignments(6, [20]) == per_pair
        ways = len(every_way(6, (5,)))
        orbits = {min(images(6, a)) for a in every_way(6, (5,))}
        assert count_assignments(6, [5]) == len(orbits) < ways

    def test_known_structure_types_are_found(self):
        data = reference_dataset()
        for k in range(len(data)):
            sites, number = data.sites_of(k), int(data.group[k])
            wyckoff = [locate(number, f, data.lattice[k]).index for f in data.frac[sites]]
            elements = np.unique(data.numbers[sites])
            held = [np.flatnonzero(data.numbers[sites] == e) for e in elements]
            true = tuple(tuple(sorted(wyckoff[s] for s in h)) for h in held)
            counts = [int(data.multiplicity[sites][h].sum()) for h in held]
            found = assignments(number, counts)
            listed = canonical(number, true)[0] in set(found)
            assert listed or data.id[k] in BEYOND_LIMIT, data.id[k]
            assert listed or not found.complete


class TestLimits:
    def test_limit(self):
        found = assignments(62, [12, 4], limit=3)
        assert len(list(found)) == 3
        assert not found.complete
        exact = assignments(62, [12, 4], limit=count_assignments(62, [12, 4]))
        assert len(list(exact)) == count_assignments(62, [12, 4])
        assert exact.complete
        assert list(assignments(62, [12, 4], limit=0)) == []

    def test_default_limit(self):
        found = assignments(47, [7, 3, 2, 1])
        assert len(list(found)) == LIMIT < count_assignments(47, [7, 3, 2, 1])
        assert not found.complete

    def test_nothing_fits(self):
        found = assignments(62, [6, 2])
        assert list(found) == []
        assert found.complete
        assert next(found, None) is None

    def test_max_sites(self):
        everything = list(assignments(123, [2, 4]))
        few = [a for a in everything if sum(map(len, a)) <= 2]
        found = assignments(123, [2, 4], max_sites=2)
        assert sorted(found) == sorted(few)
        assert found.complete
        assert 0 < len(few) < len(everything)

    def test_work_is_bounded(self, monkeypatch):
        monkeypatch.setattr(module, "WORK_LIMIT", 3)
        found = assignments(47, [8, 8])
        listed = list(found)
        assert len(listed) < 1000
        assert not found.complete

    def test_order_does_not_depend_on_the_limit(self):
        assert list(assignments(71, [8, 4], limit=40)) == list(assignments(71, [8, 4]))[:40]

    @pytest.mark.parametrize("counts", [[], [0], [4, -1], [10**9]])
    def test_bad_counts(self, counts):
        with pytest.raises(RequestError, match="give"):
            assignments(62, counts)

    def test_bad_group(self):
        with pytest.raises(SymmetryError, match="231"):
            count_assignments(231, [1])


class TestExplanations:
    def test_multiplicities_do_not_add_up(self):
        text = explain(62, {"Cu": 3, "Si": 1}, 2)
        assert text.startswith("Cu3Si with Z = 2 (6 Cu and 2 Si) does not fit Pnma (62): ")
        assert "hold 4 or 8 atoms, which cannot add up to 6 Cu and 2 Si" in text
        assert "Z = 4 (12 Cu and 4 Si), 8 or 12 fits" in text
        assert "and Z = 2 in Pmmn (59)" in text
        assert smallest_z(62, [3, 1], upto=12) == (4, 8, 12)

    @given(number=st.integers(1, 230), counts=st.lists(st.integers(1, 4), min_size=1, max_size=3))
    @settings(max_examples=60, deadline=None)
    def test_the_first_is_the_first_of_all(self, number, counts):
        fitting = smallest_z(number, counts, 6)
        assert first_z(number, counts, 6) == (fitting[0] if fitting else None)

    def test_fixed_positions_are_used_up(self):
        text = explain(221, {"Cs": 1, "Pb": 1, "I": 1}, 1)
        assert "hold one site over all elements, and there are too few" in text
        assert fits(221, [1, 1])
        assert not fits(221, [1, 1, 1])

    def test_one_element_uses_them_up(self):
        """Positions of 4, 4 and 8 atoms: their multiplicities reach 20, single sites do not."""
        assert not fits(225, [20])
        assert "hold one site;" in explain(225, {"Cu": 5}, 4)

    def test_it_fits(self):
        assert explain(225, {"Li": 3, "Bi": 1}, 4) == "Li3Bi with Z = 4 fits Fm-3m (225), in 1 way"

    def test_what_it_says_is_true(self):
        for number in (19, 62, 148, 167, 198, 206, 220, 225, 230):
            for z in (1, 2, 3, 5):
                text = explain(number, {"A": 1, "B": 2}, z)
                assert fits(number, [z, 2 * z]) == ("does not fit" not in text)
                if "does not fit" in text:
                    units = int(text.rpartition("; Z = ")[2].split()[0])
                    assert fits(number, [units, 2 * units])
                    assert all(not fits(number, [n, 2 * n]) for n in range(1, units))
