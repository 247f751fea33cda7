"""Features of structures: geometry, symmetry, structure and composition fingerprints, CHGNet.

Every feature is a row of numbers per structure. A structure that a featuriser cannot work with
gets a row of NaN and a reason. Results are kept in a :class:`~langevin_xtal.evaluate.cache.Cache`
under the feature's name and the versions of the libraries that make it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache as once
from functools import partial
from importlib import metadata, resources
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.cell import Cell, cell_key, reduced_formula, to_structure
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.dataset.readers import first_line
from langevin_xtal.errors import InputError, MissingPackageError
from langevin_xtal.evaluate.cache import Cache
from langevin_xtal.evaluate.structures import StructureSet
from langevin_xtal.extras import require
from langevin_xtal.parallel import parallel_map

if TYPE_CHECKING:
    from pymatgen.core import Lattice

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Progress = Callable[[int, int], None]
"""Called with (done, planned) after every structure that had to be worked on."""

SYMMETRY_TOLERANCES = (1e-3, 1e-2, 1e-1)
"""Distances at which space groups are looked for [Å]."""
EQUIVALENCE_TOLERANCE = 1e-6
"""Distance within which symmetry must map atoms on each other for one to stand for all [Å]: the
fingerprints of atoms that agree this well agree to about 1e-6 (but see :data:`ORDER_DEPENDENT`
and :data:`STRAIGHT`)."""
DENSEST_FOR_CRYSTALNN = 12.0
"""Atoms per Å³ beyond which a cell would cost too much time and memory: no arrangement of so many
keeps atoms 0.5 Å apart, which the field's validity asks for."""
DENSEST_FOR_CHGNET = 0.5
"""The same for CHGNet, which looks further; diamond has 0.18. LeMat-GenBench draws this line."""
CHGNET_ELEMENTS = 94
SAVE_EVERY = 50
SAVE_SECONDS = 5.0


@dataclass(frozen=True)
class _Feature:
    """What is known about a feature before it is computed."""

    compute: Callable[[Cell], FloatArray]
    width: int
    packages: tuple[str, ...]  #: their versions are part of the cache's kind
    share: int  #: structures that are worth the start of another process
    revision: int = 1  #: raised when the code here changes what comes out
    partial: bool = False  #: NaN inside a row is a value
    key: Callable[[Cell], str] = cell_key  #: cells of one key have one row


@dataclass(frozen=True)
class Features:
    """Rows of numbers per structure, and why some are missing."""

    values: dict[str, FloatArray]  #: name -> (B, d), NaN rows where it failed
    failures: dict[str, dict[str, str]]  #: name -> {structure id: reason}


def compute_features(
    structures: StructureSet,
    names: Sequence[str],
    *,
    cache: Cache,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """Features of every structure, from the cache where they are there.

    ``geometry`` (B, 6)
        Shortest distance between two atoms, periodic images included [Å]; largest
        nearest-image distance between two atoms of the cell [Å], 0 for one atom (the minimum and
        maximum distances of PGCGM, Zhao et al., npj Comput. Mater. 9, 38 (2023),
        arXiv:2203.14352); volume [Å³]; density [g/cm³]; atoms; elements. All but the first, the
        density and the elements are those of the cell given, which should be primitive.
    ``symmetry`` (B, 3)
        Space group number by spglib at 1e-3, 1e-2 and 1e-1 Å, 0 where it finds none.
    ``crystalnn`` (B, 61)
        Mean over the atoms of the CrystalNN order-parameter fingerprint (Zimmermann and Jain,
        RSC Adv. 10, 6063 (2020); matminer's ``CrystalNNFingerprint.from_preset("ops")``), the
        structure fingerprint of CDVAE (Xie et al., arXiv:2110.06197). It jumps: some order
        parameters tell bond angles of 180° to within 1e-12 from others, so an exactly symmetric
        cell and the same cell with rounded coordinates are apart (0.10 for rock salt, 0.16 for
        NbO).
    ``magpie`` (B, 132)
        Composition statistics (Ward et al., npj Comput. Mater. 2, 16028 (2016); matminer's
        ``ElementProperty.from_preset("magpie")``), raw; NaN for properties that are not
        tabulated, without imputation. See :func:`scale_magpie`.
    ``chgnet`` (B, 65)
        Energy per atom of CHGNet 0.3.0 [eV], then the mean over the atoms of the 64 atom features
        after the last convolution, which are what its readout turns into the energy (Deng et al.,
        Nat. Mach. Intell. 5, 1031 (2023)). CHGNet's own ``crystal_fea`` is their sum.

    Parameters
    ----------
    names
        Of the features wanted.
    workers
        Processes; one per CPU by default, fewer for little work.
    progress
        Told of the structures that are not in the cache.

    Raises
    ------
    InputError
        When there is no such feature.
    MissingPackageError
        When a package that a feature needs is not installed.
    DataError
        When the cache cannot be used.
    """
    wrong = [name for name in names if name not in FEATURES]
    if wrong:
        raise InputError(f"no feature {wrong[0]!r}; there are {', '.join(FEATURES)}")
    plans = [_plan(structures, name, cache) for name in dict.fromkeys(names)]
    planned = sum(len(plan.todo) for plan in plans)
    done = 0
    for plan in plans:
        for _ in _work(plan, cache, workers):
            done += 1
            if progress is not None:
                progress(done, planned)
    return Features(
        values={plan.name: plan.table() for plan in plans},
        failures={plan.name: plan.reasons(structures.ids) for plan in plans},
    )


def scale_magpie(values: FloatArray) -> FloatArray:
    """Magpie features in units of their spread over MP-20, NaN as 0.

    Parameters
    ----------
    values
        (B, 132) as :func:`compute_features` gives them.

    Returns
    -------
    (B, 132) values less the mean, by the standard deviation, of CDVAE's ``CompScaler`` (Xie et
    al., arXiv:2110.06197, ``scripts/eval_utils.py``), whose ``replace_nan_token`` is 0.
    """
    mean, std = _magpie_scale()
    scaled = (np.asarray(values, dtype=float) - mean) / std
    return np.where(np.isnan(scaled), 0.0, scaled)


@once
def _magpie_scale() -> tuple[FloatArray, FloatArray]:
    source = resources.files("langevin_xtal.evaluate").joinpath("magpie_scaler.csv")
    rows = list(csv.DictReader(io.StringIO(source.read_text(encoding="utf-8"))))
    mean, std = (np.array([float(row[name]) for row in rows]) for name in ("mean", "std"))
    return mean, std


# -- planning and running


@dataclass
class _Plan:
    """One feature of one set: what the cache has and what is to be done."""

    name: str
    kind: str
    keys: list[str]  #: (B,)
    found: dict[str, FloatArray]
    failed: dict[str, str]
    todo: dict[str, Cell]  #: key -> a cell that has it

    def table(self) -> FloatArray:
        """(B, d) values, NaN where there is none."""
        values = np.full((len(self.keys), FEATURES[self.name].width), np.nan)
        for row, key in zip(values, self.keys, strict=True):
            if key in self.found:
                row[:] = self.found[key]
        return values

    def reasons(self, ids: Sequence[str]) -> dict[str, str]:
        """Structure id -> reason, for those that failed."""
        pairs = zip(ids, self.keys, strict=True)
        return {name: self.failed[key] for name, key in pairs if key in self.failed}


def _plan(structures: StructureSet, name: str, cache: Cache) -> _Plan:
    feature = FEATURES[name]
    cells = list(structures.cells())
    keys = [feature.key(cell) for cell in cells]
    kind = _kind(name)
    unique = list(dict.fromkeys(keys))
    found = {
        key: value for key, value in cache.get(kind, unique).items() if len(value) == feature.width
    }
    failed = cache.failures(kind, unique)
    todo: dict[str, Cell] = {}
    for key, cell in zip(keys, cells, strict=True):
        if key not in found and key not in failed:
            todo.setdefault(key, cell)
    return _Plan(name, kind, keys, found, failed, todo)


def _work(plan: _Plan, cache: Cache, workers: int | None) -> Iterator[None]:
    """Compute what is to be done, saving now and then, and also when interrupted."""
    useful = -(-len(plan.todo) // FEATURES[plan.name].share)
    processes = max(1, min(workers or os.cpu_count() or 1, useful))
    results = parallel_map(
        partial(_attempt, plan.name), plan.todo.values(), workers=processes, chunk=8
    )
    values: dict[str, FloatArray] = {}
    reasons: dict[str, str] = {}
    saved = time.monotonic()
    try:
        for key, result in zip(plan.todo, results, strict=True):
            if isinstance(result, str):
                plan.failed[key] = reasons[key] = result
            else:
                plan.found[key] = values[key] = result
            if len(values) + len(reasons) >= SAVE_EVERY or time.monotonic() > saved + SAVE_SECONDS:
                cache.put(plan.kind, values, reasons)
                values, reasons, saved = {}, {}, time.monotonic()
            yield
    finally:
        cache.put(plan.kind, values, reasons)


def _formula(cell: Cell) -> str:
    return reduced_formula(cell[2])


def _exact_key(cell: Cell) -> str:
    """Of every bit: :func:`cell_key` rounds, and the order parameters do not."""
    digest = hashlib.sha256(cell_key(cell).encode())
    for values in cell[:2]:
        digest.update(np.ascontiguousarray(values + 0.0, "<f8").tobytes())
    return digest.hexdigest()


def _attempt(name: str, cell: Cell) -> FloatArray | str:
    """The row, or why there is none."""
    feature = FEATURES[name]
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            row = np.asarray(feature.compute(cell), dtype=float)
    except MissingPackageError:
        raise
    except Exception as error:  # one strange structure must not end the run
        return first_line(error)
    whole = feature.partial or np.isfinite(row).all()
    return row if whole else "the result is not a finite number"


def _kind(name: str) -> str:
    """Name, revision and versions, so that an upgrade computes afresh."""
    feature = FEATURES[name]
    versions = [f"{package} {_version(package)}" for package in feature.packages]
    return ", ".join([f"{name} {feature.revision}", *versions])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise MissingPackageError(
            f"a feature needs the package {package}; install it with: "
            "pip install 'langevin-xtal[evaluate]'"
        ) from None


# -- geometry and symmetry


def _geometry(cell: Cell) -> FloatArray:
    structure = to_structure(cell)
    distances = np.asarray(structure.distance_matrix)
    pairs = distances[np.triu_indices(len(structure), 1)]
    return np.array(
        [
            min([_shortest_vector(structure.lattice), *pairs]),
            max([0.0, *pairs]),
            structure.volume,
            float(structure.density),
            len(structure),
            len(structure.composition),
        ]
    )


def _shortest_vector(lattice: Lattice) -> float:
    """Length of the shortest lattice vector [Å]."""
    basis = lattice.get_lll_reduced_lattice().matrix
    steps = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    lengths = np.linalg.norm(steps[np.any(steps != 0, axis=1)] @ basis, axis=1)
    return float(lengths.min())


def _symmetry(cell: Cell) -> FloatArray:
    return np.array([_space_group(cell, tolerance) for tolerance in SYMMETRY_TOLERANCES], float)


def _space_group(cell: Cell, tolerance: float) -> int:
    found = _spglib_dataset(cell, tolerance)
    return 0 if found is None else int(found.number)


def _spglib_dataset(cell: Cell, tolerance: float) -> Any:
    """spglib's dataset, None where it finds no symmetry."""
    import spglib

    os.environ.setdefault("SPGLIB_WARNING", "OFF")  # it would write to the terminal
    plain: Any = cell
    try:
        return spglib.get_symmetry_dataset(plain, symprec=tolerance)
    except Exception:  # newer releases raise where older ones return None
        return None


# -- the CrystalNN fingerprint
#
# pymatgen's and matminer's algorithm on plain arrays. The arithmetic (order of operations, dot
# products by BLAS, order of neighbours) is theirs, because CrystalNN decides by exact comparisons:
# a weight one unit in the last place away can belong to another coordination number.

COORDINATIONS = 24
SEARCH_RADIUS = 7.0
"""CrystalNN's ``search_cutoff`` [Å]."""
X_WEIGHT = 3.0
X_SPAN = 3.3
DISTANCE_CUTOFFS = (0.5, 1.0)
MOTIFS: dict[int, tuple[str, ...]] = {
    1: ("sgl_bd",),
    2: ("L-shaped", "water-like", "bent 120 degrees", "bent 150 degrees", "linear"),
    3: ("trigonal planar", "trigonal non-coplanar", "T-shaped"),
    4: (
        "square co-planar",
        "tetrahedral",
        "rectangular see-saw-like",
        "see-saw-like",
        "trigonal pyramidal",
    ),
    5: ("pentagonal planar", "square pyramidal", "trigonal bipyramidal"),
    6: ("hexagonal planar", "octahedral", "pentagonal pyramidal"),
    7: ("hexagonal pyramidal", "pentagonal bipyramidal"),
    8: ("body-centered cubic", "hexagonal bipyramidal"),
    9: ("q2", "q4", "q6"),
    10: ("q2", "q4", "q6"),
    11: ("q2", "q4", "q6"),
    12: ("cuboctahedral", "q2", "q4", "q6"),
}
"""Order parameters per coordination number: matminer's ``load_cn_target_motif_op``."""

ORDER_DEPENDENT = 8
"""Coordination number whose body-centred parameter is a sum over j < k of terms that change when
j and k are exchanged. It depends on the order of the neighbours, which is not the same around
equivalent atoms: these are computed one by one, so that the mean is matminer's."""
STRAIGHT = 1e-12
"""Sine below which pymatgen takes a bond angle as 180°. Angles so near it that equivalent atoms
may fall on different sides are taken one by one too."""

Parameters = dict[Any, float]


@dataclass(frozen=True)
class _Order:
    """One order parameter: pymatgen's type and parameters."""

    type: str
    parameters: Parameters


@once
def _orders() -> dict[int, tuple[_Order, ...]]:
    """Order parameters per coordination number, parameters as pymatgen has them."""
    from pymatgen.analysis.local_env import LocalStructOrderParams

    try:
        from pymatgen.core.local_env import CN_OPT_PARAMS
    except ImportError:  # pymatgen before 2025.10
        from pymatgen.analysis.local_env import CN_OPT_PARAMS
    known: dict[int, dict[str, list[Any]]] = CN_OPT_PARAMS  # name -> type, parameters if not usual
    orders = {}
    for number, names in MOTIFS.items():
        found = []
        for name in names:
            kind, *own = known.get(number, {}).get(name) or [name]
            made = LocalStructOrderParams([kind], parameters=own or None)
            found.append(_Order(kind, dict(made.get_parameters(0) or {})))
        orders[number] = tuple(found)
    return orders


@once
def _electronegativity(number: int) -> float:
    """Pauling's, NaN for elements without."""
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(Element.from_Z(number).X)


@once
def _radius(number: int) -> float:
    """Covalent, or atomic where that is not tabulated [Å].

    Raises
    ------
    ValueError
        When neither is known.
    """
    from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
    from pymatgen.core import Element

    element = Element.from_Z(number)
    radius = CovalentRadius.radius.get(element.symbol) or element.atomic_radius
    if radius is None:
        raise ValueError(f"no radius of {element.symbol} is known")
    return float(radius)


def _crystalnn(cell: Cell) -> FloatArray:
    _refuse_denser(cell, DENSEST_FOR_CRYSTALNN)
    total = np.zeros(FEATURES["crystalnn"].width)
    for first, *others in _equivalent_sites(cell):
        row, stands_for_all = _site_fingerprint(cell, first)
        if stands_for_all:
            total += row * (1 + len(others))
        else:
            total += row + sum(_site_fingerprint(cell, site)[0] for site in others)
    return total / len(cell[2])


def _refuse_denser(cell: Cell, most: float) -> None:
    """Stop at cells with more atoms per Å³.

    Raises
    ------
    ValueError
        With the limit.
    """
    density = len(cell[2]) / abs(float(np.linalg.det(cell[0])))
    if not density <= most:
        raise ValueError(f"more than {most:g} atoms per Å³")


def _equivalent_sites(cell: Cell) -> list[list[int]]:
    """Atoms that symmetry maps on each other within :data:`EQUIVALENCE_TOLERANCE`."""
    found = _spglib_dataset(cell, EQUIVALENCE_TOLERANCE)
    sites = range(len(cell[2]))
    labels = list(sites) if found is None else found.equivalent_atoms.tolist()
    groups: dict[int, list[int]] = {}
    for site in sites:
        groups.setdefault(labels[site], []).append(site)
    return list(groups.values())


def _site_fingerprint(cell: Cell, site: int) -> tuple[FloatArray, bool]:
    """Of one atom: (61,) per coordination number its weight, then weight times each of its order
    parameters; and whether equivalent atoms have the same."""
    vectors, weights = _bonds(cell, site)
    likelihood = _likelihoods(weights)
    geometry = _Directions(vectors[: max(MOTIFS)])
    row: list[float] = []
    for number in range(1, COORDINATIONS + 1):
        weight = likelihood.get(number, 0.0)
        row.append(weight)
        for order in _orders().get(number, ()):
            row.append(weight and weight * geometry.order(order, number))
    return np.array(row), ORDER_DEPENDENT not in likelihood and not geometry.on_the_edge


def _dots(left: FloatArray, right: FloatArray) -> FloatArray:
    """Dot products over the last axis, each one by BLAS as ``np.dot`` of two vectors does it."""
    return np.matmul(left[..., None, :], right[..., :, None])[..., 0, 0]


def _norms(vectors: FloatArray) -> FloatArray:
    return np.sqrt(_dots(vectors, vectors))


def _bonds(cell: Cell, site: int) -> tuple[FloatArray, FloatArray]:
    """Neighbours of an atom by ``CrystalNN.get_nn_data``, heaviest first.

    Returns
    -------
    vectors
        (n, 3) from the atom to its neighbours [Å].
    weights
        (n,) in (0, 1], rounded to 0.001.

    Raises
    ------
    RuntimeError, ValueError
        When the Voronoi cell is not finite or a radius is not known.
    """
    faces = _voronoi_faces(cell, site)
    center, numbers = faces.center, faces.numbers.tolist()
    own = int(cell[2][site])
    weight = faces.angle / faces.angle.max()
    weight = weight * (faces.angle / faces.area)  # CrystalNN's porous_adjustment
    weight = weight * np.array([_chemical_weight(own, other) for other in numbers])
    some = np.flatnonzero(faces.angle > 0)
    some = some[np.argsort(-weight[some], kind="stable")]
    if not len(some) or weight[some[0]] == 0:
        return np.zeros((0, 3)), np.zeros(0)
    weight = weight[some] / weight[some[0]]
    vectors = faces.neighbours[some] - center
    near = [
        _distance_weight(length, _radius(own) + _radius(numbers[k]))
        for length, k in zip(_norms(vectors).tolist(), some.tolist(), strict=True)
    ]
    weight = weight * np.array(near)
    order = np.argsort(-weight, kind="stable")
    order = order[np.round(weight[order], 3) > 0]
    return vectors[order], np.round(weight[order], 3)


def _chemical_weight(own: int, other: int) -> float:
    """Neighbours of another electronegativity are preferred."""
    difference = abs(_electronegativity(own) - _electronegativity(other))
    return 1.0 if math.isnan(difference) else 1 + X_WEIGHT * math.sqrt(difference / X_SPAN)


def _distance_weight(distance: float, diameter: float) -> float:
    low, high = (diameter + cutoff for cutoff in DISTANCE_CUTOFFS)
    if distance <= low:
        return 1.0
    if distance < high:
        return (math.cos((distance - low) / (high - low) * math.pi) + 1) * 0.5
    return 0.0


@dataclass(frozen=True)
class _Faces:
    """Faces of an atom's Voronoi cell."""

    center: FloatArray  #: (3,) the atom [Å]
    neighbours: FloatArray  #: (F, 3) the atoms beyond the faces [Å]
    numbers: IntArray  #: (F,) their atomic numbers
    angle: FloatArray  #: (F,) solid angles [sr]
    area: FloatArray  #: (F,) [Å²]


def _voronoi_faces(cell: Cell, site: int) -> _Faces:
    """Faces by ``VoronoiNN.get_voronoi_polyhedra``, which widens its search where it must.

    Raises
    ------
    RuntimeError, ValueError
        When the Voronoi cell is not finite.
    """
    from pymatgen.core import Lattice

    matrix, frac, numbers = cell
    lattice = Lattice(matrix)
    center = lattice.get_cartesian_coords(frac[site])
    corners = np.array([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    widest = float(_norms(corners @ lattice.matrix).max()) + 0.01
    radius = SEARCH_RADIUS
    while True:
        found: Any = lattice.get_points_in_sphere(frac, center, radius, zip_results=False)
        around, distance, index, _ = found
        order = np.argsort(distance, kind="stable")
        points = np.array([lattice.get_cartesian_coords(point) for point in around[order]])
        try:
            facets = _facets(points)
            break
        except RuntimeError as error:
            if radius >= widest:
                raise RuntimeError(f"no finite Voronoi cell: {first_line(error)}") from None
            radius = min(2 * radius, widest + 0.001)
    beyond = np.array(list(facets))
    angle, volume = _facet_sizes(points[0], facets)
    height = _norms(points[0] - points[beyond]) / 2
    return _Faces(
        center, points[beyond], numbers[index[order]][beyond], angle, 3 * volume / height
    )


def _facets(points: FloatArray) -> dict[int, FloatArray]:
    """Corners (n, 3) of the faces between point 0 and others.

    Raises
    ------
    RuntimeError
        When a corner is at infinity, or Qhull cannot work with the points.
    """
    from scipy.spatial import Voronoi

    diagram = Voronoi(points)
    facets = {}
    for ridge in np.flatnonzero((diagram.ridge_points == 0).any(axis=1)):
        corners = diagram.ridge_vertices[ridge]
        if -1 in corners:
            raise RuntimeError("a corner is at infinity")
        facets[int(diagram.ridge_points[ridge].max())] = diagram.vertices[corners]
    if not facets:
        raise ValueError("the Voronoi cell has no faces")
    return facets


def _facet_sizes(
    center: FloatArray, facets: dict[int, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Solid angles [sr] of faces seen from the centre, and volumes [Å³] of their pyramids.

    Faces are cut into triangles that share the first corner, as pymatgen does
    (``local_env.solid_angle`` and ``vol_tetra``), and with its treatment of flat triangles.
    """
    triangles = np.concatenate(
        [
            np.stack([np.broadcast_to(c[0], (len(c) - 2, 3)), c[1:-1], c[2:]], axis=1)
            for c in facets.values()
        ]
    )
    first, second, third = (triangles[:, k] - center for k in range(3))
    a, b, c = _norms(first), _norms(second), _norms(third)
    above = np.abs(_dots(first, np.cross(second, third)))
    below = (
        a * b * c + c * _dots(first, second) + b * _dots(first, third) + a * _dots(second, third)
    )
    angle = np.arctan(above / below)
    angle = np.where(below == 0, np.where(above > 0, 0.5, -0.5) * math.pi, angle)
    angle = np.where(angle > 0, angle, angle + math.pi) * 2
    last = triangles[:, 2]
    base = np.cross(triangles[:, 0] - last, triangles[:, 1] - last)
    volume = np.abs(_dots(center - last, base)) / 6
    counts = [len(corners) - 2 for corners in facets.values()]
    ends = [0, *np.cumsum(counts).tolist()]
    sums = [(sum(angle[i:j].tolist()), sum(volume[i:j].tolist())) for i, j in pairwise(ends)]
    return np.array([s[0] for s in sums]), np.array([s[1] for s in sums])


def _likelihoods(weights: FloatArray) -> dict[int, float]:
    """Coordination number -> its weight, by the area under a semicircle between bond weights."""
    levels = sorted({*weights.tolist(), 0.0}, reverse=True)
    return {int((weights >= high).sum()): _semicircle(high, low) for high, low in pairwise(levels)}


def _semicircle(high: float, low: float) -> float:
    """Part of the quarter of the unit circle between two abscissas."""

    def area(x: float) -> float:
        if x == 1:
            return 0.25 * math.pi
        height = math.sqrt(1 - x**2)
        return 0.5 * (x * height + math.atan(x / height))

    return (area(high) - area(low)) / (0.25 * math.pi)


class _Directions:
    """Order parameters of the first n neighbours of an atom, for any n.

    The angles between neighbours j and k (``polar``) and between the planes that k and m span
    with j (``azimuth``) are computed once for all of them. An order parameter puts every
    neighbour j at the pole in turn, every other k on the prime meridian, and adds up what all
    others m contribute: pymatgen's ``LocalStructOrderParams.get_order_parameters``, which has one
    type per instance in matminer (with several, its south-pole terms go to the last type only).
    """

    def __init__(self, vectors: FloatArray) -> None:
        self.distance = _norms(vectors)
        unit = vectors / self.distance[:, None]
        inner = _dots(unit[:, None], unit[None, :])
        self.cosine = np.clip(inner, -1.0, 1.0)
        self.polar = _arccos(self.cosine)
        across = unit[None, :] - (inner / np.diag(inner)[:, None])[..., None] * unit[:, None]
        length = _norms(across)
        self.straight = length < STRAIGHT  #: (j, k) k lies on the axis of j
        self.on_the_edge = bool(((length > STRAIGHT / 100) & (length < STRAIGHT * 100)).any())
        axis = across / length[..., None]
        self._axis = axis
        self._azimuth: FloatArray | None = None

    @property
    def azimuth(self) -> FloatArray:
        """(j, k, m) angles between planes, made when first needed."""
        if self._azimuth is None:
            inner = _dots(self._axis[:, None, :], self._axis[:, :, None])
            self._azimuth = _arccos(np.clip(np.nan_to_num(inner), -1.0, 1.0))
        return self._azimuth

    def order(self, order: _Order, n: int) -> float:
        """One order parameter of the first ``n`` neighbours, 0 where pymatgen has none.

        Raises
        ------
        NotImplementedError
            When pymatgen has made it another type.
        """
        kind, p = order.type, order.parameters
        if kind == "sgl_bd":
            return 1.0 if n == 1 else float(1 - np.divide(*np.sort(self.distance[:n])[:2]))
        if kind in ("q2", "q4", "q6"):
            return self._steinhardt(int(kind[1]), n)
        if n < 2:
            return 0.0
        if kind == "bent":
            others = ~np.eye(n, dtype=bool)
            return float(_bell(p["IGW_TA"], self.polar[:n, :n] / math.pi - p["TA"])[others].mean())
        if kind == "bcc":
            return self._body_centred(p, n)
        if kind == "cuboct_max":
            return self._best(*self._cuboctahedral(p, n))
        if kind in _CAPPED:
            return self._best(*self._capped(kind, p, n))
        if kind in _UNCAPPED:
            return self._best(*self._uncapped(kind, p, n))
        raise NotImplementedError(f"the order parameter {kind} is not known here")

    def _steinhardt(self, degree: int, n: int) -> float:
        """Bond-orientational order (Steinhardt et al., Phys. Rev. B 28, 784 (1983)), by the
        addition theorem of spherical harmonics instead of the harmonics themselves."""
        from scipy.special import eval_legendre

        mean = float(eval_legendre(degree, self.cosine[:n, :n]).mean())
        return math.sqrt(max(mean, 0.0))

    def _masks(self, n: int) -> tuple[BoolArray, BoolArray]:
        """(j, k, m) that contribute when m may lie on the axis of j, and when it may not."""
        bent = ~self.straight[:n, :n]
        apart = ~np.eye(n, dtype=bool)
        free = bent[:, :, None] & apart[None] & apart[:, None]
        return free, free & bent[:, None]

    def _uncapped(self, kind: str, p: Parameters, n: int) -> tuple[FloatArray, FloatArray]:
        """Motifs without a neighbour opposite to the one at the pole: sums and norms (j, k)."""
        turn = self.polar[:n, :n] / math.pi
        if kind == "pent_plan_max":
            target: FloatArray | float = np.where(
                self.polar[:n, :n] <= p["TA"] * math.pi, 0.4, 0.8
            )
            ring = _bell(p["IGW_TA"], turn - target)
            wave = np.cos(self.azimuth[:n, :n, :n]) ** 2
        else:
            width, target = (p["IGW_TA"], p["TA"]) if kind.endswith("_max") else (p["IGW_EP"], 0.5)
            ring = _bell(width, turn - target)
            wave = np.cos(p["fac_AA"] * self.azimuth[:n, :n, :n]) ** p["exp_cos_AA"]
        _, use = self._masks(n)
        return ring + (ring[:, None] * wave).sum(2, where=use), 1.0 + use.sum(2)

    def _capped(self, kind: str, p: Parameters, n: int) -> tuple[FloatArray, FloatArray]:
        """Motifs with a neighbour opposite to the one at the pole: sums and norms (j, k)."""
        polar = self.polar[:n, :n]
        turn = polar / math.pi
        if kind == "hex_plan_max":
            ring = _bell(p["IGW_TA"], np.abs(turn - 0.5) - p["TA"])
        else:
            ring = _bell(p["IGW_EP"], turn - 0.5)
        cap = _bell(p["IGW_SPP"], turn - 1.0)
        side = polar < p["min_SPP"]
        free, use = self._masks(n)
        opposite = free & ~side[:, None]
        use = use & side[:, None] & side[:, :, None]
        azimuth = self.azimuth[:n, :n, :n]
        if kind == "see_saw_rect":
            use &= azimuth < 0.75 * math.pi
        wave = np.cos(p["fac_AA"] * azimuth) ** p["exp_cos_AA"]
        total = np.where(side, ring, 0.0)
        total = total + np.broadcast_to(cap[:, None], (n, n, n)).sum(2, where=opposite)
        total = total + (ring[:, None] * wave).sum(2, where=use)
        return total, 1.0 * side + opposite.sum(2) + use.sum(2)

    def _cuboctahedral(self, p: Parameters, n: int) -> tuple[FloatArray, FloatArray]:
        """Sums and norms (j, k)."""
        polar, azimuth = self.polar[:n, :n], self.azimuth[:n, :n, :n]
        turn = polar / math.pi
        low, high, south = p[4], p[2], p["min_SPP"]
        capped = polar >= south
        total = np.where(capped, p["w_SPP"] * _bell(p["IGW_SPP"], turn - 1.0), 0.0)
        norm = np.where(capped, p["w_SPP"], 0.0)
        _, use = self._masks(n)
        use = use & (polar < south)[:, None] & ((low < polar) & (polar < high))[:, :, None]
        offset = 0.0556 * (np.cos(azimuth - 0.5 * math.pi) - 0.81649658)
        terms = (
            ((low < polar) & (polar < high), np.cos(azimuth) ** 2, _bell(p[5], turn - 0.5)),
            (polar < low, _bell(1.0, offset), _bell(p[6], turn - 1 / 3)),
            (polar > high, _bell(1.0, offset), _bell(p[6], turn - 2 / 3)),
        )
        for where, wave, ring in terms:
            chosen = use & where[:, None]
            total = total + (wave * ring[:, None]).sum(2, where=chosen)
            norm = norm + chosen.sum(2)
        return total, norm

    def _body_centred(self, p: Parameters, n: int) -> float:
        """Peters, J. Chem. Phys. 131, 244103 (2009)."""
        if n <= 3:
            return 0.0
        polar = self.polar[:n, :n]
        capped = polar >= p["min_SPP"]
        later = np.triu(np.ones((n, n), dtype=bool), 1)
        cap = p["w_SPP"] * _bell(p["IGW_SPP"], polar / math.pi - 1.0)
        lean = (polar - math.pi / 2) / math.asin(1 / 3)
        ring = lean * np.exp(0.5 - 0.5 * lean**2)
        sign = np.where(polar > math.pi / 2, 1.0, -1.0)
        _, use = self._masks(n)
        use = use & (later & ~capped)[:, :, None]
        waves = sign[:, :, None] * np.cos(3 * self.azimuth[:n, :n, :n]) * ring[:, None]
        total = cap.sum(where=later & capped) + waves.sum(where=use)
        return float(total / (0.5 * n * (6 + (n - 2) * (n - 3))))

    def _best(self, total: FloatArray, norm: FloatArray) -> float:
        """The best choice of pole and prime meridian."""
        value = np.divide(total, norm, out=np.zeros_like(total), where=norm > 1e-12)
        return float(value[~np.eye(len(value), dtype=bool)].max())


_UNCAPPED = frozenset(
    ("tri_plan_max", "tet_max", "pent_plan_max", "T", "tri_pyr", "sq_pyr", "pent_pyr", "hex_pyr")
)
_CAPPED = frozenset(
    (
        "see_saw_rect",
        "tri_bipyr",
        "sq_bipyr",
        "pent_bipyr",
        "hex_bipyr",
        "oct_max",
        "sq_plan_max",
        "hex_plan_max",
    )
)


def _bell(inverse_width: float, offset: FloatArray) -> FloatArray:
    return np.exp(-0.5 * (inverse_width * offset) ** 2)


def _arccos(cosines: FloatArray) -> FloatArray:
    """By the C library, as pymatgen's: order parameters compare angles exactly."""
    return np.array([math.acos(c) for c in cosines.ravel().tolist()]).reshape(cosines.shape)


# -- composition


def _magpie(cell: Cell) -> FloatArray:
    from pymatgen.core import Composition

    numbers, counts = np.unique(cell[2], return_counts=True)
    counts = counts // np.gcd.reduce(counts)
    amounts = {SYMBOLS[z]: int(n) for z, n in zip(numbers, counts, strict=True)}
    row = np.array(_magpie_featurizer().featurize(Composition(amounts)), dtype=float)
    if np.isnan(row).all():
        raise ValueError("none of its properties is tabulated for all elements")
    return row


@once
def _magpie_featurizer() -> Any:
    composition = require(
        "matminer.featurizers.composition", "evaluate", "the composition fingerprint"
    )
    return composition.ElementProperty.from_preset("magpie", impute_nan=False)


# -- CHGNet


def _chgnet(cell: Cell) -> FloatArray:
    import torch

    _refuse_denser(cell, DENSEST_FOR_CHGNET)
    if cell[2].max() > CHGNET_ELEMENTS:
        raise ValueError(f"CHGNet does not know {SYMBOLS[cell[2].max()]}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more cost time on small cells
    try:
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            model = _chgnet_model()
            graph = model.graph_converter(to_structure(cell))
            found = model.predict_graph(graph, task="e", return_crystal_feas=True)
    finally:
        torch.set_num_threads(threads)
    features = np.asarray(found["crystal_fea"], dtype=float) / len(cell[2])
    return np.concatenate([np.asarray(found["e"], dtype=float).reshape(1), features])


@once
def _chgnet_model() -> Any:
    chgnet = require("chgnet.model.model", "evaluate", "CHGNet")
    model = chgnet.CHGNet.load(model_name="0.3.0", use_device="cpu", verbose=False)
    model.graph_converter.set_isolated_atom_response("error")
    return model


FEATURES: dict[str, _Feature] = {
    "geometry": _Feature(_geometry, 6, ("pymatgen",), share=2000),
    "symmetry": _Feature(_symmetry, 3, ("spglib",), share=200),
    "crystalnn": _Feature(
        _crystalnn, 61, ("pymatgen", "scipy", "spglib"), share=100, key=_exact_key
    ),
    "magpie": _Feature(_magpie, 132, ("matminer",), share=2000, partial=True, key=_formula),
    "chgnet": _Feature(_chgnet, 65, ("chgnet",), share=300),
}
"""All features by name."""
