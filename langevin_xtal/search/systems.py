"""Searches of many chemical systems, as a campaign file lists them: run, watched, reported.

Each system is a :class:`~langevin_xtal.search.campaign.Campaign` with a store of its own: an
SQLite file in a folder, or a schema of one PostgreSQL database. A system is the piece of work that
is handed out. Any number of processes may run the same file: a system that is finished is passed
over, and one that others work at is shared with them, so that nothing is computed twice.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from langevin_xtal.config.sampling import PRESETS
from langevin_xtal.config.screening import DEFAULT_PROPERTIES
from langevin_xtal.config.search import SearchConfig
from langevin_xtal.config.tables import from_table, list_of, read_toml
from langevin_xtal.crystal.elements import SYMBOLS, atomic_number
from langevin_xtal.crystal.entry import Entry
from langevin_xtal.crystal.properties import windows_of
from langevin_xtal.errors import DataError, InputError, LangevinXtalError
from langevin_xtal.extras import require
from langevin_xtal.sampling.sample import SampleOptions
from langevin_xtal.search.campaign import Campaign
from langevin_xtal.search.database import database_errors
from langevin_xtal.search.entries import read_entries
from langevin_xtal.search.space import SearchSpace
from langevin_xtal.search.store import (
    NoStoreError,
    is_address,
    is_store,
    read_finished,
    read_progress,
)
from langevin_xtal.search.work import Progress
from langevin_xtal.text import address_of

MOST_SYSTEMS = 100_000
MOST_ELEMENTS = 8
"""In one system."""


@dataclass(frozen=True, kw_only=True)
class SystemOptions:
    """How one system is searched; names and defaults are those of the command ``search``."""

    model: str = "small"
    preset: str = "default"
    sg: str = ""
    samples: int = 400  #: as ``--max-samples``
    seed: int = 0
    explore: float | None = None
    subsystems: float | None = None
    relax: bool = False
    relax_best: int | None = None
    relax_within: float = SearchConfig.relax_within  #: [eV/atom]
    release_within: float = SearchConfig.release_within  #: [eV/atom]
    potential: str = SearchConfig.potential
    target: str = ""  #: one window, such as ``band_gap=1.1:1.7``
    properties: str = DEFAULT_PROPERTIES
    phonons: int = 0
    reference: str = ""
    max_hours: float | None = None  #: for one process at this system, each time it comes to it

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InputError(
                f"preset {self.preset!r} is not known; give one of {', '.join(PRESETS)}"
            )
        if self.samples < 1:
            raise InputError(f"samples is {self.samples}; the least is 1")
        windows_of(self.target or ())


class SystemState(NamedTuple):
    """What there is of a system."""

    name: str
    planned: int  #: candidates
    states: Mapping[str, int]  #: candidates by state; empty when not begun
    seconds: float  #: computed by all processes
    finished: bool
    problem: str = ""  #: why its store cannot be read

    @property
    def sampled(self) -> int:
        """Candidates there are."""
        return sum(self.states.values())


@dataclass(frozen=True)
class Systems:
    """The systems of a campaign file, with their options."""

    store: str  #: absolute path of a folder, or the address of a PostgreSQL database
    options: Mapping[str, SystemOptions]  #: by name, such as ``"Cu-Si-K"``, in the file's order
    max_hours: float | None = None  #: after so long a process begins no other system

    @property
    def names(self) -> list[str]:
        """Of all systems."""
        return list(self.options)

    def store_of(self, name: str) -> str:
        """Path or address of a system's store."""
        if not is_address(self.store):
            return str(Path(self.store) / f"{name}.db")
        joint = "&" if "?" in self.store else "?"
        return f"{self.store}{joint}options={quote('-csearch_path=' + schema_of(name), safe='')}"

    def prepare(self, name: str) -> None:
        """Make the place of a system's store.

        Raises
        ------
        DataError
            When it cannot be made.
        """
        if not is_address(self.store):
            try:
                Path(self.store).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(
                    f"the folder {self.store} cannot be made ({error.strerror})"
                ) from None
            return
        psycopg2 = require("psycopg2", "postgres", "a store in PostgreSQL")
        with (
            database_errors(self.store),
            closing(psycopg2.connect(address_of(self.store))) as connection,
        ):
            connection.autocommit = True
            # another process may make it at the same moment
            with suppress(psycopg2.errors.UniqueViolation):
                connection.cursor().execute(f'CREATE SCHEMA IF NOT EXISTS "{schema_of(name)}"')

    def campaign(self, name: str, workers: int | None = None) -> Campaign:
        """The search of a system.

        Raises
        ------
        InputError
            For options out of range.
        """
        chosen = self.options[name]
        symbols = name.split("-")
        return Campaign(
            self.store_of(name),
            SearchSpace(symbols, chosen.sg or None, model=chosen.model),
            chosen.model,
            explore=chosen.explore,
            subsystems=chosen.subsystems,
            seed=chosen.seed,
            max_samples=chosen.samples,
            max_hours=chosen.max_hours,
            relax=chosen.relax,
            relax_best=chosen.relax_best,
            relax_within=chosen.relax_within,
            release_within=chosen.release_within,
            potential=chosen.potential,
            target=chosen.target or None,
            properties=None if chosen.properties == "none" else chosen.properties,
            sampling=SampleOptions.preset(chosen.preset),
            reference=chosen.reference or None,
            phonons=chosen.phonons,
            workers=workers,
        )

    def state(self, name: str) -> SystemState:
        """What there is of a system; nothing is written."""
        chosen, store = self.options[name], self.store_of(name)
        empty = SystemState(name, chosen.samples, {}, 0.0, finished=False)
        try:
            if not is_store(store):
                return empty
            states, seconds = read_progress(store)
            finished = read_finished(store, chosen.relax) >= chosen.samples
        except NoStoreError:  # a database without this system
            return empty
        except LangevinXtalError as error:
            return empty._replace(problem=str(error))
        return SystemState(name, chosen.samples, states, seconds, finished)

    def states(self) -> list[SystemState]:
        """Of all systems."""
        return [self.state(name) for name in self.options]

    def best(self, name: str, count: int) -> list[Entry]:
        """The best candidates of a system that was begun, best first."""
        return read_entries(self.store_of(name), top=count)

    def deadline(self) -> float:
        """When no other system is begun any more, for a campaign that begins now (Unix time)."""
        return math.inf if self.max_hours is None else time.time() + 3600 * self.max_hours

    def order(self, part: int = 0, parts: int = 1) -> list[str]:
        """Names from the share of one of several processes on, then around, so that each begins
        elsewhere and all reach every system."""
        first = part * len(self.options) // max(parts, 1)
        return [*self.names[first:], *self.names[:first]]


class Outcome(NamedTuple):
    """What became of one system in one process."""

    name: str
    problem: str  #: why it could not be searched; empty when it was
    seconds: float
    passed_over: bool = False  #: it was finished before, or the time was over


def search_system(
    systems: Systems,
    name: str,
    workers: int | None = None,
    progress: Progress | None = None,
    *,
    until: float = math.inf,
    only_sample: bool = False,
) -> Outcome:
    """Search a system as far as it goes; what cannot be done is said in the outcome.

    After ``until`` (Unix time) it is not begun. A lost server or a full disk ends one system and
    not the campaign: the same command goes on. With ``only_sample``, all but sampling is left to
    another call.
    """
    begin = time.monotonic()
    if time.time() > until or systems.state(name).finished:
        return Outcome(name, "", 0.0, passed_over=True)
    try:
        systems.prepare(name)
        systems.campaign(name, workers).run(progress, only_sample=only_sample)
    except LangevinXtalError as error:
        return Outcome(name, str(error), time.monotonic() - begin)
    return Outcome(name, "", time.monotonic() - begin)


def load_systems(path: str | os.PathLike[str]) -> Systems:
    """The systems of a campaign file (TOML).

    ``store`` is a folder (as seen from the file) or an address; ``systems`` lists names such as
    ``"Cu-Si-K"``, and ``elements`` with ``sizes`` makes all systems of so many of these elements.
    Other keys at the top are options of all systems (:class:`SystemOptions`), and tables
    ``[[system]]`` with ``elements`` change them for one.

    Raises
    ------
    InputError
        Naming the file, what is wrong and what would be right.
    """
    where = f"campaign file {path}"
    table = read_toml(Path(path), where)
    try:
        return _systems(table, Path(path).absolute().parent)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class _File:
    """What a campaign file has beside the options of its systems."""

    store: str
    systems: Sequence[str] = ()
    elements: Sequence[str] = ()
    sizes: list[int] = dataclasses.field(default_factory=lambda: [3])
    max_hours_in_all: float | None = None
    system: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def _systems(table: Mapping[str, object], folder: Path) -> Systems:
    own = {field.name for field in dataclasses.fields(_File)}
    options = {field.name for field in dataclasses.fields(SystemOptions)}
    strange = sorted(set(table) - own - options)
    if strange:
        raise InputError(f"unknown keys {strange}; known: {sorted(own | options)}")
    file = from_table(_File, {k: v for k, v in table.items() if k in own}, "top")
    shared = _from_here(
        from_table(SystemOptions, {k: v for k, v in table.items() if k in options}, "top"), folder
    )
    chosen = {system_name(text.replace("-", ",").split(",")): shared for text in file.systems}
    for name in _all_of(file):
        chosen.setdefault(name, shared)
    for change in list_of(file.system):
        if not isinstance(change, dict) or not isinstance(change.get("elements"), str):
            raise InputError('system: give elements = "Cu-Si-K" and what differs for it')
        rest = {k: v for k, v in change.items() if k != "elements"}
        name = system_name(change["elements"].replace("-", ",").split(","))
        from_table(SystemOptions, rest, f"system {name}")  # says what is wrong there
        chosen[name] = _from_here(replace(shared, **rest), folder)
    if not chosen:
        raise InputError(
            'no system is named: give systems = ["Cu-Si-K"], or elements = ["Cu", "Si", "K"] and '
            "sizes = [3]"
        )
    if not file.store:
        raise InputError("store is empty; give a folder, or postgresql://…")
    store = file.store if is_address(file.store) else str(folder / file.store)
    return Systems(store, chosen, file.max_hours_in_all)


def _from_here(options: SystemOptions, folder: Path) -> SystemOptions:
    """Paths in a campaign file are as seen from it: workers may run in another folder."""
    model, properties = (
        str(folder / name) if (folder / name).is_file() else name
        for name in (options.model, options.properties)
    )
    reference = str(folder / options.reference) if options.reference else ""
    return replace(options, model=model, properties=properties, reference=reference)


def _all_of(file: _File) -> Iterator[str]:
    symbols = sorted({_symbol(s) for s in file.elements}, key=atomic_number)
    if not symbols:
        return
    if not all(isinstance(k, int) and 1 <= k <= MOST_ELEMENTS for k in file.sizes):
        raise InputError(f"sizes = {file.sizes} should be whole numbers of 1 to {MOST_ELEMENTS}")
    count = sum(math.comb(len(symbols), size) for size in file.sizes)
    if not 0 < count <= MOST_SYSTEMS:
        raise InputError(
            f"{len(symbols)} elements in systems of {file.sizes} are {count} systems; from 1 to "
            f"{MOST_SYSTEMS} are possible"
        )
    for size in file.sizes:
        yield from map(system_name, combinations(symbols, size))


def _symbol(text: str) -> str:
    return SYMBOLS[atomic_number(text.strip())]


def system_name(symbols: Sequence[str]) -> str:
    """Such as ``"Cu-Si-K"``: symbols in the order given; each once.

    Raises
    ------
    InputError
        For what is no element, none, or one twice.
    """
    found = [_symbol(text) for text in symbols if text.strip()]
    if not 1 <= len(found) <= MOST_ELEMENTS:
        raise InputError(f"a system has 1 to {MOST_ELEMENTS} elements, not {len(found)}")
    if len(set(found)) < len(found):
        raise InputError(f"system {'-'.join(found)} names an element twice")
    return "-".join(found)


def schema_of(name: str) -> str:
    """The schema of a system's store in PostgreSQL, such as ``cu_si_k``."""
    return re.sub("[^a-z]", "_", name.lower())
