"""The 530 settings: the shipped table against spglib and gemmi, and every spelling of each."""

from __future__ import annotations

import re

import gemmi
import numpy as np
import pytest
import spglib
from hypothesis import given, settings
from hypothesis import strategies as st

from langevin_xtal.errors import SymmetryError
from langevin_xtal.model.groups import parse_groups, setting_notes
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.symmetry.settings import (
    Setting,
    hall_setting,
    setting_note,
    setting_of_group,
    settings_of,
    settings_of_number,
)

ALL = range(1, 531)


def operations(setting: Setting) -> set[tuple[int, ...]]:
    return {
        (*w.ravel().tolist(), *t.tolist())
        for w, t in zip(setting.rotations, setting.translations24, strict=True)
    }


@pytest.mark.parametrize("hall", ALL)
def test_table_is_that_of_spglib_and_gemmi(hall: int) -> None:
    setting, kind = Setting(hall), spglib.get_spacegroup_type(hall)
    assert (setting.number, setting.choice) == (kind.number, kind.choice)
    assert setting.hall == kind.hall_symbol
    found = spglib.get_symmetry_from_database(hall)
    mine = operations(setting)
    assert mine == {
        (*w.ravel().tolist(), *(np.rint(t * 24).astype(int) % 24).tolist())
        for w, t in zip(found["rotations"], found["translations"], strict=True)
    }
    # gemmi makes operations from the Hall symbol itself
    assert mine == {
        (*(np.array(op.rot) // 24).ravel().tolist(), *(np.array(op.tran) % 24).tolist())
        for op in gemmi.symops_from_hall(setting.hall.replace("=", ""))
    }


@pytest.mark.parametrize("hall", ALL)
def test_change_leads_to_the_setting_of_the_package(hall: int) -> None:
    setting = Setting(hall)
    matrix, shift = setting.change
    inverse = np.linalg.inv(matrix)
    got = set()
    for rotation, translation in zip(setting.rotations, setting.translations, strict=True):
        turned = matrix @ rotation @ inverse
        for lattice in np.ndindex(3, 3, 3):
            moved = matrix @ (translation + lattice) + shift - turned @ shift
            assert np.allclose(moved * 24, np.rint(moved * 24), atol=1e-6)
            got.add(
                (
                    *np.rint(turned).astype(int).ravel().tolist(),
                    *(np.rint(moved * 24).astype(int) % 24).tolist(),
                )
            )
    group = SpaceGroup(setting.number)
    assert setting.default.hall_number == group.hall_number
    assert got == operations(setting.default)


@pytest.mark.parametrize("hall", ALL)
def test_every_spelling_finds_the_setting(hall: int) -> None:
    """With a choice it is the only one; without, it is among few, all of the same type."""
    setting, kind = Setting(hall), spglib.get_spacegroup_type(hall)
    mine = operations(setting)
    own = kind.international.split("=")[-1].strip()
    plain = [own, kind.international_full, own.replace(" ", ""), own.replace("_", "")]
    plain += [setting.full.upper().replace("_", ""), setting.full.lower()]
    plain += [own.replace("_", "").replace(" ", "_"), setting.full.replace(" ", "_")]
    for text in plain:
        found = settings_of(text)
        assert setting in found
        assert {s.number for s in found} == {setting.number}
        assert len(found) <= 4
    if kind.choice:
        exact = [f"{own}:{kind.choice}", f"{kind.international_full} :{kind.choice}"]
        exact += [f"{kind.international_short}:{kind.choice}", f"{kind.number}:{kind.choice}"]
        for text in exact:
            assert {frozenset(operations(s)) for s in settings_of(text)} == {frozenset(mine)}
    by_hall = hall_setting(kind.hall_symbol)
    assert by_hall is not None
    assert operations(by_hall) == mine
    assert setting in settings_of(kind.schoenflies)
    assert setting in settings_of(str(kind.number))
    assert SpaceGroup.parse(own).number == kind.number


def test_names_of_gemmi() -> None:
    """gemmi's table was compiled independently, and has the names from before 1992."""
    known = {frozenset(operations(Setting(h))): h for h in ALL}
    found = 0
    for group in gemmi.spacegroup_table():
        key = frozenset(
            (*(np.array(op.rot) // 24).ravel().tolist(), *(np.array(op.tran) % 24).tolist())
            for op in group.operations()
        )
        if key in known:
            choice = group.ext if group.ext in ("1", "2", "H", "R") else ""
            settings = settings_of(f"{group.hm}:{choice}" if choice else group.hm)
            same = [s for s in settings if frozenset(operations(s)) == key]
            # a monoclinic symbol without axes, such as gemmi's 'B 2/b', leaves the axis open
            assert same, (group.hm, choice)
            assert {s.number for s in settings} == {group.number}
            found += 1
    assert found > 500


SPELLINGS = {
    "Fm3m": (225, ""),
    "Fd3m:2": (227, "2"),
    "F d -3 m Z": (227, "2"),
    "F d -3 m S": (227, "1"),
    "Pa3": (205, ""),
    "Im3m": (229, ""),
    "Ia3d": (230, ""),
    "Pm3": (200, ""),
    "Cmca": (64, ""),
    "Cmma": (67, ""),
    "Cmmb": (67, "ba-c"),
    "Abm2": (39, ""),
    "Pbnm": (62, "cab"),
    "P21/n": (14, "b2"),
    "P 1 21/n 1": (14, "b2"),
    "P2(1)/c": (14, "b1"),
    "P 2~1~/c": (14, "b1"),
    "P2₁/c": (14, "b1"),
    "P 1 1 21/a": (14, "c1"),
    "I2/a": (15, "b3"),
    "R-3m:H": (166, "H"),
    "R -3 m R": (166, "R"),
    "r3c:r": (161, "R"),
    "P4/nmm:2": (129, "2"),
    "Fm3\u0305m": (225, ""),
    r"$Fm\bar{3}m$": (225, ""),
    "F m −3 m": (225, ""),
    "P6_3/mmc": (194, ""),
    "P 63/m 2/m 2/c": (194, ""),
    "F 4/m -3 2/m": (225, ""),
    "Oh^5": (225, ""),
    "D_2h^16": (62, ""),
    "D₂ₕ¹⁶": (62, ""),
    "Td-2": (216, ""),
    "-F 4vw 2vw 3": (227, "2"),
    "227:2": (227, "2"),
    "No. 62": (62, ""),
    "P212121": (19, ""),
    "Bbcm": (64, "bca"),
}


@pytest.mark.parametrize("text", SPELLINGS)
def test_spellings(text: str) -> None:
    first = settings_of(text)[0]
    assert (first.number, first.choice) == SPELLINGS[text]
    assert SpaceGroup.parse(text).number == SPELLINGS[text][0]


@pytest.mark.parametrize(
    ("text", "near"),
    [("Pnmaa", "Pnma"), ("Fm-3mm", "Fm-3m"), ("P21/k", "P2_1/c"), ("R-3q", "R-3")],
)
def test_a_near_miss_proposes_the_nearest(text: str, near: str) -> None:
    with pytest.raises(SymmetryError, match="did you mean") as error:
        settings_of(text)
    assert near in str(error.value)


@pytest.mark.parametrize("text", ["", "Q", "Pnma:7", "227:3", "0", "231", "-", ":", "x" * 9999])
def test_refused(text: str) -> None:
    with pytest.raises(SymmetryError, match="is not known"):
        settings_of(text)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = settings_of(text)
    except SymmetryError as error:
        assert str(error)
    else:
        assert len({s.number for s in found}) == 1


@pytest.mark.parametrize("hall", [1, 3, 82, 293, 434, 458, 526, 530])
def test_cells_that_fit(hall: int) -> None:
    setting = Setting(hall)
    rng = np.random.default_rng(hall)
    metric = (lambda m: m @ m.T)(np.diag([4.0, 5.0, 7.0]) + rng.uniform(0, 1, (3, 3)))
    mean = np.mean([w.T @ metric @ w for w in setting.rotations], axis=0)
    assert setting.fits(np.linalg.cholesky(mean))
    bent = mean + np.diag([0, 0, 0.2]) * mean
    assert setting.fits(np.linalg.cholesky(bent)) == (
        hall not in (434, 526, 530)
    )  # where c is tied to a


def test_numbers_and_notes() -> None:
    assert parse_groups("62 225-227") == (62, 225, 226, 227)
    assert parse_groups("P21/n, Fm3m,Pbnm,C2/c") == (14, 225, 62, 15)
    assert len(settings_of_number(14)) == 9
    notes = setting_notes("62,Pbnm,Pnma,140-142,all,P 21/n,Fm3m")
    assert len(notes) == 2
    assert notes[0].startswith("Pbnm means P b n m (choice cab), a setting of group 62")
    assert setting_note("P2_1/c") == setting_note("14") == setting_note("Fd-3m") == ""
    assert "choice 1" in setting_note("227:2")


def orbit_of(setting: Setting, point: np.ndarray) -> np.ndarray:
    """Images of a point under the operations, each once, in units of 1/24e6."""
    images = point @ np.swapaxes(setting.rotations, 1, 2) + setting.translations
    return np.unique(np.rint(images * 24e6).astype(np.int64) % 24_000_000, axis=0)


@pytest.mark.parametrize("hall", ALL)
@given(parts=st.lists(st.integers(0, 23), min_size=3, max_size=3), general=st.booleans())
@settings(max_examples=4, deadline=None)
def test_orbits_there_and_back(hall: int, parts: list[int], general: bool) -> None:
    """The orbit of a transformed site is, transformed back, the orbit of the site."""
    setting = Setting(hall)
    point = np.array(parts) / 24 + general * np.array([0.013, 0.029, 0.007])
    there = setting.point_in_default(point)
    assert ((there >= 0) & (there < 1)).all()
    matrix, shift = setting.change
    inverse = np.linalg.inv(matrix)
    # lattice vectors of either cell may be fractions of the other's
    whole = np.array(list(np.ndindex(3, 3, 3)), dtype=float)
    mine = orbit_of(setting, point)
    images = there @ np.swapaxes(setting.default.rotations, 1, 2) + setting.default.translations
    back = ((images[:, None] + whole).reshape(-1, 3) - shift) @ inverse.T
    back = np.unique(np.rint(back * 24e6).astype(np.int64) % 24_000_000, axis=0)
    np.testing.assert_array_equal(back, mine)


@pytest.mark.parametrize("hall", ALL)
def test_cells_go_along(hall: int) -> None:
    """Distances stay: the metric in the package's setting is that of the cell given."""
    setting, rng = Setting(hall), np.random.default_rng(hall)
    start = np.array([[40.0, 3, 5], [3, 70, 7], [5, 7, 100]])
    metric = np.mean([r.T @ start @ r for r in setting.rotations], axis=0)
    lattice = np.linalg.cholesky(metric)
    moved = setting.lattice_in_default(lattice)
    assert setting.fits(lattice)
    assert setting.default.fits(moved)
    step = rng.normal(size=3)
    assert np.linalg.norm(step @ lattice) == pytest.approx(
        np.linalg.norm(setting.change[0] @ step @ moved)
    )


@pytest.mark.parametrize("hall", ALL)
def test_settings_within_a_group(hall: int) -> None:
    """Found by Hall number, Hall symbol, choice, and symbol with choice."""
    setting = Setting(hall)
    texts = [f"hall {hall}", f"hall {setting.hall}"]
    if not {s.number for s in settings_of(setting.hall)} & {setting.number}:
        texts.append(setting.hall)  # it is no H-M symbol of this group
    if setting.choice:
        texts += [setting.choice, f"{setting.symbol}:{setting.choice}"]
    for text in texts:
        found = setting_of_group(text, setting.number)
        assert operations(found) == operations(setting)


@pytest.mark.parametrize(
    ("text", "number", "choice"),
    [
        ("2", 227, "2"),
        ("origin choice 2", 227, "2"),
        ("Fd-3m:2", 227, "2"),
        ("526", 227, "2"),
        ("rhombohedral axes", 166, "R"),
        ("H", 166, "H"),
        ("unique axis c", 14, "c1"),
        ("unique axis b, cell choice 2", 14, "b2"),
        ("cell choice 3", 14, "b3"),
        ("P21/n", 14, "b2"),
        ("c", 3, "c"),
        ("Pbnm", 62, "cab"),
        ("abc", 62, ""),
    ],
)
def test_spellings_of_a_setting(text: str, number: int, choice: str) -> None:
    assert setting_of_group(text, number).choice == choice


@pytest.mark.parametrize(
    ("text", "number", "message"),
    [
        ("3", 227, "group 227 has no setting '3'; give one of 1, 2"),
        ("Pnma", 227, "'Pnma' is one of group 62, not of 227; give one of 1, 2"),
        ("Fd-3m", 227, "group 227 has no setting 'Fd-3m'; give one of 1, 2"),
        ("nonsense", 62, "space group 'nonsense' is not known"),
    ],
)
def test_no_setting_of_the_group(text: str, number: int, message: str) -> None:
    with pytest.raises(SymmetryError, match=re.escape(message)):
        setting_of_group(text, number)
