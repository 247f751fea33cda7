"""The symmetry multigraph: contract, builders and the choice between them."""

from langevin_xtal.graph.backends import available, build_multigraph
from langevin_xtal.graph.contract import (
    CrystalArrays,
    GraphSettings,
    SymmetryMultigraph,
    triplets,
)

__all__ = [
    "CrystalArrays",
    "GraphSettings",
    "SymmetryMultigraph",
    "available",
    "build_multigraph",
    "triplets",
]
