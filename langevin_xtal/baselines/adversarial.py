"""Wasserstein GANs with a gradient penalty: a maker and a critic, fitted in turns.

After Gulrajani et al., "Improved training of Wasserstein GANs" (2017): the critic raises

    D(real) − D(made) − λ (‖∇D(mixed)‖ − 1)²,   λ = 10,

for points between real and made ones, five times for each step of the maker, which raises
D(made).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from langevin_xtal.baselines.base import GeneratorFit, Recipe

IntArray = NDArray[np.int64]

PENALTY = 10.0
CRITIC_STEPS = 5
"""Of the critic for each of the maker."""


@dataclass(frozen=True, kw_only=True)
class AdversarialRecipe(Recipe):
    """How a maker and its critic are fitted."""

    rate: float = 3e-4
    weight_decay: float = 0.0


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, made: Tensor, share: Tensor
) -> Tensor:
    """Mean of (‖∇D‖ − 1)² at points between real and made ones.

    Parameters
    ----------
    critic
        From points (B, ...) to numbers (B,) or (B, 1).
    real, made
        (B, ...).
    share
        (B,) of the real point in each mixed one, in [0, 1].
    """
    weight = share.reshape(-1, *[1] * (real.dim() - 1))
    mixed = (weight * real + (1 - weight) * made).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    return ((slope.flatten(1).norm(dim=1) - 1.0) ** 2).mean()


class Adversaries(nn.Module):
    """Both networks."""

    def __init__(self, maker: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.maker = maker
        self.critic = critic


class AdversarialFit(GeneratorFit[tuple[bool, IntArray]]):
    """Turns of critic and maker; a subclass says what each sees."""

    losses = ("distance", "penalty", "maker")
    network: Adversaries
    mean: Adversaries

    def __init__(
        self,
        network: Adversaries,
        recipe: Recipe,
        data_hash: str,
        out: Path | None,
        crystals: int,
    ) -> None:
        self.crystals = crystals
        size = recipe.batch_size
        batches = -(-crystals // size)
        per_epoch = batches + -(-batches // CRITIC_STEPS)
        total = per_epoch * recipe.epochs
        super().__init__(
            network, recipe, data_hash, out, rate=recipe.rate, total_steps=total,
            rng=np.random.default_rng(recipe.seed),
        )  # fmt: skip
        # momentum makes two networks that chase each other swing
        for group in self.optimiser.param_groups:
            group["betas"] = (0.0, 0.9)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, recipe.rate, total_steps=total, cycle_momentum=False
        )

    # -- what a subclass says

    @abstractmethod
    def _critic_turn(self, chosen: IntArray) -> tuple[Tensor, Tensor]:
        """How much more the critic gives to real crystals than to made ones, and the penalty."""

    @abstractmethod
    def _maker_turn(self, chosen: IntArray) -> Tensor:
        """What the maker lowers."""

    # -- the engine

    def _draw(self) -> list[tuple[bool, IntArray]]:
        """Batches, with whether the turn is the maker's."""
        batches: list[tuple[bool, IntArray]] = []
        parts = self._shuffled(self.crystals)
        for place, part in enumerate(parts):
            batches.append((False, part))
            if place % CRITIC_STEPS == CRITIC_STEPS - 1 or place == len(parts) - 1:
                batches.append((True, part))
        return batches

    def _loss(self, batch: tuple[bool, IntArray]) -> tuple[Tensor, Tensor]:
        makers, chosen = batch
        # weights without a gradient are left alone by the step
        self.network.maker.requires_grad_(makers)
        self.network.critic.requires_grad_(not makers)
        none = torch.zeros(())
        if makers:
            loss = self._maker_turn(chosen)
            return loss, torch.stack([none, none, loss.detach()]).double()
        distance, penalty = self._critic_turn(chosen)
        sums = torch.stack([distance.detach(), penalty.detach(), none])
        return PENALTY * penalty - distance, sums.double()

    def _epoch_losses(self) -> tuple[float, ...]:
        assert self._order is not None
        makers = sum(turn for turn, _ in self._order)
        counts = [len(self._order) - makers] * 2 + [makers]
        return tuple(s / max(1, n) for s, n in zip(self._sums.tolist(), counts, strict=True))
