"""From the end of a chain to a crystal: known structures, and the group in every group."""

from __future__ import annotations

import numpy as np
import pytest
from ase.spacegroup import crystal as ase_crystal

from langevin_xtal.config.tolerances import SYMPRECS
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.distances import nearest_pair
from langevin_xtal.crystal.request import Request
from langevin_xtal.model.prior import covalent_radii
from langevin_xtal.sampling.postprocess import (
    FRACTIONS,
    PostprocessConfig,
    Rejection,
    contains_group,
)
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.symmetry.detection import group_numbers
from langevin_xtal.symmetry.wyckoff import wyckoff_positions
from tests.candidates import candidate, finished, random_candidate

CUBE = 5.64 * np.eye(3)
ROCK_SALT = Request("Fm-3m", {"Na": 1, "Cl": 1})


def off(direction: list[float], distance: float, lattice: np.ndarray) -> np.ndarray:
    """Fractional displacement by ``distance`` [Å]."""
    vector = np.array(direction) / np.linalg.norm(direction)
    return distance * vector @ np.linalg.inv(lattice)


class TestKnownStructures:
    @pytest.mark.parametrize("direction", [[1, 0, 0], [1, 1, 0], [0.3, -0.8, 0.5], [-1, -1, -1]])
    def test_displaced_rock_salt(self, direction: list[float]) -> None:
        shift = off(direction, 0.1, CUBE)
        c = candidate(ROCK_SALT, [shift, np.array([0.5, 0.5, 0.5]) - shift], CUBE)
        np.testing.assert_allclose(c.frac, [[0, 0, 0], [0.5, 0.5, 0.5]], atol=1e-15)
        assert c.multiplicity.tolist() == [4, 4]
        assert c.formula == "NaCl"
        assert c.detected == dict.fromkeys(SYMPRECS, 225)
        assert not c.is_supergroup
        assert c.min_distance == pytest.approx(2.82)
        assert c.volume == pytest.approx(5.64**3)
        assert c.structure.composition.reduced_formula == "NaCl"
        expected = ase_crystal(
            ["Na", "Cl"],
            [(0, 0, 0), (0.5, 0.5, 0.5)],
            spacegroup=225,
            cellpar=[5.64] * 3 + [90] * 3,
        )
        assert len(c.atoms) == len(expected) == 8
        distances = np.sort(c.atoms.get_all_distances(mic=True).ravel())
        np.testing.assert_allclose(
            distances, np.sort(expected.get_all_distances(mic=True).ravel()), atol=1e-9
        )

    def test_beyond_the_radius_sites_stay(self) -> None:
        wide, narrow = PostprocessConfig(merge=0.3), PostprocessConfig(merge=0.05)
        shift = off([0.3, -0.8, 0.5], 0.1, CUBE)
        sites = [shift, [0.5, 0.5, 0.5]]
        assert isinstance(finished(ROCK_SALT, sites, CUBE, wide), Candidate)
        result = finished(ROCK_SALT, sites, CUBE, narrow)
        assert isinstance(result, Rejection)
        assert result.reason.startswith("overlap: Na-Na 0.")
        assert (result.index, result.attempt, result.request) == (2, 1, ROCK_SALT)

    def test_a_site_that_left_its_position(self) -> None:
        """A general position of 192 atoms that ends near a special one of 4."""
        shift = off([0.3, -0.8, 0.5], 0.1, CUBE)
        sites = [shift, [0.5, 0.5, 0.5]]
        general = wyckoff_positions(225)[-1]
        assert general.multiplicity == 192
        free = finished(ROCK_SALT, sites, CUBE)
        assert isinstance(free, Candidate)
        assert free.multiplicity.tolist() == [4, 4]
        # on its position it stays where it is, and so its copies overlap
        kept = finished(ROCK_SALT, sites, CUBE, positions=(general.index, 1))
        assert isinstance(kept, Rejection)
        assert kept.reason.startswith("overlap: Na-Na 0.")
        collapsed = finished(
            ROCK_SALT, [[1e-5, 0, 0], [0.5, 0.5, 0.5]], CUBE, positions=(general.index, 1)
        )
        assert isinstance(collapsed, Rejection)
        assert collapsed.reason == (
            "collapsed: Na was to have 192 atoms in the cell, and its site ended where it has 4"
        )

    def test_a_site_on_its_position_is_not_merged(self) -> None:
        """Free, it snaps to the special position 0.1 Å away; assigned, it keeps its freedom."""
        lattice = np.diag([9.0, 8.0, 10.0])
        point = [0.131, 0.25 + 0.1 / 8, 0.211]  # of Pnma, near its mirror plane
        request = Request(62, {"Cu": 1})
        free = finished(request, [point], lattice)
        assert isinstance(free, Candidate)
        assert free.multiplicity.tolist() == [4]
        config = PostprocessConfig(min_distance=0.1)
        kept = finished(request, [point], lattice, config, positions=(3,))
        assert isinstance(kept, Candidate)
        assert kept.multiplicity.tolist() == [8]
        assert kept.frac.tolist() == [point]
        assert kept.min_distance == pytest.approx(0.2)

    @pytest.mark.parametrize("number", [1, 2, 14, 62, 99, 166, 167, 194, 213, 225])
    def test_rounding_keeps_positions(self, number: int) -> None:
        """In the group's positions, what is within reach is a simple fraction, and no other."""
        within, rng = 0.15, np.random.default_rng(number)
        table = wyckoff_positions(number)
        lattice = random_candidate(number).lattice
        loose = PostprocessConfig(min_distance=0.0, round_within=within)
        rounded = 0
        for w in (w for w in table if w.freedom):
            values = rng.uniform(0, 1, w.freedom)
            request = Request(number, {"Cu": 1}, positions=[w.index])
            found = finished(request, [w.point(values)], lattice, loose, positions=(w.index,))
            if isinstance(found, Rejection):
                assert found.reason.startswith("symmetry"), found
                continue
            assert found.multiplicity.tolist() == [w.multiplicity]
            steps = w.directions.T @ lattice
            for k, length in enumerate(np.linalg.norm(steps, axis=1)):
                # the representative is that of the position, up to lattice vectors
                value = found.frac[0][w.parameters[k]]
                gap = np.abs(FRACTIONS - value % 1).min() * length
                before = np.abs(FRACTIONS - values[k] % 1).min() * length
                if gap > 1e-9:
                    assert gap == pytest.approx(before, abs=1e-9)
                else:
                    rounded += 1
        assert rounded

    def test_rounding(self) -> None:
        lattice = np.diag([9.0, 8.0, 10.0])
        request, sites = Request(62, {"Cu": 1}), [[0.3301, 0.25, 0.211]]
        config = PostprocessConfig(round_within=0.04)
        kept = finished(request, sites, lattice, config, positions=(2,))
        assert isinstance(kept, Candidate)
        assert kept.frac[0].tolist() == pytest.approx([1 / 3, 0.25, 0.211], abs=1e-12)
        free = finished(request, sites, lattice, config)
        assert isinstance(free, Candidate)
        assert free.frac.tolist() == sites
        # not onto the mirror plane at y = 1/4, nor onto an inversion centre
        loose = PostprocessConfig(round_within=0.2, min_distance=0.0)
        near = [[0.131, 0.2375, 0.211]]
        general = finished(request, near, lattice, loose, positions=(3,))
        assert isinstance(general, Candidate)
        assert general.frac.tolist() == near

    def test_general_position_stays(self) -> None:
        lattice = np.diag([9.0, 8.0, 10.0])
        point = [0.131, 0.082, 0.211]
        c = candidate(Request(62, {"Cu": 1}), [point], lattice)
        assert c.frac.tolist() == [point]
        assert c.multiplicity.tolist() == [8]
        assert c.detected[1e-2] == 62

    def test_a_plane_and_an_axis(self) -> None:
        lattice = np.diag([9.0, 8.0, 10.0])
        c = candidate(Request(62, {"Cu": 1}), [[0.131, 0.27, 0.211]], lattice)
        np.testing.assert_allclose(c.frac, [[0.131, 0.25, 0.211]], atol=1e-15)
        assert c.multiplicity.tolist() == [4]
        cell = np.diag([6.0, 6.0, 4.0])
        c = candidate(Request(123, {"Fe": 1, "O": 1}), [[0.01, 0.02, 0.23], [0.5, 0, 0]], cell)
        np.testing.assert_allclose(c.frac[0], [0, 0, 0.23], atol=1e-15)
        assert c.multiplicity.tolist() == [2, 2]

    def test_coordinates_just_below_zero_are_wrapped_to_zero(self) -> None:
        c = candidate(ROCK_SALT, [[-1e-18, 1 - 1e-17, -1e-300], [0.5, 0.5, 0.5]], CUBE)
        assert c.frac[0].tolist() == [0, 0, 0]
        assert (c.atom_frac < 1).all()

    def test_overlapping_sites(self) -> None:
        request = Request(225, {"Na": 1, "Cl": 1})
        result = finished(request, [[0, 0, 0], [0.5, 0.5, 0.02]], CUBE)
        assert isinstance(result, Rejection)
        assert result.reason == "overlap: Na-Cl 0.00 Å, less than 0.7 Å"

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_numbers_that_are_none(self, bad: float) -> None:
        in_site = finished(ROCK_SALT, [[bad, 0, 0], [0.5, 0.5, 0.5]], CUBE)
        in_cell = finished(ROCK_SALT, [[0, 0, 0], [0.5, 0.5, 0.5]], np.full((3, 3), bad))
        for result in (in_site, in_cell):
            assert isinstance(result, Rejection)
            assert result.reason.startswith("diverged: ")

    def test_a_cell_without_the_symmetry_is_rejected(self) -> None:
        lattice = np.diag([5.64, 5.64, 5.9])
        result = finished(ROCK_SALT, [[0, 0, 0], [0.5, 0.5, 0.5]], lattice)
        assert isinstance(result, Rejection)
        assert result.reason == "symmetry: spglib at 0.01 Å finds group 139, not Fm-3m (225)"

    def test_provenance(self) -> None:
        c = candidate(ROCK_SALT, [[0, 0, 0], [0.5, 0.5, 0.5]], CUBE)
        assert c.provenance == {
            "weights": "0123456789abcdef",
            "index": 2,
            "attempt": 1,
            "seed": 5,
        }
        assert c.structure.properties == c.provenance == c.atoms.info
        assert repr(c) == "Candidate(NaCl, Fm-3m (225), 2 sites → 8 atoms, V = 179.4 Å^3)"


class TestSupergroups:
    def test_fcc_asked_in_a_primitive_cell(self) -> None:
        c = candidate(Request("Pm-3m", {"Cu": 2}), [[0, 0, 0], [0, 0.5, 0.5]], 3.6 * np.eye(3))
        assert c.detected == dict.fromkeys(SYMPRECS, 225)
        assert c.is_supergroup
        assert c.space_group == SpaceGroup(221)
        assert c.formula == "Cu"

    def test_diamond_asked_in_the_group_of_sphalerite(self) -> None:
        lattice = 3.567 * np.eye(3)
        c = candidate(Request(216, {"C": 2}), [[0, 0, 0], [0.25, 0.25, 0.25]], lattice)
        assert c.detected[1e-2] == 227
        assert c.is_supergroup
        sphalerite = Request(216, {"Si": 1, "C": 1})
        c = candidate(sphalerite, [[0, 0, 0], [0.25, 0.25, 0.25]], lattice)
        assert c.detected[1e-2] == 216
        assert not c.is_supergroup

    def test_cells_that_happen_to_be_cubic(self) -> None:
        c = candidate(Request("Pmmm", {"Po": 1}), [[0.01, 0.99, 0.01]], 3.35 * np.eye(3))
        assert c.detected[1e-2] == 221
        assert c.is_supergroup

    def test_tolerances_are_distinguished(self) -> None:
        shifted = [[0, 0, 0.004], [0, 0, 0.5]]
        config = PostprocessConfig(merge=0.01)
        c = candidate(Request(107, {"Na": 1, "Cl": 1}), shifted, np.diag([4.4, 4.4, 5.66]), config)
        assert c.detected[1e-3] == c.detected[1e-2] == 107
        assert c.detected[1e-1] == 139


class TestEveryGroup:
    @pytest.mark.parametrize("number", range(1, 231))
    def test_the_requested_group_is_found_in_this_very_cell(self, number: int) -> None:
        c = random_candidate(number)
        numbers = c.numbers[c.atom_site]
        assert contains_group(c.lattice, c.atom_frac, numbers, c.space_group)
        assert all(c.detected[symprec] > 0 for symprec in SYMPRECS)
        if not c.is_supergroup:
            assert c.detected[1e-2] == number
        assert c.min_distance >= 0.7

    @pytest.mark.parametrize("number", [2, 5, 14, 15, 19, 62, 136, 148, 167, 194, 205, 227])
    def test_a_displaced_atom_breaks_it(self, number: int) -> None:
        c = random_candidate(number)
        frac, numbers = c.atom_frac.copy(), c.numbers[c.atom_site]
        frac[0] += off([0.3, -0.8, 0.5], 0.2, c.lattice)
        assert not contains_group(c.lattice, frac, numbers, c.space_group)

    def test_another_origin_is_not_the_group_in_this_cell(self) -> None:
        c = random_candidate(62)
        frac, numbers = c.atom_frac + np.array([0.1, 0.07, 0.03]), c.numbers[c.atom_site]
        assert group_numbers((c.lattice, frac, numbers))[1e-2] == 62
        assert not contains_group(c.lattice, frac, numbers, SpaceGroup(62))

    def test_what_spglib_cannot_read_contains_nothing(self) -> None:
        frac, numbers = np.zeros((2, 3)), np.array([1, 1])
        assert not contains_group(np.eye(3), frac, numbers, SpaceGroup(1))
        assert set(group_numbers((np.eye(3), frac, numbers)).values()) == {0}


class TestNearestPair:
    @pytest.mark.parametrize("number", [1, 2, 5, 14, 62, 139, 166, 194, 225])
    def test_against_pymatgen(self, number: int) -> None:
        c = random_candidate(number)
        distance, i, j = nearest_pair(c.atom_frac, c.lattice)
        near = c.structure.get_neighbor_list(distance + 0.01)
        assert distance == pytest.approx(near[3].min(), abs=1e-9)
        found = {(int(a), int(b)) for a, b, d in zip(*near[:2], near[3], strict=True)}
        assert (i, j) in found
        assert c.min_distance == pytest.approx(distance, abs=1e-9)

    def test_as_many_sites_as_can_be_asked_for(self) -> None:
        request = Request(225, {"O": 64})
        frac = np.random.default_rng(0).uniform(0, 1, (64, 3))
        result = finished(request, frac, 30 * np.eye(3))
        assert isinstance(result, Rejection)
        assert result.reason.startswith("overlap: O-O 0.")

    def test_one_atom_sees_its_own_copies(self) -> None:
        distance, i, j = nearest_pair(np.zeros((1, 3)), np.diag([3.0, 4.0, 2.5]))
        assert (distance, i, j) == (2.5, 0, 0)

    @pytest.mark.parametrize("number", [1, 14, 166, 225])
    def test_as_a_share_of_radii(self, number: int) -> None:
        c = random_candidate(number)
        radii = covalent_radii()[c.numbers[c.atom_site]]
        share, i, j = nearest_pair(c.atom_frac, c.lattice, radii=radii)
        first, second, _, distance = c.structure.get_neighbor_list(6.0)
        expected = distance / (radii[first] + radii[second])
        assert share == pytest.approx(expected.min(), abs=1e-9)
        found = expected[(first == i) & (second == j)]
        assert found.min() == pytest.approx(share, abs=1e-9)
