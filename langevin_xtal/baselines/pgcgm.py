"""PGCGM: a Wasserstein GAN of sites that the operations of a space group expand.

After Zhao et al., "Physics guided deep learning for generative design of crystal materials with
symmetry constraints" (2023). A maker is given noise, three elements and one of twenty space
groups, and gives a site of each element, three times over, and the lengths of the cell; a critic
judges them by what follows from them. What differs from the paper, and why, is in the
documentation (page ``baselines``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from langevin_xtal.baselines.adversarial import (
    AdversarialFit,
    AdversarialRecipe,
    Adversaries,
    gradient_penalty,
)
from langevin_xtal.baselines.base import Generator, Given, Recipe, own_stream
from langevin_xtal.config.tables import from_table
from langevin_xtal.crystal.asymmetric import MIN_DISTANCE
from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.distances import min_distance
from langevin_xtal.crystal.elements import atomic_number
from langevin_xtal.crystal.request import Request
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import InputError
from langevin_xtal.model.prior import covalent_radii, element_features, element_rank
from langevin_xtal.sampling.postprocess import contains_group
from langevin_xtal.symmetry import SpaceGroup, cell_directions, orbit

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

GROUPS = (62, 63, 71, 122, 123, 129, 139, 140, 141, 148, 164, 166, 167, 186, 191, 194, 216, 221,
          225, 227)  # fmt: skip
"""The twenty of the paper."""
ELEMENTS = 3
SETS = 3
"""Of sites, any of which stands for the crystal."""
MOST_OPERATIONS = 192
NEAR, FAR = 0.7, 1.6
"""Distances between different elements of a set, in sums of covalent radii, that are not
punished."""
APART = 3.0
"""The same for one element in two sets, which may be the same atom: only far ones are punished."""
DISTANCE_WEIGHT, FULL_WEIGHT, BASE_WEIGHT = 1.0, 0.5, 0.1
MERGE = 0.5
"""Atoms of an element nearer than this in sums of covalent radii are one atom."""
_SHIFTS = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)


@dataclass(frozen=True, kw_only=True)
class PgcgmRecipe(AdversarialRecipe):
    """How PGCGM is fitted."""

    epochs: int = 60
    width: int = 256
    latent: int = 64
    average: float = 0.99


@dataclass(frozen=True)
class PgcgmConfig:
    """Sizes of both networks, and the mean and deviation of logarithms of lengths [Å]."""

    width: int
    latent: int
    mean: float
    deviation: float


# -- tables


@cache
def _operations() -> tuple[Tensor, Tensor, Tensor]:
    """(20, 192, 3, 3) rotations, (20, 192, 3) translations, and (20, 192) shares of a mean."""
    rotations = torch.zeros(len(GROUPS), MOST_OPERATIONS, 3, 3)
    translations = torch.zeros(len(GROUPS), MOST_OPERATIONS, 3)
    share = torch.zeros(len(GROUPS), MOST_OPERATIONS)
    for place, number in enumerate(GROUPS):
        group = SpaceGroup(number)
        rotations[place, : group.order] = torch.as_tensor(group.rotations, dtype=torch.float32)
        translations[place, : group.order] = torch.as_tensor(
            group.translations, dtype=torch.float32
        )
        share[place, : group.order] = 1.0 / group.order
    return rotations, translations, share


@cache
def _directions() -> Tensor:
    """(20, 3, 3) unit vectors along the cell's axes."""
    found = np.array([cell_directions(number) for number in GROUPS])
    return torch.as_tensor(found, dtype=torch.float32)


@cache
def _radii() -> Tensor:
    return torch.as_tensor(covalent_radii(), dtype=torch.float32)


# -- what follows from sites


def averaged_sites(sites: Tensor, group: Tensor) -> Tensor:
    """Mean over all images of each site, which is the same for every site of an orbit.

    Parameters
    ----------
    sites
        (B, S, 3, 3) fractional coordinates of sets of three sites.
    group
        (B,) places in :data:`GROUPS`.

    Returns
    -------
    Tensor
        (B, S, 3, 3).
    """
    rotations, translations, share = (table[group] for table in _operations())
    images = torch.einsum("bgij,bsej->bgsei", rotations, sites)
    images = images + translations[:, :, None, None]
    # an image at 1 − 1e-7 is one at 0
    images = images - torch.floor(images.detach() + 1e-4)
    return (images * share[:, :, None, None, None]).sum(1)


def set_distances(sites: Tensor, lattice: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S, 3) distances between elements of a set, and (B, 3, 3) between sets of an element.

    Each is that of the nearest images, as far as the shortest step in fractions shows it [Å].
    """
    first, second = [0, 0, 1], [1, 2, 2]
    within = sites[:, :, first] - sites[:, :, second]
    between = (sites[:, first] - sites[:, second]).transpose(1, 2)
    lengths = []
    for step in (within, between):
        short = step - torch.round(step.detach())
        cart = torch.einsum("bsei,bij->bsej", short, lattice)
        lengths.append((cart.square().sum(-1) + 1e-8).sqrt())
    return lengths[0], lengths[1]


def judged(sites: Tensor, lengths: Tensor, group: Tensor) -> Tensor:
    """(B, D) what the critic sees of B crystals beside elements and group.

    Parameters
    ----------
    sites
        (B, 3, 3, 3): sets, elements, fractional coordinates.
    lengths
        (B, 3) of the conventional cell [Å].
    group
        (B,) places in :data:`GROUPS`.
    """
    lattice = lengths[:, :, None] * _directions()[group]
    within, between = set_distances(sites, lattice)
    cart = torch.einsum("bsei,bij->bsej", sites, lattice)
    volume = torch.linalg.det(lattice)
    return torch.cat(
        [
            sites.flatten(1),
            averaged_sites(sites, group).flatten(1),
            cart.flatten(1) / 5.0,
            lengths / 5.0,
            volume.abs().clamp(min=1e-6).log()[:, None] / 3.0,
            within.flatten(1) / 3.0,
            between.flatten(1) / 3.0,
        ],
        dim=1,
    )


def distance_loss(within: Tensor, between: Tensor, numbers: Tensor) -> Tensor:
    """Squares of how much too near or too far atoms are [Å^2], averaged.

    Parameters
    ----------
    within, between
        (B, 3, 3) what :func:`set_distances` gave.
    numbers
        (B, 3) atomic numbers.
    """
    radii = _radii()[numbers]
    sums = radii[:, [0, 0, 1]] + radii[:, [1, 2, 2]]
    near = (NEAR * sums[:, None] - within).clamp(min=0)
    far = (within - FAR * sums[:, None]).clamp(min=0)
    apart = (between - 2 * APART * radii[:, :, None]).clamp(min=0)
    return near.square().mean() + far.square().mean() + apart.square().mean()


def coordinate_losses(sites: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """How much the averaged sites of the sets differ, and how much the sets are alike.

    Cosines of coordinates normalised across the batch; of the sets the first ought to be 0, as
    they stand for one crystal, and the second, as they should not be one set three times.
    """
    found = []
    for points in (averaged_sites(sites, group), sites):
        flat = points.flatten(2)
        flat = (flat - flat.mean((0, 1))) / (flat.std((0, 1)) + 1e-3)
        pairs = [
            torch.nn.functional.cosine_similarity(flat[:, i], flat[:, j], dim=1)
            for i, j in ((0, 1), (1, 2), (0, 2))
        ]
        found.append(torch.stack(pairs))
    return (1.0 - found[0]).mean(), found[1].clamp(min=0).mean()


# -- networks


class SiteMaker(nn.Module):
    """From noise, elements and group to sites and lengths."""

    def __init__(self, config: PgcgmConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.group = nn.Embedding(len(GROUPS), 32)
        given = config.latent + ELEMENTS * element_features().shape[1] + 32
        self.rest = nn.Sequential(
            nn.Linear(given, width),
            nn.LayerNorm(width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, SETS * ELEMENTS * 3 + 3),
        )

    def forward(self, noise: Tensor, numbers: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 3, 3) sites in (0, 1) and (B, 3) lengths [Å].

        Parameters
        ----------
        noise
            (B, latent).
        numbers
            (B, 3) atomic numbers.
        group
            (B,) places in :data:`GROUPS`.
        """
        given = torch.cat(
            [noise, element_features()[numbers].flatten(1), self.group(group)], dim=1
        )
        made = self.rest(given)
        # a little beyond both ends, so that 0 and 1 can be reached
        sites = 1.1 * torch.sigmoid(made[:, :-3]) - 0.05
        lengths = self.config.mean + self.config.deviation * made[:, -3:].clamp(-4, 4)
        return sites.reshape(-1, SETS, ELEMENTS, 3), _alike(lengths, group).exp()


def _alike(lengths: Tensor, group: Tensor) -> Tensor:
    """Lengths averaged over the axes that the crystal system makes equal."""
    return torch.einsum("bi,bij->bj", lengths, _equal_axes()[group])


@cache
def _equal_axes() -> Tensor:
    """(20, 3, 3) means over equal axes."""
    tables = []
    for number in GROUPS:
        if number >= 195:
            table = torch.full((3, 3), 1 / 3)
        elif number >= 75:
            table = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]])
        else:
            table = torch.eye(3)
        tables.append(table)
    return torch.stack(tables)


class SiteCritic(nn.Module):
    """From what follows from sites, elements and group to a number."""

    def __init__(self, config: PgcgmConfig, seen: int) -> None:
        super().__init__()
        width = config.width
        self.group = nn.Embedding(len(GROUPS), 32)
        self.rest = nn.Sequential(
            nn.Linear(seen + ELEMENTS * element_features().shape[1] + 32, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Linear(width, 1),
        )

    def forward(self, seen: Tensor, numbers: Tensor, group: Tensor) -> Tensor:
        """(B,)."""
        given = torch.cat([seen, element_features()[numbers].flatten(1), self.group(group)], dim=1)
        judgement: Tensor = self.rest(given)
        return judgement[:, 0]


# -- from sites to a crystal


def merged_images(
    site: FloatArray, group: SpaceGroup, lattice: FloatArray, reach: float
) -> FloatArray:
    """(M, 3) atoms of a site: all its images, those nearer than ``reach`` [Å] made one.

    Images are clustered by average linkage of their distances, periodic ones included, and each
    cluster becomes its mean. On an exact special position this gives the orbit.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    images = group.rotations @ site + group.translations
    images = images - np.floor(images)
    step = images[:, None] - images
    step -= np.rint(step)
    paths = step[:, :, None] + _SHIFTS
    lengths = np.linalg.norm(paths @ lattice, axis=-1)
    best = lengths.argmin(axis=2)
    distance = np.take_along_axis(lengths, best[..., None], axis=2)[..., 0]
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0.0)
    if len(images) == 1:
        return images
    label = fcluster(linkage(squareform(distance, checks=False), "average"), reach, "distance")
    atoms = []
    for cluster in np.unique(label):
        own = np.flatnonzero(label == cluster)
        # from the first of them along the shortest ways, so that 0.99 and 0.01 meet at 0
        ways = [step[k, own[0]] + _SHIFTS[best[k, own[0]]] for k in own]
        atoms.append(images[own[0]] + np.mean(ways, axis=0))
    found = np.array(atoms)
    return np.asarray(found - np.floor(found))


def crystal_of(
    sites: FloatArray, lengths: FloatArray, numbers: IntArray, number: int
) -> Cell | str:
    """The conventional cell of sites (3, 3) of elements (3,) and lengths (3,) [Å], or why there
    is none: merging must leave atoms that have the symmetry of the group."""
    group = SpaceGroup(number)
    lattice = np.asarray(lengths[:, None] * cell_directions(number))
    radii = covalent_radii()
    frac, atoms = [], []
    for site, z in zip(sites, numbers.tolist(), strict=True):
        found = merged_images(site, group, lattice, 2 * MERGE * float(radii[z]))
        frac.append(found)
        atoms.append(np.full(len(found), z))
    cell = lattice, np.concatenate(frac), np.concatenate(atoms)
    if min_distance(lattice, cell[1]) < MIN_DISTANCE:
        return f"overlap: atoms closer than {MIN_DISTANCE} Å"
    if not contains_group(*cell, group):
        return "merged: the atoms that are left do not have the symmetry of the group"
    return cell


def prototypes(candidates: Iterable[Candidate]) -> list[tuple[str, int, int]]:
    """Reduced formula, space group and number of atoms of each candidate: what the paper counts
    as one crystal, for its diversity and the share of known crystals that are found again."""
    return [
        (c.structure.composition.reduced_formula, c.space_group.number, len(c.atom_site))
        for c in candidates
    ]


# -- the generator


class Pgcgm(Generator):
    """Three elements and a space group to a crystal."""

    name: ClassVar[str] = "pgcgm"
    given: ClassVar[Given] = "elements"
    serves: ClassVar[str] = "three elements and one of the space groups " + ", ".join(
        map(str, GROUPS)
    )
    recipe: ClassVar[type[Recipe]] = PgcgmRecipe
    network: SiteMaker

    @classmethod
    def start_fit(cls, data: PackedDataset, recipe: Recipe, out: Path | None) -> PgcgmFit:
        """See :class:`~langevin_xtal.baselines.base.Generator`."""
        assert isinstance(recipe, PgcgmRecipe)
        return PgcgmFit(data, recipe, out)

    @classmethod
    def unfitted(cls, header: Mapping[str, object]) -> Self:
        """With any weights, as :meth:`header` says."""
        return cls(SiteMaker(from_table(PgcgmConfig, header["network"], "network")))

    def header(self) -> dict[str, object]:
        """Sizes of the network and the scale of lengths."""
        return {"network": asdict(self.network.config)}

    def check(self, request: Request) -> None:
        """Three elements without a stoichiometry, and one of the groups."""
        if request.formula is not None:
            raise self.refused("takes no composition")
        if len(request.chemical_system) != ELEMENTS:
            raise self.refused(f"got {len(request.chemical_system)} elements")
        if request.space_group is None:
            raise self.refused("needs a space group")
        if request.space_group.number not in GROUPS:
            raise self.refused(f"does not know group {request.space_group}")
        if request.lattice is not None:
            raise self.refused("takes no cell")

    def generate(
        self, requests: Sequence[Request], seed: int, indices: Sequence[int]
    ) -> list[Cell | str]:
        """The first of the three sets of sites, expanded and merged."""
        latent = self.network.config.latent
        noise = np.array([own_stream(seed, k).standard_normal(latent) for k in indices])
        numbers = np.array([_ordered(map(atomic_number, r.chemical_system)) for r in requests])
        group = np.array([GROUPS.index(r.space_group.number) for r in requests])
        sites, lengths = self.network(
            torch.as_tensor(noise, dtype=torch.float32),
            torch.from_numpy(numbers),
            torch.from_numpy(group),
        )
        return [
            crystal_of(
                sites[k, 0].double().numpy(), lengths[k].double().numpy(), numbers[k], GROUPS[g]
            )
            for k, g in enumerate(group.tolist())
        ]


def _ordered(numbers: Iterable[int]) -> list[int]:
    """Elements in the order of their Mendeleev numbers, so that like ones share a place."""
    return sorted(numbers, key=lambda z: int(element_rank()[z]))


@dataclass(frozen=True, eq=False)
class _Ternary:
    """A training crystal: the atoms of each of its three elements."""

    group: int  #: place in GROUPS
    numbers: list[int]
    lattice: FloatArray
    atoms: list[FloatArray]  #: of each element (M, 3)


def ternaries(data: PackedDataset) -> list[_Ternary]:
    """Crystals of three elements with one site each, in one of the groups."""
    found = []
    for k in np.flatnonzero(np.isin(data.group, GROUPS) & (data.site_counts == ELEMENTS)):
        own = data.sites_of(int(k))
        numbers = data.numbers[own].tolist()
        if len(set(numbers)) < ELEMENTS:
            continue
        group, lattice = SpaceGroup(int(data.group[k])), data.lattice[k]
        order = _ordered(numbers)
        points = [data.frac[own][numbers.index(z)] for z in order]
        atoms = [orbit(p, group.rotations, group.translations, lattice)[0] for p in points]
        atoms = [a - np.floor(a + 1e-9) for a in atoms]
        found.append(_Ternary(GROUPS.index(group.number), order, lattice, atoms))
    return found


def near_set(crystal: _Ternary, rng: np.random.Generator) -> FloatArray:
    """(3, 3) an atom of each element: any of a first, the nearest of a second, and of the third
    the one with the smallest sum of distances to both."""
    order = rng.permutation(ELEMENTS)
    chosen = np.empty((ELEMENTS, 3))
    atoms = crystal.atoms[order[0]]
    chosen[order[0]] = atoms[rng.integers(len(atoms))]
    before = [order[0]]
    for element in order[1:]:
        atoms = crystal.atoms[element]
        total = np.zeros(len(atoms))
        for other in before:
            step = atoms - chosen[other]
            total += np.linalg.norm((step - np.rint(step)) @ crystal.lattice, axis=1)
        chosen[element] = atoms[total.argmin()]
        before.append(element)
    return chosen


class PgcgmFit(AdversarialFit):
    """The fit of :class:`Pgcgm`."""

    def __init__(self, data: PackedDataset, recipe: PgcgmRecipe, out: Path | None) -> None:
        torch.manual_seed(recipe.seed)
        self.known = ternaries(data)
        if not self.known:
            raise InputError(
                "no crystal of the data has three elements with one site each in one of the "
                f"groups {', '.join(map(str, GROUPS))}; pgcgm learns from such"
            )
        self.lengths = np.array([np.linalg.norm(c.lattice, axis=1) for c in self.known])
        logs = np.log(self.lengths)
        config = PgcgmConfig(
            recipe.width, recipe.latent, float(logs.mean()), max(float(logs.std()), 1e-3)
        )
        self.latent = recipe.latent
        none = (
            torch.zeros(1, SETS, ELEMENTS, 3),
            torch.ones(1, 3),
            torch.zeros(1, dtype=torch.long),
        )
        network = Adversaries(SiteMaker(config), SiteCritic(config, judged(*none).shape[1]))
        super().__init__(network, recipe, data.content_hash, out, len(self.known))
        self.begin()

    def generator(self) -> Pgcgm:
        """With the mean of the weights."""
        maker = self.mean.maker
        assert isinstance(maker, SiteMaker)
        return Pgcgm(maker, {"crystals": len(self.known)} | self.card())

    def _given(self, chosen: IntArray) -> tuple[Tensor, Tensor]:
        numbers = torch.tensor([self.known[k].numbers for k in chosen.tolist()])
        return numbers, torch.tensor([self.known[k].group for k in chosen.tolist()])

    def _critic_turn(self, chosen: IntArray) -> tuple[Tensor, Tensor]:
        assert self.rng is not None
        rng = self.rng
        numbers, group = self._given(chosen)
        sets = [[near_set(self.known[k], rng) for _ in range(SETS)] for k in chosen.tolist()]
        sites = torch.as_tensor(np.array(sets), dtype=torch.float32)
        lengths = torch.as_tensor(self.lengths[chosen], dtype=torch.float32)
        real = judged(sites, lengths, group)
        with torch.no_grad():
            noise = torch.randn(len(chosen), self.latent)
            drawn, sizes = self.network.maker(noise, numbers, group)
            made = judged(drawn, sizes, group)
        critic = self.network.critic

        def of(seen: Tensor) -> Tensor:
            found: Tensor = critic(seen, numbers, group)
            return found

        distance = of(real).mean() - of(made).mean()
        return distance, gradient_penalty(of, real, made, torch.rand(len(chosen)))

    def _maker_turn(self, chosen: IntArray) -> Tensor:
        numbers, group = self._given(chosen)
        noise = torch.randn(len(chosen), self.latent)
        sites, lengths = self.network.maker(noise, numbers, group)
        within, between = set_distances(sites, lengths[:, :, None] * _directions()[group])
        same, alike = coordinate_losses(sites, group)
        judgement: Tensor = self.network.critic(judged(sites, lengths, group), numbers, group)
        return (
            -judgement.mean()
            + DISTANCE_WEIGHT * distance_loss(within, between, numbers)
            + FULL_WEIGHT * same
            + BASE_WEIGHT * alike
        )
