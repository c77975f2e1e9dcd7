"""``invbench sweep``: a grid of configurations, journaled and resumable."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from invbench import __version__
from invbench.cli import options
from invbench.cli.options import option
from invbench.harness import keep_quiet
from invbench.harness.blocks import Budget
from invbench.harness.messages import Hello
from invbench.harness.settings import Settings
from invbench.harness.sweep import (
    Event,
    Sweep,
    Task,
    check_alike,
    check_settings,
    greet,
    kind_of,
    plans_of,
    shuffled,
    tasks_of,
)
from invbench.harness.worker import STOP_SECONDS
from invbench.ops import BACKENDS, DEFAULT_BACKENDS
from invbench.report import FORMATS, output
from invbench.report.plan import point_line, render_plan
from invbench.report.progress import Teller, progress
from invbench.results import machine_class
from invbench.results.journal import Header, document, open_journal
from invbench.spec import (
    BASELINES,
    CACHES,
    CLOCKS,
    DEVICE_TYPES,
    DTYPES,
    LAYOUTS,
    PADDING_MODES,
    InvbenchError,
    Mode,
    Scope,
)
from invbench.study import profile
from invbench.study.expression import Expression
from invbench.study.grid import AXES, FIELDS, Grid, GridPoint, Refused, parse_axis
from invbench.verdict import exit_code

TIMEOUT = 300.0
BUDGET = 12.0  # twice that of op, so that what is done besides measuring stays below a fifth


def _axis(name: str, text: str, *choices: str) -> Any:
    return option(name, f"{text}; a comma list{'' if choices else ' or a range first:last:step'}.", *choices)


def sweep(
    name: Annotated[
        str | None, typer.Argument(metavar="[PROFILE]", help="A shipped profile's name, or a path.", show_default=False)
    ] = None,
    N: Annotated[str | None, _axis("--N", "Images in the batch")] = None,
    C: Annotated[str | None, _axis("--C", "Channels, in and out")] = None,
    H: Annotated[str | None, _axis("--H", "Height; W where only that is given")] = None,
    W: Annotated[str | None, _axis("--W", "Width; H where only that is given")] = None,
    K: Annotated[str | None, _axis("--K", "Side of the window, odd")] = None,
    G: Annotated[str | None, _axis("--G", "Groups of channels that share a weight [default: C // 16]")] = None,
    group_channels: Annotated[str | None, _axis("--group-channels", "Channels a group, instead of --G")] = None,
    stride: Annotated[str | None, _axis("--stride", "Stride of the window")] = None,
    dilation: Annotated[str | None, _axis("--dilation", "Dilation of the window")] = None,
    reduction: Annotated[str | None, _axis("--reduction", "C over the layer's hidden channels")] = None,
    padding_mode: Annotated[str | None, _axis("--padding-mode", "What lies outside the image", *PADDING_MODES)] = None,
    device: Annotated[
        str | None,
        option("--device", "Where to run; several GPUs share the points.", "cpu", "cuda", "cuda:0,cuda:1", "mps"),
    ] = None,
    dtype: Annotated[str | None, _axis("--dtype", "Type of all tensors", *DTYPES)] = None,
    layout: Annotated[str | None, _axis("--layout", "Layout of the involution's tensors", *LAYOUTS)] = None,
    mode: Annotated[str | None, _axis("--mode", "What is timed", *Mode)] = None,
    scope: Annotated[str | None, _axis("--scope", "The whole layer, or with the weight given", *Scope)] = None,
    backend: Annotated[
        list[str] | None,
        option("--backend", "An involution backend, or a comma list; repeatable. [default: all]", *BACKENDS),
    ] = None,
    baseline: Annotated[str | None, _axis("--baseline", "What the ratios are to", *BASELINES)] = None,
    subject: Annotated[
        list[str] | None,
        option("--subject", "An operator of your own beside ours; repeatable.", metavar="package.module:factory"),
    ] = None,
    keep: options.Filter = None,
    journal: Annotated[
        Path | None, option("--journal", "Where every point is kept at once. [default: PROFILE.jsonl]", metavar="FILE")
    ] = None,
    resume: Annotated[bool, option("--resume", "Measure what the journal lacks.")] = False,
    dry_run: Annotated[bool, option("--dry-run", "Print the points, what can run and what it takes.")] = False,
    shuffle: Annotated[bool, option("--shuffle", "Measure in an order drawn from the seed.")] = False,
    timeout: Annotated[
        float | None, option("--timeout", "How long one subject may hang. [default: 300]", metavar="SECONDS")
    ] = None,
    clock: options.ProfileClock = None,
    cache: Annotated[
        str | None,
        option("--cache", "Whether inputs may lie in cache; cold flushes it before each call. [default: hot]", *CACHES),
    ] = None,
    budget: Annotated[
        float | None,
        option("--budget", "Measuring time for a point, all subjects. [default: 12]", metavar="SECONDS"),
    ] = None,
    precision: Annotated[
        float | None,
        option("--precision", "Stop where the intervals' half-width is below this. [default: 2]", metavar="PERCENT"),
    ] = None,
    threads: Annotated[str | None, _axis("--threads", "CPU threads [default: the usable cores]")] = None,
    seed: options.Seed = 0,
    no_autotune: options.NoAutotune = False,
    format_name: options.Format = None,
    file: options.Output = None,
    quiet: options.Quiet = False,
) -> int:
    """Measure a grid of configurations: a profile's, or the product of comma lists and ranges."""
    given = dict(locals())
    axes = {axis: parse_axis(axis, given[axis]) for axis in AXES if given[axis] is not None}
    if "G" in axes and "group_channels" in axes:
        raise InvbenchError(f"--G and --group-channels say the same thing: got {G} and {group_channels}; give one")
    options.check_choices({"--clock": (clock, CLOCKS), "--cache": (cache, CACHES), "--format": (format_name, FORMATS)})
    options.check_measuring(budget, precision, seed, timeout)
    named = options.backend_names(backend)
    if dry_run and (file is not None or format_name not in (None, "table", "json")):
        raise InvbenchError(
            "--dry-run prints a table or json, and writes no file: give it no --output, no other --format"
        )
    study = profile.Profile("sweep") if name is None else profile.load(name)
    filters = tuple(Expression(text, FIELDS) for text in keep or ())
    grid = study.grid.with_axes(axes, filters)
    settings = Settings(
        backends=named or study.backends or DEFAULT_BACKENDS,
        asked_for=named,
        budget=Budget(
            seconds=budget or study.budget or BUDGET, precision=(precision or study.precision or 2.0) / 100
        ),
        cache=cache or study.cache or "hot", clock=clock or study.clock or "eager", seed=seed,
        autotune=not no_autotune,
    )  # fmt: skip
    devices = tuple(dict.fromkeys(each.strip() for each in device.split(","))) if device else None
    _check_grid(grid, devices)
    hello = Hello(devices, tuple(dict.fromkeys(subject or study.subjects)), settings.backends, settings.autotune)
    file_format = options.file_format(file, format_name)
    path = journal or Path(f"{study.name}.jsonl")
    if file is not None and file.resolve() == path.resolve():
        raise InvbenchError(f"--journal and --output are one file: got {str(path)!r} for both; choose another for one")
    keep_quiet()
    with _interruptible(dry_run), ExitStack() as stack:
        tell = stack.enter_context(progress(quiet))
        kept = None if dry_run else stack.enter_context(open_journal(path, resume))
        tell("starting the measuring process")
        worker, welcome = greet(hello, tell)
        stack.callback(worker.stop, STOP_SECONDS)
        check_alike(welcome)
        points, refused = _points_of(grid, welcome.devices, welcome.threads)
        tasks = tasks_of(points, settings, welcome)
        check_settings(tasks, welcome)
        plans = plans_of(tasks, worker) if dry_run or settings.asked_for else []
        if settings.asked_for and all(set(settings.asked_for) <= set(plan.refusals) for plan in plans):
            reasons = "; ".join(f"--backend {name}: {plans[0].refusals[name]}" for name in settings.asked_for)
            raise InvbenchError(f"no backend that was asked for can run: {reasons}")
        if kept is None:
            output.show(render_plan([task.point for task in tasks], plans, refused, settings, format_name or "table"))
            return 0
        for each in _told(refused):
            tell.keep(each)
        if kept.repaired:
            tell.keep(f"{path}: the last line was torn, and is removed ({kept.repaired} bytes)")
        runner = Sweep(kept, welcome, timeout or study.timeout or TIMEOUT)
        header = _header(tasks, runner, refused, options.command_line(file, path))
        kept.add_header(header)
        interrupted = _run(runner, shuffled(tasks, seed) if shuffle else tasks, worker, tell)
        entries = [kept.entries[task.key] for task in tasks if task.key in kept.entries]
        results = document(entries, header, {**header.machines}, interrupted)
    if entries:
        options.hand_over(results, format_name, file, file_format)
    if interrupted:
        raise options.Interrupted(
            f"interrupted: {len(entries)} of {len(tasks)} points are in {path}; go on with: {_resuming()}"
        )
    return exit_code(results.results, asked_for=settings.asked_for)


@contextmanager
def _interruptible(dry_run: bool) -> Iterator[None]:
    """Tell of Ctrl-C before the first point; the command line's parser would end without a word."""
    try:
        yield
    except KeyboardInterrupt as stop:
        how = "" if dry_run else f"; go on with: {_resuming()}"
        raise options.Interrupted(f"interrupted before anything was measured{how}") from stop


def _resuming() -> str:
    """The command that measures what is missing."""
    return shlex.join(["invbench", *sys.argv[1:], *([] if "--resume" in sys.argv else ["--resume"])])


def _check_grid(grid: Grid, devices: Sequence[str] | None) -> None:
    """Refuse a grid without points before torch is imported, which knows the number of threads."""
    if not any("threads" in each.text for each in (*grid.constraints, *grid.filters)):
        _points_of(grid, devices or DEVICE_TYPES, 1)


def _points_of(grid: Grid, devices: Sequence[str], threads: int) -> tuple[list[GridPoint], list[Refused]]:
    """``Grid.points`` on the types of some devices; InvbenchError where there are none."""
    points, refused = grid.points(tuple(dict.fromkeys(map(kind_of, devices))), threads)
    if not points and refused:
        raise InvbenchError(f"no point is left: {refused[0].reason}")
    if not points:
        conditions = ", ".join(each.text for each in (*grid.constraints, *grid.filters))
        raise InvbenchError(f"no point is left: none fulfils {conditions}; leave out --filter, or change an axis")
    return points, refused


def _told(refused: Sequence[Refused]) -> list[str]:
    """Why combinations are left out, each reason once."""
    reasons: dict[str, int] = {}
    for each in refused:
        reasons[each.reason] = reasons.get(each.reason, 0) + 1
    return [f"left out {count} combination{'s' * (count > 1)}: {reason}" for reason, count in reasons.items()]


def _header(tasks: Sequence[Task], sweep: Sweep, refused: Sequence[Refused], command: str) -> Header:
    baselines = list(dict.fromkeys(task.point.baseline for task in tasks))
    return Header(
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__,
        settings={
            **asdict(tasks[0].settings),
            "baseline": baselines[0] if len(baselines) == 1 else baselines,
            "timeout": sweep.timeout,
            "left_out": _told(refused),
        },
        machines={machine_class(found): found for found in sweep.welcome.environments.values()},
    )


def _run(sweep: Sweep, tasks: Sequence[Task], worker: Any, tell: Teller) -> bool:
    """Measure what is missing, telling about it; True if Ctrl-C ended it early."""
    lacking = sum(task.key not in sweep.journal.entries for task in tasks)
    if lacking < len(tasks):
        tell.keep(f"{len(tasks) - lacking} of {len(tasks)} points are in {sweep.journal.path} already")
    started, done, timed = time.monotonic(), 0, 0.0
    try:
        for event in sweep.run(tasks, worker):
            spent = time.monotonic() - started
            if event.entry is None:
                left = f", about {_minutes(spent / done * (lacking - done))} left" if done else ""
                where = f"{_where(event, sweep)}{point_line(event.task.point)}"
                tell(f"{done} of {lacking} points; {where}: {event.line}{left}")
                continue
            done += 1
            timed += event.entry.seconds.get("timed", 0.0)
            tell.keep(f"[{done}/{lacking}] {_where(event, sweep)}{point_line(event.task.point, event.entry.results)}")
    except KeyboardInterrupt:
        return True
    if done:
        spent = time.monotonic() - started
        points = f"{done} point{'s' * (done != 1)}"
        tell.keep(f"{points} in {_minutes(spent)}, {timed / spent:.0%} of it in timed blocks and warm-up")
    return False


def _where(event: Event, sweep: Sweep) -> str:
    return f"{event.device}: " if len(sweep.welcome.devices) > 1 else ""


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
