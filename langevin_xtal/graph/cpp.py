"""The multigraph in C++ (``cpp_ext/``), on threads over crystals; the default on the CPU."""

from __future__ import annotations

from langevin_xtal.graph import _multigraph
from langevin_xtal.graph.contract import (
    MARGIN,
    MAX_NEAR,
    CrystalArrays,
    GraphSettings,
    SymmetryMultigraph,
    too_many_near,
)
from langevin_xtal.symmetry.sites import IDENTICAL


def build(
    crystals: CrystalArrays, settings: GraphSettings, threads: int = 0
) -> SymmetryMultigraph:
    """The multigraph of a batch of crystals, on ``threads`` threads (0: all there are)."""
    crystals.check()
    try:
        arrays = _multigraph.build(
            *crystals.in_order(),
            cutoff=settings.cutoff,
            k_min=settings.k_min,
            k_max=settings.k_max,
            all_pairs=settings.all_pairs,
            coincidence=settings.coincidence,
            identical=IDENTICAL,
            margin=MARGIN,
            max_near=float(MAX_NEAR),
            threads=threads,
        )
    except _multigraph.TooManyNearError as error:
        raise too_many_near(*error.args) from None
    return SymmetryMultigraph(**arrays)
