"""DimeNet++ with outputs on edges (Gasteiger et al. 2020; Sultanov et al. 2023, section 4.2).

Directional messages live on the edges of the symmetry multigraph. What differs from the molecular
network: angles are turned with the operation of the edge (:mod:`langevin_xtal.graph.batch`), the
output blocks act on edges and give two numbers each (position weight, relative length change),
nothing is pooled at the end. The network is given both noise levels continuously, the composition
of the cell, the volume per atom and how abundant each site is.

The interaction block sums, for every edge e = i → h(j), over the edges f leaving j,

    Σ_f u_f Σ_l P_l(cos α_ef) (W_l R_l(d_f)) ⊙ x_f,

with P_l Legendre polynomials, R_ln spherical Bessel functions and u_f the envelope. Everything but
P_l depends on f alone, so the sum over triplets is one matrix product per row of edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from langevin_xtal.errors import InputError
from langevin_xtal.graph.batch import GraphBatch
from langevin_xtal.graph.contract import GraphSettings
from langevin_xtal.model import fused
from langevin_xtal.model.bases import RadialBasis, SphericalBasis, envelope, legendre

RANGES: dict[str, tuple[float, float]] = {
    "width": (1, 1024),
    "triplet_width": (1, 1024),
    "blocks": (0, 32),
    "radial": (1, 64),
    "spherical": (1, 16),
    "basis_cutoff": (0.1, 1000.0),
    "cutoff": (0.1, 100.0),
    "k_min": (0, 1000),
    "k_max": (1, 1000),
}
"""What a network may be: its file is not trusted, and memory is taken on its word."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Widths and reach of the network.

    With widths in multiples of 32 the scores of a crystal do not depend on its batch, to the last
    bit; others leave a part of a vector register over, which rounds differently.
    """

    width: int = 96
    """Features of an edge message."""
    triplet_width: int = 32
    """Features of a message inside the sum over triplets."""
    blocks: int = 3
    """Interaction blocks."""
    radial: int = 8
    """Radial basis functions."""
    spherical: int = 5
    """Orders of the angular basis."""
    basis_cutoff: float = 8.0
    """Range of the radial bases [Å]; longer edges keep only their logarithm."""
    cutoff: float = 6.0
    """Reach of a site [Å]."""
    k_min: int = 12
    """Reach further when a site has fewer neighbours."""
    k_max: int = 20
    """Keep only whole shells that fit in this many neighbours."""
    all_pairs: bool = True
    """Long-range edges between all pairs of sites."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value}; it must lie between {low} and {high}")

    def graph_settings(self) -> GraphSettings:
        """The multigraph this network reads."""
        return GraphSettings(
            cutoff=self.cutoff,
            k_min=self.k_min,
            k_max=self.k_max,
            all_pairs=self.all_pairs,
            # copies of a confined site must feel each other until they are one
            coincidence=0.01,
        )


SIZES: dict[str, NetworkConfig] = {
    "small": NetworkConfig(),
    "base": NetworkConfig(width=128, triplet_width=64, blocks=4, radial=10, spherical=7, k_max=32),
}
"""The named sizes: ``small`` for two CPU cores, ``base`` for a GPU."""

ELEMENTS = 119
NOISE_FEATURES = 16
EDGE_FEATURES = 5
SITE_FEATURES = 3


def noise_features(sigma: Tensor) -> Tensor:
    """(B,) noise level to (B, 2 · 16 + 1): sines and cosines of log σ, and a flag for σ = 0."""
    clean = sigma <= 0
    log = torch.where(clean, torch.ones_like(sigma), sigma).log()
    frequency = torch.logspace(-1, 0.7, NOISE_FEATURES, dtype=sigma.dtype, device=sigma.device)
    phase = log[:, None] * frequency
    waves = torch.cat([phase.sin(), phase.cos()], dim=1) * (~clean)[:, None]
    return torch.cat([waves, clean[:, None].to(sigma.dtype)], dim=1)


class Linear(nn.Linear):
    """A linear layer whose rows do not depend on how many there are.

    Matrix libraries treat a handful of rows with other kernels, which round differently; padding
    those to ``FEWEST`` keeps a crystal's scores the same to the last bit in any company.
    """

    FEWEST = 32

    def forward(self, x: Tensor) -> Tensor:
        """(M, in) to (M, out)."""
        rows = len(x)
        if rows >= self.FEWEST:
            return functional.linear(x, self.weight, self.bias)
        padded = functional.pad(x, (0, 0, 0, self.FEWEST - rows))
        return functional.linear(padded, self.weight, self.bias)[:rows]


class Residual(nn.Module):
    """x + SiLU(W2 SiLU(W1 x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = Linear(width, width), Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(M, width) to the same."""
        return x + functional.silu(self.second(functional.silu(self.first(x))))


class Interaction(nn.Module):
    """One DimeNet++ interaction block with the sum over triplets as a dense product."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        w, c = config.width, config.triplet_width
        self.own, self.sent = Linear(w, w), Linear(w, w)
        self.radial_gate = Linear(config.radial, w, bias=False)
        self.angular = nn.Parameter(torch.empty(config.spherical, config.radial, c))
        nn.init.normal_(self.angular, std=1.0 / config.radial)
        self.down, self.up = Linear(w, c, bias=False), Linear(c, w, bias=False)
        self.noise = Linear(w, w, bias=False)
        self.before = Residual(w)
        self.skip = Linear(w, w)
        self.after = Residual(w)

    def forward(
        self,
        x: Tensor,
        radial: Tensor,
        angular: Tensor,
        angle: Tensor,
        noise: Tensor,
        g: GraphBatch,
    ) -> Tensor:
        """(M, width) messages to (M, width)."""
        x_in = x + self.noise(noise)[g.site_crystal[g.source[g.first_edge]]]
        sent = functional.silu(self.sent(x_in)) * self.radial_gate(radial)
        sent = functional.silu(self.down(sent))  # (M, C)
        parts = torch.einsum("eln,lnc->elc", angular, self.angular) * sent.unsqueeze(1)
        parts = torch.cat([parts, parts.new_zeros(1, *parts.shape[1:])])[g.out_message]
        c = parts.shape[-1]
        parts = parts.reshape(len(parts), -1, c)[g.row_site]  # (R, K · L, C)
        heard = torch.bmm(angle.flatten(2), parts)  # (R, ROW, C)
        heard = heard.view(-1, c)[g.row_of_message]
        x = functional.silu(self.own(x_in)) + functional.silu(self.up(heard))
        return self.after(functional.silu(self.skip(self.before(x))) + x_in)


class _Read(NamedTuple):
    """What the layers of messages read of a batch."""

    radial: Tensor  #: (M, F) radial basis and edge features
    angular: Tensor  #: (M, L, N)
    weight: Tensor  #: (M,) factor on the outputs
    of_source: Tensor  #: (A, width)
    of_target: Tensor  #: (A, width)
    noise: Tensor  #: (B, width) conditions of each crystal


class EdgeNetwork(nn.Module):
    """Two numbers per edge from a batch of symmetry multigraphs and their noise levels.

    On a CPU in float32, with widths in multiples of 16, the layers of messages run in the C++
    kernels where those are built (:mod:`langevin_xtal.model.fused`), equal up to rounding.
    """

    fused = True
    """Whether the kernels may be used; set it to False for the plain path."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        w = config.width
        self.radial = RadialBasis(config.radial, config.basis_cutoff)
        self.spherical = SphericalBasis(config.spherical, config.radial, config.basis_cutoff)
        self.element = nn.Embedding(ELEMENTS, w)
        self.composition = nn.Embedding(ELEMENTS, w)
        self.conditions = nn.Sequential(
            Linear(2 * (2 * NOISE_FEATURES + 1) + 1 + w, w),
            nn.SiLU(),
            Linear(w, w),
            nn.SiLU(),
        )
        self.from_amount = Linear(SITE_FEATURES, w)
        self.from_source, self.from_target = Linear(w, w), Linear(w, w, bias=False)
        self.from_edge = Linear(config.radial + EDGE_FEATURES, w, bias=False)
        self.embed = Linear(w, w)
        self.blocks = nn.ModuleList(Interaction(config) for _ in range(config.blocks))
        self.output_gate = Linear(config.radial + EDGE_FEATURES, w)
        last = Linear(w, 2, bias=False)
        nn.init.zeros_(last.weight)
        self.output = nn.Sequential(Linear(w, w), nn.SiLU(), last)

    def forward(self, g: GraphBatch, sigma_pos: Tensor, sigma_lat: Tensor) -> Tensor:
        """Edge outputs.

        Parameters
        ----------
        g
            The batch; E edges, B crystals.
        sigma_pos, sigma_lat
            (B,) noise levels of positions [Å] and lattice coordinates; 0 where clean.

        Returns
        -------
        Tensor
            (E, 2): weight of the edge in the position noise, relative length change.
        """
        given = self._read(g, sigma_pos, sigma_lat)
        if self.fused and fused.fits(self.config.width, self.config.triplet_width, given.radial):
            return fused.edge_network(self, g, *given)[g.message]
        out = self.output[2](self._last(g, given))
        return (out * given.weight.unsqueeze(1))[g.message]

    def messages(self, g: GraphBatch, sigma_pos: Tensor, sigma_lat: Tensor) -> Tensor:
        """(M, width) what the last layer reads of each message, times the weight of its edges."""
        given = self._read(g, sigma_pos, sigma_lat)
        return self._last(g, given) * given.weight.unsqueeze(1)

    def _read(self, g: GraphBatch, sigma_pos: Tensor, sigma_lat: Tensor) -> _Read:
        first = g.first_edge
        weight, dist = edge_weight(g)[first], g.dist[first]
        amount = g.abundance.log()
        volume = (g.volume_per_atom[g.site_crystal] / 20.0).log() - amount
        noise = self.conditions(
            torch.cat(
                [
                    noise_features(sigma_pos),
                    noise_features(sigma_lat),
                    (g.volume_per_atom / 20.0).log().unsqueeze(1),
                    self._mean_element(g),
                ],
                dim=1,
            )
        )
        edge_sigma = sigma_pos[g.site_crystal[g.source]]
        radial = torch.cat([self.radial(dist), edge_features(g, edge_sigma)[first]], dim=1)
        leaves = (weight * ~(g.is_long_range | g.is_snap)[first]).view(-1, 1, 1)
        angular = self.spherical(dist) * leaves

        confined = g.confined[g.site_crystal].to(amount.dtype)
        site = torch.stack([amount, volume, confined], dim=1)
        h = self.element(g.numbers) + self.from_amount(site)
        of_source, of_target = self.from_source(h + noise[g.site_crystal]), self.from_target(h)
        return _Read(radial, angular, weight, of_source, of_target, noise)

    def _last(self, g: GraphBatch, given: _Read) -> Tensor:
        """(M, width) what the last layer reads, on the plain path."""
        first, radial = g.first_edge, given.radial
        x = given.of_source[g.source[first]] + given.of_target[g.target[first]]
        x = x + self.from_edge(radial)
        x = functional.silu(self.embed(functional.silu(x)))
        angle = legendre(self.config.spherical, g.cosine) * g.is_triplet.unsqueeze(-1)
        plain = radial[:, : self.config.radial]
        for block in self.blocks:
            x = block(x, plain, given.angular, angle, given.noise, g)
        last: Tensor = self.output[:2](x * self.output_gate(radial))
        return last

    def _mean_element(self, g: GraphBatch) -> Tensor:
        """(B, width) embedding of the composition: the mean over the atoms of the cell."""
        share = g.multiplicity.unsqueeze(1)
        weighted = torch.cat([self.composition(g.numbers), torch.ones_like(share)], dim=1) * share
        total = weighted.new_zeros(len(g.volume_per_atom), weighted.shape[1])
        total = total.index_add(0, g.site_crystal, weighted)
        return total[:, :-1] / total[:, -1:]


def edge_weight(g: GraphBatch) -> Tensor:
    """(E,) the envelope within the source's reach; 1 for snap and long-range edges."""
    always = g.is_snap | g.is_long_range
    return torch.where(always, torch.ones_like(g.dist), envelope(g.dist / g.reach))


def edge_features(g: GraphBatch, sigma: Tensor) -> Tensor:
    """(E, 5) what the radial basis does not say: flags, and the distance against σ."""
    return torch.stack(
        [
            g.is_self_image.to(g.dist.dtype),
            g.is_long_range.to(g.dist.dtype),
            g.is_snap.to(g.dist.dtype),
            g.dist / (g.dist + sigma),
            ((g.dist + 0.05) / 3.0).log(),
        ],
        dim=1,
    )
