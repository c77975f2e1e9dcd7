"""Where the base of ``invbench check --base REV | --base-wheel FILE`` comes from: trees beside the user's own.

A base is unpacked once, into the user's cache (``INVBENCH_CACHE_DIR``), so that the kernels compiled for it are found
again; the last few used are kept. Nothing in the user's repository changes, whenever a process is killed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from invbench.harness.gate import git, wheels
from invbench.harness.gate.requirements import differing, requirements_in, requirements_of
from invbench.harness.gate.unpacking import kept_folder
from invbench.spec import InvbenchError

__all__ = ["Tree", "differing", "mirrored", "repository", "requirements_of", "revision", "wheel"]


@dataclass(frozen=True, slots=True)
class Tree:
    """A version of some code, unpacked into a folder of its own.

    root: the top of the unpacked revision or wheel.
    name: as people call it: "HEAD~1 (3f2a9c1d0e5b)", or the wheel's file name.
    commit: the full hash, or None for a wheel.
    requirements: dependencies that its pyproject.toml or METADATA declares, without extras, in one spelling and sorted.
    """

    root: Path
    name: str
    commit: str | None
    requirements: tuple[str, ...]


def revision(rev: str, start: Path) -> Tree:
    """The tree of a git revision of the repository that ``start`` (a file or folder) lies in.

    What git's filters and attributes do to a checkout is done; files of submodules are absent. Of the variables that
    git sets for hooks none is heeded, GIT_DIR neither: ``start`` says which repository. In a partial clone, git fetches
    the objects that are missing, as for any other command.

    Raises InvbenchError without git or a checkout, for an unknown revision, and where the cache cannot be written.
    """
    top = repository(start)
    commit = git.commit_of(rev, top)
    short = commit[:12]
    name = short if commit.startswith(rev) else f"{rev} ({short})"

    def fill(folder: Path) -> None:
        try:
            git.unpack(commit, top, folder, index=folder.with_name("index"))
        except git.GitError as error:
            raise InvbenchError(
                f"--base {rev}: git cannot unpack {short} ({error}): see whether git checkout {short} works in a clone "
                f"of {top}"
            ) from error

    root = kept_folder(commit, fill)
    return Tree(root, name, commit, requirements_of(root))


def wheel(file: Path) -> Tree:
    """The tree of a wheel: its modules as they would lie in site-packages, not installed.

    Raises InvbenchError for what is no wheel or cannot be read, and where the cache cannot be written.
    """
    try:
        with file.open("rb") as opened:
            key = hashlib.file_digest(opened, "sha256").hexdigest()[:40]
            root = kept_folder(key, lambda folder: wheels.unpack(opened, file.name, folder))
    except OSError as error:
        raise wheels.refusal(str(file), error.strerror or str(error)) from error
    return Tree(root, file.name, None, requirements_in(wheels.metadata(root)))


def repository(start: Path) -> Path:
    """The top level of the git checkout that a file or folder lies in; raises InvbenchError if it lies in none."""
    return git.top_level(start)


def mirrored(tree: Tree, repository: Path, folder: Path) -> Path:
    """Where a folder of the checkout lies in the tree.

    Raises InvbenchError for a folder outside the checkout, and for one that the tree does not have, or has only as a
    link that leads out of it, such as back into the checkout.
    """
    top, wanted, root = repository.resolve(), folder.resolve(), tree.root.resolve()
    if not wanted.is_relative_to(top):
        raise InvbenchError(
            f"--base: {wanted} lies outside the checkout {top}, of which {tree.name} is a version: run the check on "
            "code inside"
        )
    inside = wanted.relative_to(top)
    found = (root / inside).resolve()
    if not (found.is_dir() and found.is_relative_to(root)):
        raise InvbenchError(
            f"--base: {tree.name} has no folder {inside} of its own: give a revision or wheel that has it"
        )
    return tree.root / inside
