"""A distribution over labels of a composition, from a network and from crystals that resemble it.

The labels are space groups, or numbers of formula units in the primitive cell. A transformer reads
the composition, one token for each element. Training crystals of the same family vote for their
labels, the stronger the more their elements resemble the ones asked for; what resembles, and how
much it matters for which element, is learned. Crystals of the very composition asked for are kept
apart: a composition seldom has the same group twice, so what they say differs from what crystals
of other elements say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from langevin_xtal.errors import InputError
from langevin_xtal.model.known import ELEMENTS, MOST_ELEMENTS
from langevin_xtal.model.prior import element_features

MOST_COUNT = 64  # counts of one element distinguished
MOST_TOTAL = 128  # atoms of a cell distinguished
NEVER = -12.0  # log-likeness of a label that no neighbour has
FAR = 1e4
KINDS = 2  # kinds of neighbours: of the same cell content, and of another number of units
FEATURES = 5  # of a label, by each kind of neighbours
CONTEXT = 16

RANGES: dict[str, tuple[int, int]] = {
    "width": (8, 1024),
    "layers": (1, 16),
    "heads": (1, 16),
    "similarity": (1, 256),
}
"""What a classifier may be: its file is not trusted, and memory is taken on its word."""


@dataclass(frozen=True, kw_only=True)
class VotingConfig:
    """Size of a classifier."""

    width: int = 96
    """Features of an element."""
    layers: int = 2
    """Of the transformer."""
    heads: int = 4
    """Of its attention."""
    similarity: int = 32
    """Dimensions of the space in which elements resemble each other."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value}; it must lie between {low} and {high}")
        if self.width % self.heads:
            raise InputError(f"width {self.width} must be a multiple of heads {self.heads}")


class Ballot(NamedTuple):
    """B compositions and the neighbours that vote."""

    elements: Tensor  #: (B, E) atomic numbers, 0 for padding
    counts: Tensor  #: (B, E) atoms in the primitive cell, or of one formula unit
    label: Tensor  #: (B, K) of every neighbour, -1 where there is none
    kind: Tensor  #: (B, K) 0 for neighbours of the same cell content, 1 for others
    matched: Tensor  #: (B, K, E) elements of the neighbours, in the order of the composition's
    stable: Tensor  #: (B, K) whether the neighbour is near-stable
    wanted: Tensor  #: (B,) whether near-stable crystals are asked for
    allowed: Tensor  #: (B, labels)


class VotingClassifier(nn.Module):
    """Logits of labels for compositions."""

    def __init__(self, labels: int, config: VotingConfig | None = None) -> None:
        super().__init__()
        self.labels = labels
        self.config = config or VotingConfig()
        w, described = self.config.width, element_features().shape[1]
        self.element = nn.Embedding(ELEMENTS, w)
        self.describe_element = nn.Linear(described, w)
        self.count = nn.Embedding(MOST_COUNT + 1, w)
        self.share = nn.Linear(3, w)
        self.total = nn.Embedding(MOST_TOTAL + 1, w)
        self.number = nn.Embedding(MOST_ELEMENTS + 1, w)
        self.wanted = nn.Embedding(2, w)
        layer = nn.TransformerEncoderLayer(
            w, self.config.heads, 2 * w, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, self.config.layers, enable_nested_tensor=False)
        self.leave = nn.Sequential(nn.LayerNorm(w), nn.Linear(w, w), nn.SiLU())
        self.direct = nn.Linear(w, labels)
        self.resemble = nn.Embedding(ELEMENTS, self.config.similarity)
        self.resemble_described = nn.Linear(described, self.config.similarity)
        self.matter = nn.Linear(w, 1)
        self.unstable = nn.Parameter(torch.zeros(2))
        self.context = nn.Linear(w + 2 * KINDS, CONTEXT)
        self.about_label = nn.Embedding(labels, CONTEXT)
        self.judge = nn.Sequential(
            nn.Linear(KINDS * FEATURES + CONTEXT, 64), nn.SiLU(), nn.Linear(64, 1)
        )
        self.weigh = nn.Linear(KINDS * FEATURES, 1, bias=False)
        nn.init.normal_(self.element.weight, std=0.1)
        nn.init.zeros_(self.matter.weight)
        nn.init.zeros_(self.matter.bias)

    def forward(
        self, ballot: Ballot, *, dropout: float = 0.0, shown: Tensor | None = None
    ) -> Tensor:
        """(B, labels) logits, -inf where a label is not allowed.

        Parameters
        ----------
        dropout
            Share of the hidden features zeroed in training.
        shown
            (119,) atomic number to show to the network in place of each.
        """
        elements, matched = ballot.elements, ballot.matched
        if shown is not None:
            elements, matched = shown[elements], shown[matched]
        tokens, state = self._read(elements, ballot.counts, ballot.wanted, dropout)
        votes, about = self._votes(ballot, elements, matched, tokens)
        context = self.context(torch.cat([state, about], 1))
        context = context.unsqueeze(1) * (1 + self.about_label.weight)
        judged = self.judge(torch.cat([votes, context], 2)) + self.weigh(votes)
        result: Tensor = self.direct(state) + judged.squeeze(2)
        return result.masked_fill(~ballot.allowed, -torch.inf)

    def distances(self) -> Tensor:
        """(119, 119) squared distance of elements in the space of resemblance."""
        place = self.resemble.weight + self.resemble_described(element_features())
        return (place.unsqueeze(0) - place.unsqueeze(1)).square().sum(2)

    def _read(
        self, elements: Tensor, counts: Tensor, wanted: Tensor, dropout: float
    ) -> tuple[Tensor, Tensor]:
        """(B, E, width) of every element and (B, width) of the whole."""
        real = counts > 0
        total = counts.sum(1, keepdim=True)
        share = counts / total
        amounts = torch.stack([share, (counts + 1.0).log() / 2, (share + 1e-3).log() / 3], 2)
        tokens = (
            self.element(elements)
            + self.describe_element(element_features()[elements])
            + self.count(counts.clamp(max=MOST_COUNT))
            + self.share(amounts)
        )
        whole = (
            self.total(total.squeeze(1).clamp(max=MOST_TOTAL))
            + self.number(real.sum(1))
            + self.wanted(wanted.long())
        )
        padding = torch.cat([torch.zeros_like(real[:, :1]), ~real], 1)
        x = torch.cat([whole.unsqueeze(1), _drop(tokens, dropout)], 1)
        x = self.encoder(x, src_key_padding_mask=padding)
        return x[:, 1:], _drop(self.leave(x[:, 0]), dropout)

    def _votes(
        self, ballot: Ballot, elements: Tensor, matched: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, labels, KINDS · FEATURES) of every label, and (B, 2 · KINDS) of all neighbours."""
        real = (ballot.counts > 0).unsqueeze(1)
        matter = functional.softplus(self.matter(tokens).squeeze(2) + 0.5413).unsqueeze(1)
        apart = self.distances()[elements.unsqueeze(1), matched] * real
        same = (apart.detach().sum(2) < 1e-6) & (matched[..., 0] > 0)
        apart = (apart * matter).sum(2)
        apart = apart + functional.softplus(self.unstable)[ballot.wanted.long()].unsqueeze(1) * (
            ~ballot.stable
        )
        votes, about = [], []
        for kind in range(KINDS):
            has = (ballot.label >= 0) & (ballot.kind == kind)
            label = ballot.label.clamp(min=0)
            far = apart.masked_fill(~has, FAR)
            blank = torch.zeros(len(elements), self.labels)
            least = torch.full_like(blank, FAR).scatter_reduce(1, label, far, "amin")
            near = (least.gather(1, label) - far).exp() * has
            near = blank.scatter_add(1, label, near)
            known = blank.scatter_add(1, label, has.float()) > 0
            exact = blank.scatter_add(1, label, (same & has).float())
            low = torch.full_like(blank, NEVER)
            like = torch.where(known, near.clamp(min=1e-9).log() - least, low).clamp(min=NEVER)
            best = torch.where(known, -least, low).clamp(min=NEVER)
            # beside the neighbours of the very composition, those of others say the same anyway
            other = far.masked_fill(same, FAR)
            second = torch.full_like(blank, FAR).scatter_reduce(1, label, other, "amin")
            second = torch.where(second < FAR, -second, low).clamp(min=NEVER)
            votes += [like / 4, known.float(), best / 4, exact.clamp(max=3.0), second / 4]
            about += [far.amin(1).clamp(max=20.0) / 4, (same & has).sum(1).clamp(max=3).float()]
        return torch.stack(votes, 2), torch.stack(about, 1)


def _drop(x: Tensor, share: float) -> Tensor:
    return functional.dropout(x, share, training=share > 0)
