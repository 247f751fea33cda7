"""Sets of structures to evaluate: primitive cells as flat arrays, and what is missing from them.

A structure that was asked for and is not there (a file that cannot be read, a request the sampler
gave up) stays in the set as :class:`Missing`, so that it stays in every denominator.

An identifier ``<reference id>__<trial>`` (or ``<reference id>`` alone, trial 0) says that the
structure is a prediction of that crystal of the reference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.crystal.asymmetric import reduced
from langevin_xtal.crystal.batch import CrystalBatch
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.cell import Cell, primitive, reduced_formula
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.pymatgen import to_structure
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.dataset.readers import cell_of, first_line, read_records
from langevin_xtal.errors import DataError, RejectError
from langevin_xtal.files import replacing
from langevin_xtal.symmetry import wrap
from langevin_xtal.symmetry.expansion import orbits

if TYPE_CHECKING:
    from pymatgen.core import Structure

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
TRIAL = re.compile(r"^(?P<target>.+?)__(?P<trial>[0-9]{1,6})$")
MAX_ATOMS = 500
"""Largest cell that is evaluated."""


@dataclass(frozen=True)
class Missing:
    """A structure that was asked for and is not there."""

    id: str
    reason: str


@dataclass(frozen=True, eq=False)
class StructureSet(CrystalBatch[NDArray[Any]]):
    """B structures with N atoms in all, and those missing.

    Every atom is a site of its own: cells are P1.

    Raises
    ------
    DataError
        When identifiers repeat.
    """

    PER_CRYSTAL = ("lattice", "group")

    label: str
    lattice: FloatArray  #: (B, 3, 3) primitive cells where they are known, rows a, b, c [Å]
    site_start: IntArray  #: (B + 1,) offsets of each structure's atoms
    numbers: IntArray  #: (N,) atomic numbers
    frac: FloatArray  #: (N, 3) in [0, 1)
    ids: tuple[str, ...]  #: (B,)
    group: IntArray  #: (B,) space group asked for, 0 where none was
    missing: tuple[Missing, ...] = ()

    def __post_init__(self) -> None:
        names = [*self.ids, *(m.id for m in self.missing)]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(f"{self.label}: identifier {twice!r} occurs twice; make them differ")

    def _check(self) -> None:
        """Refuse arrays that do not fit each other or hold what no crystal has.

        Raises
        ------
        ValueError
        """
        kinds = {"lattice": "f", "frac": "f", "site_start": "i", "numbers": "i", "group": "i"}
        crystals, sites = len(self.ids), len(self.numbers)
        shapes = {
            "lattice": (crystals, 3, 3), "frac": (sites, 3), "site_start": (crystals + 1,),
            "numbers": (sites,), "group": (crystals,),
        }  # fmt: skip
        for name, kind in kinds.items():
            array = getattr(self, name)
            if array.dtype.kind != kind or array.shape != shapes[name]:
                raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
        start = self.site_start
        if start[0] != 0 or start[-1] != sites or (np.diff(start) < 1).any():
            raise ValueError("start does not rise from 0 to the number of atoms")
        if sites and (self.numbers.min() < 1 or self.numbers.max() >= len(SYMBOLS)):
            raise ValueError("an atomic number of no element")
        if crystals and not 0 <= self.group.min() <= self.group.max() <= 230:
            raise ValueError("a space group that does not exist")
        if (np.abs(np.linalg.det(self.lattice)) < 1e-3).any():
            raise ValueError("a cell without a volume")
        for name in (*self.ids, *(text for row in self.missing for text in (row.id, row.reason))):
            if not isinstance(name, str):
                raise TypeError("an identifier that is no text")
            name.encode()

    @property
    def attempted(self) -> int:
        """Structures asked for: the denominator of every rate."""
        return len(self.ids) + len(self.missing)

    def __repr__(self) -> str:
        return f"StructureSet({self.label}, {len(self)} structures, {len(self.missing)} missing)"

    # -- single structures

    def cell(self, k: int) -> Cell:
        """The P1 cell of structure ``k``."""
        own = self.sites_of(k)
        return self.lattice[k], self.frac[own], self.numbers[own]

    def cells(self) -> Iterator[Cell]:
        """All P1 cells in order."""
        return (self.cell(k) for k in range(len(self)))

    def structure(self, k: int) -> Structure:
        """pymatgen Structure ``k``."""
        return to_structure(self.cell(k))

    @cached_property
    def index_of(self) -> dict[str, int]:
        """Place of each identifier."""
        return {name: k for k, name in enumerate(self.ids)}

    @cached_property
    def formulas(self) -> tuple[str, ...]:
        """(B,) reduced formulas, elements in alphabetical order."""
        return tuple(reduced_formula(numbers) for _, _, numbers in self.cells())

    def select(self, indices: ArrayLike, label: str | None = None) -> StructureSet:
        """The structures at ``indices``, without the missing ones."""
        picked = self.places(indices)
        ids = tuple(self.ids[k] for k in picked)
        return StructureSet(**self.picked(picked), label=label or self.label, ids=ids)

    # -- making

    @classmethod
    def of(
        cls,
        label: str,
        cells: Sequence[Cell],
        ids: Sequence[str],
        group: ArrayLike | None = None,
        missing: Iterable[Missing] = (),
    ) -> StructureSet:
        """From P1 cells."""
        counts = [len(numbers) for _, _, numbers in cells]
        none = np.zeros((0, 3))
        return cls(
            label=label,
            lattice=np.array([c[0] for c in cells], dtype=float).reshape(-1, 3, 3),
            site_start=np.cumsum([0, *counts]).astype(np.int64),
            numbers=np.concatenate([none[:, 0], *(c[2] for c in cells)]).astype(np.int64),
            frac=wrap(np.concatenate([none, *(c[1] for c in cells)])),
            ids=tuple(map(str, ids)),
            group=np.zeros(len(cells), np.int64) if group is None else np.array(group, np.int64),
            missing=tuple(missing),
        )

    @classmethod
    def from_packed(
        cls, data: PackedDataset, label: str, indices: ArrayLike | None = None
    ) -> StructureSet:
        """Crystals of a packed dataset; the group asked for is their own."""
        picked = np.arange(len(data)) if indices is None else np.asarray(indices)
        cells = []
        for k in picked:
            unit = data.unit(int(k))
            # not wrapped first: the feature crystalnn depends on the last bit
            images, site = orbits(unit.space_group, unit.frac, unit.lattice)
            cells.append(primitive(unit.space_group, (unit.lattice, images, unit.numbers[site])))
        return cls.of(label, cells, data.id[picked].tolist(), data.group[picked])

    @classmethod
    def from_candidates(
        cls,
        candidates: Iterable[Candidate],
        label: str,
        ids: Sequence[str] | None = None,
        reason: str = "rejected by the sampler",
    ) -> StructureSet:
        """Sampled candidates; ``ids`` (of all requests) names those that are missing too."""
        found = {c.index: c for c in candidates}
        names = [str(k) for k in sorted(found)] if ids is None else list(ids)
        places = sorted(found) if ids is None else range(len(names))
        cells, here, groups, missing = [], [], [], []
        for place, name in zip(places, names, strict=True):
            candidate = found.get(place)
            if candidate is None:
                missing.append(Missing(name, reason))
                continue
            group = candidate.space_group
            cells.append(primitive(group, candidate.cell))
            here.append(name)
            groups.append(group.number)
        return cls.of(label, cells, here, groups, missing)

    @classmethod
    def read(
        cls,
        source: str | os.PathLike[str],
        label: str | None = None,
        passed_over: dict[str, str] | None = None,
    ) -> StructureSet:
        """Structures of a file or folder: packed (``.lxd``), saved by :meth:`save`
        (``.structures.npz``), or any format of
        :func:`~langevin_xtal.dataset.readers.read_records`.

        Structures that cannot be used become :class:`Missing` with their reason; files of a
        folder that hold none are given in ``passed_over``.

        Raises
        ------
        DataError
            When the source is missing, unreadable or holds no structure at all.
        """
        path = Path(source)
        name = label or path.name
        if path.suffix == ".lxd":
            return cls.from_packed(PackedDataset.load(path), name)
        if path.name.endswith(".structures.npz"):
            return cls.load(path, label)
        cells, ids, missing = [], [], []
        records = read_records(path)
        for record in records:
            try:
                cell = _checked(reduced(cell_of(record)))
            except RejectError as reject:
                missing.append(Missing(record.id, reject.reason))
            except Exception as error:  # one strange structure must not end the run
                missing.append(Missing(record.id, f"unexpected failure: {first_line(error)}"))
            else:
                cells.append(cell)
                ids.append(record.id)
        if passed_over is not None:
            passed_over.update(records.passed_over)
        if not cells and not missing:
            raise DataError(f"{path} holds no structure")
        return cls.of(name, cells, ids, None, missing)

    # -- files

    def save(self, path: Path) -> None:
        """Write to ``path`` (``….structures.npz``), complete or not at all."""
        with replacing(path, binary=True) as stream:
            np.savez_compressed(
                stream,
                label=np.array(self.label),
                lattice=self.lattice,
                start=self.site_start,
                numbers=self.numbers,
                frac=self.frac,
                ids=np.array(self.ids, dtype=np.str_),
                group=self.group,
                missing=np.array([[m.id, m.reason] for m in self.missing], np.str_).reshape(-1, 2),
            )

    @classmethod
    def load(cls, path: Path, label: str | None = None) -> StructureSet:
        """Read what :meth:`save` wrote.

        Raises
        ------
        DataError
            When the file is damaged or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                made = cls(
                    label=label or str(stored["label"]),
                    lattice=stored["lattice"],
                    site_start=stored["start"],
                    numbers=stored["numbers"],
                    frac=stored["frac"],
                    ids=tuple(stored["ids"].tolist()),
                    group=stored["group"],
                    missing=tuple(Missing(*row) for row in stored["missing"].tolist()),
                )
            made._check()
            return made
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{path} is not a set of structures ({first_line(error)}); remove it to make it "
                "again"
            ) from None


def split_id(name: str) -> tuple[str, int]:
    """(reference id, trial) of an identifier."""
    found = TRIAL.match(name)
    return (found["target"], int(found["trial"])) if found else (name, 0)


def _checked(cell: Cell) -> Cell:
    """A cell every metric can work with.

    Raises
    ------
    RejectError
        When it cannot be one.
    """
    lattice, frac, numbers = (np.asarray(part) for part in cell)
    if lattice.shape != (3, 3) or not np.isfinite(lattice).all():
        raise RejectError("the cell is not finite")
    if abs(np.linalg.det(lattice)) < 1e-3:
        raise RejectError("the cell has no volume")
    if not len(numbers) or frac.shape != (len(numbers), 3) or not np.isfinite(frac).all():
        raise RejectError("the positions are not finite, or there are none")
    if numbers.min() < 1 or numbers.max() >= len(SYMBOLS):
        raise RejectError("unknown element")
    if len(numbers) > MAX_ATOMS:
        raise RejectError(f"more than {MAX_ATOMS} atoms in the cell")
    return lattice.astype(float), frac.astype(float), numbers.astype(np.int64)
