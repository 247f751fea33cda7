"""Trajectories: where the chains of candidates went, level by level, as extended XYZ.

Every frame holds the atoms of the finished candidate, in the same order: of the images of a site
those that are its atoms at the end. Positions run on without jumps from one side of the cell to
the other, so atoms may lie outside it. The last frame is the end of the chain; free sites are
placed on special positions after it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langevin_xtal.crystal.candidate import Candidate
from langevin_xtal.crystal.elements import SYMBOLS
from langevin_xtal.errors import InputError
from langevin_xtal.files import check_target, replacing, write_text
from langevin_xtal.sampling.chain import Chains
from langevin_xtal.sampling.samplers import Schedule
from langevin_xtal.symmetry import orbit

if TYPE_CHECKING:
    from ase import Atoms

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The chain of one candidate: F frames, A sites, N atoms."""

    candidate: Candidate
    level: IntArray  #: (F,) noise levels done: 0 at the start
    sigma: FloatArray  #: (F,) position noise of the last of them, at the start of the first [Å]
    sigma_lattice: FloatArray  #: (F,) the same of the lattice coordinates [Å]
    site_frac: FloatArray  #: (F, A, 3) sites, in [0, 1)
    lattice: FloatArray  #: (F, 3, 3) rows [Å]

    def __len__(self) -> int:
        return len(self.level)

    @property
    def positions(self) -> FloatArray:
        """(F, N, 3) Cartesian positions of the candidate's atoms [Å]."""
        group, c = self.candidate.space_group, self.candidate
        frac = np.unwrap(self.site_frac, period=1.0, axis=0)
        atoms = []
        for k, site in enumerate(c.frac):
            _, op = orbit(site, group.rotations, group.translations, c.lattice)
            atoms.append(
                frac[:, k] @ np.swapaxes(group.rotations[op], 1, 2)
                + group.translations[op][:, None]
            )
        moving = np.concatenate(atoms).swapaxes(0, 1)
        moving -= np.rint(moving[-1] - c.atom_frac)
        return moving @ self.lattice

    @property
    def atoms(self) -> list[Atoms]:
        """Every frame as ase.Atoms, with what :meth:`text` says of it in ``info``."""
        from ase import Atoms

        numbers = self.candidate.numbers[self.candidate.atom_site]
        return [
            Atoms(numbers, positions=x, cell=cell, pbc=True, info=self._info(k))
            for k, (x, cell) in enumerate(zip(self.positions, self.lattice, strict=True))
        ]

    def text(self) -> str:
        """All frames as extended XYZ.

        The comment lines hold the cell, the candidate's index, attempt, seed, formula, group and
        request, the levels done and their noise [Å].
        """
        c = self.candidate
        symbols = [SYMBOLS[z] for z in c.numbers[c.atom_site]]
        lines = []
        for k, (positions, cell) in enumerate(zip(self.positions, self.lattice, strict=True)):
            info = " ".join(
                f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"
                for name, value in self._info(k).items()
            )
            rows = " ".join(f"{x:.8f}" for x in cell.ravel())
            lines += [
                str(len(symbols)),
                f'Lattice="{rows}" Properties=species:S:1:pos:R:3 {info} pbc="T T T"',
            ]
            lines += [
                f"{s:2s} {x:16.8f} {y:16.8f} {z:16.8f}"
                for s, (x, y, z) in zip(symbols, positions.tolist(), strict=True)
            ]
        return "\n".join(lines) + "\n"

    def _info(self, frame: int) -> dict[str, int | float | str]:
        c = self.candidate
        return {
            "candidate": c.index,
            "attempt": c.attempt,
            "seed": c.seed,
            "formula": c.formula,
            "space_group": c.space_group.number,
            "request": str(c.request),
            "level": int(self.level[frame]),
            "sigma": float(f"{self.sigma[frame]:.6g}"),
            "sigma_lattice": float(f"{self.sigma_lattice[frame]:.6g}"),
        }


class Recorder:
    """Keeps the state of chains as they go; on their device until the end.

    Parameters
    ----------
    schedule
        The levels they run over.
    every
        Levels from one frame to the next; the start and the end are kept always.
    """

    def __init__(self, chains: Chains, schedule: Schedule, every: int) -> None:
        self._chains, self._schedule, self._every = chains, schedule, every
        self._levels: list[int] = []
        self._frac: list[Tensor] = []
        self._lattice: list[Tensor] = []
        self._keep(0)

    def after(self, done: int) -> None:
        """Called after every level, with how many are done."""
        if done % self._every == 0 or done == len(self._schedule[0]):
            self._keep(done)

    def _keep(self, done: int) -> None:
        # chains replace their tensors and never write into them, so these need no copies
        self._levels.append(done)
        self._frac.append(self._chains.frac)
        self._lattice.append(self._chains.lattice)

    def trajectories(self, candidates: Iterable[tuple[int, Candidate]]) -> list[Trajectory]:
        """Of candidates, given with their places in the batch."""
        levels = np.array(self._levels, dtype=np.int64)
        used = torch.from_numpy(np.maximum(levels - 1, 0))
        sigma, sigma_lat = (part.cpu()[used].numpy() for part in self._schedule)
        frac = torch.stack(self._frac).cpu().numpy()
        lattice = torch.stack(self._lattice).cpu().numpy()
        first = self._chains.crystals.site_start.tolist()
        return [
            Trajectory(
                candidate=candidate,
                level=levels,
                sigma=sigma[:, k],
                sigma_lattice=sigma_lat[:, k],
                site_frac=frac[:, first[k] : first[k + 1]],
                lattice=lattice[:, k],
            )
            for k, candidate in candidates
        ]


class TrajectoryFile:
    """An extended XYZ file with the trajectories of a run, in the order of its candidates.

    Candidates come in any order, and a run may be interrupted: what there is waits in a folder of
    the run, one file per candidate, until :meth:`finish` writes the file in one go.

    Parameters
    ----------
    path
        The file; see :meth:`check`.
    run_folder
        Where the run writes its candidates.
    every
        Levels from frame to frame.
    """

    def __init__(self, path: Path, run_folder: Path, every: int) -> None:
        self.path, self.every = path, every
        self.parts = run_folder / f"trajectory.every{every}.parts"

    @staticmethod
    def check(path: Path, run_folder: Path, *, force: bool) -> None:
        """Refuse a file that cannot be written, before the work is done.

        Raises
        ------
        InputError
            When it is there and ``force`` is false, is a folder, or has none to lie in.
        """
        if path.is_dir():
            raise InputError(f"{path} is a folder: give --trajectory the name of a file")
        check_target(path)
        if path.exists() and not force:
            raise InputError(
                f"{path} is there already: give --trajectory another name, or --force"
            )
        folder = path.resolve().parent
        if not folder.is_dir() and folder != run_folder.resolve():
            raise InputError(f"folder {path.parent} does not exist: make it, or give another one")

    def __contains__(self, index: int) -> bool:
        return self._part(index).is_file()

    def add(self, trajectories: Iterable[Trajectory]) -> None:
        """Keep what a batch gave; each file complete or not at all."""
        self.parts.mkdir(exist_ok=True)
        for trajectory in trajectories:
            path = self._part(trajectory.candidate.index)
            write_text(path, trajectory.text())

    def finish(self, indices: Iterable[int]) -> None:
        """Write the file from the candidates with these indices, and forget the parts."""
        with replacing(self.path, binary=True) as whole:
            for index in sorted(indices):
                with self._part(index).open("rb") as one:
                    shutil.copyfileobj(one, whole)
        shutil.rmtree(self.parts, ignore_errors=True)

    def _part(self, index: int) -> Path:
        return self.parts / f"{index:04d}.extxyz"
