"""Candidates as a store keeps them, and what a store says at a glance."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, get_args, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin_xtal.crystal import ase
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.entry import Value
from langevin_xtal.crystal.properties import PROPERTIES
from langevin_xtal.dataset.readers import first_line
from langevin_xtal.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

T = TypeVar("T")

STATES = (
    "sampled",
    "rejected",
    "filtered",
    "duplicate",
    "unique",
    "known",
    "relaxed",
    "ranked",
    "phonons",
)
"""What a candidate can be, in the order of the stages."""

EqualFact = Literal["duplicate_of", "same_as", "same_released"]
EQUALS: tuple[EqualFact, ...] = get_args(EqualFact)
"""Facts that name the candidate another equals: as sampled, relaxed with symmetry, released."""

MOST_ATOMS = 10_000
SHORTEST, LONGEST = 0.05, 1e4
"""Least distance between faces of a cell, and longest component of its rows [Å]."""
MOST_INDEX = 2**53
FloatFact = Literal[
    "energy", "energy_sampled", "energy_kept", "energy_released", "e_above_hull", "e_above_all",
    "phonon_minimum", "min_distance", "dft_energy", "dft_gap", "dft_magnetisation",
    "dft_e_above_hull", "energy_ended", "energy_least", "second_energy", "second_above_hull",
    "disagreement", "target_probability",
]  # fmt: skip
IntFact = Literal[
    EqualFact, "attempt", "steps", "steps_released", "found_group", "found_group_0.1",
    "found_kept", "found_released",
]  # fmt: skip
BoolFact = Literal[
    "filtered", "ranked", "converged", "converged_kept", "ended_early", "symmetry_broke",
    "imaginary", "potentials_disagree",
]  # fmt: skip
TextFact = Literal[
    "reason", "known", "potential", "note", "warning", "hull_reason", "hull_phases", "dft_code",
    "dft_note", "dft_set", "second_potential", "second_reason", "prediction_reason", "phonons",
]  # fmt: skip
FACTS: dict[str, type[float] | type[int] | type[bool] | type[str]] = {
    **dict.fromkeys(get_args(FloatFact), float),
    **{f"predicted_{name}{end}": float for end in ("", "_error") for name in PROPERTIES},
    **dict.fromkeys(get_args(IntFact), int),
    **dict.fromkeys(get_args(BoolFact), bool),
    **dict.fromkeys(get_args(TextFact), str),
}
"""Columns: facts that the stages and reports reckon with, and what they are."""
_WHEN_RELAXED = ("energy_kept", "energy_sampled", "steps", "converged_kept")


@dataclass(frozen=True, eq=False)
class Row:
    """One candidate of a campaign and what became of it."""

    index: int
    """Of the campaign: says which request, and which random stream."""
    request: str
    group: int
    """The group asked for."""
    sampled: Cell | None
    """Conventional cell as sampled; None when every attempt was rejected."""
    facts: Mapping[str, Value] = field(default_factory=dict)
    """What the stages found, by name."""
    kept: Cell | None = None
    """Relaxed with its symmetry kept."""
    released: Cell | None = None
    """Relaxed on without constraints."""
    provenance: Mapping[str, Value] = field(default_factory=dict)
    dft: Cell | None = None
    """Where a calculation by DFT ended; see :mod:`langevin_xtal.search.collect`."""

    @property
    def cell(self) -> Cell | None:
        """The best geometry: released where that broke the symmetry, else relaxed, or sampled."""
        if self.released is not None and self.facts.get("symmetry_broke"):
            return self.released
        return self.sampled if self.kept is None else self.kept

    @overload
    def fact(self, name: FloatFact) -> float | None: ...
    @overload
    def fact(self, name: IntFact) -> int | None: ...
    @overload
    def fact(self, name: BoolFact) -> bool | None: ...
    @overload
    def fact(self, name: TextFact) -> str | None: ...

    def fact(self, name: str) -> Value | None:
        """A fact of :data:`FACTS`, None where no stage has found it."""
        return self.facts.get(name)

    @property
    def uid(self) -> str:
        """Such as ``"000017"``."""
        return f"{self.index:06d}"

    @property
    def state(self) -> str:
        """One of :data:`STATES`."""
        facts = self.facts
        if self.fact("reason"):
            return "rejected"
        if any(facts.get(fact, -1) != -1 for fact in EQUALS):
            return "duplicate"
        for fact, state in (("phonons", "phonons"), ("ranked", "ranked"), ("energy", "relaxed")):
            if fact in facts:
                return state
        if facts.get("known"):
            return "known"
        if "duplicate_of" in facts:
            return "unique"
        return "filtered" if facts.get("filtered") else "sampled"

    def changed(self, change: Change) -> Row:
        """The row after a change."""
        facts = {**self.facts, **change.facts}
        return replace(
            self,
            facts={name: value for name, value in facts.items() if value is not None},
            kept=self.kept if change.kept is None else change.kept,
            released=self.released if change.released is None else change.released,
            dft=self.dft if change.dft is None else change.dft,
        )


@dataclass(frozen=True, eq=False)
class Change:
    """What a stage adds to a row; facts that are None are taken away."""

    facts: Mapping[str, Value | None] = field(default_factory=dict)
    kept: Cell | None = None
    released: Cell | None = None
    dft: Cell | None = None


class Stage(NamedTuple):
    """What a stage of the search did."""

    title: str
    done: int  #: candidates it has looked at
    left: int  #: candidates it let through
    remark: str  #: what became of the others, or was found
    seconds: float  #: spent by all processes


@dataclass(frozen=True)
class CampaignSummary:
    """A store at a glance."""

    settings: Mapping[str, Any]
    states: Mapping[str, int]  #: candidates in each of :data:`STATES`
    reasons: Mapping[str, int]  #: rejections by reason, numbers left out
    seconds: Mapping[str, float]  #: spent in each stage, over all processes
    stages: tuple[Stage, ...] = ()  #: those begun, in order


# -- rows


def to_json(row: Row) -> dict[str, object]:
    """The whole row as plain values; numbers that are not finite are left out of its facts."""
    return {
        "index": row.index,
        "request": row.request,
        "group": row.group,
        "sampled": _cell_to_json(row.sampled),
        "kept": _cell_to_json(row.kept),
        "released": _cell_to_json(row.released),
        **({} if row.dft is None else {"dft": _cell_to_json(row.dft)}),
        "facts": {name: _plain(value) for name, value in row.facts.items() if _sound(value)},
        "provenance": {name: _plain(value) for name, value in row.provenance.items()},
    }


def _plain(value: Value) -> Value:
    return value.item() if isinstance(value, np.generic) else value


def _sound(value: object) -> bool:
    return not (isinstance(value, (float, np.floating)) and not math.isfinite(value))


def _cell_to_json(cell: Cell | None) -> list[object] | None:
    return None if cell is None else [part.tolist() for part in cell]


def _cell_from_json(value: Iterable[ArrayLike] | None) -> Cell | None:
    if value is None:
        return None
    lattice, frac, numbers = (np.array(part) for part in value)
    if lattice.shape != (3, 3) or frac.shape != (len(numbers), 3) or numbers.ndim != 1:
        raise ValueError("a cell of another shape")
    if not 1 <= len(numbers) <= MOST_ATOMS or numbers.dtype.kind != "i":
        raise ValueError(f"{len(numbers)} atoms, or atomic numbers that are none")
    if lattice.dtype.kind not in "if" or frac.dtype.kind not in "if":
        raise ValueError("a cell that is not made of numbers")
    if not (np.isfinite(lattice).all() and np.isfinite(frac).all() and np.abs(frac).max() < 1e3):
        raise ValueError("a cell or positions that are not finite")
    if numbers.min() < 1 or numbers.max() >= len(SYMBOLS):
        raise ValueError("an atomic number of no element")
    height, longest = heights(lattice).min(), np.abs(lattice).max()
    if not (height >= SHORTEST and longest <= LONGEST):
        raise ValueError("a cell that no crystal has")
    return lattice.astype(float), frac.astype(float), numbers.astype(np.int64)


def heights(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) distances between opposite faces of a cell [Å], 0 where it has no volume."""
    faces = np.cross(lattice[[1, 2, 0]], lattice[[2, 0, 1]])
    area = np.linalg.norm(faces, axis=1)
    volume = abs(float(np.linalg.det(lattice)))
    return np.where(area > 0, volume / np.where(area > 0, area, 1.0), 0.0)


def from_data(data: bytes | Mapping[str, str | bytes], number: int | None = None) -> Row:
    """A row from ASE's data column, of which nothing but text is decoded.

    Parameters
    ----------
    number
        Of the row, for the message.

    Raises
    ------
    DataError
        When it is damaged.
    """
    try:
        if isinstance(data, bytes):
            data = _decoded(data)
        return _from_json(json.loads(data["record"]))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        which = "" if number is None else f": row {number}"
        raise DataError(f"a row of the store is damaged{which} ({first_line(error)})") from None


def _decoded(data: bytes) -> dict[str, str | bytes]:
    """What ASE packs: the place of the JSON text, and the text."""
    found: dict[str, str | bytes] = json.loads(data[int.from_bytes(data[:8], "little") :])
    return found


def _from_json(record: Mapping[str, Any]) -> Row:
    """
    Raises
    ------
    ValueError, TypeError, LookupError
        For anything that no campaign has written.
    """
    row = Row(
        index=_whole(record["index"], "index", 0, MOST_INDEX),
        request=_of(str, record["request"], "request"),
        group=_whole(record["group"], "group", 1, 230),
        sampled=_cell_from_json(record["sampled"]),
        facts=_facts(record["facts"]),
        kept=_cell_from_json(record["kept"]),
        released=_cell_from_json(record["released"]),
        dft=_cell_from_json(record.get("dft")),
        provenance={
            _of(str, name, "name"): _value(value, name)
            for name, value in _of(dict, record["provenance"], "provenance").items()
            if value is not None
        },
    )
    facts = row.facts
    if row.sampled is None and ("filtered" in facts or "duplicate_of" in facts or row.kept):
        raise ValueError("it was filtered or relaxed and has no geometry")
    if "same_as" in facts and not facts.get("reason"):
        missing = [name for name in _WHEN_RELAXED if name not in facts]
        if missing or row.kept is None:
            raise ValueError(f"it was relaxed and lacks {(missing or ['its geometry'])[0]}")
    for geometry in (row.kept, row.released):
        if geometry and row.sampled and sorted(geometry[2]) != sorted(row.sampled[2]):
            raise ValueError("its geometries have different atoms")
    return row


def _facts(facts: object) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in _of(dict, facts, "facts").items():
        kind = FACTS.get(name)
        if kind is int:
            found[name] = _whole(value, name, -1, MOST_INDEX)
        elif kind is float:
            found[name] = _value(_of((int, float), value, name), name)
        elif kind is not None:
            found[name] = _value(_of(kind, value, name), name)
        else:
            found[name] = _value(value, name)
        if name.startswith("found_") and kind is int and not 0 <= value <= 230:
            raise ValueError(f"{name} is {value}")
    return found


def _whole(value: object, name: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is {str(value)[:40]!r}")
    return value


def _of(kind: type[T] | tuple[type[T], ...], value: object, name: str) -> T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} is {str(value)[:40]!r}")
    return value


def _value(value: object, name: str) -> Value:
    """Text, a truth value or a finite number."""
    if not isinstance(value, (str, int, float)) or not _sound(value):
        raise ValueError(f"{name} is {str(value)[:40]!r}")
    return value


def summarise(
    settings: Mapping[str, Any], rows: Sequence[Row], seconds: Mapping[str, float]
) -> CampaignSummary:
    """Counts of candidates by state, reason and stage."""
    states = dict.fromkeys(STATES, 0)
    reasons: dict[str, int] = {}
    for row in rows:
        states[row.state] += 1
        reason = row.fact("reason")
        if reason:
            kind = re.sub(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", "…", reason)
            reasons[kind] = reasons.get(kind, 0) + 1
    return CampaignSummary(settings, states, reasons, seconds, tuple(_stages(rows, seconds)))


def _spent(seconds: Mapping[str, float], *names: str) -> float:
    return sum(time for stage, time in seconds.items() if stage.split(",")[0] in names)


def _having(fact: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if fact in row.facts]


def _stages(rows: Sequence[Row], seconds: Mapping[str, float]) -> Iterator[Stage]:
    if not rows:
        return
    made = [row for row in rows if row.sampled is not None]
    lost = len(rows) - len(made)
    yield Stage("sampled", len(rows), len(made), f"{lost} given up", _spent(seconds, "sample"))
    failed = [row for row in made if "duplicate_of" in row.facts and row.fact("reason")]
    passed = _having("filtered", made)
    refused = len([row for row in made if row.fact("reason")]) - len(failed)
    if passed or refused:
        remark = f"{refused} rejected"
        yield Stage(
            "filtered", len(passed) + refused, len(passed), remark, _spent(seconds, "filter")
        )
    compared = _having("duplicate_of", passed)
    unique = [row for row in compared if row.facts["duplicate_of"] == -1]
    if compared:
        remark = f"{len(compared) - len(unique)} duplicates"
        yield Stage("unique", len(compared), len(unique), remark, _spent(seconds, "duplicates"))
    looked_up = _having("known", unique)
    if looked_up:
        remark = f"{sum(bool(row.facts['known']) for row in looked_up)} known"
        time = _spent(seconds, "known", "known relaxed")
        yield Stage("looked up", len(looked_up), len(looked_up), remark, time)
    wanted = _having("target_probability", unique)
    if wanted:
        likely = sum(float(row.facts["target_probability"]) >= 0.5 for row in wanted)
        remark = f"{likely} in the window of the target as likely as not"
        time = _spent(seconds, "properties", "properties relaxed")
        yield Stage("predicted", len(wanted), len(wanted), remark, time)
    yield from _relaxation_stages(unique, failed, seconds)


def _relaxation_stages(
    unique: Sequence[Row], failed: Sequence[Row], seconds: Mapping[str, float]
) -> Iterator[Stage]:
    relaxed = [row for row in _having("energy", unique) if not row.fact("reason")]
    if "screen" in seconds:
        known = _having("energy_sampled", unique)
        tried = len(known) + len(failed)
        remark = f"{len(relaxed)} relaxed, as the lowest above hull"
        yield Stage("energies", tried, len(relaxed), remark, _spent(seconds, "screen"))
    if relaxed or failed:
        remark = f"{len(failed)} failed"
        ended = sum(bool(row.fact("ended_early")) for row in relaxed)
        if ended:
            remark += f"; {ended} ended early, far above the hull"
        time = _spent(seconds, "relax", "finish")
        yield Stage("relaxed", len(relaxed) + len(failed), len(relaxed), remark, time)
    merged = _having("same_as", relaxed)
    apart = [row for row in merged if row.facts["same_as"] == -1]
    if merged:
        remark = f"{len(merged) - len(apart)} relaxed into another"
        yield Stage("distinct", len(merged), len(apart), remark, _spent(seconds, "merge"))
    released = _having("symmetry_broke", apart)
    if released:
        broke = sum(bool(row.facts["symmetry_broke"]) for row in released)
        apart = [row for row in apart if row.facts.get("same_released", -1) == -1]
        remark = f"near the hull; in {broke} symmetry broke"
        time = _spent(seconds, "release", "merge released")
        yield Stage("released", len(released), len(apart), remark, time)
    ranked = _having("ranked", apart)
    if ranked:
        stable = sum(float(row.facts.get("e_above_hull", math.inf)) <= 0.1 for row in ranked)
        remark = f"{stable} at most 0.1 eV/atom above the hull of known phases"
        time = _spent(seconds, "rank", "rank together")
        yield Stage("ranked", len(ranked), len(ranked), remark, time)
    checked = _having("phonons", apart)
    if checked:
        remark = f"{sum(bool(row.facts.get('imaginary')) for row in checked)} with imaginary modes"
        yield Stage("phonons", len(checked), len(checked), remark, _spent(seconds, "phonons"))


def to_atoms(row: Row) -> Atoms:
    """ase.Atoms of the best geometry with its energy; no atoms where there is none."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    if row.cell is None:
        return Atoms()
    atoms = ase.to_atoms(row.cell)
    energy = row.fact("energy")
    if isinstance(energy, float):
        atoms.calc = SinglePointCalculator(atoms, energy=energy * len(atoms))
    return atoms


def setting_of(provenance: Mapping[str, Value]) -> tuple[int | None, float]:
    """Rank, from 0, and probability of a candidate's setting; None and NaN where the model did not
    choose it."""
    rank = provenance.get("setting_rank")
    parts = [provenance.get(f"{name}_probability") for name in ("group", "assignment")]
    if not isinstance(rank, int) or not all(isinstance(part, float) for part in parts):
        return None, math.nan
    return rank, math.prod(float(part) for part in parts if part is not None)


def key_value_pairs(row: Row) -> dict[str, Value]:
    """What can be searched for with ASE."""
    facts = row.facts
    pairs: dict[str, Value] = {
        "candidate": row.index,
        "state": row.state,
        "request": row.request,
        "group": row.group,
    }
    rank, probability = setting_of(row.provenance)
    if rank is not None:
        pairs |= {"setting_rank": rank, "setting_probability": probability}
    names = {
        "reason": "reason",
        "found_group": "found_group",
        "energy": "energy_per_atom",
        "e_above_hull": "e_above_hull",
        "e_above_all": "e_above_all",
        "dft_energy": "dft_energy",
        "dft_gap": "dft_gap",
        "dft_magnetisation": "dft_magnetisation",
        "known": "reference",
        "potential": "potential",
        **{f"predicted_{name}": f"predicted_{name}" for name in PROPERTIES},
        "target_probability": "target_probability",
    }
    for fact, key in names.items():
        if facts.get(fact) not in (None, ""):
            pairs[key] = _plain(facts[fact])
    for fact in EQUALS:
        if facts.get(fact, -1) != -1:
            pairs["duplicate_of"] = facts[fact]
    # ASE refuses text that looks like a number
    return {k: f"id {v}" if isinstance(v, str) and _is_number(v) else v for k, v in pairs.items()}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("True", "False")
    return True
