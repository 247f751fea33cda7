"""Phonons: against the closed form for a pair potential, and crystals known to be (un)stable."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.units import _amu, _e
from click.testing import CliRunner
from numpy.typing import NDArray

from langevin_xtal.config.screening import PhononOptions
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.errors import InputError
from langevin_xtal.screen.phonons import (
    PhononResult,
    band_path,
    phonon_check,
    phonon_checks,
    plot_bands,
    point_text,
    supercell_copies,
)
from tests.test_screen import Memory

HERE = __name__
EPSILON, SIGMA = 0.0103, 3.40  # argon [eV, Å]
CUTOFF = 1.3 * SIGMA  # between the first and second shell of fcc
MASS = 39.948
FloatArray = NDArray[np.float64]


def cell_of(atoms: Atoms) -> Cell:
    return np.array(atoms.cell.array), atoms.get_scaled_positions(), atoms.numbers.astype(np.int64)


class Argon(LennardJones):
    """Nearest neighbours only, so that the supercell holds all of the interaction."""

    def __init__(self) -> None:
        super().__init__(epsilon=EPSILON, sigma=SIGMA, rc=CUTOFF)


class Counting(EMT):
    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1


class Silent(Calculator):
    """Forces that are not finite in supercells."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def calculate(self, *given: Any, **more: Any) -> None:
        super().calculate(*given, **more)
        forces = np.zeros((len(self.atoms), 3))
        if len(self.atoms) > 2:
            forces[:] = math.nan
        self.results = {"energy": 0.0, "free_energy": 0.0, "forces": forces, "stress": np.zeros(6)}


def pair_frequencies(points: FloatArray, lattice: FloatArray) -> FloatArray:
    """(Q, 3) [THz] of one atom per cell and Lennard-Jones pairs within the cut-off:

    D(q) = 1/m Σ_R Φ(R) (1 - cos 2π q·n),  Φ = V'' r̂r̂ᵀ + V'/r (1 - r̂r̂ᵀ).
    """
    span = np.arange(-3, 4)
    shifts = np.stack(np.meshgrid(span, span, span, indexing="ij"), -1).reshape(-1, 3)
    vectors = shifts @ lattice
    r = np.linalg.norm(vectors, axis=1)
    near = (r > 0) & (r < CUTOFF)
    shifts, vectors, r = shifts[near], vectors[near], r[near]
    unit = vectors / r[:, None]
    s6 = (SIGMA / r) ** 6
    first = 4 * EPSILON * (-12 * s6**2 + 6 * s6) / r
    second = 4 * EPSILON * (156 * s6**2 - 42 * s6) / r**2
    outer = unit[:, :, None] * unit[:, None, :]
    phi = second[:, None, None] * outer + (first / r)[:, None, None] * (np.eye(3) - outer)
    phase = 1 - np.cos(2 * np.pi * points @ shifts.T)  # (Q, R)
    squared = np.linalg.eigvalsh(np.einsum("qr,rab->qab", phase, phi) / MASS)
    scale = np.sqrt(_e / _amu) * 1e10 / (2 * np.pi) / 1e12
    return np.sign(squared) * np.sqrt(np.abs(squared)) * scale


ARGON = PhononOptions(potential=f"{HERE}:Argon", fmax=1e-4, length=10.0, mesh=20.0)


class TestAgainstTheClosedForm:
    @pytest.fixture(scope="class")
    def argon(self) -> PhononResult:
        return phonon_check(cell_of(bulk("Ar", "fcc", 5.4)), ARGON)

    def test_bands(self, argon: PhononResult) -> None:
        expected = pair_frequencies(argon.path, argon.cell[0])
        assert len(argon.path) > 50
        assert argon.bands.max() > 1.0
        np.testing.assert_allclose(np.sort(argon.bands, axis=1), expected, atol=0.01)

    def test_verdict(self, argon: PhononResult) -> None:
        assert argon.reason == ""
        assert argon.converged
        assert not argon.imaginary
        assert not argon.certain
        lowest = pair_frequencies(argon.exact_at[None], argon.cell[0])[0, 0]
        assert argon.exact_minimum == pytest.approx(lowest, abs=0.01)
        assert argon.note.startswith("no imaginary mode")
        assert argon.supercell.tolist() == [2, 2, 2]
        assert argon.atoms == 32
        assert argon.displacements == 1

    def test_an_unstable_lattice(self) -> None:
        """Simple cubic has no restoring force against shear with nearest neighbours only."""
        found = phonon_check(cell_of(bulk("Ar", "sc", 3.6)), ARGON)
        expected = pair_frequencies(found.path, found.cell[0])
        np.testing.assert_allclose(np.sort(found.bands, axis=1), expected, atol=0.01)

    def test_stretched(self) -> None:
        """Bonds under tension push the transverse modes below zero (no relaxation: huge fmax)."""
        options = PhononOptions(
            potential=f"{HERE}:Argon", fmax=1.0, length=10.0, mesh=20.0, tolerance=0.05
        )
        found = phonon_check(cell_of(bulk("Ar", "fcc", 6.2)), options)
        expected = pair_frequencies(found.path, found.cell[0])
        np.testing.assert_allclose(np.sort(found.bands, axis=1), expected, atol=0.01)
        assert expected.min() < -0.1
        assert found.imaginary
        assert found.certain
        assert found.minimum <= expected.min() + 0.01
        lowest = pair_frequencies(found.minimum_at[None], found.cell[0])[0, 0]
        assert found.minimum == pytest.approx(lowest, abs=0.01)
        assert "imaginary mode of -" in found.note


class TestOutcomes:
    def test_chgnet_knows_silicon(self) -> None:
        found = phonon_check(cell_of(bulk("Si")), PhononOptions(length=5.0, path_points=40))
        assert not found.imaginary
        assert found.atoms == 8
        # Raman: 15.5 THz (J. H. Parker et al., Phys. Rev. 155, 712 (1967)); CHGNet is soft
        assert 10 < found.bands.max() < 16

    def test_chgnet_knows_a_ferroelectric(self) -> None:
        """Cubic PbTiO3 is unstable at Γ (A. Garcia and D. Vanderbilt, PRB 54, 3817 (1996))."""
        atoms = Atoms(
            ["Pb", "Ti", "O", "O", "O"],
            scaled_positions=[[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
            cell=[3.97] * 3,
            pbc=True,
        )
        found = phonon_check(cell_of(atoms), PhononOptions(length=3.5, path_points=40))
        assert found.atoms == 5
        assert found.imaginary
        assert found.certain
        assert found.exact_minimum < -3
        np.testing.assert_array_equal(found.exact_at, 0)
        assert "at (0, 0, 0)" in found.note

    @pytest.mark.parametrize(
        ("atoms", "options", "reason"),
        [
            (bulk("Po", "sc", 3.3), PhononOptions(), "chgnet does not know Po"),
            (Atoms("Cu", cell=[1, 1, 1], pbc=True), PhononOptions(), "volume per atom"),
            (
                bulk("NaCl", "rocksalt", 5.6),
                PhononOptions(max_atoms=1, potential=f"{HERE}:Silent"),
                "2 atoms in the primitive cell; the most is 1",
            ),
            (bulk("Cu"), PhononOptions(potential=f"{HERE}:Silent"), "not finite"),
            (bulk("Fe"), PhononOptions(potential="ase.calculators.emt:EMT"), "unexpected failure"),
        ],
        ids=["element", "volume", "atoms", "forces", "calculator"],
    )
    def test_reasons(self, atoms: Atoms, options: PhononOptions, reason: str) -> None:
        found = phonon_check(cell_of(atoms), options)
        assert reason in found.reason
        assert reason in found.note
        assert math.isnan(found.minimum)
        assert not found.imaginary
        with pytest.raises(InputError, match="no bands"):
            plot_bands(found, Path("nowhere.png"))

    def test_one_atom_and_one_point(self) -> None:
        """A supercell of one primitive cell with one atom has acoustic modes at Γ only."""
        options = PhononOptions(potential=f"{HERE}:Argon", max_atoms=1, mesh=0.1)
        found = phonon_check(cell_of(bulk("Ar", "fcc", 5.4)), options)
        assert found.atoms == 1
        assert math.isnan(found.exact_minimum)

    def test_nothing_is_done_twice(self) -> None:
        options = PhononOptions(potential=f"{HERE}:Counting", length=4.0, path_points=30)
        cells = [cell_of(bulk("Cu")), cell_of(bulk("Fe")), cell_of(bulk("Cu"))]
        store = Memory()
        Counting.made = 0
        first = phonon_checks(cells, options, cache=store, workers=1)
        made = Counting.made
        assert made > 0
        assert first[0] is first[2]
        assert "unexpected failure" in first[1].reason
        again = phonon_checks(cells, options, cache=store, workers=1)
        assert Counting.made == made
        loose = dataclasses.replace(options, tolerance=5.0)
        assert phonon_checks(cells, loose, cache=store, workers=1)[0].tolerance == 5.0
        assert Counting.made == made
        for a, b in zip(first, again, strict=True):
            assert (a.note, a.atoms, a.displacements) == (b.note, b.atoms, b.displacements)
            for name in ("supercell", "minimum_at", "exact_at", "path", "bands", "energy", "edge"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            for x, y in zip(a.cell, b.cell, strict=True):
                np.testing.assert_array_equal(x, y)

    @pytest.mark.parametrize(
        "wrong", [{"displacement": 0.0}, {"length": math.nan}, {"max_atoms": 0}], ids=str
    )
    def test_options_out_of_range(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=next(iter(wrong))):
            PhononOptions(**wrong)


class TestPieces:
    @pytest.mark.parametrize(
        ("edges", "atoms", "length", "most", "copies"),
        [
            ((4.0, 4.0, 4.0), 1, 8.0, 200, [2, 2, 2]),
            ((3.95, 3.95, 3.95), 5, 8.0, 200, [2, 2, 2]),  # 7.9 Å will do
            ((3.6, 3.6, 3.6), 4, 8.0, 200, [3, 3, 3]),
            ((3.6, 3.6, 3.6), 4, 8.0, 100, [2, 2, 2]),
            ((3.0, 3.0, 20.0), 10, 8.0, 200, [3, 3, 1]),
            ((3.0, 3.0, 20.0), 10, 8.0, 30, [1, 1, 1]),
            ((3.0, 3.0, 20.0), 10, 8.0, 9, None),
        ],
    )
    def test_supercell(
        self,
        edges: tuple[float, ...],
        atoms: int,
        length: float,
        most: int,
        copies: list[int] | None,
    ) -> None:
        cell = np.diag(edges), np.zeros((atoms, 3)), np.ones(atoms, dtype=np.int64)
        found = supercell_copies(cell, length, most)
        assert (None if found is None else found.tolist()) == copies

    def test_path_of_fcc(self) -> None:
        cell = cell_of(bulk("Cu"))
        points, length, ticks = band_path(cell, 60)
        assert points.shape == (60, 3)
        assert (np.diff(length) >= 0).all()
        assert [name for _, name in ticks][:3] == ["G", "X", "W"]
        # X of the primitive cell of fcc: distance 2π/a from Γ, in 1/Å without 2π
        reciprocal = np.linalg.inv(cell[0]).T
        x = points[np.argmin(np.abs(length - ticks[1][0]))]
        assert np.linalg.norm(x @ reciprocal) == pytest.approx(1 / 3.61, rel=1e-6)

    def test_points_as_text(self) -> None:
        assert point_text(np.array([0, 0.5, -1 / 3])) == "(0, 1/2, -1/3)"
        assert point_text(np.array([0.123, 1, 0.375])) == "(0.12, 1, 3/8)"


class TestCommand:
    def run(self, *arguments: str) -> Any:
        from langevin_xtal.cli.phonons import phonons

        return CliRunner().invoke(phonons, arguments)

    def test_files(self, tmp_path: Path) -> None:
        from ase.io import write

        source, broken, out = tmp_path / "cu.cif", tmp_path / "broken.cif", tmp_path / "out"
        write(source, bulk("Cu"))
        broken.write_text("data_x\n", encoding="utf-8")
        arguments = (
            str(source), str(broken), "--out", str(out), "--cache", str(tmp_path / "cache"),
            "--potential", "ase.calculators.emt:EMT", "--length", "5", "--workers", "1",
        )  # fmt: skip
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output
        with (out / "phonons.csv").open(encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert [row["name"] for row in rows] == ["cu", str(broken)]
        assert rows[0]["imaginary"] == "false"
        assert rows[0]["atoms"] == "32"
        assert "no structure" in rows[1]["note"]
        assert (out / rows[0]["file"]).read_bytes().startswith(b"\x89PNG")
        assert self.run(*arguments).exit_code == 0  # the same run goes on
        other = self.run(*arguments, "--tolerance", "0.2")
        assert isinstance(other.exception, InputError)
        assert "holds something else" in str(other.exception)
