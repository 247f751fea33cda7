"""Diffusion models of pictures: a U-Net and a schedule of the library ``diffusers``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from langevin_xtal.baselines.base import Generator, GeneratorFit, Recipe, own_stream, steps_in
from langevin_xtal.extras import require
from langevin_xtal.train.fit import number_in

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LEVELS = 1000
"""Noise levels."""
SAMPLING_STEPS = 50
FOLD = 4
"""Pixels along each side that are folded into channels before the U-Net."""


def _diffusers() -> Any:
    return require("diffusers", "baselines", "a diffusion model of pictures")


class FoldedUnet(nn.Module):
    """A U-Net on pictures whose squares of 4 × 4 pixels are channels; predicts the clean one."""

    def __init__(self, width: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.width, self.shape = width, shape
        channels, size, _ = shape
        self.unet = _diffusers().UNet2DModel(
            sample_size=size // FOLD,
            in_channels=channels * FOLD**2,
            out_channels=channels * FOLD**2,
            layers_per_block=1,
            block_out_channels=(width, 2 * width),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=min(8, width),
            attention_head_dim=min(32, width),
        )

    def forward(self, pictures: Tensor, level: Tensor) -> Tensor:
        """(B, C, S, S) clean pictures of noisy ones, at noise levels (B,)."""
        folded = functional.pixel_unshuffle(pictures, FOLD)
        found: Tensor = self.unet(folded, level).sample
        return functional.pixel_shuffle(found, FOLD)


def schedule() -> Any:
    """The noise levels, for fitting and sampling."""
    return _diffusers().DDIMScheduler(
        num_train_timesteps=LEVELS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
    )


def sampled_pictures(network: FoldedUnet, seed: int, indices: Sequence[int]) -> FloatArray:
    """(B, C, S, S) pictures, each of its own stream of ``seed``, by DDIM, which adds no noise."""
    scheduler = schedule()
    scheduler.set_timesteps(SAMPLING_STEPS)
    noise = [own_stream(seed, k).standard_normal(network.shape) for k in indices]
    now = torch.as_tensor(np.array(noise), dtype=torch.float32)
    with torch.no_grad():
        for level in scheduler.timesteps:
            clean = network(now, level.expand(len(now)))
            now = scheduler.step(clean, level, now).prev_sample
    return np.asarray(now.double().numpy())


class UnetGenerator(Generator):
    """A generator whose network is a U-Net; a subclass says what the pictures are."""

    shape: ClassVar[tuple[int, int, int]]
    """Of a picture: channels and pixels along each side."""
    network: FoldedUnet

    @classmethod
    def unfitted(cls, header: Mapping[str, object]) -> Self:
        """With any weights, as :meth:`header` says."""
        return cls(FoldedUnet(int(number_in(header, "width")), cls.shape))

    def header(self) -> dict[str, object]:
        """The width of the network."""
        return {"width": self.network.width}


class PictureFit(GeneratorFit[IntArray]):
    """The fit of a U-Net; a subclass says what the pictures are."""

    network: FoldedUnet
    mean: FoldedUnet

    def __init__(
        self, network: FoldedUnet, recipe: Recipe, data_hash: str, out: Path | None, crystals: int
    ) -> None:
        self.crystals = crystals
        self.scheduler = schedule()
        total = steps_in(crystals, recipe.batch_size, recipe.epochs)
        super().__init__(
            network, recipe, data_hash, out, rate=recipe.rate, total_steps=total,
            rng=np.random.default_rng(recipe.seed),
        )  # fmt: skip

    @abstractmethod
    def _pictures(self, chosen: IntArray) -> Tensor:
        """(B, C, S, S) of crystals by their places."""

    def _draw(self) -> list[IntArray]:
        return self._shuffled(self.crystals)

    def _loss(self, batch: IntArray) -> tuple[Tensor, Tensor]:
        clean = self._pictures(batch)
        level = torch.randint(0, LEVELS, (len(clean),))
        noise = torch.randn(clean.shape)
        noisy = self.scheduler.add_noise(clean, noise, level)
        loss = functional.mse_loss(self.network(noisy, level), clean)
        return loss, loss.detach()[None].double()
