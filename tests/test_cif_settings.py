"""CIF in all 530 settings: right or refused, never another crystal.

By default every seventh setting is tried; ``LX_ALL_SETTINGS=1`` tries all (half a minute).
"""

from __future__ import annotations

import os
from itertools import product

import gemmi
import numpy as np
import pytest
import spglib

from langevin_xtal.errors import RejectError
from langevin_xtal.structures.cif import parse_cif

ALL = bool(os.environ.get("LX_ALL_SETTINGS"))
SETTINGS = [h for h in range(1, 531) if ALL or h % 7 == 1 or h in (434, 459, 526)]
ELEMENTS = ("Na", "Cl", "O")
Z = {"Na": 11, "Cl": 17, "O": 8}


class Crystal:
    """Three sites in a setting: one at a special place, two in general position."""

    def __init__(self, hall: int) -> None:
        ops = spglib.get_symmetry_from_database(hall)
        self.kind = spglib.get_spacegroup_type(hall)
        self.rotations, self.translations = ops["rotations"], ops["translations"]
        rng = np.random.default_rng(hall)
        skew = np.array([[90.0, 7, 5], [7, 120, 9], [5, 9, 150]])
        metric = np.mean([w.T @ skew @ w for w in self.rotations], axis=0)
        self.lattice = np.linalg.cholesky(metric)
        fixed = np.mean([w @ [0.11, 0.23, 0.37] + t for w, t in self.subgroup()], axis=0)
        self.sites = [fixed % 1.0, *rng.uniform(0.03, 0.97, (2, 3)).round(4)]
        self.numbers: list[int] = []
        self.frac: list[np.ndarray] = []
        self.counts: list[int] = []
        for element, site in zip(ELEMENTS, self.sites, strict=True):
            images = self.orbit(site)
            self.frac += images
            self.numbers += [Z[element]] * len(images)
            self.counts.append(len(images))
        self.spread()

    def spread(self) -> None:
        """Scale the cell until all distances are those of a crystal."""
        delta = np.array(self.frac)[:, None] - np.array(self.frac)
        delta -= np.rint(delta)
        length = np.linalg.norm(delta @ self.lattice, axis=2)
        np.fill_diagonal(length, np.inf)
        radius = np.array([gemmi.Element(z).covalent_r for z in self.numbers])
        self.lattice /= min(1.0, (length / (radius[:, None] + radius)).min())

    def subgroup(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """A twofold axis or mirror without translation, where there is one."""
        for w, t in zip(self.rotations, self.translations, strict=True):
            if np.allclose(w @ w, np.eye(3)) and not np.allclose(w, np.eye(3)):
                twice = w @ t + t
                if np.allclose(twice, 0):
                    return [(np.eye(3), np.zeros(3)), (w, t)]
        return [(np.eye(3), np.zeros(3))]

    def orbit(self, site: np.ndarray) -> list[np.ndarray]:
        kept: list[np.ndarray] = []
        for w, t in zip(self.rotations, self.translations, strict=True):
            image = (w @ site + t) % 1.0
            delta = np.array(kept).reshape(-1, 3) - image
            delta -= np.rint(delta)
            if not (np.abs(delta).max(axis=1) < 1e-6).any():
                kept.append(image)
        return kept

    def cif(self, names: list[str], operations: bool, formula: bool) -> str:
        lengths = np.linalg.norm(self.lattice, axis=1)
        unit = self.lattice / lengths[:, None]
        angles = np.degrees(np.arccos([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]]))
        lines = ["data_x"]
        lines += [f"_cell_length_{n} {v:.6f}" for n, v in zip("abc", lengths, strict=True)]
        for name, angle in zip(("alpha", "beta", "gamma"), angles, strict=True):
            lines.append(f"_cell_angle_{name} {angle:.6f}")
        lines += names
        if formula:
            parts = (f"{e}{n}" for e, n in zip(ELEMENTS, self.counts, strict=True))
            lines.append(f"_chemical_formula_sum '{' '.join(parts)}'")
        if operations:
            lines += ["loop_", "_space_group_symop_operation_xyz"]
            lines += [
                f"'{text(w, t)}'" for w, t in zip(self.rotations, self.translations, strict=True)
            ]
        lines += ["loop_", "_atom_site_label", "_atom_site_type_symbol"]
        lines += [f"_atom_site_fract_{axis}" for axis in "xyz"]
        for element, site in zip(ELEMENTS, self.sites, strict=True):
            lines.append(f"{element}1 {element} " + " ".join(f"{x:.6f}" for x in site))
        return "\n".join(lines) + "\n"

    def is_it(self, cell: tuple) -> bool:
        """The same atoms in the same cell."""
        lattice, frac, numbers = cell
        if len(numbers) != len(self.numbers) or sorted(numbers) != sorted(self.numbers):
            return False
        if not np.allclose(lattice @ lattice.T, self.lattice @ self.lattice.T, atol=1e-3):
            return False
        delta = frac[:, None] - np.array(self.frac)
        delta -= np.rint(delta)
        far = np.abs(delta).max(axis=2)
        far[numbers[:, None] != np.array(self.numbers)] = 1.0
        return bool(far.min(axis=1).max() < 1e-4) and bool(far.min(axis=0).max() < 1e-4)


def text(rotation: np.ndarray, translation: np.ndarray) -> str:
    parts = []
    for row, shift in zip(rotation, translation, strict=True):
        part = "".join(f"{'+' if n > 0 else '-'}{'xyz'[k]}" for k, n in enumerate(row) if n)
        twelfth = round(shift * 24) % 24
        parts.append(part + (f"+{twelfth}/24" if twelfth else ""))
    return ",".join(parts)


def spellings(kind: spglib.SpaceGroupType) -> dict[str, list[str]]:
    own = kind.international.split("=")[-1].strip()
    choice = f":{kind.choice}" if kind.choice else ""
    hall = kind.hall_symbol.replace("'", "''") if "'" in kind.hall_symbol else kind.hall_symbol
    quote = '"' if "'" in hall or '"' not in hall else "'"
    return {
        "hall": [f"_symmetry_space_group_name_Hall {quote}{kind.hall_symbol}{quote}"],
        "full": [f"_symmetry_space_group_name_H-M '{kind.international_full}'"],
        "own": [f"_space_group_name_H-M_alt '{own}'"],
        "full with choice": [
            f"_symmetry_space_group_name_H-M '{kind.international_full} {choice}'"
        ],
        "short with choice": [f"_space_group_name_H-M_alt '{kind.international_short}{choice}'"],
        "own short": [f"_symmetry_space_group_name_H-M '{short(own, kind.number)}'"],
        "number": [],
    }


def short(own: str, number: int) -> str:
    """The symbol of the setting itself, shortened: ``P 21/n`` of ``P 1 2_1/n 1``."""
    plain = own.replace("_", "")
    return " ".join(p for p in plain.split() if p != "1") if 3 <= number <= 15 else plain


def is_certain(name: str, kind: spglib.SpaceGroupType) -> bool:
    return name == "hall" or (name.endswith("with choice") and bool(kind.choice))


@pytest.mark.parametrize("hall", SETTINGS)
def test_right_or_refused(hall: int) -> None:
    crystal = Crystal(hall)
    read = refused = 0
    for (name, lines), with_number, operations, formula in product(
        spellings(crystal.kind).items(), (False, True), (False, True), (False, True)
    ):
        if name == "number" and not with_number:
            continue
        tags = lines + [f"_space_group_IT_number {crystal.kind.number}"] * with_number
        try:
            found = parse_cif(crystal.cif(tags, operations, formula))
        except RejectError as reject:
            assert not is_certain(name, crystal.kind), (name, with_number, operations, str(reject))
            assert not operations
            assert str(reject)
            refused += 1
        else:
            assert crystal.is_it(found.cell), (name, tags, operations, formula)
            read += 1
    assert read >= 30
