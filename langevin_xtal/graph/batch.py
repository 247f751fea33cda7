"""From a batch of crystals to what the network reads: edges, turned directions, padded rows.

Three additions to the plain multigraph:

* **Snap edges.** Sites within ``snap_radius(σ)`` of a special position are moved there before the
  multigraph is built, so a cluster of coincident images counts as one atom. What was lost, the
  displacement of the site, comes back as one extra edge from the site to the special position,
  flagged as a self-image. It takes part in messages only as a receiver.
* **Messages.** Edges that the stabiliser of their source turns into one another carry the same
  message (:mod:`langevin_xtal.graph.equivalence`), so the network computes it once, on the first
  of them. On MP-20 there are half as many messages as edges.
* **Rows.** The sum over triplets is a small dense product: for every site the edges that leave it
  (up to K) against the messages that arrive, cut into rows of ``ROW`` messages. Only the cosine
  of each pair is stored, never a feature vector per triplet.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from langevin_xtal.graph.backends import build_multigraph
from langevin_xtal.graph.contract import (
    NO_LENGTH,
    CrystalArrays,
    GraphSettings,
)
from langevin_xtal.graph.equivalence import Messages
from langevin_xtal.graph.snapping import Snapped
from langevin_xtal.symmetry.sites import IDENTICAL

ROW = 16
"""Arriving messages in one row of the dense triplet product."""

SNAP_SIGMAS = 3.0
SNAP_LIMIT = 0.6
"""Largest snap displacement [Å]; below it, three standard deviations."""


def snap_radius(sigma: Tensor) -> Tensor:
    """Radius [Å] within which a site noised by ``sigma`` [Å] counts as a special position."""
    return (SNAP_SIGMAS * sigma).clamp(max=SNAP_LIMIT)


@dataclass(frozen=True)
class GraphBatch:
    """What the network reads, on one device.

    E counts multigraph edges, then snap edges; M counts messages, at most as many.
    """

    numbers: Tensor  #: (A,) atomic numbers
    site_crystal: Tensor  #: (A,) crystal of each site
    volume_per_atom: Tensor  #: (B,) [Å^3]
    multiplicity: Tensor  #: (A,) atoms of each site in the cell
    abundance: Tensor  #: (A,) share of the cell's atoms that each site's orbit makes up
    confined: Tensor  #: (B,) bool: crystals whose sites keep their Wyckoff positions
    source: Tensor  #: (E,)
    target: Tensor  #: (E,)
    vec: Tensor  #: (E, 3) from the source to the image [Å]
    dist: Tensor  #: (E,) [Å]
    reach: Tensor  #: (E,) reach of the source [Å]
    is_self_image: Tensor  #: (E,) bool
    is_long_range: Tensor  #: (E,) bool
    is_snap: Tensor  #: (E,) bool
    frac: Tensor  #: (E, 3) from the source to the image, fractional; 0 for snap edges
    message: Tensor  #: (E,) message of each edge
    first_edge: Tensor  #: (M,) the first edge of each message
    out_edge: Tensor  #: (A, K) edges leaving each site and within reach, E where none
    out_message: Tensor  #: (A, K) their messages, M where none
    row_site: Tensor  #: (R,) site at which the messages of a row arrive
    row_edge: Tensor  #: (R, ROW) first edges of arriving messages, E where none
    row_of_message: Tensor  #: (M,) position of each message in ``row_edge.flatten()``
    cosine: Tensor  #: (R, ROW, K) cosine of the angle of each triplet
    is_triplet: Tensor  #: (R, ROW, K) bool: false for padding and exact back-tracking

    def to(self, device: torch.device | str) -> GraphBatch:
        """The same batch on another device."""
        return GraphBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def make_batch(
    numbers: Tensor,
    crystals: CrystalArrays,
    settings: GraphSettings,
    *,
    snapped: Snapped | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> GraphBatch:
    """Build the multigraph of ``crystals`` and lay it out for the network.

    Parameters
    ----------
    numbers
        (A,) atomic numbers.
    crystals
        Crystals whose sites are already snapped.
    snapped
        Where the sites came from; adds the snap edges.
    dtype
        Of the floating-point fields; geometry is computed in float64 before.
    """
    # one thread: building is cheap, and callers run several batches side by side
    graph = build_multigraph(crystals, settings, backend, threads=1)
    tensors = {f.name: torch.from_numpy(getattr(graph, f.name)) for f in fields(graph)}
    given = {f.name: torch.from_numpy(getattr(crystals, f.name)) for f in fields(crystals)}
    inverse = torch.linalg.inv(given["rotations"].double()).round()
    confined = torch.zeros(len(crystals), dtype=torch.bool)
    return lay_out(numbers, given, confined, inverse, tensors, snapped=snapped, dtype=dtype)


def lay_out(
    numbers: Tensor,
    crystals: dict[str, Tensor],
    confined: Tensor,
    inverse: Tensor,
    graph: dict[str, Tensor],
    *,
    snapped: Snapped | None = None,
    messages: Messages | None = None,
    dtype: torch.dtype = torch.float32,
) -> GraphBatch:
    """What the network reads of a multigraph that is there, on the device of the tensors.

    Parameters
    ----------
    crystals, graph
        The fields of :class:`CrystalArrays` and :class:`SymmetryMultigraph` as tensors.
    confined
        (B,) bool: crystals whose sites keep their Wyckoff positions.
    inverse
        (O, 3, 3) inverses of the rotations, float64.
    messages
        From :func:`~langevin_xtal.graph.equivalence.edge_messages`; without them every edge has
        one of its own.
    """
    start, lattice, orbit = crystals["site_start"], crystals["lattice"], crystals["orbit"]
    n_crystals = len(lattice)
    site_crystal = torch.repeat_interleave(
        torch.arange(n_crystals, device=start.device), start.diff(), output_size=len(numbers)
    )
    multiplicity = graph["multiplicity"].double()
    atoms = lattice.new_zeros(n_crystals).index_add(0, site_crystal, multiplicity)
    of_orbit = torch.zeros_like(multiplicity).index_add(0, orbit, multiplicity)
    source, target = graph["edge_index"]
    crystal = site_crystal[source]
    vec = graph["edge_vec"]
    # inv_ex: on a GPU inv waits to see whether it went well
    frac = _times(vec, torch.linalg.inv_ex(lattice).inverse[crystal])
    # R_h⁻¹(−d_e): the way back seen by the stored target
    w = inverse[crystals["op_start"][crystal] + graph["edge_op"]]
    turned = _times(_times(-frac, w.transpose(1, 2)), lattice[crystal])
    edges = {
        "source": source,
        "target": target,
        "vec": vec,
        "frac": frac,
        "turned": turned,
        "is_self_image": graph["edge_is_self_image"],
        "is_long_range": graph["edge_is_long_range"],
    }
    return assemble(
        numbers,
        site_crystal,
        torch.linalg.det(lattice).abs() / atoms.clamp(min=1),
        multiplicity,
        of_orbit[orbit] / atoms[site_crystal],
        graph["site_reach"],
        confined,
        edges,
        None if snapped is None else snapped.displacement,
        dtype,
        messages,
    )


def _times(rows: Tensor, matrices: Tensor) -> Tensor:
    """(N, 3) rows times (N, 3, 3) matrices, term by term: the same bits in any batch."""
    terms = [rows[:, k, None] * matrices[:, k] for k in range(3)]
    return terms[0] + terms[1] + terms[2]


def assemble(
    numbers: Tensor,
    site_crystal: Tensor,
    volume_per_atom: Tensor,
    multiplicity: Tensor,
    abundance: Tensor,
    site_reach: Tensor,
    confined: Tensor,
    edges: dict[str, Tensor],
    displacement: Tensor | None,
    dtype: torch.dtype,
    messages: Messages | None = None,
) -> GraphBatch:
    """Lay out edges, ordered by source, for the network, on the device of the tensors."""
    n_sites, device = len(numbers), numbers.device
    source, target = edges["source"], edges["target"]
    vec, turned, frac = edges["vec"], edges["turned"], edges["frac"]
    self_image, long_range = edges["is_self_image"], edges["is_long_range"]
    snaps = torch.zeros(n_sites, dtype=torch.bool, device=device)
    if displacement is not None:
        snaps = torch.linalg.vector_norm(displacement, dim=1) > 1e-6
    each = torch.arange(len(source), device=device)
    first_edge, message = messages or (each, each)
    leaving = _per_site(source, ~long_range, n_sites)
    coming = _per_site(target[first_edge], None, n_sites) + snaps.long()
    rows = (coming + ROW - 1) // ROW
    # the only sizes that depend on values; a GPU is asked for them once
    n_snaps, width, n_rows = torch.stack([snaps.sum(), _largest(leaving), rows.sum()]).tolist()
    is_snap = torch.zeros_like(long_range)
    if displacement is not None and n_snaps:
        site = _true_places(snaps, n_snaps)
        yes = torch.ones(n_snaps, dtype=torch.bool, device=device)
        source, target = torch.cat([source, site]), torch.cat([target, site])
        vec = torch.cat([vec, -displacement[site]])
        turned = torch.cat([turned, displacement[site]])  # the site itself: identity
        frac = torch.cat([frac, torch.zeros_like(displacement[site])])
        self_image, is_snap = torch.cat([self_image, yes]), torch.cat([is_snap, yes])
        long_range = torch.cat([long_range, ~yes])
        more = torch.arange(n_snaps, device=device)
        message = torch.cat([message, len(first_edge) + more])
        first_edge = torch.cat([first_edge, len(edges["source"]) + more])
    dist = torch.linalg.vector_norm(vec, dim=1)
    given = (source, target, vec, turned, dist, ~(long_range | is_snap), first_edge, message)
    laid_out = None if messages is None else _host_triplets(*given, n_sites)
    if laid_out is None:
        laid_out = _triplets(*given, leaving, coming, rows, max(1, width), n_rows)
    cosine = laid_out.pop("cosine").to(dtype)
    return GraphBatch(
        numbers=numbers,
        site_crystal=site_crystal,
        volume_per_atom=volume_per_atom.to(dtype),
        multiplicity=multiplicity.to(dtype),
        abundance=abundance.to(dtype),
        confined=confined,
        source=source,
        target=target,
        vec=vec.to(dtype),
        dist=dist.to(dtype),
        reach=site_reach[source].to(dtype),
        is_self_image=self_image,
        is_long_range=long_range,
        is_snap=is_snap,
        frac=frac.to(dtype),
        message=message,
        first_edge=first_edge,
        cosine=cosine,
        **laid_out,
    )


def _host_triplets(
    source: Tensor,
    target: Tensor,
    vec: Tensor,
    turned: Tensor,
    dist: Tensor,
    sends: Tensor,
    first_edge: Tensor,
    message: Tensor,
    n_sites: int,
) -> dict[str, Tensor] | None:
    """What :func:`_triplets` finds, by the C++ extension; None where there is none."""
    try:
        from langevin_xtal.graph import _multigraph
    except ImportError:
        return None
    found = _multigraph.lay_out_triplets(
        source.numpy(),
        target.numpy(),
        vec.numpy(),
        turned.numpy(),
        dist.numpy(),
        sends.numpy(),
        first_edge.numpy(),
        message.numpy(),
        sites=n_sites,
        row=ROW,
        identical=IDENTICAL,
        no_length=NO_LENGTH,
    )
    return {name: torch.from_numpy(array) for name, array in found.items()}


def _triplets(
    source: Tensor,
    target: Tensor,
    vec: Tensor,
    turned: Tensor,
    dist: Tensor,
    sends: Tensor,
    first_edge: Tensor,
    message: Tensor,
    leaving: Tensor,
    coming: Tensor,
    rows: Tensor,
    width: int,
    n_rows: int,
) -> dict[str, Tensor]:
    """The fields of :class:`GraphBatch` from ``out_edge`` on, of edges and messages.

    Parameters
    ----------
    turned
        (E, 3) the way back along each edge, seen by its target [Å].
    sends
        (E,) bool: edges that others hear.
    leaving, coming, rows
        (A,) edges that leave, messages that arrive and their rows; at most ``width`` of the first
        and ``n_rows`` of the last in all.
    """
    out_edge = _padded(source, sends, leaving, width)
    out_message = torch.cat([message, message.new_full((1,), len(first_edge))])[out_edge]
    row_site, row_message, row_of_message = _rows(target[first_edge], coming, rows, n_rows)
    row_edge = torch.cat([first_edge, first_edge.new_full((1,), len(source))])[row_message]

    # geometry of every (arriving, leaving) pair, in float64 for the test of back-tracking
    none = vec.new_zeros(1, 3)
    arriving = torch.cat([turned, none])[row_edge]  # (R, ROW, 3)
    going = torch.cat([vec, none])[out_edge][row_site]  # (R, K, 3)
    gap = torch.cdist(arriving, going, compute_mode="donot_use_mm_for_euclid_dist")
    lengths = torch.cat([dist, none[0, :1]])
    product = lengths[row_edge].unsqueeze(2) * lengths[out_edge][row_site].unsqueeze(1)
    cosine = (arriving @ going.transpose(1, 2)) / product.clamp(min=NO_LENGTH)
    cosine = cosine * (product > NO_LENGTH)
    is_triplet = (gap > IDENTICAL) & (row_edge < len(source)).unsqueeze(2)
    is_triplet &= (out_edge < len(source))[row_site].unsqueeze(1)
    return {
        "out_edge": out_edge,
        "out_message": out_message,
        "row_site": row_site,
        "row_edge": row_edge,
        "row_of_message": row_of_message,
        "cosine": cosine.clamp(-1.0, 1.0),
        "is_triplet": is_triplet,
    }


def _per_site(site: Tensor, use: Tensor | None, n_sites: int) -> Tensor:
    """(A,) used edges, or all, at each site. Not from bincount, for which a GPU asks the host."""
    ones = torch.ones_like(site) if use is None else use.long()
    return site.new_zeros(n_sites).scatter_add(0, site, ones)


def _largest(counts: Tensor) -> Tensor:
    """The largest of some counts, 0 where there are none."""
    return torch.cat([counts, counts.new_zeros(1)]).amax()


def _true_places(mask: Tensor, count: int) -> Tensor:
    """The ``count`` places where a mask is true, in order."""
    place = torch.where(mask, mask.cumsum(0) - 1, count)
    found = place.new_empty(count + 1)
    found[place] = torch.arange(len(mask), device=mask.device)
    return found[:count]


def _padded(site: Tensor, use: Tensor, count: Tensor, width: int) -> Tensor:
    """(A, K) indices of the used edges of each site, padded with the number of edges.

    Parameters
    ----------
    site, use
        (E,) the site of each edge, and whether it is used; those used ordered by site.
    count
        (A,) used edges of each site, at most ``width``.
    """
    size = len(count) * width
    slot = use.cumsum(0) - 1 - (torch.cumsum(count, 0) - count)[site]
    place = torch.where(use, site * width + slot, size)  # unused ones go behind the table
    table = site.new_full((size + 1,), len(site))
    table[place] = torch.arange(len(site), device=site.device)
    return table[:size].view(-1, width)


def _rows(
    target: Tensor, count: Tensor, rows: Tensor, n_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Arriving messages of each site in rows of ``ROW``: (R,), (R, ROW), (M,).

    Parameters
    ----------
    target
        (M,) the site at which each message arrives.
    count, rows
        (A,) messages that arrive at each site, and the rows they take; ``n_rows`` in all.
    """
    order = torch.argsort(target, stable=True)
    row_site = torch.repeat_interleave(
        torch.arange(len(rows), device=target.device), rows, output_size=n_rows
    )
    first_row = torch.cumsum(rows, 0) - rows
    own = target[order]
    slot = torch.arange(len(order), device=target.device) - (torch.cumsum(count, 0) - count)[own]
    position = first_row[own] * ROW + slot
    row_message = torch.full((n_rows * ROW,), len(target), device=target.device)
    row_message[position] = order
    row_of_message = torch.empty_like(order)
    row_of_message[order] = position
    return row_site, row_message.view(-1, ROW), row_of_message
