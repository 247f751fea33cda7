"""Preparation: every description of a crystal gives its asymmetric unit, rejects have reasons."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from langevin_xtal.cli.data import data as data_commands
from langevin_xtal.cli.data import describe
from langevin_xtal.crystal.asymmetric import AsymmetricUnit, asymmetric_unit
from langevin_xtal.crystal.distances import min_distance
from langevin_xtal.dataset import prepare as module
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.prepare import prepare
from langevin_xtal.dataset.readers import Record, cell_of, read_records
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import DataError, InputError, LangevinXtalError, RejectError
from langevin_xtal.structures.cif import parse_cif
from langevin_xtal.structures.record import rejected
from langevin_xtal.symmetry import SpaceGroup, orbit, wrap
from tests.crystals import random_lattice

pytest.importorskip("spglib")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")

REFERENCE = reference_dataset()
NAMES = REFERENCE.id.tolist()


def cell(name: str):
    """P1 conventional cell of a reference structure: lattice, frac, numbers."""
    k = NAMES.index(name)
    unit = REFERENCE.unit(k)
    frac, owner = unit.atoms()
    return unit.lattice, frac, unit.numbers[owner]


def atoms(name: str, **info):
    from ase import Atoms

    lattice, frac, numbers = cell(name)
    made = Atoms(numbers, scaled_positions=frac, cell=lattice, pbc=True)
    made.info.update(info)
    return made


def structure(name: str):
    from pymatgen.core import Structure

    lattice, frac, numbers = cell(name)
    return Structure(lattice, numbers, frac)


def cif(name: str) -> str:
    from pymatgen.io.cif import CifWriter

    return str(CifWriter(structure(name)))


def rejects(out: Path) -> dict[str, str]:
    with out.with_name(out.name + ".rejects.csv").open(newline="") as stream:
        return {row["id"]: row["reason"] for row in csv.DictReader(stream)}


def signature(unit: AsymmetricUnit):
    """What does not depend on the choice of origin and axes."""
    return unit.group, sorted(zip(unit.numbers.tolist(), unit.multiplicity.tolist(), strict=True))


# --- asymmetric units -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES[::6])
@pytest.mark.parametrize("seed", range(2))
def test_any_description_gives_the_same_unit(name: str, seed: int) -> None:
    """Rotated frame, other basis, shifted origin, shuffled atoms, supercell."""
    from scipy.spatial.transform import Rotation

    rng = np.random.default_rng([seed, NAMES.index(name)])
    lattice, frac, numbers = cell(name)
    expected = asymmetric_unit(lattice, frac, numbers)
    basis = np.array([[1, 1, 0], [0, 1, 0], [0, -1, 1]])
    if seed:
        lattice = lattice * np.array([[1], [1], [2]])
        frac = np.concatenate([frac, frac + np.array([0, 0, 1])]) / [1, 1, 2]
        numbers = np.concatenate([numbers, numbers])
        basis = np.diag([1, 1, -1])  # left-handed
    turned = basis @ lattice @ Rotation.random(random_state=seed).as_matrix()
    moved = frac @ np.linalg.inv(basis) + rng.uniform(0, 1, 3)
    order = rng.permutation(len(numbers))
    unit = asymmetric_unit(turned, moved[order] + rng.integers(-2, 3, 3), numbers[order])
    assert signature(unit) == signature(expected)
    lengths = np.linalg.norm(unit.lattice, axis=1), np.linalg.norm(expected.lattice, axis=1)
    np.testing.assert_allclose(*map(sorted, lengths), rtol=1e-6)


@pytest.mark.parametrize("number", range(1, 231))
def test_random_crystals_of_every_group(number: int) -> None:
    """Two general sites of different elements: spglib finds the group, our operations the rest."""
    rng = np.random.default_rng(number)
    group = SpaceGroup(number)
    lattice = random_lattice(number, rng, 40.0 * group.order)
    frac, numbers = [], []
    while len(numbers) < 2 * group.order:
        images, _ = orbit(rng.uniform(0, 1, 3), group.rotations, group.translations, lattice)
        if (
            len(images) == group.order
            and min_distance(lattice, np.concatenate([*frac, images])) > 1
        ):
            frac.append(images)
            numbers += [14 if numbers else 8] * len(images)
    unit = asymmetric_unit(lattice, np.concatenate(frac), numbers)
    assert unit.group == number
    assert sorted(unit.numbers.tolist()) == [8, 14]
    assert unit.multiplicity.tolist() == [group.order] * 2
    again = asymmetric_unit(unit.lattice, *expanded(unit))
    assert signature(again) == signature(unit)


def expanded(unit: AsymmetricUnit):
    frac, owner = unit.atoms()
    return frac, unit.numbers[owner]


def test_sites_are_exact_after_noise() -> None:
    """Positions off by less than symprec: stored sites are exactly special all the same."""
    rng = np.random.default_rng(3)
    for name in ("spinel", "corundum", "garnet (pyrope)", "olivine (forsterite)", "Laves C14"):
        lattice, frac, numbers = cell(name)
        noisy = frac + rng.normal(0, 1e-3, frac.shape) @ np.linalg.inv(lattice)
        unit = asymmetric_unit(lattice, noisy, numbers)
        assert signature(unit) == signature(asymmetric_unit(lattice, frac, numbers))
        group = SpaceGroup(unit.group)
        for point, count in zip(unit.frac, unit.multiplicity, strict=True):
            images = point @ np.swapaxes(group.rotations, 1, 2) + group.translations
            delta = images - point
            delta = np.abs(delta - np.rint(delta)).max(axis=1)
            assert (delta < 1e-12).sum() * count == group.order


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: (c[0], c[1], c[2] * 0), "unknown element"),
        (lambda c: (c[0], c[1], c[2] + 110), "unknown element"),
        (lambda c: (c[0] * np.nan, c[1], c[2]), "finite"),
        (lambda c: (c[0][:2], c[1], c[2]), "3 × 3"),
        (lambda c: (c[0] * [1, 1, 0], c[1], c[2]), "singular"),
        (lambda c: (c[0], c[1] * np.nan, c[2]), "not finite"),
        (lambda c: (c[0], c[1][:-1], c[2]), "differ in number"),
        (lambda c: (c[0], c[1][:0], c[2][:0]), "no atoms"),
        (lambda c: (c[0] * [[0.15], [1], [1]], c[1], c[2]), "closer than 0.5"),
        (lambda c: (c[0], c[1] * 0, c[2]), "closer than 0.5"),
        (lambda c: (c[0], np.vstack([c[1], c[1][:1] + 0.02]), np.append(c[2], 9)), "closer than"),
        (lambda c: (c[0] * 9, np.random.rand(501, 3), np.full(501, 6)), "more than 500"),
    ],
)
def test_rejects_have_reasons(change, reason: str) -> None:
    with pytest.raises(RejectError) as caught:
        asymmetric_unit(*change(cell("rock salt")))
    assert reason in caught.value.reason


def test_min_distance_is_that_of_ase() -> None:
    for name in ("rock salt", "graphite", "cupric tungstate", "alpha-quartz"):
        made = atoms(name)
        pairs = made.repeat(3).get_all_distances(mic=True)
        oracle = pairs[pairs > 1e-6].min()
        assert min_distance(made.cell.array, made.get_scaled_positions()) == pytest.approx(oracle)
    assert min_distance(np.eye(3) * 4, np.array([[0.1, 0, 0], [1.1, 0, 0]])) == 0.0


def test_a_foreign_setting_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(SpaceGroup, "hall_number", 1)
    with pytest.raises(RejectError, match="another setting"):
        asymmetric_unit(*cell("rock salt"))


# --- readers ----------------------------------------------------------------------------------

PICKED = ["rock salt", "spinel", "graphite", "baddeleyite", "cupric tungstate"]


def write_npz(path: Path, names=PICKED, **more) -> Path:
    cells = [cell(name) for name in names]

    def parameters(lattice):
        lengths = np.linalg.norm(lattice, axis=1)
        cosines = (lattice @ lattice.T) / np.outer(lengths, lengths)
        return [*lengths, *np.degrees(np.arccos([cosines[1, 2], cosines[0, 2], cosines[0, 1]]))]

    arrays = {
        "id": np.array(names),
        "na": np.array([len(c[2]) for c in cells], np.int32),
        "lat": np.array([parameters(c[0]) for c in cells]),
        "Z": np.concatenate([c[2] for c in cells]).astype(np.uint8),
        "F": np.concatenate([c[1] for c in cells]).astype(np.float32),
        "e_form": np.arange(len(names), dtype=np.float32),
        "note": np.array(["text"] * len(names)),
    }
    np.savez(path, **{**arrays, **more})
    return path


def write_folder(path: Path) -> Path:
    (path / "deep").mkdir(parents=True)
    for k, name in enumerate(PICKED):
        (path / ("deep" if k % 2 else "") / f"{name}.cif").write_text(cif(name))
    (path / "notes.txt").write_text("not a structure")
    return path


def write_csv(path: Path) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["", "material_id", "e_form", "formula", "cif"])
        writer.writerows([k, n, float(k), "x", cif(n)] for k, n in enumerate(PICKED))
    return path


def write_xyz(path: Path) -> Path:
    from ase.io import write

    write(path, [atoms(n, id=n, e_form=float(k)) for k, n in enumerate(PICKED)], format="extxyz")
    return path


def write_db(path: Path) -> Path:
    import ase.db

    with ase.db.connect(path) as database:
        for k, name in enumerate(PICKED):
            database.write(atoms(name), material_id=name, e_form=float(k), data={"x": [1, 2]})
    return path


def write_json(path: Path) -> Path:
    entries = [
        {"material_id": n, "e_form": float(k), "structure": structure(n).as_dict()}
        for k, n in enumerate(PICKED)
    ]
    path.write_text(json.dumps(entries))
    return path


SOURCES = {
    "set.npz": write_npz,
    "folder": write_folder,
    "set.csv": write_csv,
    "set.extxyz": write_xyz,
    "set.db": write_db,
    "set.json": write_json,
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_format(name: str, tmp_path: Path) -> None:
    source = SOURCES[name](tmp_path / name)
    summary = prepare(source, tmp_path / "out.lxd", workers=1)
    assert (summary.read, summary.rejects) == (len(PICKED), {})
    made = PackedDataset.load(tmp_path / "out.lxd")
    assert made == summary.dataset
    found = {}
    for k, identifier in enumerate(made.id):
        found[identifier.split("/")[-1]] = k
        if name != "folder":
            assert made.properties["e_form"][k] == PICKED.index(identifier)
    for wanted in PICKED:
        k, other = found[wanted], NAMES.index(wanted)
        assert made.group[k] == REFERENCE.group[other]
        assert made.atom_counts[k] == REFERENCE.atom_counts[other]
        np.testing.assert_allclose(made.volumes[k], REFERENCE.volumes[other], rtol=1e-5)
    assert rejects(tmp_path / "out.lxd") == {}
    assert made.meta["symprec"] == 0.01
    assert made.meta["source"] == name


def test_pymatgen_json_shapes(tmp_path: Path) -> None:
    one = structure("spinel").as_dict()
    for content in (one, [one], {"mp-1": one}, [{"structure": one, "entry_id": "mp-1"}]):
        (tmp_path / "s.json").write_text(json.dumps(content))
        (record,) = read_records(tmp_path / "s.json")
        assert record.id in ("mp-1", "s-0")
        assert asymmetric_unit(*cell_of(record)).group == 227
    (tmp_path / "s.json").write_text(json.dumps([3, None, {}, {"structure": 1}, {"lattice": 0}]))
    assert {r.parse for r in read_records(tmp_path / "s.json")} == {rejected}


def test_json_never_imports_what_it_names(tmp_path: Path) -> None:
    hostile = structure("spinel").as_dict()
    hostile["@module"], hostile["@class"] = "antigravity", "x"
    hostile["lattice"]["@module"] = "antigravity"
    (tmp_path / "s.json").write_text(json.dumps(hostile))
    prepare(tmp_path / "s.json", tmp_path / "o.lxd", workers=1)
    assert "antigravity" not in sys.modules


def test_cifs_with_several_blocks(tmp_path: Path) -> None:
    text = "data_global\n_journal_name 'none'\n" + cif("spinel") + "\n" + cif("rutile")
    (tmp_path / "two.cif").write_text(text)
    ids = [record.id for record in read_records(tmp_path / "two.cif")]
    assert ids == ["two#MgAl2O4", "two#TiO2"]
    assert sorted(prepare(tmp_path / "two.cif", tmp_path / "o.lxd").dataset.group) == [136, 227]


def test_a_mixed_folder(tmp_path: Path) -> None:
    """Good, disordered, broken and repeated structures side by side."""
    from pymatgen.core import Lattice, Structure
    from pymatgen.io.cif import CifWriter

    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a_good.cif").write_text(cif("spinel"))
    (folder / "b_repeat.cif").write_text(cif("spinel"))
    half = Structure(Lattice.cubic(3.6), [{"Cu": 0.5, "Zn": 0.5}], [[0, 0, 0]])
    (folder / "c_disordered.cif").write_text(str(CifWriter(half)))
    vacancy = Structure(Lattice.cubic(3.6), [{"Cu": 0.5}], [[0, 0, 0]])
    (folder / "d_vacancy.cif").write_text(str(CifWriter(vacancy)))
    (folder / "e_empty.cif").write_text("")
    (folder / "f_text.cif").write_text("this is no CIF")
    (folder / "g_truncated.cif").write_text(cif("spinel")[:700])
    (folder / "h_binary.cif").write_bytes(bytes(range(256)))
    close = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.05, 0, 0]])
    (folder / "i_close.cif").write_text(str(CifWriter(close)))
    (folder / "j_element.cif").write_text(cif("rock salt").replace("Na", "Xx"))
    out = tmp_path / "mixed.lxd"
    summary = prepare(folder, out)
    assert summary.dataset.id.tolist() == ["a_good"]
    assert summary.read == 10
    assert sum(summary.rejects.values()) == 9
    reasons = rejects(out)
    assert reasons["b_repeat"] == "repeat of another structure"
    assert reasons["c_disordered"] == reasons["d_vacancy"] == "partial occupancy"
    assert reasons["e_empty"] == reasons["f_text"] == "the CIF holds no atoms"
    assert reasons["i_close"] == "atoms closer than 0.5 Å"
    assert set(reasons) == {p.stem for p in folder.iterdir()} - {"a_good"}
    assert summary.dataset.meta["rejects"] == summary.rejects


def test_identifiers_and_repeats(tmp_path: Path) -> None:
    names = ["rock salt", "spinel", "rock salt", "rutile"]
    source = write_npz(tmp_path / "s.npz", names, id=np.array(["a", "b", "c", "b"]))
    summary = prepare(source, tmp_path / "o.lxd", workers=1)
    assert summary.dataset.id.tolist() == ["a", "b"]
    assert rejects(tmp_path / "o.lxd") == {
        "c": "repeat of another structure",
        "b": "identifier seen before",
    }


def test_xyz_that_breaks_off(tmp_path: Path) -> None:
    source = write_xyz(tmp_path / "s.extxyz")
    source.write_text(source.read_text()[:2500])
    summary = prepare(source, tmp_path / "o.lxd")
    assert 1 <= len(summary.dataset) < len(PICKED)
    assert list(summary.rejects) == ["the file cannot be read further"]


def test_molecules_are_rejected(tmp_path: Path) -> None:
    from ase import Atoms
    from ase.io import write

    slab = atoms("graphite")
    slab.pbc = [True, True, False]
    ghost = Atoms("X", cell=[4, 4, 4], pbc=True)
    frames = [Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]), slab, ghost, atoms("rutile")]
    write(tmp_path / "s.xyz", frames, format="extxyz")
    summary = prepare(tmp_path / "s.xyz", tmp_path / "o.lxd")
    assert summary.rejects == {"not periodic in three directions": 2, "unknown element": 1}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.npz", b"not a zip"),
        ("x.npz", b""),
        ("x.csv", b""),
        ("x.csv", b"a,b\n1,2\n"),
        ("x.json", b"{"),
        ("x.json", b"[" * 200000),
        ("x.json", b"3"),
        ("x.json", b"\xff\xfe\x00"),
        ("x.db", b"not sqlite, not at all; padded to a length" * 40),
        ("x.tar", b""),
        ("x", b""),
    ],
)
def test_unreadable_sources(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / name, tmp_path / "o.lxd")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o.lxd").exists()


@pytest.mark.parametrize(
    "more",
    [
        {"lat": np.zeros((5, 3))},
        {"na": np.array([1, 2])},
        {"na": np.full(5, -1)},
        {"F": np.zeros((3, 3))},
        {"id": np.array([{}], dtype=object)},
    ],
)
def test_inconsistent_npz(more, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s\.npz"):
        prepare(write_npz(tmp_path / "s.npz", **more), tmp_path / "o.lxd")


def test_npz_without_a_field(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", id=np.array(["a"]))
    with pytest.raises(DataError, match="lacks the array 'na'"):
        prepare(tmp_path / "s.npz", tmp_path / "o.lxd")


@given(text=st.text(max_size=300))
@settings(max_examples=60, deadline=None)
def test_any_text_as_cif(text: str) -> None:
    """A CIF is untrusted data: it is read or rejected, nothing else."""
    _, result, _ = module._judge(Record("x", "data_x\n_atom_site_label\n" + text, parse_cif), 0.01)
    assert isinstance(result, (RejectError, AsymmetricUnit))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_edited_cifs(data) -> None:
    text = CIF
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        piece = data.draw(st.text(alphabet="0123456789.-()?_' \nxyzABC", max_size=6))
        text = text[:at] + piece + text[at + data.draw(st.integers(0, 10)) :]
    _, result, _ = module._judge(Record("x", text, parse_cif), 0.01)
    assert isinstance(result, (RejectError, AsymmetricUnit))
    if isinstance(result, RejectError):
        assert result.reason != "unexpected failure", result.detail


CIF = cif("rutile")


# --- the run ----------------------------------------------------------------------------------


def many(path: Path, count: int) -> Path:
    """``count`` rock salts with slightly different cells."""
    lattice, frac, numbers = cell("rock salt")
    edge = np.linalg.norm(lattice[0]) * (1 + 1e-3 * np.arange(count))
    np.savez(
        path,
        id=np.array([f"s{k}" for k in range(count)]),
        na=np.full(count, len(numbers)),
        lat=np.stack([edge] * 3 + [np.full(count, 90.0)] * 3, axis=1),
        Z=np.tile(numbers, count),
        F=np.tile(frac, (count, 1)),
    )
    return path


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path) -> None:
    source = many(tmp_path / "many.npz", 300)
    one = prepare(source, tmp_path / "1.lxd", workers=1)
    two = prepare(source, tmp_path / "2.lxd", workers=2)
    assert one.dataset == two.dataset
    assert one.dataset.id.tolist() == [f"s{k}" for k in range(300)]
    assert (tmp_path / "1.lxd").read_bytes() == (tmp_path / "2.lxd").read_bytes()


def test_limit(tmp_path: Path) -> None:
    source = many(tmp_path / "many.npz", 9)
    assert len(prepare(source, tmp_path / "o.lxd", limit=4).dataset) == 4
    assert len(prepare(source, tmp_path / "o.lxd", limit=99).dataset) == 9


def test_everything_rejected_is_an_input_error(tmp_path: Path) -> None:
    source = write_npz(tmp_path / "s.npz", Z=np.zeros(sum(len(cell(n)[2]) for n in PICKED), int))
    out = tmp_path / "o.lxd"
    with pytest.raises(InputError, match=r"none of the 5 structures .* unknown element"):
        prepare(source, out)
    assert set(rejects(out)) == set(PICKED)
    assert not out.exists()
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(InputError, match="holds no structure"):
        prepare(tmp_path / "none.json", out)


@pytest.mark.parametrize(
    "options",
    [{"symprec": 0}, {"symprec": float("nan")}, {"symprec": 2}, {"workers": 0}, {"limit": 0}],
)
def test_options_out_of_range(options, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        prepare(tmp_path, tmp_path / "o.lxd", **options)


def test_places_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        prepare(tmp_path / "nowhere", tmp_path / "o.lxd")
    with pytest.raises(DataError, match="holds no structure file"):
        prepare(tmp_path, tmp_path / "o.lxd")
    with pytest.raises(InputError, match=r"folder .* does not exist"):
        prepare(many(tmp_path / "m.npz", 2), tmp_path / "nowhere" / "o.lxd")


def test_one_strange_structure_does_not_end_the_run(tmp_path: Path, monkeypatch) -> None:
    real = module.asymmetric_unit

    def fails_once(lattice, frac, numbers, symprec):
        if abs(np.linalg.norm(lattice[0]) - 5.64 * 1.002) < 1e-6:
            raise ZeroDivisionError("odd")
        return real(lattice, frac, numbers, symprec)

    monkeypatch.setattr(module, "asymmetric_unit", fails_once)
    summary = prepare(many(tmp_path / "m.npz", 5), tmp_path / "o.lxd", workers=1)
    assert summary.rejects == {"unexpected failure": 1}
    assert len(summary.dataset) == 4


def test_a_dead_worker_is_reported(tmp_path: Path) -> None:
    """A script without a main guard breaks the pool; the message says what to do."""
    source = many(tmp_path / "m.npz", 300)
    script = tmp_path / "unguarded.py"
    script.write_text(
        "from langevin_xtal.dataset.prepare import prepare\n"
        f"prepare({str(source)!r}, {str(tmp_path / 'o.lxd')!r}, workers=2)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, script], cwd=root, env=_environment(root), capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "LangevinXtalError: a worker process died" in done.stderr


def _environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root)}


@pytest.mark.slow
def test_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C in the middle: both workers stop, the old output stays, no temporary files."""
    source = many(tmp_path / "m.npz", 6000)
    out = tmp_path / "o.lxd"
    out.write_text("the old one")
    code = (
        "import signal, time\n"
        # a job in the background of a script inherits that interrupts are ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from langevin_xtal.dataset import prepare as p\n"
        "real = p._Gathered.add\n"
        "def add(self, outcome):\n"
        "    real(self, outcome)\n"
        "    if self.read == 200:\n"
        "        print('running', flush=True)\n"
        "        time.sleep(60)\n"  # the interrupt comes here, however busy the machine is
        "p._Gathered.add = add\n"
        "if __name__ == '__main__':\n"
        f"    p.prepare({str(source)!r}, {str(out)!r}, workers=2)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, script], env=_environment(root), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "running\n"
        os.killpg(process.pid, signal.SIGINT)
        start = time.monotonic()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "KeyboardInterrupt" in errors
    assert time.monotonic() - start < 30
    assert out.read_text() == "the old one"
    assert {p.name for p in tmp_path.iterdir()} == {"m.npz", "o.lxd", "run.py"}


def test_spglib_is_quiet_for_the_run_only(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SPGLIB_WARNING", "ON")
    prepare(many(tmp_path / "m.npz", 2), tmp_path / "o.lxd")
    assert os.environ["SPGLIB_WARNING"] == "ON"


# --- commands ---------------------------------------------------------------------------------


def test_commands(tmp_path: Path) -> None:
    runner = CliRunner()
    source = write_npz(tmp_path / "s.npz", [*PICKED, "rutile"], id=np.array([*"abcdea"]))
    out = tmp_path / "o.lxd"
    arguments = ["prepare", str(source), "--out", str(out), "--licence", "CC0", "--workers", "1"]
    done = runner.invoke(data_commands, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "5 of 6 structures packed" in done.output
    assert "1 rejected: identifier seen before" in done.output
    done = runner.invoke(data_commands, ["info", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    for piece in ("crystals        5", "Fd-3m", "monoclinic", "e_form: 5 known", "CC0", "s.npz"):
        assert piece in done.output
    assert PackedDataset.load(out).content_hash in done.output
    for command in ("prepare", "info"):
        assert "Example" in runner.invoke(data_commands, [command, "--help"]).output


def test_commands_raise_the_packages_errors(tmp_path: Path) -> None:
    runner = CliRunner()
    for arguments in (
        ["info", str(tmp_path / "nowhere.lxd")],
        ["info", str(tmp_path)],
        ["prepare", str(tmp_path / "nowhere"), "--out", str(tmp_path / "o.lxd")],
        ["prepare", str(tmp_path), "--out", str(tmp_path / "o.lxd"), "--symprec", "-1"],
    ):
        error = runner.invoke(data_commands, arguments).exception
        assert isinstance(error, InputError)
        assert isinstance(error, LangevinXtalError)
        assert "\n" not in str(error)
    assert runner.invoke(data_commands, ["prepare", "x"]).exit_code == 2  # --out is missing


def test_info_prints_no_control_characters() -> None:
    hostile = replace(REFERENCE.select([0]), meta={"licence": "\x1b[2Jgone\nline"})
    assert all(line.isprintable() for line in describe(hostile))
    assert describe(REFERENCE.select([]))[0].split() == ["crystals", "0"]


def test_the_reference_set_prepares_itself(tmp_path: Path) -> None:
    """Expanded to P1 and prepared again, the shipped set comes back."""
    source = write_npz(tmp_path / "all.npz", NAMES)
    made = prepare(source, tmp_path / "o.lxd", workers=1).dataset
    assert made.id.tolist() == NAMES
    np.testing.assert_array_equal(made.group, REFERENCE.group)
    np.testing.assert_array_equal(made.atom_counts, REFERENCE.atom_counts)
    np.testing.assert_array_equal(made.site_counts, REFERENCE.site_counts)
    assert set(made.numbers) == set(REFERENCE.numbers)
    assert (wrap(made.frac) == made.frac).all()
