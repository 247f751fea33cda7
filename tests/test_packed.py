"""Packed datasets: what is written is read back; anything else is a DataError."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from langevin_xtal.crystal.cell import cell_from_parameters
from langevin_xtal.dataset.packed import FORMAT_VERSION, PackedDataset, pack
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import DataError, LatticeError
from langevin_xtal.symmetry.lattice import ideal_cells


@pytest.fixture(scope="module")
def dataset() -> PackedDataset:
    data = reference_dataset()
    energies = np.linspace(-1, 1, len(data))
    energies[3] = np.nan
    return replace(data, properties={"e_form": energies, "e_hull": np.full(len(data), np.nan)})


@pytest.fixture
def file(dataset: PackedDataset, tmp_path):
    return dataset.select(np.arange(12)).save(tmp_path / "small.lxd")


def rewrite(path, change) -> None:
    """Apply ``change`` to the dictionary of member name → bytes, keeping valid checksums."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def change_meta(**changes):
    def change(members) -> None:
        meta = json.loads(str(np.load(io.BytesIO(members["meta.npy"]))))
        members["meta.npy"] = npy(np.array(json.dumps({**meta, **changes})))

    return change


# --- round trips ------------------------------------------------------------------------------


def test_write_read(dataset: PackedDataset, tmp_path) -> None:
    path = dataset.save(tmp_path / "all.lxd")
    again = PackedDataset.load(path)
    assert again == dataset
    for name, array in dataset._arrays():
        other = dict(again._arrays())[name]
        assert other.dtype.kind == array.dtype.kind
        np.testing.assert_array_equal(other, array)
    assert again.meta["format_version"] == FORMAT_VERSION
    assert again.meta["licence"] == "CC0-1.0"
    assert os.listdir(tmp_path) == ["all.lxd"]


def test_the_same_content_gives_the_same_bytes(dataset: PackedDataset, tmp_path) -> None:
    one, two = dataset.save(tmp_path / "1.lxd"), dataset.save(tmp_path / "2.lxd")
    assert one.read_bytes() == two.read_bytes()


def test_it_is_an_npz(file) -> None:
    with np.load(file, allow_pickle=False) as archive:
        assert archive["frac"].shape[1] == 3
        assert json.loads(str(archive["meta"]))["format_version"] == FORMAT_VERSION


def test_an_empty_dataset_survives(tmp_path) -> None:
    empty = pack([])
    assert len(PackedDataset.load(empty.save(tmp_path / "none.lxd"))) == 0


def test_repr_and_counts(dataset: PackedDataset) -> None:
    assert repr(dataset).startswith(f"PackedDataset({len(dataset)} crystals, ")
    assert "e_form, e_hull" in repr(dataset)
    assert dataset.site_counts.sum() == len(dataset.numbers)
    by_hand = [dataset.multiplicity[dataset.sites_of(k)].sum() for k in range(len(dataset))]
    np.testing.assert_array_equal(dataset.atom_counts, by_hand)
    assert (dataset.volumes > 0).all()


@given(seed=st.integers(0, 2**32 - 1))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_select(dataset: PackedDataset, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picked = rng.integers(0, len(dataset), rng.integers(0, 20))
    part = dataset.select(picked)
    assert len(part) == len(picked)
    for k, source in enumerate(picked):
        assert part.id[k] == dataset.id[source]
        a, b = part.sites_of(k), dataset.sites_of(source)
        np.testing.assert_array_equal(part.frac[a], dataset.frac[b])
        np.testing.assert_array_equal(part.wyckoff[a], dataset.wyckoff[b])


def test_select_by_mask_and_compose(dataset: PackedDataset) -> None:
    cubic = dataset.group >= 195
    assert dataset.select(cubic) == dataset.select(np.flatnonzero(cubic))
    assert dataset.select(np.arange(len(dataset))) == dataset
    assert dataset.select([5, 3, 1]).select([2, 0]) == dataset.select([1, 5])


def test_hash_depends_on_every_array(dataset: PackedDataset) -> None:
    small = dataset.select([0, 1])
    assert replace(small, meta={"other": 1}).content_hash == small.content_hash
    wide = replace(small, id=small.id.astype("<U300"))
    assert wide.content_hash == small.content_hash
    changed = [
        replace(small, id=np.array(["a", "b"])),
        replace(small, frac=small.frac + np.array([1e-9, 0, 0])),
        replace(small, lattice=small.lattice * 1.001),
        replace(small, properties={"e_form": small.properties["e_form"]}),
        replace(small, numbers=small.numbers + 1),
        replace(small, wyckoff=np.array(["c"] * len(small.wyckoff))),
    ]
    assert len({small.content_hash, *(c.content_hash for c in changed)}) == len(changed) + 1


def test_a_failed_write_keeps_the_old_file(dataset, file, monkeypatch) -> None:
    before = file.read_bytes()

    def full(self, stream, meta):
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PackedDataset, "_write", full)
    with pytest.raises(DataError, match=r"small\.lxd cannot be written: No space left"):
        dataset.save(file)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == ["small.lxd"]


def test_a_missing_folder_is_one_sentence(dataset, tmp_path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        dataset.save(tmp_path / "nowhere" / "x.lxd")


def test_the_reader_needs_numpy_only() -> None:
    code = (
        "import sys; import langevin_xtal.dataset.packed;"
        "sys.exit(bool({'spglib', 'pymatgen', 'ase', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- arrays that no crystal has ---------------------------------------------------------------


def spoil(name, value, at=0):
    def change(data: PackedDataset) -> dict:
        array = getattr(data, name).copy()
        array[at] = value
        return {name: array}

    return change


BAD = {
    "group 0": (spoil("group", 0), "space group"),
    "group 231": (spoil("group", 231), "space group"),
    "float group": (lambda d: {"group": d.group.astype(float)}, "dtype"),
    "short group": (lambda d: {"group": d.group[:-1]}, "shape"),
    "flat lattice": (lambda d: {"lattice": d.lattice[0]}, "dimension"),
    "nan lattice": (spoil("lattice", np.nan), "finite"),
    "singular": (spoil("lattice", 0.0), "singular"),
    "left-handed": (lambda d: {"lattice": -d.lattice}, "singular or left-handed"),
    "wrong shape of cell": (spoil("lattice", 4.0, (0, 0, 1)), "shape and orientation"),
    "unequal cubic axes": (spoil("lattice", 9.0, (0, 0, 0)), "shape and orientation"),
    "nan position": (spoil("frac", np.nan), "fractional"),
    "position 1": (spoil("frac", 1.0), "fractional"),
    "negative position": (spoil("frac", -0.1), "fractional"),
    "no such element": (spoil("numbers", 0), "atomic number"),
    "element 119": (spoil("numbers", 119), "atomic number"),
    "multiplicity 0": (spoil("multiplicity", 0), "multiplicity"),
    "multiplicity 5": (spoil("multiplicity", 5), "multiplicity"),
    "no letter": (spoil("wyckoff", ""), "Wyckoff"),
    "crystal without sites": (spoil("site_start", 0, 1), "site_start"),
    "offsets too far": (spoil("site_start", 10**9, -1), "site_start"),
    "site arrays differ": (lambda d: {"numbers": d.numbers[:-1]}, "shape"),
    "bytes id": (lambda d: {"id": d.id.astype("S")}, "dtype"),
    "list": (lambda d: {"numbers": d.numbers.tolist()}, "dimension"),
    "property length": (lambda d: {"properties": {"e": np.zeros(1)}}, "property 'e'"),
    "property dtype": (lambda d: {"properties": {"e": np.zeros(len(d), int)}}, "property 'e'"),
    "property inf": (lambda d: {"properties": {"e": np.full(len(d), np.inf)}}, "infinite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays(name: str, dataset: PackedDataset) -> None:
    change, message = BAD[name]
    with pytest.raises(DataError, match=message):
        replace(dataset, **change(dataset))


@pytest.mark.parametrize("number", [1, 2, 3, 15, 16, 75, 143, 168, 195, 230])
def test_ideal_cells_are_fixed_points(number: int) -> None:
    rough = np.array([[5.0, 1e-7, 0], [-2.4, 4.4, 1e-7], [-0.3, 0.2, 6.0]])
    ideal = ideal_cells(rough, number)
    np.testing.assert_allclose(ideal_cells(ideal, number), ideal, rtol=1e-14)
    stacked = ideal_cells(np.stack([rough, rough * 2]), number)
    np.testing.assert_allclose(stacked[1], 2 * ideal, rtol=1e-14)


def test_cells_from_parameters() -> None:
    np.testing.assert_array_equal(
        cell_from_parameters([3, 4, 5, 90, 90, 90]), np.diag([3.0, 4, 5])
    )
    given = [4.7, 5.8, 4.9, 91.7, 92.5, 82.8]
    cell = cell_from_parameters(given)
    lengths = np.linalg.norm(cell, axis=1)
    cosines = (cell @ cell.T) / np.outer(lengths, lengths)
    angles = np.degrees(np.arccos([cosines[1, 2], cosines[0, 2], cosines[0, 1]]))
    np.testing.assert_allclose([*lengths, *angles], given, rtol=1e-12)
    for bad in ([1, 1, 1, 10, 10, 90], [0, 1, 1, 90, 90, 90], [1, 1, np.nan, 90, 90, 90],
                [1, 1, 1, 90, 90, 0], [1, -1, 1, 90, 90, 90]):  # fmt: skip
        with pytest.raises(LatticeError):
            cell_from_parameters(bad)


# --- files that are not packed datasets -------------------------------------------------------


def test_missing_folder_and_foreign_files(tmp_path) -> None:
    with pytest.raises(DataError, match=r"x\.lxd does not exist"):
        PackedDataset.load(tmp_path / "x.lxd")
    with pytest.raises(DataError, match="is a folder"):
        PackedDataset.load(tmp_path)
    for content in (b"", b"hello", b"PK", bytes(range(256)) * 50, npy(np.arange(4))):
        (tmp_path / "foreign").write_bytes(content)
        with pytest.raises(DataError, match="foreign is not a packed dataset"):
            PackedDataset.load(tmp_path / "foreign")


def test_another_npz(tmp_path) -> None:
    np.savez(tmp_path / "other.npz", a=np.arange(3))
    with pytest.raises(DataError, match=r"other\.npz is not a packed dataset"):
        PackedDataset.load(tmp_path / "other.npz")


def test_another_zip(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "doc.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match=r"doc\.zip"):
        PackedDataset.load(tmp_path / "doc.zip")


def drop(name):
    return lambda members: members.pop(name)


def put(name, data):
    return lambda members: members.__setitem__(name, data)


def huge_header(members) -> None:
    members["numbers.npy"] = npy(np.arange(3)).replace(b"(3,), }", b"(9999999999999,), }")


TAMPERED = {
    "other version": (change_meta(format_version=99), "format version 99"),
    "no version": (change_meta(format_version=None), "format version None"),
    "other content": (change_meta(content_hash="0" * 64), "content hash"),
    "no frac": (drop("frac.npy"), "lacks the array 'frac'"),
    "no meta": (drop("meta.npy"), "no 'meta' entry"),
    "meta is no text": (put("meta.npy", npy(np.arange(3))), "no 'meta' entry"),
    "meta is no JSON": (put("meta.npy", npy(np.array("{"))), "not JSON"),
    "meta nests": (put("meta.npy", npy(np.array("[" * 100000))), "not JSON"),
    "meta is a list": (put("meta.npy", npy(np.array("[1]"))), "not JSON"),
    "extra array": (put("extra.npy", npy(np.arange(3))), "unknown array 'extra'"),
    "extra member": (put("code.py", b"import os"), "unexpected member"),
    "pickle": (put("id.npy", npy(np.array([{"a": 1}], dtype=object))), "not allowed"),
    "structured": (put("id.npy", npy(np.zeros(2, dtype=[("a", int)]))), "not allowed"),
    "huge header": (huge_header, "does not match its header"),
    "empty member": (put("frac.npy", b""), "damaged"),
    "not npy": (put("frac.npy", b"hello world, this is no array"), "damaged"),
    "nan": (put("frac.npy", npy(np.full((3, 3), np.nan))), "shape"),
    "float32": (put("frac.npy", npy(np.zeros((3, 3), np.float32))), "dtype"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_files(name: str, file) -> None:
    change, message = TAMPERED[name]
    rewrite(file, change)
    with pytest.raises(DataError, match=message) as caught:
        PackedDataset.load(file)
    assert "small.lxd" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_never_run(file, tmp_path) -> None:
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    rewrite(file, put("id.npy", npy(np.array([Attack()], dtype=object))))
    with pytest.raises(DataError):
        PackedDataset.load(file)
    assert not (tmp_path / "owned").exists()


def test_truncated_anywhere(file, tmp_path) -> None:
    content, cut = file.read_bytes(), tmp_path / "cut.lxd"
    lengths = {*range(0, len(content), 37), *range(40), *range(len(content) - 60, len(content))}
    for length in sorted(lengths):
        cut.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"cut\.lxd"):
            PackedDataset.load(cut)


def test_flipped_bytes(file, tmp_path) -> None:
    """Damage is noticed, or lies where it does not matter (dates in the zip's headers)."""
    original, content = PackedDataset.load(file), file.read_bytes()
    damaged, rng, noticed = tmp_path / "damaged.lxd", np.random.default_rng(0), 0
    positions = [*rng.integers(0, len(content), 600), *range(len(content) - 400, len(content))]
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= int(rng.integers(1, 256))
        damaged.write_bytes(changed)
        try:
            assert PackedDataset.load(damaged) == original
        except DataError as error:
            noticed += 1
            assert "damaged.lxd" in str(error)
    assert noticed > 0.5 * len(positions)


@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_random_edits(data, file) -> None:
    content = bytearray(file.read_bytes())
    original = PackedDataset.load(file)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        piece = data.draw(st.binary(max_size=12))
        content[at : at + data.draw(st.integers(0, 12))] = piece
    edited = file.with_name("edited.lxd")
    edited.write_bytes(content)
    with contextlib.suppress(DataError):
        assert PackedDataset.load(edited) == original
