"""Sites to atoms all at once: what the functions that take one site at a time give, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from langevin_xtal.config.tolerances import SYMPRECS
from langevin_xtal.sampling.postprocess import contains_group, verify
from langevin_xtal.symmetry import SpaceGroup, orbit, snap_site, wrap
from langevin_xtal.symmetry.detection import group_numbers
from langevin_xtal.symmetry.expansion import EXACT, expand_sites, group_table, orbits
from langevin_xtal.symmetry.sites import IDENTICAL
from langevin_xtal.symmetry.wyckoff import wyckoff_positions
from tests.candidates import random_candidate
from tests.crystals import random_crystal


def sites_of(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points on, near, and about as far as the tolerances from every Wyckoff position; a cell."""
    rng = np.random.default_rng([number, seed])
    lattice = random_crystal(number, 1, seed).lattice[0]
    points = [
        w.base + w.projector @ rng.uniform(0, 1, 3)
        for w in wyckoff_positions(number)
        for _ in range(3)
    ]
    size = rng.choice([0.0, 1e-9, 6e-4, 2e-3, 8e-3, 0.1, 0.4], (len(points), 1))
    shift = rng.standard_normal((len(points), 3))
    shift *= size / np.linalg.norm(shift, axis=1, keepdims=True)
    return np.array(points) + shift @ np.linalg.inv(lattice), lattice


class TestTables:
    @pytest.mark.parametrize("number", [1, 2, 14, 62, 88, 167, 194, 212, 227, 230])
    def test_products(self, number: int) -> None:
        """g h of a point is g of (h of the point), up to a lattice vector."""
        table, group = group_table(number), SpaceGroup(number)
        point = np.array([0.1234, 0.3711, 0.6533])
        images = table.images(point[None])[0]
        rng = np.random.default_rng(number)
        for g in rng.integers(group.order, size=8):
            once = images @ group.rotations[g].T + group.translations[g]
            gap = once - images[table.product[g]]
            np.testing.assert_allclose(gap, np.rint(gap), atol=1e-12)

    @pytest.mark.parametrize("number", range(1, 231))
    def test_generators(self, number: int) -> None:
        table, order = group_table(number), SpaceGroup(number).order
        assert sorted(table.product[0]) == list(range(order))
        assert table.product[0].tolist() == list(range(order))  # the identity comes first
        reached, size = {0}, 0
        while len(reached) > size:
            size = len(reached)
            reached |= {int(table.product[g, h]) for g in reached for h in table.generators}
        assert len(reached) == order
        assert len(table.generators) <= 6


class TestExpansion:
    @pytest.mark.parametrize("number", range(1, 231))
    def test_one_site_at_a_time(self, number: int) -> None:
        group = SpaceGroup(number)
        frac, lattice = sites_of(number, seed=1)
        if len(frac) > 24:
            frac = frac[np.random.default_rng(0).permutation(len(frac))[:24]]
        radius = np.where(np.arange(len(frac)) % 3 == 0, IDENTICAL, 0.3)
        found = expand_sites(group, frac, lattice, radius)
        for k, point in enumerate(frac):
            w, t = group.rotations, group.translations
            site = wrap(snap_site(point, w, t, lattice, float(radius[k])))
            assert found.sites[k].tobytes() == site.tobytes()
            images = wrap(orbit(site, w, t, lattice)[0])
            own = slice(found.first[k], found.first[k] + found.multiplicity[k])
            assert found.frac[own].tobytes() == images.tobytes()
            assert (found.atom_site[own] == k).all()
        images, site = orbits(group, found.sites, lattice)
        assert wrap(images).tobytes() == found.frac.tobytes()
        np.testing.assert_array_equal(site, found.atom_site)

    def test_exactness_is_seen_in_the_atoms_and_the_cell(self) -> None:
        group, cube = SpaceGroup(225), 5.64 * np.eye(3)
        sites, radius = np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), np.full(2, IDENTICAL)
        assert expand_sites(group, sites, cube, radius).is_exact
        for stretched in (np.diag([5.64, 5.64, 5.64 + 1e-4]), cube + 1e-4 * np.eye(3, k=1)):
            assert not expand_sites(group, sites, stretched, radius).is_exact
        # a site within the tolerance of a mirror plane, but not on it
        group, cell = SpaceGroup(62), np.diag([9.0, 8.0, 10.0])
        near = np.array([[0.131, 0.25 + 0.002 / 8, 0.211]])
        assert not expand_sites(group, near, cell, radius[:1]).is_exact
        assert expand_sites(group, near, cell, np.array([0.3])).is_exact

    def test_a_cell_free_of_constraints_is_exact(self) -> None:
        lattice = np.array([[4.0, 0.1, 0.2], [0.3, 5.0, -0.4], [1.0, 0.5, 6.0]])
        found = expand_sites(SpaceGroup(1), np.array([[0.1, 0.2, 0.3]]), lattice, np.zeros(1))
        assert found.is_exact
        assert EXACT < IDENTICAL


class TestVerification:
    @pytest.mark.parametrize("number", range(1, 231, 2))
    def test_one_search_says_what_three_say(self, number: int) -> None:
        c = random_candidate(number)
        given = c.lattice, c.atom_frac, c.numbers[c.atom_site]
        exact = expand_sites(c.space_group, c.frac, c.lattice, np.full(2, IDENTICAL)).is_exact
        detected, contained = verify(*given, c.space_group, is_exact=exact)
        assert exact
        assert detected == group_numbers(given)
        assert contained == contains_group(*given, c.space_group)

    @pytest.mark.parametrize("shift", [3e-4, 4e-3, 3e-2, 0.3])
    def test_between_the_tolerances(self, shift: float) -> None:
        """Rock salt stretched along z: cubic at some tolerances, tetragonal at others."""
        lattice = np.diag([5.64, 5.64, 5.64 + shift])
        sites = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
        for number in (225, 139):
            group = SpaceGroup(number)
            atoms = expand_sites(group, sites, lattice, np.full(2, IDENTICAL))
            given = lattice, atoms.frac, np.array([11, 17])[atoms.atom_site]
            assert atoms.is_exact == (number == 139)
            found = verify(*given, group, is_exact=atoms.is_exact)
            assert found == (group_numbers(given), contains_group(*given, group))

    def test_spglib_is_asked_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import spglib

        asked = []
        original = spglib.get_symmetry_dataset

        def counted(cell: object, symprec: float) -> object:
            asked.append(symprec)
            return original(cell, symprec=symprec)

        monkeypatch.setattr(spglib, "get_symmetry_dataset", counted)
        c = next(c for c in map(random_candidate, (62, 14, 19)) if not c.is_supergroup)
        given = c.lattice, c.atom_frac, c.numbers[c.atom_site], c.space_group
        asked.clear()
        assert verify(*given, is_exact=True)[1]
        assert asked == [SYMPRECS[-1]]
        asked.clear()
        assert verify(*given, is_exact=False)[1]
        assert sorted(asked) == sorted(SYMPRECS)
