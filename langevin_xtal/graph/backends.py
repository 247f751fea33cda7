"""Which builder makes a multigraph.

``backend`` or the environment variable ``LANGEVIN_XTAL_BACKEND`` wins and must exist; otherwise
the fastest one that imports, C++ or else numba. ``torch`` is for crystals that are on a device
already; ``reference`` is the specification and slow.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module

from langevin_xtal.errors import BackendError
from langevin_xtal.graph.contract import CrystalArrays, GraphSettings, SymmetryMultigraph

Builder = Callable[..., SymmetryMultigraph]

ENVIRONMENT = "LANGEVIN_XTAL_BACKEND"

_MODULES = {
    "cpp": "langevin_xtal.graph.cpp",
    "numba": "langevin_xtal.graph.numba_builder",
    "torch": "langevin_xtal.graph.torch_builder",
    "reference": "langevin_xtal.graph.reference",
}


@cache
def _load(name: str) -> Builder | None:
    """The builder of this name, or None where it cannot be imported."""
    try:
        build: Builder = import_module(_MODULES[name]).build
    except ImportError:
        return None
    return build


@cache
def available() -> tuple[str, ...]:
    """Builders that import here, fastest first."""
    return tuple(name for name in _MODULES if _load(name) is not None)


@cache
def _fallback() -> str:
    """The fastest builder on the CPU; says so once when it is not the C++ one."""
    name = next(name for name in ("cpp", "numba", "reference") if _load(name) is not None)
    if name != "cpp":
        warnings.warn(
            "the C++ multigraph is not built (install with a C++17 compiler); using the "
            f"{name!r} builder, which is slower",
            stacklevel=4,
        )
    return name


def build_multigraph(
    crystals: CrystalArrays,
    settings: GraphSettings,
    backend: str | None = None,
    *,
    threads: int = 0,
) -> SymmetryMultigraph:
    """The multigraph of a batch of crystals.

    Parameters
    ----------
    backend
        ``"reference"``, ``"cpp"``, ``"numba"`` or ``"torch"``; by default the value of
        ``LANGEVIN_XTAL_BACKEND``, else the fastest there is.
    threads
        Threads of the C++ builder, 0 for all there are; the others use one.

    Raises
    ------
    BackendError
        For a backend asked for that is not there.
    """
    name = backend or os.environ.get(ENVIRONMENT) or _fallback()
    build = _load(name) if name in _MODULES else None
    if build is None:
        raise BackendError(
            f"multigraph builder {name!r} is not available here; choose one of "
            f"{', '.join(available())}"
        )
    if name == "cpp":
        return build(crystals, settings, threads=threads)
    return build(crystals, settings)
