"""The multigraph in torch, batched: for crystals that are on a device already.

No loop over crystals: sites, images and lattice translations are expanded into flat ragged lists,
cut into chunks that bound the memory. The translations within a sphere are found axis by axis from
the triangular factor of the cell, as in ``cpp_ext/``, so little is expanded that is not an edge.
Coordinates are float64 inside. The host waits only for the sizes of the lists.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from math import pi

import torch
from torch import Tensor

from langevin_xtal.graph.contract import (
    MARGIN,
    MAX_NEAR,
    CrystalArrays,
    GraphSettings,
    SymmetryMultigraph,
    too_many_near,
)
from langevin_xtal.symmetry.sites import IDENTICAL

GROWTH = 1.3
"""Growth of the search radius, as in the reference: errors depend on it."""

STEPS = 64
"""Growth steps considered; the last radius is 2e7 cut-offs."""

CHUNK = 4_000_000
"""Rows expanded at once, about; each takes some 200 bytes."""


def build(
    crystals: CrystalArrays, settings: GraphSettings, device: str | torch.device = "cpu"
) -> SymmetryMultigraph:
    """The multigraph of a batch of crystals, made on ``device``."""
    crystals.check()
    inputs = {
        field.name: torch.as_tensor(getattr(crystals, field.name), device=device)
        for field in fields(CrystalArrays)
    }
    tensors = build_tensors(**inputs, settings=settings)
    return SymmetryMultigraph(**{name: value.cpu().numpy() for name, value in tensors.items()})


def build_tensors(
    lattice: Tensor,
    frac: Tensor,
    site_start: Tensor,
    rotations: Tensor,
    translations: Tensor,
    op_start: Tensor,
    op_count: Tensor,
    orbit: Tensor | None,
    settings: GraphSettings,
) -> dict[str, Tensor]:
    """The fields of :class:`SymmetryMultigraph` as tensors, from those of :class:`CrystalArrays`.

    All on one device. The crystals are not checked: cells must be finite and not flat. Without
    ``orbit`` every site is its own.

    Raises
    ------
    GraphError
        A search that may meet more than ``MAX_NEAR`` images.
    """
    lattice, frac = lattice.double(), frac.double()
    site_crystal, _ = _expand(site_start.diff(), len(frac))
    count = op_count[site_crystal]
    rows, lower = _sums(count, count * (count - 1) // 2)
    row, op = _expand(count, rows)
    image = _apply(rotations, translations, op_start[site_crystal[row]] + op, frac[row])
    distinct = _distinct(image, op, lattice, site_crystal[row], lower).nonzero().squeeze(1)
    batch = _Batch.of(
        lattice, frac, site_crystal, image[distinct], row[distinct], op[distinct], orbit, settings
    )
    near, reach, refused = _neighbours(batch, settings)
    parts = [(*near, torch.zeros_like(near.dist, dtype=torch.bool))]
    if settings.all_pairs:
        far, refused_far = _missing_pairs(batch, near, refused, settings)
        refused = refused | refused_far
        parts.append((*far, torch.ones_like(far.dist, dtype=torch.bool)))
    if len(frac) and bool(refused.any()):
        b = int(site_crystal[refused].min())
        step = int(batch.steps[b])
        radius = float(batch.radii[step])
        raise too_many_near(b, radius, float(batch.near_limits()[b, step]))
    site, atom, shift, vec, dist, is_far = (
        torch.cat(column) for column in zip(*parts, strict=True)
    )
    # each (site, atom) has its shifts in order already, and is all near or all far
    order = torch.argsort(site * max(1, len(batch.atom_site)) + atom, stable=True)
    source, target = site[order], batch.atom_site[atom[order]]
    return {
        "edge_index": torch.stack([source, target]),
        "edge_op": batch.atom_op[atom[order]],
        "edge_shift": shift[order],
        "edge_vec": vec[order],
        "edge_dist": dist[order],
        "edge_is_self_image": batch.label[source] == batch.label[target],
        "edge_is_long_range": is_far[order],
        "edge_start": _sorted_starts(source, len(frac)),
        "site_reach": reach,
        "multiplicity": _sorted_starts(batch.atom_site, len(frac)).diff(),
    }


class _Images(tuple[Tensor, ...]):
    """Images near sites: (site, atom, shift (N, 3), vector (N, 3) [Å], distance [Å])."""

    __slots__ = ()

    @classmethod
    def cat(cls, parts: list[_Images], device: torch.device) -> _Images:
        """All of several lists."""
        whole = torch.zeros(0, dtype=torch.int64, device=device)
        real = torch.zeros(0, dtype=torch.float64, device=device)
        none = cls((whole, whole, whole.reshape(0, 3), real.reshape(0, 3), real))
        return cls(torch.cat(column) for column in zip(none, *parts, strict=True))

    @property
    def dist(self) -> Tensor:
        return self[4]

    def where(self, mask: Tensor) -> _Images:
        """The ones with ``mask``."""
        index = mask.nonzero().squeeze(1)
        return _Images(column[index] for column in self)


def _expand(counts: Tensor, total: int | None = None) -> tuple[Tensor, Tensor]:
    """For ``counts`` rows of each parent: the parent of each row, and its place among them."""
    if total is None:
        (total,) = _sums(counts)
    parents = torch.arange(len(counts), device=counts.device)
    parent = torch.repeat_interleave(parents, counts, output_size=total)
    first = counts.cumsum(0) - counts
    return parent, torch.arange(total, device=counts.device) - first[parent]


def _sums(*counts: Tensor) -> list[int]:
    """Sums of several tensors of whole numbers, asked from the device at once."""
    sums: list[int] = torch.stack([c.sum() for c in counts]).tolist()
    return sums


def _sorted_starts(group: Tensor, groups: int) -> Tensor:
    """(groups + 1,) offsets of the groups of rows that are sorted by group.

    Not from bincount, for which a GPU asks the host.
    """
    return torch.searchsorted(group, torch.arange(groups + 1, device=group.device))


def _chunks(weights: Tensor, total: int) -> list[slice]:
    """Slices of the rows, whose weights add up to ``total``, of about ``CHUNK`` each."""
    if not len(weights):
        return []
    if total <= CHUNK:
        return [slice(0, len(weights))]
    before = weights.cumsum(0) - weights
    marks = torch.arange(0, total, CHUNK, device=weights.device, dtype=before.dtype)
    ends = torch.unique(torch.searchsorted(before, marks, right=False)).tolist()
    ends = sorted({0, *ends, len(weights)})
    return [slice(low, high) for low, high in pairwise(ends)]


def _apply(rotations: Tensor, translations: Tensor, op: Tensor, point: Tensor) -> Tensor:
    """(N, 3) images W x + w, one operation for each point."""
    turned = (rotations.double()[op] * point[:, None, :]).sum(2)
    return turned + translations.double()[op]


def _cartesian(frac: Tensor, lattice: Tensor, crystal: Tensor) -> Tensor:
    """(N, 3) Cartesian vectors of fractional ones, each in its own cell."""
    return (frac[:, :, None] * lattice[crystal]).sum(1)


def _distinct(image: Tensor, op: Tensor, lattice: Tensor, crystal: Tensor, total: int) -> Tensor:
    """(N,) whether no kept image of a lower operation is the same atom; rows by site, then op.

    ``total`` is the sum of ``op``.
    """
    pairs = []
    wide = IDENTICAL * (1.0 + 1e-9) / _cell(lattice)[2][:, 0]
    chunks = _chunks(op, total)
    for rows in chunks:  # each image against those of lower operations, which precede it
        late, lower = _expand(op[rows], total if len(chunks) == 1 else None)
        late += rows.start
        early = late - op[late] + lower
        along = image[late, 0] - image[early, 0]  # most pairs are far apart along a already
        close = ((along - along.round()).abs() <= wide[crystal[late]]).nonzero().squeeze(1)
        late, early = late[close], early[close]
        delta = image[late] - image[early]
        delta -= delta.round()
        same = _cartesian(delta, lattice, crystal[late]).norm(dim=1) <= IDENTICAL
        pairs.append((late, early, same))
    kept = torch.ones_like(op, dtype=torch.bool)
    if not pairs:
        return kept
    late, early, same = (torch.cat(column) for column in zip(*pairs, strict=True))
    # the images that are settled grow with every pass; the first settles all of most crystals
    while True:
        kept = _without_later(kept, late, early, same)
        again = _without_later(kept, late, early, same)
        if torch.equal(kept, again):
            return kept
        kept = again


def _without_later(kept: Tensor, late: Tensor, early: Tensor, same: Tensor) -> Tensor:
    """(N,) rows that are not the same as an earlier one which is kept."""
    dropped = torch.zeros_like(kept, dtype=torch.int32)
    dropped.index_add_(0, late, (kept[early] & same).to(torch.int32))
    return dropped == 0


@dataclass(frozen=True)
class _Batch:
    """Crystals prepared for searching: A sites, N atoms (distinct images), L orbits."""

    lattice: Tensor  #: (B, 3, 3)
    frac: Tensor  #: (A, 3)
    site_crystal: Tensor  #: (A,)
    atom_frac: Tensor  #: (N, 3)
    atom_site: Tensor  #: (N,)
    atom_op: Tensor  #: (N,)
    label: Tensor  #: (A,) orbits numbered by crystal, then label
    label_crystal: Tensor  #: (L,)
    atom_start: Tensor  #: (B + 1,)
    factor: Tensor  #: (B, 6) aa, ab, ac, bb, bc, cc of the triangular factor
    volume: Tensor  #: (B,)
    inverse_height: Tensor  #: (B, 3)
    radii: Tensor  #: (STEPS,) the radii the reference tries
    steps: Tensor  #: (B,) how many of them are allowed

    @classmethod
    def of(
        cls,
        lattice: Tensor,
        frac: Tensor,
        site_crystal: Tensor,
        atom_frac: Tensor,
        atom_site: Tensor,
        atom_op: Tensor,
        orbit: Tensor | None,
        settings: GraphSettings,
    ) -> _Batch:
        """Everything that depends on the cells and the orbits only."""
        a, b, c = lattice.unbind(1)
        face, volume, height = _cell(lattice)
        area = volume[:, None] / height
        cc = c.norm(dim=1)
        ab = (a * _cross(c, face[:, 0])).sum(1) / (cc * area[:, 0])
        columns = [volume / area[:, 0], ab, (a * c).sum(1) / cc]
        columns += [area[:, 0] / cc, (b * c).sum(1) / cc, cc]
        label, label_crystal = torch.arange(len(frac), device=frac.device), site_crystal
        if orbit is not None:
            values, number = torch.unique(orbit, return_inverse=True)
            key = site_crystal * max(1, len(values)) + number
            keys, label = torch.unique(key, return_inverse=True)
            label_crystal = keys.div(max(1, len(values)), rounding_mode="floor")
        growth = torch.full((STEPS,), GROWTH, dtype=torch.float64, device=lattice.device)
        growth[0].fill_(settings.cutoff)
        batch = cls(
            lattice=lattice,
            frac=frac,
            site_crystal=site_crystal,
            atom_frac=atom_frac,
            atom_site=atom_site,
            atom_op=atom_op,
            label=label,
            label_crystal=label_crystal,
            atom_start=_sorted_starts(site_crystal[atom_site], len(lattice)),
            factor=torch.stack(columns, dim=1),
            volume=volume,
            inverse_height=1.0 / height,
            radii=growth.cumprod(0),
            steps=torch.zeros(0),
        )
        allowed = batch.near_limits() <= MAX_NEAR
        object.__setattr__(batch, "steps", allowed.long().cumprod(1).sum(1))
        return batch

    def near_limits(self) -> Tensor:
        """(B, STEPS) what the contract compares with ``MAX_NEAR``, for every radius."""
        reach = 2.0 * self.radii.view(1, -1, 1) * self.inverse_height.unsqueeze(1)
        cells = torch.floor(reach + 1e-9) + 1.0
        return self.atom_start.diff().unsqueeze(1) * cells.prod(2)

    def images_within(
        self, site: Tensor, atom: Tensor, radius: Tensor, coincidence: float
    ) -> tuple[Tensor, _Images]:
        """Images of atoms within a radius of sites, of (P,) pairs; the pair of each, and they.

        Ordered by pair, then shift.
        """
        crystal = self.site_crystal[site]
        delta = self.atom_frac[atom] - self.frac[site]
        aa, ab, ac, bb, bc, cc = self.factor[crystal].unbind(1)
        # the slack keeps images at the rim that rounding would lose; the last test is exact
        r2 = radius * radius * (1.0 + 1e-12)
        p, n_a = _integers(-delta[:, 0], r2.sqrt() / aa)
        a = delta[p, 0] + n_a
        rest = r2[p] - (a * aa[p]) ** 2
        middle = -(a * ab[p] / bb[p] + delta[p, 1])
        q, n_b = _integers(middle, rest.clamp(min=0.0).sqrt() / bb[p])
        p, n_a, a, rest = p[q], n_a[q], a[q], rest[q]
        b = delta[p, 1] + n_b
        rest = rest - (a * ab[p] + b * bb[p]) ** 2
        middle = -((a * ac[p] + b * bc[p]) / cc[p] + delta[p, 2])
        q, n_c = _integers(middle, rest.clamp(min=0.0).sqrt() / cc[p])
        p, a, b = p[q], a[q], b[q]
        c = delta[p, 2] + n_c
        vec = _cartesian(torch.stack([a, b, c], dim=1), self.lattice, crystal[p])
        dist = vec.norm(dim=1)
        own = self.label[self.atom_site[atom]] == self.label[site]
        keep = (dist < radius[p]) & ~(own[p] & (dist < coincidence))
        keep = keep.nonzero().squeeze(1)
        q, p = q[keep], p[keep]
        shift = torch.stack([n_a[q], n_b[q], n_c[keep]], dim=1)
        return p, _Images((site[p], atom[p], shift, vec[keep], dist[keep]))


def _cell(lattice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, 3) vectors b × c, c × a, a × b, (B,) volume [Å^3] and (B, 3) heights [Å]."""
    a, b, c = lattice.unbind(1)
    face = torch.stack([_cross(b, c), _cross(c, a), _cross(a, b)], dim=1)
    volume = (a * face[:, 0]).sum(1).abs()
    return face, volume, volume[:, None] / face.norm(dim=2)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.linalg.cross(u, v, dim=1)


def _integers(middle: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """All integers within ``reach`` of ``middle``: the row of each, and they."""
    low = torch.ceil(middle - reach).long()
    high = torch.floor(middle + reach).long()
    row, place = _expand((high - low + 1).clamp(min=0))
    return row, low[row] + place


@dataclass(frozen=True)
class _Shells:
    """Distances of images, sorted within each of n groups, and where their shells end."""

    distance: Tensor  #: (N,) sorted by group, then distance
    start: Tensor  #: (n + 1,)
    group: Tensor  #: (N,)
    rank: Tensor  #: (N,) place in the group
    is_end: Tensor  #: (N,) a shell ends before this image

    @classmethod
    def of(cls, group: Tensor, distance: Tensor, groups: int) -> _Shells:
        """From unsorted images."""
        order = torch.argsort(distance)
        order = order[torch.argsort(group[order], stable=True)]
        group, distance = group[order], distance[order]
        start = _sorted_starts(group, groups)
        rank = torch.arange(len(group), device=group.device) - start[group]
        gap = torch.zeros_like(distance)
        gap[1:] = distance.diff()
        return cls(distance, start, group, rank, (rank > 0) & (gap > IDENTICAL))

    @property
    def size(self) -> Tensor:
        """(n,) images in each group."""
        return self.start.diff()

    def last_end(self, most: int) -> Tensor:
        """(n,) images in whole shells, as many as fit in ``most``; 0 where none does."""
        counted = torch.where(self.is_end & (self.rank <= most), self.rank, 0)
        return torch.zeros_like(self.start[1:]).scatter_reduce(0, self.group, counted, "amax")

    def first_end(self, least: int) -> Tensor:
        """(n,) images in whole shells that are at least ``least``; the size where unknown."""
        counted = torch.where(self.is_end & (self.rank >= least), self.rank, self.size[self.group])
        return self.size.scatter_reduce(0, self.group, counted, "amin")

    def at(self, rank: Tensor) -> Tensor:
        """(n,) distance of the image at ``rank`` in each group; the last where there is none."""
        padded = torch.cat([self.distance, self.distance.new_zeros(1)])
        return padded[torch.minimum(self.start[:-1] + rank, self.start[1:] - 1)]


def _neighbours(batch: _Batch, settings: GraphSettings) -> tuple[_Images, Tensor, Tensor]:
    """Rule 2: neighbours of all sites, (A,) reach, and (A,) whether refused."""
    cutoff, edge = settings.cutoff, settings.cutoff - MARGIN
    sites = len(batch.frac)
    device = batch.frac.device
    reach = torch.full((sites,), cutoff, dtype=torch.float64, device=device)
    steps = batch.steps[batch.site_crystal]
    refused = steps == 0
    per_cell = batch.atom_start.diff().double()
    density = (per_cell / batch.volume)[batch.site_crystal]
    # With k_max binding, the cut-off may hold far more images than are wanted: begin with a
    # sphere that holds about the number needed to be sure.
    wanted = 1.4 * max(settings.k_max, 0) + 8.0
    radius = (0.75 * wanted / (pi * density)) ** (1.0 / 3.0)
    radius = torch.where(radius < 0.9 * cutoff, radius, cutoff)
    step = torch.zeros_like(steps)
    todo = (~refused).nonzero().squeeze(1)
    found: list[_Images] = []
    while len(todo):
        later = []
        inside_sphere = density[todo] * 4.2 * radius[todo] ** 3
        weight = (per_cell[batch.site_crystal[todo]] + 2.0 * inside_sphere).long()
        atoms = batch.atom_start.diff()[batch.site_crystal[todo]]
        total, rows = _sums(weight, atoms)
        chunks = _chunks(weight, total)
        for part in chunks:
            own = todo[part]
            first = batch.atom_start[batch.site_crystal[own]]
            group, place = _expand(atoms[part], rows if len(chunks) == 1 else None)
            pair, images = batch.images_within(
                own[group], first[group] + place, radius[own][group], settings.coincidence
            )
            group = group[pair]
            shells = _Shells.of(group, images.dist, len(own))
            is_inside = (images.dist < edge).to(torch.int64)
            inside = torch.zeros_like(own).index_add_(0, group, is_inside)
            over = inside > settings.k_max
            whole = radius[own] >= cutoff
            fitting = shells.last_end(settings.k_max)
            beyond = shells.first_end(max(settings.k_max + 1, 1))
            enough = shells.first_end(max(settings.k_min, 1))
            count = torch.where(over, torch.where(fitting > 0, fitting, beyond), enough)
            at_shell = (over | whole) & (count < shells.size)
            all_inside = whole & ~over & (inside >= settings.k_min)
            outer = shells.at(count)
            limit = 0.5 * (shells.at((count - 1).clamp(min=0)) + outer)
            limit = torch.where(all_inside, edge, torch.where(at_shell, limit, -1.0))
            found.append(images.where(images.dist < limit[group]))
            changed = torch.where(over, outer.clamp(max=cutoff), outer.clamp(min=cutoff))
            reach[own] = torch.where(at_shell & ~all_inside, changed, cutoff)
            later.append(~(at_shell | all_inside))
        again = torch.cat(later)
        small = radius[todo] < cutoff
        step[todo] += (again & ~small).to(step.dtype)
        grown = torch.where(radius[todo] * 1.25 < 0.9 * cutoff, radius[todo] * 1.25, cutoff)
        grown = torch.where(small, grown, batch.radii[step[todo].clamp(max=STEPS - 1)])
        radius[todo] = grown
        out = again & (step[todo] >= steps[todo])
        refused[todo] = out
        todo = todo[(again & ~out).nonzero().squeeze(1)]
    return _Images.cat(found, device), reach, refused


def _missing_pairs(
    batch: _Batch, near: _Images, refused: Tensor, settings: GraphSettings
) -> tuple[_Images, Tensor]:
    """Rule 3: nearest shells of the orbits without a neighbour, and (A,) whether refused."""
    device = batch.frac.device
    crystals = len(batch.lattice)
    label_start = _sorted_starts(batch.label_crystal, crystals)
    site, place = _expand(label_start.diff()[batch.site_crystal])
    offset = torch.searchsorted(site, torch.arange(len(batch.frac), device=device))
    label = label_start[batch.site_crystal[site]] + place
    missing = ~refused[site]
    near_label = batch.label[batch.atom_site[near[1]]]
    seen = offset[near[0]] + near_label - label_start[batch.site_crystal[near[0]]]
    missing.index_fill_(0, seen, 0)
    missing = missing.nonzero().squeeze(1)
    site, label = site[missing], label[missing]

    atom_label, by_label = torch.sort(batch.label[batch.atom_site], stable=True)
    atom_start = _sorted_starts(atom_label, len(batch.label_crystal))
    # the reference grows its search until the shell is certain, unless that is refused
    last_allowed = batch.radii[(batch.steps - 1).clamp(min=0)]
    refused = torch.zeros_like(refused, dtype=torch.int32)
    slack = 2.0 * IDENTICAL
    found: list[_Images] = []
    while len(site):
        later = []
        atoms = atom_start[label + 1] - atom_start[label]
        (rows,) = _sums(atoms)
        chunks = _chunks(8 * atoms, 8 * rows)
        for part in chunks:
            of_site, of_label = site[part], label[part]
            group, place = _expand(atoms[part], rows if len(chunks) == 1 else None)
            atom = by_label[atom_start[of_label][group] + place]
            bound = _distance_bound(batch, of_site[group], atom, settings.coincidence)
            radius = torch.full_like(of_site, torch.inf, dtype=torch.float64)
            radius = radius.scatter_reduce(0, group, bound, "amin") + slack
            pair, images = batch.images_within(
                of_site[group], atom, radius[group], settings.coincidence
            )
            group = group[pair]
            shells = _Shells.of(group, images.dist, len(of_site))
            some = shells.size > 0
            end = torch.where(some, shells.at((shells.first_end(1) - 1).clamp(min=0)), 0.0)
            out = ~(end + IDENTICAL < last_allowed[batch.site_crystal[of_site]])
            refused.index_add_(0, of_site, out.to(refused.dtype))
            certain = some & (end + IDENTICAL < radius) & ~out
            limit = torch.where(certain, end + 0.5 * IDENTICAL, -1.0)
            found.append(images.where(images.dist < limit[group]))
            later.append(~certain & ~out)
        again = torch.cat(later).nonzero().squeeze(1)
        site, label = site[again], label[again]
        slack *= 2.0
    return _Images.cat(found, device), refused > 0


def _distance_bound(batch: _Batch, site: Tensor, atom: Tensor, coincidence: float) -> Tensor:
    """(P,) some image of each atom that counts for the site is no further than this [Å]."""
    crystal = batch.site_crystal[site]
    delta = batch.atom_frac[atom] - batch.frac[site]
    distance = _cartesian(delta - delta.round(), batch.lattice, crystal).norm(dim=1)
    shortest = batch.lattice.norm(dim=2).amin(dim=1)[crystal]
    past = distance + shortest * torch.ceil((coincidence + distance) / shortest)
    own = batch.label[batch.atom_site[atom]] == batch.label[site]
    return torch.where(own & (distance < coincidence), past, distance)
