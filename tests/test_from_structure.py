"""Requests from structures: every crystal comes back from its start, in every cell and format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
import spglib
import torch
from ase import Atoms
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

import langevin_xtal as lx
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import DataError, InputError, RequestError
from langevin_xtal.evaluation.structures import StructureSet
from langevin_xtal.model.checkpoint import CrystalModel
from langevin_xtal.sampling.chain import Chains
from langevin_xtal.sampling.from_structure import (
    on_representative,
    read_cell,
    request_from_structure,
)
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.sampling.start import start_chains
from langevin_xtal.sampling.streams import stream_keys
from langevin_xtal.symmetry import SpaceGroup, orbit
from langevin_xtal.symmetry.wyckoff import wyckoff_positions
from tests.crystals import random_lattice

PEROVSKITE = Structure(
    Lattice.cubic(3.905), ["Sr", "Ti", "O", "O", "O"],
    [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
)  # fmt: skip


@pytest.fixture(scope="module")
def crystals(reference: PackedDataset) -> StructureSet:
    return StructureSet.from_packed(reference, "reference")


def restored(request: lx.Request) -> Structure:
    """The crystal that a request starts from, by its group's operations alone."""
    start = request.start
    assert start is not None
    group = request.space_group
    species, points = [], []
    for z, x in zip(request.numbers, start.frac, strict=True):
        images = orbit(x, group.rotations, group.translations, start.lattice)[0]
        species += [SYMBOLS[z]] * len(images)
        points += list(images)
    return Structure(Lattice(start.lattice), species, points, to_unit_cell=True)


def same(one: Structure, other: Structure) -> bool:
    matcher = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.05, scale=False)
    return bool(matcher.fit(one, other))


def disguised(cell: Cell, seed: int) -> Structure:
    """The same crystal from another origin, in another basis, turned, its atoms shuffled."""
    rng = np.random.default_rng(seed)
    structure = to_structure(cell)
    structure.make_supercell([[1, 1, 0], [0, 1, 0], [0, 1, 1]])
    frac = structure.frac_coords + rng.uniform(size=3)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(len(structure))
    species = [structure[int(k)].specie for k in order]
    turned = structure.lattice.matrix @ (q * np.sign(np.linalg.det(q)))
    return Structure(Lattice(turned), species, frac[order], to_unit_cell=True)


class TestRequest:
    def test_every_structure_type(self, reference: PackedDataset, crystals: StructureSet) -> None:
        for k in range(0, len(crystals), 2):
            structure = disguised(crystals.cell(k), seed=k)
            request = request_from_structure(structure)
            assert request.start is not None
            assert request.space_group.number == reference.group[k], crystals.ids[k]
            numbers = reference.numbers[reference.sites_of(k)]
            assert sorted(request.numbers) == sorted(numbers.tolist())
            table = wyckoff_positions(request.space_group.number)
            sizes = [table[w].multiplicity for w in request.start.positions]
            assert sorted(sizes) == sorted(reference.multiplicity[reference.sites_of(k)].tolist())
            assert same(restored(request), to_structure(crystals.cell(k))), crystals.ids[k]

    def test_sites_are_on_their_representative_spaces(self, crystals: StructureSet) -> None:
        """Exactly: chains move along the projector from there."""
        for k in range(len(crystals)):
            request = request_from_structure(crystals.structure(k))
            assert request.start is not None
            table = wyckoff_positions(request.space_group.number)
            for w, x in zip(request.start.positions, request.start.frac, strict=True):
                delta = x - table[w].base
                off = delta - table[w].projector @ delta
                # up to a lattice vector
                box = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1).reshape(-1, 3)
                away = off - (box - box @ table[w].projector.T)
                assert np.abs(away).max(axis=1).min() < 1e-12

    def test_order_of_elements(self) -> None:
        request = request_from_structure(PEROVSKITE)
        assert dict(request.sites) == {"Sr": 1, "Ti": 1, "O": 1}
        assert str(request) == "Sr:1,Ti:1,O:1 in Pm-3m (221)"

    def test_kinds_of_structures(self) -> None:
        atoms = PEROVSKITE.to_ase_atoms()
        cell = (PEROVSKITE.lattice.matrix, PEROVSKITE.frac_coords,
                np.array(PEROVSKITE.atomic_numbers))  # fmt: skip
        starts = [request_from_structure(s).start for s in (PEROVSKITE, atoms, cell)]
        for start in starts:
            assert start is not None
            assert start.positions == starts[0].positions  # type: ignore[union-attr]
            np.testing.assert_allclose(start.lattice, np.eye(3) * 3.905, atol=1e-9)

    def test_nearly_symmetric(self) -> None:
        """Displaced by 0.03 Å: lower at 0.01 Å, the group itself at 0.1 Å."""
        distorted = PEROVSKITE.copy()
        distorted.translate_sites([1], [0.008, 0, 0])
        assert request_from_structure(distorted).space_group.number == 99
        request = request_from_structure(distorted, "Pm-3m")
        assert request.space_group.number == 221
        with pytest.raises(RequestError, match=r"P4mm \(99\) or Pm-3m \(221\)"):
            request_from_structure(distorted, 194)

    @pytest.mark.parametrize("number", [1, 2, 16, 47, 99, 123, 89, 200, 207, 215])
    def test_subgroups(self, number: int) -> None:
        request = request_from_structure(PEROVSKITE, number)
        assert request.space_group.number == number
        whole = restored(request)
        assert whole.composition.formula == PEROVSKITE.composition.formula
        assert same(whole, PEROVSKITE)
        symmetry = spglib.get_symmetry((PEROVSKITE.lattice.matrix, PEROVSKITE.frac_coords,
                                        PEROVSKITE.atomic_numbers))  # fmt: skip
        assert symmetry is not None
        assert len(symmetry["rotations"]) % SpaceGroup(number).order == 0

    def test_a_subgroup_tells_sites_apart(self) -> None:
        request = request_from_structure(PEROVSKITE, "P4/mmm")
        assert request.sites["O"] == 2

    @pytest.mark.parametrize("number", [62, 225, 194, 230, 167])
    def test_other_groups(self, number: int) -> None:
        with pytest.raises(RequestError, match=r"Pm-3m \(221\).*not among its subgroups"):
            request_from_structure(PEROVSKITE, number)

    @pytest.mark.parametrize("number", [4, 14, 15, 36, 62, 79, 146, 152, 166, 186, 225, 227])
    def test_random_points_on_every_position(self, number: int) -> None:
        """One site moved along each position and to a random image of itself."""
        rng = np.random.default_rng(number)
        group = SpaceGroup(number)
        for w in wyckoff_positions(number):
            point = w.base + w.projector @ rng.uniform(size=3)
            h = rng.integers(group.order)
            image = group.rotations[h] @ point + group.translations[h] + rng.integers(-2, 3, 3)
            back = on_representative(group, w, image)
            assert w.contains(back)
            lattice = random_lattice(number, rng, 100.0)
            orbits = [
                orbit(p, group.rotations, group.translations, lattice)[0] for p in (point, back)
            ]
            gap = orbits[0][:, None] - orbits[1]
            gap -= np.rint(gap)
            assert np.abs(gap).max(axis=2).min(axis=1).max() < 1e-9

    def test_bad_input(self) -> None:
        with pytest.raises(RequestError, match="noise is 0"):
            request_from_structure(PEROVSKITE, noise=0.0)
        with pytest.raises(RequestError, match="noise is nan"):
            request_from_structure(PEROVSKITE, noise=float("nan"))
        alloy = PEROVSKITE.copy()
        alloy.replace(0, {"Sr": 0.5, "Ba": 0.5})
        with pytest.raises(DataError, match="partial occupancies"):
            request_from_structure(alloy)
        with pytest.raises(DataError, match="not periodic"):
            request_from_structure(Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7]]))
        overlap = (np.eye(3) * 4, np.zeros((2, 3)), np.array([11, 17]))
        with pytest.raises(DataError, match="closer"):
            request_from_structure(overlap)
        many = (np.eye(3) * 20, np.random.default_rng(0).uniform(size=(70, 3)), np.full(70, 6))
        with pytest.raises(InputError, match="70 sites"):
            request_from_structure(many)


class TestStart:
    def test_no_noise_to_speak_of_gives_the_structure(
        self, crystals: StructureSet, tiny_model: CrystalModel
    ) -> None:
        """What chains start from is the structure moved by the noise, and not further."""
        requests = [request_from_structure(crystals.structure(k), noise=0.06)
                    for k in range(0, len(crystals), 7)]  # fmt: skip
        keys = stream_keys(0, torch.arange(len(requests)), torch.zeros(len(requests), dtype=int))
        starts = start_chains(requests, tiny_model, keys, SampleOptions().start_options())
        groups = [request.space_group.number for request in requests]
        chains = Chains.start(tiny_model, starts, groups, keys)
        first = chains.crystals.site_start.tolist()
        for k, request in enumerate(requests):
            given = request.start
            assert given is not None
            delta = chains.frac[first[k] : first[k + 1]].numpy() - given.frac
            delta -= np.rint(delta)
            moved = np.linalg.norm(delta @ given.lattice, axis=1)
            assert moved.max() < 0.06 * 5
            table = wyckoff_positions(request.space_group.number)
            fixed = [table[w].freedom == 0 for w in given.positions]
            assert moved[fixed].max(initial=0.0) < 1e-12

    def test_given_cell_is_kept(self, tiny_model: CrystalModel) -> None:
        request = request_from_structure(PEROVSKITE, lattice=(4.0, 4.0, 4.0), noise=0.1)
        options = SampleOptions(sampler=lx.Ancestral(levels=3), workers=1)
        (candidate,) = lx.sample([request], tiny_model, options=options)
        np.testing.assert_allclose(candidate.lattice, np.eye(3) * 4.0, atol=1e-9)
        assert candidate.formula == "SrTiO3"


class TestRead:
    @pytest.mark.parametrize(
        "name", ["a.cif", "POSCAR", "CONTCAR.old", "a.vasp", "a.xyz", "a.extxyz", "a.json", "a.db"]
    )
    def test_formats(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        atoms = PEROVSKITE.to_ase_atoms()
        if path.suffix == ".json":
            path.write_text(json.dumps(PEROVSKITE.as_dict()))
        elif path.suffix == ".db":
            with ase.db.connect(path) as database:
                database.write(atoms)
        else:
            kind = {".cif": "cif", ".xyz": "extxyz", ".extxyz": "extxyz"}.get(path.suffix, "vasp")
            ase.io.write(path, atoms, format=kind)
        lattice, frac, numbers = read_cell(path)
        assert same(to_structure((lattice, frac, numbers)), PEROVSKITE)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("none.cif", None, "does not exist"),
            ("none.vasp", None, "does not exist"),
            ("a.doc", "ATOM", "no structure file.*POSCAR"),
            ("a.cif", "", "no atoms"),
            ("a.cif", "data_x\n_atom_site_label\nnonsense", "lacks _cell_length_a"),
            ("POSCAR", "", "not a POSCAR"),
            (
                "POSCAR",
                "x\n1\n4 0 0\n0 4 0\n0 0 4\n1 1\nDirect\n0 0 0\n.5 .5 .5\n",
                "does not name its elements",
            ),
            ("a.vasp", "\0\xff", "not a POSCAR"),
            ("a.xyz", "", "a.xyz"),
            ("a.json", "{", "cannot be read"),
            ("a.json", "[]", "no structure"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, name: str, text: Any, message: str) -> None:
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=message) as caught:
            read_cell(tmp_path / name)
        assert name in str(caught.value)

    def test_folders_and_many(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="is a folder"):
            read_cell(tmp_path)
        atoms = PEROVSKITE.to_ase_atoms()
        ase.io.write(tmp_path / "two.xyz", [atoms, atoms], format="extxyz")
        with pytest.raises(DataError, match="several structures"):
            read_cell(tmp_path / "two.xyz")
