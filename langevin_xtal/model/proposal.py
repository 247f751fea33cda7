"""A learned proposal: where atoms and cell may be before any noise is removed.

With the Wyckoff positions given, a crystal is few numbers: the free parameters of its sites and
the free lengths and angles of its cell. An autoregressive network over one canonical description
(:mod:`langevin_xtal.symmetry.description`) learns them,

    p(x, L | group, elements, positions) = Π_k p(x_k | x_1 … x_{k-1}, …) p(L | x, …),

each parameter a categorical over ``BINS`` fractions of the cell, the lattice a mixture of normal
distributions. It sees no distances: it remembers which structure types such elements take. The
score network, which sees nothing but distances and angles, starts from its draws at an
intermediate noise level and does the rest.

Several networks fitted from different random weights may stand for one proposal: every factor is
the mean of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from langevin_xtal.errors import InputError
from langevin_xtal.model.network import ELEMENTS, Linear
from langevin_xtal.model.prior import (
    element_features,
    element_rank,
    position_features,
)
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.symmetry.description import EDGE, represented, smallest_labels
from langevin_xtal.symmetry.frames import metric_after, metric_of, nearest_frame
from langevin_xtal.symmetry.lattice import (
    COORDINATES,
    coordinate_from_length,
    fixed_coordinates,
    lattice_coordinates,
    lattice_driver,
    lattice_freedom,
)
from langevin_xtal.symmetry.wyckoff import table_start, wyckoff_positions

BINS = 96
"""Fractions of the cell distinguished: 0.1 Å in a cell of 10 Å, and all multiples of 1/24."""

WAVES = 12
"""Frequencies by which a parameter is given to the network."""

COMPONENTS = 12
"""Of the mixture over lattices."""

SMALLEST_SPREAD = 0.01
"""Of a component, in units of log length or angle coordinate / 10 Å."""

RANGES: dict[str, tuple[int, int]] = {
    "width": (8, 1024),
    "layers": (1, 16),
    "heads": (1, 16),
    "members": (1, 16),
}
"""What a proposal may be: its file is not trusted, and memory is taken on its word."""

LARGEST = 16 * 1024**2
"""Most members × layers × width²."""


@dataclass(frozen=True, kw_only=True)
class ProposalConfig:
    """Size of the proposal network."""

    width: int = 128
    """Features of a site."""
    layers: int = 3
    """Layers that read the request, and layers that place its sites."""
    heads: int = 4
    """Attention heads."""
    frames: bool = False
    """Whether it learned descriptions that choose the basis too, not the origin alone."""
    members: int = 1
    """Networks whose probabilities are averaged."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value}; it must lie between {low} and {high}")
        if self.members * self.layers * self.width**2 > LARGEST:
            raise InputError(
                f"{self.members} members of {self.layers} layers and width {self.width} are too "
                f"many; members × layers × width² must be at most {LARGEST}"
            )
        if self.width % self.heads:
            raise InputError(
                f"width {self.width} is not a multiple of {self.heads} heads; give one that is"
            )


@dataclass(frozen=True, eq=False)
class Descriptions:
    """B crystals described (see :func:`~langevin_xtal.symmetry.description.describe`), padded."""

    group: Tensor  #: (B,) space-group numbers
    numbers: Tensor  #: (B, S) atomic numbers, 0 for padding
    rows: Tensor  #: (B, S) rows of the table of all Wyckoff positions
    values: Tensor  #: (B, S, 3) parameters, first those there are; float32
    used: Tensor  #: (B, S, 3) bool: parameters there are
    size: Tensor  #: (B,) log of the volume expected of the atoms [Å³]
    lattice: Tensor  #: (B, 6) see :func:`lattice_features`

    def __len__(self) -> int:
        return len(self.group)

    def to(self, device: torch.device, dtype: torch.dtype) -> Descriptions:
        """On a device, numbers in a precision."""
        return Descriptions(
            self.group.to(device),
            self.numbers.to(device),
            self.rows.to(device),
            self.values.to(device, dtype),
            self.used.to(device),
            self.size.to(device, dtype),
            self.lattice.to(device, dtype),
        )

    def pick(self, index: Tensor) -> Descriptions:
        """Some of them, with no more padding than they need."""
        longest = int((self.numbers[index] > 0).sum(1).max())
        return Descriptions(
            self.group[index],
            self.numbers[index, :longest],
            self.rows[index, :longest],
            self.values[index, :longest],
            self.used[index, :longest],
            self.size[index],
            self.lattice[index],
        )


@torch.no_grad()
def lattice_features(coordinates: Tensor, log_volume: Tensor) -> Tensor:
    """(B, 6) log lengths less a third of the expected log volume; angle coordinates / 10 Å."""
    lengths = 10.0 * torch.log1p(torch.exp(coordinates[:, :3] / 10.0))
    return torch.cat([lengths.log() - log_volume.unsqueeze(1) / 3, coordinates[:, 3:] / 10], 1)


@cache
def lattice_freedoms() -> Tensor:
    """(231, 6) which lattice coordinates are free; row 0 unused."""
    none = np.zeros(COORDINATES, dtype=bool)
    return torch.from_numpy(np.array([none, *(lattice_freedom(n) for n in range(1, 231))]))


def expected_log_volume(
    numbers: NDArray[np.int64], multiplicity: NDArray[np.int64], statistics: Statistics
) -> float:
    """Log of the volume of a cell [Å³] that its atoms suggest."""
    return float(np.log(statistics.atomic_volume[numbers] @ multiplicity))


class TransformerBlock(nn.Module):
    """A pre-norm transformer layer over the sites of each crystal."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.leave = nn.Linear(width, width, bias=False)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self, x: Tensor, allowed: Tensor | None, dropout: float, before: list[Tensor] | None = None
    ) -> Tensor:
        """(B, S, W) to the same; ``allowed`` (B, S, S) says who sees whom, None that all do.

        Sites ``before`` these are seen too: their keys and values (C ≥ B, H, ·, ·), to which those
        of these sites are added.
        """
        b, s, w = x.shape
        q, k, v = self.mix(self.norm(x)).view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if before is not None:
            if before:
                k, v = (torch.cat([a[:b], n], 2) for a, n in zip(before, (k, v), strict=True))
            before[:] = k, v
        mask = None if allowed is None else allowed.unsqueeze(1)
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        seen = self.leave(seen.transpose(1, 2).reshape(b, s, w))
        x = x + functional.dropout(seen, dropout, training=dropout > 0)
        inner = self.narrow(functional.gelu(self.wide(self.norm_out(x))))
        return x + functional.dropout(inner, dropout, training=dropout > 0)


class Proposal(nn.Module):
    """Autoregressive distribution of site parameters and lattice."""

    def __init__(self, config: ProposalConfig | None = None) -> None:
        super().__init__()
        self.config = config or ProposalConfig()
        w, rows = self.config.width, len(position_features())
        self.group = nn.Embedding(231, w)
        self.position = nn.Embedding(rows, w)
        self.element = nn.Embedding(ELEMENTS, w)
        self.describe_position = Linear(position_features().shape[1], w)
        self.describe_element = Linear(element_features().shape[1], w)
        self.size = Linear(3, w)
        self.read = nn.ModuleList(
            TransformerBlock(w, self.config.heads) for _ in range(self.config.layers)
        )
        self.enter = nn.Linear(w + 3 * 2 * WAVES, w)
        self.place = nn.ModuleList(
            TransformerBlock(w, self.config.heads) for _ in range(self.config.layers)
        )
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(w + 2 * WAVES * k, 2 * w), nn.GELU(), nn.Linear(2 * w, BINS))
            for k in range(3)
        )
        self.lattice = nn.Sequential(
            nn.Linear(2 * w, 2 * w),
            nn.GELU(),
            nn.Linear(2 * w, COMPONENTS * (1 + 2 * COORDINATES)),
        )
        for table, spread in ((self.position, 0.1), (self.element, 0.1), (self.group, 0.2)):
            nn.init.normal_(table.weight, std=spread)
        alone = replace(self.config, members=1)
        self.others = nn.ModuleList(Proposal(alone) for _ in range(self.config.members - 1))

    @classmethod
    def of_members(cls, members: Sequence[Proposal]) -> Proposal:
        """One proposal of several, fitted with the same configuration."""
        first = members[0]
        if any(m.config != first.config for m in members) or first.config.members != 1:
            raise InputError("members of a proposal need one configuration, each a single network")
        found = cls(replace(first.config, members=len(members)))
        state = dict(first.state_dict())
        for k, member in enumerate(members[1:]):
            state |= {f"others.{k}.{name}": v for name, v in member.state_dict().items()}
        found.load_state_dict(state)
        return found.eval().requires_grad_(False)

    def members(self) -> list[Proposal]:
        """The networks whose probabilities are averaged, this one first."""
        return [self, *self.others]  # type: ignore[list-item]

    def singles(self) -> list[Proposal]:
        """The members, each a proposal of its own."""
        first = Proposal(replace(self.config, members=1))
        first.load_state_dict(
            {k: v for k, v in self.state_dict().items() if not k.startswith("others.")}
        )
        return [first.eval().requires_grad_(False), *self.others]  # type: ignore[list-item]

    def context(
        self, d: Descriptions, dropout: float = 0.0, shown: Tensor | None = None
    ) -> Tensor:
        """(B, S, W) what each site is, among the others."""
        real = d.numbers > 0
        seen = d.numbers if shown is None else shown[d.numbers]
        count = real.sum(1, keepdim=True).to(d.size.dtype)
        size = torch.stack([d.size / 3 - 2, d.size - count[:, 0].log() - 3, count[:, 0].log()], 1)
        of_element, of_position = (
            table.to(d.size.device, d.size.dtype)
            for table in (element_features(), position_features())
        )
        x = self.element(seen) + self.describe_element(of_element[seen].flatten(0, 1)).view(
            *seen.shape, -1
        )
        about = of_position[d.rows].flatten(0, 1)
        x = x + self.position(d.rows) + self.describe_position(about).view(*seen.shape, -1)
        x = x + (self.group(d.group) + self.size(size)).unsqueeze(1)
        # which sites share an element, whatever it is
        allowed = (real.unsqueeze(1) & real.unsqueeze(2)) | _diagonal(real)
        for layer in self.read:
            x = layer(x, allowed, dropout)
        return x

    def placed(self, context: Tensor, d: Descriptions, dropout: float = 0.0) -> Tensor:
        """(B, S + 1, W): state before each site is placed, and after the last."""
        s = context.shape[1]
        given = torch.cat([context, (waves(d.values) * d.used.unsqueeze(3)).flatten(2)], 2)
        given = functional.pad(self.enter(given), (0, 0, 1, 0))
        # padding says nothing: the state after the last site is the same in any batch
        x = given + functional.pad(context * (d.numbers > 0).unsqueeze(2), (0, 0, 0, 1))
        real = functional.pad(d.numbers > 0, (1, 0), value=True)
        causal = torch.ones(s + 1, s + 1, device=x.device).tril().bool()
        for layer in self.place:
            x = layer(x, causal & real.unsqueeze(1) | _diagonal(real), dropout)
        return x

    def states(self, context: Tensor, d: Descriptions, rows: Sequence[int]) -> Iterator[Tensor]:
        """The states of :meth:`placed`, (rows, W), site after site.

        The parameters of a site are read from ``d`` when the next state is asked for.

        Parameters
        ----------
        rows
            (S + 1,) how many crystals, the first ones, have so many sites at least.
        """
        waiting = functional.pad(context * (d.numbers > 0).unsqueeze(2), (0, 0, 0, 1))
        before: list[list[Tensor]] = [[] for _ in self.place]
        for s, n in enumerate(rows):
            x = waiting[:n, s]
            if s:
                given = (waves(d.values[:n, s - 1]) * d.used[:n, s - 1].unsqueeze(2)).flatten(1)
                x = x + self.enter(torch.cat([context[:n, s - 1], given], 1))
            x = x.unsqueeze(1)
            for layer, kept in zip(self.place, before, strict=True):
                x = layer(x, None, 0.0, kept)
            yield x.squeeze(1)

    def bins(self, state: Tensor, values: Tensor, k: int) -> Tensor:
        """(..., BINS) logits of parameter ``k`` from states (..., W) and those before it."""
        before = waves(values[..., :k]).flatten(-2)
        return self.heads[k](torch.cat([state, before], -1))

    def mixture(self, state: Tensor, context: Tensor, d: Descriptions) -> Mixture:
        """The lattice's, from :meth:`placed` and :meth:`context`."""
        sites = (d.numbers > 0).sum(1)
        each = torch.arange(len(sites), device=sites.device)
        return self.mixture_from(state[each, sites], context, d)

    def mixture_from(self, last: Tensor, context: Tensor, d: Descriptions) -> Mixture:
        """The same from the states (B, W) after the last sites."""
        real = (d.numbers > 0).unsqueeze(2)
        mean = (context * real).sum(1) / real.sum(1)
        out = self.lattice(torch.cat([last, mean], 1)).view(len(last), COMPONENTS, -1)
        spread = SMALLEST_SPREAD + functional.softplus(out[..., 1 + COORDINATES :] - 3.0)
        return Mixture(out[..., 0].log_softmax(1), out[..., 1 : 1 + COORDINATES], spread)

    def log_likelihood(
        self,
        d: Descriptions,
        dropout: float = 0.0,
        shown: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """(B,) of the parameters [nats, of their bins] and (B,) of the lattice features.

        With ``smoothing`` bins, targets are spread over neighbouring bins by a normal of so many.
        """
        context = self.context(d, dropout, shown)
        state = self.placed(context, d, dropout)
        total = torch.zeros_like(d.size)
        for k in range(3):
            crystal, site = torch.nonzero(d.used[:, :, k], as_tuple=True)
            if not len(crystal):
                continue
            values = d.values[crystal, site]
            log_p = self.bins(state[crystal, site], values, k).log_softmax(1)
            wanted = soft_bins(values[:, k], smoothing)
            total = total.index_add(0, crystal, (wanted * log_p).sum(1))
        free = lattice_freedoms().to(d.group.device)[d.group]
        return total, self.mixture(state, context, d).log_density(d.lattice, free)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Of normal distributions with independent coordinates."""

    log_weight: Tensor  #: (B, K)
    mean: Tensor  #: (B, K, 6)
    spread: Tensor  #: (B, K, 6)

    def log_density(self, x: Tensor, free: Tensor) -> Tensor:
        """(B,) of points (B, 6), over the coordinates that are free (B, 6)."""
        z = (x.unsqueeze(1) - self.mean) / self.spread
        each = -0.5 * z.square() - self.spread.log() - 0.5 * np.log(2 * np.pi)
        return torch.logsumexp(self.log_weight + (each * free.unsqueeze(1)).sum(2), 1)

    def draw(self, uniforms: Tensor, normals: Tensor, temperature: Tensor) -> Tensor:
        """(B, 6) points, from numbers (B, 1) in (0, 1) and (B, 6), at temperatures (B, 1)."""
        share = (self.log_weight / temperature).softmax(1).cumsum(1)
        pick = (share < uniforms * share[:, -1:]).sum(1)
        each = torch.arange(len(pick), device=pick.device), pick
        return self.mean[each] + temperature * self.spread[each] * normals


def waves(values: Tensor) -> Tensor:
    """(..., 2 · WAVES) sines and cosines of fractions (...)."""
    steps = torch.arange(1, WAVES + 1, dtype=values.dtype, device=values.device)
    frequency = 2 * torch.pi * steps
    phase = values.unsqueeze(-1) * frequency
    return torch.cat([phase.sin(), phase.cos()], -1)


def soft_bins(values: Tensor, smoothing: float) -> Tensor:
    """(N, BINS) the nearest bin of fractions (N,), or a normal around them, on the circle."""
    gap = values.unsqueeze(1) - torch.arange(BINS, device=values.device) / BINS
    gap = (gap - gap.round()) * BINS
    if not smoothing:
        return functional.one_hot(gap.abs().argmin(1), BINS).to(values)
    return (-0.5 * (gap / smoothing).square()).softmax(1)


def padded(
    group: Sequence[int],
    numbers: Sequence[NDArray[np.int64]],
    positions: Sequence[Sequence[int]],
    statistics: Statistics,
) -> Descriptions:
    """Crystals whose parameters and lattices are not known yet, zero.

    Parameters
    ----------
    numbers, positions
        (B,) sequences, for each crystal the atomic numbers and the positions (indices within the
        group) of its sites, in the order of the description.
    """
    longest = max(len(n) for n in numbers)
    shape = (len(group), longest)
    start = table_start()
    z, rows = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    used, size = np.zeros((*shape, 3), dtype=bool), np.zeros(len(group))
    for b, (g, own, where) in enumerate(zip(group, numbers, positions, strict=True)):
        table = [wyckoff_positions(g)[w] for w in where]
        z[b, : len(own)] = own
        rows[b] = start[g - 1]
        rows[b, : len(own)] = start[g - 1] + np.array(where)
        for s, w in enumerate(table):
            used[b, s, : w.freedom] = True
        size[b] = expected_log_volume(own, np.array([w.multiplicity for w in table]), statistics)
    return Descriptions(
        torch.tensor(group),
        torch.from_numpy(z),
        torch.from_numpy(rows),
        torch.zeros(*shape, 3),
        torch.from_numpy(used),
        torch.from_numpy(size).float(),
        torch.zeros(len(group), COORDINATES),
    )


@dataclass(frozen=True, eq=False)
class Draw:
    """One crystal proposed."""

    frac: NDArray[np.float64]  #: (A, 3) on the representative spaces, sites in the order given
    positions: tuple[int, ...]  #: (A,) their Wyckoff positions, by the description's origin
    coordinates: NDArray[np.float64]  #: (6,) lattice
    log_likelihood: float  #: of what was drawn


@dataclass(frozen=True)
class Sites:
    """What a draw is given. A sites."""

    group: int  #: space-group number
    numbers: tuple[int, ...]  #: (A,) atomic numbers
    positions: tuple[int, ...]  #: (A,) Wyckoff positions, indices within the group


@torch.no_grad()
def draw(
    proposal: Proposal,
    statistics: Statistics,
    asked: Sequence[Sites],
    uniforms: Tensor,
    normals: Tensor,
    temperature: Tensor,
) -> list[Draw]:
    """Draw parameters and lattices of B crystals of at most S sites.

    In the precision of the proposal's weights, and on their device: in float64 a draw is the same
    in any company and on any device, but for one in some million.

    Parameters
    ----------
    asked
        (B,) crystals.
    uniforms
        (B, S + 1, 3) numbers in (0, 1): for the parameters, and the row after those of a
        crystal's sites for its lattice.
    normals
        (B, 6) standard normal numbers.
    temperature
        (B,) of each; below 1, likelier crystals come up more often.
    """
    ordered = [_in_order(proposal.config.frames, one) for one in asked]
    # the longest first: those still to be placed are always the first ones
    ranks = sorted(range(len(asked)), key=lambda b: -len(ordered[b][1]))
    count = np.array([len(ordered[b][1]) for b in ranks])
    d = padded(
        [asked[b].group for b in ranks],
        [np.array(asked[b].numbers)[ordered[b][1]] for b in ranks],
        [[ordered[b][0][s] for s in ordered[b][1]] for b in ranks],
        statistics,
    )
    used = d.used.numpy()
    device, dtype = proposal.group.weight.device, proposal.group.weight.dtype
    d = d.to(device, dtype)
    uniforms, normals, temperature = (
        x[ranks].to(device, dtype) for x in (uniforms, normals, temperature[:, None])
    )
    members = proposal.members()
    contexts = [member.context(d) for member in members]
    ends, said = _place(members, contexts, d, used, count, uniforms, temperature)
    each, sites = (torch.as_tensor(x, device=device) for x in (np.arange(len(count)), count))
    of_lattice = uniforms[each, sites, :1]
    mixture = _united(
        [m.mixture_from(x, c, d) for m, x, c in zip(members, ends, contexts, strict=True)]
    )
    # single precision: rounding errors leave no trace
    x = mixture.draw(of_lattice, normals, temperature).float()
    free = lattice_freedoms().to(device)[d.group]
    said = (said + mixture.log_density(x.to(dtype), free)).float()
    placed, lattice = d.values.cpu().double().numpy(), x.cpu().double().numpy()
    drawn = {}
    for row, (b, log_p, size) in enumerate(
        zip(ranks, said.tolist(), d.size.tolist(), strict=True)
    ):
        labels, order = ordered[b]
        table = wyckoff_positions(asked[b].group)
        frac = np.zeros((len(order), 3))
        for place, s in enumerate(order):
            w = table[labels[s]]
            frac[s] = w.point(placed[row, place, : w.freedom])
        coordinates = coordinates_from_features(lattice[row], size, asked[b].group)
        drawn[b] = Draw(frac, labels, coordinates, log_p)
    return [drawn[b] for b in range(len(asked))]


def _place(
    members: Sequence[Proposal],
    contexts: Sequence[Tensor],
    d: Descriptions,
    used: NDArray[np.bool_],
    count: NDArray[np.int64],
    uniforms: Tensor,
    temperature: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """Draw the parameters of crystals (B,) into ``d``, site after site.

    Parameters
    ----------
    used, count
        ``d.used``, and (B,) sites of each crystal, the most first: where the host sees them.

    Returns
    -------
    tuple
        Of each member the states (B, W) after the last sites; (B,) log-likelihoods.
    """
    rows = [int((count >= s).sum()) for s in range(used.shape[1] + 1)]
    walks = [member.states(c, d, rows) for member, c in zip(members, contexts, strict=True)]
    log_likelihood = torch.zeros_like(d.size)
    ends: list[list[Tensor]] = []
    for s, more in enumerate([*rows[1:], 0]):
        states = [next(walk) for walk in walks]
        ends.append([state[more:] for state in states])
        for k in range(3):
            if not (more and used[:more, s, k].any()):
                break
            values = d.values[:more, s]
            log_p = _mean(
                [m.bins(x[:more], values, k) for m, x in zip(members, states, strict=True)]
            )
            share = (log_p / temperature[:more]).softmax(1).cumsum(1)
            # within the bin too: its edges are nothing special
            bins = (share < uniforms[:more, s, k, None] * share[:, -1:]).sum(1, keepdim=True)
            has = d.used[:more, s, k]
            log_likelihood[:more] += log_p.gather(1, bins).squeeze(1) * has
            d.values[:more, s, k] = ((bins.squeeze(1).to(log_p) / BINS + EDGE) % 1.0 - EDGE) * has
    return [torch.cat(states[::-1]) for states in zip(*ends, strict=True)], log_likelihood


def _in_order(turned: bool, one: Sites) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """Labels of the sites' positions, and the order in which they are placed."""
    kinds = element_rank()[list(one.numbers)]
    labels, _ = smallest_labels(one.group, one.positions, kinds.tolist(), turned=turned)
    return labels, np.lexsort((np.array(labels), kinds))


def _mean(logits: Sequence[Tensor]) -> Tensor:
    """(B, ·) logarithms of the mean of several distributions, normalised."""
    each = torch.stack([x.log_softmax(1) for x in logits])
    return each.logsumexp(0) - float(np.log(len(logits)))


def _united(parts: Sequence[Mixture]) -> Mixture:
    """The mean of several mixtures."""
    return Mixture(
        torch.cat([m.log_weight for m in parts], 1) - float(np.log(len(parts))),
        torch.cat([m.mean for m in parts], 1),
        torch.cat([m.spread for m in parts], 1),
    )


def in_cell_like(found: Draw, group: int, coordinates: NDArray[np.float64]) -> Draw:
    """The same crystal in the basis in which its cell is most like a given one.

    A proposal chooses its basis, among those that keep the group: for a crystal whose cell is
    given, that has to be undone.

    Parameters
    ----------
    coordinates
        (6,) of the given lattice.
    """
    if not np.isfinite(found.frac).all() or not np.isfinite(found.coordinates).all():
        return found
    turn, origin, names = nearest_frame(group, found.coordinates, coordinates)
    positions = tuple(int(names[w]) for w in found.positions)
    basis = np.rint(np.linalg.inv(turn)).astype(np.int64)
    metric = metric_after(metric_of(found.coordinates), basis)
    rows = np.linalg.cholesky(metric).astype(np.float64)
    driver = lattice_driver(group)
    free = lattice_freedom(group)[driver]
    return Draw(
        represented(group, positions, found.frac @ turn.T + origin),
        positions,
        np.where(free, lattice_coordinates(rows)[driver], fixed_coordinates(group)),
        found.log_likelihood,
    )


def _diagonal(real: Tensor) -> Tensor:
    """(S, S) bool, for (B, S): whoever has nobody to see sees itself."""
    return torch.eye(real.shape[1], device=real.device).bool()


def coordinates_from_features(
    x: NDArray[np.float64], log_volume: float, group: int
) -> NDArray[np.float64]:
    """(6,) lattice coordinates from features; those not free are the group's own."""
    driver = lattice_driver(group)
    lengths = np.exp(np.clip(x[:3] + log_volume / 3, 0.0, 5.0))
    angles = np.clip(10.0 * x[3:], -15.0, 15.0)
    values = np.concatenate([coordinate_from_length(lengths), angles])
    return np.where(lattice_freedom(group)[driver], values[driver], fixed_coordinates(group))
