"""The command line: parse, call, render. Options, meanings and exit codes are the interface that scripts build on.

One file a command; this one has the program and how its failures are told.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

from invbench import __version__
from invbench.cli.check import check
from invbench.cli.compare_models import compare_models
from invbench.cli.doctor import doctor
from invbench.cli.listings import backends, profiles
from invbench.cli.op import op
from invbench.cli.options import Failed, Interrupted, option
from invbench.cli.report import compare, report
from invbench.cli.sweep import sweep
from invbench.cli.train import train
from invbench.report import output
from invbench.spec import InvbenchError
from invbench.study.grid import FIELDS

# Typer brings a copy of click or uses the installed one, by version; this is the UsageError of the one it uses.
UsageError: type[Any] = typer.BadParameter.__mro__[1]

COMMANDS = (op, sweep, compare_models, train, check, report, compare, backends, profiles, doctor)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
for command in COMMANDS:
    app.command()(command)


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context, version: Annotated[bool, option("--version", "Print the version and exit.")] = False
) -> int:
    """Is involution really cheaper than convolution, on your hardware, today?"""
    if version:
        output.show(f"invbench {__version__}")
    elif context.invoked_subcommand is None:
        output.show(context.get_help())
    return 0


def main() -> NoReturn:
    """Run the program; every failure is one line on standard error and an exit code."""
    _open_standard_files()
    code = _run(sys.argv[1:])
    gc.freeze()  # spares the seconds in which the interpreter would look for garbage among all of torch before it ends
    sys.exit(code)


def _open_standard_files() -> None:
    """Where the caller has closed standard output or standard error, a journal could be given its number: and what a
    library writes there would be written into the journal."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))


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
    except Failed as failure:
        return _fail(str(failure), 4)
    except Interrupted as stop:
        return _fail(str(stop), 130)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted before anything was measured", 130)
    except Exception:  # noqa: BLE001 -- a fault of ours: say so, with what is needed to mend it
        traceback.print_exc()
        return _fail("this is a fault of invbench, not of your input; please report it with the lines above", 4)


def _fail(message: str, code: int = 2) -> int:
    if sys.stderr is None:
        return code
    with contextlib.suppress(OSError):  # nobody reads it
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
    return f"--{first.replace('_', '-')} {rest}" if first in FIELDS else message
