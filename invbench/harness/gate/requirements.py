"""What code says it depends on, in one spelling, so that two versions of it can be compared."""

from __future__ import annotations

import re
import tomllib
from email.parser import Parser
from pathlib import Path

from invbench.spec import InvbenchError

REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(\[[^\]]*\])?([^;]*)(?:;(.*))?", re.DOTALL)
MARKER_TOKEN = re.compile(r"""'[^']*'|"[^"]*"|[()]|[<>=!~]+|[\w.]+""")


def requirements_of(folder: Path) -> tuple[str, ...]:
    """The dependencies that pyproject.toml in a folder declares, in one spelling and sorted; none without such a file.

    Dependencies that only a build would know (``dynamic``) are none. Raises InvbenchError for a file that is damaged.
    """
    path = folder / "pyproject.toml"
    try:
        declared = tomllib.loads(path.read_text("utf-8")).get("project", {}).get("dependencies", [])
        return tuple(sorted(map(_in_one_spelling, declared)))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InvbenchError(f"--base: the dependencies in {path} cannot be read ({error}): repair that file") from error


def requirements_in(metadata: str) -> tuple[str, ...]:
    """Those in the METADATA of a wheel, without those of extras, likewise."""
    declared = map(str, Parser().parsestr(metadata, headersonly=True).get_all("Requires-Dist", []))
    return tuple(sorted(map(_in_one_spelling, (each for each in declared if not re.search(r"\bextra\s*==", each)))))


def differing(base: tuple[str, ...], head: tuple[str, ...]) -> str | None:
    """In words, what one depends on and the other does not; None if there is no difference."""
    of_base, of_head = (", ".join(sorted(set(mine) - set(other))) for mine, other in ((base, head), (head, base)))
    if of_base and of_head:
        return f"base wants {of_base}, head {of_head}"
    if of_base:
        return f"base wants {of_base}, head does not"
    return f"head wants {of_head}, base does not" if of_head else None


def _in_one_spelling(requirement: str) -> str:
    """As setuptools and packaging write it, but for the order of bounds: ``torch>=2.6,<3; sys_platform == "linux"``."""
    found = REQUIREMENT.fullmatch(requirement)
    if not found:
        return " ".join(requirement.split())
    name, extras, bounds, marker = (part or "" for part in found.groups())
    name = re.sub("[-_.]+", "-", name).lower()
    extras = "".join(extras.split())
    if bounds.lstrip().startswith("@"):  # a URL, in which everything counts
        return f"{name}{extras} {' '.join(requirement[found.start(3) :].split())}"
    bounds = ",".join(sorted("".join(bounds.split()).strip("()").split(",")))
    tokens = [token.replace("'", '"') for token in MARKER_TOKEN.findall(marker)]
    return f"{name}{extras}{bounds}" + (f"; {' '.join(tokens)}" if tokens else "")
