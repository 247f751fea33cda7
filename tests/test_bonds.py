"""One bond of each orbit: against CHGNet's own calculator, ASE and counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.spacegroup import crystal
from ase.spacegroup.symmetrize import symmetrize_rank1, symmetrize_rank2
from chgnet.model.dynamics import CHGNetCalculator

from langevin_xtal.screen.fixing import kept_symmetry
from langevin_xtal.screen.potentials import load_potential
from langevin_xtal.screen.potentials.bonds import BondFinder, Bonds, Operations

CUTOFFS = 6.0, 3.0
"""Of CHGNet [Å]."""
CRYSTALS = {
    "rock salt": bulk("NaCl", "rocksalt", 5.5),
    "diamond, conventional": bulk("Si", "diamond", 5.3, cubic=True),
    "wurtzite": bulk("ZnS", "wurtzite", a=3.7, c=6.5),
    "one atom": bulk("Cu", "fcc", 3.5),
    "perovskite": crystal(
        ["Ba", "Ti", "O"],
        [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
        spacegroup=221,
        cellpar=[4.05] * 3 + [90] * 3,
    ),
    "Pnma": crystal(
        ["Ca", "Ti", "O", "O"],
        [(0.04, 0.25, 0.99), (0, 0, 0.5), (0.48, 0.25, 0.07), (0.29, 0.04, 0.71)],
        spacegroup=62,
        cellpar=[5.44, 7.64, 5.38, 90, 90, 90],
    ),
    "P-1": crystal(
        ["Na", "Cl", "O"],
        [(0.1, 0.15, 0.2), (0.45, 0.2, 0.65), (0.3, 0.65, 0.3)],
        spacegroup=2,
        cellpar=[6.1, 6.7, 7.3, 81, 77, 99],
    ),
}


def symmetric(name: str) -> tuple[Atoms, Operations]:
    """A crystal with the constraint that keeps its symmetry, and the operations of that."""
    atoms = CRYSTALS[name].copy()
    kept = kept_symmetry(atoms, np.zeros((len(atoms), 3), dtype=bool), 0.01)
    atoms.set_constraint(kept)
    return atoms, kept.operations


def bonds_of(atoms: Atoms, operations: Operations | None) -> Bonds:
    frac = atoms.get_scaled_positions(wrap=False)
    return BondFinder(*CUTOFFS, operations).bonds(atoms.cell.array, frac)[0]


def assert_chgnet(atoms: Atoms, calculated: Atoms) -> None:
    """The atoms have CHGNet's energy, forces and stress."""
    other = atoms.copy()
    other.set_constraint([])
    other.calc = CHGNetCalculator(use_device="cpu")
    count = len(atoms)
    energy = float(other.get_potential_energy()) / count
    assert calculated.get_potential_energy() / count == pytest.approx(energy, abs=3e-6)
    np.testing.assert_allclose(
        calculated.get_forces(apply_constraint=False), other.get_forces(), atol=3e-4
    )
    np.testing.assert_allclose(
        calculated.get_stress(apply_constraint=False), other.get_stress(), atol=2e-5
    )


class TestNetwork:
    @pytest.mark.parametrize("name", CRYSTALS)
    def test_symmetric_crystals_have_chgnets_energy(self, name: str) -> None:
        atoms, operations = symmetric(name)
        atoms.calc = load_potential().calculator()
        assert_chgnet(atoms, atoms)
        every, few = bonds_of(atoms, None), bonds_of(atoms, operations)
        assert len(few.to) < len(every.to)
        assert len(few.of_bond) < len(every.of_bond)

    def test_moved_with_its_symmetry(self) -> None:
        """Bonds are found once and used again; where another comes in they are found anew."""
        atoms, _ = symmetric("Pnma")
        atoms.calc = load_potential().calculator()
        found = set()
        for step in range(4):
            rng = np.random.default_rng(step)
            atoms.set_positions(atoms.positions + rng.normal(0, 0.02, (len(atoms), 3)))
            atoms.get_potential_energy()
            found.add(id(atoms.calc._finder._last))
            assert_chgnet(atoms, atoms)
        atoms.set_cell(atoms.cell.array * 0.9, scale_atoms=True)
        assert_chgnet(atoms, atoms)
        assert id(atoms.calc._finder._last) not in found

    def test_operations_that_a_geometry_has_not(self) -> None:
        """Moved past the constraint, all bonds count; moved back, one of each orbit."""
        atoms, operations = symmetric("perovskite")
        atoms.calc = load_potential().calculator()
        before = atoms.get_positions()
        few = atoms.get_potential_energy() and len(atoms.calc._finder._last.bonds.to)
        moved = before + np.random.default_rng(0).normal(0, 0.05, before.shape)
        atoms.set_positions(moved, apply_constraint=False)
        assert_chgnet(atoms, atoms)
        assert len(atoms.calc._finder._last.bonds.to) > 10 * few
        atoms.set_positions(before, apply_constraint=False)
        assert_chgnet(atoms, atoms)
        assert len(atoms.calc._finder._last.bonds.to) == few
        assert len(operations.rotations) == 48

    def test_another_crystal_with_the_same_calculator(self) -> None:
        one, _ = symmetric("perovskite")
        other, _ = symmetric("Pnma")
        one.calc = other.calc = load_potential().calculator()
        first = one.get_potential_energy()
        assert_chgnet(other, other)
        assert one.get_potential_energy() == first

    def test_energy_alone(self) -> None:
        potential = load_potential()
        assert potential.energy is not None
        for name in ("Pnma", "one atom"):
            atoms = CRYSTALS[name].copy()
            atoms.calc = potential.calculator()
            assert potential.energy(atoms) == pytest.approx(atoms.get_potential_energy(), abs=1e-5)


class TestBonds:
    @pytest.mark.parametrize("name", CRYSTALS)
    def test_messages_stand_for_all(self, name: str) -> None:
        """Counted by brute force over images of atoms."""
        atoms, operations = symmetric(name)
        lattice, frac = atoms.cell.array, atoms.get_scaled_positions(wrap=False)
        reach = np.arange(-5, 6)
        image = np.stack(np.meshgrid(reach, reach, reach), axis=-1).reshape(-1, 3)
        apart = (frac[None, :, None] + image - frac[:, None, None]) @ lattice
        length = np.linalg.norm(apart, axis=-1).reshape(len(atoms), -1)
        near = ((length > 1e-6) & (length < CUTOFFS[0])).sum()
        close = ((length > 1e-6) & (length < CUTOFFS[1])).sum(axis=1)
        for used in (None, operations):
            bonds = bonds_of(atoms, used)
            assert bonds.share.sum() == len(atoms)
            assert (bonds.times * bonds.share[bonds.to]).sum() == near
            pairs = bonds.ends[bonds.sides.ravel(), 0].reshape(-1, 2)
            assert (pairs[:, 0] == pairs[:, 1]).all()
        every = bonds_of(atoms, None)
        assert len(every.apex) == (close * (close - 1)).sum()
        vectors = every.vectors(lattice, frac)
        np.testing.assert_allclose(
            np.sort(np.linalg.norm(vectors[every.of_bond], axis=1)),
            np.sort(length[(length > 1e-6) & (length < CUTOFFS[0])])[::2],
            atol=1e-9,
        )

    def test_isolated_atoms(self) -> None:
        with pytest.raises(ValueError, match="1 atoms have no other within 6 Å"):
            bonds_of(Atoms("He", cell=[20, 20, 20], pbc=True), None)


class TestOperations:
    @pytest.mark.parametrize("name", CRYSTALS)
    def test_means_are_ases(self, name: str) -> None:
        atoms, operations = symmetric(name)
        (kept,) = atoms.constraints
        lattice = atoms.cell.array
        inverse = np.linalg.inv(lattice)
        rng = np.random.default_rng(1)
        vectors, tensor = rng.normal(size=(len(atoms), 3)), rng.normal(size=(3, 3))
        np.testing.assert_allclose(
            operations.mean_vectors(vectors, lattice),
            symmetrize_rank1(
                lattice, inverse, vectors, kept.rotations, kept.translations, kept.symm_map
            ),
            atol=1e-12,
        )
        np.testing.assert_allclose(
            operations.mean_tensor(tensor, lattice),
            symmetrize_rank2(lattice, inverse, tensor, kept.rotations),
            atol=1e-9,
        )
