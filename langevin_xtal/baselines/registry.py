"""Names of the generators; each module is imported when its generator is asked for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from langevin_xtal.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from langevin_xtal.baselines.base import Generator

GENERATORS = {
    "gemsdiff": "langevin_xtal.baselines.gemsdiff:GemsDiff",
    "pgcgm": "langevin_xtal.baselines.pgcgm:Pgcgm",
    "crystens": "langevin_xtal.baselines.crystens:CrysTensDiffusion",
    "density-slices": "langevin_xtal.baselines.density_slices:DensitySlices",
    "crystens-gan": "langevin_xtal.baselines.crystens:CrysTensGan",
}
"""Name to module and class."""


def generator_class(name: str) -> type[Generator]:
    """The class of a generator.

    Raises
    ------
    InputError
        For a name that is not known.
    """
    if name not in GENERATORS:
        raise InputError(
            f"generator {name!r} is not known; give one of {', '.join(sorted(GENERATORS))}"
        )
    module, _, attribute = GENERATORS[name].partition(":")
    found: type[Generator] = getattr(import_module(module), attribute)
    return found


def load_generator(name: str, weights: Path) -> Generator:
    """A generator with the weights that its fit left in a file.

    Raises
    ------
    InputError
        For a name that is not known.
    CheckpointError
        When the file cannot be read or holds another generator.
    """
    from langevin_xtal.baselines.base import WEIGHTS_FORMAT
    from langevin_xtal.model.tensor_file import read_tensors

    kind = generator_class(name)
    tensors, header = read_tensors(weights, WEIGHTS_FORMAT)
    if header.get("generator") != name:
        raise CheckpointError(
            f"checkpoint {weights} holds the generator {header.get('generator')!r}, not {name!r}"
        )
    try:
        return kind.restored(tensors, header)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"checkpoint {weights} cannot be used ({reason})") from None
