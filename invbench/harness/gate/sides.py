"""What is compared: the running interpreter's code, and the base that was asked for, each as a ``Version``."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from invbench.harness.gate import git
from invbench.harness.gate.requirements import requirements_in
from invbench.harness.gate.trees import Tree, differing, mirrored, repository, requirements_of, revision, wheel
from invbench.harness.gate.workers import PACKAGE, Version, environment_for
from invbench.results.check import Side
from invbench.spec import InvbenchError

INSTALL = "install it with pip install -e . first, or compare with --base-python or --base-wheel"


@dataclass(frozen=True, slots=True)
class Home:
    """Where head's code lies.

    package: the name of what is compared. folder: that which it is imported from, or would be if it were there.
    is_ours: whether it is invbench.
    """

    package: str
    folder: Path
    is_ours: bool = False
    is_there: bool = True


OURS = Home("invbench", PACKAGE.parent, is_ours=True)


def head_of(home: Home) -> Version:
    """The running interpreter's code."""
    commit = git.describe(home.folder) or (git.describe(Path.cwd()) if home.is_ours else None)
    return Version(Side(f"{home.package} as it is imported here", commit), measured=PACKAGE)


def from_revision(rev: str, home: Home) -> tuple[Version, str | None]:
    """A git revision of the checkout that head's code lies in, or else the one that the user is in; and what it depends
    on that head does not, or the other way round.

    Raises InvbenchError where there is no such checkout, revision or package.
    """
    inside = _checkout_of(home)
    if inside is None and not home.is_ours:
        raise InvbenchError(
            f"--base {rev}: {home.package} is imported from {str(home.folder)!r}, which is no part of a git checkout; "
            f"{INSTALL}"
        )
    top = inside or repository(Path.cwd())
    tree = revision(rev, top)
    folder = mirrored(tree, top, home.folder) if inside else _folder_with(home.package, tree, rev)
    differs = differing(tree.requirements, requirements_of(top))
    return _version(tree, folder, home, _there(tree, top)), differs


def from_wheel(file: Path, home: Home) -> tuple[Version, str | None]:
    """A wheel, unpacked and not installed: it runs in this environment; and what it depends on that head does not."""
    tree = wheel(file)
    if not (tree.root / home.package).is_dir() and not (tree.root / f"{home.package}.py").is_file():
        raise InvbenchError(
            f"--base-wheel {file.name}: it has no {home.package}, which is what head is compared by; name its wheel"
        )
    needs = _needs(home)
    return _version(tree, tree.root, home, tree.root), None if needs is None else differing(tree.requirements, needs)


def from_python(path: str, home: Home) -> tuple[Version, str | None]:
    """Another environment, by its interpreter: whatever it imports is the base, its dependencies included."""
    found = shutil.which(path)
    if found is None:
        raise InvbenchError(
            f"--base-python takes the interpreter of another environment: got {path!r}, which cannot be run; "
            "try ENVIRONMENT/bin/python"
        )
    python = str(Path(found).absolute())  # not resolved: a link is what makes it an environment's
    if home.is_ours:
        _require_another(path, python)
    # Not where the user is, whose files would be imported before those of the environment.
    return Version(Side(f"what {path} imports"), python=python, folder=Path(os.sep)), None


def _require_another(path: str, python: str) -> None:
    """Refuse an environment without an invbench of its own: both sides would be this one."""
    ask = f"import importlib.util as u; s = u.find_spec({OURS.package!r}); print(s.origin if s else '')"
    try:
        done = subprocess.run(  # noqa: S603 -- the interpreter that the user has named
            [python, "-c", ask], cwd=os.sep, env=environment_for(python), capture_output=True, text=True, timeout=60,
            check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise InvbenchError(
            f"--base-python {path}: it does not run Python ({type(error).__name__}); try ENVIRONMENT/bin/python"
        ) from error
    origin = done.stdout.strip()
    if not origin or Path(origin).parent.resolve() == PACKAGE.resolve():
        what = "imports the same invbench as this interpreter" if origin else "has no invbench"
        raise InvbenchError(
            f"--base-python {path}: its environment {what}, so that there is nothing to compare; install the version "
            "there that is to be the base"
        )


def _version(tree: Tree, folder: Path, home: Home, there: Path) -> Version:
    """A tree as the base: our operators are measured by this invbench, a user's package is imported from there."""
    side = Side(tree.name, tree.commit)
    if home.is_ours:
        return Version(side, measured=folder / home.package)
    return Version(side, measured=PACKAGE, path=(folder,), folder=there)


def _checkout_of(home: Home) -> Path | None:
    """The checkout that head's code is a tracked part of; None if it lies in none, or in a folder that git ignores."""
    try:
        top = repository(home.folder)
    except InvbenchError:
        return None
    if not home.is_there:  # another revision may have it
        return top
    name = home.package if (home.folder / home.package).is_dir() else f"{home.package}.py"
    return top if git.is_tracked(home.folder / name, top) else None


def _folder_with(package: str, tree: Tree, rev: str) -> Path:
    """Where a tree has the package, at its top or in src."""
    for folder in (tree.root, tree.root / "src"):
        if (folder / package / "__init__.py").is_file():
            return folder
    raise InvbenchError(
        f"--base {rev}: this checkout has no {package} in that revision; run it in one of {package}, or say with "
        "--subject package.module:factory what of yours is to be compared"
    )


def _there(tree: Tree, top: Path) -> Path:
    """Where the user is, in the tree."""
    try:
        return mirrored(tree, top, Path.cwd())
    except InvbenchError:
        return tree.root


def _needs(home: Home) -> tuple[str, ...] | None:
    """What head depends on, as its installation says; None where it says nothing."""
    names = importlib.metadata.packages_distributions().get(home.package, [home.package])
    try:
        return requirements_in(importlib.metadata.distribution(names[0]).read_text("METADATA") or "")
    except importlib.metadata.PackageNotFoundError:
        return None
