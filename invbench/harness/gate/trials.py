"""How often the gate is wrong on a machine: real checks recorded, and their launches replayed.

    python -m invbench.harness.gate.trials record quiet.jsonl --runs 27
    python -m invbench.harness.gate.trials record disturbed.jsonl --runs 13 --disturbed
    python -m invbench.harness.gate.trials record slowed.jsonl --runs 20 --slowdown 20%
    python -m invbench.harness.gate.trials replay quiet.jsonl disturbed.jsonl --runs 10000 --slowdown 10% 20%

A recorded check is a whole one, of HEAD against itself, as ``invbench check PROFILE --base HEAD`` does it. It is a line
of JSON, on disk before the next begins; recording goes on where a file has fewer lines than it is to have. Of each
block its median is kept. A replay deals these launches into runs anew (``invbench.verdict.replay``): what it says is
simulated, and holds for the noise that was recorded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from invbench.harness import keep_quiet
from invbench.harness.gate.checking import Settings, opened
from invbench.harness.gate.sides import from_revision
from invbench.ops import DEFAULT_BACKENDS
from invbench.results.check import Check, Quad, Series
from invbench.study import profile
from invbench.study.limits import Limits, parse_share, percent
from invbench.verdict.gate import exit_code
from invbench.verdict.replay import Outcome, Share, replay

DIGITS = 5


def one(name: str, slowdown: float) -> tuple[Check, dict[str, Any]]:
    """A whole check of HEAD against itself, head slowed down by a share; and the machine."""
    study = profile.load(name)
    settings = Settings(
        study.backends or DEFAULT_BACKENDS, study.limits, study.budget or 6.0, clock=study.clock or "eager",
        cache=study.cache or "hot",
    )  # fmt: skip
    with opened(settings, study.grid, (), lambda _: None) as (gate, started):
        base, differs = from_revision("HEAD", gate.welcome.home)
        gate = replace(gate, head=replace(gate.head, slowdown=slowdown))
        check, is_interrupted = gate.against(base, differs, "revision", started)
    if is_interrupted:
        raise KeyboardInterrupt
    return check, dict(gate.welcome.environment)


def record(path: Path, name: str, runs: int, slowdown: float, is_disturbed: bool) -> None:
    """Append runs to a file until it has so many, each on disk before the next."""
    done = len(path.read_text().splitlines()) if path.exists() else 0
    for number in range(done, runs):
        begun = time.perf_counter()
        with disturbance() if is_disturbed else contextlib.nullcontext():
            check, environment = one(name, slowdown)
        line = {
            "trial": number, "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": _command(path), "disturbed": is_disturbed,
            "seconds": round(time.perf_counter() - begun, 1), "exit_code": exit_code([check]),
            "environment": environment, "check": _brief(check).to_dict(),
        }  # fmt: skip
        with path.open("a") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        _say(f"{number + 1} of {runs}: exit code {line['exit_code']}, {line['seconds']} s, {_verdicts([check])}")


def _command(path: Path) -> str:
    """The command as given, but for the file's folder, which is nobody else's business."""
    arguments = [path.name if each == str(path) else each for each in sys.argv[1:]]
    return shlex.join(["python", "-m", __spec__.name, *arguments])


@contextlib.contextmanager
def disturbance() -> Iterator[None]:
    """Another process that keeps the first of the usable cores busy."""
    core = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    process = multiprocessing.get_context("spawn").Process(target=_burn, args=(core,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _burn(core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    while True:
        pass


def _brief(check: Check) -> Check:
    """The check with the median of each block instead of its samples."""

    def quad(full: Quad) -> Quad:
        medians = {
            arm: tuple((float(f"{statistics.median(block):.{DIGITS}g}"),) for block in blocks)
            for arm, blocks in full.blocks.items()
        }
        return Quad(full.order, medians)

    def series(full: Series) -> Series:
        return replace(full, stages=tuple(tuple(tuple(map(quad, x)) for x in stage) for stage in full.stages))

    def side(full: Any) -> Any:
        return replace(full, environment={})  # once a line is enough

    return replace(
        check, series=tuple(map(series, check.series)), base=side(check.base), head=side(check.head)
    )  # fmt: skip


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The recorded runs of some files, with their checks as such."""
    lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return [{**line, "check": Check.from_dict(line["check"])} for line in lines]


def told(paths: Sequence[Path]) -> Iterator[str]:
    """What the recorded runs of each file came to."""
    for path in paths:
        runs = read([path])
        codes = Counter(run["exit_code"] for run in runs)
        seconds = [run["seconds"] for run in runs]
        slowdown = runs[0]["check"].injected
        what = f"head slowed down by {percent(slowdown)}" if slowdown else "identical code"
        yield (
            f"{path.name}: {len(runs)} real runs of {what}{', disturbed' if runs[0]['disturbed'] else ''}: exit codes "
            f"{', '.join(f'{code} in {count}' for code, count in sorted(codes.items()))}; rows: "
            f"{_verdicts(run['check'] for run in runs)}; {statistics.median(seconds):.0f} s a run, at most "
            f"{max(seconds):.0f}"
        )


def _verdicts(checks: Iterable[Check]) -> str:
    counts = Counter(str(finding.verdict) for check in checks for finding in check.latencies)
    return ", ".join(f"{verdict} {count}" for verdict, count in sorted(counts.items()))


def replayed(paths: Sequence[Path], runs: int, slowdowns: Sequence[float], limits: Limits) -> Iterator[dict[str, Any]]:
    """The simulated runs of each file, without a slowdown and with each, in one row and in all."""
    for path in paths:
        checks = [run["check"] for run in read([path])]
        for slowdown, whole in [(0.0, False), *((each, whole) for each in slowdowns for whole in (False, True))]:
            outcome = replay(
                checks, runs, 0, slowdown, threshold=limits.thresholds["latency"], visible=limits.visible,
                launches=limits.launches, whole=whole,
            )  # fmt: skip
            yield {"file": path.name, "slowed": ("all rows" if whole else "one row") if slowdown else "none"} | _row(
                outcome
            )


def _row(outcome: Outcome) -> dict[str, Any]:
    def share(of: Share) -> dict[str, Any]:
        low, high = of.interval()
        return {"count": of.count, "of": of.total, "low": low, "high": high}

    return {
        "simulated": True, "runs": outcome.runs, "launches": outcome.launches, "slowdown": outcome.injected,
        "alarms": share(outcome.alarms), "found": share(outcome.found), "blind": share(outcome.blind),
        "inconclusive": share(outcome.inconclusive),
        "verdicts": {str(verdict): count for verdict, count in outcome.verdicts.items()},
        "slowed_verdicts": {str(verdict): count for verdict, count in outcome.slowed.items()},
        "smallest_effect": {str(q): outcome.effect(q) for q in (0.1, 0.5, 0.9)},
    }  # fmt: skip


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """Record real checks of identical or slowed-down code, or replay what was recorded."""
    parser = argparse.ArgumentParser(prog="python -m invbench.harness.gate.trials", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="append real runs to a file")
    recording.add_argument("file", type=Path)
    recording.add_argument("--profile", default="ci")
    recording.add_argument("--runs", type=int, required=True, help="how many the file is to have")
    recording.add_argument("--slowdown", type=parse_share, default=0.0, help="of head, such as 20%%")
    recording.add_argument("--disturbed", action="store_true", help="while another process keeps a core busy")
    replaying = commands.add_parser("replay", help="deal recorded launches into simulated runs; JSON Lines")
    replaying.add_argument("file", type=Path, nargs="+")
    replaying.add_argument("--profile", default="ci")
    replaying.add_argument("--runs", type=int, default=10_000)
    replaying.add_argument("--slowdown", type=parse_share, nargs="*", default=[0.1, 0.2])
    telling = commands.add_parser("tell", help="what the real runs of files came to")
    telling.add_argument("file", type=Path, nargs="+")
    chosen = parser.parse_args(arguments)
    if chosen.command == "record":
        keep_quiet()
        record(chosen.file, chosen.profile, chosen.runs, chosen.slowdown, chosen.disturbed)
    elif chosen.command == "tell":
        sys.stdout.write("\n".join(told(chosen.file)) + "\n")
    else:
        for row in replayed(chosen.file, chosen.runs, chosen.slowdown, profile.load(chosen.profile).limits):
            sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
