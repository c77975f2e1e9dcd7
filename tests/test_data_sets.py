"""The real loaders on small files of the published formats, every way in which files can be wrong, and the digits."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import tarfile
import urllib.error
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from invbench.spec import InvbenchError
from invbench.training import files
from invbench.training.data_sets import DATA_SETS, Images, load
from invbench.training.files import File, Files

IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR_NAMES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
BINARY, PYTHON = "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"
RANDOM = np.random.default_rng(0)

Contents = dict[str, bytes]


def quiet(line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every download fails as where there is no network; what was asked for is told."""
    asked: list[str] = []

    def download(url: str, destination: str, progress: bool = True) -> None:
        asked.append(url)
        raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return asked


# --- Small files, written as the published ones are ---


def pixels(n: int, *shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (n, *shape), dtype=np.uint8)


def labels(n: int) -> np.ndarray:
    return RANDOM.integers(0, 10, n, dtype=np.uint8)


IDX_ARRAYS = dict(zip(IDX_NAMES, (pixels(5, 28, 28), labels(5), pixels(3, 28, 28), labels(3)), strict=True))
CIFAR_ARRAYS = {name: (pixels(2, 3, 32, 32), labels(2)) for name in CIFAR_NAMES}


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def cifar_binary(images: np.ndarray, classes: np.ndarray) -> bytes:
    return np.concatenate([classes[:, None], images.reshape(len(images), -1)], axis=1).tobytes()


def cifar_python(images: np.ndarray, classes: np.ndarray) -> bytes:
    """A dictionary of an array and a list as Python 2 pickles it: bytes for strings, and NumPy's old module."""

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    def string(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    dtype = b"cnumpy\ndtype\n(" + string(b"u1") + number(0) + number(1) + b"tR"
    dtype += b"(" + number(3) + string(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(0) + b"\x85" + string(b"b") + b"tR"
    shape = number(len(images)) + number(images[0].size) + b"\x86"
    array += b"(" + number(1) + shape + dtype + b"\x89" + string(images.tobytes()) + b"tb"
    numbers = b"](" + b"".join(number(int(value)) for value in classes) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + string(b"labels") + numbers + b"u."


def tar_gz(folder: str, members: Contents) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in {"readme.html": b"<html>", **members}.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


IDX: Contents = {name: idx(array) for name, array in IDX_ARRAYS.items()}
CIFAR_BINARY: Contents = {f"{name}.bin": cifar_binary(*arrays) for name, arrays in CIFAR_ARRAYS.items()}
CIFAR_PYTHON: Contents = {name: cifar_python(*arrays) for name, arrays in CIFAR_ARRAYS.items()}
ARCHIVES: Contents = {
    BINARY: tar_gz("cifar-10-batches-bin", CIFAR_BINARY),
    PYTHON: tar_gz("cifar-10-batches-py", CIFAR_PYTHON),
}
PACKED_IDX: Contents = {f"{name}.gz": gzip.compress(content) for name, content in IDX.items()}
PUBLISHED: Contents = {**IDX, **CIFAR_BINARY, **CIFAR_PYTHON, **ARCHIVES, **PACKED_IDX}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def publish(monkeypatch: pytest.MonkeyPatch, name: str, contents: Contents) -> None:
    """The table's checksums of one data set become those of ``contents``."""

    def small(file: File) -> File:
        return replace(file, md5=md5(contents[file.name]), members=tuple(map(small, file.members)))

    data_set = DATA_SETS[name]
    assert data_set.files
    forms = tuple(tuple(map(small, form)) for form in data_set.files.forms)
    monkeypatch.setitem(DATA_SETS, name, replace(data_set, files=replace(data_set.files, forms=forms)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small files are the published ones."""
    for name in ("mnist", "fashion-mnist", "cifar10"):
        publish(monkeypatch, name, PUBLISHED)


def write(folder: Path, contents: Contents) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def refusal(name: str, folder: Path | None) -> str:
    with pytest.raises(InvbenchError) as caught:
        load(name, folder, quiet)
    told = str(caught.value)
    assert "\n" not in told
    return told


def assert_same(x: torch.Tensor, y: torch.Tensor, images: np.ndarray, classes: np.ndarray) -> None:
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    torch.testing.assert_close(x, torch.from_numpy(images).float() / 255, rtol=0, atol=0)
    torch.testing.assert_close(y, torch.from_numpy(classes).long(), rtol=0, atol=0)


def assert_idx(found: Images) -> None:
    train_x, train_y, validation_x, validation_y = IDX_ARRAYS.values()
    assert_same(found.train_x, found.train_y, train_x[:, None], train_y)
    assert_same(found.validation_x, found.validation_y, validation_x[:, None], validation_y)


def assert_cifar(found: Images) -> None:
    *train, test = CIFAR_ARRAYS.values()
    images, classes = (np.concatenate(parts) for parts in zip(*train, strict=True))
    assert_same(found.train_x, found.train_y, images, classes)
    assert_same(found.validation_x, found.validation_y, *test)


# --- The table ---


def test_the_order_and_what_is_told() -> None:
    assert list(DATA_SETS) == ["digits", "mnist", "fashion-mnist", "cifar10"]
    assert "not MNIST" in DATA_SETS["digits"].title
    assert {data_set.shape for data_set in DATA_SETS.values()} == {(1, 28, 28), (3, 32, 32)}
    assert all(data_set.classes == 10 and data_set.source for data_set in DATA_SETS.values())


def test_every_file_has_a_checksum_of_its_own_and_every_archive_two_addresses() -> None:
    archives = [file for d in DATA_SETS.values() if d.files for form in d.files.forms for file in form]
    assert len(archives) == 4 + 4 + 2
    every = [*archives, *(member for file in archives for member in file.members)]
    assert all(re.fullmatch("[0-9a-f]{32}", file.md5) for file in every)
    assert len({file.md5 for file in every}) == len(every) == 10 + 8 + 12
    for file in archives:
        assert len(file.urls) == 2
        assert all(url.startswith("http") and url.endswith(f"/{file.name}") for url in file.urls)


def test_the_table_needs_neither_torch_nor_scikit_learn() -> None:
    program = "import sys, invbench.training.data_sets; print({'torch', 'numpy', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


# --- Files that are there ---


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("contents", [PACKED_IDX, IDX], ids=["gz", "unpacked"])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "."),
        ("mnist", "MNIST/raw"),
        ("mnist", "mnist"),
        ("fashion-mnist", "."),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_idx(name: str, place: str, contents: Contents, tmp_path: Path) -> None:
    write(tmp_path / place, contents)
    found = load(name, tmp_path, quiet)
    assert found.title == DATA_SETS[name].title
    assert_idx(found)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("place", "contents"),
    [
        (".", {BINARY: ARCHIVES[BINARY]}),
        (".", {PYTHON: ARCHIVES[PYTHON]}),
        (".", CIFAR_BINARY),
        (".", CIFAR_PYTHON),
        ("cifar-10-batches-bin", CIFAR_BINARY),
        ("cifar-10-batches-py", CIFAR_PYTHON),
    ],
    ids=["binary.tar.gz", "python.tar.gz", "binary", "python", "binary folder", "python folder"],
)
def test_cifar(place: str, contents: Contents, tmp_path: Path) -> None:
    write(tmp_path / place, contents)
    assert_cifar(load("cifar10", tmp_path, quiet))


@pytest.mark.usefixtures("small")
def test_some_files_may_be_packed_and_others_not(tmp_path: Path) -> None:
    write(tmp_path, {IDX_NAMES[0]: IDX[IDX_NAMES[0]], **{f"{n}.gz": PACKED_IDX[f"{n}.gz"] for n in IDX_NAMES[1:]}})
    assert_idx(load("mnist", tmp_path, quiet))


def test_two_data_sets_with_the_same_names_live_in_one_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    others = {name: idx(255 - array if array.ndim == 3 else array) for name, array in IDX_ARRAYS.items()}
    publish(monkeypatch, "mnist", PUBLISHED)
    publish(monkeypatch, "fashion-mnist", {**PUBLISHED, **others})
    write(tmp_path, others)
    write(tmp_path / "MNIST" / "raw", IDX)
    assert_idx(load("mnist", tmp_path, quiet))
    torch.testing.assert_close(
        load("fashion-mnist", tmp_path, quiet).train_x, 1 - load("mnist", tmp_path, quiet).train_x
    )


@pytest.mark.usefixtures("small")
def test_what_is_waited_for_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    load("mnist", write(tmp_path, IDX), told.append)
    assert told == ["reading MNIST"]


# --- Files that are wrong ---


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("spoil", [flipped, cut, lambda content: b""], ids=["one bit", "cut off", "empty"])
@pytest.mark.parametrize(
    ("name", "contents", "wrong"),
    [
        ("mnist", PACKED_IDX, "t10k-labels-idx1-ubyte.gz"),
        ("fashion-mnist", IDX, "train-images-idx3-ubyte"),
        ("cifar10", CIFAR_BINARY, "data_batch_3.bin"),
        ("cifar10", CIFAR_PYTHON, "test_batch"),
        ("cifar10", {BINARY: ARCHIVES[BINARY]}, BINARY),
        ("cifar10", {PYTHON: ARCHIVES[PYTHON]}, PYTHON),
    ],
)
def test_a_wrong_checksum(
    name: str, contents: Contents, wrong: str, spoil: Callable[[bytes], bytes], tmp_path: Path, no_network: list[str]
) -> None:
    spoilt = spoil(contents[wrong])
    told = refusal(name, write(tmp_path, {**contents, wrong: spoilt}))
    assert f"{tmp_path / wrong} is not the published {wrong}: its {len(spoilt)} bytes have MD5 {md5(spoilt)}" in told
    assert f"expected {md5(contents[wrong])}" in told
    assert "get it again" in told
    assert (tmp_path / wrong).read_bytes() == spoilt  # the user's, and never replaced
    assert no_network == []


CALL = b"cposix\nsystem\n(S'touch %s'\ntR."


def test_a_pickle_is_not_opened_before_its_checksum_is_right(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened: list[str] = []
    monkeypatch.setattr("invbench.training.formats._ArraysOnly", opened.append)
    refusal("cifar10", write(tmp_path, CIFAR_PYTHON))
    assert opened == []


def test_a_pickle_makes_arrays_and_calls_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    evidence = tmp_path / "evidence"
    contents = {**CIFAR_PYTHON, "data_batch_1": CALL % os.fsencode(evidence)}
    publish(monkeypatch, "cifar10", {**PUBLISHED, **contents})
    told = refusal("cifar10", write(tmp_path, contents))
    assert "data_batch_1 must be a pickle of arrays: got UnpicklingError (it asks for posix.system)" in told
    assert not evidence.exists()


IMAGES, LABELS = IDX_NAMES[:2]
HEADER = bytes((0, 0, 8, 3))
WRONG_CONTENTS = {
    "idx cut off": ("mnist", {IMAGES: IDX[IMAGES][:-1]}, "says that it has 3936 bytes: got 3935"),
    "idx cut off in the header": ("mnist", {IMAGES: IDX[IMAGES][:9]}, "16 bytes that say its size: got 9"),
    "idx empty": ("mnist", {IMAGES: b""}, "must begin with 00 00 08 03: got nothing"),
    "idx of another type": ("mnist", {LABELS: b"\0\0\x0d\x01" + IDX[LABELS][4:]}, "00 00 08 01: got 00 00 0d 01"),
    "idx with other dimensions": ("mnist", {LABELS: IDX[IMAGES]}, "00 00 08 01: got 00 00 08 03"),
    "idx with trailing bytes": ("mnist", {LABELS: IDX[LABELS] + b"\0"}, "says that it has 13 bytes: got 14"),
    "idx of another size": ("mnist", {IMAGES: idx(pixels(5, 28, 27))}, "shape (28, 28): got (28, 27)"),
    "idx that overflows": ("mnist", {IMAGES: HEADER + b"\xff" * 4 + IDX[IMAGES][8:]}, "bytes: got 3936"),
    "a label too few": ("mnist", {LABELS: idx(labels(4))}, "training half must have a label for each image: got 5 "),
    "no images": ("mnist", {IMAGES: idx(pixels(0, 28, 28)), LABELS: idx(labels(0))}, "got 0 images and 0 labels"),
    "a label too high": ("mnist", {LABELS: idx(np.full(5, 10, np.uint8))}, "labels must be 0 to 9: got 10 to 10"),
    "a batch cut off": (
        "cifar10", {"test_batch.bin": CIFAR_BINARY["test_batch.bin"][:-1]},
        "test_batch.bin must be records of 3073 bytes: got 6145 bytes",
    ),
    "an empty batch": ("cifar10", {"data_batch_2.bin": b""}, "data_batch_2.bin must be records of 3073 bytes: got 0"),
    "a batch of 16 classes": (
        "cifar10", {"data_batch_2.bin": cifar_binary(pixels(1, 3, 32, 32), np.full(1, 15, np.uint8))}, "to 15; get",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "wrong", "expected"), WRONG_CONTENTS.values(), ids=WRONG_CONTENTS)
def test_contents_that_do_not_fit(
    name: str, wrong: Contents, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # With a right checksum: the formats are held against themselves as well.
    contents = {**(IDX if name == "mnist" else CIFAR_BINARY), **wrong}
    publish(monkeypatch, name, {**PUBLISHED, **contents})
    told = refusal(name, write(tmp_path, contents))
    assert expected in told
    assert "again" in told


def python_batch(data: Any, classes: list[int]) -> bytes:
    return cifar_python(data, np.array(classes))


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (cut(CIFAR_PYTHON["data_batch_1"]), "a pickle of arrays: got UnpicklingError (pickle data was truncated)"),
        (b"", "must be a pickle of arrays: got EOFError"),
        (b"nonsense", "must be a pickle of arrays"),
        (b"]." , "must hold a dictionary"),
        (b"}.", "must hold a dictionary with data, uint8 [n, 3072]"),
        (python_batch(pixels(1, 3, 32, 31), [1]), "must hold a dictionary with data, uint8 [n, 3072]"),
        (python_batch(pixels(1, 3, 32, 32), [1, 2]), "got 9 images and 10 labels"),
    ],
    ids=["cut off", "empty", "no pickle", "a list", "empty dictionary", "another size", "a label too many"],
)  # fmt: skip
def test_pickles_that_do_not_fit(batch: bytes, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    contents = {**CIFAR_PYTHON, "data_batch_1": batch}
    publish(monkeypatch, "cifar10", {**PUBLISHED, **contents})
    assert expected in refusal("cifar10", write(tmp_path, contents))


@pytest.mark.parametrize(
    ("name", "archive", "content", "expected"),
    [
        ("mnist", f"{IMAGES}.gz", cut(PACKED_IDX[f"{IMAGES}.gz"]), "end-of-stream"),
        ("mnist", f"{IMAGES}.gz", IDX[IMAGES], "Not a gzipped file"),
        ("mnist", f"{IMAGES}.gz", gzip.compress(b"other"), f"is not the published {IMAGES}: its 5 bytes"),
        ("cifar10", BINARY, cut(ARCHIVES[BINARY]), "cannot unpack"),
        ("cifar10", BINARY, b"nonsense", "not a gzip file"),
        ("cifar10", BINARY, tar_gz("x", {"test_batch.bin": b"?"}), "none of data_batch_1.bin, data_batch_2.bin"),
        ("cifar10", BINARY, tar_gz("x", {**CIFAR_BINARY, "test_batch.bin": b"?"}), "not the published test_batch.bin"),
    ],
    ids=["gz cut off", "no gz", "gz of another", "tar cut off", "no tar", "tar lacks batches", "tar of another"],
)  # fmt: skip
def test_archives_that_are_broken(
    name: str, archive: str, content: bytes, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish(monkeypatch, name, {**PUBLISHED, archive: content})
    packed = PACKED_IDX if name == "mnist" else {}
    told = refusal(name, write(tmp_path, {**packed, archive: content}))
    assert expected in told
    assert str(tmp_path / archive) in told


@pytest.mark.usefixtures("small")
def test_nothing_is_written_where_an_archive_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tar_gz("../../outside", CIFAR_BINARY)
    publish(monkeypatch, "cifar10", {**PUBLISHED, BINARY: archive})
    folder = write(tmp_path / "a" / "b", {BINARY: archive})
    assert_cifar(load("cifar10", folder, quiet))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder / BINARY]


# --- Folders ---


def test_a_folder_that_is_missing(tmp_path: Path, no_network: list[str]) -> None:
    folder = tmp_path / "missing"
    assert f"--data must be a folder that is there: got {folder}; make it (mkdir -p" in refusal("mnist", folder)
    assert not folder.exists()
    assert no_network == []


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / BINARY
    file.write_bytes(b"")
    assert f"--data must be a folder: got the file {file}" in refusal("cifar10", file)


def test_a_folder_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    write(tmp_path, IDX)
    monkeypatch.setattr(Path, "read_bytes", denied)
    assert f"cannot read {tmp_path / IMAGES}: Permission denied; make it readable" in refusal("mnist", tmp_path)


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INVBENCH_CACHE_DIR", str(tmp_path / "file"))
    told = refusal("mnist", None)
    assert f"cannot write to {tmp_path / 'file' / 'data' / 'MNIST' / 'raw'}: Not a directory; pass --data" in told
    assert "--data-set digits needs no files" in told


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(files, "cache_directory", nobody)
    assert "which cannot be found (Could not determine home directory.); pass --data DIR" in refusal("mnist", None)


def test_an_unknown_name() -> None:
    assert "--data-set must be one of digits, mnist, fashion-mnist, cifar10: got 'imagenet'" in refusal(
        "imagenet", None
    )


# --- Downloads ---


class Server:
    """Answers torch's helper with ``contents`` by address; notes what it was asked for."""

    def __init__(self, contents: dict[str, bytes | Exception]) -> None:
        self.contents = contents
        self.asked: list[str] = []
        self.timeouts: list[float | None] = []

    def __call__(self, url: str, destination: str, progress: bool = True) -> None:
        assert not progress
        self.asked.append(url)
        self.timeouts.append(socket.getdefaulttimeout())
        found = self.contents[url]
        if isinstance(found, Exception):
            Path(destination).write_bytes(b"half of it")
            raise found
        Path(destination).write_bytes(found)


def serve(monkeypatch: pytest.MonkeyPatch, name: str, **wrong: bytes | Exception) -> Server:
    """All addresses of a data set; the first of each file answers with ``wrong["first"]`` if given."""
    data_set = DATA_SETS[name]
    assert data_set.files
    contents: dict[str, bytes | Exception] = {}
    for file in data_set.files.forms[0]:
        first, *others = file.urls
        contents |= {first: wrong.get("first", PUBLISHED[file.name])} | dict.fromkeys(others, PUBLISHED[file.name])
    server = Server(contents)
    monkeypatch.setattr(torch.hub, "download_url_to_file", server)
    return server


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("INVBENCH_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


def left(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("small")
def test_downloaded_once_into_the_cache(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    server = serve(monkeypatch, "mnist")
    told: list[str] = []
    assert_idx(load("mnist", None, told.append))
    assert server.asked == [f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz" for name in IDX_NAMES]
    assert told[0] == f"downloading {IMAGES}.gz: {server.asked[0]}"
    assert left(cache) == {f"MNIST/raw/{name}.gz" for name in IDX_NAMES}
    assert server.timeouts == [files.SILENCE] * 4
    assert socket.getdefaulttimeout() is None
    assert_idx(load("mnist", None, quiet))
    assert len(server.asked) == 4


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "expected"),
    [("fashion-mnist", {f"FashionMNIST/raw/{name}.gz" for name in IDX_NAMES}), ("cifar10", {BINARY})],
)
def test_downloaded_into_the_users_folder(
    name: str, expected: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve(monkeypatch, name)
    load(name, tmp_path, quiet)
    assert left(tmp_path) == expected


@pytest.mark.usefixtures("small")
def test_only_what_is_missing_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = serve(monkeypatch, "mnist")
    write(tmp_path, {name: IDX[name] for name in IDX_NAMES[1:]})
    assert_idx(load("mnist", tmp_path, quiet))
    assert len(server.asked) == 1


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "wrong",
    [
        urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")),
        TimeoutError("timed out"),
        b"<html>Please log in",
        cut(ARCHIVES[BINARY]),
    ],
    ids=["refused", "silent", "a page", "cut off"],
)
def test_the_next_address_is_tried(wrong: bytes | Exception, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    server = serve(monkeypatch, "cifar10", first=wrong)
    assert_cifar(load("cifar10", None, quiet))
    assert len(server.asked) == 2
    assert left(cache) == {BINARY}


def test_no_network(tmp_path: Path, no_network: list[str]) -> None:
    told = refusal("cifar10", tmp_path)
    assert told.startswith(
        f"{tmp_path} lacks {BINARY}, and {BINARY} cannot be downloaded: tried https://www.cs.toronto"
    )
    assert told.count("(Name or service not known)") == 2
    assert all(url in told for url in no_network)
    assert "pass it as --data DIR; --data-set digits needs no files" in told
    assert left(tmp_path) == set()


@pytest.mark.usefixtures("small")
def test_all_that_is_lacking_is_told(tmp_path: Path) -> None:
    write(tmp_path, {IMAGES: IDX[IMAGES]})
    told = refusal("mnist", tmp_path)
    assert f"lacks {LABELS}.gz, {IDX_NAMES[2]}.gz, {IDX_NAMES[3]}.gz, and {LABELS}.gz cannot be downloaded" in told


@pytest.mark.usefixtures("small")
def test_wrong_contents_everywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    server = serve(monkeypatch, "cifar10")
    server.contents = dict.fromkeys(server.contents, b"other")
    told = refusal("cifar10", tmp_path)
    assert told.count(f"(what came has MD5 {md5(b'other')}, expected {md5(ARCHIVES[BINARY])})") == 2
    assert left(tmp_path) == set()


@pytest.mark.usefixtures("small")
def test_an_interrupted_download_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(url: str, destination: str, progress: bool = True) -> None:
        Path(destination).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.hub, "download_url_to_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load("mnist", tmp_path, quiet)
    assert left(tmp_path) == set()
    assert socket.getdefaulttimeout() is None


def test_torchs_own_helper_downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The real one, from an address without a network.
    monkeypatch.undo()
    source = tmp_path / "source"
    write(source, {"a.gz": gzip.compress(b"a")})
    file = File("a.gz", md5((source / "a.gz").read_bytes()), ((source / "a.gz").as_uri(),), (File("a", md5(b"a")),))
    assert Files(((file,),), (".",)).read(write(tmp_path / "folder", {}), quiet) == {"a": b"a"}


# --- Digits ---


def test_digits() -> None:
    pytest.importorskip("sklearn")
    found = load("digits", None, quiet)
    assert "not MNIST" in found.title
    assert (tuple(found.train_x.shape), tuple(found.validation_x.shape)) == ((1437, 1, 28, 28), (360, 1, 28, 28))
    for x, y in ((found.train_x, found.train_y), (found.validation_x, found.validation_y)):
        assert (x.dtype, y.dtype, len(x)) == (torch.float32, torch.int64, len(y))
        assert (x.min(), x.max()) == (0, 1)
        # Stratified: every class has its share, to a digit.
        share = torch.tensor([178, 182, 177, 183, 181, 182, 181, 179, 174, 180]) * len(x) / 1797
        assert (y.bincount() - share).abs().max() < 1


def test_digits_are_upscaled() -> None:
    originals = pytest.importorskip("sklearn.datasets").load_digits()
    found = load("digits", None, quiet)
    # The second digit, a one, is the first for training; averages over 28/8 pixels find each of its pixels again.
    assert found.train_y[0] == originals.target[1] == 1
    again = torch.nn.functional.adaptive_avg_pool2d(found.train_x[0], 8)[0].numpy()
    assert np.corrcoef(again.ravel(), originals.images[1].ravel())[0, 1] > 0.95


def test_digits_are_the_same_every_time() -> None:
    pytest.importorskip("sklearn")
    first, second = load("digits", None, quiet), load("digits", None, quiet)
    for name in ("train_x", "train_y", "validation_x", "validation_y"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    # And everywhere: which digits are for validation is no matter of versions or chance.
    assert first.validation_y[:20].tolist() == [0, 2, 4, 7, 1, 6, 8, 9, 5, 3, 0, 2, 7, 6, 4, 0, 1, 3, 9, 8]
    assert md5(first.validation_y.to(torch.uint8).numpy().tobytes()) == "aa3ce8b922fe2b172b0a751a56c3ac2c"


def test_digits_take_no_folder(tmp_path: Path) -> None:
    told = refusal("digits", tmp_path)
    assert f"--data is where files are, and digits has none: got {tmp_path}; leave it out" in told


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            ModuleNotFoundError("No module named 'sklearn'", name="sklearn"),
            "which is not installed: pip install 'invbench[train]', or pass --data-set with one of mnist, ",
        ),
        (ImportError("libgomp.so:\n no such file"), "which cannot be imported (libgomp.so: no such file): pip install"),
        (ValueError("numpy.dtype size changed"), "which cannot be imported (numpy.dtype size changed): pip install"),
    ],
    ids=["missing", "broken", "for another NumPy"],
)
def test_digits_without_scikit_learn(error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            if name == "sklearn":
                raise error

    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    told = refusal("digits", None)
    assert "--data-set digits needs scikit-learn, " in told
    assert expected in told
