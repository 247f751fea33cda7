"""``langevin-xtal sample``: candidates for elements, sites or a formula, and space groups."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from langevin_xtal.cli import generators, options
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config.sampling import PRESET_HELP, PRESETS, SamplingConfig
from langevin_xtal.errors import InputError, LangevinXtalError, RequestError

if TYPE_CHECKING:
    from langevin_xtal.crystal.cell import Cell
    from langevin_xtal.crystal.request import Request
    from langevin_xtal.model.checkpoint import CrystalModel
    from langevin_xtal.sampling.folder import CandidateFolder
    from langevin_xtal.sampling.sample import SampleOptions
    from langevin_xtal.sampling.spread import Spread
    from langevin_xtal.symmetry.groups import SpaceGroup

TABLE = ("index", "formula", "group", "found_0.01", "symmetry", "sites", "atoms",
         "volume_per_atom")  # fmt: skip
SHOWN = 20
NOISE = 0.5
DE_NOVO_PART = 256
"""Crystals drawn de novo at a time."""


@dataclass(frozen=True)
class Asked:
    """What to sample in every group, as the command line says it."""

    elements: tuple[str, ...] | None = None
    sites: dict[str, int] | None = None
    formula: str | None = None
    z: int | None = None
    atoms: int | None = None
    de_novo: bool = False
    structure: Cell | None = None
    noise: float = NOISE
    lattice: tuple[float, ...] | None = None
    fixed: options.FixedPoints = ()
    setting: str | None = None  #: of ``lattice`` and ``fixed``; by default the package's

    def request(self, group: SpaceGroup | None, *, spread: bool) -> Request:
        """The request for one group.

        Parameters
        ----------
        spread
            Whether the model chooses the stoichiometry of elements; otherwise they get one site
            each, to be drawn.
        """
        from langevin_xtal.crystal.request import Request
        from langevin_xtal.sampling.from_structure import request_from_structure

        if self.structure is not None:
            return request_from_structure(self.structure, group, self.noise, lattice=self.lattice)
        assert group is not None
        lattice, fixed = self.in_package_setting(group)
        one_each = self.elements is not None and not spread
        return Request(
            group,
            dict.fromkeys(self.elements or (), 1) if one_each else self.sites,
            elements=None if one_each else self.elements,
            formula=self.formula,
            z=self.z,
            atoms=self.atoms,
            lattice=lattice,
            fixed=fixed,
        )

    def in_package_setting(
        self, group: SpaceGroup
    ) -> tuple[tuple[float, ...] | None, options.FixedPoints]:
        """Cell and sites to keep, transformed to the setting of the package."""
        if self.setting is None:
            return self.lattice, self.fixed
        import numpy as np
        from ase.geometry import cell_to_cellpar, cellpar_to_cell

        from langevin_xtal.symmetry.settings import setting_of_group

        setting = setting_of_group(self.setting, group.number)
        fixed = []
        for symbol, point in self.fixed:
            x, y, z = setting.point_in_default(point).tolist()
            fixed.append((symbol, (x, y, z)))
        lattice = self.lattice
        if lattice is not None and not setting.is_default:
            if len(lattice) == 3 and not np.array_equal(abs(setting.change[0]).sum(0), [1, 1, 1]):
                raise RequestError(
                    f"--fix-lattice: give lengths and angles of the cell in the setting {setting}"
                )
            if len(lattice) == 3 and group.number < 16:
                raise RequestError(
                    "--fix-lattice: give lengths and angles with --setting in a monoclinic group"
                )
            rows = cellpar_to_cell([*lattice, 90, 90, 90][:6])
            if not setting.fits(rows):
                raise RequestError(
                    f"--fix-lattice: this is not the shape of a cell in the setting {setting}"
                )
            lattice = tuple(cell_to_cellpar(setting.lattice_in_default(rows)).tolist())
        return lattice, tuple(fixed)

    def open_request(self, groups: Sequence[SpaceGroup]) -> Request:
        """The request whose group is the model's to choose, among some or all (none given)."""
        from langevin_xtal.crystal.request import Request

        return Request(
            elements=self.elements,
            formula=self.formula,
            z=self.z,
            atoms=self.atoms,
            groups=[group.number for group in groups],
            lattice=self.lattice,
        )

    def settings(self) -> dict[str, Any]:
        """For ``run.json``: all that makes a difference to the candidates."""
        from langevin_xtal.crystal.cell import cell_key

        settings = dict(vars(self))
        settings["structure"] = None if self.structure is None else cell_key(self.structure)
        if self.structure is None:
            del settings["noise"]
        if self.setting is None:  # folders of 0.6 do not have it
            del settings["setting"]
        return settings


@click.command()
@click.option(
    "--elements",
    type=options.Elements(),
    help="Such as Cu,Si,K; stoichiometry and sites are the model's to choose.",
    metavar="LIST",
)
@click.option(
    "--sites",
    type=options.Sites(),
    help="Sites of each element in the asymmetric unit, such as Cu:2,Si:1.",
    metavar="LIST",
)
@click.option(
    "--formula",
    help="Exact composition, such as Cu2KSi; Wyckoff positions are chosen to give it.",
    metavar="FORMULA",
)
@click.option(
    "--z",
    type=click.IntRange(min=1),
    help="Formula units in the conventional cell.  [default: the fewest that fit the group; "
    "without --sg, the model's to choose]",
    metavar="Z",
)
@click.option(
    "--atoms",
    type=click.IntRange(min=1),
    help="With --formula: atoms in the primitive cell.  [default: the model's to choose]",
    metavar="N",
)
@click.option(
    "--de-novo",
    is_flag=True,
    help="Elements and everything else are the model's to choose.",
)
@click.option(
    "--from-structure",
    type=options.LocalPath(),
    help="Vary the crystal in this file: the same sites and Wyckoff positions.",
    metavar="FILE",
)
@click.option(
    "--noise",
    type=click.FloatRange(min=0.0, min_open=True),
    help=f"With --from-structure: noise added to its positions [Å].  [default: {NOISE}]",
    metavar="Å",
)
@click.option(
    "--sg",
    "groups",
    help="Space groups to choose from, by number or symbol, ranges, crystal systems, common (the "
    "32 most frequent), all; lists: 62,Fm-3m,140-142.  [default: all; with --from-structure, its "
    "own]",
    metavar="GROUPS",
)
@click.option(
    "--fix-lattice",
    type=options.CellParameters(),
    help="Keep this conventional cell: a,b,c or a,b,c,alpha,beta,gamma [Å, degrees].",
    metavar="CELL",
)
@click.option(
    "--fix-sites",
    type=options.FixedSites(),
    help="Keep these sites, counted among --sites or --formula: Cu:0,0,0;Si:0.25,0.25,0.25.",
    metavar="LIST",
)
@click.option(
    "--setting",
    help="Setting of --fix-sites and --fix-lattice, which are transformed: origin choice (1, 2), "
    "axes (H, R), unique axis and cell choice (b3, c1), a symbol such as P21/n or Pbnm, a Hall "
    "symbol or number.  [default: origin choice 1, hexagonal axes, unique axis b, cell choice 1, "
    "the ITA's standard axes]",
    metavar="SETTING",
)
@click.option(
    "--n",
    "count",
    type=click.IntRange(1, 1_000_000),
    default=16,
    show_default=True,
    help="Candidates in all. With --sites several groups take turns; otherwise the likeliest "
    "settings come first.",
    metavar="N",
)
@options.seed
@click.option("--model", default="small", show_default=True, help="Shipped name or file.")
@generators.option("Sample")
@generators.weights
@options.device
@options.threads
@options.output_folder("candidates")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["cif", "xyz", "poscar"]),
    default="cif",
    show_default=True,
    help="One file per candidate.",
)
@options.preset_of(PRESETS, PRESET_HELP)
@options.of_config(SamplingConfig)
@click.option("--picture", is_flag=True, help="Draw the first candidates to candidates.png.")
@click.option(
    "--trajectory",
    type=options.LocalPath(),
    help="Write the chain of every candidate to this extended XYZ file: a frame at its start and "
    "after every noise level, with candidate, level and noise [Å].",
    metavar="FILE",
)
@click.option(
    "--trajectory-every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Noise levels from frame to frame.",
    metavar="N",
)
@click.option("--force", is_flag=True, help="Replace a trajectory file that is there.")
def sample(
    elements: tuple[str, ...] | None,
    sites: dict[str, int] | None,
    formula: str | None,
    z: int | None,
    atoms: int | None,
    de_novo: bool,
    from_structure: Path | None,
    noise: float | None,
    groups: str | None,
    fix_lattice: tuple[float, ...] | None,
    fix_sites: options.FixedPoints | None,
    setting: str | None,
    count: int,
    seed: int,
    model: str,
    generator: str | None,
    weights: Path | None,
    device: str,
    threads: int | None,
    out: Path,
    file_format: str,
    picture: bool,
    trajectory: Path | None,
    trajectory_every: int,
    force: bool,
    **sampling: Any,
) -> None:
    """Sample candidate crystals.

    Give one of --formula, --elements, --sites, --de-novo and --from-structure. With --formula,
    every candidate has exactly that composition; with --elements, exactly those elements. What is
    left open, the model chooses: stoichiometry, space group (among those of --sg), formula units
    and Wyckoff positions. The likeliest setting comes first, and samples are spread over settings
    so that each is likely to show something new. With --formula and one group, the cell has the
    fewest formula units that fit unless --z or --atoms says otherwise.

    Writes one file per candidate, candidates.csv and rejects.csv. The same command gives the same
    files; a folder that holds part of a run is continued. With --trajectory, candidates that are
    there without their chains are sampled again; they come out the same.

    \b
    Examples:
      langevin-xtal sample --formula TiO2 --n 20 --out tio2/
      langevin-xtal sample --elements Li,Fe,P,O
      langevin-xtal sample --de-novo --n 1000 --out anything/
      langevin-xtal sample --elements Cu,Si,K --sg 62 --n 64 --seed 1 --out cusik/
      langevin-xtal sample --sites Sr:1,Ti:1,O:1 --sg Pm-3m
      langevin-xtal sample --formula Cu2KSi --z 4 --sg 62 --n 60 --out cu2ksi/
      langevin-xtal sample --formula NaCl --sg 225,221,194 --fix-lattice 5.64,5.64,5.64
      langevin-xtal sample --formula MgAl2O4 --sg 227 --fix-sites Mg:1/8,1/8,1/8 --setting 2
      langevin-xtal sample --from-structure olivine.cif --noise 0.3 --out varied/
      langevin-xtal sample --formula TiO2 --sg 136 --n 4 --trajectory chains.extxyz
      langevin-xtal sample --generator gemsdiff --weights gemsdiff/generator.safetensors --formula
      TiO2 --atoms 6
    """
    generators.check_apart(generator, weights=weights)
    if generator is not None:
        generators.sample(
            generator,
            weights,
            formula=formula,
            atoms=atoms,
            z=z,
            elements=elements,
            de_novo=de_novo,
            groups=groups,
            count=count,
            seed=seed,
            threads=threads,
            out=out,
            file_format=file_format,
        )
        return
    ways = {"formula": formula, "elements": elements, "sites": sites,
            "de-novo": True if de_novo else None, "from-structure": from_structure}  # fmt: skip
    _check_together([name for name, value in ways.items() if value is not None], z=z, atoms=atoms,
                    noise=noise, groups=groups, fixed=fix_sites, cell=fix_lattice,
                    setting=setting)  # fmt: skip
    from langevin_xtal.crystal.request import Request
    from langevin_xtal.model.checkpoint import load_model
    from langevin_xtal.model.device import resolved_device
    from langevin_xtal.model.groups import parse_groups
    from langevin_xtal.sampling.draw_requests import draw_sites
    from langevin_xtal.sampling.folder import CandidateFolder
    from langevin_xtal.sampling.from_structure import read_cell
    from langevin_xtal.sampling.sample import SampleOptions, sample_batches
    from langevin_xtal.sampling.spread import settled
    from langevin_xtal.sampling.trajectory import TrajectoryFile
    from langevin_xtal.symmetry.groups import SpaceGroup

    resolved_device(device)
    if trajectory is not None:
        TrajectoryFile.check(trajectory, out, force=force)
    asked = Asked(
        elements=elements,
        sites=sites,
        formula=formula,
        z=z,
        atoms=atoms,
        de_novo=de_novo,
        structure=None if from_structure is None else read_cell(from_structure),
        noise=NOISE if noise is None else noise,
        lattice=fix_lattice,
        fixed=fix_sites or (),
        setting=setting,
    )
    chosen = SampleOptions.of(SamplingConfig(**sampling), workers=threads)
    # refuse what cannot be sampled before a folder is made
    options.say_settings(groups)
    named = (None,) if groups is None else [SpaceGroup(n) for n in parse_groups(groups, model)]
    network = load_model(model)
    spread = network.settings is not None
    chooses = sites is None and from_structure is None
    if chooses and groups is None and not spread:
        raise InputError(
            f"model {network.name} has no distribution over space groups; name some by --sg, such "
            "as 62, Pnma, common or all"
        )
    # sites that are fixed, and cells, belong to one group each
    if chooses and spread and not (fix_sites or fix_lattice) and named != (None,) and (
        len(named) > 1 or de_novo
    ):  # fmt: skip
        by_group = [asked.open_request([group for group in named if group is not None])]
    elif chooses and named == (None,):
        by_group = [asked.open_request([])]
    else:
        by_group = _fitting(named, partial(asked.request, spread=spread))
    spreads: dict[Request, Spread] = {}
    if elements is None or spread:
        by_group = _fitting(
            by_group, lambda request: _can_start(request, network, chosen, spreads)
        )
    if setting is not None:
        options.say_setting(setting, [request.space_group for request in by_group])
    options.say_unknown({symbol for each in by_group for symbol in each.elements}, network)
    folder = CandidateFolder(
        out,
        {
            **asked.settings(),
            "groups": [
                list(request.groups) if request.space_group is None else request.space_group.number
                for request in by_group
            ],
            "seed": seed,
            "model": network.name,
            "weights": network.hash,
            "model_settings": network.settings_hash,
            **chosen.record(),
        },
        file_format=file_format,
    )
    chains = None if trajectory is None else TrajectoryFile(trajectory, out, trajectory_every)
    indices = [
        k
        for k in range(count)
        if not folder.is_done(k, chosen.attempts)
        or (chains is not None and k in folder.rows and k not in chains)
    ]
    turns = [by_group[k % len(by_group)] for k in range(count)]
    if elements is not None and not spread:
        for k in indices:
            drawn = draw_sites(elements, turns[k].space_group, network.statistics, seed, k)
            turns[k] = Request(drawn.space_group, drawn.sites, lattice=turns[k].lattice)
    if not de_novo:
        turns = settled(turns, network, seed, known=spreads)
    began = time.perf_counter()
    drawn_now = []
    with options.progress_bar("sampling", "level") as update:
        # settings of many crystals take a while: sampled in parts, they show progress
        for part in _parts(indices, DE_NOVO_PART if de_novo else count):
            for outcome in sample_batches(
                [_drawn(turns[k], network, seed, k) for k in part],
                network,
                seed,
                indices=part,
                device=device,
                options=chosen,
                progress=update,
                trajectory_every=None if chains is None else trajectory_every,
            ):
                # a candidate counts as done only where its chain is there
                if chains is not None:
                    chains.add(outcome.trajectories)
                folder.add(outcome.candidates, outcome.rejections)
                drawn_now += outcome.candidates
    seconds = time.perf_counter() - began
    if picture and drawn_now:
        from langevin_xtal.report.pictures import draw_candidates

        draw_candidates(drawn_now[:8], out / "candidates.png")
    if chains is not None:
        chains.finish(k for k in folder.rows if k < count and k in chains)
    _summary(folder, count, chosen.attempts, network, seconds if indices else None)
    if trajectory is not None:
        echo(f"chains in {trajectory}")
    if not any(k < count for k in folder.rows):
        raise LangevinXtalError(
            f"none of {count} candidates came about; {out / 'rejects.csv'} says why"
        )


def _parts(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (indices[k : k + size] for k in range(0, len(indices), size))


def _drawn(request: Request, model: CrystalModel, seed: int, index: int) -> Request:
    """The request itself, or one drawn for it where it names nothing."""
    from langevin_xtal.sampling.spread import de_novo

    return de_novo(request, model, seed, index) if request.is_empty else request


def _check_together(
    ways: Sequence[str],
    *,
    z: Any,
    atoms: Any,
    noise: Any,
    groups: Any,
    fixed: Any,
    cell: Any,
    setting: Any,
) -> None:
    """Refuse options that contradict each other or miss their partner."""
    names = "--formula, --elements, --sites, --de-novo and --from-structure"
    if len(ways) != 1:
        given = " and ".join(f"--{way}" for way in ways) or "none"
        raise InputError(f"give one of {names}; {given} given")
    (way,) = ways
    if z is not None and way != "formula":
        raise InputError("--z counts formula units; give --formula with it")
    if atoms is not None and way != "formula":
        raise InputError("--atoms counts those of a formula's primitive cell; give --formula")
    if noise is not None and way != "from-structure":
        raise InputError("--noise is added to a structure; give --from-structure with it")
    if fixed and way not in ("sites", "formula"):
        raise InputError("--fix-sites counts among the sites asked for; give --sites or --formula")
    if setting is not None and not (fixed or cell):
        raise InputError("--setting is that of --fix-sites and --fix-lattice; give one of them")
    if setting is not None and way == "from-structure":
        raise InputError("--setting is not for --from-structure, whose file says its setting")
    if groups is None and way != "from-structure":
        belongs = {"--sites": way == "sites", "--fix-sites": fixed, "--fix-lattice": cell}
        for option, there in belongs.items():
            if there:
                raise InputError(
                    f"--sg is missing: {option} belongs to a space group; give space groups, such "
                    "as 62, Pnma, common or all"
                )


def _fitting(asked: Sequence[Any], make: Callable[[Any], Request]) -> list[Request]:
    """Requests that can be made; what cannot is named in one line, and an error where none can.

    Raises
    ------
    RequestError
        Where nothing fits.
    """
    made: list[Request] = []
    failed: dict[Any, InputError] = {}
    for each in asked:
        try:
            made.append(make(each))
        except InputError as error:
            failed[each] = error
    if failed and not made:
        first = next(iter(failed.values()))
        if len({str(error) for error in failed.values()}) == 1:
            raise first
        raise RequestError(f"none of the {len(failed)} groups can be sampled; {first}")
    if failed:
        from langevin_xtal.model.groups import compact

        numbers = sorted(getattr(each, "space_group", each).number for each in failed)
        echo(
            f"skipped {len(numbers)} of {len(asked)} groups that do not fit: {compact(numbers)}",
            err=True,
        )
    return made


def _can_start(
    request: Request, model: CrystalModel, chosen: SampleOptions, spreads: dict[Request, Spread]
) -> Request:
    """The request, if a chain of it can start; how its samples are spread is kept in ``spreads``.

    Raises
    ------
    RequestError
        Where fixed sites do not fit, or the noise leaves nothing of the structure.
    """
    from dataclasses import replace

    from torch import tensor

    from langevin_xtal.sampling.spread import settled
    from langevin_xtal.sampling.start import start_chains
    from langevin_xtal.sampling.streams import stream_keys

    if request.is_open:
        if not request.is_empty:
            settled([request], model, known=spreads)
        return request
    largest = model.levels.position_max
    if request.start is not None and request.start.noise >= largest:
        raise RequestError(
            f"--noise is {request.start.noise:g} Å; model {model.name} knows noise below "
            f"{largest:g} Å, where nothing is left of the structure"
        )
    from_noise = replace(chosen, start="noise").start_options()
    start_chains([request], model, stream_keys(0, tensor([0]), tensor([0])), from_noise)
    return request


def _summary(
    folder: CandidateFolder, count: int, attempts: int, model: CrystalModel, seconds: float | None
) -> None:
    rows = [folder.rows[k] for k in sorted(folder.rows) if k < count]
    table = [TABLE, *([row[c] for c in TABLE] for row in rows[:SHOWN])]
    widths = [max(len(line[k]) for line in table) for k in range(len(TABLE))]
    for line in table:
        echo("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    if len(rows) > SHOWN:
        echo(f"… {len(rows) - SHOWN} more in {folder.path / 'candidates.csv'}")
    asked = [r for r in folder.rejects.values() if int(r["index"]) < count]
    lost = sum(1 for r in asked if int(r["attempt"]) == attempts - 1)
    higher = sum(row["symmetry"] == "supergroup" for row in rows)
    took = "" if seconds is None else f" in {seconds:.1f} s"
    echo(
        f"{len(rows)} of {count} candidates in {folder.path}{took} with model {model.name}; "
        f"{higher} found in a supergroup at 0.01 Å; {lost} given up after {attempts} attempts"
    )
    for reason, times in Counter(r["reason"].split(":")[0] for r in asked).most_common():
        echo(f"  {times} attempts rejected: {reason} (see rejects.csv)")
