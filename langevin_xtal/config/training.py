"""How the score network is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from langevin_xtal.config.fields import check, preset, setting
from langevin_xtal.config.sampling import LatticeEstimate

Target = Literal["orbit", "plain"]
NoiseName = Literal["default", "paper"]
Precision = Literal["float32", "tf32", "bf16"]
Size = Literal["small", "base"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Options of ``langevin-xtal train`` for the score network.

    :meth:`langevin_xtal.train.loop.TrainConfig.of` makes what training takes of it.
    """

    size: Size = setting("small", choices=("small", "base"))
    steps: int = setting(
        20_000,
        "Of the score network; 0 keeps that of --init and fits only where chains start.",
        low=0,
    )
    batch_size: int = setting(32, "Crystals in a step.", low=1)
    learning_rate: float = setting(
        1e-3,
        "Peak rate of Adam; warmed up linearly, then a cosine to 1 % of it.",
        above=0.0,
    )
    target: Target = setting(
        "orbit",
        "Noise averaged over equivalent images, or as in the paper.",
        choices=("orbit", "plain"),
    )
    noise: NoiseName = setting(
        "default",
        "Range of the noise levels: positions 2 to 0.03 Å, or as in the paper, 6 to 0.03 Å.",
        choices=("default", "paper"),
    )
    lattice_estimate: LatticeEstimate = setting(
        "least_squares",
        "How the changes of all edges make that of the cell in the loss: least_squares; mean: of "
        "the smallest change that each edge asks for, as the paper.",
        choices=("least_squares", "mean"),
    )
    precision: Precision = setting(
        "float32",
        "Of the network's matrix products; tf32 on CUDA only.",
        choices=("float32", "tf32", "bf16"),
    )
    log_every: int = setting(100, "Steps averaged in one row of the log.", low=1)
    validate_every: int = setting(
        2000, "Steps between validations of the averaged weights.", low=1
    )
    save_every: int = setting(500, "Steps between saves.", low=1)

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TrainingConfig:
        """A preset of :data:`TRAINING_PRESETS`, with changes."""
        return preset(cls, TRAINING_PRESETS, name, **changes)


TRAINING_PRESETS: Mapping[str, Mapping[str, object]] = {
    "default": {},
    "paper": {
        "learning_rate": 2e-4,
        "target": "plain",
        "noise": "paper",
        "lattice_estimate": "mean",
    },
}
"""``paper``: as Sultanov et al. 2023, but for the network's size."""


@dataclass(frozen=True, kw_only=True)
class EpochsConfig:
    """Epochs of the parts that say where chains start; with 0 a part is that of ``--init``."""

    prior: int = setting(20, "Epochs of the prior over Wyckoff positions.", low=0)
    ranker: int = setting(6, "Epochs of the ranker of assignments.", low=0)
    settings: int = setting(
        5,
        "Of the distribution over space groups, cell contents and stoichiometries.",
        low=0,
    )
    proposal: int = setting(
        40,
        "Epochs of each network of the proposal of coordinates. As the others it is fitted after "
        "the last step; with 0 that of --init is kept.",
        low=0,
    )
    types: int = setting(
        1, "1 gathers the structure types of the data; 0 keeps those of --init.", low=0, high=1
    )
    members: int = setting(1, "Proposals fitted, of which the mean is used.", low=1, high=16)
    settings_members: int = setting(
        1, "Distributions over settings fitted, of which the mean is used.", low=1, high=16
    )

    def members_of(self, part: str) -> int:
        """Networks of a part."""
        return {"proposal": self.members, "settings": self.settings_members}.get(part, 1)

    def __post_init__(self) -> None:
        check(self)
