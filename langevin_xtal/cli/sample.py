"""``langevin-xtal sample``: candidates for elements, sites or a formula, and space groups."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import generators, options
from langevin_xtal.cli.asked import Asked, asked_options, requests_of
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config.sampling import PRESET_HELP, PRESETS, SamplingConfig
from langevin_xtal.errors import LangevinXtalError

if TYPE_CHECKING:
    from langevin_xtal.crystal.candidate import Candidate
    from langevin_xtal.crystal.request import Request
    from langevin_xtal.model.checkpoint import CrystalModel
    from langevin_xtal.sampling.folder import CandidateFolder
    from langevin_xtal.sampling.sample import SampleOptions
    from langevin_xtal.sampling.trajectory import TrajectoryFile

TABLE = ("index", "formula", "group", "found_0.01", "symmetry", "sites", "atoms",
         "volume_per_atom")  # fmt: skip
SHOWN = 20
DE_NOVO_PART = 256
"""Crystals drawn de novo at a time."""


@dataclass(frozen=True)
class Output:
    """Where candidates go, and as what."""

    out: Path
    file_format: str
    picture: bool


@dataclass(frozen=True)
class Chains:
    """The file of chains that is asked for, if one is."""

    trajectory: Path | None
    trajectory_every: int
    force: bool

    def open(self, out: Path) -> TrajectoryFile | None:
        """The file, for the candidates of a folder."""
        from langevin_xtal.sampling.trajectory import TrajectoryFile

        if self.trajectory is None:
            return None
        return TrajectoryFile(self.trajectory, out, self.trajectory_every)

    def check(self, out: Path) -> None:
        """Refuse a file that may not be written.

        Raises
        ------
        InputError
        """
        from langevin_xtal.sampling.trajectory import TrajectoryFile

        if self.trajectory is not None:
            TrajectoryFile.check(self.trajectory, out, force=self.force)


@click.command()
@asked_options
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
@options.model
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
@options.of_config(SamplingConfig, into="sampling")
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
@options.replacing("Replace a trajectory file that is there.")
@options.gathered(Asked.given, *Asked.OPTIONS, into="asked", copied=("groups",))
@options.gathered(Output, "out", "file_format", "picture", into="output")
@options.gathered(Chains, "trajectory", "trajectory_every", "force", into="chains")
def sample(
    asked: Asked,
    groups: str | None,
    count: int,
    seed: int,
    model: str,
    generator: str | None,
    weights: Path | None,
    device: str,
    threads: int | None,
    output: Output,
    sampling: SamplingConfig,
    chains: Chains,
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
            generator, weights, asked, groups, count=count, seed=seed, threads=threads,
            out=output.out, file_format=output.file_format,
        )  # fmt: skip
        return
    from langevin_xtal.model.checkpoint import load_model
    from langevin_xtal.model.device import resolved_device
    from langevin_xtal.sampling.sample import SampleOptions
    from langevin_xtal.sampling.spread import settled

    resolved_device(device)
    chains.check(output.out)
    chosen = SampleOptions.of(sampling, workers=threads)
    # refuse what cannot be sampled before a folder is made
    loaded = load_model(model)
    by_group, spreads = requests_of(asked, groups, loaded, chosen)
    folder = _folder(asked, by_group, seed, loaded, chosen, output)
    file = chains.open(output.out)
    indices = [
        k
        for k in range(count)
        if not folder.is_done(k, chosen.attempts)
        or (file is not None and k in folder.rows and k not in file)
    ]
    turns = [by_group[k % len(by_group)] for k in range(count)]
    if asked.elements is not None and loaded.settings is None:
        _draw_sites(asked.elements, turns, indices, loaded, seed)
    if not asked.de_novo:
        turns = settled(turns, loaded, seed, known=spreads)
    began = time.perf_counter()
    # settings of many crystals take a while: sampled in parts, they show progress
    parts = _parts(indices, DE_NOVO_PART if asked.de_novo else count)
    made = _sampled(turns, parts, loaded, seed, device, chosen, folder, file)
    seconds = time.perf_counter() - began
    if file is not None:
        file.finish(k for k in folder.rows if k < count and k in file)
    if output.picture and made:
        from langevin_xtal.report.pictures import draw_candidates

        draw_candidates(made[:8], output.out / "candidates.png")
    _summary(folder, count, chosen.attempts, loaded, seconds if indices else None)
    if file is not None:
        echo(f"chains in {chains.trajectory}")
    if not any(k < count for k in folder.rows):
        raise LangevinXtalError(
            f"none of {count} candidates came about; {output.out / 'rejects.csv'} says why"
        )


def _folder(
    asked: Asked,
    by_group: Sequence[Request],
    seed: int,
    model: CrystalModel,
    chosen: SampleOptions,
    output: Output,
) -> CandidateFolder:
    """The folder of this run; one of another run is refused."""
    from langevin_xtal.sampling.folder import CandidateFolder

    groups = [
        list(request.groups) if request.space_group is None else request.space_group.number
        for request in by_group
    ]
    record = {
        **asked.settings(),
        "groups": groups,
        "seed": seed,
        "model": model.name,
        "weights": model.hash,
        "model_settings": model.settings_hash,
        **chosen.record(),
    }
    return CandidateFolder(output.out, record, file_format=output.file_format)


def _draw_sites(
    elements: tuple[str, ...],
    turns: list[Request],
    indices: Sequence[int],
    model: CrystalModel,
    seed: int,
) -> None:
    """Numbers of sites, for a model that has no distribution over settings."""
    from langevin_xtal.crystal.request import Request
    from langevin_xtal.sampling.draw_requests import draw_sites

    for k in indices:
        drawn = draw_sites(elements, turns[k].space_group, model.statistics, seed, k)
        turns[k] = Request(drawn.space_group, drawn.sites, lattice=turns[k].lattice)


def _sampled(
    turns: Sequence[Request],
    parts: Iterator[Sequence[int]],
    model: CrystalModel,
    seed: int,
    device: str,
    chosen: SampleOptions,
    folder: CandidateFolder,
    file: TrajectoryFile | None,
) -> list[Candidate]:
    """Sample into the folder; the candidates made."""
    from langevin_xtal.sampling.sample import sample_batches

    made: list[Candidate] = []
    with options.progress_bar("sampling", "level") as update:
        for part in parts:
            for outcome in sample_batches(
                [_drawn(turns[k], model, seed, k) for k in part],
                model,
                seed,
                indices=part,
                device=device,
                options=chosen,
                progress=update,
                trajectory_every=None if file is None else file.every,
            ):
                # a candidate counts as done only where its chain is there
                if file is not None:
                    file.add(outcome.trajectories)
                folder.add(outcome.candidates, outcome.rejections)
                made += outcome.candidates
    return made


def _parts(indices: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (indices[k : k + size] for k in range(0, len(indices), size))


def _drawn(request: Request, model: CrystalModel, seed: int, index: int) -> Request:
    """The request itself, or one drawn for it where it names nothing."""
    from langevin_xtal.sampling.spread import de_novo

    return de_novo(request, model, seed, index) if request.is_empty else request


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
