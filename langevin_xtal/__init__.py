"""langevin-xtal: candidate crystals from elements and a space group.

>>> import langevin_xtal as lx
>>> request = lx.Request(space_group=62, sites={"Cu": 2, "Si": 1, "K": 1})
>>> candidates = lx.sample([request] * 4, model=lx.load_model("small"), seed=0)  # doctest: +SKIP

Names are imported when first used, so importing the package is fast and never touches the network.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from langevin_xtal.version import __version__

if TYPE_CHECKING:
    from langevin_xtal.crystal.candidate import Candidate
    from langevin_xtal.crystal.request import Request
    from langevin_xtal.evaluation.protocol import evaluate
    from langevin_xtal.export.vasp import export_vasp
    from langevin_xtal.model.checkpoint import CrystalModel, load_model
    from langevin_xtal.sampling.from_structure import request_from_structure
    from langevin_xtal.sampling.sample import SampleOptions, sample
    from langevin_xtal.sampling.samplers import Ancestral, AnnealedLangevin
    from langevin_xtal.search.campaign import Campaign
    from langevin_xtal.search.entries import read_entries, read_structures
    from langevin_xtal.search.space import SearchSpace
    from langevin_xtal.symmetry.groups import SpaceGroup

_HOMES = {
    "Ancestral": "langevin_xtal.sampling.samplers",
    "AnnealedLangevin": "langevin_xtal.sampling.samplers",
    "Campaign": "langevin_xtal.search.campaign",
    "Candidate": "langevin_xtal.crystal.candidate",
    "Request": "langevin_xtal.crystal.request",
    "CrystalModel": "langevin_xtal.model.checkpoint",
    "SampleOptions": "langevin_xtal.sampling.sample",
    "SearchSpace": "langevin_xtal.search.space",
    "SpaceGroup": "langevin_xtal.symmetry.groups",
    "evaluate": "langevin_xtal.evaluation.protocol",
    "export_vasp": "langevin_xtal.export.vasp",
    "load_model": "langevin_xtal.model.checkpoint",
    "read_entries": "langevin_xtal.search.entries",
    "read_structures": "langevin_xtal.search.entries",
    "request_from_structure": "langevin_xtal.sampling.from_structure",
    "sample": "langevin_xtal.sampling.sample",
}

__all__ = [
    "Ancestral",
    "AnnealedLangevin",
    "Campaign",
    "Candidate",
    "CrystalModel",
    "Request",
    "SampleOptions",
    "SearchSpace",
    "SpaceGroup",
    "__version__",
    "evaluate",
    "export_vasp",
    "load_model",
    "read_entries",
    "read_structures",
    "request_from_structure",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'langevin_xtal' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
