"""Powder patterns: reading, simulation against pymatgen and a direct sum, refinement, search."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import langevin_xtal as lx
from langevin_xtal.cli import run
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.diffraction.cells import Bins, fitted_cells
from langevin_xtal.diffraction.pattern import Pattern, estimated_error, read_pattern
from langevin_xtal.diffraction.radiation import Radiation, radiation, scattering_parameters
from langevin_xtal.diffraction.refine import (
    Parameters,
    Target,
    _Fit,
    cell_freedom,
    refine,
    refine_in_stages,
    site_basis,
)
from langevin_xtal.diffraction.simulate import (
    Crystal,
    PatternModel,
    Profile,
    reflections,
    simulate,
    stick_pattern,
)
from langevin_xtal.diffraction.solve import (
    Description,
    SolveOptions,
    in_supergroup,
    is_settled,
    penalised,
    promising,
    shortest_distance,
    solve,
)
from langevin_xtal.errors import DataError, InputError
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.symmetry.wyckoff import wyckoff_positions

X = np.arange(8.0, 80.0, 0.03)


def crystal_of_type(k: int) -> Crystal:
    data = reference_dataset()
    sites = data.sites_of(k)
    return Crystal(
        int(data.group[k]),
        data.lattice[k],
        data.numbers[sites],
        data.frac[sites],
        data.multiplicity[sites],
    )


def rutile() -> Crystal:
    frac = np.array([[0.0, 0, 0], [0.305, 0.305, 0]])
    return Crystal(136, np.diag([4.594, 4.594, 2.959]), np.array([22, 8]), frac, np.array([2, 4]))


def made_up(number: int, seed: int = 0) -> Crystal:
    """Two sites, one on a special position where there is one, in a cell the group allows."""
    rng = np.random.default_rng([number, seed])
    driver, free = cell_freedom(number)
    base = np.array([5.1, 6.3, 7.4, 90.0, 90.0, 90.0])
    for k in free:
        base[k] += rng.uniform(-0.5, 0.5) if k < 3 else rng.uniform(5, 12)
    if SpaceGroup(number).crystal_system in ("trigonal", "hexagonal"):
        base[5] = 120.0
    base[:3] = base[driver[:3]]
    from langevin_xtal.crystal.cell import cell_from_parameters

    table = wyckoff_positions(number)
    chosen = [table[0], table[len(table) // 2]]
    if chosen[0].freedom == 0 and chosen[0] is chosen[1]:
        chosen = chosen[:1]
    frac = np.array([w.base + w.projector @ rng.uniform(0.05, 0.3, 3) for w in chosen])
    return Crystal(
        number,
        cell_from_parameters(base),
        np.array([26, 8])[: len(chosen)],
        frac % 1.0,
        np.array([w.multiplicity for w in chosen]),
    )


def noisy(crystal: Crystal, seed: int = 0, counts: float = 1e4, **profile: float) -> Pattern:
    shape = {"u": 0.02, "v": -0.01, "w": 0.016, "zero": 0.03, "b": 0.4} | profile
    y = simulate(crystal, radiation("CuKa"), X, Profile(**shape))
    y = counts * y / y.max() + 150 + 200 * np.exp(-X / 15)
    return Pattern.of(X, np.random.default_rng(seed).poisson(y))


# -- simulation


@pytest.mark.parametrize("number", [1, 2, 5, 14, 15, 33, 43, 62, 70, 88, 122, 141, 148, 152, 161,
                                    166, 178, 186, 194, 198, 206, 216, 220, 227, 230])  # fmt: skip
def test_sticks_are_those_of_pymatgen(number: int) -> None:
    from pymatgen.analysis.diffraction.xrd import XRDCalculator

    crystal = made_up(number)
    frac, site = crystal.atoms()
    structure = to_structure((crystal.lattice, frac, crystal.numbers[site]))
    theirs = XRDCalculator("CuKa1", symprec=0).get_pattern(
        structure, two_theta_range=(0, 60), scaled=False
    )
    angles, heights, _ = stick_pattern(crystal, 1.54056, 60.0)
    place = np.abs(angles[:, None] - theirs.x).argmin(axis=1)
    strong = heights > 1e-3 * heights.max()
    assert np.abs(angles - theirs.x[place])[strong].max() < 1e-4
    summed = np.bincount(place[strong], heights[strong], len(theirs.x))
    # pymatgen leaves out what is below a thousandth of the highest peak
    assert np.abs(summed - theirs.y).max() < 2e-3 * theirs.y.max()


@pytest.mark.parametrize("number", [2, 19, 62, 141, 166, 194, 227])
def test_intensities_are_a_direct_sum_over_all_atoms(number: int) -> None:
    """Every lattice point h of the sphere, F by the definition, no symmetry used."""
    crystal = made_up(number, seed=1)
    wavelength, limit = 1.2, 50.0
    frac, site = crystal.atoms()
    table = scattering_parameters(crystal.numbers.tolist())
    axes = [np.arange(-12, 13)] * 3
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    length = np.linalg.norm(hkl @ np.linalg.inv(crystal.lattice).T, axis=1)
    inside = (length > 0) & (length <= 2 * math.sin(math.radians(limit / 2)) / wavelength)
    total: dict[float, float] = {}
    for h, q in zip(hkl[inside], length[inside], strict=True):
        s2 = q * q / 4
        factor = 0.0
        for k, (a, b) in enumerate(zip(table[..., 0], table[..., 1], strict=True)):
            f = crystal.numbers[k] - 41.78214 * s2 * (a * np.exp(-b * s2)).sum()
            factor += f * np.exp(2j * np.pi * (frac[site == k] @ h)).sum()
        theta = math.asin(q * wavelength / 2)
        lp = (1 + math.cos(2 * theta) ** 2) / (math.sin(theta) ** 2 * math.cos(theta))
        key = round(math.degrees(2 * theta), 5)
        total[key] = total.get(key, 0.0) + abs(factor) ** 2 * lp
    angles, heights, _ = stick_pattern(crystal, wavelength, limit)
    ours: dict[float, float] = {}
    for angle, height in zip(angles, heights, strict=True):
        ours[round(angle, 5)] = ours.get(round(angle, 5), 0.0) + height
    top = max(total.values())
    wanted = {key: v for key, v in total.items() if v > 1e-6 * top}
    for key, value in wanted.items():
        near = sum(v for angle, v in ours.items() if abs(angle - key) < 2e-5)
        assert near == pytest.approx(value, abs=1e-6 * top)
    assert sum(ours.values()) == pytest.approx(sum(total.values()), rel=1e-6)


def test_reflections_count_every_lattice_point_once() -> None:
    lattice = np.diag([5.0, 5.0, 5.0])
    found = reflections(221, lattice, 1.0, 59.5)  # primitive, no absences
    axes = [np.arange(-6, 7)] * 3
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    squares = (points**2).sum(axis=1)
    assert found.multiplicity.sum() == ((squares > 0) & (squares < 25)).sum()


def test_march_dollase_is_one_without_and_conserves_a_cubic_mean() -> None:
    crystal = made_up(221)
    model = PatternModel(crystal, Radiation(((1.54, 1.0),)), 60.0)
    lattice = torch.from_numpy(crystal.lattice)
    one = model.march_dollase(lattice, torch.tensor(1.0, dtype=torch.float64), (0, 0, 1))
    assert torch.allclose(one, torch.ones_like(one))
    r = 0.7
    factor = model.march_dollase(lattice, torch.tensor(r, dtype=torch.float64), (0, 0, 1))
    place = [
        k for k, h in enumerate(model.reflections.hkl.tolist()) if sorted(map(abs, h)) == [0, 0, 1]
    ]
    wanted = (2 * (1 / r) ** -1.5 + r**-3) / 3  # two images across the axis, one along it
    assert float(factor[place[0]]) == pytest.approx(wanted)


def test_batches_of_coordinates_give_what_each_alone_gives() -> None:
    crystal = made_up(62)
    model = PatternModel(crystal, radiation("CuKa1"), 60.0)
    many = torch.from_numpy(crystal.frac + np.linspace(0, 0.05, 4)[:, None, None])
    q = model.inverse_squares(torch.from_numpy(crystal.lattice))
    b = torch.full((4,), 0.5, dtype=torch.float64)
    together = model.structure_factors(many, q.expand(4, -1), b)
    for k in range(4):
        assert torch.allclose(together[k], model.structure_factors(many[k], q, b[k]))


# -- refinement


@pytest.mark.parametrize("number", [2, 14, 62, 166])
def test_jacobian_is_a_finite_difference(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # peaks cut off at a distance jump when a point enters their range
    monkeypatch.setattr("langevin_xtal.diffraction.refine.REACH", 1e5)
    crystal = made_up(number, seed=2)
    target = Target.of(noisy(crystal).within(8, 40))
    fit = _Fit(crystal, target.pattern, Profile(w=0.03, b=0.3), 0.0, True, True, True, True, 6)
    theta = np.concatenate([np.zeros(fit.geometry.count), fit.own_start])
    theta[: fit.geometry.count] += 0.002
    exact = fit.jacobian(theta).copy()
    q = fit.q.copy()
    for k in range(len(theta)):
        step = np.zeros(len(theta))
        step[k] = 1e-6
        ahead = fit.residual(theta + step).copy()
        slope = (ahead - fit.residual(theta - step)) / 2e-6
        slope -= q @ (q.T @ slope)  # the part that Kaufman's approximation keeps
        # widths of the Caglioti formula follow the angles; that term is left out
        assert np.linalg.norm(slope - exact[:, k]) < 0.03 * np.linalg.norm(slope) + 1e-3


@pytest.mark.parametrize("k", range(0, 24, 3))
def test_perturbed_crystals_come_back(k: int) -> None:
    """Coordinates off by 0.02 of an axis, lengths by 1 %, angles by half a degree; with noise."""
    crystal = crystal_of_type(k)
    rng = np.random.default_rng(k)
    geometry = Parameters(crystal)
    change = np.zeros(geometry.count)
    for place, which in enumerate(geometry.free_cell):
        change[place] = rng.choice([-1, 1]) * (0.01 if which < 3 else 0.5)
    size = 0.02 * float(np.linalg.norm(crystal.lattice, axis=1).min())
    change[geometry.cell_count :] = size * rng.choice(
        [-1, 1], geometry.count - geometry.cell_count
    )
    start = geometry.crystal_at(change)
    fitted = refine_in_stages(start, Target.of(noisy(crystal)), blurs=(1.0, 0.5, 0.2))
    assert fitted.gof < 1.15
    lengths = [np.linalg.norm(c.lattice, axis=1) for c in (fitted.crystal, crystal)]
    assert np.abs(lengths[0] / lengths[1] - 1).max() < 1e-3
    assert fitted.profile.zero == pytest.approx(0.03, abs=0.01)
    assert np.isfinite(fitted.calculated).all()


def test_preferred_orientation_comes_back() -> None:
    crystal = rutile()
    pattern = noisy(crystal, march=0.8)
    without = refine_in_stages(crystal, Target.of(pattern))
    fitted = refine_in_stages(crystal, Target.of(pattern), orientation=True)
    assert without.gof > 1.3 * fitted.gof
    assert fitted.profile.march == pytest.approx(0.8, abs=0.02)


def test_free_coordinates_are_those_of_the_wyckoff_positions() -> None:
    for number in (12, 36, 62, 141, 166, 194, 225):
        crystal = made_up(number)
        table = wyckoff_positions(number)
        freedom = table[0].freedom + (
            table[len(table) // 2].freedom if len(crystal.numbers) > 1 else 0
        )
        assert site_basis(crystal).shape[2] == freedom


def test_cells_three_per_cent_off_are_found() -> None:
    crystal = rutile()
    target = Target.of(noisy(crystal))
    wrong = replace(crystal, lattice=np.diag([1.03, 1.03, 0.975]) @ crystal.lattice)
    best = fitted_cells(wrong, target, Bins(target), np.random.default_rng(0))
    fitted = min((refine_in_stages(c, target) for _, c in best), key=lambda f: f.r_wp)
    assert fitted.gof < 1.15


# -- patterns


def test_errors_of_counts_are_their_roots() -> None:
    y = np.random.default_rng(0).poisson(400.0, 4000).astype(float)
    assert np.median(estimated_error(y)) == pytest.approx(20.0, rel=0.15)
    assert np.median(estimated_error(y / 400)) == pytest.approx(0.05, rel=0.15)


def test_readers_agree(tmp_path: Path) -> None:
    pattern = noisy(crystal_of_type(0))
    x, y = pattern.two_theta, pattern.intensity
    (tmp_path / "a.xy").write_text(
        "# made up\n2theta I\n" + "\n".join(f"{a:.4f} {b:g}" for a, b in zip(x, y, strict=True))
    )
    (tmp_path / "a.csv").write_text(
        "angle,intensity\n" + "\n".join(f"{a:.4f},{b:g}" for a, b in zip(x, y, strict=True))
    )
    (tmp_path / "a.xye").write_text(
        "\n".join(f"{a:.4f}\t{b:g}\t{math.sqrt(b):.3f}" for a, b in zip(x, y, strict=True))
    )
    (tmp_path / "a.xrdml").write_text(
        '<?xml version="1.0"?><xrdMeasurements xmlns="http://www.xrdml.com/XRDMeasurement/1.5">'
        "<xrdMeasurement><usedWavelength><kAlpha1>1.5405980</kAlpha1><kAlpha2>1.5444260</kAlpha2>"
        "<ratioKAlpha2KAlpha1>0.5</ratioKAlpha2KAlpha1></usedWavelength><scan><dataPoints>"
        f'<positions axis="2Theta"><startPosition>{x[0]}</startPosition><endPosition>{x[-1]}'
        f"</endPosition></positions><counts>{' '.join(f'{v:g}' for v in y)}</counts>"
        "</dataPoints></scan></xrdMeasurement></xrdMeasurements>"
    )
    for name in ("a.xy", "a.csv", "a.xye", "a.xrdml"):
        found = read_pattern(tmp_path / name)
        assert np.allclose(found.two_theta, x, atol=1e-3)
        assert np.allclose(found.intensity, y)
        assert len(found.radiation.lines) == 2
    assert read_pattern(tmp_path / "a.xye").error[0] == pytest.approx(math.sqrt(y[0]), abs=1e-3)
    assert read_pattern(tmp_path / "a.xrdml").radiation.wavelength == pytest.approx(1.540598)
    assert read_pattern(tmp_path / "a.xrdml", wavelength="MoKa1").radiation.wavelength < 0.8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no lines of two or three numbers"),
        ("\n".join(f"{k} 1" for k in range(20)), "give 50 or more"),
        ("\n".join(f"{k} 1" for k in range(150, 250)), "0 to 180"),
        ("\n".join(f"{100 - k} 1" for k in range(90)), "do not increase"),
        ("\n".join(f"{k} nan" for k in range(90)), "is no number"),
        ("\n".join(f"{k} 0" for k in range(90)), "no positive intensity"),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>", "entities"),
        ("<x><y></x>", "no sound XML"),
        ("<x></x>", "without dataPoints"),
    ],
)
def test_what_is_no_pattern_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "scan.xy").write_text(text)
    with pytest.raises(DataError, match=words):
        read_pattern(tmp_path / "scan.xy")


def test_noise_has_no_peaks() -> None:
    y = np.random.default_rng(0).poisson(300.0, len(X))
    with pytest.raises(DataError, match="no peaks above its noise"):
        Target.of(Pattern.of(X, y))


@pytest.mark.parametrize("text", ["", "XyKa", "0", "nan", "9"])
def test_unknown_wavelengths(text: str) -> None:
    with pytest.raises(InputError, match="is not known"):
        radiation(text)


def test_tubes() -> None:
    assert radiation("Cu Kα") == radiation("CuKa")
    assert sum(share for _, share in radiation("MoKa").lines) == pytest.approx(1.0)
    assert radiation(1.2).wavelength == 1.2


def test_elements_without_factors() -> None:
    with pytest.raises(InputError, match="no X-ray scattering factor is known of Es"):
        scattering_parameters([99])


# -- search


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rock salt, with noise."""
    frac = np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]])
    salt = Crystal(225, 5.64 * np.eye(3), np.array([11, 17]), frac, np.array([4, 4]))
    pattern = noisy(salt)
    path = tmp_path_factory.mktemp("scan") / "salt.xy"
    path.write_text(
        "\n".join(
            f"{a:.3f} {b:g}" for a, b in zip(pattern.two_theta, pattern.intensity, strict=True)
        )
    )
    return path


@pytest.mark.slow
def test_rock_salt_is_solved_from_its_composition(scan: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "solved"
    command = ["solve", "--formula", "NaCl", "--pattern", str(scan), "--atoms", "2", "--n", "12",
               "--threads", "1", "--out", str(out)]  # fmt: skip
    assert run(command) == 0
    capsys.readouterr()
    names = sorted(p.name for p in out.glob("*.cif"))
    assert names[0] == "01_NaCl_225.cif"
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Lattice, Structure

    best = Structure.from_file(out / names[0])
    salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    assert StructureMatcher(ltol=0.01, stol=0.02, angle_tol=0.5).fit(best, salt)
    assert best.volume == pytest.approx(5.64**3, rel=1e-3)
    lines = (out / "solutions.csv").read_text().splitlines()
    assert len(lines) == len(names) + 1
    # the same crystal, its origin on sodium or on chlorine
    assert "Na 4a Cl 4b" in lines[1] or "Na 4b Cl 4a" in lines[1]
    assert (out / "fit.png").stat().st_size > 10_000
    assert run(command) == 2
    assert "holds something already" in capsys.readouterr().err


@pytest.mark.parametrize(("stretch", "group"), [(1.0, 225), (1.004, 139)])
def test_a_supergroup_is_taken_where_the_pattern_allows_it(stretch: float, group: int) -> None:
    """Rock salt described in I4/mmm, as it is and stretched along c."""
    a = 5.64 / math.sqrt(2)
    frac = np.array([[0.0, 0, 0], [0, 0, 0.5]])
    lattice = np.diag([a, a, stretch * 5.64])
    salt = Crystal(139, lattice, np.array([11, 17]), frac, np.array([2, 2]))
    target = Target.of(noisy(salt))
    start = Crystal(139, lattice * 1.001, salt.numbers, frac, salt.multiplicity)
    given = Description(refine(start, target), target, SolveOptions())
    refined = in_supergroup(given).refined
    assert refined.crystal.group == group
    assert refined.gof < 1.1
    assert abs(np.linalg.det(refined.crystal.lattice)) / len(
        refined.crystal.atoms()[0]
    ) == pytest.approx(stretch * 5.64**3 / 8, rel=1e-3)


def test_starts_of_many_settings_are_refined_and_likely_ones_first() -> None:
    """A setting of probability 0.9 is not passed over for those that look a little better."""

    class Chance(NamedTuple):
        probability: float

    class Setting(NamedTuple):
        name: int
        choice: Chance

    def candidate(name: int, probability: float) -> Any:
        return SimpleNamespace(request=Setting(name, Chance(probability)))

    salt = Crystal(225, np.eye(3), np.array([11]), np.zeros((1, 3)), np.array([4]))
    candidates = [candidate(0, 0.001), candidate(1, 0.001), candidate(2, 0.9)]
    starts = [
        (0.90, salt, 0),
        (0.899, salt, 0),
        (0.898, salt, 0),
        (0.89, salt, 1),
        (0.885, salt, 2),
    ]
    chosen = promising(starts, candidates, 4)
    assert [place for _, _, place in chosen] == [2, 0, 0, 1]
    assert [likeness for likeness, _, _ in promising(starts, candidates, 5)] == [
        0.885, 0.90, 0.899, 0.89, 0.898
    ]  # fmt: skip


def test_of_equal_fits_the_likelier_setting_is_first() -> None:
    frac = np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]])
    salt = Crystal(225, 5.64 * np.eye(3), np.array([11, 17]), frac, np.array([4, 4]))
    refined = refine(salt, Target.of(noisy(salt)))
    even = penalised(refined, 1.0)
    points = len(refined.pattern)
    assert even == pytest.approx(refined.r_wp * points ** (refined.parameters / (2 * points)))
    unlikely = penalised(refined, 1.0, math.log(0.01))
    assert unlikely == pytest.approx(even * 0.01 ** (-1 / points))
    # where the best fit leaves nine times the noise's variance, nine points count as one
    assert penalised(refined, 3.0) == pytest.approx(refined.r_wp * (even / refined.r_wp) ** 9)


def test_a_search_is_settled_where_one_fit_is_reached_again_and_nothing_comes_near() -> None:
    def solutions(*fits: float) -> Any:
        return [SimpleNamespace(refined=True, r_wp=r_wp) for r_wp in fits]

    assert is_settled(solutions(0.1, 0.3, 0.1, 0.101))
    assert not is_settled(solutions(0.1, 0.3, 0.1))
    assert not is_settled(solutions(0.1, 0.15, 0.1, 0.101))
    assert not is_settled(solutions(0.2, 0.2, 0.2))
    assert not is_settled([])


def test_a_known_cell_is_kept(scan: Path) -> None:
    found = solve(
        read_pattern(scan),
        lx.Request(formula="NaCl", groups=[225]),
        options=SolveOptions(
            samples=4,
            cell=(5.64, 5.64, 5.64, 90.0, 90.0, 90.0),
            sampling=SampleOptions(workers=1),
        ),
    )
    assert found[0].refined is not None
    assert found[0].refined.gof < 1.25
    assert found[0].crystal.lattice[0, 0] == pytest.approx(5.64, rel=1e-3)
    assert shortest_distance(found[0].crystal) == pytest.approx(2.82, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--formula", "Xx2"], "Xx"),
        (["--wavelength", "WrongTube"], "is not known"),
        (["--pattern", "missing.xy"], "does not exist"),
        (["--range", "20", "20.1"], "points lie between"),
    ],
)
def test_bad_input_is_one_sentence(  # type: ignore[no-untyped-def]
    scan: Path, tmp_path: Path, change: list[str], words: str, capsys
) -> None:
    given = {"--formula": ["NaCl"], "--pattern": [str(scan)], "--out": [str(tmp_path / "o")]}
    given[change[0]] = change[1:]
    assert run(["solve", *(a for name, own in given.items() for a in (name, *own))]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "o").exists()


def test_patterns_of_structures(tmp_path: Path, scan: Path) -> None:
    from ase.build import bulk
    from ase.io import write

    write(tmp_path / "salt.cif", bulk("NaCl", "rocksalt", a=5.64))
    out = tmp_path / "patterns"
    assert run(["xrd", str(tmp_path / "salt.cif"), "--out", str(out), "--range", "8", "80"]) == 0
    simulated = read_pattern(out / "salt.xy")
    measured = read_pattern(scan)
    top = simulated.two_theta[simulated.intensity.argmax()]
    assert top == pytest.approx(measured.two_theta[measured.intensity.argmax()], abs=0.06)
