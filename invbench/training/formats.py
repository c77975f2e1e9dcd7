"""What is in the files of MNIST's kind (IDX) and of CIFAR-10 (binary and Python versions), as NumPy arrays.

Pure functions of bytes, whose checksums have been verified; they still hold the contents against their own headers and
lengths, and refuse with InvbenchError what does not fit. Images are uint8 [n, C, H, W], labels uint8 or int64 [n].
Sources: yann.lecun.com/exdb/mnist (IDX) and www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from invbench.spec import InvbenchError

Array = npt.NDArray[Any]

# The third byte of an IDX file: unsigned bytes follow.
UNSIGNED_BYTE = 0x08
AGAIN = "it is cut off, damaged or another file: get it again"


class Half(NamedTuple):
    """Images [n, C, H, W] uint8 and their labels [n]."""

    images: Array
    labels: Array


def idx_halves(contents: dict[str, bytes], shape: tuple[int, int, int]) -> tuple[Half, Half]:
    """Training and test half of four IDX files by name, with images of shape (1, H, W)."""
    train, test = (
        Half(
            idx(f"{half}-images-idx3-ubyte", contents[f"{half}-images-idx3-ubyte"], shape[1:])[:, None],
            idx(f"{half}-labels-idx1-ubyte", contents[f"{half}-labels-idx1-ubyte"], ()),
        )
        for half in ("train", "t10k")
    )
    return train, test


def cifar_halves(contents: dict[str, bytes], shape: tuple[int, int, int]) -> tuple[Half, Half]:
    """Training and test half of CIFAR's batches by name, of either version, with images of shape (C, H, W)."""
    batches = {
        name: cifar_binary(name, content, shape) if name.endswith(".bin") else cifar_python(name, content, shape)
        for name, content in sorted(contents.items())
    }
    train, test = (
        Half(
            *map(np.concatenate, zip(*(half for name, half in batches.items() if name.startswith(start)), strict=True))
        )
        for start in ("data_batch", "test_batch")
    )
    return train, test


def idx(name: str, content: bytes, shape: tuple[int, ...]) -> Array:
    """An IDX file of unsigned bytes: its items of ``shape``, [n, *shape].

    Two zero bytes, the type, the number of dimensions; each dimension as a big-endian 32-bit number; the data.
    """
    magic = bytes((0, 0, UNSIGNED_BYTE, 1 + len(shape)))
    start = 4 + 4 * (1 + len(shape))
    if content[:4] != magic:
        raise InvbenchError(
            f"{name} must begin with {magic.hex(' ')}: got {content[:4].hex(' ') or 'nothing'}; {AGAIN}"
        )
    if len(content) < start:
        raise InvbenchError(f"{name} must begin with {start} bytes that say its size: got {len(content)}; {AGAIN}")
    count, *found = (int(size) for size in np.frombuffer(content, ">u4", 1 + len(shape), offset=4))
    if tuple(found) != shape:
        raise InvbenchError(f"{name} must hold items of shape {shape}: got {tuple(found)}; {AGAIN}")
    expected = start + count * math.prod(shape)
    if len(content) != expected:
        raise InvbenchError(f"{name} says that it has {expected} bytes: got {len(content)}; {AGAIN}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(count, *shape)


def cifar_binary(name: str, content: bytes, shape: tuple[int, int, int]) -> Half:
    """A batch of the binary version: records of a label and an image, channel by channel, a byte each."""
    record = 1 + math.prod(shape)
    if not content or len(content) % record:
        raise InvbenchError(f"{name} must be records of {record} bytes: got {len(content)} bytes; {AGAIN}")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return Half(records[:, 1:].reshape(-1, *shape), records[:, 0])


def cifar_python(name: str, content: bytes, shape: tuple[int, int, int]) -> Half:
    """A batch of the Python version: a pickled dictionary, with ``data`` [n, C*H*W] uint8 and ``labels``, n numbers."""
    try:
        # Written by Python 2, whose strings NumPy's arrays expect as Latin-1.
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a broken pickle can raise anything
        reason = " ".join(str(error).split())
        raise InvbenchError(
            f"{name} must be a pickle of arrays: got {type(error).__name__} ({reason}); {AGAIN}"
        ) from error
    data, labels = (batch.get("data"), batch.get("labels")) if isinstance(batch, dict) else (None, None)
    size = math.prod(shape)
    has_data = isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == size
    has_labels = isinstance(labels, list) and all(isinstance(label, int) for label in labels)
    if data is None or not (has_data and has_labels):
        raise InvbenchError(
            f"{name} must hold a dictionary with data, uint8 [n, {size}], and labels, a list of whole numbers: got "
            f"something else; {AGAIN}"
        )
    return Half(data.reshape(-1, *shape), np.array(labels, np.int64))


# All that a pickled array asks for. NumPy 2 has moved the first; an array knows where it is.
MAKERS_OF_ARRAYS = {"_reconstruct": np.ndarray(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}


class _ArraysOnly(pickle.Unpickler):
    """Makes NumPy arrays and nothing else: a pickle can otherwise call any function there is."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] != "numpy" or name not in MAKERS_OF_ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return MAKERS_OF_ARRAYS[name]
