"""What a model has to beat: structures that need no model, to print beside its own.

Controls of structure prediction give ids ``<target id>__<trial>`` and list what they could not
make as missing, so that their match rates have the model's denominator.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from langevin_xtal.crystal.asymmetric import AsymmetricUnit
from langevin_xtal.crystal.cell import Cell
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.dataset.packed import PackedDataset
from langevin_xtal.errors import DataError, InputError
from langevin_xtal.evaluation.structures import Missing, StructureSet
from langevin_xtal.evaluation.targets import Progress, Target, check_trials, trial_id
from langevin_xtal.model.known import MOST_ELEMENTS, KnownCrystals, nearest, ordered, reduced
from langevin_xtal.model.prior import element_properties
from langevin_xtal.parallel import parallel_map
from langevin_xtal.symmetry import wrap
from langevin_xtal.train.settings import known_crystals

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

PULL_TO_MEAN = 0.01
"""Weight of the mean volume, against 1 for a crystal of one element."""

ALL_GROUPS = range(1, 231)

Made = tuple[int, Cell] | str
"""A space-group number and a primitive cell, or why there is none."""


# -- known crystals with other elements


def nearest_template(
    targets: Sequence[Target],
    training: PackedDataset,
    *,
    trials: int = 1,
    with_letters: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    label: str | None = None,
) -> StructureSet:
    """Known crystals with the target's elements put in: the substitution of CSPML.

    Templates are the training crystals of the target's group with the same numbers of sites per
    element, elements replaced: what a model is given, no more (CSPML, Kusaba et al., Comput.
    Mater. Sci. 211, 111496, 2022, is given the formula and learns its ranking). Trial j takes the
    template of rank j by the mean distance of the elements (:func:`template_ranks`). Its
    fractional coordinates stay; its cell is scaled isotropically, its volume by the ratio of
    the volumes that :func:`element_volumes` expects of the two contents, which keeps how well
    the template packs.
    Nothing is random.

    Parameters
    ----------
    training
        Should hold none of the targets.
    with_letters
        Also require the target's Wyckoff letters, element by element: more than a model is given.
        Letters are compared as they stand, not up to a shift of the origin.

    Raises
    ------
    InputError
        For less than one trial.
    """
    check_trials(trials)
    label = label or ("template, true letters" if with_letters else "template")
    index = _TemplateIndex.of(training, with_letters=with_letters)
    return _templates(
        label,
        targets,
        [index.best(target, trials) for target in targets],
        trials,
        "of this group and site pattern",
        workers,
        progress,
    )


def composition_template(
    targets: Sequence[Target],
    training: PackedDataset,
    *,
    trials: int = 1,
    workers: int | None = None,
    progress: Progress | None = None,
    label: str = "template, composition",
) -> StructureSet:
    """Known crystals with the target's elements put in, where no group is given.

    Templates are the training crystals with the same numbers of atoms in the primitive cell,
    whatever their elements and group. Trial j takes the j-th nearest, so that no crystal is used
    twice for a target: elements are matched with elements of the same numbers of atoms, in the way
    that makes the sum of the differences of their Mendeleev numbers least, and that sum is the
    distance. Of equally near ones the first in the training data is taken first. Positions and
    cell are as for :func:`nearest_template`. Nothing is random.

    Parameters
    ----------
    training
        Should hold none of the targets.

    Raises
    ------
    InputError
        For less than one trial.
    """
    check_trials(trials)
    index = _CompositionIndex.of(training)
    return _templates(
        label,
        targets,
        [index.best(target, trials) for target in targets],
        trials,
        "with these numbers of atoms",
        workers,
        progress,
    )


def _templates(
    label: str,
    targets: Sequence[Target],
    ranked: Sequence[Sequence[AsymmetricUnit]],
    trials: int,
    sort: str,
    workers: int | None,
    progress: Progress | None,
) -> StructureSet:
    """Trial after trial, the templates of every target; ``sort`` says of which there are few."""
    jobs: list[AsymmetricUnit | str] = []
    for trial in range(trials):
        for found in ranked:
            jobs.append(found[trial] if trial < len(found) else _no_template(len(found), sort))
    made = parallel_map(_substituted, jobs, workers=workers, chunk=64)
    return collected(label, targets, trials, made, progress)


def _no_template(found: int, sort: str) -> str:
    if found:
        return f"only {found} training crystals {sort}"
    return f"no training crystal {sort}"


def _substituted(job: AsymmetricUnit | str) -> Made:
    if isinstance(job, str):
        return job
    return job.group, job.primitive_cell()


def _substitution(
    training: PackedDataset,
    volume: FloatArray,
    place: int,
    elements: IntArray,
    replacing: IntArray,
) -> AsymmetricUnit:
    """Crystal ``place`` with its ``elements`` (E,) replaced one by one, the cell scaled by the
    ``volume`` (119,) of atoms."""
    unit = training.unit(place)
    new = np.arange(len(SYMBOLS))
    new[elements] = replacing
    after = new[unit.numbers]
    atoms = unit.multiplicity
    ratio = (atoms * volume[after]).sum() / (atoms * volume[unit.numbers]).sum()
    return replace(unit, lattice=unit.lattice * np.cbrt(ratio), numbers=after)


Pattern = tuple[tuple[str, ...], ...]
"""What each element of a crystal sits on, without its name."""


def _pattern(
    numbers: IntArray, letters: NDArray[np.str_], *, with_letters: bool
) -> tuple[Pattern, IntArray]:
    """The sorted pattern of a crystal, and the element behind each of its entries.

    An entry is the sorted Wyckoff letters of an element's sites, or as many blanks.
    """
    entries = [(tuple(sorted(letters[numbers == z].tolist())), int(z)) for z in np.unique(numbers)]
    if not with_letters:
        entries = [(("",) * len(sites), z) for sites, z in entries]
    entries.sort()
    return tuple(sites for sites, _ in entries), np.array([z for _, z in entries], np.int64)


@dataclass(frozen=True, eq=False)
class _TemplateIndex:
    """Training crystals by group and pattern."""

    training: PackedDataset
    with_letters: bool
    crystals: dict[tuple[int, Pattern], tuple[IntArray, IntArray]]  #: (C,) and elements (C, E)
    volume: FloatArray  #: (119,) of an atom [Å³]
    distance: FloatArray  #: (119, 119) between elements

    @classmethod
    def of(cls, training: PackedDataset, *, with_letters: bool) -> _TemplateIndex:
        crystals: dict[tuple[int, Pattern], list[tuple[int, IntArray]]] = defaultdict(list)
        for k, number in enumerate(training.group.tolist()):
            own = training.sites_of(k)
            pattern, elements = _pattern(
                training.numbers[own], training.wyckoff[own], with_letters=with_letters
            )
            crystals[number, pattern].append((k, elements))
        volume = element_volumes(training)
        return cls(
            training=training,
            with_letters=with_letters,
            crystals={
                key: (np.array([k for k, _ in rows]), np.stack([e for _, e in rows]))
                for key, rows in crystals.items()
            },
            volume=volume,
            distance=element_distances(volume),
        )

    def best(self, target: Target, count: int) -> list[AsymmetricUnit]:
        """The nearest templates with the target's elements, nearest first."""
        pattern, elements = _pattern(
            target.numbers, target.letters, with_letters=self.with_letters
        )
        places, others = self.crystals.get(
            (target.group.number, pattern), (np.zeros(0, np.int64), np.zeros((0, 0), np.int64))
        )
        if not len(places):
            return []
        cost, assigned = template_ranks(pattern, elements, others, self.distance)
        chosen = np.argsort(cost, kind="stable")[:count]
        return [
            _substitution(
                self.training, self.volume, int(places[k]), others[k], elements[assigned[k]]
            )
            for k in chosen
        ]


@dataclass(frozen=True, eq=False)
class _CompositionIndex:
    """Training crystals by the numbers of atoms in the primitive cell."""

    training: PackedDataset
    known: KnownCrystals
    rows: IntArray  #: (C,) of the training data
    volume: FloatArray  #: (119,) of an atom [Å³]
    distance: NDArray[np.float32]  #: (119, 119) between elements

    @classmethod
    def of(cls, training: PackedDataset) -> _CompositionIndex:
        volume = element_volumes(training)
        number = mendeleev_numbers()
        apart = np.abs(number[:, None] - number).astype(np.float32)
        return cls(training, *known_crystals(training), volume, apart)

    def best(self, target: Target, count: int) -> list[AsymmetricUnit]:
        """The nearest templates with the target's elements, nearest first."""
        centring = len(target.group.centring)
        own = target.counts()
        if len(own) > MOST_ELEMENTS:
            return []
        elements, atoms = list(own), [n // centring for n in own.values()]
        order = ordered(elements, atoms)
        asked = np.array([[elements[k] for k in order]])
        family, units = reduced([atoms[k] for k in order])
        rows = self.known.families.get(family, np.zeros(0, dtype=np.int64))
        rows = rows[self.known.units[rows] == units]
        # all are ordered, so that fewer templates are the beginning of more
        near = nearest(self.known, self.distance, family, asked, len(rows), among=rows)
        return [
            _substitution(
                self.training, self.volume, int(self.rows[row]), matched[: len(own)], asked[0]
            )
            for row, matched in zip(near.row[0, :count], near.matched[0, :count], strict=True)
        ]


def template_ranks(
    pattern: Pattern, elements: IntArray, others: IntArray, distance: FloatArray
) -> tuple[FloatArray, IntArray]:
    """How near templates are to a target, under the best naming of their elements.

    Parameters
    ----------
    pattern
        E entries, as :class:`_TemplateIndex` sorts them: elements may take each other's place
        where the entries are the same, and weigh as much as they have sites.
    elements
        (E,) atomic numbers of the target, in the order of the pattern.
    others
        (C, E) of the templates.
    distance
        (119, 119) between elements.

    Returns
    -------
    cost
        (C,) mean distance over the sites.
    assigned
        (C, E) the place in ``elements`` of what replaces each element of a template.
    """
    from scipy.optimize import linear_sum_assignment

    weight = np.array([len(sites) for sites in pattern], dtype=float)
    legal = np.array([[a == b for b in pattern] for a in pattern])
    matrices = distance[others[:, :, None], elements] * (weight / weight.sum())[:, None]
    matrices = np.where(legal, matrices, np.inf)
    assigned = np.array([linear_sum_assignment(m)[1] for m in matrices], dtype=np.int64)
    return np.take_along_axis(matrices, assigned[:, :, None], axis=2).sum((1, 2)), assigned


def element_volumes(data: PackedDataset) -> FloatArray:
    """(119,) volume of an atom of each element [Å³], by atomic number.

    Non-negative least squares of the volume per atom on the atomic fractions, drawn weakly to the
    mean, which elements that are not in the data get (as does number 0); at least 1 Å³.

    Raises
    ------
    DataError
        When the data hold no crystal.
    """
    from scipy.optimize import nnls

    if not len(data):
        raise DataError("there is no training crystal to take volumes from")
    owner = np.repeat(np.arange(len(data)), data.site_counts)
    fractions = np.zeros((len(data), len(SYMBOLS)))
    np.add.at(fractions, (owner, data.numbers), data.multiplicity)
    fractions /= data.atom_counts[:, None]
    volumes = data.volumes / data.atom_counts
    pull = PULL_TO_MEAN * np.eye(len(SYMBOLS))
    aim = np.full(len(SYMBOLS), PULL_TO_MEAN * volumes.mean())
    fitted = nnls(np.concatenate([fractions, pull]), np.concatenate([volumes, aim]))[0]
    return np.maximum(fitted, 1.0)


def element_distances(volume: FloatArray) -> FloatArray:
    """(119, 119) how different elements are: Euclidean, in Mendeleev number and atomic volume.

    Each coordinate is divided by its standard deviation over the 118 elements. The Mendeleev
    numbers are pymatgen's (Villars et al., J. Alloys Compd. 367, 167, 2004); elements without one
    count as average. On 1,723 MP-20 validation crystals the nearest template matched 80.4 % (rmse
    0.0243) so, and 79.9 % (0.0264) by the Mendeleev number alone: the rates differ by no more than
    chance.

    Parameters
    ----------
    volume
        (119,) by atomic number [Å³], of :func:`element_volumes`.
    """
    points = np.full((len(SYMBOLS), 2), np.nan)
    points[1:, 0] = element_properties()[1:, 0]
    points[1:, 1] = volume[1:]
    spread = np.nanstd(points, axis=0)
    points = (points - np.nanmean(points, axis=0)) / np.where(spread > 0, spread, 1.0)
    points = np.nan_to_num(points)
    return np.sqrt(((points[:, None] - points) ** 2).sum(-1))


def mendeleev_numbers() -> FloatArray:
    """(119,) by atomic number, pymatgen's; the mean where there is none."""
    number = element_properties()[:, 0]
    return np.where(np.isnan(number), np.nanmean(number), number)


# -- known crystals as they are, and worse


def training_sample(
    training: PackedDataset,
    count: int,
    seed: int = 0,
    *,
    groups: range = ALL_GROUPS,
    label: str = "training crystals",
) -> StructureSet:
    """At most ``count`` different training crystals of ``groups``, at random.

    The best that a measure of distributions can be expected to give; they predict nothing, and
    keep their own ids. With the same seed, fewer are the beginning of more.

    Raises
    ------
    InputError
        For a negative count.
    """
    if count < 0:
        raise InputError(f"{count} training crystals were asked for; give 0 or more")
    pool = np.flatnonzero(np.isin(training.group, np.array(groups)))
    chosen = np.random.default_rng(seed).permutation(pool)[:count]
    return StructureSet.from_packed(training, label, chosen)


def perturbed(
    structures: StructureSet,
    sigma: float,
    seed: int = 0,
    *,
    strain: float = 0.0,
    label: str | None = None,
) -> StructureSet:
    """The same structures with every atom of the primitive cell moved: symmetry is lost.

    Parameters
    ----------
    sigma
        Standard deviation of each Cartesian coordinate [Å].
    strain
        Standard deviation of the logarithm of each cell length; angles stay. The atoms keep their
        fractional coordinates under the strain, and are then moved.

    Raises
    ------
    InputError
        For a standard deviation that is negative or not finite.
    """
    for name, value in (("sigma", sigma), ("strain", strain)):
        if not 0.0 <= value < np.inf:
            raise InputError(f"{name} is {value}; give a standard deviation, 0 or more")
    cells = []
    for k, (lattice, frac, numbers) in enumerate(structures.cells()):
        generator = np.random.default_rng((seed, k))
        moved = generator.normal(size=frac.shape) * sigma
        strained = lattice * np.exp(strain * generator.normal(size=3))[:, None]
        cells.append((strained, wrap(frac + moved @ np.linalg.inv(strained)), numbers))
    name = label or f"{structures.label}, {sigma:g} Å noise"
    return StructureSet.of(name, cells, structures.ids, structures.group, structures.missing)


def collected(
    label: str,
    targets: Sequence[Target],
    trials: int,
    made: Iterator[Made],
    progress: Progress | None,
) -> StructureSet:
    """One set of what was made, trial after trial."""
    cells: list[Cell] = []
    ids, groups, missing = [], [], []
    attempts = [trial_id(t, trial) for trial in range(trials) for t in targets]
    for done, (name, result) in enumerate(zip(attempts, made, strict=True), start=1):
        if isinstance(result, str):
            missing.append(Missing(name, result))
        else:
            group, cell = result
            cells.append(cell)
            ids.append(name)
            groups.append(group)
        if progress is not None:
            progress(done, len(attempts))
    return StructureSet.of(label, cells, ids, groups, missing)
