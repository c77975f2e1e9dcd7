"""Options that several commands share, and how they are checked before torch is imported."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from invbench.ops import BACKENDS
from invbench.report import FORMATS, format_for, output
from invbench.results import ResultSet
from invbench.spec import CACHES, CLOCKS, InvbenchError, require_choice
from invbench.study.grid import parse_axis


class Interrupted(Exception):  # noqa: N818 -- it is no error
    """Ctrl-C, in one line: what is kept and how to go on. Exit code 130."""


class Failed(Exception):  # noqa: N818 -- named after what it says
    """A measurement failed before there was anything to show, in one line. Exit code 4."""


def option(name: str, text: str, *choices: str, **more: Any) -> Any:
    """An option whose help shows its choices."""
    return typer.Option(name, help=text, metavar="|".join(choices) or more.pop("metavar", None), **more)


Clock = Annotated[str, option("--clock", "Launches included, or the GPU's work alone.", *CLOCKS)]
Cache = Annotated[str, option("--cache", "Whether inputs may lie in cache; cold flushes it before each call.", *CACHES)]
Precision = Annotated[
    float, option("--precision", "Stop where the intervals' half-width is below this.", metavar="PERCENT")
]
Filter = Annotated[
    list[str] | None,
    option("--filter", "Only the points for which it holds, such as 'C >= 64 and mode = train'.", metavar="EXPR"),
]
ProfileClock = Annotated[
    str | None, option("--clock", "Launches included, or the GPU's work alone. [default: eager]", *CLOCKS)
]
Seed = Annotated[int, option("--seed", "Seed of the inputs and of the order of blocks.")]
NoAutotune = Annotated[bool, option("--no-autotune", "Neither cuDNN nor the Triton kernels choose by trying.")]
Format = Annotated[str | None, option("--format", "Format of standard output. [default: table]", *FORMATS)]
Output = Annotated[
    Path | None, option("--output", "Write a file, too; format from its suffix unless given.", metavar="FILE")
]
Quiet = Annotated[bool, option("--quiet", "No progress on standard error.")]


def check_choices(given: Mapping[str, tuple[str | None, Any]]) -> None:
    """Refuse a word that is not in its table; by option, the word (None: not given) and the table."""
    for name, (value, choices) in given.items():
        if value is not None:
            require_choice(name, value, tuple(choices))


def backend_names(given: list[str] | None) -> tuple[str, ...]:
    """The backends of a repeatable option of names and comma lists, each once; refuses a name that is none."""
    names = tuple(dict.fromkeys(each.strip() for item in given or () for each in item.split(",")))
    for name in names:
        check_choices({"--backend": (name, BACKENDS)})
    return names


def check_measuring(budget: float | None, precision: float | None, seed: int, timeout: float | None = None) -> None:
    """Refuse a budget, precision, seed or timeout that cannot be used."""
    for name, number, usual in (("--budget", budget, 6), ("--precision", precision, 2), ("--timeout", timeout, 300)):
        if number is not None and not 0 < number < float("inf"):
            raise InvbenchError(f"{name} must be above 0: got {number:g}; try {usual}")
    if not 0 <= seed < 2**62:
        raise InvbenchError(f"--seed must be a whole number from 0 to 2**62: got {seed}; try 0")


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers of at least 1 as a comma list or ranges ``first:last:step``, each once."""
    return tuple(int(value) for value in parse_axis(name, text))


def file_format(file: Path | None, format_name: str | None) -> str:
    """The format of ``--output``, after a check that it can be written."""
    if file is None:
        return ""
    found = format_name or format_for(file)
    output.check_writable(file)
    return found


def hand_over(results: ResultSet, format_name: str | None, file: Path | None, file_format: str) -> None:
    """Results to standard output and to ``--output``; whichever of the two cannot be written, the other is."""
    try:
        if file is not None:
            output.write(file, FORMATS[file_format](results))
    finally:
        output.show(FORMATS[format_name or "table"](results))


def command_line(*files: Path | None) -> str:
    """The command as given, but for the folders of the files it writes, which are nobody else's business."""
    arguments = sys.argv[1:]
    for file in files:
        if file is not None and file.name:  # not "."
            arguments = [argument.replace(str(file), file.name) for argument in arguments]
    return shlex.join(["invbench", *arguments])
