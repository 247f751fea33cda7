"""CrysTens: generators of pictures of crystals, a diffusion model and a Wasserstein GAN.

After Alverson et al., "Generative adversarial networks and diffusion models in material
discovery" (2023). The pictures are those of :mod:`~langevin_xtal.baselines.crystens_encoding`;
the diffusion model is a U-Net and a schedule of the library ``diffusers``. What differs from the
paper, and why, is in the documentation (page ``baselines``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from langevin_xtal.baselines.adversarial import (
    AdversarialFit,
    AdversarialRecipe,
    Adversaries,
    gradient_penalty,
)
from langevin_xtal.baselines.base import (
    Generator,
    Given,
    Recipe,
    own_stream,
)
from langevin_xtal.baselines.crystens_encoding import MOST_ATOMS, SIZE, decode, encode
from langevin_xtal.baselines.picture_diffusion import (
    FoldedUnet,
    PictureFit,
    UnetGenerator,
    sampled_pictures,
)
from langevin_xtal.config.tables import from_table
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError
from langevin_xtal.symmetry import SpaceGroup, orbit

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SHAPE = (4, SIZE, SIZE)


@dataclass(frozen=True, kw_only=True)
class PictureDiffusionRecipe(Recipe):
    """How the diffusion model is fitted."""

    rate: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 32
    width: int = 64


@dataclass(frozen=True, kw_only=True)
class PictureGanRecipe(AdversarialRecipe):
    """How the Wasserstein GAN is fitted."""

    batch_size: int = 32
    width: int = 32
    latent: int = 128
    average: float = 0.99


class _Pictures(Generator):
    """What both have in common: pictures of conventional cells with at most 52 atoms."""

    given: ClassVar[Given] = "nothing"
    serves: ClassVar[str] = (
        "requests without conditions (--de-novo), for crystals of at most "
        f"{MOST_ATOMS} atoms in the cell"
    )

    def check(self, request: Request) -> None:
        """Nothing may be asked for."""
        if not request.is_empty or request.groups:
            raise self.refused("takes no conditions")

    def generate(
        self, requests: Sequence[Request], seed: int, indices: Sequence[int]
    ) -> list[Cell | str]:
        """Pictures, decoded."""
        return [_decoded(p) for p in self.pictures(seed, indices)]

    @abstractmethod
    def pictures(self, seed: int, indices: Sequence[int]) -> FloatArray:
        """(B, 4, 64, 64) as they are generated, each from its own stream of ``seed``."""


def _decoded(picture: FloatArray) -> Cell | str:
    try:
        return decode(picture, clustered=True).cell
    except InputError as error:
        return str(error)


def conventional_cells(data: PackedDataset, most_atoms: int) -> tuple[list[Cell], IntArray]:
    """Conventional cells of the crystals with at most so many atoms in them, and (C,) their places
    in the data."""
    small = np.flatnonzero(data.atom_counts <= most_atoms)
    cells = []
    for k in small.tolist():
        own = data.sites_of(k)
        group = SpaceGroup(int(data.group[k]))
        images = [
            orbit(point, group.rotations, group.translations, data.lattice[k])[0]
            for point in data.frac[own]
        ]
        numbers = np.repeat(data.numbers[own], [len(i) for i in images])
        cells.append((data.lattice[k], np.concatenate(images), numbers))
    return cells, small


class PackedPictures:
    """Pictures of packed crystals, drawn when they are needed."""

    def __init__(self, data: PackedDataset, name: str) -> None:
        self.cells, self.places = conventional_cells(data, MOST_ATOMS)
        self.groups = data.group[self.places]
        if not self.cells:
            raise InputError(
                f"no crystal of the data has at most {MOST_ATOMS} atoms in the conventional "
                f"cell; {name} learns from such"
            )

    def batch(self, chosen: IntArray) -> Tensor:
        """(B, 4, 64, 64)."""
        drawn = [encode(self.cells[k], int(self.groups[k])) for k in chosen.tolist()]
        return torch.as_tensor(np.array(drawn), dtype=torch.float32)


# -- diffusion


class CrysTensDiffusion(UnetGenerator, _Pictures):
    """Pictures from noise, by a U-Net."""

    name: ClassVar[str] = "crystens"
    recipe: ClassVar[type[Recipe]] = PictureDiffusionRecipe
    shape: ClassVar[tuple[int, int, int]] = SHAPE

    @classmethod
    def start_fit(
        cls, data: PackedDataset, recipe: Recipe, out: Path | None
    ) -> PictureDiffusionFit:
        """See :class:`~langevin_xtal.baselines.base.Generator`."""
        assert isinstance(recipe, PictureDiffusionRecipe)
        return PictureDiffusionFit(data, recipe, out)

    def pictures(self, seed: int, indices: Sequence[int]) -> FloatArray:
        """From noise, by the U-Net."""
        return sampled_pictures(self.network, seed, indices)


class PictureDiffusionFit(PictureFit):
    """The fit of :class:`CrysTensDiffusion`."""

    def __init__(
        self, data: PackedDataset, recipe: PictureDiffusionRecipe, out: Path | None
    ) -> None:
        torch.manual_seed(recipe.seed)
        network = FoldedUnet(recipe.width, SHAPE)
        self.drawn = PackedPictures(data, "crystens")
        super().__init__(network, recipe, data.content_hash, out, len(self.drawn.cells))
        self.begin()

    def generator(self) -> CrysTensDiffusion:
        """With the mean of the weights."""
        return CrysTensDiffusion(self.mean, {"crystals": self.crystals} | self.card())

    def _pictures(self, chosen: IntArray) -> Tensor:
        return self.drawn.batch(chosen)


# -- Wasserstein GAN


@dataclass(frozen=True)
class PictureGanConfig:
    """Sizes of the networks."""

    width: int
    latent: int


class PictureMaker(nn.Module):
    """From a vector of noise to a picture."""

    def __init__(self, config: PictureGanConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.start = nn.Linear(config.latent, 4 * width * 64)
        self.rest = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1),
            nn.GroupNorm(4, 2 * width),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
            nn.GroupNorm(4, width),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(width, 4, 4, 2, 1),
        )

    def forward(self, noise: Tensor) -> Tensor:
        """(B, 4, 64, 64) of noise (B, latent)."""
        begun = self.start(noise).reshape(len(noise), 4 * self.config.width, 8, 8)
        made: Tensor = self.rest(begun)
        return made


class PictureCritic(nn.Module):
    """From a picture to a number, the larger the more real it looks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rest = nn.Sequential(
            nn.Conv2d(4, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(4 * width * 64, 1),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        """(B,)."""
        judged: Tensor = self.rest(pictures)
        return judged[:, 0]


class CrysTensGan(_Pictures):
    """Pictures in one step."""

    name: ClassVar[str] = "crystens-gan"
    recipe: ClassVar[type[Recipe]] = PictureGanRecipe
    network: PictureMaker

    @classmethod
    def start_fit(cls, data: PackedDataset, recipe: Recipe, out: Path | None) -> PictureGanFit:
        """See :class:`~langevin_xtal.baselines.base.Generator`."""
        assert isinstance(recipe, PictureGanRecipe)
        return PictureGanFit(data, recipe, out)

    @classmethod
    def unfitted(cls, header: Mapping[str, object]) -> Self:
        """With any weights, as :meth:`header` says."""
        return cls(PictureMaker(from_table(PictureGanConfig, header["network"], "network")))

    def header(self) -> dict[str, object]:
        """Sizes of the network."""
        return {"network": asdict(self.network.config)}

    def pictures(self, seed: int, indices: Sequence[int]) -> FloatArray:
        """In one step."""
        latent = self.network.config.latent
        noise = [own_stream(seed, k).standard_normal(latent) for k in indices]
        made = self.network(torch.as_tensor(np.array(noise), dtype=torch.float32))
        return np.asarray(made.double().numpy())


class PictureGanFit(AdversarialFit):
    """The fit of :class:`CrysTensGan`."""

    def __init__(self, data: PackedDataset, recipe: PictureGanRecipe, out: Path | None) -> None:
        torch.manual_seed(recipe.seed)
        self.drawn = PackedPictures(data, "crystens-gan")
        self.latent = recipe.latent
        network = Adversaries(
            PictureMaker(PictureGanConfig(recipe.width, recipe.latent)),
            PictureCritic(recipe.width),
        )
        super().__init__(network, recipe, data.content_hash, out, len(self.drawn.cells))
        self.begin()

    def generator(self) -> CrysTensGan:
        """With the mean of the weights."""
        maker = self.mean.maker
        assert isinstance(maker, PictureMaker)
        return CrysTensGan(maker, {"crystals": len(self.drawn.cells)} | self.card())

    def _made(self, count: int) -> Tensor:
        made: Tensor = self.network.maker(torch.randn(count, self.latent))
        return made

    def _critic_turn(self, chosen: IntArray) -> tuple[Tensor, Tensor]:
        real = self.drawn.batch(chosen)
        with torch.no_grad():
            made = self._made(len(real))
        critic = self.network.critic
        distance = critic(real).mean() - critic(made).mean()
        return distance, gradient_penalty(critic, real, made, torch.rand(len(real)))

    def _maker_turn(self, chosen: IntArray) -> Tensor:
        judged: Tensor = self.network.critic(self._made(len(chosen)))
        return -judged.mean()
