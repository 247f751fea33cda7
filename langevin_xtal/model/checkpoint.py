"""Models and their files (see :mod:`langevin_xtal.model.tensor_file`).

A file holds the network's weights (``network.*``), those of the parts that say where chains
start, as far as it has them (``prior.*``, ``ranker.*``, ``proposal.*``, ``settings.*``), the
tables of :class:`~langevin_xtal.model.statistics.Statistics` (``statistics.*``) and one JSON
document with the configurations, the noise levels and the card.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.model.levels import NoiseLevels
from langevin_xtal.model.network import EdgeNetwork, NetworkConfig
from langevin_xtal.model.prior import PriorConfig, WyckoffPrior
from langevin_xtal.model.proposal import Proposal, ProposalConfig
from langevin_xtal.model.ranking import AssignmentRanker, RankerConfig
from langevin_xtal.model.settings import SettingConfig, SettingModel, squared_distances
from langevin_xtal.model.statistics import Statistics
from langevin_xtal.model.structure_types import StructureTypes, TypesConfig
from langevin_xtal.model.tensor_file import compact, read_tensors, weights_hash, write_tensors

MODEL_FORMAT = "langevin-xtal model 3"
OLDER_FORMATS = ("langevin-xtal model 2",)
"""That are read as well; they deflate nothing."""
SUFFIX = ".safetensors"
PROPERTIES_SUFFIX = "-properties.safetensors"
"""Of shipped files of :mod:`langevin_xtal.model.properties`, which are no models to sample."""

ConfigT = TypeVar("ConfigT")

Part = WyckoffPrior | AssignmentRanker | Proposal | SettingModel | StructureTypes
PartConfig = PriorConfig | RankerConfig | ProposalConfig | SettingConfig | TypesConfig

PARTS: dict[str, tuple[type[Part], type[PartConfig]]] = {
    "prior": (WyckoffPrior, PriorConfig),
    "ranker": (AssignmentRanker, RankerConfig),
    "proposal": (Proposal, ProposalConfig),
    "settings": (SettingModel, SettingConfig),
    "types": (StructureTypes, TypesConfig),
}
"""Networks beside the score network: class and configuration of each."""

_REMEMBERING = ("ranker", "settings", "types")
"""Parts that hold a memory of training crystals."""
_LATER = ("settings", "types")
"""Parts that came after 0.5.0: :attr:`CrystalModel.hash` stays what it was without them."""


@dataclass(frozen=True, eq=False)
class CrystalModel:
    """A trained network with everything sampling needs.

    ``hash`` identifies the weights: the first 16 hexadecimal digits of a SHA-256 over them.
    """

    name: str
    network: EdgeNetwork
    levels: NoiseLevels
    statistics: Statistics
    card: Mapping[str, object] = field(default_factory=dict)
    prior: WyckoffPrior | None = None
    """Over the Wyckoff positions of given sites; without it they are free."""
    ranker: AssignmentRanker | None = None
    """Of the assignments of a formula; without it those with few sites come first."""
    proposal: Proposal | None = None
    """Of positions and cell; without it chains start from noise."""
    settings: SettingModel | None = None
    """Of elements, stoichiometries, space groups and cell contents; without it a request must
    name its group."""
    types: StructureTypes | None = None
    """Of training crystals; without them chains start from the proposal alone."""

    @property
    def hash(self) -> str:
        """Identifies the weights; ``settings`` and ``types`` count in :attr:`settings_hash`."""
        tensors = self._part_tensors()
        own = {
            k: v for k, v in tensors.items() if not k.startswith(tuple(f"{p}." for p in _LATER))
        }
        return weights_hash(self.network.state_dict() | own)

    @cached_property
    def settings_hash(self) -> str:
        """Identifies what else decides what is sampled: configurations, levels, statistics.

        The distribution over settings is part of it: it decides open requests alone. Kept beside
        :attr:`hash`, which stays what it was in stores and folders of before.
        """
        settings = _settings(self)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        tables = self.statistics.to_tensors()
        for name in sorted(tables):
            digest.update(name.encode() + np.ascontiguousarray(tables[name], "<f8").tobytes())
        for part in (self.settings, self.types):
            if part is not None:
                digest.update(weights_hash(part.to_tensors()).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def precise_proposal(self) -> Proposal | None:
        """``proposal`` in float64: its draws depend neither on their company nor on the device."""
        if self.proposal is None or self.proposal.group.weight.dtype == torch.float64:
            return self.proposal
        return copy.deepcopy(self.proposal).double()

    @cached_property
    def element_distances(self) -> NDArray[np.float32]:
        """(119, 119) squared, between elements that take each other's sites the more the nearer
        they are."""
        if self.ranker is None:
            raise InputError(
                f"model {self.name} has no ranker, which knows how alike elements are"
            )
        return squared_distances(self.ranker.resemblance())

    def to(self, device: str) -> CrystalModel:
        """With its networks on a device; the host ranks assignments, wherever chains run."""
        if device == "cpu":
            return self
        precise = self.precise_proposal
        return dataclasses.replace(
            self,
            network=copy.deepcopy(self.network).to(device),
            proposal=None if precise is None else copy.deepcopy(precise).to(device),
        )

    def parts(self) -> dict[str, Part]:
        """The networks beside the score network, by the name of their field."""
        found = {name: getattr(self, name) for name in PARTS}
        return {name: part for name, part in found.items() if part is not None}

    def with_parts(self, parts: Mapping[str, Part]) -> CrystalModel:
        """With these parts, by the name of their field."""
        fields: dict[str, Any] = dict(parts)
        return dataclasses.replace(self, **fields)

    def _part_tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}.{k}": v
            for name, part in self.parts().items()
            for k, v in _tensors_of(part).items()
        }

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.network.parameters())
        return f"CrystalModel({self.name}, {weights:,} weights, {self.hash})"


def config_from_dict(kind: type[ConfigT], values: object, where: str) -> ConfigT:
    """A configuration dataclass from untrusted JSON.

    Raises
    ------
    CheckpointError
        Naming unknown keys and values of the wrong type or out of range.
    """
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{where}: expected a table of settings, got {type(values).__name__}"
        )
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise CheckpointError(f"{where}: unknown keys {unknown}; known: {sorted(known)}")
    for name, value in values.items():
        default = known[name].default
        whole = isinstance(default, float) and type(value) is int
        if not whole and type(value) is not type(default):
            raise CheckpointError(f"{where}: {name} = {value!r} should be like {default!r}")
    try:
        return kind(**values)
    except InputError as error:
        raise CheckpointError(f"{where}: {error}") from None


def save_model(path: Path, model: CrystalModel) -> None:
    """Write a model file; numbers that half the bytes hold exactly take no more."""
    tensors = {f"network.{k}": v for k, v in model.network.state_dict().items()}
    tensors |= model._part_tensors()
    tensors = {k: compact(v) for k, v in tensors.items()}
    tables = model.statistics.to_tensors()
    tensors |= {f"statistics.{k}": torch.from_numpy(v) for k, v in tables.items()}
    header = {
        "format": MODEL_FORMAT,
        "name": model.name,
        **_settings(model),
        "card": model.card,
    }
    write_tensors(path, tensors, header, deflate=True)


def _settings(model: CrystalModel) -> dict[str, object]:
    """Configurations and noise levels, as plain values."""
    return {
        "network": dataclasses.asdict(model.network.config),
        "parts": {k: dataclasses.asdict(part.config) for k, part in model.parts().items()},
        "levels": dataclasses.asdict(model.levels),
    }


def load_model(name_or_path: str | Path = "small") -> CrystalModel:
    """A shipped model by name, or one of your own by path.

    Parameters
    ----------
    name_or_path
        A name from :func:`shipped_models`, or the path of a ``.safetensors`` file written by
        ``langevin-xtal train``.

    Raises
    ------
    CheckpointError
        When there is no such model, or the file cannot be used.
    """
    text = str(name_or_path)
    if text in shipped_models():
        inside = resources.files("langevin_xtal.weights").joinpath(text + SUFFIX)
        return _read_model(Path(str(inside)))
    if not os.path.exists(text) and not text.endswith(SUFFIX):
        raise CheckpointError(
            f"model {text!r} is neither shipped ({', '.join(shipped_models()) or 'none'}) nor a "
            "file; give a shipped name or the path of a .safetensors file"
        )
    return _read_model(Path(text))


def shipped_models() -> tuple[str, ...]:
    """Names of the models inside the package."""
    folder = resources.files("langevin_xtal.weights")
    names = (entry.name for entry in folder.iterdir())
    own = (n for n in names if n.endswith(SUFFIX) and not n.endswith(PROPERTIES_SUFFIX))
    return tuple(sorted(n.removesuffix(SUFFIX) for n in own))


def _read_model(path: Path) -> CrystalModel:
    tensors, header = read_tensors(path, MODEL_FORMAT, *OLDER_FORMATS)
    where = f"checkpoint {path}"
    card = header.get("card", {})
    if not isinstance(card, dict):
        raise CheckpointError(f"{where}: the model card should be a table")
    config = config_from_dict(NetworkConfig, header.get("network"), where)
    levels = config_from_dict(NoiseLevels, header.get("levels"), where)
    parts = _part_configs(header.get("parts"), where)
    state = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    try:
        network = EdgeNetwork(config)
        network.load_state_dict(state)
        tables = {
            f.name: tensors[f"statistics.{f.name}"].double().numpy()
            for f in dataclasses.fields(Statistics)
        }
        statistics = Statistics(**tables)
        read = {name: _read_part(name, config, tensors) for name, config in parts.items()}
    except (KeyError, RuntimeError, InputError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{where} does not fit its own configuration ({reason})") from None
    network.eval().requires_grad_(False)
    name = str(header.get("name", path.stem))
    return CrystalModel(name, network, levels, statistics, card).with_parts(read)


def _part_configs(table: object, where: str) -> dict[str, PartConfig]:
    """Configurations of the parts a header names."""
    if not isinstance(table, dict) or not set(table) <= set(PARTS):
        raise CheckpointError(
            f"{where}: its parts should be a table with some of {', '.join(PARTS)}"
        )
    return {
        name: config_from_dict(PARTS[name][1], values, f"{where}, {name}")
        for name, values in table.items()
    }


def _read_part(name: str, config: PartConfig, tensors: Mapping[str, torch.Tensor]) -> Part:
    prefix = f"{name}."
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    kind: Any = PARTS[name][0]  # whose configuration this is
    if name in _REMEMBERING:
        remembering: Part = kind.from_tensors(config, state)
        return remembering
    part: Proposal | WyckoffPrior = kind(config)
    part.load_state_dict(state)
    return part.eval().requires_grad_(False)


def _tensors_of(part: Part) -> dict[str, torch.Tensor]:
    """Weights, and what else a part remembers."""
    if isinstance(part, AssignmentRanker | SettingModel | StructureTypes):
        return part.to_tensors()
    return part.state_dict()
