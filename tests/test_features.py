"""Features of structures against the libraries they come from, and the cache they are kept in."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from langevin_xtal.crystal.cell import Cell
from langevin_xtal.dataset.reference import reference_dataset
from langevin_xtal.errors import DataError, InputError, LangevinXtalWarning, MissingPackageError
from langevin_xtal.evaluation import features as module
from langevin_xtal.evaluation.cache import FILE, Cache, SpareCache, default_folder
from langevin_xtal.evaluation.features import FEATURES, compute_features, scale_magpie
from langevin_xtal.evaluation.structures import StructureSet

matminer_site = pytest.importorskip("matminer.featurizers.site.fingerprint")

TYPES = (
    "rock salt",
    "caesium chloride",
    "zinc blende",
    "fluorite",
    "rutile",
    "corundum",
    "cubic perovskite",
    "body-centred cubic (W)",
    "face-centred cubic (Cu)",
    "hexagonal close packed (Mg)",
    "graphite",
    "molybdenite (2H)",
    "cuprite",
    "cooperite",
    "pyrite",
    "Th3P4",
    "skutterudite",
    "niobium monoxide",
    "Cr3Si (A15)",
    "black phosphorus",
)
BODY_CENTRED = 30
"""Column of the order parameter that depends on the order of the neighbours."""


@pytest.fixture(scope="module")
def reference() -> StructureSet:
    return StructureSet.from_packed(reference_dataset(), "ref")


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache(None) as made:
        yield made


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def one(cell: Cell, label: str = "x") -> StructureSet:
    return StructureSet.of(label, [cell], [label])


def row(name: str, cell: Cell) -> np.ndarray:
    found = module._attempt(name, cell)
    assert not isinstance(found, str), found
    return found


def cubic(a: float, frac: list[list[float]], numbers: list[int]) -> Cell:
    return np.eye(3) * a, np.array(frac), np.array(numbers)


def random_cell(seed: int, atoms: int) -> Cell:
    rng = np.random.default_rng(seed)
    lattice = np.eye(3) * (14 * atoms) ** (1 / 3) + rng.uniform(-0.6, 0.6, (3, 3))
    grid = np.stack(np.meshgrid(*[[0.0, 0.5]] * 3, indexing="ij"), -1).reshape(-1, 3)
    frac = (rng.permutation(grid)[:atoms] + rng.uniform(-0.1, 0.1, (atoms, 3))) % 1
    return lattice, frac, rng.choice([8, 11, 17, 22, 26], atoms)


def rotated(cell: Cell) -> Cell:
    return cell[0] @ Rotation.random(rng=3).as_matrix().T, cell[1], cell[2]


def skewed(cell: Cell) -> Cell:
    change = np.array([[1, 1, 0], [0, 1, 0], [0, -1, 1]])
    return change @ cell[0], cell[1] @ np.linalg.inv(change) % 1, cell[2]


def supercell(cell: Cell) -> Cell:
    lattice, frac, numbers = cell
    both = np.concatenate([frac, frac + np.array([0, 0, 1])]) / [1, 1, 2]
    return lattice * np.array([[1], [1], [2]]), both, np.tile(numbers, 2)


# -- the cache


class TestCache:
    @given(hnp.arrays("f8", st.integers(0, 7), elements=st.floats(width=64)))
    def test_every_bit_comes_back(self, value: np.ndarray) -> None:
        with Cache(None) as cache:
            cache.put("kind", {"key": value})
            assert cache.get("kind", ["key"])["key"].tobytes() == value.tobytes()

    def test_survives_closing(self, tmp_path: Path) -> None:
        with Cache(tmp_path / "new" / "folder") as cache:
            cache.put("a", {"k": np.array([1.5])}, {"bad": "two atoms\nin one place"})
        with Cache(tmp_path / "new" / "folder") as cache:
            assert cache.get("a", ["k", "bad", "other"]).keys() == {"k"}
            assert cache.failures("a", ["k", "bad"]) == {"bad": "two atoms\nin one place"}
            assert cache.get("b", ["k"]) == {}

    def test_later_results_replace_earlier_ones(self, cache: Cache) -> None:
        cache.put("a", {}, {"k": "no"})
        cache.put("a", {"k": np.arange(3.0)})
        assert cache.failures("a", ["k"]) == {}
        assert cache.get("a", ["k"])["k"].tolist() == [0, 1, 2]
        cache.put("a", {"k": np.arange(2.0)})
        assert cache.get("a", ["k"])["k"].tolist() == [0, 1]

    def test_many_keys(self, cache: Cache) -> None:
        values = {f"key {k}": np.array([float(k)]) for k in range(20_001)}
        cache.put("a", values)
        found = cache.get("a", [*values, "none"])
        assert len(found) == 20_001
        assert all(found[key] == value for key, value in values.items())

    def test_a_failed_put_leaves_nothing(self, cache: Cache) -> None:
        with pytest.raises(DataError):
            cache.put("a", {"good": np.zeros(1)}, {"bad": object()})  # type: ignore[dict-item]
        assert cache.get("a", ["good"]) == {}
        cache.put("a", {"good": np.zeros(1)})
        assert cache.get("a", ["good"]).keys() == {"good"}

    def test_waits_for_another_writer(self, tmp_path: Path) -> None:
        with Cache(tmp_path) as cache:
            other = sqlite3.connect(tmp_path / FILE, isolation_level=None, check_same_thread=False)
            other.execute("BEGIN IMMEDIATE")
            release = threading.Timer(0.3, other.execute, ["COMMIT"])
            release.start()
            begin = time.monotonic()
            cache.put("a", {"k": np.zeros(1)})
            assert time.monotonic() - begin > 0.2
            release.join()
            other.close()
            assert cache.get("a", ["k"]).keys() == {"k"}

    def test_processes_share_a_folder(self, tmp_path: Path) -> None:
        code = (
            "import sys, numpy as np; from langevin_xtal.evaluation.cache import Cache\n"
            "with Cache(sys.argv[1]) as cache:\n"
            "    for k in range(20):\n"
            "        cache.put('a', {sys.argv[2] + str(k): np.zeros(2)})\n"
        )
        running = [
            subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "pqr"
        ]
        assert [process.wait(60) for process in running] == [0, 0, 0]
        with Cache(tmp_path) as cache:
            assert len(cache.get("a", [n + str(k) for n in "pqr" for k in range(20)])) == 60

    @pytest.mark.parametrize("content", [b"not a database, but long enough to look at" * 9, b"x"])
    def test_something_else(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(DataError, match=rf"{FILE}.*remove it, .*--cache"):
            Cache(tmp_path)
        assert (tmp_path / FILE).read_bytes() == content

    def test_a_database_of_something_else(self, tmp_path: Path) -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as other, other:
            other.execute("CREATE TABLE feature (name TEXT)")
        with pytest.raises(DataError, match="something else"):
            Cache(tmp_path)

    def test_damage_that_shows_later(self, tmp_path: Path) -> None:
        with Cache(tmp_path) as cache:
            cache.put("a", {f"k{k}": np.arange(50.0) for k in range(400)})
        path = tmp_path / FILE
        content = bytearray(path.read_bytes())
        content[8192:] = b"\xff" * (len(content) - 8192)
        path.write_bytes(content)
        with Cache(tmp_path) as cache, pytest.raises(DataError, match="remove it"):
            cache.get("a", [f"k{k}" for k in range(400)])

    def test_an_entry_cut_short(self, tmp_path: Path) -> None:
        with Cache(tmp_path) as cache:
            cache.put("a", {"k": np.zeros(2)})
            with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as other, other:
                other.execute("UPDATE feature SET data = x'00'")
            with pytest.raises(DataError, match="cut short"):
                cache.get("a", ["k"])

    def test_unusable_folders(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="--cache"):
            Cache(tmp_path / "file")
        (tmp_path / FILE).mkdir()
        with pytest.raises(DataError, match="--cache"):
            Cache(tmp_path)

    def test_default_folder(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LANGEVIN_XTAL_CACHE", "/own")
        monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
        monkeypatch.setenv("HOME", "/home/someone")
        assert default_folder() == Path("/own")
        monkeypatch.delenv("LANGEVIN_XTAL_CACHE")
        assert default_folder() == Path("/shared/langevin-xtal")
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert default_folder() == Path("/home/someone/.cache/langevin-xtal")


# -- geometry and symmetry


class TestGeometry:
    def test_by_hand(self) -> None:
        a = 4.123
        cell = cubic(a, [[0, 0, 0], [0.5, 0.5, 0.5]], [55, 17])
        near = a * math.sqrt(3) / 2
        density = (132.90545196 + 35.453) * 1.66053907 / a**3
        assert row("geometry", cell) == pytest.approx([near, near, a**3, density, 2, 2], rel=1e-5)

    def test_one_atom(self) -> None:
        half = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) * 1.8
        skew = np.array([[1, 0, 0], [3, 1, 0], [0, 0, 1]]) @ half
        for lattice in (half, skew):
            found = row("geometry", (lattice, np.zeros((1, 3)), np.array([29])))
            assert found[[0, 1, 4, 5]] == pytest.approx([1.8 * math.sqrt(2), 0, 1, 1])

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 8))
    def test_against_all_images(self, seed: int, atoms: int) -> None:
        cell = random_cell(seed, atoms)
        lattice, frac, numbers = cell
        images = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
        steps = (frac[:, None, None] - frac[None, :, None] + images) @ lattice
        lengths = np.linalg.norm(steps, axis=-1)
        lengths[np.arange(atoms), np.arange(atoms), len(images) // 2] = np.inf
        apart = ~np.eye(atoms, dtype=bool)
        found = row("geometry", cell)
        assert found[0] == pytest.approx(lengths.min())
        assert found[1] == pytest.approx(lengths.min(2)[apart].max() if atoms > 1 else 0)
        assert found[2] == pytest.approx(abs(np.linalg.det(lattice)))
        assert found[4:].tolist() == [atoms, len(set(numbers.tolist()))]


class TestSymmetry:
    def test_known_groups(self, reference: StructureSet, cache: Cache) -> None:
        some = reference.select(range(0, len(reference), 4))
        found = compute_features(some, ["symmetry"], cache=cache, workers=1)
        assert found.failures["symmetry"] == {}
        np.testing.assert_array_equal(
            found.values["symmetry"], np.tile(some.group[:, None], (1, 3))
        )

    def test_tolerances(self) -> None:
        cell = cubic(4.0, [[0, 0, 0], [0.5, 0.5, 0.505]], [55, 17])
        assert row("symmetry", cell).tolist() == [99, 99, 221]

    def test_none(self) -> None:
        cell = cubic(4.0, [[0, 0, 0], [0, 0, 1e-5]], [55, 55])
        assert row("symmetry", cell).tolist() == [0, 0, 0]


# -- the CrystalNN fingerprint


@pytest.fixture(scope="module")
def matminer_fingerprint() -> Any:
    return matminer_site.CrystalNNFingerprint.from_preset("ops")


def by_matminer(fingerprint: Any, cell: Cell) -> np.ndarray:
    from langevin_xtal.crystal.pymatgen import to_structure

    structure = to_structure(cell)
    return np.array([fingerprint.featurize(structure, k) for k in range(len(structure))])


class TestCrystalNN:
    @pytest.mark.parametrize("name", TYPES)
    def test_mean_of_matminers_sites(
        self, name: str, reference: StructureSet, matminer_fingerprint: Any
    ) -> None:
        cell = reference.cell(reference.index_of[name])
        theirs = by_matminer(matminer_fingerprint, cell)
        np.testing.assert_allclose(row("crystalnn", cell), theirs.mean(0), rtol=0, atol=1e-7)

    def test_wide_empty_cell(self, matminer_fingerprint: Any) -> None:
        """The search for neighbours has to be widened, and none of them is bonded."""
        cell = cubic(16.0, [[0.1, 0.2, 0.3]], [18])
        theirs = by_matminer(matminer_fingerprint, cell).mean(0)
        assert not theirs.any()
        np.testing.assert_array_equal(row("crystalnn", cell), theirs)

    @pytest.mark.parametrize("apart", [0.0, 1e-9, 1e-3])
    def test_overlapping_atoms(self, apart: float, matminer_fingerprint: Any) -> None:
        """Nonsense, but matminer's; the field's validity looks at the shortest distance."""
        cell = cubic(4.0, [[0, 0, 0], [0, 0, apart / 4]], [11, 17])
        theirs = by_matminer(matminer_fingerprint, cell).mean(0)
        np.testing.assert_allclose(row("crystalnn", cell), theirs, atol=1e-9)

    def test_rock_salt_by_hand(self, reference: StructureSet, matminer_fingerprint: Any) -> None:
        labels = matminer_fingerprint.feature_labels()
        found = row("crystalnn", reference.cell(reference.index_of["rock salt"]))
        by_label = dict(zip(labels, found, strict=True))
        assert by_label["wt CN_6"] == pytest.approx(1)
        assert by_label["octahedral CN_6"] == pytest.approx(1)
        assert sum(v for k, v in by_label.items() if k.startswith("wt")) == pytest.approx(1)

    @pytest.mark.parametrize("name", ["corundum", "rutile", "graphite", "Th3P4", "spinel"])
    @pytest.mark.parametrize("change", [rotated, skewed, supercell])
    def test_invariance(self, name: str, change: Any, reference: StructureSet) -> None:
        cell = reference.cell(reference.index_of[name])
        difference = np.abs(row("crystalnn", change(cell)) - row("crystalnn", cell))
        assert difference[BODY_CENTRED] < 1e-2
        difference[BODY_CENTRED] = 0
        assert difference.max() < 1e-6

    def test_is_deterministic(self) -> None:
        cell = random_cell(1, 6)
        first = row("crystalnn", cell)
        assert all(row("crystalnn", cell).tobytes() == first.tobytes() for _ in range(3))


class TestMagpie:
    def test_by_hand(self, reference: StructureSet, cache: Cache) -> None:
        salt = reference.select([reference.index_of["rock salt"]])
        found = compute_features(salt, ["magpie"], cache=cache, workers=1).values["magpie"][0]
        assert found[:6] == pytest.approx([11, 17, 6, 14, 3, 11])  # statistics of Z

    def test_by_formula(self, reference: StructureSet, cache: Cache) -> None:
        cell = reference.cell(reference.index_of["rutile"])
        both = StructureSet.of("two", [cell, supercell(cell)], ["a", "b"])
        steps: list[tuple[int, int]] = []
        found = compute_features(
            both, ["magpie"], cache=cache, workers=1, progress=lambda *s: steps.append(s)
        ).values["magpie"]
        assert steps == [(1, 1)]
        np.testing.assert_array_equal(found[0], found[1])

    def test_untabulated_properties_are_not_a_number(self) -> None:
        """No imputation; whether that is the published behaviour shows in the scale below."""
        found = row("magpie", cubic(4.0, [[0, 0, 0], [0.5, 0.5, 0.5]], [94, 18]))
        assert 0 < np.isnan(found).sum() < 132

    def test_scale(self) -> None:
        mean, std = module._magpie_scale()
        assert len(mean) == len(std) == 132
        assert mean[0] == pytest.approx(21.194441759304013, abs=1e-6)
        assert std[0] == pytest.approx(16.35781741152948, abs=1e-6)
        values = np.stack([mean, mean + 2 * std, np.full(132, np.nan)])
        expected = np.repeat([[0.0], [2.0], [0.0]], 132, axis=1)
        np.testing.assert_allclose(scale_magpie(values), expected, atol=1e-12)


# -- CHGNet


class TestCHGNet:
    @pytest.fixture(scope="class")
    def model(self) -> Any:
        return pytest.importorskip("chgnet.model.model") and module._chgnet_model()

    @pytest.mark.parametrize("name", ["rutile", "caesium chloride"])
    def test_is_the_models(self, name: str, reference: StructureSet, model: Any) -> None:
        """The energy, and the input of its readout: the readout of every atom's features, not of
        their mean, is the energy, so the features are compared atom by atom."""
        import torch

        k = reference.index_of[name]
        found = row("chgnet", reference.cell(k))
        inputs: list[torch.Tensor] = []
        handle = model.mlp.register_forward_pre_hook(lambda _, x: inputs.append(x[0].detach()))
        predicted = model.predict_structure(reference.structure(k), task="e")
        handle.remove()
        assert found[0] == pytest.approx(float(predicted["e"]), abs=1e-5)
        assert inputs[0].shape == (len(reference.structure(k)), 64)
        np.testing.assert_allclose(found[1:], inputs[0].mean(0).numpy(), atol=1e-5)

    @pytest.mark.parametrize("change", [rotated, skewed, supercell])
    def test_invariance(self, change: Any, reference: StructureSet) -> None:
        cell = reference.cell(reference.index_of["rutile"])
        before, after = row("chgnet", cell), row("chgnet", change(cell))
        np.testing.assert_allclose(after, before, atol=2e-5)

    def test_threads_stay_as_they_were(self, reference: StructureSet) -> None:
        import torch

        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            row("chgnet", reference.cell(0))
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(before)

    def test_prints_nothing(
        self, reference: StructureSet, capfd: pytest.CaptureFixture[str]
    ) -> None:
        module._chgnet_model.cache_clear()
        row("chgnet", reference.cell(0))
        assert isinstance(module._attempt("chgnet", cubic(20.0, [[0, 0, 0]], [11])), str)
        assert capfd.readouterr() == ("", "")


# -- running


class TestBadStructures:
    OVERLAP = cubic(4.0, [[0, 0, 0], [0, 0, 0]], [11, 17])
    DENSE = cubic(0.3, [[0, 0, 0]], [26])
    ALONE = cubic(30.0, [[0, 0, 0]], [11])
    UNKNOWN = cubic(4.0, [[0, 0, 0], [0.5, 0.5, 0.5]], [118, 17])

    @pytest.mark.parametrize(
        ("name", "cell", "reason"),
        [
            ("crystalnn", DENSE, "more than 12 atoms"),
            ("crystalnn", UNKNOWN, "unsupported operand"),
            ("magpie", UNKNOWN, "none of its properties"),
            ("chgnet", DENSE, "more than 0.5 atoms"),
            ("chgnet", OVERLAP, "not a finite number"),
            ("chgnet", ALONE, "isolated atom"),
            ("chgnet", UNKNOWN, "does not know Og"),
        ],
    )
    def test_reasons(self, name: str, cell: Cell, reason: str) -> None:
        found = module._attempt(name, cell)
        assert isinstance(found, str)
        assert found
        assert reason in found
        assert "\n" not in found

    def test_geometry_works_on_all(self) -> None:
        for cell in (self.OVERLAP, self.DENSE, self.ALONE, self.UNKNOWN):
            assert len(row("geometry", cell)) == 6
            assert len(row("symmetry", cell)) == 3
        assert row("geometry", self.OVERLAP)[0] == 0

    def test_are_listed_and_stay_in_place(self, reference: StructureSet, tmp_path: Path) -> None:
        good = reference.cell(reference.index_of["rock salt"])
        cells = [self.DENSE, good, self.UNKNOWN, good]
        made = StructureSet.of("mixed", cells, ["dense", "good", "unknown", "again"])
        with Cache(tmp_path) as cache:
            found = compute_features(made, ["crystalnn", "magpie"], cache=cache, workers=1)
        assert found.values["crystalnn"].shape == (4, 61)
        assert np.isnan(found.values["crystalnn"]).all(1).tolist() == [True, False, True, False]
        assert found.failures["crystalnn"].keys() == {"dense", "unknown"}
        assert found.failures["magpie"].keys() == {"unknown"}
        with Cache(tmp_path) as cache:  # reasons are kept too
            steps: list[tuple[int, int]] = []
            again = compute_features(
                made, ["crystalnn"], cache=cache, progress=lambda *s: steps.append(s)
            )
        assert steps == []
        assert again.failures["crystalnn"] == found.failures["crystalnn"]
        np.testing.assert_array_equal(again.values["crystalnn"], found.values["crystalnn"])


class Counter:
    """A feature that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, cell: Cell) -> np.ndarray:
        self.asked.append(int(cell[2][0]))
        return np.full(6, float(cell[2][0]))


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    made = Counter()
    changed = dataclasses.replace(FEATURES["geometry"], compute=made)
    monkeypatch.setitem(FEATURES, "geometry", changed)
    return made


def elements(count: int) -> StructureSet:
    cells = [cubic(4.0, [[0, 0, 0]], [z]) for z in range(1, count + 1)]
    return StructureSet.of("elements", cells, [str(z) for z in range(1, count + 1)])


class TestComputeFeatures:
    def test_unknown_name(self, cache: Cache) -> None:
        with pytest.raises(InputError, match=r"'soap'.*geometry, symmetry"):
            compute_features(elements(1), ["geometry", "soap"], cache=cache)

    def test_empty_set(self, cache: Cache) -> None:
        found = compute_features(elements(0), list(FEATURES), cache=cache)
        shapes = {name: values.shape for name, values in found.values.items()}
        assert shapes == {name: (0, FEATURES[name].width) for name in FEATURES}

    def test_each_cell_once(self, counter: Counter, cache: Cache) -> None:
        some = elements(3)
        cells = [*some.cells(), *some.cells()]
        twice = StructureSet.of("twice", cells, list("abcdef"))
        steps: list[tuple[int, int]] = []
        found = compute_features(
            twice,
            ["geometry", "geometry"],
            cache=cache,
            workers=1,
            progress=lambda *s: steps.append(s),
        )
        assert counter.asked == [1, 2, 3]
        assert steps == [(1, 3), (2, 3), (3, 3)]
        assert found.values["geometry"][:, 0].tolist() == [1, 2, 3, 1, 2, 3]
        compute_features(elements(4), ["geometry"], cache=cache, workers=1)
        assert counter.asked == [1, 2, 3, 4]

    def test_interrupted(self, counter: Counter, tmp_path: Path) -> None:
        def stop(done: int, planned: int) -> None:
            if done == 60:
                raise KeyboardInterrupt

        with Cache(tmp_path) as cache, pytest.raises(KeyboardInterrupt):
            compute_features(elements(80), ["geometry"], cache=cache, workers=1, progress=stop)
        with Cache(tmp_path) as cache:
            compute_features(elements(80), ["geometry"], cache=cache, workers=1)
        assert counter.asked == list(range(1, 81))

    def test_saves_on_the_way(self, counter: Counter, tmp_path: Path) -> None:
        seen: list[int] = []
        with Cache(tmp_path) as cache, Cache(tmp_path) as other:
            keys = [FEATURES["geometry"].key(cell) for cell in elements(80).cells()]
            kind = module._kind("geometry")
            compute_features(
                elements(80),
                ["geometry"],
                cache=cache,
                workers=1,
                progress=lambda *_: seen.append(len(other.get(kind, keys))),
            )
        assert seen[0] == 0
        assert seen[-1] == module.SAVE_EVERY

    def test_an_upgrade_computes_afresh(
        self, counter: Counter, cache: Cache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compute_features(elements(2), ["geometry"], cache=cache, workers=1)
        monkeypatch.setattr(metadata, "version", lambda package: "9999.1")
        compute_features(elements(2), ["geometry"], cache=cache, workers=1)
        assert counter.asked == [1, 2, 1, 2]

    def test_a_missing_package(self, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(package: str) -> str:
            raise metadata.PackageNotFoundError(package)

        monkeypatch.setattr(metadata, "version", absent)
        with pytest.raises(MissingPackageError, match=r"matminer.*pip install"):
            compute_features(elements(2), ["magpie"], cache=cache)

    def test_a_package_that_breaks_is_no_failed_structure(
        self, cache: Cache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(cell: Cell) -> np.ndarray:
            raise MissingPackageError("no such package")

        changed = dataclasses.replace(FEATURES["geometry"], compute=broken)
        monkeypatch.setitem(FEATURES, "geometry", changed)
        with pytest.raises(MissingPackageError):
            compute_features(elements(2), ["geometry"], cache=cache, workers=1)

    @pytest.mark.slow
    def test_workers_change_nothing(
        self, reference: StructureSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        some = reference.select(range(10))
        with Cache(None) as cache:
            alone = compute_features(some, ["geometry", "crystalnn"], cache=cache, workers=1)
        used: list[int] = []
        parallel_map = module.parallel_map

        def noted(function: Any, items: Any, *, workers: int, chunk: int) -> Any:
            used.append(workers)
            return parallel_map(function, items, workers=workers, chunk=chunk)

        monkeypatch.setattr(module, "parallel_map", noted)
        changed = dataclasses.replace(FEATURES["crystalnn"], share=5)
        monkeypatch.setitem(FEATURES, "crystalnn", changed)
        with Cache(None) as cache:
            shared = compute_features(some, ["geometry", "crystalnn"], cache=cache, workers=8)
        assert used == [1, 2]  # no more processes than are worth their start
        for name, values in alone.values.items():
            np.testing.assert_array_equal(shared.values[name], values)


class TestSpareCache:
    """A cache without which work goes on."""

    def test_is_a_cache(self, tmp_path: Path) -> None:
        with SpareCache(tmp_path) as cache:
            cache.put("a", {"k": np.arange(3.0)}, {"bad": "why"})
        with warnings.catch_warnings(), Cache(tmp_path) as cache:
            warnings.simplefilter("error")
            assert cache.get("a", ["k"])["k"].tolist() == [0, 1, 2]
            assert SpareCache(tmp_path).failures("a", ["bad"]) == {"bad": "why"}

    @pytest.mark.parametrize("what", ["file", "other"])
    def test_one_that_cannot_be_opened(self, tmp_path: Path, what: str) -> None:
        folder = tmp_path / "cache"
        if what == "file":
            folder.write_text("not a folder")
        else:
            folder.mkdir()
            (folder / FILE).write_bytes(b"not a database, but long enough to look at" * 9)
        with pytest.warns(LangevinXtalWarning, match=r"going on without it$") as reported:
            cache = SpareCache(folder)
        assert len(reported) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # once is enough
            cache.put("a", {"k": np.arange(2.0)})
            assert cache.get("a", ["k"])["k"].tolist() == [0, 1]

    def test_one_that_breaks_later(self, tmp_path: Path) -> None:
        with SpareCache(tmp_path) as cache:
            cache.put("a", {"k": np.arange(2.0)})
            with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as other, other:
                other.execute("DROP TABLE feature")
            with pytest.warns(LangevinXtalWarning, match="going on without it"):
                assert cache.get("a", ["k"]) == {}
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # once is enough
                cache.put("a", {"k": np.arange(3.0)}, {"bad": "why"})
                assert cache.failures("a", ["bad"]) == {"bad": "why"}
            assert len(cache.get("a", ["k"])["k"]) == 3

    def test_a_message_that_is_no_text(self, tmp_path: Path) -> None:
        """SQLite names damaged tables in its messages, as bytes."""
        cache = SpareCache(tmp_path)
        with pytest.raises(DataError, match="cannot be used as a cache"), cache._sql():
            b"\xac".decode()
