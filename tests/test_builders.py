"""Every builder makes the multigraph of the reference: the same edges in the same order."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace

import numpy as np
import pytest

from langevin_xtal.errors import BackendError, GraphError, InputError, LatticeError
from langevin_xtal.graph import (
    CrystalArrays,
    GraphSettings,
    SymmetryMultigraph,
    available,
    backends,
    build_multigraph,
    triplets,
)
from langevin_xtal.graph.contract import MAX_IMAGES
from langevin_xtal.symmetry.groups import SpaceGroup
from langevin_xtal.symmetry.lattice import cell_directions, has_fixed_angles, lattice_driver
from langevin_xtal.symmetry.sites import snap_site

FAST = [name for name in available() if name != "reference"]
SMALL = GraphSettings(cutoff=3.5, k_min=6, k_max=16)


def random_lattice(rng: np.random.Generator, number: int, volume: float) -> np.ndarray:
    """(3, 3) a cell of group ``number`` with this volume [Å^3], lengths within a factor of 2."""
    lengths = rng.uniform(0.7, 1.4, 3)[lattice_driver(number)[:3]]
    if has_fixed_angles(number):
        directions = cell_directions(number)
    else:
        alpha, beta, gamma = np.radians(rng.uniform(70.0, 110.0, 3))
        if number >= 3:
            alpha = gamma = np.pi / 2
        b = np.array([np.cos(gamma), np.sin(gamma), 0.0])
        x, y = np.cos(beta), (np.cos(alpha) - np.cos(beta) * np.cos(gamma)) / np.sin(gamma)
        directions = np.array([[1.0, 0.0, 0.0], b, [x, y, np.sqrt(1.0 - x * x - y * y)]])
    cell = lengths[:, None] * directions
    return cell * (volume / abs(np.linalg.det(cell))) ** (1 / 3)


def random_crystal(
    rng: np.random.Generator, number: int, sites: int, volume_per_atom: float = 15.0
) -> tuple[np.ndarray, np.ndarray]:
    """Lattice (3, 3) and sites (n, 3), about half of them on special positions."""
    group = SpaceGroup(number)
    volume = volume_per_atom * group.order * max(1.0, 0.4 * sites)
    lattice = random_lattice(rng, number, volume)
    frac = rng.uniform(-1.0, 2.0, (sites, 3))
    for i in range(0, sites, 2):
        frac[i] = snap_site(frac[i], group.rotations, group.translations, lattice, 2.0)
    return lattice, frac


def batch(crystals: list[tuple[np.ndarray, np.ndarray]], groups: list[int]) -> CrystalArrays:
    """Crystals given as lattice and sites, in these groups."""
    start = np.cumsum([0] + [len(frac) for _, frac in crystals])
    lattice = np.array([lattice for lattice, _ in crystals]).reshape(-1, 3, 3)
    frac = np.concatenate([np.zeros((0, 3)), *(frac for _, frac in crystals)])
    return CrystalArrays.of_groups(lattice, frac, start, np.array(groups, dtype=np.int64))


def in_p1(crystals: CrystalArrays) -> CrystalArrays:
    """One crystal, all atoms of its cell listed; images of a site keep its orbit label."""
    graph = build_multigraph(
        crystals, GraphSettings(cutoff=1.0, k_min=1, all_pairs=True), backend="reference"
    )
    rotations, translations = crystals.operations(0)
    frac, label = [], []
    for j in range(len(crystals.frac)):
        ops = np.unique(graph.edge_op[graph.edge_index[1] == j])
        for h in ops:
            frac.append(rotations[h] @ crystals.frac[j] + translations[h])
            label.append(7 - 3 * j)
    p1 = CrystalArrays.of_groups(
        crystals.lattice, np.array(frac), np.array([0, len(frac)]), np.array([1])
    )
    return replace(p1, orbit=np.array(label))


def assert_same(graph: SymmetryMultigraph, expected: SymmetryMultigraph) -> None:
    for field in fields(SymmetryMultigraph):
        got, want = getattr(graph, field.name), getattr(expected, field.name)
        assert got.shape == want.shape, field.name
        assert got.dtype == want.dtype, field.name
        if want.dtype == np.float64:
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-9, err_msg=field.name)
        else:
            np.testing.assert_array_equal(got, want, err_msg=field.name)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("seed", range(12))
def test_random_crystals(backend: str, seed: int) -> None:
    """Batches of different groups and sizes; seven groups a seed, 84 in all."""
    rng = np.random.default_rng(seed)
    numbers = [int(rng.integers(low, low + 33)) for low in range(1, 225, 33)]
    numbers = [min(n, 230) for n in numbers]
    crystals = [
        random_crystal(rng, n, 1 if SpaceGroup(n).order > 16 else int(rng.integers(1, 5)))
        for n in numbers
    ]
    arrays = batch(crystals, numbers)
    settings = replace(SMALL, all_pairs=seed % 3 != 2)
    assert_same(build_multigraph(arrays, settings, backend), reference(arrays, settings))


_cache: dict[tuple, SymmetryMultigraph] = {}


def reference(arrays: CrystalArrays, settings: GraphSettings) -> SymmetryMultigraph:
    """The reference's answer, kept for the next backend."""
    key = (settings, arrays.lattice.tobytes(), arrays.frac.tobytes(), arrays.orbit.tobytes())
    key += (arrays.site_start.tobytes(), arrays.op_start.tobytes())
    if key not in _cache:
        _cache[key] = build_multigraph(arrays, settings, "reference")
    return _cache[key]


OBLIQUE = np.array([[2.5, 0.0, 0.0], [5.6, 2.2, 0.0], [-4.0, 3.1, 2.8]])
ORIGIN = np.zeros((1, 3))


def nasty() -> dict[str, tuple[CrystalArrays, GraphSettings]]:
    """Crystals that builders get wrong, with settings."""
    rng = np.random.default_rng(11)
    cubic = np.eye(3)
    two = np.array([[0.1, 0.2, 0.3], [0.6, 0.1, 0.8]])
    special = np.array([[0.0, 0.0, 0.0], [0.25, 0.25, 0.25], [0.13, 0.13, 0.13]])
    rock_salt = batch([(5.6 * cubic, np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]))], [225])
    polar = batch([(6.0 * cubic, np.array([[0.3, 0.01, 0.2], [0.1, 0.4, 0.0]]))], [25])
    near = np.array([[0.012, 0.25, 0.3]])  # its mirror image is 0.12 Å away
    far = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.05, 0.0, 0.5]])
    shifted = two + np.array([[1000.0, -2000.0, 3000.0]])
    return {
        "one atom": (batch([(3.0 * cubic, ORIGIN)], [1]), GraphSettings(cutoff=3.5, k_min=1)),
        "tie at the cut-off": (
            batch([(3.0 * cubic, ORIGIN + 0.1)], [221]),
            GraphSettings(cutoff=3.0, k_min=2, k_max=99),
        ),
        "tie at the cut-off, oblique": (
            batch([(np.array([[3.0, 0, 0], [-1.5, 2.598076211353316, 0], [0, 0, 5]]), two)], [1]),
            GraphSettings(cutoff=3.0, k_min=2, k_max=99),
        ),
        "192 operations, special positions": (batch([(9.0 * cubic, special)], [227]), SMALL),
        "192 operations, general position": (
            batch([(6.0 * cubic, np.array([[0.11, 0.23, 0.37]]))], [225]),
            replace(SMALL, k_max=24),
        ),
        "oblique": (batch([(OBLIQUE, two)], [1]), SMALL),
        "oblique, centred": (batch([(OBLIQUE, two)], [2]), SMALL),
        "tiny cell": (batch([(0.9 * cubic, ORIGIN)], [1]), SMALL),
        "cell below the coincidence": (
            batch([(np.diag([0.1, 4.0, 5.0]), ORIGIN)], [1]),
            replace(SMALL, cutoff=2.0),
        ),
        "cut-off beyond the cell": (
            batch([(2.5 * cubic, ORIGIN)], [229]),
            GraphSettings(cutoff=7.0, k_min=12, k_max=500),
        ),
        "wide cell, k_min": (
            batch([(np.diag([4.0, 9.0, 11.0]), two)], [1]),
            GraphSettings(cutoff=2.0, k_min=12),
        ),
        "no neighbours wanted": (batch([(4.0 * cubic, two)], [1]), replace(SMALL, k_min=0)),
        "only the first shell": (rock_salt, GraphSettings(cutoff=4.5, k_min=0, k_max=1)),
        "first shell beyond the cut-off": (
            rock_salt,
            GraphSettings(cutoff=1.0, k_min=7, k_max=3),
        ),
        "one shell within the cut-off": (
            rock_salt,
            GraphSettings(cutoff=3.0, k_min=0, k_max=3),
        ),
        "rock salt in P1": (in_p1(rock_salt), GraphSettings(cutoff=4.5, k_min=0, k_max=20)),
        "polar in P1": (in_p1(polar), replace(SMALL, k_max=8)),
        "images close to each other": (batch([(10.0 * cubic, near / 2)], [6]), SMALL),
        "images closer than the coincidence": (
            batch([(np.diag([5.0, 4.0, 4.0]), near)], [47]),
            SMALL,
        ),
        "far pairs": (
            batch([(np.diag([3.0, 4.0, 30.0]), far)], [1]),
            GraphSettings(cutoff=3.0, k_min=2, k_max=6),
        ),
        "far pairs, oblique": (
            batch([(OBLIQUE * np.array([[1.0], [1.0], [4.0]]), far)], [2]),
            GraphSettings(cutoff=2.0, k_min=2, k_max=4),
        ),
        "far pairs left out": (
            batch([(np.diag([3.0, 4.0, 30.0]), far)], [1]),
            GraphSettings(cutoff=3.0, k_min=2, k_max=6, all_pairs=False),
        ),
        "sites on top of each other": (
            batch([(4.0 * cubic, np.repeat(two, 3, axis=0))], [2]),
            replace(SMALL, k_max=10),
        ),
        "dense cloud": (
            batch([(4.6 * cubic, rng.uniform(0.0, 1.0, (2, 3)))], [221]),
            GraphSettings(cutoff=3.0, k_min=12, k_max=24),
        ),
        "far from the origin cell": (batch([(4.0 * cubic, shifted)], [14]), SMALL),
        "left-handed": (batch([(-3.7 * cubic, two)], [4]), SMALL),
        "empty batch": (batch([], []), SMALL),
        "crystal without sites": (
            batch([(4.0 * cubic, two), (cubic, np.zeros((0, 3))), (4.0 * cubic, ORIGIN)], [1] * 3),
            SMALL,
        ),
    }


NASTY = nasty()


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("backend", FAST)
def test_nasty_crystals(backend: str, name: str) -> None:
    arrays, settings = NASTY[name]
    assert_same(build_multigraph(arrays, settings, backend), reference(arrays, settings))


@pytest.mark.parametrize("backend", available())
def test_simple_cubic_has_thirty_triplets(backend: str) -> None:
    """Six neighbours, each turned to by five others: 6 × 5."""
    arrays = batch([(3.0 * np.eye(3), ORIGIN)], [221])
    graph = build_multigraph(arrays, GraphSettings(cutoff=3.5, k_min=6), backend)
    index, cosine = triplets(graph, arrays)
    assert graph.edge_index.shape == (2, 6)
    assert graph.multiplicity.tolist() == [1]
    assert index.shape == (2, 30)
    assert sorted(np.rint(cosine).astype(int)) == [-1] * 6 + [0] * 24


@pytest.mark.parametrize("backend", available())
def test_a_tie_at_the_cutoff_is_out_as_a_whole(backend: str) -> None:
    """The six neighbours at exactly the cut-off are all left out, or shells would be cut."""
    arrays = batch([(3.0 * np.eye(3), ORIGIN + 0.1)], [1])
    graph = build_multigraph(arrays, GraphSettings(cutoff=3.0, k_min=0, all_pairs=False), backend)
    assert graph.edge_index.shape == (2, 0)


@pytest.mark.parametrize("backend", available())
def test_batch_is_its_crystals_one_by_one(backend: str) -> None:
    rng = np.random.default_rng(5)
    numbers = [1, 14, 62, 2, 2]
    crystals = [random_crystal(rng, n, k) for n, k in zip(numbers, [1, 3, 2, 5, 1], strict=True)]
    whole = build_multigraph(batch(crystals, numbers), SMALL, backend)
    first = 0
    for (lattice, frac), number in zip(crystals, numbers, strict=True):
        own = build_multigraph(batch([(lattice, frac)], [number]), SMALL, backend)
        edges = slice(whole.edge_start[first], whole.edge_start[first + len(frac)])
        np.testing.assert_array_equal(whole.edge_index[:, edges] - first, own.edge_index)
        np.testing.assert_array_equal(whole.edge_shift[edges], own.edge_shift)
        np.testing.assert_allclose(whole.edge_vec[edges], own.edge_vec, rtol=0, atol=1e-12)
        first += len(frac)


@pytest.mark.parametrize("backend", available())
def test_too_many_near_at_the_cutoff(backend: str) -> None:
    """Refused before searching, in the order of the crystals."""
    good = (4.0 * np.eye(3), ORIGIN)
    thin = (np.diag([0.05, 0.06, 49.0]), np.zeros((4, 3)))
    arrays = batch([good, thin, (0.1001 * np.eye(3), ORIGIN)], [1, 1, 1])
    refusal = r"^crystal 1 may have 2.14e\+06 images within 20 Å of a site; .* at most 2000000"
    with pytest.raises(GraphError, match=refusal):
        build_multigraph(arrays, replace(SMALL, cutoff=20.0), backend)


@pytest.mark.parametrize("backend", available())
@pytest.mark.parametrize(("k_min", "k_max", "far"), [(900, 999, 0.0), (2, 24, 0.5), (2, 2, 0.5)])
def test_too_many_near_on_the_way(
    backend: str, k_min: int, k_max: int, far: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search grows until it is refused, for too few neighbours or for a far pair."""
    modules = (backends._MODULES[name].rsplit(".", 1)[1] for name in (backend, "reference"))
    for module in ("contract", *modules):
        monkeypatch.setattr(f"langevin_xtal.graph.{module}.MAX_NEAR", 900)
    frac = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, far]])[: 2 if far else 1]
    settings = GraphSettings(cutoff=5.0, k_min=k_min, k_max=k_max)
    good = (4.0 * np.eye(3), ORIGIN)
    arrays = batch([good, (np.diag([1.0, 1.0, 100.0]), frac), good], [2, 1, 2])
    with pytest.raises(GraphError, match=r"may have .* of a site; .* at most 900: ") as refused:
        build_multigraph(arrays, settings, backend)
    with pytest.raises(GraphError) as expected:
        build_multigraph(arrays, settings, "reference")
    assert str(refused.value) == str(expected.value)


@pytest.mark.parametrize("backend", available())
def test_errors(backend: str) -> None:
    good = (4.0 * np.eye(3), ORIGIN)
    flat = (np.diag([4.0, 4.0, 1e-5]), ORIGIN)
    with pytest.raises(LatticeError, match="crystal 1 has a cell volume"):
        build_multigraph(batch([good, flat], [1, 1]), SMALL, backend)
    with pytest.raises(LatticeError, match="cell volume of nan"):
        build_multigraph(batch([(np.full((3, 3), np.nan), ORIGIN)], [1]), SMALL, backend)
    crowd = (40.0 * np.eye(3), np.zeros((MAX_IMAGES // 192 + 1, 3)))
    with pytest.raises(GraphError, match="crystal 1 has 100032 site images"):
        build_multigraph(batch([good, crowd], [1, 225]), SMALL, backend)
    lost = np.array([[0.0, 0.0, 0.0], [0.0, np.inf, 0.0]])
    with pytest.raises(InputError, match="site 1 is at"):
        build_multigraph(batch([(4.0 * np.eye(3), lost)], [1]), SMALL, backend)


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="cutoff"):
        GraphSettings(cutoff=0.0)
    with pytest.raises(InputError, match="coincidence"):
        GraphSettings(coincidence=0.0)


def test_the_request_wins_and_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = batch([(4.0 * np.eye(3), ORIGIN)], [1])
    with pytest.raises(BackendError, match=r"'fortran' .* reference"):
        build_multigraph(arrays, SMALL, "fortran")
    monkeypatch.setenv(backends.ENVIRONMENT, "pascal")
    with pytest.raises(BackendError, match="'pascal'"):
        build_multigraph(arrays, SMALL)
    build_multigraph(arrays, SMALL, "reference")


def test_falling_back_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = batch([(4.0 * np.eye(3), ORIGIN)], [1])
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    monkeypatch.setitem(backends._MODULES, "cpp", "langevin_xtal.graph.not_built")
    for cached in (backends._load, backends.available, backends._fallback):
        cached.cache_clear()
    try:
        assert "cpp" not in available()
        with pytest.warns(UserWarning, match="C\\+\\+ multigraph is not built"):
            build_multigraph(arrays, SMALL)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            build_multigraph(arrays, SMALL)
        with pytest.raises(BackendError, match="'cpp'"):
            build_multigraph(arrays, SMALL, "cpp")
    finally:
        for cached in (backends._load, backends.available, backends._fallback):
            cached.cache_clear()


@pytest.mark.skipif("cpp" not in available(), reason="the C++ extension is not built")
def test_cpp_threads_do_not_change_the_answer() -> None:
    from langevin_xtal.graph import cpp

    rng = np.random.default_rng(3)
    numbers = [1, 2, 14, 62, 99] * 8
    arrays = batch([random_crystal(rng, n, 3) for n in numbers], numbers)
    one = cpp.build(arrays, SMALL, threads=1)
    for threads in (0, 2, 7):
        assert_same(cpp.build(arrays, SMALL, threads=threads), one)
    bad = arrays.lattice.copy()
    bad[3:] *= np.array([1e-6, 1e6, 1.0])[:, None]
    with pytest.raises(GraphError, match=r"^crystal 3 may"):
        cpp.build(replace(arrays, lattice=bad), SMALL, threads=4)


@pytest.mark.skipif("torch" not in available(), reason="torch is not installed")
def test_torch_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_builder = pytest.importorskip("langevin_xtal.graph.torch_builder")
    rng = np.random.default_rng(4)
    numbers = [1, 2, 14, 62, 99, 225]
    arrays = batch([random_crystal(rng, n, 3) for n in numbers], numbers)
    settings = replace(SMALL, k_max=6)
    whole = torch_builder.build(arrays, settings)
    for chunk in (1, 50, 2000):
        monkeypatch.setattr(torch_builder, "CHUNK", chunk)
        assert_same(torch_builder.build(arrays, settings), whole)
