"""The images to learn from: MNIST, Fashion-MNIST and CIFAR-10 from their published files, and digits that need none.

``DATA_SETS`` is the one place that knows them. Neither it nor this module needs torch; ``load`` imports what it needs.

Checksums are MD5, as published: MNIST's by torchvision, Fashion-MNIST's and CIFAR-10's by their authors; those of what
is packed in the files follow from the files, and are those that others have published, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from invbench.spec import InvbenchError, require_choice
from invbench.training.files import File, Files

if TYPE_CHECKING:
    import torch

    from invbench.training.formats import Half

MNIST_URLS = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
FASHION_MNIST_URLS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
)
CIFAR_URLS = ("https://www.cs.toronto.edu/~kriz", "https://cave.cs.toronto.edu/kriz")


@dataclass(frozen=True, slots=True)
class DataSet:
    """One data set: C ``channels``, H, W, number of ``classes``, and where it comes from.

    title: for people. source: who to cite, and the licence. files: None where an installed package has the images.
    """

    name: str
    title: str
    channels: int
    H: int
    W: int
    classes: int
    source: str
    files: Files | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, (C, H, W)."""
        return (self.channels, self.H, self.W)


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """A data set in memory, on the CPU.

    title: for people. train_x, validation_x: images [n, C, H, W], float32 in [0, 1].
    train_y, validation_y: classes [n], int64. Validation is the official test half where there is one.
    """

    title: str
    train_x: torch.Tensor
    train_y: torch.Tensor
    validation_x: torch.Tensor
    validation_y: torch.Tensor


def _idx_files(urls: tuple[str, ...], checksums: dict[str, tuple[str, str]], places: tuple[str, ...]) -> Files:
    """IDX files, each in a .gz of its own; checksums: of the .gz and of what is in it."""
    form = tuple(
        File(f"{name}.gz", packed, tuple(f"{url}/{name}.gz" for url in urls), (File(name, unpacked),))
        for name, (packed, unpacked) in checksums.items()
    )
    return Files((form,), places)


def _cifar_archive(name: str, md5: str, members: dict[str, str]) -> tuple[File, ...]:
    return (File(name, md5, tuple(f"{url}/{name}" for url in CIFAR_URLS), tuple(File(*m) for m in members.items())),)


_DATA_SETS = (
    DataSet(
        "digits", "scikit-learn's handwritten digits, upscaled to 28x28: not MNIST", 1, 28, 28, 10,
        "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits (test half), UCI Machine Learning "
        "Repository, 1998; CC BY 4.0",
    ),
    DataSet(
        "mnist", "MNIST", 1, 28, 28, 10,
        "Y. LeCun, C. Cortes, C. J. C. Burges: The MNIST database of handwritten digits, 1998; CC BY-SA 3.0",
        _idx_files(
            MNIST_URLS,
            {
                "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
                "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
                "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
                "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
            },
            ("MNIST/raw", "mnist", "."),
        ),
    ),
    DataSet(
        "fashion-mnist", "Fashion-MNIST", 1, 28, 28, 10,
        "H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, arXiv:1708.07747, 2017; MIT licence",
        _idx_files(
            FASHION_MNIST_URLS,
            {
                "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
                "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
                "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
                "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
            },
            ("FashionMNIST/raw", "fashion-mnist", "."),
        ),
    ),
    DataSet(
        "cifar10", "CIFAR-10", 3, 32, 32, 10,
        "A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009; no licence, to be cited",
        Files(
            (
                # Binary first: it needs no pickles.
                _cifar_archive(
                    "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530",
                    {
                        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
                        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
                        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
                        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
                        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
                        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
                    },
                ),
                _cifar_archive(
                    "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a",
                    {
                        "data_batch_1": "c99cafc152244af753f735de768cd75f",
                        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                        "data_batch_4": "634d18415352ddfa80567beed471001a",
                        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                        "test_batch": "40351d587109b95175f43aff81a1287e",
                    },
                ),
            ),
            (".", "cifar-10-batches-bin", "cifar-10-batches-py"),
        ),
    ),
)  # fmt: skip

# In the order people read them; the first is what is used unless another is asked for.
DATA_SETS = {data_set.name: data_set for data_set in _DATA_SETS}


def load(name: str, folder: Path | None, tell: Callable[[str], None]) -> Images:
    """The images of one data set.

    folder: the user's, which has the files or into which they are downloaded; None for the one in the cache directory.
    tell: called with a line about what is being waited for.
    Raises InvbenchError: an unknown name, a folder that is missing or that ``digits`` has no use for, scikit-learn not
    installed, files that are not the published ones, no network.
    """
    require_choice("--data-set", name, tuple(DATA_SETS))
    data_set = DATA_SETS[name]
    if data_set.files is None:
        if folder is not None:
            others = ", ".join(other for other in DATA_SETS if DATA_SETS[other].files)
            raise InvbenchError(
                f"--data is where files are, and {name} has none: got {folder}; leave it out, or pass --data-set "
                f"with one of {others}"
            )
        return _digits(data_set)

    contents = data_set.files.read(folder, tell)
    tell(f"reading {data_set.title}")
    from invbench.training import formats

    read = formats.idx_halves if data_set.channels == 1 else formats.cifar_halves
    train, validation = read(contents, data_set.shape)
    return Images(data_set.title, *_tensors("training", train, data_set), *_tensors("test", validation, data_set))


def _tensors(which: str, half: Half, data_set: DataSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, C, H, W] in [0, 1] and labels [n]."""
    import numpy as np
    import torch

    images, labels = half
    if len(images) != len(labels) or not len(images):
        raise InvbenchError(
            f"{data_set.title}'s {which} half must have a label for each image: got {len(images)} images and "
            f"{len(labels)} labels; get its files again"
        )
    if labels.min() < 0 or labels.max() >= data_set.classes:
        raise InvbenchError(
            f"{data_set.title}'s labels must be 0 to {data_set.classes - 1}: got {labels.min()} to {labels.max()}; get "
            f"its files again"
        )
    pixels = images.astype(np.float32)
    pixels /= 255  # in place: CIFAR-10's are 614 MB
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))


def _digits(data_set: DataSet) -> Images:
    """scikit-learn's 1,797 digits of 8x8 pixels from 0 to 16, scaled and upscaled bilinearly.

    There is no official split. Of the images ordered by class, and within a class as they come, every fifth is for
    validation: 1,437 and 360, each class by its share, the same wherever this runs. Of each writer's digits some are in
    either half, so that validation is easier here than with MNIST, whose writers differ.
    """
    import torch
    from torch.nn import functional as F

    try:
        from sklearn.datasets import load_digits
    except Exception as error:  # a broken library can raise anything
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == "sklearn"
        found = "is not installed" if is_absent else f"cannot be imported ({' '.join(str(error).split())})"
        others = ", ".join(other for other in DATA_SETS if DATA_SETS[other].files)
        raise InvbenchError(
            f"--data-set {data_set.name} needs scikit-learn, which {found}: pip install 'invbench[train]', or pass "
            f"--data-set with one of {others}"
        ) from error

    digits = load_digits()
    x = torch.from_numpy(digits.images).to(torch.float32)[:, None] / 16
    x = F.interpolate(x, size=(data_set.H, data_set.W), mode="bilinear", align_corners=False)
    y = torch.from_numpy(digits.target).to(torch.int64)
    order = torch.argsort(y, stable=True)
    is_validation = torch.zeros(len(y), dtype=torch.bool)
    is_validation[order[::5]] = True
    return Images(data_set.title, x[~is_validation], y[~is_validation], x[is_validation], y[is_validation])
