"""The user's git, asked about a repository in ways that change nothing in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from difflib import get_close_matches
from pathlib import Path

from invbench.spec import InvbenchError

# What git sets for hooks (`git rev-parse --local-env-vars`), but for what carries options of the command line. A hook
# of one repository may start a check in another, and the index that it is given is the user's own.
MISLEADING = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_IMPLICIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
)
# Hooks and file system monitors would run, and the shared part of a split index be written, in the user's repository.
SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.splitIndex": "false",
}
NO_REVISION = "Needed a single revision"


class GitError(InvbenchError):
    """Git refused; the message is its own first line. ``is_ownership``: because the repository is somebody else's."""

    def __init__(self, stderr: bytes) -> None:
        lines = os.fsdecode(stderr).splitlines() or ["it gave no reason"]
        # Traces and warnings may come first.
        super().__init__(next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[0]).strip())
        self.is_ownership = b"safe.directory" in stderr


def git(folder: Path, *arguments: str, **variables: str) -> bytes:
    """Standard output of ``git arguments`` in a folder, with these environment variables besides.

    Raises GitError if it fails, and InvbenchError where it cannot be run.
    """
    program = shutil.which("git")
    if program is None:
        raise InvbenchError(
            "--base takes a git revision, and there is no git on PATH: install git, or give --base-wheel FILE"
        )
    settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
    # No prompt for a password, and no index that is only refreshed: nobody would see the one, or expect the other.
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    environment = {name: value for name, value in os.environ.items() if name not in MISLEADING}
    try:
        done = subprocess.run(  # noqa: S603
            [program, *settings, *arguments],
            cwd=folder,
            env={**environment, **quiet, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )
    except OSError as error:
        raise InvbenchError(
            f"--base: git cannot be run in {folder} ({error}); is the folder there, and yours?"
        ) from error
    if done.returncode:
        raise GitError(done.stderr)
    return done.stdout


def text(folder: Path, *arguments: str) -> str:
    """The only line that git answers."""
    return os.fsdecode(git(folder, *arguments).removesuffix(b"\n"))


def top_level(start: Path) -> Path:
    """The top of the checkout that a file or folder lies in; raises InvbenchError if it lies in none."""
    folder = start if start.is_dir() else start.parent
    try:
        return Path(text(folder, "rev-parse", "--show-toplevel"))
    except GitError as error:
        remedy = (
            f"make it yours, or trust it: git config --global --add safe.directory {folder.absolute()}"
            if error.is_ownership
            else "run it on code that lies in a git checkout, or give --base-wheel FILE"
        )
        raise InvbenchError(
            f"--base: no git checkout to read a revision from at {start} ({error}): {remedy}"
        ) from error


def describe(start: Path) -> str | None:
    """The commit that a folder's checkout is at, with ``-dirty`` where files differ; None if it lies in none."""
    try:
        commit = text(start, "rev-parse", "--verify", "HEAD")
        # Not `git describe --dirty`, which writes what it has refreshed into the user's index.
        is_dirty = bool(text(start, "status", "--porcelain", "--untracked-files=no"))
    except InvbenchError:
        return None
    return f"{commit}{'-dirty' * is_dirty}"


def is_tracked(path: Path, top: Path) -> bool:
    """Whether a file, or some file of a folder, belongs to the checkout."""
    return bool(text(top, "ls-files", "--", str(path)))


def commit_of(rev: str, top: Path) -> str:
    """The full hash of the commit that a revision means; raises InvbenchError if there is none."""
    try:
        if "\0" in rev:
            raise GitError(NO_REVISION.encode())
        # In two steps, since in ":/words" all that follows is searched for.
        found = _verified(rev, top)
        return _verified(f"{found}^{{commit}}", top)
    except GitError as error:
        reason = "" if NO_REVISION in str(error) else f" ({error})"
        raise InvbenchError(
            f"--base takes a git revision (a branch, tag or commit, HEAD~1): got {rev!r}, which is none in "
            f"{top}{reason}. {_remedy(rev, top)}"
        ) from error


def _verified(rev: str, top: Path) -> str:
    name = text(top, "rev-parse", "--verify", "--end-of-options", rev)
    if not re.fullmatch("[0-9a-f]{40,64}", name):  # "^HEAD" is verified as the negation of a commit
        raise GitError(NO_REVISION.encode())
    return name


def _remedy(rev: str, top: Path) -> str:
    names = text(top, "for-each-ref", "--format=%(refname:short)").splitlines()
    # A fresh clone has its other branches only as origin's.
    near = [name for name in names if name.endswith(f"/{rev}")] or get_close_matches(rev, names)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    if text(top, "rev-parse", "--is-shallow-repository") == "true":
        return (
            f"{hint}The clone is shallow: git fetch --unshallow --tags, or in GitHub actions fetch-depth: 0 for "
            "actions/checkout"
        )
    return f"{hint}See git log --oneline --all, or git fetch --tags first"


def unpack(commit: str, top: Path, folder: Path, index: Path) -> None:
    """Write the files of a commit into an empty folder, by way of an index of its own.

    Not `git worktree add`, which leaves traces in the repository, nor `git archive`, which leaves out what is marked
    export-ignore. Raises GitError, also if files are missing afterwards.
    """
    variables = {
        "GIT_DIR": text(top, "rev-parse", "--absolute-git-dir"),
        # Attributes are looked up in the work tree: not in the user's, which may have others.
        "GIT_WORK_TREE": str(folder),
        "GIT_INDEX_FILE": str(index),
    }
    git(folder, "read-tree", commit, **variables)
    git(folder, "checkout-index", "--all", **variables)
    names = [os.fsdecode(name) for name in git(folder, "ls-files", "-z", **variables).split(b"\0") if name]
    # Older versions of git say nothing about files that they could not write.
    if missing := [name for name in names if not os.path.lexists(folder / name)]:
        raise GitError(os.fsencode(f"error: {missing[0]!r} and maybe others could not be written"))
