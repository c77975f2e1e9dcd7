"""Runs in a worker's interpreter, by its path: imports the code that measures, and the version that is measured.

Both sides of a check are measured by the same code, that of the invbench which runs the check. What is measured comes
from the version to be judged: the operators, networks and costs of its ``invbench`` (``MEASURED``), or a user's
package. Standard library only, since nothing can be imported before this has run.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

# What a version is judged by; their modules import nothing of invbench but these and ``invbench.spec``.
MEASURED = ("ops", "models", "cost")


class TwoVersions(MetaPathFinder):
    """Finds ``invbench`` in one folder, and the parts of it that are measured in another."""

    def __init__(self, measuring: Path, measured: Path) -> None:
        self._homes = {"invbench": measuring, **{f"invbench.{name}": measured / name for name in MEASURED}}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 -- both are what importlib gives
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """The package or module of that name, where it is one of ours; submodules are found through their package."""
        home = self._homes.get(fullname)
        if home is None:
            return None
        module = home.with_suffix(".py")
        if module.is_file():
            return importlib.util.spec_from_file_location(fullname, module)
        return importlib.util.spec_from_file_location(
            fullname, home / "__init__.py", submodule_search_locations=[str(home)]
        )


def installed() -> Path | None:
    """The folder of the ``invbench`` that this interpreter would import by itself."""
    found = importlib.util.find_spec("invbench")
    return Path(found.origin).parent if found and found.origin else None


def main(config: dict[str, Any]) -> None:
    """Set up what is imported from where, and serve.

    config: ``measuring`` is the folder of the package that measures; ``measured`` that of the package that is judged,
    or null for the interpreter's own; ``path`` are folders to import from before all others.
    """
    sys.path[:] = [*config["path"], *(each for each in sys.path if each != str(Path(__file__).parent))]
    measuring = Path(config["measuring"])
    measured = Path(config["measured"]) if config["measured"] else installed() or measuring
    sys.meta_path.insert(0, TwoVersions(measuring, measured))
    try:
        from invbench.harness.gate.serving import serve
    except Exception as error:  # noqa: BLE001 -- one version does not have what the other needs, or an environment
        sys.stdout.write(json.dumps({"refused": f"it cannot be imported ({type(error).__name__}: {error})"}) + "\n")
        return
    serve(config["path"], config["lifeline"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
