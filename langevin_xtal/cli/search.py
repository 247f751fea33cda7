"""``langevin-xtal search``: a chemical system, from requests to a ranked table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from langevin_xtal.cli import options, structures, types
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config import fields
from langevin_xtal.config.sampling import PRESET_HELP, PRESETS, SamplingConfig
from langevin_xtal.config.screening import DEFAULT_POTENTIAL, DEFAULT_PROPERTIES, FilterOptions
from langevin_xtal.config.search import SearchConfig
from langevin_xtal.errors import InputError, LangevinXtalError

if TYPE_CHECKING:
    from langevin_xtal.crystal.entry import Entry
    from langevin_xtal.model.checkpoint import CrystalModel
    from langevin_xtal.screen.hull import HullReferences
    from langevin_xtal.search.campaign import Campaign
    from langevin_xtal.search.space import SearchSpace
    from langevin_xtal.search.store import CampaignSummary

SHOWN = 20
REASONS = 3
NUMBERS = ("rank", "group", "found", "above all", "above hull", "energy", "gap", "in target")
"""Columns that are set to the right."""
FLAGS = 60
"""Characters of a line's flags."""


class Units(options.ParamType):
    """``1,2,4`` to numbers of formula units."""

    name = "numbers"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Whole numbers in the order given."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if not parts or not all(part.isdecimal() and len(part) < 5 for part in parts):
            raise InputError(f"--z: {value!r} should be whole numbers, such as 4 or 1,2,4")
        return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class SpaceAsked:
    """What is searched, as the command line says it."""

    elements: tuple[str, ...] | None
    groups: str | None
    max_sites: int | None
    formulas: str | None
    z: tuple[int, ...] | None
    max_formula_atoms: int | None

    def check(self) -> None:
        """Refuse a search of nothing.

        Raises
        ------
        InputError
        """
        if self.elements is None and self.formulas in (None, "all"):
            raise InputError("give --elements, such as Cu,Si,K, or --formula, such as Cu2KSi")

    def space(self, model: CrystalModel) -> SearchSpace:
        """The space; says which groups are settings other than the package's."""
        from langevin_xtal.search.space import SearchSpace

        options.say_settings(self.groups)
        return SearchSpace(
            self.elements,
            self.groups,
            max_sites=self.max_sites,
            formulas=_formulas(self.formulas),
            z=self.z,
            max_formula_atoms=self.max_formula_atoms,
            model=model,
        )


@dataclass(frozen=True)
class SecondAsked:
    """The second potential, if one is asked."""

    second: str | None
    second_references: Path | None

    def check(self, config: SearchConfig) -> None:
        """Refuse it where nothing is relaxed.

        Raises
        ------
        InputError
        """
        if self.second is not None and not config.relax:
            raise InputError("--second-opinion is on what was relaxed: add --relax")

    def references(self) -> HullReferences | None:
        """Its hull references, if there are any."""
        return structures.references_of_second(self.second, self.second_references)


@click.command()
@click.option(
    "--elements",
    type=types.Elements(),
    help="All appear and no others, such as Cu,Si,K; not needed with --formula.",
    metavar="LIST",
)
@click.option(
    "--sg",
    "groups",
    help="all, common (the 32 most frequent), crystal systems, numbers, symbols, ranges; lists.  "
    "[default: all; spread evenly, common]",
    metavar="GROUPS",
)
@click.option(
    "--max-sites",
    type=click.IntRange(min=1),
    help="Sites in the asymmetric unit, at most.  [default: any; spread evenly, 4, or one more "
    "than elements]",
    metavar="N",
)
@options.of_config(SearchConfig, "allocate", "explore", "subsystems")
@click.option(
    "--formula",
    "formulas",
    help="Exact compositions instead: a list such as Cu2KSi,CuKSi; all: every one.",
    metavar="LIST",
)
@click.option(
    "--z",
    type=Units(),
    help="Formula units in the conventional cell, with --formula.  [default: fewest that fit]",
    metavar="LIST",
)
@click.option(
    "--max-formula-atoms",
    type=click.IntRange(min=1),
    help="Atoms in a formula unit, at most, with --formula all.  [default: 8]",
    metavar="N",
)
@options.of_config(SearchConfig, "samples_per_request", "max_samples", "max_hours", "seed")
@options.model
@click.option(
    "--preset",
    type=click.Choice(tuple(PRESETS)),
    default="default",
    show_default=True,
    help=PRESET_HELP,
)
@options.of_config(SamplingConfig, "levels")
@options.of_config(
    SearchConfig, "relax", "relax_best", "relax_within", "release_within", "potential"
)
@click.option(
    "--references",
    type=options.LocalPath(exists=True, dir_okay=False),
    help="Table of hull references that hull build wrote for the potential.  "
    "[default: shipped, for chgnet and sevennet-0]",
    metavar="FILE",
)
@click.option(
    "--target",
    multiple=True,
    help="Window of a predicted property: band_gap [eV], e_form or e_hull [eV/atom]. Candidates "
    "are relaxed and ranked by energy above hull and the probability to lie in it. Repeatable.",
    metavar="NAME=LOW:HIGH",
)
@click.option(
    "--properties",
    default=DEFAULT_PROPERTIES,
    show_default=True,
    help="Property model: a shipped name or a file; none predicts none.",
    metavar="MODEL",
)
@click.option(
    "--second-opinion",
    "second",
    help="Relax the 20 best with another potential too, and put its energies beside.",
    metavar="NAME",
)
@structures.second_references
@options.of_config(SearchConfig, "phonons")
@click.option(
    "--stage",
    "stages",
    multiple=True,
    help="A further stage: a function of a cell, whose numbers become columns; repeatable.",
    metavar="MODULE:ATTRIBUTE",
)
@click.option(
    "--reference",
    help="Known crystals, to mark candidates that are known: packed data, or structures in any "
    "format.",
    metavar="FILE",
)
@click.option(
    "--charge-neutral", is_flag=True, help="Reject what SMACT cannot make neutral; alloys pass."
)
@click.option(
    "--max-atoms", type=click.IntRange(min=1), help="Reject larger conventional cells.",
    metavar="N",
)  # fmt: skip
@options.workers
@options.output(
    "ASE database to keep the search in: a file, or postgresql://…",
    "STORE",
    default="search.db",
    address=True,
)
@options.on_engine
@options.gathered(
    SpaceAsked, "elements", "groups", "max_sites", "formulas", "z", "max_formula_atoms",
    into="asked",
)  # fmt: skip
@options.gathered(SearchConfig, *fields.names(SearchConfig), into="config")
@options.gathered(SecondAsked, "second", "second_references", into="opinion")
@options.gathered(FilterOptions, "charge_neutral", "max_atoms", into="filters")
def search(
    asked: SpaceAsked,
    config: SearchConfig,
    model: str,
    preset: str,
    levels: int | None,
    references: Path | None,
    opinion: SecondAsked,
    filters: FilterOptions,
    workers: int | None,
    out: str,
    **wanted: Any,
) -> None:
    """Search a chemical system.

    Samples candidates where the model expects crystals, filters them, leaves out equal ones,
    relaxes them (first as their symmetry allows; near the hull then without) and ranks them by
    energy above hull. All of it is kept in an ASE database: stop it at any time, and the same
    command goes on; run it twice at once, and both share the work. A candidate depends on the
    seed, the model and what is searched only.

    \b
    Examples:
      langevin-xtal search --elements Li,Fe,P,O --max-samples 400 --out li-fe-p-o.db
      langevin-xtal search --elements Cu,Si,K --max-samples 200 --relax --out cu-si-k.db
      langevin-xtal search --elements Cu,Si,K --max-samples 2000 --relax --relax-best 100
      langevin-xtal search --formula Cu2KSi --z 4 --sg 62,orthorhombic --out cu2ksi.db
      langevin-xtal search --elements Ga,As,P --target band_gap=1.1:1.7 --relax --relax-best 100
    """
    from langevin_xtal.evaluation.cache import default_folder
    from langevin_xtal.model.checkpoint import load_model
    from langevin_xtal.sampling.sample import SampleOptions
    from langevin_xtal.screen.hull import HullReferences
    from langevin_xtal.search.campaign import Campaign

    asked.check()
    opinion.check(config)
    second = opinion.references()
    weights = load_model(model)
    space = asked.space(weights)
    if wanted["properties"] == "none":
        wanted["properties"] = None
    campaign = Campaign(
        out,
        space,
        weights,
        hull=None if references is None else HullReferences.load(references),
        filters=filters,
        sampling=SampleOptions.preset(preset, **({} if levels is None else {"levels": levels})),
        workers=workers,
        cache=default_folder(),
        **wanted,
        **vars(config),
    )
    options.say_unknown(space.elements, weights)
    _announce(campaign)
    with options.stage_bars() as progress:
        summary = campaign.run(progress)
    if opinion.second is not None:
        _ask_second(out, opinion.second, second, workers)
    _stages(summary)
    total = sum(summary.states.values())
    if not total:
        echo("no candidate yet: the time was over; the same command goes on")
        return
    if total == summary.states["rejected"]:
        raise LangevinXtalError(f"none of {total} candidates is left: all were rejected")
    _ranking(campaign)


def _formulas(text: str | None) -> Any:
    if text is None or text == "all":
        return text
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise InputError("--formula is empty; give a list such as Cu2KSi, or all")
    return names


def _announce(campaign: Campaign) -> None:
    from langevin_xtal.search.allocation import Likely

    plan = campaign.plan
    space, total = plan.space, plan.total
    if campaign.remark:
        echo(campaign.remark)
    groups = f"{len(space.groups)} space group{'s' if len(space.groups) > 1 else ''}"
    if isinstance(plan.allocation, Likely):
        some = f"in {groups}" if space.named else "in any space group"
        share = f"{100 * float(plan.allocation.explore):g} %"
        echo(
            f"{'-'.join(space.elements)}: {total} candidates, most of them at likely settings "
            f"{some}; {share} spread evenly over {len(space)} requests in {groups}"
        )
        return
    echo(f"{'-'.join(space.elements)}: {len(space)} requests in {groups}, {total} candidates")
    if total < len(space):
        echo(f"  {len(space) - total} requests get none: raise --max-samples to reach them")


def _stages(summary: CampaignSummary) -> None:
    lines = [("stage", "candidates", "left", "seconds", "")]
    for stage in summary.stages:
        numbers = (str(stage.done), str(stage.left), f"{stage.seconds:.1f}")
        lines.append((stage.title, *numbers, stage.remark))
    _print(lines, right=(1, 2, 3))
    reasons = sorted(summary.reasons.items(), key=lambda item: -item[1])
    for reason, count in reasons[:REASONS]:
        echo(f"  {count} rejected: {reason}")


def _ask_second(
    store: str, second: str, references: HullReferences | None, workers: int | None
) -> None:
    from langevin_xtal.evaluation.cache import SpareCache, default_folder
    from langevin_xtal.search.second_opinion import ask_second

    with options.progress_bar("second opinion", "candidate") as update:
        disagree = ask_second(
            store,
            second,
            references,
            cache=SpareCache(default_folder()),
            workers=workers,
            progress=update,
        )
    echo(f"second opinion by {second}: {disagree} of the best candidates in disagreement")


def _ranking(campaign: Campaign) -> None:
    from langevin_xtal.search.campaign import flags
    from langevin_xtal.search.store import plain_address

    lines: list[tuple[str, ...]] = [
        ("rank", "uid", "formula", "group", "found", "above all", "above hull", "energy", "gap",
         "in target", "setting", "flags")
    ]  # fmt: skip
    for rank, entry in enumerate(campaign.entries(SHOWN), start=1):
        known = entry.properties.get("known")
        text = "; ".join([*([f"known: {known}"] if known else []), *flags(entry)])
        found = entry.properties.get("found_group_0.1", entry.found_group)
        above = entry.properties.get("e_above_all")
        lines.append(
            (
                str(rank),
                entry.uid,
                entry.formula,
                str(entry.space_group),
                str(found or "-"),
                _energy(above if isinstance(above, float) else None),
                _energy(entry.e_above_hull),
                _energy(entry.energy),
                structures.with_error(entry.properties, "predicted_band_gap"),
                _share(entry.properties.get("target_probability")),
                _setting(entry),
                text if len(text) <= FLAGS else text[: FLAGS - 1] + "…",
            )
        )
    echo("")
    optional = {k for k in (8, 9, 10) if not any(line[k] for line in lines[1:])}
    lines = [tuple(v for k, v in enumerate(line) if k not in optional) for line in lines]
    _print(lines, right=[k for k, title in enumerate(lines[0]) if title in NUMBERS])
    where = plain_address(campaign.store)
    echo(
        "energies in eV/atom, above the hull of known phases and all candidates, and of known "
        "phases alone; groups found within 0.1 Å where relaxed, else within 0.01 Å; "
        f"all candidates are in {where}"
    )
    if 8 not in optional:
        echo("gaps in eV and their standard deviations as predicted from the structure")
    plan = campaign.plan
    if plan.config.relax and (
        plan.hull is not None or plan.relax_options.potential == DEFAULT_POTENTIAL
    ):
        from langevin_xtal.screen.hull import coverage_note

        echo(coverage_note(plan.space.elements, plan.hull))


def _setting(entry: Entry) -> str:
    """Such as ``3 (1.2 %)``: place among the likely settings, from 0, and probability."""
    from langevin_xtal.search.rows import setting_of

    rank, probability = setting_of(entry.provenance)
    return "" if rank is None else f"{rank} ({100 * probability:.2g} %)"


def _share(value: object) -> str:
    return f"{100 * value:.0f} %" if isinstance(value, float) else ""


def _energy(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _print(lines: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    for line in lines:
        cells = [
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        echo("  ".join(cells).rstrip())
