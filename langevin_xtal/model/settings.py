"""Which settings a composition may have: cell content and space group; and which compositions.

A setting is everything discrete about a crystal. Its distribution is a product,

    p(elements) p(stoichiometry | elements) p(units, group | composition) p(assignment | …),

and a request fixes the factors that it names. The last factor is the ranker's
(:mod:`langevin_xtal.model.ranking`); this module holds the others. Groups and cell contents come
from classifiers that hear training crystals of the same family
(:mod:`langevin_xtal.model.voting`). Elements and stoichiometries are those of training crystals,
with elements exchanged for ones that resemble them: a mixture with one component for each crystal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.model.known import (
    ELEMENTS,
    KnownCrystals,
    Neighbours,
    nearest,
    ordered,
    reduced,
)
from langevin_xtal.model.voting import Ballot, VotingClassifier, VotingConfig
from langevin_xtal.symmetry.fitting import fitting_groups

FloatArray = NDArray[np.float64]

MOST_MEMBERS = 16
"""Networks that are averaged, at most."""
MOST_UNITS = 52
"""Formula units in the primitive cell, at most."""
MOST_CELL = 104
"""Atoms in the primitive cell where more than one formula unit is in it, at most."""
MOST_SYSTEMS = 512
"""Training crystals of like elements that a stoichiometry is drawn from."""
AT_ONCE = 64
"""Compositions that pass through a classifier together."""
UNSTABLE = 0.2
"""Weight of a training crystal far above the hull beside one near it."""

KNOWN_TYPES = {
    "elements": torch.uint8,
    "counts": torch.uint8,
    "group": torch.uint8,
    "stable": torch.uint8,
}
"""How the arrays of known crystals are written."""


@dataclass(frozen=True, kw_only=True)
class SettingConfig:
    """Sizes of the networks, how many neighbours they hear, and widths of the mixtures."""

    width: int = 96
    layers: int = 2
    heads: int = 4
    similarity: int = 32
    neighbours: int = 64
    """Training crystals with the same cell content that vote."""
    elsewhere: int = 24
    """Training crystals with another number of units that vote."""
    stoichiometry_width: float = 1.0
    """Squared distance of elements over which stoichiometries are alike."""
    substitution_width: float = 0.5
    """Squared distance of elements that are exchanged for each other."""
    members: int = 1
    """Networks of each kind, whose probabilities are averaged."""

    def __post_init__(self) -> None:
        self.voting()
        for name in ("neighbours", "elsewhere"):
            if not 1 <= getattr(self, name) <= 4096:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 1 to 4096")
        if not 1 <= self.members <= MOST_MEMBERS:
            raise InputError(f"members is {self.members}; it must be 1 to {MOST_MEMBERS}")
        for name in ("stoichiometry_width", "substitution_width"):
            if not 1e-3 <= getattr(self, name) <= 1e3:
                raise InputError(f"{name} is {getattr(self, name)}; it must be 0.001 to 1000")

    def voting(self) -> VotingConfig:
        """Of each classifier."""
        return VotingConfig(
            width=self.width, layers=self.layers, heads=self.heads, similarity=self.similarity
        )


class Composition(NamedTuple):
    """One formula unit: elements with their atoms, numbers without a common divisor."""

    elements: tuple[int, ...]  #: atomic numbers
    counts: tuple[int, ...]  #: of each

    @classmethod
    def of(cls, counts: Mapping[int, int]) -> Composition:
        """From atoms by atomic number."""
        return cls(tuple(counts), reduced(tuple(counts.values()))[0])

    @property
    def atoms(self) -> int:
        """Of one formula unit."""
        return sum(self.counts)

    def ordered(self, elements: Sequence[int]) -> Composition:
        """The same with its elements in another order."""
        count = dict(zip(self.elements, self.counts, strict=True))
        return Composition(tuple(elements), tuple(count[z] for z in elements))


@lru_cache(maxsize=1 << 14)
def group_mask(counts: tuple[int, ...]) -> NDArray[np.bool_]:
    """(231,) groups in which the atoms of a primitive cell fit; entry 0 is false.

    Parameters
    ----------
    counts
        Atoms of each element in the primitive cell; zeros are left out.
    """
    return fitting_groups([n for n in counts if n])


def units_mask(counts: Sequence[int]) -> NDArray[np.bool_]:
    """(MOST_UNITS + 1,) numbers of formula units that are considered; entry 0 is false."""
    units = np.arange(MOST_UNITS + 1)
    return (units == 1) | ((units > 0) & (units * sum(counts) <= MOST_CELL))


def squared_distances(place: Tensor) -> NDArray[np.float32]:
    """(N, N) between places (N, D)."""
    place = place.detach().float()
    apart = (place.unsqueeze(0) - place.unsqueeze(1)).square().sum(2)
    return apart.cpu().numpy().astype(np.float32)


class SettingModel(nn.Module):
    """Distributions over elements, stoichiometries, cell contents and space groups.

    Parameters
    ----------
    resemblance
        (119, D) place of every element in a space where those that take the same sites are near
        each other; neighbours are found by squared distances in it.
    """

    resemblance: Tensor

    def __init__(
        self, known: KnownCrystals, resemblance: Tensor, config: SettingConfig | None = None
    ) -> None:
        super().__init__()
        self.config = config or SettingConfig()
        self.known = known
        self.register_buffer("resemblance", resemblance.detach().clone())
        voting, more = self.config.voting(), range(self.config.members - 1)
        self.group = VotingClassifier(231, voting)
        self.units = VotingClassifier(MOST_UNITS + 1, voting)
        self.other_groups = nn.ModuleList(VotingClassifier(231, voting) for _ in more)
        self.other_units = nn.ModuleList(VotingClassifier(MOST_UNITS + 1, voting) for _ in more)

    @classmethod
    def of_members(cls, members: Sequence[SettingModel]) -> SettingModel:
        """One model of several, fitted to the same crystals with the same configuration.

        Raises
        ------
        InputError
            When they differ in more than their weights.
        """
        first = members[0]
        if any(m.config != first.config or len(m.known) != len(first.known) for m in members):
            raise InputError("members need one configuration and the same crystals")
        if first.config.members != 1:
            raise InputError("members must be single networks")
        found = cls(first.known, first.resemblance, replace(first.config, members=len(members)))
        for networks, name in (
            ([found.group, *found.other_groups], "group"),
            ([found.units, *found.other_units], "units"),
        ):
            for network, member in zip(networks, members, strict=True):
                network.load_state_dict(getattr(member, name).state_dict())
        return found.eval().requires_grad_(False)

    def singles(self) -> list[SettingModel]:
        """The networks whose probabilities are averaged, each as a model of its own."""
        config = replace(self.config, members=1)
        found = []
        for group, units in zip(
            [self.group, *self.other_groups], [self.units, *self.other_units], strict=True
        ):
            one = SettingModel(self.known, self.resemblance, config)
            one.group.load_state_dict(group.state_dict())
            one.units.load_state_dict(units.state_dict())
            found.append(one.eval().requires_grad_(False))
        return found

    @cached_property
    def distances(self) -> NDArray[np.float32]:
        """(119, 119) squared distance of the elements."""
        return squared_distances(self.resemblance)

    def unknown_elements(self, elements: Sequence[int]) -> list[int]:
        """Those that no training crystal has."""
        return [z for z in elements if not self._seen[z]]

    # -- cell content and group of a composition

    def log_units(
        self, compositions: Sequence[Composition], *, as_new: bool = False
    ) -> FloatArray:
        """(C, MOST_UNITS + 1) log-probability of formula units in the primitive cell.

        Parameters
        ----------
        compositions
            All with as many elements.
        as_new
            Whether training crystals of these very compositions are left out. A composition
            seldom has a setting twice, so with them the others become likelier.
        """
        most = self.config.neighbours + self.config.elsewhere
        asked, found = [], []
        for composition in compositions:
            family, elements = _in_order(composition)
            asked.append((family, elements))
            near = nearest(self.known, self.distances, family, elements, most)
            found.append(_without_same(near, elements) if as_new else near)
        together = _joined(found)
        return self._log_probabilities(
            [self.units, *self.other_units],
            asked,
            together,
            self.known.units.clip(max=MOST_UNITS),
            np.zeros_like(together.row),
            np.stack([units_mask(family) for family, _ in asked]),
        )

    def log_groups(
        self, cells: Sequence[tuple[Composition, int]], *, as_new: bool = False
    ) -> FloatArray:
        """(C, 231) log-probability of every space group, given formula units of the primitive
        cell.

        Groups in which the atoms do not fit have −inf; so has entry 0. ``cells`` are
        compositions, all with as many elements, with their formula units; ``as_new`` is that of
        :meth:`log_units`.
        """
        asked, found = [], []
        for composition, units in cells:
            family, elements = _in_order(composition)
            asked.append((tuple(units * n for n in family), elements))
            rows = self.known.families.get(family, np.zeros(0, dtype=np.int64))
            theirs = self.known.units[rows]
            own, other = (
                nearest(self.known, self.distances, family, elements, most, among=rows[pick])
                for most, pick in (
                    (self.config.neighbours, theirs == units),
                    (self.config.elsewhere, theirs != units),
                )
            )
            near = Neighbours(
                np.concatenate([own.row, other.row], 1),
                np.concatenate([own.matched, other.matched], 1),
            )
            found.append(_without_same(near, elements) if as_new else near)
        together = _joined(found)
        kind = np.zeros_like(together.row)
        kind[:, self.config.neighbours :] = 1
        return self._log_probabilities(
            [self.group, *self.other_groups],
            asked,
            together,
            self.known.group,
            kind,
            np.stack([group_mask(counts) for counts, _ in asked]),
        )

    def known_settings(self, composition: Composition) -> dict[tuple[int, int], float]:
        """Share of each (units, group) among the training crystals of this very composition."""
        family, elements = _in_order(composition)
        rows = self.known.families.get(family, np.zeros(0, dtype=np.int64))
        same = rows[(self.known.elements[rows, : len(family)] == elements).all(1)]
        weights: dict[tuple[int, int], float] = {}
        for row in same.tolist():
            key = int(self.known.units[row]), int(self.known.group[row])
            weight = 1.0 if self.known.stable[row] else UNSTABLE
            weights[key] = max(weight, weights.get(key, 0.0))
        total = sum(weights.values())
        return {key: weight / total for key, weight in weights.items()}

    def _log_probabilities(
        self,
        classifiers: Sequence[nn.Module],
        asked: Sequence[tuple[tuple[int, ...], NDArray[np.int64]]],
        found: Neighbours,
        labels: NDArray[np.int64],
        kind: NDArray[np.int64],
        allowed: NDArray[np.bool_],
    ) -> FloatArray:
        """(C, labels) of the counts and (1, E) elements asked for, by their neighbours."""
        elements = np.concatenate([one for _, one in asked])
        row = torch.from_numpy(found.row)
        here = row.clamp(min=0)
        known = torch.from_numpy(np.append(labels, -1))  # a row of none points at the last
        stable = torch.from_numpy(np.append(self.known.stable, 1)) > 0
        width = elements.shape[1]
        ballot = Ballot(
            elements=torch.from_numpy(elements),
            counts=torch.tensor([counts for counts, _ in asked]),
            label=torch.where(row >= 0, known[here], -1),
            kind=torch.from_numpy(kind),
            matched=torch.from_numpy(found.matched[:, :, :width]),
            stable=stable[here],
            wanted=torch.ones(len(row), dtype=torch.bool),
            allowed=torch.from_numpy(allowed),
        )
        result: FloatArray
        with torch.inference_mode():
            each = []
            for start in range(0, len(row), AT_ONCE):
                part = Ballot(*(tensor[start : start + AT_ONCE] for tensor in ballot))
                each.append(
                    torch.stack([one(part).double().log_softmax(1) for one in classifiers])
                )
            mean = torch.cat(each, 1).logsumexp(0) - math.log(len(classifiers))
            result = mean.numpy()
        return result

    # -- compositions

    def compositions(self, elements: Sequence[int]) -> list[tuple[Composition, float]]:
        """Stoichiometries of a set of elements with their probabilities, likeliest first.

        Every training crystal with as many elements proposes its own, its elements exchanged for
        those asked for in every way; the nearer they are the more it counts.

        Raises
        ------
        InputError
            When no training crystal has so many elements.
        """
        asked = sorted(elements)
        kinds = len(asked)
        rows = self._by_number.get(kinds)
        if rows is None:
            raise InputError(
                f"no training crystal of the model has {kinds} elements; give a formula"
            )
        ways = np.array(list(permutations(range(kinds))) if kinds <= 6 else [range(kinds)])
        theirs = self.known.elements[rows, :kinds]
        apart = np.zeros((len(rows), len(ways)))
        for k, z in enumerate(asked):
            apart += self.distances[z][theirs[:, ways[:, k]]]
        weight = np.where(self.known.stable[rows] > 0, 1.0, UNSTABLE)[:, None]
        log_weight = np.log(weight) - apart / self.config.stoichiometry_width
        flat = log_weight.ravel()
        best = np.argsort(-flat, kind="stable")[: MOST_SYSTEMS * 2]
        found: dict[tuple[int, ...], float] = {}
        for place in best.tolist():
            row, way = divmod(place, len(ways))
            counts = self.known.counts[rows[row], ways[way]] // self.known.units[rows[row]]
            key = tuple(counts.tolist())
            found[key] = found.get(key, 0.0) + float(np.exp(flat[place] - flat[best[0]]))
        total = sum(found.values())
        likely = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        return [(Composition(tuple(asked), key), share / total) for key, share in likely]

    def draw_composition(self, rng: np.random.Generator) -> Composition:
        """Elements and stoichiometry: those of a training crystal, elements exchanged for ones
        like them."""
        stable = np.flatnonzero(self.known.stable > 0)
        rows = stable if len(stable) else np.arange(len(self.known))
        row = int(rows[rng.integers(len(rows))])
        own = [int(z) for z in self.known.elements[row] if z]
        counts = self.known.counts[row, : len(own)] // self.known.units[row]
        while True:
            drawn = [int(rng.choice(ELEMENTS, p=self._exchange[z])) for z in own]
            if len(set(drawn)) == len(drawn):
                order = sorted(range(len(drawn)), key=drawn.__getitem__)
                return Composition(
                    tuple(drawn[k] for k in order), tuple(int(counts[k]) for k in order)
                )

    @cached_property
    def _exchange(self) -> FloatArray:
        """(119, 119) probability that the one element is exchanged for the other, or stays.

        Elements stay as frequent as they are in the training crystals: what is likely by
        resemblance is accepted by Metropolis' rule.
        """
        stable = self.known.elements[self.known.stable > 0]
        elements = stable if len(stable) else self.known.elements
        frequency = np.bincount(elements[elements > 0], minlength=ELEMENTS).astype(float)
        alike = np.exp(-self.distances / self.config.substitution_width)
        np.fill_diagonal(alike, 0.0)
        # T(z, z') f(z) is symmetric
        either = np.minimum(frequency[:, None], frequency[None, :])
        change = alike * either / np.maximum(frequency[:, None], 1.0)
        change /= max(float(change.sum(1).max()), 1e-300)
        np.fill_diagonal(change, 1.0 - change.sum(1))
        return np.maximum(change, 0.0)

    @cached_property
    def _seen(self) -> NDArray[np.bool_]:
        seen = np.zeros(ELEMENTS, dtype=bool)
        seen[np.unique(self.known.elements)] = True
        seen[0] = False
        return seen

    @cached_property
    def _by_number(self) -> dict[int, NDArray[np.int64]]:
        number = (self.known.elements > 0).sum(1)
        return {int(n): np.flatnonzero(number == n) for n in np.unique(number)}

    # -- files

    def to_tensors(self) -> dict[str, Tensor]:
        """Weights and known crystals, as :meth:`from_tensors` takes them."""
        tensors = dict(self.state_dict())
        for name, kind in KNOWN_TYPES.items():
            tensors[f"known.{name}"] = torch.from_numpy(getattr(self.known, name)).to(kind)
        return tensors

    @classmethod
    def from_tensors(cls, config: SettingConfig, tensors: Mapping[str, Tensor]) -> SettingModel:
        """A model from its tensors, ready to be asked.

        Raises
        ------
        CheckpointError
            When they do not fit the configuration, or the known crystals are damaged.
        """
        state = {k: v for k, v in tensors.items() if not k.startswith("known.")}
        try:
            known = {name: tensors[f"known.{name}"].long().numpy() for name in KNOWN_TYPES}
            shape = (ELEMENTS, config.similarity)
            if tuple(state["resemblance"].shape) != shape:
                raise ValueError(f"the resemblance of elements should have shape {shape}")
            model = cls(KnownCrystals(**known), state["resemblance"].float(), config)
            model.load_state_dict(state)
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"the model of settings does not fit its configuration ({reason})"
            ) from None
        return model.eval().requires_grad_(False)


def _without_same(found: Neighbours, elements: NDArray[np.int64]) -> Neighbours:
    """Neighbours less those of the composition itself; (1, E) its elements."""
    same = (found.matched[:, :, : elements.shape[1]] == elements[:, None]).all(2)
    return Neighbours(np.where(same, -1, found.row), found.matched)


def _joined(found: Sequence[Neighbours]) -> Neighbours:
    """Of several compositions, each with as many places for neighbours."""
    return Neighbours(
        np.concatenate([one.row for one in found]), np.concatenate([one.matched for one in found])
    )


def _in_order(composition: Composition) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """Family of a composition and (1, E) its elements in the table's order."""
    order = ordered(composition.elements, composition.counts)
    family = tuple(composition.counts[k] for k in order)
    return family, np.array([[composition.elements[k] for k in order]], dtype=np.int64)
