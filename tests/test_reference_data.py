"""Every structure type is what it says it is, by spglib and by counting."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from fractions import Fraction
from functools import reduce
from math import gcd

import numpy as np
import pytest

from langevin_xtal.crystal.asymmetric import asymmetric_unit
from langevin_xtal.crystal.distances import min_distance
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.dataset import reference
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.reference import reference_dataset, structure_types
from langevin_xtal.errors import DataError
from langevin_xtal.symmetry import SpaceGroup, stabiliser

TYPES = structure_types()


@pytest.fixture(scope="module")
def dataset() -> PackedDataset:
    return reference_dataset()


def composition(formula: str) -> dict[str, int]:
    return {el: int(n or 1) for el, n in re.findall(r"([A-Z][a-z]?)(\d*)", formula)}


def test_the_set_covers_every_crystal_system(dataset: PackedDataset) -> None:
    assert len(dataset) == len(TYPES) >= 100
    assert {SpaceGroup(int(n)).crystal_system for n in dataset.group} == {
        "triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic",
    }  # fmt: skip
    assert len({entry["name"] for entry in TYPES}) == len(TYPES)
    assert all(entry["source"] for entry in TYPES)


@pytest.mark.parametrize("index", range(len(TYPES)), ids=[t["name"] for t in TYPES])
def test_structure_type(index: int, dataset: PackedDataset) -> None:
    entry, unit = TYPES[index], dataset.unit(index)
    atoms, owner = unit.atoms()

    counts: dict[str, int] = {}
    for z, m in zip(unit.numbers, unit.multiplicity, strict=True):
        counts[SYMBOLS[z]] = counts.get(SYMBOLS[z], 0) + int(m)
    z_cell = reduce(gcd, counts.values())
    assert {el: n // z_cell for el, n in counts.items()} == composition(entry["formula"])

    assert min_distance(unit.lattice, unit.frac, atoms) > 1.2
    per_atom = np.linalg.det(unit.lattice) / len(atoms)
    assert 5 < per_atom < 50  # Å^3, diamond to potassium

    found = asymmetric_unit(unit.lattice, atoms, unit.numbers[owner], symprec=1e-3)
    assert found.group == entry["space_group"] == unit.group
    assert sorted(zip(found.numbers, found.multiplicity, strict=True)) == sorted(
        zip(unit.numbers, unit.multiplicity, strict=True)
    )
    np.testing.assert_allclose(
        np.linalg.norm(found.lattice, axis=1), np.linalg.norm(unit.lattice, axis=1), rtol=1e-6
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_letters_are_spglibs(dataset: PackedDataset) -> None:
    spglib = pytest.importorskip("spglib")
    compared = 0
    for index in range(len(dataset)):
        unit = dataset.unit(index)
        atoms, owner = unit.atoms()
        found = spglib.get_symmetry_dataset((unit.lattice, atoms, unit.numbers[owner]), 1e-3)
        moved = np.abs(found.origin_shift - np.rint(found.origin_shift)).max() > 1e-6
        turned = not np.allclose(found.transformation_matrix, np.eye(3), atol=1e-6)
        if moved or turned:  # an equivalent choice of origin or axes, which permutes letters
            continue
        first = np.searchsorted(owner, np.arange(len(unit.frac)))
        assert [found.wyckoffs[k] for k in first] == unit.wyckoff.tolist(), dataset.id[index]
        compared += 1
    assert compared > 0.9 * len(dataset)


def test_sites_are_exactly_special(dataset: PackedDataset) -> None:
    for index in range(len(dataset)):
        unit, group = dataset.unit(index), SpaceGroup(int(dataset.group[index]))
        for point, multiplicity in zip(unit.frac, unit.multiplicity, strict=True):
            stay = stabiliser(point, group.rotations, group.translations, unit.lattice)
            assert len(stay) * multiplicity == group.order
            images = point @ np.swapaxes(group.rotations[stay], 1, 2) + group.translations[stay]
            delta = images - point
            assert np.abs(delta - np.rint(delta)).max() < 1e-14


def test_coordinates_are_those_of_the_file(dataset: PackedDataset) -> None:
    for index, entry in enumerate(TYPES):
        given = [[float(Fraction(str(x))) for x in site["frac"]] for site in entry["sites"]]
        delta = np.array(given) - dataset.frac[dataset.sites_of(index)]
        assert np.abs(delta - np.rint(delta)).max() < 2e-6


def test_the_reader_needs_numpy_only() -> None:
    code = (
        "import sys; from langevin_xtal.dataset.reference import reference_dataset;"
        "reference_dataset();"
        "sys.exit(bool({'spglib', 'pymatgen', 'ase', 'torch', 'tqdm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_file_is_one_sentence(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(reference, "_source", lambda: tmp_path)
    with pytest.raises(DataError, match="missing from this installation"):
        structure_types()


def test_a_wrong_multiplicity_is_noticed(monkeypatch, tmp_path) -> None:
    entry = json.loads(json.dumps(TYPES[0]))
    entry["sites"][0]["multiplicity"] = 3
    (tmp_path / "structure_types.json").write_text(json.dumps([entry]))
    monkeypatch.setattr(reference, "_source", lambda: tmp_path)
    with pytest.raises(DataError, match="1 images, not 3"):
        reference_dataset()


def test_symbols_are_the_periodic_table() -> None:
    data = pytest.importorskip("ase.data")
    assert list(SYMBOLS) == data.chemical_symbols[:119]
