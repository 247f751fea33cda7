"""CIF files say exactly what was sampled: two independent readers find the same crystal."""

from __future__ import annotations

import io
import re
import warnings

import ase.io
import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure, SymmOp
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.cif import CifParser

from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.cell import cell_parameters
from langevin_xtal.crystal.cif import cif_text, operation_text
from langevin_xtal.crystal.request import Request
from langevin_xtal.symmetry import SpaceGroup, cell_directions
from tests.candidates import candidate, random_candidate

GROUPS = [
    *(
        1,
        2,
        4,
        5,
        9,
        14,
        15,
        16,
        19,
        22,
        29,
        36,
        43,
        62,
        63,
        64,
        70,
        74,
        79,
        88,
        92,
        109,
        122,
        136,
    ),
    *(139, 141, 142, 146, 148, 152, 155, 160, 161, 164, 166, 167, 173, 176, 178, 180, 186, 189),
    *(191, 194, 196, 198, 199, 205, 206, 213, 214, 216, 217, 220, 221, 223, 224, 225, 227, 229),
]
TIGHT = StructureMatcher(
    ltol=1e-4,
    stol=1e-4,
    angle_tol=0.01,
    primitive_cell=False,
    scale=False,
    attempt_supercell=False,
)


@pytest.fixture(scope="module", params=GROUPS)
def made(request: pytest.FixtureRequest) -> Candidate:
    return random_candidate(request.param)


def read_pymatgen(text: str) -> Structure:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (structure,) = CifParser(io.StringIO(text)).parse_structures(primitive=False)
    return structure


def read_ase(text: str) -> Structure:
    return AseAtomsAdaptor.get_structure(ase.io.read(io.StringIO(text), format="cif"))


def assert_same_atoms(found: Structure, wanted: Structure) -> None:
    """One to one, in the same cell and at the same origin, within 0.001 Å."""
    assert len(found) == len(wanted)
    assert found.composition == wanted.composition
    np.testing.assert_allclose(found.lattice.abc, wanted.lattice.abc, atol=1e-6)
    np.testing.assert_allclose(found.lattice.angles, wanted.lattice.angles, atol=1e-5)
    assert found.volume == pytest.approx(wanted.volume, rel=1e-6)
    delta = found.frac_coords[:, None] - wanted.frac_coords[None]
    delta -= np.rint(delta)
    distance = np.linalg.norm(delta @ wanted.lattice.matrix, axis=2)
    partner = distance.argmin(1)
    assert sorted(partner.tolist()) == list(range(len(wanted)))
    assert distance.min(1).max() < 1e-3
    assert [s.specie.symbol for s in found] == [wanted[int(k)].specie.symbol for k in partner]


class TestReaders:
    def test_pymatgen(self, made: Candidate) -> None:
        found = read_pymatgen(cif_text(made))
        assert_same_atoms(found, made.structure)
        if len(found) <= 32:
            assert TIGHT.fit(found, made.structure)

    def test_ase(self, made: Candidate) -> None:
        found = read_ase(cif_text(made))
        assert_same_atoms(found, made.structure)
        if len(found) <= 32:
            assert TIGHT.fit(found, made.structure)

    def test_ase_knows_the_group(self, made: Candidate) -> None:
        atoms = ase.io.read(io.StringIO(cif_text(made)), format="cif")
        assert atoms.info["spacegroup"].no == made.space_group.number


class TestText:
    def test_rock_salt(self) -> None:
        request = Request("Fm-3m", {"Na": 1, "Cl": 1})
        text = cif_text(candidate(request, [[0, 0, 0], [0.5, 0.5, 0.5]], 5.64 * np.eye(3)))
        lines = text.splitlines()
        assert text.endswith("\n")
        assert text.isascii()
        assert lines[0] == "data_NaCl_225_0002"
        for line in (
            "_chemical_formula_sum 'Na4 Cl4'",
            "_cell_length_a   5.640000",
            "_cell_angle_gamma   90.000000",
            "_cell_volume   179.406144",
            "_space_group_IT_number   225",
            "_space_group_name_H-M_alt   'Fm-3m'",
            "1 'x,y,z'",
            "Na1 Na 4 a 0.0000000000 0.0000000000 0.0000000000 1",
            "Cl2 Cl 4 b 0.5000000000 0.5000000000 0.5000000000 1",
        ):
            assert line in lines
        operations = [line for line in lines if re.fullmatch(r"\d+ '.*'", line)]
        assert len(operations) == SpaceGroup(225).order

    def test_asymmetric_unit_only(self, made: Candidate) -> None:
        rows = [line for line in cif_text(made).splitlines() if re.match(r"[A-Z][a-z]?\d+ ", line)]
        assert len(rows) == len(made.frac)
        assert [int(row.split()[2]) for row in rows] == made.multiplicity.tolist()


class TestOperations:
    @pytest.mark.parametrize("number", [*range(1, 231, 9), 62, 167, 194, 225, 227, 230])
    def test_pymatgen_reads_them(self, number: int) -> None:
        group = SpaceGroup(number)
        for w, t in zip(group.rotations[:48], group.translations24[:48], strict=True):
            operation = SymmOp.from_xyz_str(operation_text(w, t))
            assert np.array_equal(operation.rotation_matrix, w)
            np.testing.assert_allclose(operation.translation_vector, t / 24, atol=1e-12)

    def test_examples(self) -> None:
        w = np.array([[0, -1, 0], [1, -1, 0], [0, 0, 1]])
        assert operation_text(w, np.array([0, 0, 8])) == "-y,x-y,z+1/3"
        assert (
            operation_text(-np.eye(3, dtype=int), np.array([12, 6, 18])) == "-x+1/2,-y+1/4,-z+3/4"
        )

    def test_all_texts_of_a_group_differ(self) -> None:
        for number in range(1, 231):
            group = SpaceGroup(number)
            pairs = zip(group.rotations, group.translations24, strict=True)
            assert len({operation_text(w, t) for w, t in pairs}) == group.order


def test_cell_parameters() -> None:
    cell = np.diag([3.0, 3.0, 5.0]) @ cell_directions(194)
    np.testing.assert_allclose(cell_parameters(cell), (3, 3, 5, 90, 90, 120))
    np.testing.assert_allclose(cell_parameters(-np.diag([1.0, 2.0, 3.0])), (1, 2, 3, 90, 90, 90))
