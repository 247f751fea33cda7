"""Attack the command line and its files for minutes or hours, and count what breaks.

Every try is drawn from the seed and its number, so that one can be done again alone:

    python scripts/attack.py --seed 1 --minutes 10 --out docs/results/attacks.json
    python scripts/attack.py --seed 1 --only "edited store" --number 17
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from langevin_xtal.version import __version__
from tests.arena import Arena
from tests.attacks import MEBIBYTES, SECONDS, STOP_SECONDS, Tally, warm_up
from tests.postgres import running_server

SLOW = (
    "PostgreSQL",
    "SIGKILL",
    "SIGINT",
    "SIGTERM",
    "several processes",
    "full disk",
    "read only",
)
OFTEN = {"mutated file": 5, "random line": 5, "edited store": 3, "edited checkpoint": 3}
"""Tries of a round."""
SLOW_EVERY = 5
"""Rounds from one of these to the next."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers-every", type=int, default=40, metavar="ROUNDS")
    parser.add_argument("--only", help="one kind of attack")
    parser.add_argument("--skip", action="append", default=[], help="a kind of attack; repeatable")
    parser.add_argument("--number", type=int, help="one try of it")
    parser.add_argument("--model", help="a checkpoint; by default a tiny one")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()
    warm_up()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder, running_server() as server:
        root = Path(folder)
        root.chmod(0o755)
        arena = Arena(root, asked.model or tiny(root), asked.seed, tally, server)
        kinds = arena.kinds()
        if asked.only:
            kinds = {asked.only: kinds[asked.only]}
        kinds = {kind: attack for kind, attack in kinds.items() if kind not in asked.skip}
        if asked.number is not None:
            print(kinds[asked.only](asked.number))
            return 0
        number, began = 0, time.monotonic()
        while time.monotonic() - began < 60 * asked.minutes:
            for kind, attack in kinds.items():
                if asked.only or kind not in SLOW or number % SLOW_EVERY == 0:
                    times = 1 if asked.only else OFTEN.get(kind, 1)
                    for k in range(times):
                        attack(times * number + k)
            if not asked.only and number % asked.workers_every == 0:
                for which in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                    arena.with_workers(number, which)
            number += 1
            if number % 20 == 0:
                done = tally.as_dict()
                print(f"{number} rounds: {done['failures']} of {done['tries']}", flush=True)
    report = {
        "command": "python scripts/attack.py " + shlex.join(sys.argv[1:]),
        "version": __version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}",
        "seed": asked.seed,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "limits": {
            "mebibytes_beyond_imports": MEBIBYTES,
            "seconds": SECONDS,
            "seconds_from_signal_to_end": STOP_SECONDS,
        },
        **tally.as_dict(),
    }
    text = json.dumps(report, indent=1, ensure_ascii=True) + "\n"
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
    print(text if not asked.out else f"{report['failures']} of {report['tries']} failed")
    return bool(report["failures"])


def tiny(root: Path) -> str:
    """A model with random weights in a file."""
    from langevin_xtal.dataset.reference import reference_dataset
    from langevin_xtal.model.checkpoint import save_model
    from tests.conftest import tiny_score_model

    path = root / "tiny.safetensors"
    save_model(path, tiny_score_model(reference_dataset()))
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
