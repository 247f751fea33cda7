"""Damage valid files of every format at random and read them: a structure or a sentence.

Each damaged file is read in a child process with limits of time and memory. What is read from a
CIF or POSCAR is compared with gemmi, pymatgen and ASE: it must be the crystal of one of them, or
differ for a reason the reader names. Prints tries by outcome, and stores what broke; ``--record``
writes the figures after every format, with the command, the machine and the version.

Run from the repository root, for example:
``python scripts/fuzz_readers.py --tries 10000 --record docs/results/fuzz.json``
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import platform
import resource
import shlex
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from langevin_xtal.version import __version__
from tests.mutations import FORMATS, mutate, outcome, seeds

MEMORY = 3 * 2**30
"""Bytes of address space of a child process."""
SECONDS = 20
"""For one file."""
BAD = ("broke", "odd message", "another crystal")


def child(name: str, first: int, last: int, seed: int, out: str, queue, current) -> None:
    """Try mutations ``first`` to ``last`` - 1; put (outcome, number, detail) into the queue."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")

    def late(signum, frame):
        raise TimeoutError("took too long")

    signal.signal(signal.SIGALRM, late)
    with TemporaryDirectory() as folder:
        originals = seeds(name, Path(folder))
        for number in range(first, last):
            current.value = number
            path, data = mutate(name, originals, number, seed, Path(folder))
            signal.alarm(SECONDS)
            began = time.perf_counter()
            try:
                kind, detail = outcome(path, compare=True)
            except BaseException as error:
                kind, detail = "broke", f"{type(error).__name__}: {error}"
            signal.alarm(0)
            seconds = time.perf_counter() - began
            if kind in BAD:
                stored = Path(out) / f"{name}-{number}{path.suffix}"
                stored.write_bytes(data)
            queue.put((kind, number, detail, seconds))
            path.unlink()
    queue.put(None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--out", default="fuzz", help="folder for the files that broke something")
    parser.add_argument("--record", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    Path(given.out).mkdir(exist_ok=True)
    began = time.monotonic()
    report = {
        "command": "python scripts/fuzz_readers.py " + shlex.join(sys.argv[1:]),
        "version": __version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}",
        "limits": {"bytes_of_address_space": MEMORY, "seconds": SECONDS},
        "seed": given.seed,
        "minutes": 0.0,
        "tries": 0,
        "failures": 0,
        "formats": {},
    }
    for name in given.formats.split(","):
        found, bad = fuzz(name, given.tries, given.seed, given.out)
        print(name, found, *bad[:8], sep="\n  ", flush=True)
        report["formats"][name] = found
        report["tries"] += found["tries"]
        report["failures"] += found["failures"]
        report["minutes"] = round((time.monotonic() - began) / 60, 1)
        if given.record:
            given.record.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return bool(report["failures"])


def fuzz(name: str, tries: int, seed: int, out: str) -> tuple[dict, list]:
    """Tries of one format by outcome, and (number, kind, detail) of those that broke something."""
    context = multiprocessing.get_context("spawn")
    queue, current = context.Queue(), context.Value("q", 0)
    kinds: Counter[str] = Counter()
    slowest, bad, first = 0.0, [], 0
    while first < tries:
        work = context.Process(target=child, args=(name, first, tries, seed, out, queue, current))
        work.start()
        while True:
            # asked before the queue: what a process put there before it ended is not lost
            alive = work.is_alive()
            try:
                found = queue.get(timeout=5)
            except Empty:
                if alive:
                    continue
                bad.append((current.value, "crashed", f"exit code {work.exitcode}"))
                first = current.value + 1
                break
            if found is None:
                first = tries
                break
            kind, number, detail, seconds = found
            kinds[kind] += 1
            slowest = max(slowest, seconds)
            if kind in BAD:
                bad.append((number, kind, detail[:200]))
        work.join()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    figures = {
        "tries": tries,
        "failures": len(bad),
        **{kind: kinds[kind] for kind in ("read", "partly", "refused")},
        "slowest_seconds": round(slowest, 2),
        "most_mebibytes": round(peak),
    }
    return figures, bad


if __name__ == "__main__":
    sys.exit(main())
