"""Structure types of training crystals: where atoms sit in crystals like the one asked for.

A *template* is a space group with an assignment of Wyckoff positions, elements left open. Crystals
of one template whose coordinates and cell shapes are nearly the same form a structure type, kept
as one representative with rounded numbers, in the frame that
:func:`~langevin_xtal.symmetry.description.describe` chooses. Beside it stand the elements of every
crystal of the type: the nearer they are to those asked for, the likelier is the type.

That none of the types known is right has a probability too (Good-Turing's idea: the weight of the
unseen is fitted to crystals left out one at a time).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, chain, groupby, islice, pairwise, permutations, product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.model.memory import Template
from langevin_xtal.model.network import ELEMENTS
from langevin_xtal.model.proposal import Draw, coordinates_from_features
from langevin_xtal.symmetry.assignments import Assignment
from langevin_xtal.symmetry.description import EDGE
from langevin_xtal.symmetry.frames import frames
from langevin_xtal.symmetry.lattice import COORDINATES
from langevin_xtal.symmetry.wyckoff import table_start, wyckoff_positions

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GRAIN = 1000
"""Parameters are kept to this fraction of the cell."""
LATTICE_GRAIN = 200
"""Lattice features are kept to this fraction of their unit."""
MOST_ORDERS = 120
"""Ways to match elements with the roles of a template that are looked at."""
UNSTABLE = 0.3
"""Squared distance added for crystals known to be far above the hull."""

TENSORS = {
    "group": torch.uint8,
    "sites": torch.uint8,
    "role": torch.uint8,
    "position": torch.uint8,
    "parameters": torch.int16,
    "lattice": torch.int16,
    "type": torch.int32,
    "elements": torch.uint8,
    "stable": torch.uint8,
}
"""How the arrays are written."""


@dataclass(frozen=True, kw_only=True)
class TypesConfig:
    """How elements weigh."""

    width: float = 0.5
    """Squared distance of elements over which the weight of a known crystal falls by e."""
    novelty: float = 4.0
    """Negative logarithm of the weight of all that is not known."""

    def __post_init__(self) -> None:
        if not 1e-3 <= self.width <= 1e3:
            raise InputError(f"width is {self.width}; it must be 0.001 to 1000")
        if not -50 <= self.novelty <= 50:
            raise InputError(f"novelty is {self.novelty}; it must be -50 to 50")


class Known(NamedTuple):
    """A structure type that could be that of a crystal asked for."""

    type: int  #: row of the table
    share: float  #: probability that it is
    elements: tuple[int, ...]  #: atomic number in each of its roles


@dataclass(frozen=True, eq=False)
class StructureTypes:
    """Y types with Q sites and P parameters in all, and C crystals that have them.

    Raises
    ------
    InputError
        When the arrays do not fit each other.
    """

    config: TypesConfig
    group: IntArray  #: (Y,) space-group numbers
    sites: IntArray  #: (Y,) sites of each representative
    role: IntArray  #: (Q,) of each site: sites of one role hold one element
    position: IntArray  #: (Q,) Wyckoff position, index within the group
    parameters: IntArray  #: (P,) free coordinates of each site in turn, times GRAIN
    lattice: IntArray  #: (Y, 6) features, see ``lattice_features``, times LATTICE_GRAIN
    type: IntArray  #: (C,) of each crystal, in ascending order
    elements: IntArray  #: (R,) atomic numbers of each crystal's roles in turn
    stable: IntArray  #: (C,) 0 where the crystal is known to be far above the hull

    def __post_init__(self) -> None:
        types, sites, crystals = len(self.group), len(self.role), len(self.type)
        sound = (
            self.sites.shape == (types,)
            and self.role.shape == self.position.shape == (sites,)
            and self.lattice.shape == (types, COORDINATES)
            and self.stable.shape == (crystals,)
            and bool(((self.group >= 1) & (self.group <= 230)).all())
            and bool((self.sites >= 1).all())
            and int(self.sites.sum()) == sites
            and bool((self.position >= 0).all())
            and bool((self.position < np.diff(table_start())[self._group_of_site - 1]).all())
            and len(self.parameters) == int(self._freedom.sum())
            and bool((np.diff(self.type) >= 0).all())
            and bool(((self.type >= 0) & (self.type < types)).all())
            and self._roles_are_counted()
            and len(self.elements) == int(self._roles[self.type].sum())
            and bool(((self.elements >= 1) & (self.elements < ELEMENTS)).all())
        )
        if not sound:
            raise InputError("its table of structure types is damaged")

    def __len__(self) -> int:
        return len(self.group)

    def __repr__(self) -> str:
        return f"StructureTypes({len(self):,} types of {len(self.type):,} crystals)"

    def known(
        self,
        distances: NDArray[np.float32],
        number: int,
        elements: Sequence[int],
        assignment: Assignment,
    ) -> tuple[list[Known], float]:
        """Types that a crystal could have, likeliest first, and the probability of none of them.

        Parameters
        ----------
        distances
            (119, 119) squared, of the elements.
        number
            Space group.
        elements, assignment
            Atomic numbers, and the Wyckoff positions of each.
        """
        novel = float(np.exp(-self.config.novelty))
        found: list[tuple[float, int, tuple[int, ...]]] = []
        for row, apart, own in self._apart(distances, number, elements, assignment):
            weight = float(np.exp(-apart.min(0) / self.config.width).sum())
            order = int(apart.min(1).argmin())
            found.append((weight, row, tuple(own[order].tolist())))
        total = novel + sum(weight for weight, _, _ in found)
        found.sort(key=lambda one: (-one[0], one[1]))
        return [Known(row, weight / total, own) for weight, row, own in found], novel / total

    def without(
        self, distances: NDArray[np.float32], crystal: int, widths: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Weights that crystals other than ``crystal`` give, for each of ``widths`` (W,).

        Returns
        -------
        tuple
            (W,) of its own type, −1 where it is the only one of it; (W,) of all types.
        """
        own = int(self.type[crystal])
        first, last = self._first_crystal[own : own + 2]
        elements = self._crystals(own)[0][crystal - first]
        right, total = np.full(len(widths), -1.0), np.zeros(len(widths))
        sites = self._placed(own)
        for row, apart, _ in self._apart(distances, int(self.group[own]), elements, sites):
            nearest = apart.min(0)
            if row == own:
                nearest = np.delete(nearest, crystal - first)
            weight = np.exp(-nearest[:, None] / widths).sum(0)
            total += weight
            if row == own and last - first > 1:
                right = weight
        return right, total

    def _apart(
        self,
        distances: NDArray[np.float32],
        number: int,
        elements: Sequence[int],
        assignment: Assignment,
    ) -> Iterator[tuple[int, FloatArray, IntArray]]:
        """For every type of the template: its row, the squared distance (O, C) of its crystals
        for each way to match elements, and the elements (O, R) of its roles in each."""
        template, orders = template_orders(number, assignment)
        mine = np.array([[elements[k] for k in order] for order in orders])
        for row in self._by_template(number, template).tolist():
            theirs, stable = self._crystals(row)
            apart = np.zeros((len(mine), len(theirs)))
            for role in range(len(template)):
                apart += distances[mine[:, role]][:, theirs[:, role]]
            yield row, apart + UNSTABLE * (stable == 0), mine

    def _placed(self, row: int) -> Assignment:
        """Positions of each role of a type."""
        own = slice(self._first_site[row], self._first_site[row + 1])
        placed: list[list[int]] = [[] for _ in range(self._roles[row])]
        for role, position in zip(
            self.role[own].tolist(), self.position[own].tolist(), strict=True
        ):
            placed[role].append(position)
        return tuple(tuple(sorted(p)) for p in placed)

    def draw(self, known: Known, numbers: Sequence[int], log_volume: float) -> Draw:
        """The crystal of a type with the elements asked for.

        Parameters
        ----------
        numbers
            (A,) atomic numbers of the sites asked for, in their order.
        log_volume
            Of the cell [log Å³], as the atoms suggest.
        """
        row = known.type
        own = slice(self._first_site[row], self._first_site[row + 1])
        number = int(self.group[row])
        table = wyckoff_positions(number)
        free: dict[int, list[int]] = {}
        for site in range(own.start, own.stop):
            free.setdefault(known.elements[int(self.role[site])], []).append(site)
        frac = np.zeros((len(numbers), 3))
        positions = []
        for k, z in enumerate(numbers):
            site = free[z].pop(0)
            where = table[int(self.position[site])]
            first = self._first_parameter[site]
            values = self.parameters[first : first + where.freedom] / GRAIN
            frac[k] = where.point(values)
            positions.append(where.index)
        features = self.lattice[row] / LATTICE_GRAIN
        coordinates = coordinates_from_features(features, log_volume, number)
        return Draw(frac, tuple(positions), coordinates, float(np.log(known.share)))

    # -- tables made once

    @cached_property
    def _first_site(self) -> IntArray:
        return np.concatenate([[0], np.cumsum(self.sites)])

    @cached_property
    def _group_of_site(self) -> IntArray:
        return np.repeat(self.group, self.sites)

    @cached_property
    def _freedom(self) -> IntArray:
        """(Q,) free coordinates of every site."""
        tables = [[w.freedom for w in wyckoff_positions(n)] for n in range(1, 231)]
        flat = np.array(list(chain.from_iterable(tables)))
        return flat[table_start()[self._group_of_site - 1] + self.position]

    @cached_property
    def _first_parameter(self) -> IntArray:
        return np.concatenate([[0], np.cumsum(self._freedom)])

    @cached_property
    def _roles(self) -> IntArray:
        """(Y,) elements of each type."""
        return (
            np.maximum.reduceat(self.role, self._first_site[:-1]) + 1 if len(self) else self.sites
        )

    def _roles_are_counted(self) -> bool:
        """Whether the sites of each type begin with role 0 and come role after role."""
        if not len(self):
            return True
        step = np.diff(self.role, prepend=0)
        first = self._first_site[:-1]
        inside = np.ones(len(step), dtype=bool)
        inside[first] = False
        return not self.role[first].any() and bool(np.isin(step[inside], (0, 1)).all())

    @cached_property
    def _first_element(self) -> IntArray:
        return np.concatenate([[0], np.cumsum(self._roles[self.type])])

    @cached_property
    def _first_crystal(self) -> IntArray:
        return np.searchsorted(self.type, np.arange(len(self) + 1))

    @cached_property
    def _templates(self) -> dict[tuple[int, Template], IntArray]:
        return {}

    @cached_property
    def _buckets(self) -> dict[tuple[int, int, int], IntArray]:
        """Rows by group, sites and roles."""
        keys = np.stack([self.group, self.sites, self._roles], 1)
        kinds, of = np.unique(keys, axis=0, return_inverse=True)
        of = of.reshape(-1)
        order = np.argsort(of, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(of, minlength=len(kinds)))[:-1])
        return {
            (int(g), int(s), int(r)): rows for (g, s, r), rows in zip(kinds, parts, strict=True)
        }

    def _by_template(self, number: int, template: Template) -> IntArray:
        """Rows of the types of a template."""
        bucket = number, sum(map(len, template)), len(template)
        if (number, template) not in self._templates:
            sorted_here: dict[Template, list[int]] = {}
            for row in self._buckets.get(bucket, np.zeros(0, dtype=np.int64)).tolist():
                key = template_orders(number, self._placed(row))[0]
                sorted_here.setdefault(key, []).append(row)
            for key, rows in sorted_here.items():
                self._templates[number, key] = np.array(rows)
        return self._templates.setdefault((number, template), np.zeros(0, dtype=np.int64))

    def _crystals(self, row: int) -> tuple[IntArray, IntArray]:
        """(C, R) elements of the crystals of a type by role, and (C,) whether near-stable."""
        first, last = self._first_crystal[row : row + 2]
        start, stop = self._first_element[first], self._first_element[last]
        own = self.elements[start:stop].reshape(last - first, -1)
        return own, self.stable[first:last]

    # -- files

    def to_tensors(self) -> dict[str, Tensor]:
        """As :meth:`from_tensors` takes them."""
        return {
            name: torch.from_numpy(getattr(self, name)).to(kind) for name, kind in TENSORS.items()
        }

    @classmethod
    def from_tensors(cls, config: TypesConfig, tensors: Mapping[str, Tensor]) -> StructureTypes:
        """A table from its tensors.

        Raises
        ------
        CheckpointError
            When they do not fit each other.
        """
        try:
            return cls(config, **{name: tensors[name].long().numpy() for name in TENSORS})
        except (KeyError, InputError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"the structure types cannot be used ({reason})") from None


@lru_cache(maxsize=1 << 14)
def template_orders(number: int, assignment: Assignment) -> tuple[Template, list[tuple[int, ...]]]:
    """The template of an assignment, and the ways its elements can take the template's roles.

    The template is the first in lexicographic order over all frames that keep the group. There are
    several ways where roles have the same positions, or where another frame exchanges them.
    """
    names = frames(number).names
    parts = [np.sort(names[:, list(element)], axis=1) for element in assignment]
    spans = list(pairwise(accumulate((part.shape[1] for part in parts), initial=0)))
    best: Template | None = None
    orders: dict[tuple[int, ...], None] = {}
    for row in sorted(set(map(tuple, np.concatenate(parts, 1).tolist()))):
        image = [row[first:last] for first, last in spans]
        order = sorted(range(len(image)), key=image.__getitem__)
        found = tuple(image[k] for k in order)
        if best is None or found < best:
            best, orders = found, {}
        if found == best:
            orders.setdefault(tuple(order))
    assert best is not None
    runs = [list(run) for _, run in groupby(range(len(best)), best.__getitem__)]
    every: dict[tuple[int, ...], None] = {}
    for first in orders:
        for way in islice(product(*(permutations(run) for run in runs)), MOST_ORDERS):
            every.setdefault(tuple([first[k] for k in chain(*way)]))
    return best, list(islice(every, MOST_ORDERS))


def rounded(parameters: FloatArray) -> IntArray:
    """Parameters as they are kept: those that round up to the upper edge stay below it."""
    top = int((1 - EDGE) * GRAIN)
    return np.minimum(np.rint(np.asarray(parameters) * GRAIN), top).astype(np.int64)
