"""What every generator offers: a fit to packed crystals, and candidates for requests.

A generator that does not place atoms by symmetry gives a P1 cell. It becomes a
:class:`~langevin_xtal.crystal.candidate.Candidate` in the space group that is found in it at
:data:`SYMPREC`, so the candidate's request is the concrete one that the crystal answers, not the
one that was asked; the provenance holds the latter.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from langevin_xtal.config.fields import check, setting
from langevin_xtal.config.tables import table_of
from langevin_xtal.config.tolerances import USUAL
from langevin_xtal.crystal.asymmetric import asymmetric_unit
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.cell import Cell, expanded
from langevin_xtal.crystal.distances import min_distance
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.crystal.entry import Value
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError, RejectError, RequestError
from langevin_xtal.model.tensor_file import weights_hash, write_tensors
from langevin_xtal.sampling.postprocess import Rejection
from langevin_xtal.symmetry import SpaceGroup
from langevin_xtal.symmetry.detection import group_numbers, niggli_cell
from langevin_xtal.train.epochs import EpochConfig, EpochFit, EpochRow
from langevin_xtal.train.fit import BatchT, load_module, module_tensors

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

WEIGHTS_FORMAT = "langevin-xtal generator 1"
WEIGHTS = "generator.safetensors"

SYMPREC = USUAL
"""Tolerance at which the space group of a generated P1 cell is detected [Å]."""

Given = Literal["composition", "elements", "nothing"]
"""What a generator takes of a target: the reduced formula and the atoms in the primitive cell;
elements and space group; nothing."""


@dataclass(frozen=True, kw_only=True)
class Recipe(EpochConfig):
    """How a generator is fitted; every generator has defaults of its own."""

    epochs: int = setting(10, "Times that every crystal is seen.", low=1)
    average: float = 0.995
    """Decay of the running mean of the weights, which is what samples; 0 for the last weights."""

    def __post_init__(self) -> None:
        check(self)
        super().__post_init__()


@dataclass(frozen=True)
class Outcome:
    """What became of requests."""

    candidates: list[Candidate]
    rejections: list[Rejection]


class Generator(ABC):
    """A network with everything that sampling needs.

    Parameters
    ----------
    network
        Its weights are the generator's.
    card
        Facts about the fit: crystals, epochs, seconds.
    """

    name: ClassVar[str]
    """As on the command line."""
    given: ClassVar[Given]
    serves: ClassVar[str]
    """Requests that it can serve, in words, to end the sentence that refuses others."""
    recipe: ClassVar[type[Recipe]]
    part: ClassVar[int] = 64
    """Requests that are sampled together."""

    def __init__(self, network: nn.Module, card: Mapping[str, object] | None = None) -> None:
        self.network = network
        self.card = dict(card or {})

    # -- what a generator says

    @classmethod
    @abstractmethod
    def start_fit(cls, data: PackedDataset, recipe: Recipe, out: Path | None) -> GeneratorFit[Any]:
        """A fit at its beginning, or where the folder ``out`` stopped.

        Raises
        ------
        InputError
            When no crystal of the data can be used, or the folder holds another run.
        """

    @classmethod
    @abstractmethod
    def unfitted(cls, header: Mapping[str, object]) -> Self:
        """With any weights, as :meth:`header` says."""

    @abstractmethod
    def header(self) -> dict[str, object]:
        """Plain values to restore from, beside the weights."""

    @abstractmethod
    def check(self, request: Request) -> None:
        """Refuse a request that the generator cannot serve.

        Raises
        ------
        RequestError
            In one sentence that says what it can.
        """

    @abstractmethod
    def generate(
        self, requests: Sequence[Request], seed: int, indices: Sequence[int]
    ) -> list[Cell | str]:
        """A P1 cell for every request, or why there is none; a stream of ``seed`` for each."""

    # -- what all share

    @classmethod
    def restored(cls, tensors: Mapping[str, Tensor], header: Mapping[str, object]) -> Self:
        """From what :meth:`save` wrote."""
        made = cls.unfitted(header)
        load_module("network", made.network, tensors)
        made.network.eval().requires_grad_(False)
        made.card = table_of(header["card"], "card")
        return made

    @classmethod
    def fit(cls, data: PackedDataset, recipe: Recipe | None = None) -> Self:
        """Fit to all crystals that the generator can represent.

        Raises
        ------
        InputError
            When there are none.
        """
        run = cls.start_fit(data, recipe or cls.recipe(), None)
        for _ in run.run():
            pass
        made = run.generator()
        assert isinstance(made, cls)
        return made

    def sample(self, requests: Sequence[Request], seed: int = 0) -> list[Candidate]:
        """A candidate for every request, without those that did not come about.

        Raises
        ------
        RequestError
            For a request that the generator cannot serve.
        """
        return self.outcomes(requests, seed).candidates

    def outcomes(
        self,
        requests: Sequence[Request],
        seed: int = 0,
        *,
        indices: Sequence[int] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Outcome:
        """Candidates and rejections of requests.

        Parameters
        ----------
        indices
            Stream of each request; its place by default.
        progress
            Called with requests done and planned.

        Raises
        ------
        RequestError
            For a request that the generator cannot serve.
        """
        for request in requests:
            self.check(request)
        streams = list(range(len(requests))) if indices is None else list(indices)
        found = Outcome([], [])
        for first in range(0, len(requests), self.part):
            own = slice(first, first + self.part)
            with torch.no_grad():
                cells = self.generate(requests[own], seed, streams[own])
            for request, index, cell in zip(requests[own], streams[own], cells, strict=True):
                made = self._finished(request, index, cell, seed)
                if isinstance(made, Candidate):
                    found.candidates.append(made)
                else:
                    found.rejections.append(made)
            if progress is not None:
                progress(min(first + self.part, len(requests)), len(requests))
        return found

    def _finished(
        self, request: Request, index: int, cell: Cell | str, seed: int
    ) -> Candidate | Rejection:
        if isinstance(cell, str):
            return Rejection(request, index, 0, cell)
        provenance = {"generator": self.name, "weights": self.hash, "asked": str(request)}
        return candidate_of(cell, request, seed=seed, index=index, provenance=provenance)

    def refused(self, why: str) -> RequestError:
        """The error for a request that cannot be served."""
        return RequestError(f"generator {self.name} {why}; it serves {self.serves}")

    @property
    def hash(self) -> str:
        """Identifies the weights."""
        return weights_hash(self.network.state_dict())

    def save(self, path: Path) -> None:
        """Write the weights, to be read by
        :func:`~langevin_xtal.baselines.registry.load_generator`."""
        header = {"format": WEIGHTS_FORMAT, "generator": self.name, "card": self.card}
        write_tensors(path, module_tensors("network", self.network), header | self.header())


class GeneratorFit(EpochFit[BatchT], Generic[BatchT]):
    """An :class:`~langevin_xtal.train.epochs.EpochFit` that leaves a generator in its folder.

    The running mean of the weights is kept beside them; with each save the generator is written,
    so that a fit that is stopped can be sampled.
    """

    config: Recipe

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        data_hash: str,
        out: Path | None,
        *,
        rate: float,
        total_steps: int,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(
            network, recipe, data_hash, out, rate=rate, total_steps=total_steps, rng=rng
        )
        self.mean = copy.deepcopy(network).requires_grad_(False)

    @abstractmethod
    def generator(self) -> Generator:
        """With the weights as they are now."""

    def card(self) -> dict[str, object]:
        """Facts about the fit up to now."""
        return {
            "epochs": self.epoch,
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "data_hash": self.data_hash,
            "recipe": dataclasses.asdict(self.config),
        }

    def _shuffled(self, crystals: int) -> list[IntArray]:
        assert self.rng is not None
        return shuffled(self.rng, crystals, self.config.batch_size)

    def _advance(self, batch: BatchT | None) -> None:
        super()._advance(batch)
        # the mean follows quickly at first, when the weights are far from where they end
        decay = min(self.config.average, self.step / (self.step + 10.0))
        self._changing = True
        with torch.no_grad():
            theirs = self.network.state_dict()
            for name, own in self.mean.state_dict().items():
                if own.is_floating_point():
                    own.lerp_(theirs[name], 1.0 - decay)
                else:
                    own.copy_(theirs[name])
        self._changing = False

    def _epoch_losses(self) -> tuple[float, ...]:
        assert self._order is not None
        return tuple((self._sums / max(1, len(self._order))).tolist())

    def _more_state(self) -> dict[str, Tensor]:
        return module_tensors("mean", self.mean)

    def _restore_more(self, tensors: Mapping[str, Tensor]) -> None:
        load_module("mean", self.mean, tensors)

    def _saved(self) -> None:
        assert self.out is not None
        self.generator().save(self.out / WEIGHTS)

    @contextmanager
    def _running(self) -> Iterator[None]:
        self.network.train()
        with super()._running():
            yield


def fit_in_folder(
    fit: GeneratorFit[BatchT], seconds: float, on_row: Callable[[EpochRow], None] | None = None
) -> bool:
    """Run a fit for at most ``seconds``; whether it came to its end."""
    for row in fit.run(seconds):
        if on_row is not None:
            on_row(row)
    return fit.done


def candidate_of(
    cell: Cell,
    request: Request,
    *,
    seed: int,
    index: int,
    provenance: Mapping[str, Value] | None = None,
) -> Candidate | Rejection:
    """A generated P1 cell in the conventional cell of the group that is found in it.

    The group is that of the tolerance :data:`SYMPREC`, and atoms are moved by no more than its
    like onto the positions of that group.
    """
    lattice, frac, numbers = cell
    if not (np.isfinite(lattice).all() and np.isfinite(frac).all()):
        return Rejection(request, index, 0, "diverged: positions or cell are not finite")
    try:
        sites = asymmetric_unit(lattice, frac, numbers, SYMPREC)
        atom_frac, atom_site = sites.atoms()
        answered = _answered(sites.group, sites.numbers)
    except (RejectError, InputError) as error:
        return Rejection(request, index, 0, str(error))
    return Candidate(
        request=answered,
        seed=seed,
        index=index,
        attempt=0,
        unit=sites,
        atom_site=atom_site,
        atom_frac=atom_frac,
        detected=group_numbers((sites.lattice, atom_frac, sites.numbers[atom_site])),
        min_distance=min_distance(sites.lattice, atom_frac),
        provenance={**(provenance or {}), "index": index, "attempt": 0, "seed": seed},
    )


def _answered(group: int, numbers: IntArray) -> Request:
    counts = Counter(numbers.tolist())
    return Request(group, {SYMBOLS[z]: n for z, n in sorted(counts.items())})


def primitive_cells(data: PackedDataset, most_atoms: int) -> tuple[list[Cell], IntArray]:
    """Niggli-reduced primitive cells of the crystals that have at most so many atoms in them,
    and (C,) their places in the data."""
    centring = np.array([1] + [len(SpaceGroup(n).centring) for n in range(1, 231)])
    small = np.flatnonzero(data.atom_counts // centring[data.group] <= most_atoms)
    cells = []
    for k in small.tolist():
        own = data.sites_of(k)
        group = SpaceGroup(int(data.group[k]))
        lattice, frac, numbers = expanded(
            group, data.lattice[k], data.frac[own], data.numbers[own]
        )
        cells.append((*niggli_cell(lattice, frac), numbers))
    return cells, small


def own_stream(seed: int, index: int) -> np.random.Generator:
    """The random numbers of candidate ``index`` of ``seed``, whatever is sampled beside it."""
    return np.random.default_rng([seed & (2**63 - 1), index])


def steps_in(crystals: int, batch: int, epochs: int) -> int:
    """Steps of a fit that sees every crystal ``epochs`` times."""
    return max(1, math.ceil(crystals / batch) * epochs)


def shuffled(rng: np.random.Generator, crystals: int, batch: int) -> list[IntArray]:
    """Places of the crystals in a new order, batch by batch."""
    order = rng.permutation(crystals)
    return [order[k : k + batch] for k in range(0, len(order), batch)]
