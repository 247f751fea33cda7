"""From structure files to a packed dataset: read, symmetrise, check, deduplicate, write.

:func:`~langevin_xtal.crystal.asymmetric.asymmetric_unit` turns each cell into its asymmetric unit.
What cannot be used becomes a reject with its reason. Training itself needs none of this.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from langevin_xtal.config.tolerances import USUAL
from langevin_xtal.crystal.asymmetric import AsymmetricUnit, asymmetric_unit
from langevin_xtal.dataset.packed import PackedDataset, pack
from langevin_xtal.dataset.readers import (
    ReadStructure,
    Record,
    Records,
    first_line,
    read,
    read_records,
)
from langevin_xtal.errors import DataError, InputError, RejectError
from langevin_xtal.files import check_target, replacing, unwritable, write_rows
from langevin_xtal.parallel import parallel_map
from langevin_xtal.symmetry.detection import spglib_version

T = TypeVar("T")

_CHUNK = 64


@dataclass(frozen=True)
class PreparationSummary:
    """What :func:`prepare` did."""

    dataset: PackedDataset
    read: int  #: structures seen
    rejects: dict[str, int]  #: reason: count
    rejects_path: Path  #: CSV with one row per reject
    notes: dict[str, int] = field(default_factory=dict)  #: what reading assumed or left: count
    passed_over: dict[str, str] = field(default_factory=dict)  #: file without structures: reason


# --- the run ----------------------------------------------------------------------------------


def prepare(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    symprec: float = USUAL,
    *,
    workers: int | None = None,
    limit: int | None = None,
    meta: Mapping[str, object] | None = None,
    progress: bool | Callable[[int, int], None] | None = None,
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
        Show a progress bar, by default when stderr is a terminal; or what is called with the
        structures done and in all, 0 where that is not known.
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
    dataset = gathered.packed(provenance)
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
    return gathered.packed(_provenance(path, symprec, gathered, {}))


def _gather(
    found: Records,
    symprec: float,
    workers: int | None,
    limit: int | None,
    progress: bool | Callable[[int, int], None] | None,
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

    kept: list[AsymmetricUnit] = field(default_factory=list)
    properties: list[dict[str, float]] = field(default_factory=list)  #: of each that is kept
    rejects: list[tuple[str, str, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    read: int = 0
    ids: dict[str, None] = field(default_factory=dict)  #: of each that is kept
    geometries: dict[Hashable, str] = field(default_factory=dict)

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
        self.ids[record.id] = None
        self.geometries[key] = record.id
        properties = {k: v for k, v in record.properties.items() if not math.isinf(v)}
        self.kept.append(result)
        self.properties.append(properties)
        return None

    def packed(self, meta: Mapping[str, object]) -> PackedDataset:
        """What is kept."""
        return pack(self.kept, list(self.ids), self.properties, meta)

    def _reject(self, name: str, reason: str, detail: str) -> None:
        self.rejects.append((name, reason, detail))
        self.reasons[reason] += 1


def _geometry_key(sites: AsymmetricUnit) -> Hashable:
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
    outcomes: Iterator[T],
    total: int | None,
    progress: bool | Callable[[int, int], None] | None,
) -> Iterator[T]:
    if callable(progress):
        for done, outcome in enumerate(outcomes, start=1):
            yield outcome
            progress(done, total or 0)
        return
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


def _all_rejected(source: object, gathered: _Gathered) -> str:
    if not gathered.read:
        return f"{source} holds no structure"
    reason, count = gathered.reasons.most_common(1)[0]
    return (
        f"none of the {gathered.read} structures of {source} can be used; most often "
        f"({count}×): {reason}"
    )


def _provenance(
    source: Path, symprec: float, gathered: _Gathered, extra: Mapping[str, object]
) -> dict[str, object]:
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
