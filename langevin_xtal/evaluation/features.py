"""Features of structures: geometry, symmetry, structure and composition fingerprints, CHGNet.

Every feature is a row of numbers per structure. A structure that a featuriser cannot work with
gets a row of NaN and a reason. Results are kept in a
:class:`~langevin_xtal.evaluation.cache.Cache` under the feature's name and the versions of the
libraries that make it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache as once
from functools import partial
from importlib import metadata, resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.config.tolerances import LOOSE
from langevin_xtal.crystal.cell import Cell, cell_key, reduced_formula
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.readers import first_line
from langevin_xtal.errors import InputError, MissingPackageError
from langevin_xtal.evaluation.cache import Cache
from langevin_xtal.evaluation.structures import StructureSet
from langevin_xtal.extras import require
from langevin_xtal.parallel import parallel_map
from langevin_xtal.symmetry.detection import group_numbers, symmetry_dataset

if TYPE_CHECKING:
    from pymatgen.core import Lattice

FloatArray = NDArray[np.float64]
Progress = Callable[[int, int], None]
"""Called with (done, planned) after every structure that had to be worked on."""

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
    ``lattice`` (B, 6)
        Lengths [Å] and angles [degrees] of spglib's standardised conventional cell at 0.1 Å.
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
        Called for the structures that are not in the cache.

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
    source = resources.files("langevin_xtal.evaluation").joinpath("magpie_scaler.csv")
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
    return np.array(list(group_numbers(cell).values()), float)


def _lattice(cell: Cell) -> FloatArray:
    from pymatgen.core import Lattice

    found = symmetry_dataset(cell, LOOSE)
    if found is None:
        raise ValueError("spglib finds no symmetry")
    return np.array(Lattice(found.std_lattice).parameters)


# -- the CrystalNN fingerprint


def _crystalnn(cell: Cell) -> FloatArray:
    _refuse_denser(cell, DENSEST_FOR_CRYSTALNN)
    structure = to_structure(cell)
    featurizer = _crystalnn_featurizer()
    sites = [featurizer.featurize(structure, site) for site in range(len(structure))]
    return np.array(sites, dtype=float).mean(axis=0)


@once
def _crystalnn_featurizer() -> Any:
    module = require(
        "matminer.featurizers.site.fingerprint", "evaluate", "the CrystalNN fingerprint"
    )
    return module.CrystalNNFingerprint.from_preset("ops")


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
    "crystalnn": _Feature(_crystalnn, 61, ("matminer", "pymatgen"), share=50, key=_exact_key),
    "lattice": _Feature(_lattice, 6, ("spglib",), share=500),
    "magpie": _Feature(_magpie, 132, ("matminer",), share=2000, partial=True, key=_formula),
    "chgnet": _Feature(_chgnet, 65, ("chgnet",), share=300),
}
"""All features by name."""
