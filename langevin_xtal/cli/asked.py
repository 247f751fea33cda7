"""What ``langevin-xtal sample`` is asked for: its options, and the requests that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from langevin_xtal.cli import options, types
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config.sampling import STRUCTURE_NOISE
from langevin_xtal.errors import InputError, RequestError

if TYPE_CHECKING:
    from langevin_xtal.crystal.cell import Cell
    from langevin_xtal.crystal.request import Request
    from langevin_xtal.model.checkpoint import CrystalModel
    from langevin_xtal.sampling.sample import SampleOptions
    from langevin_xtal.sampling.spread import Spread
    from langevin_xtal.symmetry.groups import SpaceGroup


WAYS = ("formula", "elements", "sites", "de-novo", "from-structure")
"""Options of which one says what to sample."""


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
    noise: float = STRUCTURE_NOISE
    lattice: tuple[float, ...] | None = None
    fixed: types.FixedPoints = ()
    setting: str | None = None  #: of ``lattice`` and ``fixed``; by default the package's

    OPTIONS: ClassVar = (
        "elements", "sites", "formula", "z", "atoms", "de_novo", "from_structure", "noise",
        "groups", "fix_lattice", "fix_sites", "setting",
    )  # fmt: skip
    """Parameters of the command that make it."""

    @classmethod
    def given(
        cls,
        *,
        from_structure: Path | None,
        noise: float | None,
        groups: str | None,
        fix_lattice: tuple[float, ...] | None,
        fix_sites: types.FixedPoints | None,
        **same: Any,
    ) -> Asked:
        """Of the options of the command.

        Raises
        ------
        InputError
            For options that contradict each other or miss their partner.
        """
        _check_together(
            {**same, "from_structure": from_structure},
            noise=noise,
            groups=groups,
            fixed=fix_sites,
            cell=fix_lattice,
        )
        return cls(
            **same,
            structure=None if from_structure is None else _cell_of(from_structure),
            noise=STRUCTURE_NOISE if noise is None else noise,
            lattice=fix_lattice,
            fixed=fix_sites or (),
        )

    @property
    def is_open(self) -> bool:
        """Whether the model may choose the space group."""
        return self.sites is None and self.structure is None

    def request(self, group: SpaceGroup | None, *, spread: bool) -> Request:
        """The request for one group.

        Parameters
        ----------
        spread
            Whether the model chooses the stoichiometry of elements; otherwise they get one site
            each, to be drawn.
        """
        if self.structure is not None:
            from langevin_xtal.sampling.from_structure import request_from_structure

            return request_from_structure(self.structure, group, self.noise, lattice=self.lattice)
        from langevin_xtal.crystal.request import Request

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
    ) -> tuple[tuple[float, ...] | None, types.FixedPoints]:
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

    def settings(self) -> dict[str, object]:
        """For ``run.json``: all that makes a difference to the candidates."""
        from langevin_xtal.crystal.cell import cell_key

        settings = dict(vars(self))
        settings["structure"] = None if self.structure is None else cell_key(self.structure)
        if self.structure is None:
            del settings["noise"]
        if self.setting is None:  # folders of 0.6 do not have it
            del settings["setting"]
        return settings


def _cell_of(path: Path) -> Any:
    from langevin_xtal.sampling.from_structure import read_cell

    return read_cell(path)


def requests_of(
    asked: Asked, groups: str | None, model: CrystalModel, chosen: SampleOptions
) -> tuple[list[Request], dict[Request, Spread]]:
    """The requests that take turns, and how samples of open ones are spread.

    Says which groups do not fit.

    Raises
    ------
    InputError
        Where nothing can be sampled.
    """
    from langevin_xtal.model.groups import parse_groups
    from langevin_xtal.symmetry.groups import SpaceGroup

    options.say_settings(groups)
    named = [] if groups is None else [SpaceGroup(n) for n in parse_groups(groups, model)]
    spread = model.settings is not None
    if asked.is_open and groups is None and not spread:
        raise InputError(
            f"model {model.name} has no distribution over space groups; name some by --sg, such "
            "as 62, Pnma, common or all"
        )
    # sites that are fixed, and cells, belong to one group each
    several = len(named) > 1 or asked.de_novo
    kept = bool(asked.fixed or asked.lattice)
    if asked.is_open and (groups is None or (spread and several and not kept)):
        made = [asked.open_request(named)]
    else:
        made = _fitting([None] if groups is None else named, partial(asked.request, spread=spread))
    spreads: dict[Request, Spread] = {}
    if asked.elements is None or spread:
        made = _fitting(made, lambda request: _can_start(request, model, chosen, spreads))
    if asked.setting is not None:
        options.say_setting(asked.setting, [request.space_group for request in made])
    options.say_unknown({symbol for each in made for symbol in each.elements}, model)
    return made, spreads


def _check_together(
    given: Mapping[str, object],
    *,
    noise: float | None,
    groups: str | None,
    fixed: types.FixedPoints | None,
    cell: tuple[float, ...] | None,
) -> None:
    """Refuse options that contradict each other or miss their partner."""
    z, atoms, setting = given["z"], given["atoms"], given["setting"]
    ways = [way for way in WAYS if given[way.replace("-", "_")] not in (None, False)]
    names = "--formula, --elements, --sites, --de-novo and --from-structure"
    if len(ways) != 1:
        found = " and ".join(f"--{way}" for way in ways) or "none"
        raise InputError(f"give one of {names}; {found} given")
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
    from torch import tensor

    from langevin_xtal.sampling.spread import settled
    from langevin_xtal.sampling.start import start_chains
    from langevin_xtal.sampling.streams import stream_keys

    if request.leaves_choice:
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


_OPTIONS = (
    click.option(
        "--elements",
        type=types.Elements(),
        help="Such as Cu,Si,K; stoichiometry and sites are the model's to choose.",
        metavar="LIST",
    ),
    click.option(
        "--sites",
        type=types.Sites(),
        help="Sites of each element in the asymmetric unit, such as Cu:2,Si:1.",
        metavar="LIST",
    ),
    click.option(
        "--formula",
        help="Exact composition, such as Cu2KSi; Wyckoff positions are chosen to give it.",
        metavar="FORMULA",
    ),
    click.option(
        "--z",
        type=click.IntRange(min=1),
        help="Formula units in the conventional cell.  [default: the fewest that fit the group; "
        "without --sg, the model's to choose]",
        metavar="Z",
    ),
    click.option(
        "--atoms",
        type=click.IntRange(min=1),
        help="With --formula: atoms in the primitive cell.  [default: the model's to choose]",
        metavar="N",
    ),
    click.option(
        "--de-novo",
        is_flag=True,
        help="Elements and everything else are the model's to choose.",
    ),
    click.option(
        "--from-structure",
        type=options.LocalPath(),
        help="Vary the crystal in this file: the same sites and Wyckoff positions.",
        metavar="FILE",
    ),
    click.option(
        "--noise",
        type=click.FloatRange(min=0.0, min_open=True),
        help="With --from-structure: noise added to its positions [Å].  "
        f"[default: {STRUCTURE_NOISE}]",
        metavar="Å",
    ),
    click.option(
        "--sg",
        "groups",
        help="Space groups to choose from, by number or symbol, ranges, crystal systems, common "
        "(the 32 most frequent), all; lists: 62,Fm-3m,140-142.  [default: all; with "
        "--from-structure, its own]",
        metavar="GROUPS",
    ),
    click.option(
        "--fix-lattice",
        type=types.CellParameters(),
        help="Keep this conventional cell: a,b,c or a,b,c,alpha,beta,gamma [Å, degrees].",
        metavar="CELL",
    ),
    click.option(
        "--fix-sites",
        type=types.FixedSites(),
        help="Keep these sites, counted among --sites or --formula: Cu:0,0,0;Si:0.25,0.25,0.25.",
        metavar="LIST",
    ),
    click.option(
        "--setting",
        help="Setting of --fix-sites and --fix-lattice, which are transformed: origin choice (1, "
        "2), axes (H, R), unique axis and cell choice (b3, c1), a symbol such as P21/n or Pbnm, a "
        "Hall symbol or number.  [default: origin choice 1, hexagonal axes, unique axis b, cell "
        "choice 1, the ITA's standard axes]",
        metavar="SETTING",
    ),
)


def asked_options(command: options.Command) -> options.Command:
    """The options that make the argument ``asked``; ``groups`` is left beside it."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
