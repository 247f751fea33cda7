"""``--generator``: train, sample and evaluate one of the other published generators."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from langevin_xtal.baselines.registry import GENERATORS
from langevin_xtal.cli import options
from langevin_xtal.cli.terminal import echo
from langevin_xtal.errors import InputError, LangevinXtalError

if TYPE_CHECKING:
    from langevin_xtal.baselines.base import Generator, Recipe
    from langevin_xtal.cli.asked import Asked
    from langevin_xtal.crystal.request import Request
    from langevin_xtal.dataset.packed import PackedDataset
    from langevin_xtal.evaluation.structures import StructureSet
    from langevin_xtal.evaluation.targets import Target
    from langevin_xtal.sampling.folder import CandidateFolder

WITH_TRAIN = {"generator", "epochs", "files", "out", "seed", "threads", "max_minutes"}
WITH_SAMPLE = {"generator", "weights", "formula", "atoms", "z", "elements", "de_novo", "groups",
               "count", "seed", "threads", "out", "file_format"}  # fmt: skip
"""Parameters of the commands that go with ``--generator``."""

weights = click.option(
    "--weights",
    type=options.LocalPath(),
    help="With --generator: the file that its training left.",
    metavar="FILE",
)


def option(purpose: str) -> options.Decorator:
    """``--generator``."""
    return click.option(
        "--generator",
        type=click.Choice(tuple(GENERATORS)),
        help=f"{purpose} one of the other published generators, for comparison.",
    )


def check_alone(known: Collection[str]) -> None:
    """Refuse options of the main path that were given beside ``--generator``.

    Raises
    ------
    InputError
        Naming the first.
    """
    context = click.get_current_context()
    for param in context.command.params:
        given = context.get_parameter_source(param.name or "") == ParameterSource.COMMANDLINE
        if given and param.name not in known:
            raise InputError(f"{param.opts[0]} does not go with --generator; leave it out")


def check_apart(generator: str | None, **others: object) -> None:
    """Refuse options of generators where none is named.

    Raises
    ------
    InputError
        Naming the first.
    """
    for name, value in others.items():
        if generator is None and value is not None:
            raise InputError(f"--{name} needs --generator NAME")


def loaded(name: str, file: Path | None) -> Generator:
    """The generator with its weights.

    Raises
    ------
    InputError
        Without a file.
    CheckpointError
        For a file that is not that generator's.
    """
    from langevin_xtal.baselines.registry import load_generator

    if file is None:
        raise InputError(
            f"--generator {name} needs --weights FILE; make one with: langevin-xtal train "
            f"--generator {name} --data FILE.lxd"
        )
    return load_generator(name, file)


def train(
    name: str,
    files: Sequence[Path],
    out: Path,
    *,
    epochs: int | None,
    seed: int,
    threads: int | None,
    limit: float,
) -> None:
    """Fit a generator, or go on where the folder stopped."""
    check_alone(WITH_TRAIN)
    from langevin_xtal.baselines.base import WEIGHTS
    from langevin_xtal.baselines.registry import generator_class
    from langevin_xtal.dataset.packed import PackedDataset
    from langevin_xtal.dataset.reference import reference_dataset

    if len(files) > 1:
        raise InputError(f"{len(files)} files were given by --data; give one")
    if threads is not None:
        options.set_threads(threads)
    data = PackedDataset.load(files[0]) if files else reference_dataset()
    kind = generator_class(name)
    recipe: Recipe = kind.recipe(seed=seed, **({} if epochs is None else {"epochs": epochs}))
    run = kind.start_fit(data, recipe, out)
    if run.epoch:
        echo(f"resuming {out} at epoch {run.epoch} of {recipe.epochs}", err=True)
    with options.progress_bar(f"training {name}", "epoch") as update:
        for row in run.run(limit):
            update(row.epoch, recipe.epochs)
            losses = "  ".join(f"{n} {v:.4g}" for n, v in zip(run.losses, row.losses, strict=True))
            echo(f"epoch {row.epoch:4d}  {row.seconds:7.0f} s  {losses}")
    rest = "" if run.done else f" of {recipe.epochs}; the same command goes on"
    echo(f"{run.epoch} epochs{rest}; weights in {out / WEIGHTS}")


def sample(
    name: str,
    file: Path | None,
    asked: Asked,
    groups: str | None,
    *,
    count: int,
    seed: int,
    threads: int | None,
    out: Path,
    file_format: str,
) -> None:
    """Sample a generator into a folder of candidates."""
    check_alone(WITH_SAMPLE)
    from langevin_xtal.sampling.folder import CandidateFolder

    if threads is not None:
        options.set_threads(threads)
    generator = loaded(name, file)
    requests = _requests(asked, groups)
    for request in requests:
        generator.check(request)
    folder = CandidateFolder(
        out,
        {"generator": name, "weights": generator.hash, "requests": [str(r) for r in requests],
         "seed": seed, "model_settings": None},
        file_format=file_format,
    )  # fmt: skip
    places = [k for k in range(count) if not folder.is_done(k, 1)]
    began = time.perf_counter()
    with options.progress_bar("sampling", "crystal") as update:
        for first in range(0, len(places), generator.part):
            part = places[first : first + generator.part]
            found = generator.outcomes(
                [requests[k % len(requests)] for k in part], seed, indices=part
            )
            folder.add(found.candidates, found.rejections)
            update(first + len(part), len(places))
    _summary(folder, count, name, time.perf_counter() - began)
    if not any(k < count for k in folder.rows):
        raise LangevinXtalError(
            f"none of {count} candidates came about; {out / 'rejects.csv'} says why"
        )


def _requests(asked: Asked, groups: str | None) -> list[Request]:
    """One for each group named, which take turns; one where none is."""
    from langevin_xtal.crystal.request import Request
    from langevin_xtal.model.groups import parse_groups

    options.say_settings(groups)
    named = (None,) if groups is None else parse_groups(groups)
    given = {name: getattr(asked, name) for name in ("formula", "atoms", "z", "elements")}
    return [Request(group, **given) for group in named]


def _summary(folder: CandidateFolder, count: int, name: str, seconds: float) -> None:
    rows = [folder.rows[k] for k in sorted(folder.rows) if k < count]
    for row in rows[:20]:
        echo(f"{row['index']:>5}  {row['formula']:<20}  group {row['group']:>3}, at 0.1 Å "
             f"{row['found_0.1']:>3}  {row['atoms']:>3} atoms")  # fmt: skip
    if len(rows) > 20:
        echo(f"… {len(rows) - 20} more in {folder.path / 'candidates.csv'}")
    lost = [r for r in folder.rejects.values() if int(r["index"]) < count]
    echo(f"{len(rows)} of {count} candidates in {folder.path} in {seconds:.1f} s with generator "
         f"{name}")  # fmt: skip
    for reason, times in Counter(r["reason"].split(":")[0] for r in lost).most_common():
        echo(f"  {times} rejected: {reason} (see rejects.csv)")


def mode_for(generator: Generator, mode: Any) -> Any:
    """The ``--mode`` of an evaluation: that of what the generator is given.

    Raises
    ------
    InputError
        When another was asked for.
    """
    fits = {"composition": "composition", "elements": "sites", "nothing": "de-novo"}
    wanted = fits[generator.given]
    source = click.get_current_context().get_parameter_source("mode")
    if source == ParameterSource.COMMANDLINE and mode != wanted:
        raise InputError(
            f"--mode {mode} does not go with --generator {generator.name}; leave it out, or give "
            f"--mode {wanted}"
        )
    return wanted


def served(generator: Generator, data: PackedDataset) -> PackedDataset:
    """The crystals that a generator can be asked for; says how many that leaves."""
    from langevin_xtal.baselines import predict

    kept = predict.served(generator, data)
    if len(kept) < len(data):
        echo(
            f"generator {generator.name} serves {generator.serves}: {len(kept)} of {len(data)} "
            "crystals of the reference",
            err=True,
        )
    return kept


def evaluated(
    generator: Generator,
    kept: Callable[[str, object, Callable[[], StructureSet]], StructureSet],
    targets: Sequence[Target],
    trials: int,
    count: int,
    seed: int,
) -> list[StructureSet]:
    """The set of a generator's structures: of all targets, or ``count`` where there are none.

    Parameters
    ----------
    kept
        Finds a set by label and settings, or makes it.
    """
    from langevin_xtal.baselines import predict
    from langevin_xtal.evaluation.targets import join

    key = {"generator": generator.name, "weights": generator.hash, "seed": seed}
    label = generator.name
    with options.progress_bar(f"sampling {label}", "crystal") as update:
        if not targets:
            return [
                kept(label, key | {"count": count}, lambda: predict.unconditional(
                    generator, count, seed=seed, progress=update
                ))
            ]  # fmt: skip
        ids = [target.id for target in targets]
        parts = [
            kept(label, key | {"targets": ids, "trial": trial}, partial(
                predict.predictions, generator, targets, trial, seed=seed, progress=update
            ))
            for trial in range(trials)
        ]  # fmt: skip
    return [join(label, parts)]
