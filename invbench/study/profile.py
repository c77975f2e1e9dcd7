"""Sweep profiles: TOML files that name a study, its axes and how long each point may take.

description = "what question it answers"
budget = 6.0                    # seconds of measuring a point; also precision (percent), timeout, clock, cache
launches = 6                    # how often all points are measured, each time in a fresh process; once, if left out
backend = ["numba", "unfold"]   # all, if left out
subject = ["package.module:factory"]
constraints = ["H = W", "G = C / 16"]
[axes]                          # the product of these, by the names of the command line's options
C = [64, 128]
W = "7:56:7"
[on.cuda]                       # axes that differ on a type of device
N = [64, 256]
[[cases]]                       # axes that go together; each is a product with the rest
C = 64
W = 56
[check]                         # what invbench check counts as worse; other commands do without (invbench.study.limits)
latency = "5%"                  # the least slowdown that counts; memory, kept, params, flop: "0%", any increase
visible = "15%"                 # inconclusive, where a slowdown of this size could have gone unseen
launches = 3                    # fresh processes a stage
quads = 5                       # ABBA quads a launch
[[check.cases]]                 # cases with thresholds of their own; the last one that holds counts
where = "mode = train and C = 64"
latency = "8%"
"""

from __future__ import annotations

import bisect
import contextlib
import difflib
import importlib.resources
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from invbench.spec import CACHES, CLOCKS, DEVICE_TYPES, InvbenchError
from invbench.study import convert
from invbench.study.grid import AXES, Axes, Grid
from invbench.study.limits import METRICS, CaseLimits, Limits, parse_share

Place = tuple[str | int, ...]
"""The keys and the numbers of tables that lead to a value of a document."""

_AXIS_KEYS: dict[str, convert.Converter] = {name: convert.axis(name) for name in AXES}
_KEYS: dict[str, convert.Converter] = {
    "description": convert.text, "budget": convert.number, "precision": convert.number, "timeout": convert.number,
    "launches": convert.count, "clock": convert.word(*CLOCKS), "cache": convert.word(*CACHES),
    "backend": convert.backends, "subject": convert.texts, "constraints": convert.expressions,
    "axes": convert.table, "on": convert.table, "cases": convert.tables("cases"),
    "check": convert.table,
}  # fmt: skip
_THRESHOLDS: dict[str, convert.Converter] = dict.fromkeys(METRICS, parse_share)
_CHECK_KEYS: dict[str, convert.Converter] = {
    **_THRESHOLDS, "visible": parse_share, "launches": convert.count, "quads": convert.count,
    "cases": convert.tables("check.cases"),
}  # fmt: skip
_CHECK_CASE_KEYS: dict[str, convert.Converter] = {"where": convert.expression, **_THRESHOLDS}


@dataclass(frozen=True)
class Profile:
    """A study: its grid, and how its points are measured where the command line does not say (None: as usual)."""

    name: str
    description: str = ""
    grid: Grid = field(default_factory=Grid)
    backends: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    budget: float | None = None
    precision: float | None = None
    timeout: float | None = None
    launches: int | None = None
    clock: str | None = None
    cache: str | None = None
    limits: Limits = field(default_factory=Limits)


def shipped() -> dict[str, Any]:
    """The files of the profiles that come with invbench, by name."""
    checkout = Path(__file__).parents[2] / "profiles" / "sweeps"
    # Installed, the folder is a package of its own (pyproject.toml); a checkout that is run in place has none.
    folder = checkout if checkout.is_dir() else importlib.resources.files("invbench.profiles")
    files = {Path(file.name).stem: file for file in folder.iterdir() if file.name.endswith(".toml")}
    return dict(sorted(files.items()))


def source(name: str) -> str:
    """The text of a shipped profile by its name, or of any by the path of its file; InvbenchError if there is none."""
    files = shipped()
    is_path = name.endswith(".toml") or "/" in name or "\\" in name
    if not is_path and name not in files:
        near = difflib.get_close_matches(name, files, 1)
        hint = f"did you mean {near[0]}?" if near else "give the path of a .toml file for your own"
        raise InvbenchError(f"no profile {name!r}: there are {', '.join(files)}; {hint}")
    file = Path(name) if is_path else files[name]
    try:
        return str(file.read_text(encoding="utf-8-sig"))  # some editors begin a file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvbenchError(f"profile {name!r} cannot be read ({reason}); `invbench profiles` lists names") from error


def load(name: str) -> Profile:
    """A shipped profile by its name, or any by the path of its file.

    Raises InvbenchError that names the file, the line and the key of what is wrong.
    """
    return parse(source(name), Path(name).stem, name)


def parse(text: str, name: str, path: str) -> Profile:
    """The profile in a text; raises InvbenchError that names path, line and key."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: a number of 5000 digits is a ValueError
        found = re.fullmatch(r"(?s)(.*?) \(at (?:line (\d+), column \d+|end of document)\)", str(error))
        reason, line = (found[1], found[2] or text.count("\n") + 1) if found else (str(error), 1)
        raise InvbenchError(f"{path}:{line}: not TOML: {reason}; see `invbench profiles quick`") from error
    read = _Reader(text, path)
    take = read.table(document, (), _KEYS)
    devices = read.table(take.pop("on", {}), ("on",), dict.fromkeys(DEVICE_TYPES, convert.table))
    axes = read.axes(take.pop("axes", {}), ("axes",))
    by_device = {device: read.axes(table, ("on", device)) for device, table in devices.items()}
    cases = tuple(read.axes(case, ("cases", index)) for index, case in enumerate(take.pop("cases", [{}])))
    limits = read.limits(take.pop("check", {}), ("check",))
    return Profile(
        name=name, description=take.pop("description", ""),
        grid=Grid(axes, cases, by_device, take.pop("constraints", ())),
        backends=take.pop("backend", ()), subjects=take.pop("subject", ()), limits=limits, **take,
    )  # fmt: skip


@dataclass(frozen=True)
class _Reader:
    """Converts tables, and says in which line a key stands that cannot be converted."""

    text: str
    path: str

    def table(self, table: Mapping[str, Any], place: Place, keys: Mapping[str, convert.Converter]) -> dict[str, Any]:
        """The table's values, each converted by its key."""
        found = {}
        for key, value in table.items():
            if key not in keys:
                near = difflib.get_close_matches(key, keys, 1)
                hint = f"did you mean {near[0]}?" if near else f"take one of {', '.join(keys)}"
                raise self._error((*place, key), f"there is no such key; {hint}")
            with self._blaming((*place, key)):
                found[key] = keys[key](value)
        return found

    def axes(self, table: Mapping[str, Any], place: Place) -> Axes:
        """A table of axes."""
        found = self.table(table, place, _AXIS_KEYS)
        if "G" in found and "group_channels" in found:
            raise self._error((*place, "group_channels"), "G and group_channels say the same thing; give one")
        return found

    def limits(self, table: Mapping[str, Any], place: Place) -> Limits:
        """The table of a check; what is wrong with two keys together is told of the one that the file gives."""
        found = self.table(table, place, _CHECK_KEYS)
        thresholds = {metric: found[metric] for metric in METRICS if metric in found}
        with self._blaming((*place, "visible" if "visible" in found else "latency")):
            limits = Limits(thresholds, found.get("visible", Limits.visible))
        with self._blaming((*place, "launches")):  # before quads, whose usual number is enough for as few as may be
            limits = replace(limits, launches=found.get("launches", limits.launches))
        with self._blaming((*place, "quads")):
            limits = replace(limits, quads=found.get("quads", limits.quads))
        for index, case in enumerate(found.get("cases", [])):
            at = (*place, "cases", index)
            exception = self._case_limits(case, at)
            with self._blaming((*at, "latency")):
                limits = replace(limits, exceptions=(*limits.exceptions, exception))
        return limits

    def _case_limits(self, table: Mapping[str, Any], place: Place) -> CaseLimits:
        thresholds = self.table(table, place, _CHECK_CASE_KEYS)
        if "where" not in thresholds:
            raise self._error(place, 'it takes the cases that it is for; try where = "mode = train"')
        where = thresholds.pop("where")
        with self._blaming((*place, "where")):
            return CaseLimits(where, thresholds)

    @contextlib.contextmanager
    def _blaming(self, place: Place) -> Iterator[None]:
        """Errors inside are those of the key, and name it and its line."""
        try:
            yield
        except InvbenchError as error:
            raise self._error(place, str(error)) from error

    def _error(self, place: Place, message: str) -> InvbenchError:
        name = ".".join(key for key in place if isinstance(key, str))
        return InvbenchError(f"{self.path}:{self._line(place)}: {name}: {message}")

    def _line(self, place: Place) -> int:
        """Where the statement begins that gives the key, which tomllib does not tell: it is the one without which the
        text has no such key."""
        lines = self.text.split("\n")
        last = bisect.bisect_left(range(len(lines)), True, key=lambda count: _has(_beginning(lines, count)[1], place))
        return _beginning(lines, last - 1)[0] + 1


def _beginning(lines: list[str], count: int) -> tuple[int, Any]:
    """The most of the first lines, up to some count, that are TOML: how many they are, and what they say."""
    for whole in range(count, 0, -1):
        try:
            return whole, tomllib.loads("\n".join(lines[:whole]))
        except ValueError:
            continue
    return 0, {}


def _has(document: Any, place: Place) -> bool:
    for key in place:
        try:
            document = document[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True
