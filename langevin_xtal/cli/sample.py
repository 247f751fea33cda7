"""``langevin-xtal sample``: candidates for elements and space groups."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import options
from langevin_xtal.errors import InputError

if TYPE_CHECKING:
    from langevin_xtal.crystal.request import Request
    from langevin_xtal.model.checkpoint import ScoreModel
    from langevin_xtal.sampling.folder import CandidateFolder
    from langevin_xtal.symmetry.groups import SpaceGroup

TABLE = ("index", "formula", "group", "found_0.01", "symmetry", "atoms", "volume_per_atom")
SHOWN = 20


@click.command()
@click.option("--elements", type=options.Elements(), help="Such as Cu,Si,K.", metavar="LIST")
@click.option(
    "--sites",
    type=options.Sites(),
    help="Sites of each element in the asymmetric unit, such as Cu:2,Si:1; instead of --elements.",
    metavar="LIST",
)
@click.option(
    "--sg",
    "groups",
    type=options.SpaceGroups(),
    required=True,
    help="Space groups by number or symbol; lists and ranges: 62,Fm-3m,140-142.",
    metavar="GROUPS",
)
@click.option(
    "--n",
    "count",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Candidates in all; several groups take turns.",
    metavar="N",
)
@options.seed
@click.option("--model", default="small", show_default=True, help="Shipped name or file.")
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
@click.option(
    "--positions",
    type=click.Choice(["assigned", "free"]),
    default="assigned",
    show_default=True,
    help="assigned: Wyckoff positions are drawn first, from a learned prior; free: as the paper.",
)
@click.option(
    "--assignment-temperature",
    type=click.FloatRange(min=0.01),
    default=1.0,
    show_default=True,
    help="Below 1, likelier Wyckoff positions are drawn more often: fewer different crystals.",
)
@click.option(
    "--sampler",
    type=click.Choice(["ancestral", "langevin"]),
    default="ancestral",
    show_default=True,
    help="langevin is the paper's Algorithm 1, and slower.",
)
@click.option(
    "--levels", type=click.IntRange(min=2), help="Noise levels.  [default: the sampler's]"
)
@click.option("--steps", type=click.IntRange(min=1), help="Langevin steps per level.")
@click.option(
    "--attempts",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Tries for a candidate whose atoms overlap or leave their Wyckoff positions.",
)
@click.option(
    "--min-distance",
    type=click.FloatRange(min=0.0),
    default=0.7,
    show_default=True,
    help="Shortest distance allowed between atoms [Å].",
)
@click.option(
    "--merge",
    type=click.FloatRange(min=0.0),
    default=0.3,
    show_default=True,
    help="Sites this near a special position are placed on it [Å].",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--picture", is_flag=True, help="Draw the first candidates to candidates.png.")
def sample(
    elements: tuple[str, ...] | None,
    sites: dict[str, int] | None,
    groups: tuple[SpaceGroup, ...],
    count: int,
    seed: int,
    model: str,
    device: str,
    threads: int | None,
    out: Path,
    file_format: str,
    positions: str,
    assignment_temperature: float,
    sampler: str,
    levels: int | None,
    steps: int | None,
    attempts: int,
    min_distance: float,
    merge: float,
    batch_size: int,
    picture: bool,
) -> None:
    """Sample candidate crystals.

    With --elements, the number of sites of each element is drawn as the training data have it.
    Writes one file per candidate, candidates.csv and rejects.csv. The same command gives the same
    files; a folder that holds part of a run is continued.

    \b
    Examples:
      langevin-xtal sample --elements Cu,Si,K --sg 62 --n 64 --seed 1 --out cusik/
      langevin-xtal sample --sites Sr:1,Ti:1,O:1 --sg Pm-3m
    """
    if (elements is None) == (sites is None):
        raise InputError("give either --elements or --sites, one of the two")
    from langevin_xtal.crystal.request import Request
    from langevin_xtal.model.checkpoint import load_model
    from langevin_xtal.sampling.chain import check_groups
    from langevin_xtal.sampling.draw_requests import draw_sites
    from langevin_xtal.sampling.folder import CandidateFolder
    from langevin_xtal.sampling.postprocess import PostprocessConfig
    from langevin_xtal.sampling.sample import SampleOptions, sample_batches
    from langevin_xtal.sampling.samplers import make_sampler

    # refuse what cannot be sampled before a folder is made
    check_groups([Request(g, sites or dict.fromkeys(elements or (), 1)) for g in groups])
    if device not in ("auto", "cpu"):
        raise InputError(f"device {device!r} is not supported for sampling; give auto or cpu")
    chosen = make_sampler(sampler, levels, steps)
    weights = load_model(model)
    config = PostprocessConfig(merge=merge, min_distance=min_distance)
    folder = CandidateFolder(
        out,
        {
            "elements": elements,
            "sites": sites,
            "groups": [g.number for g in groups],
            "seed": seed,
            "model": weights.name,
            "weights": weights.hash,
            "positions": positions,
            "assignment_temperature": assignment_temperature,
            "sampler": repr(chosen),
            "postprocess": repr(config),
            "attempts": attempts,
        },
        file_format=file_format,
    )
    indices = [k for k in range(count) if not folder.is_done(k, attempts)]
    requests: list[Request] = []
    for k in indices:
        group = groups[k % len(groups)]
        drawn = elements is not None
        requests.append(
            draw_sites(elements, group, weights.statistics, seed, k)
            if drawn and elements
            else Request(group, sites or {})
        )
    start = time.perf_counter()
    drawn_now = []
    with options.progress_bar("sampling", "level") as update:
        for outcome in sample_batches(
            requests,
            weights,
            seed,
            indices=indices,
            device=device,
            options=SampleOptions(
                batch_size=batch_size,
                workers=threads,
                attempts=attempts,
                positions=positions,  # type: ignore[arg-type]
                assignment_temperature=assignment_temperature,
                sampler=chosen,
                postprocess=config,
            ),
            progress=update,
        ):
            folder.add(outcome.candidates, outcome.rejections)
            drawn_now += outcome.candidates
    seconds = time.perf_counter() - start
    if picture and drawn_now:
        from langevin_xtal.report.pictures import draw_candidates

        draw_candidates(drawn_now[:8], out / "candidates.png")
    _summary(folder, count, attempts, weights, seconds if indices else None)


def _summary(
    folder: CandidateFolder, count: int, attempts: int, model: ScoreModel, seconds: float | None
) -> None:
    rows = [folder.rows[k] for k in sorted(folder.rows) if k < count]
    table = [TABLE, *([row[c] for c in TABLE] for row in rows[:SHOWN])]
    widths = [max(len(line[k]) for line in table) for k in range(len(TABLE))]
    for line in table:
        click.echo("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    if len(rows) > SHOWN:
        click.echo(f"… {len(rows) - SHOWN} more in {folder.path / 'candidates.csv'}")
    asked = [r for r in folder.rejects.values() if int(r["index"]) < count]
    lost = sum(1 for r in asked if int(r["attempt"]) == attempts - 1)
    higher = sum(row["symmetry"] == "supergroup" for row in rows)
    took = "" if seconds is None else f" in {seconds:.1f} s"
    click.echo(
        f"{len(rows)} of {count} candidates in {folder.path}{took} with model {model.name}; "
        f"{higher} found in a supergroup at 0.01 Å; {lost} given up after {attempts} attempts"
    )
    for reason, times in Counter(r["reason"].split(":")[0] for r in asked).most_common():
        click.echo(f"  {times} attempts rejected: {reason} (see rejects.csv)")
