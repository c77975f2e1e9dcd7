"""Lists that are no measurements: the backends and whether they run here, the shipped profiles."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any


def render_backends(rows: Sequence[dict[str, Any]], as_json: bool) -> str:
    """What can run here, and why not.

    rows: for each backend its ``name``, ``summary``, ``available`` types of device and, by type of device, the reason
    why it is ``unavailable``.
    """
    if as_json:
        return json.dumps(rows, indent=1)
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    names = 2 + max((len(row["name"]) for row in rows), default=0)
    indent = " " * names
    lines = []
    for row in rows:
        where = f"runs on {', '.join(row['available'])}" if row["available"] else "unavailable here"
        lines.append(f"{row['name']:{names}}{where}: {row['summary']}")
        for device, reason in row["unavailable"].items():
            text = f"not on {device}: {reason}"
            lines += textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent + "  ")
    return "\n".join(lines)


def render_profiles(rows: Sequence[dict[str, Any]], as_json: bool) -> str:
    """The shipped profiles: for each its ``name``, ``description`` and the number of ``points`` on a CPU."""
    if as_json:
        return json.dumps(rows, indent=1)
    width = max(60, shutil.get_terminal_size((100, 24)).columns)
    lines = []
    for row in rows:
        points = f"{row['points']:4} point{'s' * (row['points'] != 1)} on a CPU"
        head = f"{row['name']:18}{points:24}"
        lines += textwrap.wrap(row["description"], width, initial_indent=head, subsequent_indent=" " * len(head))
    return "\n".join([*lines, "", "`invbench profiles NAME` shows one, `invbench sweep NAME --dry-run` its points."])
