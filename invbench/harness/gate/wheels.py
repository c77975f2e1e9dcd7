"""Wheels, unpacked without being installed."""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from invbench.spec import InvbenchError

METADATA = re.compile(r"[^/]+\.dist-info/METADATA")
TO_ROOT = re.compile(r"^[^/]+\.data/(?:purelib|platlib)/(?=.)")


def unpack(file: BinaryIO, name: str, folder: Path) -> None:
    """Write the modules of a wheel into an empty folder as they would lie in site-packages.

    Scripts, headers and data, which would be installed elsewhere, stay in NAME.data. Raises InvbenchError for what is
    no wheel, is damaged, or has paths that lead outside.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            targets = [TO_ROOT.sub("", member.filename) for member in members]
            if outside := next((each for each in targets if _leads_outside(each)), None):
                raise refusal(name, f"it has a path that leads outside, {outside!r}")
            if sum(1 for each in targets if METADATA.fullmatch(each)) != 1:
                raise refusal(name, "it has no NAME.dist-info/METADATA, or several")
            for member, target in zip(members, targets, strict=True):
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
    # RuntimeError: encrypted, or (NotImplementedError) an unknown compression.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise refusal(name, str(error)) from error


def metadata(folder: Path) -> str:
    """The text of METADATA of an unpacked wheel."""
    (path,) = folder.glob("*.dist-info/METADATA")
    return path.read_text("utf-8", "replace")


def refusal(name: str, reason: str) -> InvbenchError:
    """What to raise where --base-wheel got something else."""
    return InvbenchError(
        f"--base-wheel takes a wheel: got {name} ({reason}): build one with pip wheel --no-deps FOLDER"
    )


def _leads_outside(name: str) -> bool:
    # Backslashes and colons are separators and drives elsewhere, and never in a wheel's names.
    return name.startswith("/") or ".." in PurePosixPath(name).parts or bool(re.search(r"[\\:]", name))
