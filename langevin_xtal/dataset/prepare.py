"""From structure files to a packed dataset: read, symmetrise, check, deduplicate, write.

:func:`asymmetric_unit` turns a P1 cell into its conventional cell in the package's setting, with
one exactly placed site per orbit, and checks that the group's operations give the input back.
What cannot be used becomes a reject with its reason. Training itself needs none of this.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.config.tolerances import USUAL
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.dataset.packed import MAX_ATOMIC_NUMBER, PackedDataset, ideal_cells, pack
from langevin_xtal.dataset.readers import (
    ReadStructure,
    Record,
    Records,
    RejectError,
    first_line,
    read,
    read_records,
)
from langevin_xtal.errors import DataError, InputError
from langevin_xtal.files import check_target, replacing, unwritable, write_rows
from langevin_xtal.parallel import parallel_map
from langevin_xtal.symmetry import SpaceGroup, wrap
from langevin_xtal.symmetry.detection import spglib_version, standard_cell, symmetry_dataset

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MIN_DISTANCE = 0.5
"""Atoms closer than this overlap [Å]."""
MAX_ATOMS = 500
"""Largest primitive cell; symmetry detection beyond it takes minutes."""
MAX_GIVEN = 10_000
"""Largest cell that is read and reduced to its primitive one."""
EXACT = 1e-8
"""How well a stored site must be invariant under its site symmetry (fractional)."""

_CHUNK = 64
_SHIFTS = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


@dataclass(frozen=True)
class AsymmetricUnit:
    """A crystal in its conventional cell, one site per orbit."""

    group: int  #: space-group number
    lattice: FloatArray  #: (3, 3) rows [Å], exactly of the crystal system's shape
    numbers: IntArray  #: (A,) atomic numbers
    frac: FloatArray  #: (A, 3) in [0, 1), exactly on its special position
    multiplicity: IntArray  #: (A,) atoms per conventional cell
    wyckoff: NDArray[np.str_]  #: (A,) letters as spglib gives them


@dataclass(frozen=True)
class PreparationSummary:
    """What :func:`prepare` did."""

    dataset: PackedDataset
    read: int  #: structures seen
    rejects: dict[str, int]  #: reason: count
    rejects_path: Path  #: CSV with one row per reject
    notes: dict[str, int] = field(default_factory=dict)  #: what reading assumed or left: count
    passed_over: dict[str, str] = field(default_factory=dict)  #: file without structures: reason


# --- symmetry ---------------------------------------------------------------------------------


def asymmetric_unit(
    lattice: ArrayLike, frac: ArrayLike, numbers: ArrayLike, symprec: float = USUAL
) -> AsymmetricUnit:
    """Conventional cell, space group and independent sites of a P1 description.

    Parameters
    ----------
    lattice
        (3, 3) rows [Å].
    frac
        (N, 3) fractional coordinates.
    numbers
        (N,) atomic numbers.
    symprec
        Tolerance of spglib's symmetry search [Å].

    Raises
    ------
    RejectError
        When the structure cannot be used, with its reason.
    """
    lattice, frac, numbers = _checked_cell(lattice, frac, numbers, symprec)
    found = symmetry_dataset((lattice, frac, numbers), symprec)
    if found is None:
        if min_distance(lattice, frac) < MIN_DISTANCE:
            raise RejectError(f"atoms closer than {MIN_DISTANCE} Å")
        raise RejectError("spglib found no space group")
    group = SpaceGroup(int(found.number))
    if found.hall_number != group.hall_number:
        raise RejectError("spglib used another setting", f"Hall number {found.hall_number}")
    cell = ideal_cells(np.asarray(found.std_lattice, dtype=float), group.number)
    strain = np.abs(cell - found.std_lattice).max()
    if strain > max(symprec, 1e-6 * np.abs(cell).max()):
        raise RejectError("the standardised cell is not in the package's setting", f"{strain} Å")
    sites = _independent_sites(found, group, cell, symprec)
    _verify(sites, found, (lattice, frac, numbers), symprec)
    return sites


def _checked_cell(lattice: ArrayLike, frac: ArrayLike, numbers: ArrayLike, symprec: float) -> Cell:
    lattice = np.asarray(lattice, dtype=float)
    frac = np.asarray(frac, dtype=float).reshape(-1, 3)
    numbers = np.asarray(numbers, dtype=np.int64)
    if lattice.shape != (3, 3) or not np.isfinite(lattice).all():
        raise RejectError("the cell is not a finite 3 × 3 matrix")
    if abs(np.linalg.det(lattice)) < 1.0:
        raise RejectError("the cell is singular or smaller than 1 Å³")
    if len(numbers) == 0:
        raise RejectError("no atoms")
    if len(numbers) != len(frac):
        raise RejectError("positions and elements differ in number")
    if not np.isfinite(frac).all():
        raise RejectError("positions are not finite")
    if numbers.min() < 1 or numbers.max() > MAX_ATOMIC_NUMBER:
        raise RejectError("unknown element", f"atomic number {numbers.min()}..{numbers.max()}")
    cell = (lattice, wrap(frac), numbers)
    if len(numbers) > MAX_ATOMS:
        cell = reduced(cell, symprec)
        if len(cell[2]) > MAX_ATOMS:
            raise RejectError(f"more than {MAX_ATOMS} atoms", str(len(cell[2])))
    return cell


def reduced(cell: Cell, symprec: float = USUAL) -> Cell:
    """The primitive cell that spglib finds, positions as they are; else the cell given.

    Raises
    ------
    RejectError
        For more than :data:`MAX_GIVEN` atoms.
    """
    count = len(cell[2])
    if count > MAX_GIVEN:
        raise RejectError(f"more than {MAX_GIVEN} atoms", str(count))
    if count == 1:
        return cell
    found = standard_cell(cell, symprec, primitive=True, idealise=False)
    return cell if found is None or len(found[2]) >= count else found


def _independent_sites(
    found: Any, group: SpaceGroup, cell: FloatArray, symprec: float
) -> AsymmetricUnit:
    """One site per orbit of the standardised cell, averaged over its stabiliser."""
    of_primitive = np.empty(int(found.mapping_to_primitive.max()) + 1, dtype=np.int64)
    of_primitive[found.mapping_to_primitive] = np.arange(len(found.mapping_to_primitive))
    source = of_primitive[found.std_mapping_to_primitive]  # an input atom equivalent to each
    orbits = np.asarray(found.crystallographic_orbits)[source]
    _, first, counts = np.unique(orbits, return_index=True, return_counts=True)
    rotations, translations = group.rotations, group.translations
    points = []
    for point, count in zip(found.std_positions[first], counts, strict=True):
        if group.order % count:
            raise RejectError("an orbit's size does not divide the order of the group")
        for _ in range(2):
            delta = point @ np.swapaxes(rotations, 1, 2) + translations - point
            delta -= np.rint(delta)
            length = np.linalg.norm(delta @ cell, axis=1)
            nearest = np.argsort(length, kind="stable")[: group.order // count]
            if length[nearest[-1]] > 5 * symprec:
                raise RejectError("an orbit is not what the group's operations give")
            point = point + delta[nearest].mean(axis=0)
        delta = point @ np.swapaxes(rotations[nearest], 1, 2) + translations[nearest] - point
        if np.abs(delta - np.rint(delta)).max() > EXACT:
            raise RejectError("a site's symmetry is not a group")
        points.append(wrap(_tidy(point)))
    return AsymmetricUnit(
        group=group.number,
        lattice=cell,
        numbers=np.asarray(found.std_types, dtype=np.int64)[first],
        frac=np.array(points),
        multiplicity=counts.astype(np.int64),
        wyckoff=np.array([found.wyckoffs[source[k]] for k in first], dtype="<U1"),
    )


def _tidy(point: FloatArray) -> FloatArray:
    """Removes rounding next to multiples of 1/24, where all fixed coordinates lie."""
    nearest = np.rint(point * 24) / 24
    return np.where(np.abs(point - nearest) < 1e-12, nearest, point)


def expand(sites: AsymmetricUnit) -> tuple[FloatArray, IntArray]:
    """All atoms of the conventional cell: (N, 3) fractional coordinates and (N,) site indices.

    Raises
    ------
    RejectError
        When an orbit has another size than its multiplicity.
    """
    group = SpaceGroup(sites.group)
    rotations, translations = np.swapaxes(group.rotations, 1, 2), group.translations
    frac, owner = [], []
    for index, point in enumerate(sites.frac):
        images = wrap(_tidy(point @ rotations + translations))
        # coincident images agree to rounding, as the point is exact: a coarse grid tells them
        # apart unless it cuts through one, hence two grids half a step apart
        best = min(
            (
                np.unique(np.rint(images * 1e6 + shift) % 1000000, axis=0, return_index=True)[1]
                for shift in (0.0, 0.5)
            ),
            key=len,
        )
        if len(best) != sites.multiplicity[index]:
            raise RejectError("an orbit has another size than its multiplicity")
        frac.append(images[np.sort(best)])
        owner.append(np.full(len(best), index))
    return np.concatenate(frac), np.concatenate(owner)


def _verify(sites: AsymmetricUnit, found: Any, given: Cell, symprec: float) -> None:
    """The group's operations on the sites must give the input structure back."""
    lattice, frac, numbers = given
    atoms, owner = expand(sites)
    ratio = len(atoms) * abs(np.linalg.det(lattice)) / abs(np.linalg.det(sites.lattice))
    if abs(ratio / len(numbers) - 1) > 0.05:
        raise RejectError("the standardised cell has another atomic density")
    if min_distance(sites.lattice, sites.frac, atoms) < MIN_DISTANCE:
        raise RejectError(f"atoms closer than {MIN_DISTANCE} Å")
    moved = frac @ np.asarray(found.transformation_matrix).T + found.origin_shift
    delta = moved[:, None] - atoms
    delta -= np.rint(delta)
    distance = np.linalg.norm(delta @ sites.lattice, axis=-1)
    distance[numbers[:, None] != sites.numbers[owner]] = np.inf
    worst = distance.min(axis=1).max()
    # spglib averages positions over operations, each of which may miss by symprec
    if worst > max(10 * symprec, 0.02):
        raise RejectError("the symmetrised structure differs from the input", f"by {worst:.3f} Å")


def min_distance(lattice: FloatArray, frac: FloatArray, others: FloatArray | None = None) -> float:
    """Shortest distance [Å] between ``frac`` (N, 3) and ``others`` (default: itself).

    Exact below half the shortest height of the cell, which is all an overlap check needs.
    """
    others = frac if others is None else others
    delta = frac[:, None] - others
    delta -= np.rint(delta)
    square = np.full(delta.shape[:2], np.inf)
    for shift in _SHIFTS:
        length = ((delta + shift) @ lattice) ** 2
        total = length.sum(axis=-1)
        total[total < 1e-12] = np.inf  # the atom itself
        square = np.minimum(square, total)
    coincident = (np.abs(delta).max(axis=-1) < 1e-9).sum(axis=1).max() > 1
    return 0.0 if coincident else float(np.sqrt(square.min()))


# --- the run ----------------------------------------------------------------------------------


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    symprec: float = USUAL,
    *,
    workers: int | None = None,
    limit: int | None = None,
    meta: dict[str, Any] | None = None,
    progress: bool | None = None,
    file_format: str = "",
) -> PreparationSummary:
    """Pack every usable structure of ``source`` into ``out``; list the others in a CSV beside it.

    Parameters
    ----------
    source
        See :data:`langevin_xtal.dataset.readers.FORMATS`.
    out
        The packed file; rejects go to ``<out>.rejects.csv``.
    symprec
        Tolerance of the symmetry search [Å].
    workers
        Processes; default one per CPU. With more than one, a script must guard its entry point
        with ``if __name__ == "__main__"``.
    limit
        Read no more than this many structures.
    meta
        Further provenance to store, e.g. licence and attribution.
    progress
        Show a progress bar; default: when stderr is a terminal.
    file_format
        See :func:`langevin_xtal.read_structures`.

    Raises
    ------
    InputError
        For options out of range, a source that cannot be read, or one with no usable structure.
    """
    if not (math.isfinite(symprec) and 0 < symprec <= 1):
        raise InputError(f"symprec is {symprec}: it must lie above 0 and up to 1 Å")
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers were asked for: at least one is needed")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}: at least one structure is needed")
    out = Path(out)
    if not out.parent.is_dir():
        raise InputError(f"folder {out.parent} for the packed dataset does not exist")
    rejects_path = out.with_name(out.name + ".rejects.csv")
    for path in (out, rejects_path):
        check_target(path)
    records = read_records(source, file_format)
    gathered = _gather(records, symprec, workers, limit, progress)
    _write_rejects(rejects_path, gathered.rejects)
    if not gathered.kept:
        raise InputError(f"{_all_rejected(source, gathered)}; see {rejects_path}")
    provenance = _provenance(Path(source), symprec, gathered, meta or {})
    dataset = pack(gathered.kept, provenance)
    dataset.save(out)
    return PreparationSummary(
        dataset,
        gathered.read,
        dict(gathered.reasons),
        rejects_path,
        dict(gathered.notes.most_common()),
        records.passed_over,
    )


def load_crystals(
    source: str | os.PathLike[str], symprec: float = USUAL, *, workers: int | None = None
) -> PackedDataset:
    """A packed dataset, or structures of any other kind packed in memory.

    What was left out of the latter, by reason, is ``meta["rejects"]``.

    Raises
    ------
    InputError
        When the source cannot be read or holds no usable structure.
    """
    path = Path(source)
    if path.suffix.lower() == ".lxd":
        return PackedDataset.load(path)
    gathered = _gather(read_records(path), symprec, workers, None, False)
    if not gathered.kept:
        raise InputError(_all_rejected(source, gathered))
    return pack(gathered.kept, _provenance(path, symprec, gathered, {}))


def _gather(
    found: Records,
    symprec: float,
    workers: int | None,
    limit: int | None,
    progress: bool | None,
) -> _Gathered:
    """Read and judge all structures."""
    records, total = iter(found), found.total
    if limit is not None:
        records = islice(records, limit)
        total = limit if total is None else min(limit, total)
    workers = workers or os.cpu_count() or 1
    if total is not None:
        workers = max(1, min(workers, total // (2 * _CHUNK)))  # a process takes 1 s to start
    gathered = _Gathered()
    judge = partial(_judge, symprec=symprec)
    outcomes = parallel_map(judge, records, workers=workers, chunk=_CHUNK)
    for outcome in _with_progress(outcomes, total, progress):
        gathered.add(outcome)
    return gathered


@dataclass
class _Gathered:
    """Outcomes in the order of the source, without exact repeats."""

    kept: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[tuple[str, str, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    read: int = 0
    ids: set[str] = field(default_factory=set)
    geometries: dict[Any, str] = field(default_factory=dict)

    def add(self, outcome: tuple[Record, AsymmetricUnit | RejectError, tuple[str, ...]]) -> None:
        record, result, notes = outcome
        self.read += 1
        self.notes.update(notes)
        if isinstance(result, RejectError):
            return self._reject(record.id, result.reason, result.detail)
        if record.id in self.ids:
            return self._reject(record.id, "identifier seen before", "")
        key = _geometry_key(result)
        if key in self.geometries:
            return self._reject(record.id, "repeat of another structure", self.geometries[key])
        self.ids.add(record.id)
        self.geometries[key] = record.id
        properties = {k: v for k, v in record.properties.items() if not math.isinf(v)}
        self.kept.append({"id": record.id, "properties": properties, **vars(result)})
        return None

    def _reject(self, name: str, reason: str, detail: str) -> None:
        self.rejects.append((name, reason, detail))
        self.reasons[reason] += 1


def _geometry_key(sites: AsymmetricUnit) -> Any:
    """Equal for exact repeats: group, elements and multiplicities, and rounded geometry."""
    frac = np.rint(sites.frac * 1e4).astype(np.int64) % 10000
    rows = sorted(
        (int(z), int(m), str(w), *map(int, f))
        for z, m, w, f in zip(sites.numbers, sites.multiplicity, sites.wyckoff, frac, strict=True)
    )
    return sites.group, tuple(rows), tuple(np.rint(sites.lattice.ravel() * 1e3).astype(int))


def _judge(
    record: Record, symprec: float
) -> tuple[Record, AsymmetricUnit | RejectError, tuple[str, ...]]:
    """Runs in the workers."""
    bare = Record(record.id, None, record.parse, record.properties)  # spare the way back
    try:
        found = read(record)
        bare = replace(bare, properties=found.properties)
        unit = asymmetric_unit(*found.cell, symprec=symprec)
        return bare, unit, (*found.notes, *_unused(found))
    except RejectError as reject:
        return bare, reject, ()
    except Exception as error:  # one strange structure must not end the run
        detail = f"{type(error).__name__}: {first_line(error)}"
        return bare, RejectError("unexpected failure", detail), ()


def _unused(found: ReadStructure) -> list[str]:
    """What a packed dataset does not hold."""
    said = []
    if found.moments is not None:
        said.append("magnetic moments are not kept in packed data")
    if found.fixed is not None:
        said.append("constraints are not kept in packed data")
    if found.oxidation is not None:
        said.append("oxidation states are not kept in packed data")
    return said


def _with_progress(
    outcomes: Iterator[Any], total: int | None, progress: bool | None
) -> Iterator[Any]:
    from tqdm import tqdm

    shown = sys.stderr.isatty() if progress is None else progress
    yield from tqdm(outcomes, total=total, desc="preparing", unit=" structures", disable=not shown)


def _write_rejects(path: Path, rejects: list[tuple[str, str, str]]) -> None:
    rows = ({"id": name, "reason": reason, "detail": detail} for name, reason, detail in rejects)
    try:
        with replacing(path, newline="") as stream:
            write_rows(stream, ("id", "reason", "detail"), rows, lineterminator="\r\n")
    except OSError as error:
        raise unwritable(path, error, DataError) from None


def _all_rejected(source: Any, gathered: _Gathered) -> str:
    if not gathered.read:
        return f"{source} holds no structure"
    reason, count = gathered.reasons.most_common(1)[0]
    return (
        f"none of the {gathered.read} structures of {source} can be used; most often "
        f"({count}×): {reason}"
    )


def _provenance(
    source: Path, symprec: float, gathered: _Gathered, extra: dict[str, Any]
) -> dict[str, Any]:
    import langevin_xtal

    return {
        "source": source.name,
        "symprec": symprec,
        "read": gathered.read,
        "rejects": dict(gathered.reasons.most_common()),
        "versions": {
            "langevin_xtal": getattr(langevin_xtal, "__version__", "unknown"),
            "spglib": spglib_version(),
            "numpy": np.__version__,
        },
        **extra,
    }
