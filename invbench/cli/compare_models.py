"""``invbench compare-models``: whole networks, involution against convolution."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from invbench import __version__
from invbench.cli import options
from invbench.cli.interrupts import held_back
from invbench.cli.options import option
from invbench.harness import keep_quiet
from invbench.harness.blocks import Budget
from invbench.harness.networks import NetworkSettings, require_trainable
from invbench.models import SUBJECTS, require_model
from invbench.ops import BACKENDS
from invbench.report import FORMATS, output
from invbench.report.progress import progress
from invbench.results import ResultSet
from invbench.spec import CACHES, CLOCKS, DTYPES, LAYOUTS, InvbenchError, Mode, NetworkCase
from invbench.verdict import exit_code

STEMS = (7, 3)
MODES = (Mode.FORWARD, Mode.TRAIN)


def compare_models(
    models: Annotated[
        str, option("--models", f"A comma list of networks: {', '.join(SUBJECTS)}.", metavar="A,B,...")
    ] = "rednet50,resnet50",
    N: Annotated[int, option("--N", "Images in the batch.")] = 1,
    image_size: Annotated[int, option("--image-size", "Height and width of the images.")] = 224,
    mode: Annotated[
        str, option("--mode", "Inference, or forward and backward of a training step.", *MODES)
    ] = "forward",
    breakdown: Annotated[bool, option("--breakdown", "Show where the time goes, by kind of layer.")] = False,
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
    layout: Annotated[str, option("--layout", "Layout of images and weights.", *LAYOUTS)] = "channels_last",
    clock: options.Clock = "eager",
    cache: options.Cache = "hot",
    budget: Annotated[float, option("--budget", "Measuring time for all networks.", metavar="SECONDS")] = 15.0,
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
        "--mode": (mode, MODES), "--clock": (clock, CLOCKS), "--cache": (cache, CACHES), "--dtype": (dtype, DTYPES),
        "--layout": (layout, LAYOUTS), "--format": (format_name, FORMATS),
    })  # fmt: skip
    for name in backend or ():
        options.check_choices({"--backend": (name, ("auto", *BACKENDS))})
    options.check_measuring(budget, precision, seed)
    for option_name, value in (
        ("--N", N),
        ("--image-size", image_size),
        ("--threads", 1 if threads is None else threads),
    ):
        if not 0 < value < 2**31:
            raise InvbenchError(f"{option_name} must be a whole number of at least 1: got {value}; try 1")
    if stem_kernel_size not in STEMS:
        raise InvbenchError(
            f"--stem-kernel-size must be 7 or 3: got {stem_kernel_size}; try 7, as the published figures"
        )
    case = NetworkCase(
        N, image_size, image_size, stem_kernel_size, device or "cpu", dtype, layout, Mode(mode), threads or 1
    )
    settings = NetworkSettings(
        models=_models(models),
        backends=tuple(dict.fromkeys(backend or ("auto",))),
        asked_for=tuple(name for name in backend or () if name != "auto"),
        baseline=_model("--baseline", baseline) if baseline is not None else None,
        budget=Budget(seconds=budget, precision=precision / 100),
        cache=cache, clock=clock, seed=seed, autotune=not no_autotune, breakdown=breakdown,
    )  # fmt: skip
    if static and breakdown:
        raise InvbenchError("--breakdown and --static: where time goes is not known where nothing is timed; drop one")
    require_trainable(case)
    file_format = options.file_format(file, format_name)
    try:
        results = _measured(case, settings, device, threads, static, quiet, options.command_line(file))
    except KeyboardInterrupt as stop:
        raise options.Interrupted("interrupted before anything was measured") from stop
    try:  # whichever of the two cannot be written, the other is
        if file is not None:
            output.write(file, FORMATS[file_format](results))
    finally:
        output.show(FORMATS[format_name or "table"](results))
    return 130 if results.interrupted else exit_code(results.results, asked_for=settings.asked_for)


def _measured(
    case: NetworkCase,
    settings: NetworkSettings,
    device: str | None,
    threads: int | None,
    static: bool,
    quiet: bool,
    command: str,
) -> ResultSet:
    with progress(quiet) as tell:
        tell("importing torch")
        keep_quiet()
        with held_back():
            from invbench.harness.networks import comparing

        case, settings = comparing.complete(case, settings, device, threads)
        found = comparing.count_networks(case, settings) if static else comparing.compare_networks(case, settings, tell)
    stored: dict[str, Any] = asdict(settings)
    return ResultSet(
        results=found.results, command=command, created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__, environment=found.environment, settings=stored, peaks=found.peaks or None,
        baseline=settings.baseline, interrupted=found.interrupted,
    )  # fmt: skip


def _models(given: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_model("--models", name.strip()) for name in given.split(",")))


def _model(option_name: str, name: str) -> str:
    try:
        return require_model(name).name
    except InvbenchError as error:
        raise InvbenchError(f"{option_name}: {error}") from None
