"""Published files: found in a folder or downloaded into it, and never used before their checksum is that of the table.

Standard library only; what downloads is torch's.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from invbench.ops.caching import cache_directory
from invbench.spec import InvbenchError

# Seconds without a byte before a server counts as unreachable; some firewalls never answer.
SILENCE = 30.0
NO_FILES_NEEDED = "--data-set digits needs no files"


@dataclass(frozen=True, slots=True)
class File:
    """A file as it is published, and what is packed in it.

    md5: hexadecimal. urls: where it can be downloaded, in the order in which they are tried; none for what is only
    published packed in another. members: what a .gz (one) or a .tar.gz holds; used in its place where it lies unpacked.
    """

    name: str
    md5: str
    urls: tuple[str, ...] = ()
    members: tuple[File, ...] = ()


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one data set.

    forms: each is enough alone; the first that is there is used, and the first is what is downloaded.
    places: folders below the user's ("." is itself) in which they are looked for, as torchvision lays them out.
    Downloads go to the first, which is not "." for MNIST and Fashion-MNIST, whose files have the same names.
    """

    forms: tuple[tuple[File, ...], ...]
    places: tuple[str, ...]

    def read(self, folder: Path | None, tell: Callable[[str], None]) -> dict[str, bytes]:
        """The contents of the members of one form, by name; every checksum has been verified.

        folder: the user's, which must exist; None for the one in the cache directory, which is made when needed.
        Files that are there are used, and never replaced; missing ones are downloaded.
        Raises InvbenchError: a missing or unwritable folder, a wrong checksum, a broken archive, no network.
        """
        try:
            folder = _default_folder() if folder is None else require_data(folder)
            places = [folder / place for place in self.places]
            form = next((form for form in self.forms if not _missing(form, places)), self.forms[0])
            if missing := _missing(form, places):
                _download(missing, places[0], tell)
            return {name: content for file in form for name, content in _members(file, places).items()}
        except OSError as error:
            raise InvbenchError(
                f"cannot read {error.filename or folder}: {_reason(error)}; make it readable, or pass "
                f"another --data DIR"
            ) from error


def _default_folder() -> Path:
    try:
        return cache_directory() / "data"
    except RuntimeError as error:
        raise InvbenchError(
            f"data sets are kept in your home directory, which cannot be found ({error}); pass --data DIR; "
            f"{NO_FILES_NEEDED}"
        ) from error


def require_data(folder: Path) -> Path:
    """The user's folder. Raises InvbenchError if there is none."""
    try:
        is_file, is_folder = folder.is_file(), folder.is_dir()
    except OSError as error:
        raise InvbenchError(
            f"--data {folder} cannot be looked into: {_reason(error)}; make it readable, or pass another --data DIR"
        ) from error
    if is_file:
        raise InvbenchError(f"--data must be a folder: got the file {folder}; pass the folder that it is in")
    if not is_folder:
        raise InvbenchError(
            f"--data must be a folder that is there: got {folder}; make it (mkdir -p {folder}), and what it lacks is "
            f"downloaded into it"
        )
    return folder


# --- What is there ---


def _packed(file: File, places: list[Path]) -> Path | None:
    return next((place / file.name for place in places if (place / file.name).is_file()), None)


def _unpacked(file: File, places: list[Path]) -> list[Path]:
    """All its members, which must lie in one place, or none."""
    for place in places:
        paths = [place / member.name for member in file.members]
        if paths and all(path.is_file() for path in paths):
            return paths
    return []


def _missing(form: tuple[File, ...], places: list[Path]) -> list[File]:
    return [file for file in form if not _unpacked(file, places) and not _packed(file, places)]


def _members(file: File, places: list[Path]) -> dict[str, bytes]:
    """What is in a file that is there, by name: unpacked where it lies unpacked."""
    if paths := _unpacked(file, places):
        return {
            member.name: _verified(member, path.read_bytes(), path)
            for member, path in zip(file.members, paths, strict=True)
        }
    path = _packed(file, places)
    assert path is not None, f"{file.name} has been found, or downloaded"
    contents = _unpack(file, _verified(file, path.read_bytes(), path), path)
    return {member.name: _verified(member, contents[member.name], path) for member in file.members}


def _verified(file: File, content: bytes, path: Path) -> bytes:
    """The content, which is the published one. Of what has been read, not of the file, which may change."""
    if (found := _md5(content)) != file.md5:
        raise InvbenchError(
            f"{path} is not the published {file.name}: its {len(content)} bytes have MD5 {found}, expected {file.md5}; "
            f"it is damaged, cut off or of another data set: move it away, and get it again"
        )
    return content


def _md5(content: bytes) -> str:
    # As published; against damage, not against attackers.
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _unpack(file: File, content: bytes, path: Path) -> dict[str, bytes]:
    """What is packed, by name; read where it is, so that nothing in an archive can say where it is written to."""
    wanted = {member.name for member in file.members}
    try:
        if file.name.endswith(".tar.gz"):
            found: dict[str, bytes] = {}
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
                for entry in archive:
                    name = Path(entry.name).name
                    if name in wanted and entry.isfile() and (stream := archive.extractfile(entry)):
                        found[name] = stream.read()
        else:
            found = {file.members[0].name: gzip.decompress(content)}
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InvbenchError(
            f"cannot unpack {path}: {_reason(error)}; it is cut off or damaged: move it away, and get it again"
        ) from error
    if lacking := sorted(wanted - found.keys()):
        raise InvbenchError(
            f"{path} must hold {', '.join(sorted(wanted))}: got none of {', '.join(lacking)}; get it again"
        )
    return found


# --- What is not ---


def _download(missing: list[File], folder: Path, tell: Callable[[str], None]) -> None:
    """Each from the first address that has it; a file has its name only once it is whole and verified."""
    with _scratch(folder) as scratch, _impatient():
        for number, file in enumerate(missing):
            path = scratch / file.name
            failures = []
            for url in file.urls:
                tell(f"downloading {file.name}: {url}")
                if not (failure := _fetch(file, url, path)):
                    path.replace(folder / file.name)
                    break
                failures.append(f"{url} ({failure})")
            else:
                wanted = ", ".join(lacking.name for lacking in missing[number:])
                raise InvbenchError(
                    f"{folder} lacks {wanted}, and {file.name} cannot be downloaded: tried {', '.join(failures)}; "
                    f"get them elsewhere, put them into a folder and pass it as --data DIR; {NO_FILES_NEEDED}"
                )


def _fetch(file: File, url: str, path: Path) -> str | None:
    """Download to ``path``; why that failed, or None."""
    import torch.hub

    try:
        # Its own check is of SHA-256; the published checksums are MD5.
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except (OSError, http.client.HTTPException) as error:
        return _reason(error)
    found = _md5(path.read_bytes())
    return None if found == file.md5 else f"what came has MD5 {found}, expected {file.md5}"


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for what is not finished, beside what will be, and gone at the end whatever happens."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".download-")
    except OSError as error:
        raise InvbenchError(
            f"cannot write to {folder}: {_reason(error)}; pass --data a folder that you can write to, or that has the "
            f"files; {NO_FILES_NEEDED}"
        ) from error
    with scratch:
        yield Path(scratch.name)


@contextmanager
def _impatient() -> Iterator[None]:
    """No connection is waited for without end: torch's download sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _reason(error: BaseException) -> str:
    """In one line, without the path or address, which the message names."""
    inner = getattr(error, "reason", None)  # what urllib wraps
    if isinstance(inner, BaseException):
        return _reason(inner)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
