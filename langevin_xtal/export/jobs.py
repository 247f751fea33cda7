"""A SLURM job array that runs a program in every exported folder."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from langevin_xtal.config.export import JobConfig
from langevin_xtal.errors import InputError
from langevin_xtal.files import write_text

SCRIPT = "submit.sh"
FOLDERS = "folders.txt"
FINISHED = "finished"
"""File that marks a folder whose command succeeded."""
MAX_TASKS = 1000
"""SLURM's default MaxArraySize is 1001; with more folders, a task takes several."""


@dataclass(frozen=True)
class Job:
    """How the program is started."""

    name: str
    command: str
    """Run by bash within each folder, such as ``"srun vasp_std"``."""
    concurrent: int = JobConfig.concurrent
    """Tasks that may run at a time."""
    needs: str = ""
    """A file without which the program cannot run and that may be missing."""

    def __post_init__(self) -> None:
        if not self.command.strip():
            raise InputError(
                "the command of the job script is empty; give one such as 'srun pw.x'"
            )
        if self.concurrent < 1:
            raise InputError(f"{self.concurrent} jobs at a time were asked for: give 1 or more")


def script_text(job: Job, tasks: int) -> str:
    """The script for ``tasks`` array tasks; the second line tells whether it was edited since."""
    lines = [
        f"#SBATCH --job-name={job.name}",
        f"#SBATCH --array=1-{tasks}%{min(job.concurrent, tasks)}",
        "#SBATCH --output=slurm-%A_%a.out",
        "#SBATCH --nodes=1",
        "# Add what your cluster asks for: account, partition, time, tasks per node, modules.",
        "",
        "set -euo pipefail",
        'here="$(dirname "$0")"',
        f'if [[ ! -f "$here/{FOLDERS}" ]]; then here="${{SLURM_SUBMIT_DIR:-.}}"; fi',
        f'if [[ ! -f "$here/{FOLDERS}" ]]; then',
        f'  echo "{FOLDERS} is not in $here: submit from the folder of this script" >&2',
        "  exit 1",
        "fi",
        'cd "$here"',
        f"mapfile -t folders < {FOLDERS}",
        "if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then",
        f"  task=$SLURM_ARRAY_TASK_ID tasks={tasks}",
        "else  # without SLURM: one folder after the other",
        "  task=1 tasks=1",
        "fi",
        "failed=0",
        "",
        "run() (",
        "  set -e",
        '  cd "$1"',
        *_check(job.needs),
        f"  {job.command.strip()}",
        ")",
        "",
        "for ((k = task - 1; k < ${#folders[@]}; k += tasks)); do",
        '  folder="${folders[k]}"',
        f'  if [[ -e "$folder/{FINISHED}" ]]; then continue; fi',
        "  set +e",
        '  run "$folder"',
        "  status=$?",
        "  set -e",
        "  if [[ $status -eq 0 ]]; then",
        f'    touch "$folder/{FINISHED}"',
        "  else",
        '    echo "$folder: the command failed with status $status" >&2',
        "    failed=1",
        "  fi",
        "done",
        "exit $failed",
    ]
    body = "\n".join(lines) + "\n"
    return f"#!/bin/bash\n# written by langevin-xtal export, {_digest(body)}\n{body}"


def write_jobs(root: Path, folders: Sequence[str], job: Job, *, force: bool = False) -> str:
    """Write ``folders.txt`` and ``submit.sh`` below ``root``.

    A script that was edited is kept unless ``force``; the sentence that says so is returned.
    """
    write_text(root / FOLDERS, "".join(f"{folder}\n" for folder in folders))
    path, text = root / SCRIPT, script_text(job, max(1, min(len(folders), MAX_TASKS)))
    if not force and path.exists() and not _is_ours(path):
        return (
            f"{path} was edited and is kept: see that its array runs from 1 to "
            f"{min(len(folders), MAX_TASKS)}, or give --force (force=True) to write it again"
        )
    write_text(path, text)
    path.chmod(path.stat().st_mode | 0o111)
    return ""


def _check(needs: str) -> list[str]:
    if not needs:
        return []
    missing = shlex.quote(f"no {needs} in ")
    return [f'  [[ -s {needs} ]] || echo {missing}"$PWD" >&2']


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _is_ours(path: Path) -> bool:
    """Whether the script is as it was written."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    found = re.match(r"#!/bin/bash\n# written by langevin-xtal export, ([0-9a-f]{16})\n", text)
    return found is not None and _digest(text[found.end() :]) == found[1]
