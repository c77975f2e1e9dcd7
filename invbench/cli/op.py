"""``invbench op``: one configuration, every involution backend against nn.Conv2d, and self-attention if asked."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

from invbench import __version__
from invbench.cli import options
from invbench.cli.interrupts import held_back
from invbench.cli.options import option
from invbench.harness import keep_quiet, server
from invbench.harness.blocks import Budget
from invbench.harness.settings import COMPARISONS, Settings
from invbench.ops import BACKENDS, DEFAULT_BACKENDS
from invbench.report import FORMATS
from invbench.report.progress import progress
from invbench.results import ResultSet
from invbench.spec import (
    BASELINES,
    CACHES,
    CLOCKS,
    DTYPES,
    LAYOUTS,
    PADDING_MODES,
    Case,
    InvbenchError,
    LayerSpec,
    Mode,
    Scope,
)
from invbench.verdict import exit_code

DEFAULT_G = 16
# More rows share the time, and attention in plain torch is slow: as many rounds need longer.
BUDGET, BUDGET_TO_COMPARE = 6.0, 16.0


def op(
    N: Annotated[int, option("--N", "Images in the batch.")] = 8,
    C: Annotated[int, option("--C", "Channels, in and out.")] = 256,
    H: Annotated[int, option("--H", "Height.")] = 28,
    W: Annotated[int, option("--W", "Width.")] = 28,
    K: Annotated[int, option("--K", "Side of the window, odd.")] = 7,
    G: Annotated[int | None, option("--G", "Groups of channels that share a weight; divides C. [default: 16]")] = None,
    group_channels: Annotated[int | None, option("--group-channels", "Channels a group, instead of --G.")] = None,
    stride: Annotated[int, option("--stride", "Stride of the window.")] = 1,
    dilation: Annotated[int, option("--dilation", "Dilation of the window.")] = 1,
    reduction: Annotated[int, option("--reduction", "C over the layer's hidden channels.")] = 4,
    padding_mode: Annotated[str, option("--padding-mode", "What lies outside the image.", *PADDING_MODES)] = "zeros",
    device: Annotated[
        str | None,
        option("--device", "Where to run. [default: cuda if there is one]", "cpu", "cuda", "cuda:1", "mps", "xpu"),
    ] = None,
    dtype: Annotated[str, option("--dtype", "Type of all tensors.", *DTYPES)] = "float32",
    layout: Annotated[str, option("--layout", "Layout of the involution's tensors.", *LAYOUTS)] = "channels_last",
    mode: Annotated[str, option("--mode", "What is timed.", *Mode)] = "forward",
    scope: Annotated[str, option("--scope", "The whole layer, or with the weight given.", *Scope)] = "layer",
    backend: Annotated[
        list[str] | None, option("--backend", "An involution backend; repeatable. [default: all]", *BACKENDS)
    ] = None,
    baseline: Annotated[str, option("--baseline", "What the ratios are to.", *BASELINES)] = "conv2d",
    compare: Annotated[
        str | None, option("--compare", "More rows: self-attention over the same window.", *COMPARISONS)
    ] = None,
    clock: options.Clock = "eager",
    cache: options.Cache = "hot",
    budget: Annotated[
        float | None,
        option(
            "--budget",
            "Measuring time for the point, all its subjects. [default: 6; with --compare 16]",
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
    """Measure one configuration: every involution backend against nn.Conv2d."""
    # All of this comes before torch is imported, so that a slip of the finger is answered at once.
    options.check_choices({
        "--baseline": (baseline, BASELINES), "--clock": (clock, CLOCKS), "--cache": (cache, CACHES),
        "--mode": (mode, Mode), "--scope": (scope, Scope), "--compare": (compare, COMPARISONS),
        "--format": (format_name, FORMATS),
    })  # fmt: skip
    for name in backend or ():
        options.check_choices({"--backend": (name, BACKENDS)})
    options.check_measuring(budget, precision, seed)
    layer = LayerSpec(C, K, _groups(C, G, group_channels), stride, dilation, reduction, padding_mode)
    point = Case(
        N, H, W, layer, device or "cpu", dtype, layout, Mode(mode), Scope(scope), 1 if threads is None else threads
    )
    file_format = options.file_format(file, format_name)
    try:
        with progress(quiet) as tell:
            tell("importing torch")
            keep_quiet()
            backends = tuple(dict.fromkeys(backend)) if backend else DEFAULT_BACKENDS
            if device and device.startswith("cpu"):
                server.start(backends)  # it imports torch, too: at the same time
            with held_back():
                from invbench.harness import machine
                from invbench.harness.point import measure_point

            settings = Settings(
                backends=backends,
                asked_for=tuple(backend or ()),
                baseline=None if baseline == "none" else baseline,
                budget=Budget(seconds=budget or (BUDGET_TO_COMPARE if compare else BUDGET), precision=precision / 100),
                cache=cache, clock=clock, seed=seed, autotune=not no_autotune, compare=compare,
            )  # fmt: skip
            measured = measure_point(machine.complete(point, device, threads), settings, tell)
    except KeyboardInterrupt as stop:
        raise options.Interrupted("interrupted before anything was measured") from stop
    results = ResultSet(
        results=measured.results, command=options.command_line(file),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__, environment=measured.environment, settings=asdict(settings), peaks=measured.peaks,
        baseline=settings.baseline, interrupted=measured.interrupted,
    )  # fmt: skip
    options.hand_over(results, format_name, file, file_format)
    return 130 if results.interrupted else exit_code(results.results, asked_for=backend or ())


def _groups(C: int, G: int | None, group_channels: int | None) -> int:
    if group_channels is None:
        return DEFAULT_G if G is None else G
    if G is not None:
        raise InvbenchError(f"--G and --group-channels say the same thing: got {G} and {group_channels}; give one")
    if group_channels < 1 or C % group_channels:
        raise InvbenchError(f"--group-channels must divide C: got C={C} and {group_channels}; try --group-channels 1")
    return C // group_channels
