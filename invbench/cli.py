"""The command line: parse, call, render. Options, meanings and exit codes are the interface that scripts build on."""

from __future__ import annotations

import gc
import shlex
import sys
import traceback
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from invbench import __version__
from invbench.harness import keep_quiet, server
from invbench.ops import BACKENDS
from invbench.report import FORMATS, format_for, output
from invbench.report.listing import render_backends
from invbench.report.progress import progress
from invbench.results import ResultSet
from invbench.spec import (
    BASELINES,
    CASE_FIELDS,
    DTYPES,
    LAYOUTS,
    PADDING_MODES,
    Case,
    InvbenchError,
    LayerSpec,
    Mode,
    Scope,
    require_choice,
)
from invbench.verdict import exit_code

DEFAULT_G = 16
CLOCKS = ("eager", "device")
CACHES = ("hot", "cold")

# Typer brings a copy of click or uses the installed one, by version; this is the UsageError of the one it uses.
UsageError: type[Any] = typer.BadParameter.__mro__[1]

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _option(name: str, text: str, *choices: str, **more: Any) -> Any:
    return typer.Option(name, help=text, metavar="|".join(choices) or more.pop("metavar", None), **more)


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context, version: Annotated[bool, _option("--version", "Print the version and exit.")] = False
) -> int:
    """Is involution really cheaper than convolution, on your hardware, today?"""
    if version:
        output.show(f"invbench {__version__}")
    elif context.invoked_subcommand is None:
        output.show(context.get_help())
    return 0


@app.command()
def op(
    N: Annotated[int, _option("--N", "Images in the batch.")] = 8,
    C: Annotated[int, _option("--C", "Channels, in and out.")] = 256,
    H: Annotated[int, _option("--H", "Height.")] = 28,
    W: Annotated[int, _option("--W", "Width.")] = 28,
    K: Annotated[int, _option("--K", "Side of the window, odd.")] = 7,
    G: Annotated[int | None, _option("--G", "Groups of channels that share a weight; divides C. [default: 16]")] = None,
    group_channels: Annotated[int | None, _option("--group-channels", "Channels a group, instead of --G.")] = None,
    stride: Annotated[int, _option("--stride", "Stride of the window.")] = 1,
    dilation: Annotated[int, _option("--dilation", "Dilation of the window.")] = 1,
    reduction: Annotated[int, _option("--reduction", "C over the layer's hidden channels.")] = 4,
    padding_mode: Annotated[str, _option("--padding-mode", "What lies outside the image.", *PADDING_MODES)] = "zeros",
    device: Annotated[
        str | None,
        _option("--device", "Where to run. [default: cuda if there is one]", "cpu", "cuda", "cuda:1", "mps", "xpu"),
    ] = None,
    dtype: Annotated[str, _option("--dtype", "Type of all tensors.", *DTYPES)] = "float32",
    layout: Annotated[str, _option("--layout", "Layout of the involution's tensors.", *LAYOUTS)] = "channels_last",
    mode: Annotated[str, _option("--mode", "What is timed.", *Mode)] = "forward",
    scope: Annotated[str, _option("--scope", "The whole layer, or with the weight given.", *Scope)] = "layer",
    backend: Annotated[
        list[str] | None, _option("--backend", "An involution backend; repeatable. [default: all]", *BACKENDS)
    ] = None,
    baseline: Annotated[str, _option("--baseline", "What the ratios are to.", *BASELINES)] = "conv2d",
    clock: Annotated[str, _option("--clock", "Launches included, or the device's work alone.", *CLOCKS)] = "eager",
    cache: Annotated[str, _option("--cache", "Whether inputs may lie in cache.", *CACHES)] = "hot",
    budget: Annotated[
        float, _option("--budget", "Measuring time for the point, all its subjects.", metavar="SECONDS")
    ] = 6.0,
    precision: Annotated[
        float, _option("--precision", "Stop where the intervals' half-width is below this.", metavar="PERCENT")
    ] = 2.0,
    threads: Annotated[int | None, _option("--threads", "CPU threads. [default: the usable cores]")] = None,
    seed: Annotated[int, _option("--seed", "Seed of the inputs and of the order of blocks.")] = 0,
    no_autotune: Annotated[bool, _option("--no-autotune", "Let nothing choose its algorithm by trying.")] = False,
    format_name: Annotated[
        str | None, _option("--format", "Format of standard output. [default: table]", *FORMATS)
    ] = None,
    file: Annotated[
        Path | None, _option("--output", "Write a file, too; format from its suffix unless given.", metavar="FILE")
    ] = None,
    quiet: Annotated[bool, _option("--quiet", "No progress on standard error.")] = False,
) -> int:
    """Measure one configuration: every involution backend against nn.Conv2d."""
    # All of this comes before torch is imported, so that a slip of the finger is answered at once.
    for option, value, choices in (
        ("--baseline", baseline, BASELINES), ("--clock", clock, CLOCKS), ("--cache", cache, CACHES),
        ("--mode", mode, Mode), ("--scope", scope, Scope), ("--format", format_name or "table", FORMATS),
        *(("--backend", name, BACKENDS) for name in backend or ()),
    ):  # fmt: skip
        require_choice(option, value, tuple(choices))
    for option, number, usual in (("--budget", budget, 6), ("--precision", precision, 2)):
        if not 0 < number < float("inf"):
            raise InvbenchError(f"{option} must be above 0: got {number:g}; try {usual}")
    if not 0 <= seed < 2**62:
        raise InvbenchError(f"--seed must be a whole number from 0 to 2**62: got {seed}; try 0")
    layer = LayerSpec(C, K, _groups(C, G, group_channels), stride, dilation, reduction, padding_mode)
    point = Case(
        N, H, W, layer, device or "cpu", dtype, layout, Mode(mode), Scope(scope), 1 if threads is None else threads
    )
    file_format = None
    if file is not None:
        file_format = format_name or format_for(file)
        output.check_writable(file)
    with progress(quiet) as tell:
        tell("importing torch")
        keep_quiet()
        backends = tuple(dict.fromkeys(backend)) if backend else tuple(BACKENDS)
        if device and device.startswith("cpu"):
            server.start(backends)  # it imports torch, too: at the same time
        from invbench.harness import machine
        from invbench.harness.blocks import Budget
        from invbench.harness.point import Settings, measure_point

        settings = Settings(
            backends=backends,
            asked_for=tuple(backend or ()),
            baseline=None if baseline == "none" else baseline,
            budget=Budget(seconds=budget, precision=precision / 100),
            cache=cache, clock=clock, seed=seed, autotune=not no_autotune,
        )  # fmt: skip
        case = machine.complete(point, device, threads)
        try:
            measured = measure_point(case, settings, tell)
        except KeyboardInterrupt:
            return _fail("interrupted before anything was measured", 130)
    results = ResultSet(
        results=measured.results, command=_command(file), created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool_version=__version__, environment=measured.environment, settings=asdict(settings), peaks=measured.peaks,
        baseline=settings.baseline, interrupted=measured.interrupted,
    )  # fmt: skip
    try:  # whichever of the two cannot be written, the other is
        if file is not None and file_format is not None:
            output.write(file, FORMATS[file_format](results))
    finally:
        output.show(FORMATS[format_name or "table"](results))
    return 130 if results.interrupted else exit_code(results.results, asked_for=backend or ())


@app.command("backends")
def list_backends(
    format_name: Annotated[str, _option("--format", "Format of standard output.", "table", "json")] = "table",
) -> int:
    """Say what can run here, and why the rest cannot."""
    require_choice("--format", format_name, ("table", "json"))
    from invbench.harness import machine

    output.show(render_backends(machine.backends_here(), as_json=format_name == "json"))
    return 0


def main() -> NoReturn:
    """Run the program; every failure is one line on standard error and an exit code."""
    code = _run(sys.argv[1:])
    gc.freeze()  # spares the seconds in which the interpreter would look for garbage among all of torch before it ends
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    command = typer.main.get_command(app)
    try:
        return int(command.main(arguments, prog_name="invbench", standalone_mode=False) or 0)
    except UsageError as error:
        path = error.ctx.command_path if error.ctx else "invbench"
        got = _value_given(arguments, getattr(error, "param", None))
        return _fail(f"{error.format_message().rstrip('.')}{got}; see {path} --help")
    except InvbenchError as error:
        return _fail(_with_option_name(str(error)))
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted before anything was measured", 130)
    except Exception:  # noqa: BLE001 -- a fault of ours: say so, with what is needed to mend it
        traceback.print_exc()
        return _fail("this is a fault of invbench, not of your input; please report it with the lines above", 4)


def _fail(message: str, code: int = 2) -> int:
    if sys.stderr is not None:
        print(f"invbench: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201 -- errors are for people
    return code


def _value_given(arguments: list[str], parameter: Any) -> str:
    """What an option was given, which the parser's message leaves out."""
    options = parameter.opts if parameter else ()
    for index, argument in reversed(list(enumerate(arguments))):  # the last one counts
        name, equals, value = argument.partition("=")
        if name in options:
            return f": got {value if equals else (arguments[index + 1 :] or [''])[0]!r}"
    return ""


def _with_option_name(message: str) -> str:
    """Messages of the library name a field; a user of the program knows it as an option."""
    first, _, rest = message.partition(" ")
    return f"--{first.replace('_', '-')} {rest}" if first in CASE_FIELDS else message


def _groups(C: int, G: int | None, group_channels: int | None) -> int:
    if group_channels is None:
        return DEFAULT_G if G is None else G
    if G is not None:
        raise InvbenchError(f"--G and --group-channels say the same thing: got {G} and {group_channels}; give one")
    if group_channels < 1 or C % group_channels:
        raise InvbenchError(f"--group-channels must divide C: got C={C} and {group_channels}; try --group-channels 1")
    return C // group_channels


def _command(file: Path | None) -> str:
    """The command as given, but for the folder of its output, which is nobody else's business."""
    arguments = [argument.replace(str(file), file.name) if file else argument for argument in sys.argv[1:]]
    return shlex.join(["invbench", *arguments])
