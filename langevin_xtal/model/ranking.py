"""A learned ranking of the assignments of Wyckoff positions that a request has.

The assignments of a group and composition are enumerated
(:mod:`langevin_xtal.symmetry.assignments`); a softmax over their scores makes them a distribution:

    p(a | group, elements, counts) = exp s(a) / Σ_b exp s(b).

A score has two parts. A network reads which element is placed where: sites add up to elements,
elements to the assignment, so that the order of neither matters. A memory of training crystals
answers how often the same placement was seen, up to a permutation of the elements, each crystal
counting the more the more its elements resemble the ones asked for, site by site; what resembles
is learned with the rest. It answers twice: for the very positions, and for their multiplicities
and degrees of freedom alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.model.assignment import (
    element_features,
    element_rank,
    position_features,
)
from langevin_xtal.symmetry.assignments import (
    LIMIT,
    Assignment,
    assignments,
    canonical_all,
    renamings,
)
from langevin_xtal.symmetry.wyckoff import table_start, wyckoff_positions

ELEMENTS = 119
ORDERS = 720  # ways to match elements with a remembered crystal that are looked at
NEVER = -12.0  # log-likeness of an assignment that no remembered crystal has
COUNT_FEATURES = 4
MEMORY_FEATURES = 12

RANGES: dict[str, tuple[int, int]] = {"width": (1, 1024), "similarity": (1, 1024)}
"""What a ranker may be: its file comes from strangers, and memory is taken on its word."""


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Size of a ranker."""

    width: int = 64
    """Features of a placement."""
    similarity: int = 32
    """Dimensions of the space in which elements resemble each other."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value}; it must lie between {low} and {high}")


MEMORY_TYPES = {
    "groups": torch.uint8,
    "roles": torch.int32,
    "positions": torch.uint8,
    "templates": torch.int32,
    "elements": torch.uint8,
}
"""How the arrays of a memory are written."""

Template = tuple[tuple[int, ...], ...]
"""An assignment without its elements: the first of all renamings, elements in sorted order."""


def template_of(number: int, assignment: Assignment) -> tuple[Template, tuple[int, ...]]:
    """The template of an assignment, and the place of its elements (the template's roles)."""
    best: tuple[Template, tuple[int, ...]] | None = None
    for names in renamings(number).tolist():
        image = [tuple(sorted([names[w] for w in element])) for element in assignment]
        order = sorted(range(len(image)), key=image.__getitem__)
        found = tuple(image[k] for k in order), tuple(order)
        if best is None or found[0] < best[0]:
            best = found
    assert best is not None
    return best


class Recollection(NamedTuple):
    """Remembered crystals by what their templates have in common."""

    by_request: dict[tuple[int, tuple[int, ...]], list[int]]  #: group, sorted counts: templates
    templates: list[Template]
    atoms: list[tuple[int, ...]]  #: of every template's roles
    start: NDArray[np.int64]  #: (T + 1,) offsets of each template's crystals
    crystal: NDArray[np.int64]  #: (C,) row in the memory
    elements: NDArray[np.int64]  #: (C, K) atomic number in each role, 0 for padding


def _by_request(
    groups: Sequence[int], atoms_of: Sequence[tuple[int, ...]]
) -> dict[tuple[int, tuple[int, ...]], list[int]]:
    found: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for index, (number, atoms) in enumerate(zip(groups, atoms_of, strict=True)):
        found.setdefault((number, tuple(sorted(atoms))), []).append(index)
    return found


def loosened(number: int, assignment: Assignment) -> Template:
    """Of every site four times its multiplicity, plus its degrees of freedom; sorted."""
    names = [4 * w.multiplicity + w.freedom for w in wyckoff_positions(number)]
    return tuple(tuple(sorted([names[w] for w in element])) for element in assignment)


@dataclass(frozen=True)
class Memory:
    """Training crystals by template."""

    groups: NDArray[np.int64]  #: (T,) group of each template, in ascending order
    roles: NDArray[np.int64]  #: (R, 2) template and role of every position that follows
    positions: NDArray[np.int64]  #: (R,) indices within the group
    templates: NDArray[np.int64]  #: (C,) template of each crystal, in ascending order
    elements: NDArray[np.int64]  #: (C, K) atomic number in each role, 0 for padding

    def __post_init__(self) -> None:
        told, crystals = len(self.groups), len(self.templates)
        template, role = self.roles.reshape(-1, 2).T
        inside = (
            self.roles.shape == (len(self.positions), 2)
            and self.elements.ndim == 2
            and len(self.elements) == crystals
            and _within(self.groups, 1, 231)
            and _within(template, 0, told)
            and _within(self.templates, 0, told)
            and _within(self.elements, 0, ELEMENTS)
            and _within(role, 0, self.elements.shape[1])
        )
        new = np.diff(template, prepend=-1)
        step = np.where(new > 0, role, np.diff(role, prepend=0))
        counted = (
            bool(np.isin(new, (0, 1)).all() and np.isin(step[new == 0], (0, 1)).all())
            and not step[new > 0].any()
            and new.sum() == told
        )
        if not inside or not counted or (np.diff(self.templates) < 0).any():
            raise InputError("its memory of crystals is damaged")
        start = table_start()
        known = np.diff(start)[self.groups[template] - 1]
        if (self.positions < 0).any() or (self.positions >= known).any():
            raise InputError("its memory names Wyckoff positions that do not exist")

    @cached_property
    def exact(self) -> Recollection:
        """Crystals by template."""
        groups, told = self.groups.tolist(), self._told
        atoms = [_atoms(number, template) for number, template in zip(groups, told, strict=True)]
        return Recollection(
            _by_request(groups, atoms),
            told,
            atoms,
            np.searchsorted(self.templates, np.arange(len(told) + 1)),
            np.arange(len(self.templates)),
            self.elements,
        )

    @cached_property
    def loose(self) -> Recollection:
        """Crystals by the multiplicities and degrees of freedom of their templates' positions."""
        patterns: list[tuple[int, Template]] = []
        elements = self.elements.copy()
        for t, (number, told) in enumerate(zip(self.groups.tolist(), self._told, strict=True)):
            loose = loosened(number, told)
            order = sorted(range(len(loose)), key=loose.__getitem__)
            patterns.append((number, tuple(loose[k] for k in order)))
            mine = slice(*self.exact.start[t : t + 2])
            elements[mine, : len(order)] = self.elements[mine][:, order]
        known = sorted(set(patterns))
        index = {pattern: k for k, pattern in enumerate(known)}
        of = np.array([index[p] for p in patterns], dtype=np.int64)[self.templates]
        rows = np.argsort(of, kind="stable")
        start = np.searchsorted(of[rows], np.arange(len(known) + 1))
        atoms = [tuple(sum(k // 4 for k in role) for role in told) for _, told in known]
        return Recollection(
            _by_request([number for number, _ in known], atoms),
            [told for _, told in known],
            atoms,
            start,
            rows,
            elements[rows],
        )

    @cached_property
    def _told(self) -> list[Template]:
        told: list[list[list[int]]] = [[] for _ in self.groups]
        for (template, role), position in zip(
            self.roles.tolist(), self.positions.tolist(), strict=True
        ):
            roles = told[template]
            if role == len(roles):
                roles.append([])
            roles[role].append(position)
        return [tuple(map(tuple, roles)) for roles in told]


def remember(
    crystals: Sequence[tuple[int, Sequence[int], Assignment]],
) -> tuple[Memory, list[int]]:
    """A memory of crystals, each a group, atomic numbers and an assignment.

    Returns
    -------
    tuple
        The memory, and the row in it of every crystal.
    """
    keys = []
    for number, elements, assignment in crystals:
        template, order = template_of(number, assignment)
        keys.append(((number, template), tuple(int(elements[k]) for k in order)))
    told = sorted({key for key, _ in keys})
    index = {key: t for t, key in enumerate(told)}
    rows = sorted(range(len(keys)), key=lambda k: index[keys[k][0]])
    most = max((len(template) for _, template in told), default=1)
    place = [0] * len(keys)
    elements_of = np.zeros((len(keys), most), dtype=np.int64)
    for row, k in enumerate(rows):
        elements_of[row, : len(keys[k][1])] = keys[k][1]
        place[k] = row
    roles = [
        (t, r, w)
        for t, (_, template) in enumerate(told)
        for r, role in enumerate(template)
        for w in role
    ]
    flat = np.array(roles, dtype=np.int64).reshape(-1, 3)
    memory = Memory(
        groups=np.array([number for number, _ in told], dtype=np.int64),
        roles=flat[:, :2],
        positions=flat[:, 2],
        templates=np.array([index[keys[k][0]] for k in rows], dtype=np.int64),
        elements=elements_of,
    )
    return memory, place


class Matches(NamedTuple):
    """Ways in which remembered templates are what is asked for."""

    targets: int  #: how many there are: assignments, or patterns of them
    target: NDArray[np.int64]  #: (M,)
    template: NDArray[np.int64]  #: (M,)
    roles: NDArray[np.int64]  #: (M, K) atomic number in each of its roles, 0 for padding


class Encoded(NamedTuple):
    """One request and its assignments as arrays; element k is the k-th by Mendeleev number.

    A unit is an element with the positions it takes; assignments share units.
    """

    group: int
    elements: NDArray[np.int64]  #: (E,) atomic numbers
    counts: NDArray[np.int64]  #: (E,) atoms in the conventional cell
    placed: NDArray[np.int64]  #: (P, 2) element and position row of every placement that occurs
    unit_element: NDArray[np.int64]  #: (U,) element of every unit
    unit_of: NDArray[np.int64]  #: (S,) unit of every site
    site_of: NDArray[np.int64]  #: (S,) placement of every site
    units: NDArray[np.int64]  #: (N, E) units of every assignment
    exact: Matches  #: of the assignments
    pattern: NDArray[np.int64]  #: (N,) pattern of every assignment: what it is, loosened
    loose: Matches  #: of the patterns


def encode(
    memory: Memory,
    number: int,
    elements: Sequence[int],
    counts: Sequence[int],
    assignments: Sequence[Assignment],
) -> Encoded:
    """Arrays of a request whose elements are in the order of :func:`mendeleev_order`."""
    first = int(table_start()[number - 1])
    placements: dict[tuple[int, int], int] = {}
    units: dict[tuple[int, tuple[int, ...]], int] = {}
    unit_element, unit_of, site_of = [], [], []
    rows = np.empty((len(assignments), len(elements)), dtype=np.int64)
    for n, assignment in enumerate(assignments):
        for e, positions in enumerate(assignment):
            key = e, positions
            if key not in units:
                units[key] = len(units)
                unit_element.append(e)
                for w in positions:
                    unit_of.append(units[key])
                    site_of.append(placements.setdefault((e, w), len(placements)))
            rows[n, e] = units[key]
    exact = _remembered(memory.exact, number, counts)
    placed = np.array(list(placements), dtype=np.int64).reshape(-1, 2)
    names = canonical_all(number, [told for told, _, _ in exact])
    same = [(name, t, order) for name, (_, t, order) in zip(names, exact, strict=True)]
    patterns: dict[Template, int] = {}
    pattern = [patterns.setdefault(loosened(number, a), len(patterns)) for a in assignments]
    return Encoded(
        number,
        np.array(elements, dtype=np.int64),
        np.array(counts, dtype=np.int64),
        placed + np.array([0, first]),
        np.array(unit_element, dtype=np.int64),
        np.array(unit_of, dtype=np.int64),
        np.array(site_of, dtype=np.int64),
        rows,
        _matches({a: n for n, a in enumerate(assignments)}, same, elements, memory),
        np.array(pattern, dtype=np.int64),
        _matches(patterns, _remembered(memory.loose, number, counts), elements, memory),
    )


Remembered = tuple[Template, int, tuple[int, ...]]
"""What each element has, the template it comes from, the element in each role."""


def _remembered(known: Recollection, number: int, counts: Sequence[int]) -> list[Remembered]:
    """Every way to match the elements of a request with the templates it has."""
    told: list[Remembered] = []
    for index in known.by_request.get((number, tuple(sorted(counts))), []):
        template = known.templates[index]
        atoms = known.atoms[index]
        for order in islice(_orders(atoms, counts), ORDERS):
            mine: list[tuple[int, ...]] = [()] * len(template)
            for role, element in enumerate(order):
                mine[element] = template[role]
            told.append((tuple(mine), index, order))
    return told


def _matches(
    targets: Mapping[Template, int],
    remembered: Sequence[Remembered],
    elements: Sequence[int],
    memory: Memory,
) -> Matches:
    found = [(targets[told], t, order) for told, t, order in remembered if told in targets]
    roles = np.zeros((len(found), memory.elements.shape[1]), dtype=np.int64)
    for k, (_, _, order) in enumerate(found):
        roles[k, : len(order)] = [elements[e] for e in order]
    return Matches(
        len(targets),
        np.array([target for target, _, _ in found], dtype=np.int64),
        np.array([template for _, template, _ in found], dtype=np.int64),
        roles,
    )


def _orders(atoms: Sequence[int], counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Elements in every order in which their counts are the atoms of the roles."""
    if not atoms:
        yield ()
    for element, count in enumerate(counts):
        if atoms and count == atoms[0]:
            used = [*counts[:element], -1, *counts[element + 1 :]]
            for rest in _orders(atoms[1:], used):
                yield (element, *rest)


def _atoms(number: int, template: Template) -> tuple[int, ...]:
    positions = wyckoff_positions(number)
    return tuple(sum(positions[w].multiplicity for w in role) for role in template)


def _within(values: NDArray[np.int64], low: int, high: int) -> bool:
    return bool(((values >= low) & (values < high)).all())


def mendeleev_order(elements: Sequence[int]) -> list[int]:
    """Places of the elements by Mendeleev number."""
    return np.argsort(element_rank()[list(elements)], kind="stable").tolist()


class Asked(NamedTuple):
    """What the memory is asked."""

    request: Tensor  #: (N,) request of every target
    target: Tensor  #: (Q,) target of every match
    template: Tensor  #: (Q,)
    roles: Tensor  #: (Q, K)


class Batch(NamedTuple):
    """Several encoded requests end to end."""

    group: Tensor  #: (B,)
    element: Tensor  #: (E,) atomic numbers
    element_request: Tensor  #: (E,) request of every element
    atoms: Tensor  #: (E,) atoms of every element
    placed_element: Tensor  #: (P,) element of every placement
    placed_row: Tensor  #: (P,) position row of every placement
    unit_element: Tensor  #: (U,) element of every unit
    unit_of: Tensor  #: (S,) unit of every site
    site_of: Tensor  #: (S,) placement of every site
    unit: Tensor  #: (M,) unit of every member of an assignment
    member_of: Tensor  #: (M,) assignment of every member
    request: Tensor  #: (N,) request of every assignment
    pattern: Tensor  #: (N,) pattern of every assignment
    exact: Asked  #: of the memory, for every assignment
    loose: Asked  #: of the memory, for every pattern


def collate(parts: Sequence[Encoded]) -> Batch:
    """One batch of several requests."""
    sizes = np.array(
        [(len(p.elements), len(p.placed), len(p.unit_element), len(p.units)) for p in parts]
    )
    start = np.concatenate([np.zeros((1, 4), dtype=np.int64), np.cumsum(sizes, axis=0)])
    e, p, u, n = start[:-1].T

    def joined(arrays: list[NDArray[np.int64]]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays))

    def moved(name: str, offset: NDArray[np.int64]) -> Tensor:
        return joined([getattr(x, name) + o for x, o in zip(parts, offset, strict=True)])

    return Batch(
        group=torch.tensor([x.group for x in parts]),
        element=joined([x.elements for x in parts]),
        element_request=torch.from_numpy(np.repeat(np.arange(len(parts)), sizes[:, 0])),
        atoms=joined([x.counts for x in parts]),
        placed_element=joined([x.placed[:, 0] + o for x, o in zip(parts, e, strict=True)]),
        placed_row=joined([x.placed[:, 1] for x in parts]),
        unit_element=moved("unit_element", e),
        unit_of=moved("unit_of", u),
        site_of=moved("site_of", p),
        unit=joined([x.units.ravel() + o for x, o in zip(parts, u, strict=True)]),
        member_of=joined(
            [
                np.repeat(np.arange(o, o + len(x.units)), x.units.shape[1])
                for x, o in zip(parts, n, strict=True)
            ]
        ),
        request=torch.from_numpy(np.repeat(np.arange(len(parts)), sizes[:, 3])),
        pattern=moved("pattern", _starts([x.loose.targets for x in parts])),
        exact=_asked([x.exact for x in parts]),
        loose=_asked([x.loose for x in parts]),
    )


def _starts(sizes: Sequence[int]) -> NDArray[np.int64]:
    return np.cumsum([0, *sizes[:-1]])


def _asked(parts: Sequence[Matches]) -> Asked:
    sizes = [part.targets for part in parts]
    targets = [part.target + o for part, o in zip(parts, _starts(sizes), strict=True)]
    return Asked(
        torch.from_numpy(np.repeat(np.arange(len(parts)), sizes)),
        torch.from_numpy(np.concatenate(targets)),
        torch.from_numpy(np.concatenate([part.template for part in parts])),
        torch.from_numpy(np.concatenate([part.roles for part in parts])),
    )


class AssignmentRanker(nn.Module):
    """Scores of the assignments of a request."""

    def __init__(self, config: RankerConfig | None = None, memory: Memory | None = None) -> None:
        super().__init__()
        self.config = config or RankerConfig()
        self.memory = memory or remember([])[0]
        w, rows = self.config.width, len(position_features())
        features = element_features().shape[1]
        self.element = nn.Embedding(ELEMENTS, w)
        self.describe_element = nn.Linear(features, w)
        self.count = nn.Linear(COUNT_FEATURES, w)
        self.group = nn.Embedding(231, w)
        self.compose = _layers(w, w, w)
        self.position = nn.Embedding(rows, w)
        self.describe = nn.Linear(position_features().shape[1], w)
        self.place = _layers(3 * w, w, w)
        self.gather = _layers(2 * w, w, w)
        self.judge = _layers(3 * w + MEMORY_FEATURES, 2 * w, 1)
        self.weigh = nn.Linear(MEMORY_FEATURES, 1)
        self.resemble = nn.Embedding(ELEMENTS, self.config.similarity)
        self.resemble_described = nn.Linear(features, self.config.similarity, bias=False)
        for table, spread in ((self.element, 0.1), (self.position, 0.1), (self.group, 0.1)):
            nn.init.normal_(table.weight, std=spread)
        nn.init.normal_(self.resemble.weight, std=0.05)
        nn.init.normal_(self.resemble_described.weight, std=0.1)
        nn.init.zeros_(self.weigh.weight)

    def log_probabilities(
        self,
        number: int,
        elements: Sequence[int],
        counts: Sequence[int],
        assignments: Sequence[Assignment],
    ) -> NDArray[np.float64]:
        """(n,) log-probability of each of the assignments given, which count as all there are.

        Parameters
        ----------
        number
            Space-group number.
        elements
            Atomic numbers, each once, in any order.
        counts
            Atoms of each element in the conventional cell.
        assignments
            What :func:`langevin_xtal.symmetry.assignments.assignments` tells of these counts.
        """
        if not assignments:
            return np.zeros(0)
        order = mendeleev_order(elements)
        names = canonical_all(number, [tuple([a[k] for k in order]) for a in assignments])
        request = [elements[k] for k in order], [counts[k] for k in order]
        with torch.inference_mode():
            scores = self.scores(collate([encode(self.memory, number, *request, names)]))
            result: NDArray[np.float64] = scores.double().log_softmax(0).numpy()
        return result

    def candidates(
        self, number: int, counts: Sequence[int], *, limit: int = LIMIT
    ) -> tuple[list[Assignment], bool]:
        """Assignments worth looking at: those of remembered crystals, then all in order.

        Returns
        -------
        tuple
            The assignments, each once, and whether they are all there are.
        """
        found = assignments(number, counts, limit=limit)
        told = [a for a, _, _ in _remembered(self.memory.exact, number, counts)]
        return list(dict.fromkeys([*canonical_all(number, told), *found])), found.complete

    def to_tensors(self) -> dict[str, Tensor]:
        """Weights and memory, as :meth:`from_tensors` takes them."""
        tensors = dict(self.state_dict())
        for name, kind in MEMORY_TYPES.items():
            tensors[f"memory.{name}"] = torch.from_numpy(getattr(self.memory, name)).to(kind)
        return tensors

    @classmethod
    def from_tensors(cls, config: RankerConfig, tensors: Mapping[str, Tensor]) -> AssignmentRanker:
        """A ranker from its tensors, ready to rank.

        Raises
        ------
        CheckpointError
            When they do not fit the configuration, or the memory is damaged.
        """
        state = {k: v for k, v in tensors.items() if not k.startswith("memory.")}
        try:
            told = {name: tensors[f"memory.{name}"].long().numpy() for name in MEMORY_TYPES}
            ranker = cls(config, Memory(**told))
            ranker.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"the ranker does not fit its configuration ({reason})"
            ) from None
        return ranker.eval().requires_grad_(False)

    def scores(
        self, batch: Batch, *, dropout: float = 0.0, without: Tensor | None = None
    ) -> Tensor:
        """(N,) of every assignment of a batch.

        Parameters
        ----------
        dropout
            Share of the hidden features zeroed in training.
        without
            (B,) row in the memory that each request must not see: its own.
        """
        element = self.element(batch.element)
        element = element + self.describe_element(element_features()[batch.element])
        sizes = _count_features(batch)
        told = element + self.count(sizes)
        context = self.group(batch.group)
        context = context.index_add(0, batch.element_request, _drop(self.compose(told), dropout))
        about = self.position(batch.placed_row)
        about = about + self.describe(position_features()[batch.placed_row])
        here = batch.placed_element
        placed = torch.cat([told[here], about, context[batch.element_request[here]]], 1)
        placed = self.place(_drop(placed, dropout))
        unit = torch.zeros(len(batch.unit_element), placed.shape[1])
        unit = unit.index_add(0, batch.unit_of, placed[batch.site_of])
        unit = self.gather(_drop(torch.cat([unit, told[batch.unit_element]], 1), dropout))
        whole = torch.zeros(len(batch.request), unit.shape[1])
        whole = whole.index_add(0, batch.member_of, unit[batch.unit])
        exact, loose = self._tables
        requests = len(batch.group)
        patterns = self._recall(batch.loose, requests, loose, without)
        seen = self._recall(batch.exact, requests, exact, without)
        seen = torch.cat([seen, patterns[batch.pattern]], 1)
        around = context[batch.request]
        state = torch.cat([whole, around, whole * around, seen], 1)
        judged = self.judge(_drop(state, dropout)) + self.weigh(seen)
        return judged.squeeze(1)

    def _recall(
        self, asked: Asked, requests: int, known: _Tables, without: Tensor | None
    ) -> Tensor:
        """(N, MEMORY_FEATURES / 2) what the memory knows of every target."""
        targets = len(asked.request)
        first = known.start[asked.template]
        size = known.start[asked.template + 1] - first
        match = torch.repeat_interleave(torch.arange(len(size)), size)
        row = torch.arange(len(match)) - (size.cumsum(0) - size - first)[match]
        target = asked.target[match]
        if without is not None:
            other = known.crystal[row] != without[asked.request[target]]
            match, row, target = match[other], row[other], target[other]
        apart = self.distances()[asked.roles[match], known.elements[row]].sum(1)
        least = torch.full((targets,), torch.inf)
        least = least.scatter_reduce(0, target, apart.detach(), "amin")
        near = _sums((least[target] - apart).exp(), target, targets)
        crystals = _sums(torch.ones(len(row)), target, targets)
        # where elements could swap roles, all is counted that many times
        ways = _sums(torch.ones(len(size)), asked.target, targets).clamp(min=1)
        seen = crystals > 0
        nearest = torch.where(seen, -least, NEVER).clamp(min=NEVER)
        like = torch.where(seen, near, 1.0).log() + nearest - ways.log()
        kin = crystals / ways
        total = _sums(kin, asked.request, requests)[asked.request]
        share = (kin + 0.1).log() - (total + 1).log()
        like = torch.where(seen, like, NEVER).clamp(min=NEVER)
        scale = torch.tensor([4.0, 4.0, 1.0, 4.0, 4.0, 4.0])
        columns = [like, nearest, seen.float(), kin.log1p(), share, total.log1p()]
        return torch.stack(columns, 1) / scale

    def distances(self) -> Tensor:
        """(119, 119) squared distance of elements in the space of resemblance."""
        place = self.resemble.weight + self.resemble_described(element_features())
        return (place.unsqueeze(0) - place.unsqueeze(1)).square().sum(2)

    @cached_property
    def _tables(self) -> tuple[_Tables, _Tables]:
        exact, loose = (
            _Tables(*map(torch.from_numpy, (known.start, known.crystal, known.elements)))
            for known in (self.memory.exact, self.memory.loose)
        )
        return exact, loose


class _Tables(NamedTuple):
    """Tensors of a :class:`Recollection`."""

    start: Tensor
    crystal: Tensor
    elements: Tensor


def _layers(inside: int, hidden: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inside, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, outside),
    )


def _sums(values: Tensor, of: Tensor, count: int) -> Tensor:
    return torch.zeros(count).index_add(0, of, values)


def _drop(x: Tensor, share: float) -> Tensor:
    return functional.dropout(x, share, training=share > 0)


def _count_features(batch: Batch) -> Tensor:
    count = batch.atoms.float()
    total = _sums(count, batch.element_request, len(batch.group))
    kinds = _sums(torch.ones(len(count)), batch.element_request, len(batch.group))
    total, kinds = total[batch.element_request], kinds[batch.element_request]
    return torch.stack([count.log(), (count / total).log(), total.log() / 4, kinds / 4], 1)
