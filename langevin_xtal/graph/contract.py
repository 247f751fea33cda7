"""The symmetry multigraph: what every builder takes and returns.

Nodes are the sites of asymmetric units. A directed edge ``e`` goes from site ``i`` to one image
``W x_j + w + n`` of site ``j`` (an operation of the group, a lattice vector), within reach of
``i``; there may be many between the same two sites, and from a site to its own images.

Which edges there are, for each site ``i`` of a crystal
    1. Images of a site closer to each other than 0.001 Å are one atom: one edge, carried by the
       lowest operation. Images of ``i`` itself closer than ``coincidence`` carry no edge.
    2. Distances are grouped into shells (a gap above 0.001 Å starts a new one). All images within
       ``cutoff``, by more than ``MARGIN`` so that rounding never decides, are neighbours; when
       they are fewer than ``k_min``, whole shells beyond are added until there are enough; when
       they are more than ``k_max``, only the nearest whole shells with at most ``k_max`` images
       in all are kept (at least one shell). Shells are never cut, so ties never break symmetry.
       ``site_reach`` is the cut-off, or the distance of the first shell left out where the rule
       changed it: a weight that vanishes there is continuous.
    3. With ``all_pairs``, every ordered pair of sites without an edge gets those to its nearest
       shell of images, whatever the distance, flagged ``edge_is_long_range``.

Triplets pair an edge ``e = i → h(j)`` with an edge ``f = j → k`` that is not long-range, except
where the end of ``h(f)`` is the origin of ``e`` (exact back-tracking). The angle at ``h(j)`` is
the one between ``−d_e`` and ``R_h d_f``, with ``R_h`` the Cartesian rotation of the edge's
operation.

Builders that implement this: :mod:`~langevin_xtal.graph.reference` (the specification),
``cpp``, ``numba`` and ``torch``; choose with :func:`langevin_xtal.graph.build_multigraph`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.errors import GraphError, InputError, LatticeError
from langevin_xtal.symmetry.groups import operation_table
from langevin_xtal.symmetry.sites import IDENTICAL

if TYPE_CHECKING:
    import torch

    from langevin_xtal.graph.pyg import MultigraphData

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

MAX_IMAGES = 100_000
"""Distinct images in one crystal's cell, past which builders refuse."""

MAX_NEAR = 2_000_000
"""Images that the search around one site may meet, past which builders refuse.

Counted before searching, as the distinct images in the cell times ``Π (⌊2 r / height⌋ + 1)``, the
most lattice translations that a sphere of radius r can hold; the search begins with the cut-off.
"""

NO_LENGTH = 1e-8
"""Edges of atoms at one place have no direction: their angles count as right ones [Å^2]."""

MIN_VOLUME = 1e-3
"""Smallest cell volume accepted [Å^3]."""

MAX_FRAC = 1e6
"""Fractional coordinates must be smaller than this: beyond, rounding moves the atom."""

MARGIN = 1e-6
"""An image this little within the cut-off, or beyond it, is not within it [Å].

Cell lengths are often round numbers, and so are cut-offs: without a margin the last bit of a
distance would say which of several equivalent images are neighbours.
"""


@dataclass(frozen=True, kw_only=True)
class GraphSettings:
    """Which images are neighbours."""

    cutoff: float = 6.0
    """Reach of a site with an ordinary number of neighbours [Å]."""
    k_min: int = 12
    """Reach further when a site has fewer neighbours than this."""
    k_max: int = 24
    """Keep only whole shells that fit in this many neighbours."""
    all_pairs: bool = True
    """Keep the nearest image shell of every ordered pair of sites."""
    coincidence: float = 0.15
    """Images of a site closer to it than this carry no edge [Å]."""

    def __post_init__(self) -> None:
        if not 0.0 < self.cutoff < np.inf:
            raise InputError(f"cutoff must be positive and finite [Å]. Got {self.cutoff}")
        if not IDENTICAL <= self.coincidence < np.inf:
            raise InputError(
                f"coincidence must be finite and at least {IDENTICAL} Å. Got {self.coincidence}"
            )


@dataclass(frozen=True)
class CrystalArrays:
    """A batch of crystals as flat arrays: A sites, B crystals, O operations in one table.

    Crystal ``b`` owns sites ``site_start[b] : site_start[b + 1]`` and operations
    ``op_start[b] : op_start[b] + op_count[b]``; crystals of one group share their operations.
    """

    lattice: FloatArray  #: (B, 3, 3) rows a, b, c [Å]
    frac: FloatArray  #: (A, 3) fractional coordinates
    site_start: IntArray  #: (B + 1,)
    rotations: IntArray  #: (O, 3, 3)
    translations: FloatArray  #: (O, 3) fractions
    op_start: IntArray  #: (B,)
    op_count: IntArray  #: (B,)
    orbit: IntArray  #: (A,) sites with equal labels are images of one another (P1 cells)

    @classmethod
    def of_groups(
        cls, lattice: FloatArray, frac: FloatArray, site_start: IntArray, groups: IntArray
    ) -> CrystalArrays:
        """Crystals in conventional cells of the space groups with these numbers, (B,)."""
        table = operation_table()
        groups = np.asarray(groups, dtype=np.int64)
        return cls(
            lattice=np.ascontiguousarray(lattice, dtype=float),
            frac=np.ascontiguousarray(frac, dtype=float),
            site_start=np.asarray(site_start, dtype=np.int64),
            rotations=table.rotations,
            translations=table.translations24 / 24.0,
            op_start=table.start[groups - 1],
            op_count=table.start[groups] - table.start[groups - 1],
            orbit=np.arange(len(frac), dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.lattice)

    def in_order(self) -> tuple[FloatArray | IntArray, ...]:
        """All arrays, as the C++ extension takes them."""
        return tuple(getattr(self, f.name) for f in fields(self))

    def operations(self, b: int) -> tuple[IntArray, FloatArray]:
        """(G, 3, 3) and (G, 3): the operations of crystal ``b``."""
        own = slice(self.op_start[b], self.op_start[b] + self.op_count[b])
        return self.rotations[own], self.translations[own]

    def check(self) -> None:
        """Refuse what no builder can handle.

        Raises
        ------
        LatticeError
            A cell that is not finite or has less than ``MIN_VOLUME``.
        GraphError
            A crystal that could exceed ``MAX_IMAGES``.
        InputError
            A site whose coordinates are not finite or not below ``MAX_FRAC``.
        """
        with np.errstate(invalid="ignore"):
            volume = np.abs(np.linalg.det(self.lattice))
        bad = ~np.isfinite(volume) | (volume < MIN_VOLUME)
        if bad.any():
            b = int(np.flatnonzero(bad)[0])
            raise LatticeError(
                f"crystal {b} has a cell volume of {volume[b]:.3g} Å^3; it must be finite and at "
                f"least {MIN_VOLUME} Å^3"
            )
        lost = ~(np.abs(self.frac) < MAX_FRAC).all(axis=1)
        if lost.any():
            i = int(np.flatnonzero(lost)[0])
            raise InputError(
                f"site {i} is at fractional coordinates {self.frac[i]}; they must be finite and "
                f"below {MAX_FRAC:.0e}"
            )
        images = np.diff(self.site_start) * self.op_count
        if (images > MAX_IMAGES).any():
            b = int(np.argmax(images))
            raise GraphError(
                f"crystal {b} has {images[b]} site images; multigraphs take at most {MAX_IMAGES}"
            )


def too_many_near(crystal: int, radius: float, near: float) -> GraphError:
    """The error for a search of ``radius`` [Å] that may meet more than ``MAX_NEAR`` images."""
    return GraphError(
        f"crystal {crystal} may have {near:.3g} images within {radius:.3g} Å of a site; "
        f"multigraphs search among at most {MAX_NEAR}: its cell is too small, thin or oblique"
    )


@dataclass(frozen=True)
class SymmetryMultigraph:
    """Edges and triplets of a batch of crystals; see the module head for what they are.

    Edges are ordered by source, then target, operation and shift, so crystals are contiguous and
    the edges leaving one site are too.
    """

    edge_index: IntArray  #: (2, E) source and target site
    edge_op: IntArray  #: (E,) operation of the target's image, within the crystal's own list
    edge_shift: IntArray  #: (E, 3) lattice vector n: the image is at W x_j + w + n
    edge_vec: FloatArray  #: (E, 3) from the source to the image [Å]
    edge_dist: FloatArray  #: (E,) [Å]
    edge_is_self_image: BoolArray  #: (E,) the target is an image of the source's own orbit
    edge_is_long_range: BoolArray  #: (E,) beyond reach, kept by ``all_pairs``
    edge_start: IntArray  #: (A + 1,) edges leaving site i are ``edge_start[i] : edge_start[i+1]``
    site_reach: FloatArray  #: (A,) [Å]
    multiplicity: IntArray  #: (A,) distinct images of each site in the cell

    def __repr__(self) -> str:
        return (
            f"SymmetryMultigraph(sites={len(self.site_reach)}, edges={len(self.edge_dist)}, "
            f"long-range={int(self.edge_is_long_range.sum())})"
        )

    def to_pyg(
        self,
        crystals: CrystalArrays,
        numbers: IntArray | None = None,
        *,
        with_triplets: bool = True,
        dtype: torch.dtype | None = None,
    ) -> list[MultigraphData]:
        """The multigraph of each crystal as torch-geometric data; needs the extra ``[pyg]``.

        Parameters
        ----------
        crystals
            B crystals that the multigraph was built from.
        numbers
            (A,) atomic numbers, for the field ``z``.
        with_triplets
            Whether triplets and the cosines between their edges are added.
        dtype
            Of the floating-point fields; by default torch's.

        Returns
        -------
        list of MultigraphData
            One of each crystal; :class:`~langevin_xtal.graph.pyg.MultigraphData` has the fields.

        Raises
        ------
        MissingPackageError
            Where torch-geometric is not installed.
        InputError
            For crystals or numbers of another number of sites.
        """
        import torch

        from langevin_xtal.graph.pyg import to_pyg

        kind = torch.get_default_dtype() if dtype is None else dtype
        return to_pyg(self, crystals, numbers, with_triplets=with_triplets, dtype=kind)


def edge_rotations(graph: SymmetryMultigraph, crystals: CrystalArrays) -> FloatArray:
    """(E, 3, 3) Cartesian matrices R_h of the edges' operations, for column vectors."""
    crystal = np.searchsorted(crystals.site_start, graph.edge_index[0], side="right") - 1
    w = crystals.rotations[crystals.op_start[crystal] + graph.edge_op].astype(float)
    lattice_t = np.swapaxes(crystals.lattice, 1, 2)
    return lattice_t[crystal] @ w @ np.linalg.inv(lattice_t)[crystal]


def triplets(graph: SymmetryMultigraph, crystals: CrystalArrays) -> tuple[IntArray, FloatArray]:
    """All pairs (e, f) of an edge and an edge leaving its target, and the cosine between them.

    Returns
    -------
    triplet_index
        (2, T) indices of e = i → h(j) and f = j → k, ordered by e, then f.
    cosine
        (T,) cosine of the angle at h(j), between −d_e and R_h d_f; 0 where either has no length.
    """
    target = graph.edge_index[1]
    count = graph.edge_start[target + 1] - graph.edge_start[target]
    e = np.repeat(np.arange(len(target)), count)
    f = np.arange(len(e)) - np.repeat(np.cumsum(count) - count, count)
    f += np.repeat(graph.edge_start[target], count)
    near = ~graph.edge_is_long_range[f]
    e, f = e[near], f[near]
    turned = np.einsum("tij,tj->ti", edge_rotations(graph, crystals)[e], graph.edge_vec[f])
    forward = np.linalg.norm(graph.edge_vec[e] + turned, axis=1) > IDENTICAL
    e, f, turned = e[forward], f[forward], turned[forward]
    lengths = graph.edge_dist[e] * graph.edge_dist[f]
    dot = -np.einsum("ti,ti->t", graph.edge_vec[e], turned)
    cosine = np.divide(dot, lengths, out=np.zeros_like(dot), where=lengths > NO_LENGTH)
    return np.stack([e, f]), np.clip(cosine, -1.0, 1.0)
