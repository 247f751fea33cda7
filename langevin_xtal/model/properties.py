"""Properties of a crystal from its multigraph, with error bars.

The trunk is the score network's (:class:`~langevin_xtal.model.network.EdgeNetwork`) without its
last layer. What it says of the edges that leave a site is added up; some members, each with
weights of its own, read that and the element of the site, take the mean over the atoms of the
cell (sites count by their multiplicity) and give for every property a value and an error:

    h_i = m(Σ_e x_e, Z_i),    p = Σ_i M_i h_i / Σ_i M_i,    (μ, log b) = A p + f(p).

A member takes a property for Laplace distributed about μ with width b. The value of all is the
mean of the μ, the variance of it the mean of 2 b² plus the variance of the μ between members.
Error bars are multiplied by a factor that changes with their size, found on crystals held out:
of those with error bars of a size, 68.3 % lie within one.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from langevin_xtal.config.screening import DEFAULT_PROPERTIES
from langevin_xtal.crystal.properties import PROPERTIES
from langevin_xtal.errors import CheckpointError, InputError
from langevin_xtal.graph.batch import GraphBatch
from langevin_xtal.model.checkpoint import (
    MODEL_FORMAT,
    PROPERTIES_SUFFIX,
    SUFFIX,
    config_from_dict,
    shipped_models,
)
from langevin_xtal.model.network import ELEMENTS, EdgeNetwork, NetworkConfig
from langevin_xtal.model.tensor_file import compact, read_tensors, weights_hash, write_tensors

PROPERTIES_FORMAT = "langevin-xtal properties 1"
NEIGHBOURS = 10.0
"""What sums over edges are divided by."""
LEAST_WIDTH = -5.0
"""Of log b, in units of the property's scale."""


RANGES: dict[str, tuple[int, int]] = {
    "width": (1, 1024),
    "element_width": (1, 1024),
    "members": (1, 64),
}
"""What the heads may be: their file is not trusted, and memory is taken on its word."""


@dataclass(frozen=True, kw_only=True)
class PropertyConfig:
    """Size of what reads the trunk."""

    width: int = 64
    """Features of a site and of a crystal."""
    element_width: int = 32
    """Features of an element."""
    members: int = 4
    """Heads whose mean is taken."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value}; it must lie between {low} and {high}")


class _Members(nn.Module):
    """A linear layer of every member: (K or 1, M, in) to (K, M, out)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(members, inputs, outputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class PropertyNetwork(nn.Module):
    """Values and widths of ``count`` properties, by every member, in units of their scales."""

    def __init__(self, network: NetworkConfig, config: PropertyConfig, count: int) -> None:
        super().__init__()
        self.config = config
        k, w, e = config.members, config.width, config.element_width
        self.trunk = EdgeNetwork(network)
        self.trunk.output = nn.Sequential(
            *list(self.trunk.output)[:2]
        )  # not the two numbers per edge
        self.element = nn.Embedding(ELEMENTS, e)
        self.site = _Members(k, network.width + e, w)
        self.site_more = _Members(k, w, w)
        self.crystal = _Members(k, w, w)
        self.straight, self.curved = _Members(k, w, 2 * count), _Members(k, w, 2 * count)

    def start_from(self, network: EdgeNetwork) -> None:
        """Take over the weights of a score network.

        Raises
        ------
        InputError
            When its weights are of other sizes.
        """
        own = self.trunk.state_dict()
        given = {k: v for k, v in network.state_dict().items() if k in own}
        if {k: v.shape for k, v in given.items()} != {k: v.shape for k, v in own.items()}:
            raise InputError(
                f"the trunk {self.trunk.config} cannot start from a network {network.config}"
            )
        self.trunk.load_state_dict(given)

    def forward(self, g: GraphBatch) -> tuple[Tensor, Tensor]:
        """(K, B, P) values μ and log widths log b of a batch of clean crystals."""
        clean = g.volume_per_atom.new_zeros(len(g.volume_per_atom))
        edges = torch.bincount(g.message, minlength=len(g.first_edge))
        messages = self.trunk.messages(g, clean, clean) * edges.unsqueeze(1)
        sums = messages.new_zeros(len(g.numbers), messages.shape[1])
        sums = sums.index_add(0, g.source[g.first_edge], messages) / NEIGHBOURS
        x = torch.cat([sums, self.element(g.numbers)], dim=1).unsqueeze(0)
        x = functional.silu(self.site(x))
        x = x + functional.silu(self.site_more(x))
        share = (
            g.multiplicity
            / torch.zeros_like(clean).index_add(0, g.site_crystal, g.multiplicity)[g.site_crystal]
        )
        pooled = x.new_zeros(x.shape[0], len(clean), x.shape[2])
        pooled = pooled.index_add(1, g.site_crystal, x * share.view(1, -1, 1))
        out = self.straight(pooled) + self.curved(functional.silu(self.crystal(pooled)))
        value, width = out.chunk(2, dim=2)
        return value, width.clamp(min=LEAST_WIDTH)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Properties of B crystals."""

    names: tuple[str, ...]  #: (P,) of :data:`~langevin_xtal.crystal.properties.PROPERTIES`
    value: NDArray[np.float64]  #: (B, P)
    error: NDArray[np.float64]  #: (B, P) standard deviation; NaN where the value is

    def column(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(B,) values and errors of one property."""
        k = self.names.index(name)
        return self.value[:, k], self.error[:, k]


@dataclass(frozen=True)
class Stretch:
    """Factors of error bars by their size, in units of the property's scale."""

    sizes: tuple[float, ...] = (1.0,)  #: (Q,) rising, above 0
    factors: tuple[float, ...] = (1.0,)  #: (Q,) in between by the logarithm of the size

    def of(self, size: NDArray[np.float64]) -> NDArray[np.float64]:
        """(B,) factors of error bars (B,); outside the range, those at its ends."""
        return np.interp(np.log(size), np.log(self.sizes), self.factors)

    @classmethod
    def fitted(
        cls, off: NDArray[np.float64], size: NDArray[np.float64], within: float, bins: int
    ) -> Stretch:
        """So that in each of some parts of equal numbers a share ``within`` is in its error bars.

        Parameters
        ----------
        off, size
            (B,) absolute errors and error bars.
        """
        sizes: list[float] = []
        factors: list[float] = []
        for part in np.array_split(np.argsort(size, kind="stable"), bins):
            sizes.append(max(float(np.median(size[part])), *(1.001 * s for s in sizes[-1:]), 1e-9))
            factors.append(max(float(np.quantile(off[part] / size[part], within)), 1e-3))
        return cls(tuple(sizes), tuple(factors))


@dataclass(frozen=True, eq=False)
class PropertyModel:
    """A fitted network with the scales of its properties."""

    name: str
    network: PropertyNetwork
    names: tuple[str, ...]  #: (P,) of :data:`~langevin_xtal.crystal.properties.PROPERTIES`
    middle: tuple[float, ...]  #: (P,) median of each in the training set
    scale: tuple[float, ...]  #: (P,) mean deviation from it
    stretch: tuple[Stretch, ...]  #: (P,) of error bars
    elements: frozenset[int]  #: atomic numbers in the training set
    card: Mapping[str, object] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits over weights, scales and names."""
        named = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        columns = zip(self.names, self.middle, self.scale, self.stretch, strict=True)
        for name, middle, scale, stretch in columns:
            numbers = [middle, scale, *stretch.sizes, *stretch.factors]
            named[f"scales.{name}"] = torch.tensor(numbers, dtype=torch.float64)
        return weights_hash(named)

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.network.parameters())
        return f"PropertyModel({self.name}: {', '.join(self.names)}; {weights:,} weights)"

    def check(self, name: str) -> None:
        """Raise InputError unless the property is one that the model predicts."""
        if name not in self.names:
            raise InputError(
                f"property {name!r} is not one that model {self.name} predicts; it predicts "
                f"{', '.join(self.names)}"
            )

    @torch.inference_mode()
    def of_batch(self, g: GraphBatch) -> Predictions:
        """Properties of a batch of clean crystals."""
        value, width = self.network(g)
        value, spread = value.double(), (2.0 * (2.0 * width.double()).exp()).mean(0)
        if value.shape[0] > 1:
            spread = spread + value.var(0)
        scale = torch.tensor(self.scale, dtype=torch.float64)
        middle = torch.tensor(self.middle, dtype=torch.float64)
        least = torch.tensor([PROPERTIES[name].least for name in self.names], dtype=torch.float64)
        mean = torch.maximum(middle + scale * value.mean(0), least)
        size = spread.sqrt().numpy()
        factor = np.stack(
            [stretch.of(own) for stretch, own in zip(self.stretch, size.T, strict=True)], axis=1
        )
        return Predictions(self.names, mean.numpy(), scale.numpy() * factor * size)


def save_properties(path: Path, model: PropertyModel) -> None:
    """Write the model to a file of its own.

    Raises
    ------
    CheckpointError
        When the folder is missing or the disk refuses.
    """
    header = {
        "format": PROPERTIES_FORMAT,
        "name": model.name,
        "network": dataclasses.asdict(model.network.trunk.config),
        "heads": dataclasses.asdict(model.network.config),
        "properties": [
            {"name": name, "middle": m, "scale": s, **dataclasses.asdict(t)}
            for name, m, s, t in zip(
                model.names, model.middle, model.scale, model.stretch, strict=True
            )
        ],
        "elements": sorted(model.elements),
        "card": model.card,
    }
    tensors = {f"network.{k}": compact(v) for k, v in model.network.state_dict().items()}
    write_tensors(path, tensors, header)


def shipped_properties() -> tuple[str, ...]:
    """Names of the property models inside the package."""
    names = (entry.name for entry in resources.files("langevin_xtal.weights").iterdir())
    return tuple(sorted(n.removesuffix(SUFFIX) for n in names if n.endswith(PROPERTIES_SUFFIX)))


def load_properties(name_or_path: str | Path = DEFAULT_PROPERTIES) -> PropertyModel:
    """A shipped property model by name, or one of your own by path.

    Raises
    ------
    CheckpointError
        When there is no such model, or the file cannot be used.
    """
    text = str(name_or_path)
    if text in shipped_properties():
        source = resources.files("langevin_xtal.weights").joinpath(text + SUFFIX)
        with resources.as_file(source) as path:
            return _read(path)
    known = f"shipped: {', '.join(shipped_properties()) or 'none'}"
    if text in shipped_models():
        raise CheckpointError(f"the weights {text} have no head for properties ({known})")
    if not os.path.exists(text):
        raise CheckpointError(
            f"property model {text!r} is neither shipped nor a file ({known}); give one of these "
            "or the path of a file that train --recipe mp20-properties wrote"
        )
    return _read(Path(text))


def _read(path: Path) -> PropertyModel:
    try:
        tensors, header = read_tensors(path, PROPERTIES_FORMAT)
    except CheckpointError as error:
        if repr(MODEL_FORMAT) in str(error):
            known = ", ".join(shipped_properties()) or "none"
            raise CheckpointError(
                f"the weights {path} have no head for properties (shipped: {known})"
            ) from None
        raise
    where = f"checkpoint {path}"
    network = config_from_dict(NetworkConfig, header.get("network"), where)
    config = config_from_dict(PropertyConfig, header.get("heads"), where)
    names, middle, scale, stretch = _scales(header.get("properties"), where)
    card = header.get("card", {})
    if not isinstance(card, dict):
        raise CheckpointError(f"{where}: the model card should be a table")
    elements = header.get("elements")
    if not isinstance(elements, list) or not all(
        type(z) is int and 0 < z < ELEMENTS for z in elements
    ):
        raise CheckpointError(f"{where}: its elements should be a list of atomic numbers")
    made = PropertyNetwork(network, config, len(names))
    start = "network."
    try:
        made.load_state_dict({k.removeprefix(start): v.float() for k, v in tensors.items()})
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{where} does not fit its own configuration ({reason})") from None
    made.eval().requires_grad_(False)
    name = str(header.get("name", path.stem))
    return PropertyModel(name, made, names, middle, scale, stretch, frozenset(elements), card)


def _scales(
    table: object, where: str
) -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...], tuple[Stretch, ...]]:
    """Names, medians, scales and factors of error bars of the properties of a header."""
    wanted = ("name", "middle", "scale", "sizes", "factors")
    if not isinstance(table, list) or not table:
        raise CheckpointError(f"{where}: its properties should be a list of tables")
    for values in table:
        if not isinstance(values, dict) or set(values) != set(wanted):
            raise CheckpointError(f"{where}: a property should have {', '.join(wanted)}")
        if values["name"] not in PROPERTIES:
            raise CheckpointError(
                f"{where}: its properties should be some of {', '.join(PROPERTIES)}"
            )
        sizes, factors = values["sizes"], values["factors"]
        if not isinstance(sizes, list) or not isinstance(factors, list) or not sizes:
            raise CheckpointError(f"{where}, {values['name']}: its sizes should be a list")
        above = [values["scale"], *sizes, *factors]
        sound = all(isinstance(v, float) and math.isfinite(v) for v in (values["middle"], *above))
        if not sound or min(above) <= 0 or len(sizes) != len(factors) or sizes != sorted(sizes):
            raise CheckpointError(
                f"{where}, {values['name']}: its scales are no finite numbers above 0, or its "
                "sizes do not rise"
            )
    names = tuple(values["name"] for values in table)
    if len(set(names)) < len(names):
        raise CheckpointError(f"{where}: it has a property twice")
    middle, scale = (tuple(values[w] for values in table) for w in ("middle", "scale"))
    stretch = tuple(Stretch(tuple(v["sizes"]), tuple(v["factors"])) for v in table)
    return names, middle, scale, stretch
