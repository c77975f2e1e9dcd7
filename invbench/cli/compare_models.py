"""``invbench compare-models``: whole networks, involution against convolution and self-attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from invbench import __version__
from invbench.cli import options
from invbench.cli.interrupts import held_back
from invbench.cli.options import option
from invbench.harness import keep_quiet
from invbench.harness.blocks import Budget
from invbench.harness.networks import NetworkSettings, Size, points_of, require_trainable
from invbench.models import SUBJECTS, SUITES, of_suite, require_model
from invbench.ops import BACKENDS
from invbench.report import FORMATS
from invbench.report.progress import Teller, progress
from invbench.results import ResultSet
from invbench.spec import CACHES, CLOCKS, DTYPES, LAYOUTS, InvbenchError, Mode, NetworkCase
from invbench.verdict import exit_code

STEMS = (7, 3)
MODES = (Mode.FORWARD, Mode.TRAIN)
DEFAULT = "rednet50,resnet50"
# Seconds of measuring: enough for six rounds of most comparisons.
BUDGET, BUDGET_A_ROW, FEW_ROWS = 8.0, 2.0, 6

Point = tuple[NetworkCase, NetworkSettings]


def _suites() -> str:
    return "; ".join(f"{name}, {text}" for name, text in SUITES.items())


def compare_models(
    models: Annotated[
        str | None,
        option(
            "--models",
            f"A comma list of networks: {', '.join(SUBJECTS)}, or your own package.module:factory. "
            f"[default: {DEFAULT}]",
            metavar="A,B,...",
        ),
    ] = None,
    suite: Annotated[str | None, option("--suite", f"All networks of a group: {_suites()}.", *SUITES)] = None,
    N: Annotated[str, option("--N", "Images in the batch; a comma list or range.", metavar="N,...")] = "1",
    image_size: Annotated[
        str | None,
        option(
            "--image-size",
            "Height and width of the images, such as 224 or 800x1280; a comma list or range. "
            "[default: each network's usual size: 224, of detectors 800x1280, of segmenters 1024x2048]",
            metavar="SIZE,...",
        ),
    ] = None,
    mode: Annotated[
        str,
        option(
            "--mode", "Inference, or forward and backward of a training step; a comma list.", metavar="forward,train"
        ),
    ] = "forward",
    breakdown: Annotated[
        bool, option("--breakdown", "Show where the time goes, by kind of layer and by place.")
    ] = False,
    static: Annotated[bool, option("--static", "Count parameters and multiply-adds, and time nothing.")] = False,
    stem_kernel_size: Annotated[
        int, option("--stem-kernel-size", "Window of the involution in RedNet's stem.", *map(str, STEMS))
    ] = 7,
    backend: Annotated[
        list[str] | None,
        option("--backend", "An involution backend; repeatable. [default: the fastest]", "auto", *BACKENDS),
    ] = None,
    baseline: Annotated[
        str | None,
        option("--baseline", "What ratios are to. [default: each network's counterpart]", metavar="MODEL"),
    ] = None,
    device: Annotated[
        str | None,
        option("--device", "Where to run. [default: cuda if there is one]", "cpu", "cuda", "cuda:1", "mps", "xpu"),
    ] = None,
    dtype: Annotated[str, option("--dtype", "Type of all tensors.", *DTYPES)] = "float32",
    autocast: Annotated[
        bool, option("--autocast", "Parameters in float32; torch.autocast computes in --dtype bfloat16 or float16.")
    ] = False,
    layout: Annotated[str, option("--layout", "Layout of images and weights.", *LAYOUTS)] = "channels_last",
    clock: options.Clock = "eager",
    cache: options.Cache = "hot",
    budget: Annotated[
        float | None,
        option(
            "--budget",
            "Measuring time for all networks of a point. "
            f"[default: {BUDGET:g}, and {BUDGET_A_ROW:g} for each row above {FEW_ROWS}]",
            metavar="SECONDS",
        ),
    ] = None,
    precision: options.Precision = 2.0,
    threads: Annotated[int | None, option("--threads", "CPU threads. [default: the usable cores]")] = None,
    seed: options.Seed = 0,
    no_autotune: options.NoAutotune = False,
    format_name: options.Format = None,
    file: options.Output = None,
    quiet: options.Quiet = False,
) -> int:
    """Compare whole networks: as built and as deployed, with what involution for free would reach."""
    # All of this comes before torch is imported, so that a slip of the finger is answered at once.
    options.check_choices({
        "--suite": (suite, SUITES), "--clock": (clock, CLOCKS), "--cache": (cache, CACHES), "--dtype": (dtype, DTYPES),
        "--layout": (layout, LAYOUTS), "--format": (format_name, FORMATS),
    })  # fmt: skip
    for name in backend or ():
        options.check_choices({"--backend": (name, ("auto", *BACKENDS))})
    options.check_measuring(budget, precision, seed)
    if threads is not None and not 0 < threads < 2**31:
        raise InvbenchError(f"--threads must be a whole number of at least 1: got {threads}; try 1")
    if stem_kernel_size not in STEMS:
        raise InvbenchError(
            f"--stem-kernel-size must be 7 or 3: got {stem_kernel_size}; try 7, as the published figures"
        )
    if static and breakdown:
        raise InvbenchError("--breakdown and --static: where time goes is not known where nothing is timed; drop one")
    named = _networks(models, suite)
    axes = _Axes(options.numbers("--N", N), _sizes(image_size, named), _modes(mode), budget is None)
    case = NetworkCase(
        1, 1, 1, stem_kernel_size, device or "cpu", dtype, layout, threads=threads or 1, autocast=autocast
    )
    settings = NetworkSettings(
        models=named,
        backends=tuple(dict.fromkeys(backend or ("auto",))),
        asked_for=tuple(name for name in backend or () if name != "auto"),
        baseline=_model("--baseline", baseline) if baseline is not None else None,
        budget=Budget(seconds=budget or BUDGET, precision=precision / 100),
        cache=cache, clock=clock, seed=seed, autotune=not no_autotune, breakdown=breakdown,
    )  # fmt: skip
    if not any(":" in name for name in (*named, settings.baseline or "")):  # others are not known yet
        axes.points(case, settings)
    file_format = options.file_format(file, format_name)
    keep_quiet()
    try:
        with progress(quiet) as tell:
            tell("importing torch")
            with held_back():
                from invbench.harness.networks import comparing
            points = axes.points(*comparing.complete(case, settings, device, threads))
            results = _measured(points, static, tell, options.command_line(file))
    except KeyboardInterrupt as stop:
        raise options.Interrupted("interrupted before anything was measured") from stop
    options.hand_over(results, format_name, file, file_format)
    return 130 if results.interrupted else exit_code(results.results, asked_for=settings.asked_for)


@dataclass(frozen=True, slots=True)
class _Axes:
    """What the points differ in."""

    images: tuple[int, ...]
    sizes: tuple[Size, ...] | None
    modes: tuple[Mode, ...]
    grows: bool  # whether the budget does, with the rows

    def points(self, case: NetworkCase, settings: NetworkSettings) -> list[Point]:
        """The points, each of which can be trained if that is asked for."""
        found = []
        for point, own in points_of(case, settings, self.images, self.sizes, self.modes):
            require_trainable(point, own)
            more = BUDGET_A_ROW * max(0, len(own.subjects(point.mode)) - FEW_ROWS) if self.grows else 0.0
            budget = replace(own.budget, seconds=own.budget.seconds + more)
            found.append((point, replace(own, budget=budget)))
        return found


def _measured(points: Sequence[Point], static: bool, tell: Teller, command: str) -> ResultSet:
    """The document of all points; what Ctrl-C leaves of them, if it comes after the first."""
    from invbench.harness.networks import comparing

    created = datetime.now(UTC).isoformat(timespec="seconds")
    found: list[ResultSet] = []
    for number, (case, settings) in enumerate(points, 1):
        where = f"[{number}/{len(points)}] {case.mode}, N={case.N}, {case.H}x{case.W}; " if len(points) > 1 else ""
        told = partial(_tell, tell, where)
        try:
            if static:
                point = comparing.count_networks(case, settings)
            else:
                point = comparing.compare_networks(case, settings, told)
        except KeyboardInterrupt:
            if not found:
                raise
            found[-1] = replace(found[-1], interrupted=True)
            break
        found.append(
            ResultSet(
                results=point.results, command=command, created=created, tool_version=__version__,
                environment=point.environment, settings=asdict(settings), peaks=point.peaks or None,
                baseline=settings.baseline, interrupted=point.interrupted,
            )
        )  # fmt: skip
        if point.interrupted:
            break
    return ResultSet.merged(found, command, created)


def _tell(tell: Teller, where: str, line: str) -> None:
    tell(f"{where}{line}")


def _networks(models: str | None, suite: str | None) -> tuple[str, ...]:
    if models is not None and suite is not None:
        raise InvbenchError(f"--models and --suite both say which networks: got {models} and {suite}; give one")
    if suite is not None:
        return of_suite(suite)
    given = DEFAULT if models is None else models
    return tuple(dict.fromkeys(_model("--models", name.strip()) for name in given.split(",")))


def _sizes(given: str | None, networks: Sequence[str]) -> tuple[Size, ...] | None:
    """Heights and widths, in the order given; None where there is nothing to choose."""
    if given is None:
        return None
    sizes = tuple(dict.fromkeys(size for item in given.split(",") for size in _size(item.strip().lower())))
    images = {name: SUBJECTS[name].images for name in networks if name in SUBJECTS}
    if len(images) == len(networks) and all(each.side is not None for each in images.values()):
        for name, each in images.items():
            if not all(each.takes(*size) for size in sizes):
                raise InvbenchError(f"--image-size: {name} takes images of {each.range}: got {given}; leave it out")
    return sizes


def _size(item: str) -> list[Size]:
    height, by, width = item.partition("x")
    try:
        if by:
            (H,), (W,) = (options.numbers("--image-size", side) for side in (height, width))
            return [(H, W)]
        return [(side, side) for side in options.numbers("--image-size", item)]
    except InvbenchError:
        if ":" in item:
            raise
        raise InvbenchError(
            "--image-size takes a comma list of sides, HEIGHTxWIDTH and ranges of sides first:last:step, whole numbers "
            f"of at least 1: got {item!r}; try --image-size 160:224:32,800x1280"
        ) from None


def _modes(given: str) -> tuple[Mode, ...]:
    words = [word.strip() for word in given.split(",")]
    for word in words:
        options.check_choices({"--mode": (word, MODES)})
    return tuple(dict.fromkeys(map(Mode, words)))


def _model(option_name: str, name: str) -> str:
    if ":" in name:
        return name  # a user's own, which is imported after torch
    try:
        return require_model(name).name
    except InvbenchError as error:
        raise InvbenchError(f"{option_name}: {error}") from None
