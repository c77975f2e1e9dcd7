"""``invbench sweep``: a grid of configurations, journaled and resumable."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from invbench import __version__
from invbench.cli import options
from invbench.cli.following import follow, unit_of
from invbench.cli.options import option
from invbench.harness import keep_quiet
from invbench.harness.blocks import Budget
from invbench.harness.messages import Hello, Plan, Welcome
from invbench.harness.settings import Settings
from invbench.harness.sweep import Event, Sweep, greet, plans_of
from invbench.harness.tasks import Task, check_alike, check_cluster_devices, check_settings, kind_of, shuffled, tasks_of
from invbench.harness.worker import STOP_SECONDS
from invbench.ops import BACKENDS, DEFAULT_BACKENDS
from invbench.report import FORMATS, output
from invbench.report.plan import render_plan
from invbench.report.progress import Teller, progress
from invbench.results import machine_class
from invbench.results.journal import Header, Journal, document, open_journal
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
        option(
            "--precision",
            "Stop where the intervals' half-width, in each launch, is below this. [default: 2]",
            metavar="PERCENT",
        ),
    ] = None,
    launches: Annotated[
        int | None,
        option(
            "--launches",
            "Measure all points so often, each time in a fresh process; launches share a point's budget, and intervals "
            "are over them. [default: 1]",
            metavar="COUNT",
        ),
    ] = None,
    threads: Annotated[str | None, _axis("--threads", "CPU threads [default: the usable cores]")] = None,
    seed: options.Seed = 0,
    no_autotune: options.NoAutotune = False,
    ray: Annotated[
        str | None,
        option(
            "--ray", "Measure on every node of a Ray cluster; local: one of its own.", metavar="auto|HOST:PORT|local"
        ),
    ] = None,
    gpu_type: Annotated[
        str | None, option("--gpu-type", "With --ray: on GPUs of that kind only, such as H200.", metavar="NAME")
    ] = None,
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
    if launches is not None and launches < 1:
        raise InvbenchError(f"--launches must be at least 1: got {launches}; 6 give an interval of 95 %")
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
        autotune=not no_autotune, launches=launches or study.launches or 1,
    )  # fmt: skip
    devices = tuple(dict.fromkeys(each.strip() for each in device.split(","))) if device else None
    if ray is not None:
        check_cluster_devices(devices, gpu_type)
    elif gpu_type is not None:
        raise InvbenchError(f"--gpu-type chooses among the nodes of --ray: got {gpu_type!r} alone; use --device cuda")
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
        place = stack.enter_context(_here(hello, tell) if ray is None else _cluster(ray, hello, gpu_type, tell))
        tasks, refused = _tasks_of(grid, place.welcomes, settings)
        points = [task for task in tasks if task.launch == 0]
        plans = place.plans(points) if dry_run or settings.asked_for else []
        if settings.asked_for and all(set(settings.asked_for) <= set(plan.refusals) for plan in plans):
            reasons = "; ".join(f"--backend {name}: {plans[0].refusals[name]}" for name in settings.asked_for)
            raise InvbenchError(f"no backend that was asked for can run: {reasons}")
        if kept is None:
            output.show(render_plan([task.point for task in points], plans, refused, settings, format_name or "table"))
            return 0
        for each in _told(refused):
            tell.keep(each)
        if kept.repaired:
            tell.keep(f"{path}: the last line was torn, and is removed ({kept.repaired} bytes)")
        timeout = timeout or study.timeout or TIMEOUT
        header = _header(tasks, place.welcomes, timeout, refused, options.command_line(file, path))
        kept.add_header(header)
        ordered = shuffled(tasks, seed) if shuffle else tasks
        stopped = follow(place.measure(kept, timeout, ordered), ordered, kept, place.has_several, tell)
        entries = [kept.entries[task.key] for task in tasks if task.key in kept.entries]
        results = document(entries, header, {**header.machines}, stopped is not None)
    if entries:
        options.hand_over(results, format_name, file, file_format)
    if stopped is not None:
        text = f"{len(entries)} of {len(tasks)} {unit_of(tasks)} are in {path}; go on with: {_resuming()}"
        if isinstance(stopped, InvbenchError):
            raise options.Failed(f"{stopped}: {text}")
        raise options.Interrupted(f"interrupted: {text}")
    # Of launches, too, that came to nothing and cost the points no more than themselves.
    return exit_code((row for entry in entries for row in entry.results), asked_for=settings.asked_for)


@dataclass(frozen=True)
class _Place:
    """Where a sweep is measured: this machine, or a cluster; welcomes: what there is, by class of machine."""

    welcomes: Sequence[Welcome]
    plans: Callable[[Sequence[Task]], list[Plan]]
    measure: Callable[[Journal, float, Sequence[Task]], Generator[Event, None, None]]
    has_several: bool


@contextmanager
def _here(hello: Hello, tell: Teller) -> Iterator[_Place]:
    tell("starting the measuring process")
    worker, welcome = greet(hello, tell)
    try:
        check_alike(welcome)
        yield _Place(
            [welcome],
            lambda tasks: plans_of(tasks, worker),
            lambda journal, timeout, tasks: Sweep(journal, welcome, timeout).run(tasks, worker),
            len(welcome.devices) > 1,
        )
    finally:
        worker.stop(STOP_SECONDS)


@contextmanager
def _cluster(address: str, hello: Hello, gpu_type: str | None, tell: Teller) -> Iterator[_Place]:
    from invbench.harness import cluster

    with cluster.joined(address, hello, gpu_type, tell) as members:
        for note in members.notes:
            tell.keep(note)
        yield _Place(
            members.welcomes,
            lambda tasks: members.plans(tasks, tell),
            lambda journal, timeout, tasks: cluster.ClusterSweep(journal, members, timeout).run(tasks),
            has_several=True,
        )


def _tasks_of(grid: Grid, welcomes: Sequence[Welcome], settings: Settings) -> tuple[list[Task], list[Refused]]:
    """The points of the grid, on each class of machine; InvbenchError if it has none, or a setting is wrong there."""
    tasks: list[Task] = []
    left_out: list[Refused] = []
    for welcome in welcomes:
        points, refused = _points_of(grid, welcome.devices, welcome.threads)
        own = tasks_of(points, settings, welcome)
        check_settings(own, welcome)
        tasks += own
        left_out += [each for each in refused if each not in left_out]
    return tasks, left_out


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


def _header(
    tasks: Sequence[Task], welcomes: Sequence[Welcome], timeout: float, refused: Sequence[Refused], command: str
) -> Header:
    baselines = list(dict.fromkeys(task.point.baseline for task in tasks))
    return Header(
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__,
        settings={
            **asdict(tasks[0].settings),
            "baseline": baselines[0] if len(baselines) == 1 else baselines,
            "timeout": timeout,
            "left_out": _told(refused),
        },
        machines={machine_class(found): found for each in welcomes for found in each.environments.values()},
    )
