"""``langevin-xtal solve`` and ``xrd``: structures for a pattern, patterns of structures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from langevin_xtal.cli import options, structures, types
from langevin_xtal.cli.terminal import echo
from langevin_xtal.config.solving import TUBE, PatternConfig, SolveConfig
from langevin_xtal.errors import InputError, LangevinXtalError

if TYPE_CHECKING:
    from langevin_xtal.crystal.request import Request
    from langevin_xtal.diffraction.pattern import Pattern
    from langevin_xtal.diffraction.solve import Solution
    from langevin_xtal.model.checkpoint import CrystalModel

SHOWN = ("rank", "file", "r_wp", "gof", "likeness", "probability", "wyckoff")
STEP = 0.02
"""Of simulated patterns [degrees]."""

wavelength = click.option(
    "--wavelength",
    help=f"Tube such as CuKa, CuKa1, MoKa, or Å.  [default: what an xrdml file says, or {TUBE}]",
    metavar="NAME|Å",
)


@dataclass(frozen=True)
class Asked:
    """The composition, and what is known beside, as the command line says it."""

    formula: str
    atoms: int | None
    z: int | None
    groups: str | None


@dataclass(frozen=True)
class Scan:
    """The file of a pattern, and what is used of it."""

    scan: Path
    wavelength: str | None
    limits: tuple[float, float] | None

    def read(self) -> Pattern:
        """The pattern.

        Raises
        ------
        InputError
            Where it cannot be read or used.
        """
        from langevin_xtal.diffraction.pattern import read_pattern
        from langevin_xtal.diffraction.refine import Target

        pattern = read_pattern(self.scan, wavelength=self.wavelength)
        if self.limits is not None:
            pattern = pattern.within(*self.limits)
        Target.of(pattern)  # refuses what cannot be refined against
        return pattern


@click.command()
@click.option("--formula", required=True, help="Exact composition, such as NaCl or LiFePO4.")
@click.option(
    "--pattern",
    "scan",
    type=options.LocalPath(),
    required=True,
    help="Powder pattern: xy, xye, csv (2θ in degrees, intensity, error), or xrdml.",
    metavar="FILE",
)
@wavelength
@click.option(
    "--atoms",
    type=click.IntRange(min=1),
    help="Atoms in the primitive cell.  [default: the model's to choose]",
    metavar="N",
)
@click.option(
    "--z",
    type=click.IntRange(min=1),
    help="Formula units in the conventional cell.  [default: the model's to choose]",
    metavar="Z",
)
@click.option(
    "--sg",
    "groups",
    help="Space groups to choose from, as for the command sample.  [default: all]",
    metavar="GROUPS",
)
@options.of_config(SolveConfig, "cell", types={"cell": types.CellParameters()})
@click.option(
    "--range",
    "limits",
    type=(float, float),
    help="Use this part of the pattern only [degrees].",
    metavar="LOW HIGH",
)
@options.of_config(SolveConfig, "samples", "orientation")
@options.seed
@options.model
@options.threads
@options.output_folder("solved")
@structures.force
@options.gathered(Asked, "formula", "atoms", "z", "groups", into="asked")
@options.gathered(SolveConfig, "samples", "cell", "orientation", into="config")
@options.gathered(Scan, "scan", "wavelength", "limits", into="measured")
def solve(
    asked: Asked,
    measured: Scan,
    config: SolveConfig,
    seed: int,
    model: str,
    threads: int | None,
    out: Path,
    force: bool,
) -> None:
    """Find structures for a powder pattern and a composition.

    Candidates are sampled in rounds, their cells are fitted to the pattern, and the best are
    refined within their symmetry: free coordinates, cell, zero shift, peak shape, displacement
    factor, background. Writes a CIF for each, named by rank with the lowest R_wp first,
    solutions.csv, and fit.png with measured, calculated and difference. Interrupted, it keeps
    what was finished.

    \b
    Examples:
      langevin-xtal solve --formula NaCl --pattern scan.xy
      langevin-xtal solve --formula LiFePO4 --pattern scan.xrdml --atoms 28 --out olivine/
      langevin-xtal solve --formula TiO2 --pattern scan.xye --sg tetragonal --wavelength MoKa
    """
    from langevin_xtal.diffraction.solve import POOR, SolveOptions, ranked, solve_rounds
    from langevin_xtal.model.checkpoint import load_model
    from langevin_xtal.report.patterns import PICTURE, TABLE, draw_fits, write_solutions

    pattern = measured.read()
    options.say_settings(asked.groups)
    weights = load_model(model)
    request = _request(asked, weights)
    options.say_unknown(request.elements, weights)
    _open_folder(out, force)
    chosen = SolveOptions.of(config, workers=threads)
    echo(f"{pattern.name}: {len(pattern)} points, {pattern.radiation}")
    found: list[Solution] = []
    rows: list[dict[str, str]] = []
    with options.progress_bar("solving", "candidate") as update:
        for solutions in solve_rounds(
            pattern, request, weights, seed, options=chosen, progress=update
        ):
            found += solutions
            rows = write_solutions(out, found, [row["file"] for row in rows])
            draw_fits(found, out / PICTURE)
    if not found:
        why = "" if config.cell is None else ": no setting of the composition fits --cell"
        raise LangevinXtalError(f"none of {config.samples} candidates came about{why}")
    structures.show_table(rows, SHOWN, out / TABLE)
    best = ranked(found)[0]
    if best.refined is None or best.r_wp > POOR:
        echo(
            f"Warning: nothing fits well (best R_wp {best.r_wp:.3f}). Check --wavelength (this "
            f"run took {pattern.radiation}), the composition, impurity peaks and --atoms, or ask "
            "for more candidates with --n",
            err=True,
        )
    echo(f"{len(found)} candidates in {out}, the best with R_wp = {best.r_wp:.4f}")


@click.command()
@structures.files
@options.output_folder("patterns")
@wavelength
@options.of_config(PatternConfig, types={"limits": (float, float)}, into="config")
@structures.force
def xrd(
    files: tuple[Path, ...],
    out: Path,
    wavelength: str | None,
    config: PatternConfig,
    force: bool,
) -> None:
    """Simulate powder patterns of structures.

    FILES are structures in any format. Writes NAME.xy for each: 2θ in degrees and intensity, 100
    for the highest point.

    \b
    Examples:
      langevin-xtal xrd candidates/ --out patterns/
      langevin-xtal xrd POSCAR --wavelength MoKa --range 2 40
    """
    import numpy as np

    from langevin_xtal.crystal.asymmetric import asymmetric_unit
    from langevin_xtal.diffraction.radiation import radiation
    from langevin_xtal.diffraction.simulate import Crystal, Profile, simulate
    from langevin_xtal.errors import RejectError
    from langevin_xtal.files import write_text

    source = radiation(wavelength or TUBE)
    entries, refused = structures.read_structures(files)
    _open_folder(out, force)
    low, high = config.limits
    x = np.arange(low, high + STEP / 2, STEP)
    done = 0
    for entry in entries:
        try:
            sites = asymmetric_unit(*entry.cell)
            crystal = Crystal(
                sites.group, sites.lattice, sites.numbers, sites.frac, sites.multiplicity
            )
            y = simulate(crystal, source, x, Profile(w=config.width**2))
        except (RejectError, InputError) as error:
            refused[entry.uid] = str(error)
            continue
        y *= 100 / y.max()
        lines = [f"# {entry.formula} {source}", "# two_theta intensity"]
        lines += [f"{a:.4f} {b:.5f}" for a, b in zip(x, y, strict=True)]
        write_text(out / structures.file_name(entry.uid, ".xy"), "\n".join(lines) + "\n")
        done += 1
    structures.show_refused(refused)
    if not done:
        raise LangevinXtalError(f"no pattern of {len(entries)} structures could be simulated")
    echo(f"{done} patterns in {out}")


def _request(asked: Asked, weights: CrystalModel) -> Request:
    """What candidates are asked for."""
    from langevin_xtal.crystal.request import Request
    from langevin_xtal.model.groups import parse_groups

    named = () if asked.groups is None else parse_groups(asked.groups, weights)
    return Request(formula=asked.formula, z=asked.z, atoms=asked.atoms, groups=named)


def _open_folder(out: Path, force: bool) -> None:
    """Make a folder, or take an empty one."""
    from langevin_xtal.files import clear_left, unwritable

    try:
        if out.is_dir() and any(out.iterdir()) and not force:
            raise InputError(
                f"folder {out} holds something already: give --out another folder, or --force to "
                "replace files in it"
            )
        out.mkdir(parents=True, exist_ok=True)
        clear_left(out)
    except OSError as error:
        raise unwritable(
            f"folder {out}", error, InputError, "give --out a folder you may write to"
        ) from None
