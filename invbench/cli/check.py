"""``invbench check``: a regression gate, of head against a base in the same job, or against a file."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invbench import __version__
from invbench.cli import options
from invbench.cli.options import option
from invbench.harness import keep_quiet
from invbench.ops import BACKENDS, DEFAULT_BACKENDS
from invbench.report import FORMATS, output
from invbench.report.actions import tell_actions
from invbench.report.progress import progress
from invbench.results import ResultSet
from invbench.results.check import Check
from invbench.results.files import load
from invbench.results.history import append, check_appendable
from invbench.spec import CACHES, CLOCKS, InvbenchError
from invbench.study import profile
from invbench.study.expression import Expression
from invbench.study.grid import FIELDS
from invbench.study.limits import parse_share
from invbench.verdict.gate import exit_code
from invbench.verdict.self_test import self_test as proof

if TYPE_CHECKING:
    from invbench.harness.gate.checking import Gate
    from invbench.harness.gate.workers import Worker

BUDGET = 6.0
TIMEOUT = 300.0
INCONCLUSIVE = ("pass", "fail")
INJECTED = 0.20  # the least slowdown on purpose


def check(
    name: Annotated[
        str | None, typer.Argument(metavar="PROFILE", help="A shipped profile's name, or a path.", show_default=False)
    ] = None,
    base: Annotated[
        str | None, option("--base", "Compare with a git revision of the checkout that head lies in.", metavar="REV")
    ] = None,
    base_python: Annotated[
        str | None, option("--base-python", "Compare with what another interpreter imports.", metavar="PATH")
    ] = None,
    base_wheel: Annotated[
        Path | None, option("--base-wheel", "Compare with a wheel, unpacked into this environment.", metavar="FILE")
    ] = None,
    baseline_file: Annotated[
        Path | None,
        option("--baseline-file", "Compare with what was measured earlier on this class of machine.", metavar="FILE"),
    ] = None,
    update: Annotated[bool, option("--update", "Write the baseline file instead.")] = False,
    self_test: Annotated[
        bool, option("--self-test", "Prove the gate here: identical code must pass, a slowdown on purpose must fail.")
    ] = False,
    threshold: Annotated[
        str | None,
        option("--threshold", "The least slowdown that counts. [default: the profile's, or 5%]", metavar="PERCENT"),
    ] = None,
    inconclusive: Annotated[
        str | None,
        option("--inconclusive", "What a run that could not see enough counts as. [default: exit 3]", *INCONCLUSIVE),
    ] = None,
    history: Annotated[
        Path | None, option("--history", "Append the run to a JSON Lines file, which `report` draws.", metavar="FILE")
    ] = None,
    subject: Annotated[
        list[str] | None,
        option("--subject", "Compare an operator of your own; repeatable.", metavar="package.module:factory"),
    ] = None,
    device: Annotated[
        str | None, option("--device", "Where to run. [default: cuda if there is one]", "cpu", "cuda", "cuda:1")
    ] = None,
    backend: Annotated[
        list[str] | None,
        option("--backend", "An involution backend, or a comma list; repeatable. [default: the profile's]", *BACKENDS),
    ] = None,
    keep: options.Filter = None,
    clock: options.ProfileClock = None,
    cache: Annotated[str | None, option("--cache", "Whether inputs may lie in cache. [default: hot]", *CACHES)] = None,
    budget: Annotated[
        float | None,
        option("--budget", "Measuring time for a point, each stage. [default: the profile's, or 6]", metavar="SECONDS"),
    ] = None,
    timeout: Annotated[
        float | None, option("--timeout", "How long a process may hang. [default: 300]", metavar="SECONDS")
    ] = None,
    seed: options.Seed = 0,
    no_autotune: options.NoAutotune = False,
    format_name: options.Format = None,
    file: options.Output = None,
    quiet: options.Quiet = False,
) -> int:
    """Is head slower than base? Both alive in one job, measured in turns, confirmed before anything fails."""
    options.check_choices({
        "--clock": (clock, CLOCKS), "--cache": (cache, CACHES), "--format": (format_name, FORMATS),
        "--inconclusive": (inconclusive, INCONCLUSIVE),
    })  # fmt: skip
    options.check_measuring(budget, None, seed, timeout)
    asked = _Asked(base, base_python, base_wheel, baseline_file, self_test, update)
    asked.require_one()
    if name is None:
        raise InvbenchError("check takes a profile: got none; try ci, or see `invbench profiles`")
    named = options.backend_names(backend)
    study = profile.load(name)
    limits = study.limits if threshold is None else study.limits.with_latency(_share("--threshold", threshold))
    subjects = tuple(dict.fromkeys(subject or study.subjects))
    if subjects and named:
        raise InvbenchError("--subject compares operators of yours instead of ours: got --backend, too; give one")
    from invbench.harness.gate.checking import Settings, opened
    from invbench.harness.gate.workers import WorkerLostError

    settings = Settings(
        backends=named or study.backends or DEFAULT_BACKENDS, limits=limits, budget=budget or study.budget or BUDGET,
        device=device, clock=clock or study.clock or "eager", cache=cache or study.cache or "hot", seed=seed,
        autotune=not no_autotune, subjects=subjects, timeout=timeout or study.timeout or TIMEOUT,
    )  # fmt: skip
    study = replace(study, grid=study.grid.with_axes({}, tuple(Expression(text, FIELDS) for text in keep or ())))
    file_format = options.file_format(file, format_name)
    if update and baseline_file is not None:
        if keep or named:
            raise InvbenchError("--update writes all rows of the profile: leave out --filter and --backend")
        output.check_writable(baseline_file, "--baseline-file")
    if history is not None:
        check_appendable(history)
    keep_quiet()
    is_whole = not (keep or named)
    try:
        with progress(quiet) as tell, opened(settings, study.grid, named, tell) as (gate, started):
            checks, is_interrupted = asked.run(gate, started, is_whole)
    except KeyboardInterrupt as stop:
        raise options.Interrupted("interrupted before a launch was done: nothing is known yet") from stop
    except WorkerLostError as error:
        raise options.Failed(f"nothing could be measured: {error}") from error
    checks = tuple(replace(each, inconclusive=inconclusive) for each in checks)
    results = ResultSet(
        results=(), command=options.command_line(file, baseline_file, history),
        created=datetime.now(UTC).isoformat(timespec="seconds"), tool_version=__version__,
        environment=checks[0].head.environment, settings={**asdict(settings), "profile": study.name},
        interrupted=is_interrupted, checks=checks,
    )  # fmt: skip
    code = proof(checks).exit_code if self_test and not is_interrupted else exit_code(checks, is_interrupted)
    if update and baseline_file is not None and code == 0:
        output.write(baseline_file, FORMATS["json"](results), "--baseline-file")
    try:
        options.hand_over(results, format_name, file, file_format)
    finally:
        output.complain(tell_actions(results, os.environ))
        if history is not None and not (update or self_test or is_interrupted):
            append(history, results)
    return code


@dataclass(frozen=True, slots=True)
class _Asked:
    """What head is to be compared with."""

    base: str | None
    python: str | None
    wheel: Path | None
    file: Path | None
    self_test: bool
    update: bool

    def require_one(self) -> None:
        """Refuse nothing to compare with, and more than one thing."""
        ways = {
            "--base": self.base, "--base-python": self.python, "--base-wheel": self.wheel,
            "--baseline-file": self.file, "--self-test": self.self_test or None,
        }  # fmt: skip
        given = [way for way, value in ways.items() if value is not None]
        if len(given) != 1:
            raise InvbenchError(
                f"check takes one of {', '.join(ways)}: got {' and '.join(given) or 'none'}; try --base HEAD~1"
            )
        if self.update and self.file is None:
            raise InvbenchError(f"--update writes the file of --baseline-file: got {given[0]}; name a file")

    def run(self, gate: Gate, started: dict[str, Worker], is_whole: bool) -> tuple[tuple[Check, ...], bool]:
        """The check, or the two of a self-test; and whether Ctrl-C ended it."""
        from invbench.harness.gate import sides
        from invbench.harness.gate.stored import Stored

        home = gate.welcome.home
        if self.self_test:
            return _self_test(gate, started)
        if self.file is not None and self.update:
            found = gate.baseline(started)
        elif self.file is not None:
            found = gate.against_file(Stored.of(load(self.file), str(self.file)), started, is_whole)
        elif self.base is not None:
            found = gate.against(*sides.from_revision(self.base, home), "revision", started)
        elif self.wheel is not None:
            found = gate.against(*sides.from_wheel(self.wheel, home), "wheel", started)
        else:
            assert self.python is not None
            found = gate.against(*sides.from_python(self.python, home), "python", started)
        return (found[0],), found[1]


def _self_test(gate: Gate, started: dict[str, Worker]) -> tuple[tuple[Check, ...], bool]:
    """Identical code, and then a head that is slowed down by more than a run must be able to see."""
    limits = gate.settings.limits
    same, is_interrupted = gate.against(gate.head, None, "same", started)
    if is_interrupted:
        return (same,), True
    slowdown = max(INJECTED, limits.visible + limits.thresholds["latency"])
    slowed = replace(gate, head=replace(gate.head, slowdown=slowdown))
    try:
        found, is_interrupted = slowed.against(gate.head, None, "same")
    except KeyboardInterrupt:
        return (same,), True
    return (same, found), is_interrupted


def _share(name: str, text: str) -> float:
    try:
        return parse_share(text)
    except InvbenchError as error:
        raise InvbenchError(f"{name}: {error}") from None
