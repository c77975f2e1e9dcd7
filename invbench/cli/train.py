"""``invbench train``: small networks trained both ways."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from invbench import __version__
from invbench.cli import options
from invbench.cli.interrupts import held_back
from invbench.cli.options import option
from invbench.harness import keep_quiet
from invbench.ops import BACKENDS
from invbench.report import FORMATS
from invbench.report.bars import TrainingTeller, training_progress
from invbench.results import ResultSet
from invbench.spec import LAYOUTS, InvbenchError, TrainingCase
from invbench.training import BATCHES, DTYPES, EPOCHS, PAIRS, TrainSettings, baseline_of
from invbench.training.checkpoints import require_folder
from invbench.training.data_sets import DATA_SETS, load
from invbench.training.files import require_data
from invbench.verdict import exit_code


def _of_each(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def train(
    data_set: Annotated[str, option("--data-set", "What to learn from; digits need no files.", *DATA_SETS)] = "digits",
    data: Annotated[
        Path | None,
        option("--data", "A folder with the files, or for them. [default: in the cache directory]", metavar="DIR"),
    ] = None,
    pair: Annotated[
        list[str] | None,
        option(
            "--pair",
            "What the two sides have in common: nothing, as in the report; parameters; multiply-adds. Repeatable. "
            "[default: all]",
            *PAIRS,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        option("--epochs", f"How often all images are seen. [default: {_of_each(EPOCHS)}]"),
    ] = None,
    seeds: Annotated[int, option("--seeds", "How many times all is trained, each with a seed of its own.")] = 1,
    N: Annotated[int | None, option("--N", f"Images in a batch. [default: {_of_each(BATCHES)}]")] = None,
    backend: Annotated[
        list[str] | None,
        option("--backend", "An involution backend; repeatable. [default: the fastest]", "auto", *BACKENDS),
    ] = None,
    device: Annotated[
        str | None,
        option("--device", "Where to run. [default: cuda if there is one]", "cpu", "cuda", "cuda:1", "mps", "xpu"),
    ] = None,
    dtype: Annotated[str, option("--dtype", "Type of all tensors.", *DTYPES)] = "float32",
    layout: Annotated[str, option("--layout", "Layout of images and weights.", *LAYOUTS)] = "contiguous",
    threads: Annotated[int | None, option("--threads", "CPU threads. [default: the usable cores]")] = None,
    seed: Annotated[
        int, option("--seed", "The first seed, of parameters, the order of images, dropout and turns.")
    ] = 0,
    checkpoint: Annotated[
        Path | None, option("--checkpoint", "A folder that keeps each network after each epoch.", metavar="DIR")
    ] = None,
    resume: Annotated[bool, option("--resume", "Go on from what --checkpoint has, if anything.")] = False,
    no_autotune: options.NoAutotune = False,
    format_name: options.Format = None,
    file: options.Output = None,
    quiet: options.Quiet = False,
) -> int:
    """Train small networks with involution and with convolution: accuracy, parameters, time, memory."""
    # All of this comes before torch is imported, so that a slip of the finger is answered at once.
    options.check_choices({
        "--data-set": (data_set, DATA_SETS), "--layout": (layout, LAYOUTS), "--format": (format_name, FORMATS),
    })  # fmt: skip
    for name in pair or ():
        options.check_choices({"--pair": (name, PAIRS)})
    for name in backend or ():
        options.check_choices({"--backend": (name, ("auto", *BACKENDS))})
    _check_dtype(dtype)
    options.check_measuring(None, None, seed)
    numbers = {"--epochs": epochs, "--seeds": seeds, "--N": N, "--threads": threads}
    for option_name, value in numbers.items():
        if value is not None and not 0 < value < 2**31:
            raise InvbenchError(f"{option_name} must be a whole number of at least 1: got {value}; try 1")
    images = DATA_SETS[data_set]
    case = TrainingCase(
        data_set, N or BATCHES[data_set], images.H, images.W, epochs or EPOCHS[data_set], device or "cpu", dtype,
        layout, threads=threads or 1,
    )  # fmt: skip
    settings = TrainSettings(
        pairs=tuple(dict.fromkeys(pair or PAIRS)),
        backends=tuple(dict.fromkeys(backend or ("auto",))),
        asked_for=tuple(name for name in backend or () if name != "auto"),
        seeds=seeds, seed=seed, autotune=not no_autotune,
    )  # fmt: skip
    if resume and checkpoint is None:
        raise InvbenchError("--resume goes on from a folder: got no --checkpoint; add --checkpoint DIR")
    if checkpoint is not None:
        require_folder(checkpoint, resume)
    if data is not None and images.files is None:
        load(data_set, data, lambda _: None)  # which says what is wrong
    elif data is not None:
        require_data(data)
    file_format = options.file_format(file, format_name)
    keep_quiet()
    try:
        with training_progress(quiet) as tell:
            results = _trained(case, settings, _Given(device, threads, data, checkpoint, resume, file), tell)
    except KeyboardInterrupt as stop:
        raise options.Interrupted(f"interrupted before an epoch was trained{_how_to_go_on(checkpoint)}") from stop
    options.hand_over(results, format_name, file, file_format)
    if results.interrupted:
        raise options.Interrupted(
            f"interrupted: {_epochs_of(results, case, settings)} are trained{_how_to_go_on(checkpoint)}"
        )
    return exit_code(results.results, asked_for=settings.asked_for)


@dataclass(frozen=True, slots=True)
class _Given:
    """Options as they were given, for what is known only once torch is there."""

    device: str | None
    threads: int | None
    data: Path | None
    checkpoint: Path | None
    resume: bool
    file: Path | None


def _trained(case: TrainingCase, settings: TrainSettings, given: _Given, tell: TrainingTeller) -> ResultSet:
    """The document."""
    tell("importing torch")
    with held_back():
        from invbench.training import running
    case, settings = running.complete(case, settings, given.device, given.threads)
    images = load(case.data_set, given.data, tell)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    found = running.train_networks(case, settings, images, tell, given.checkpoint, given.resume)
    stored: dict[str, Any] = {
        **asdict(settings), "optimizer": "Adam", "data_set_title": images.title,
        "images": {"train": len(images.train_y), "validation": len(images.validation_y)},
    }  # fmt: skip
    return ResultSet(
        results=found.results, command=options.command_line(given.file, given.checkpoint, given.data),
        created=created, tool_version=__version__, environment=found.environment, settings=stored,
        peaks=found.peaks or None, baseline=baseline_of(case.data_set), interrupted=found.interrupted,
    )  # fmt: skip


def _check_dtype(dtype: str) -> None:
    if dtype in DTYPES:
        return
    why = ", since half types need a scaling of the loss to learn" if dtype in ("float16", "bfloat16") else ""
    raise InvbenchError(f"--dtype must be {' or '.join(DTYPES)}{why}: got {dtype!r}; try float32")


def _how_to_go_on(checkpoint: Path | None) -> str:
    if checkpoint is None:
        return "; with --checkpoint DIR a training can be gone on with"
    arguments = [*sys.argv[1:], *([] if "--resume" in sys.argv else ["--resume"])]
    return f"; go on with: {shlex.join(['invbench', *arguments])}"


def _epochs_of(results: ResultSet, case: TrainingCase, settings: TrainSettings) -> str:
    done = sum(len(curve) for row in results.results if row.training for curve in row.training.accuracy)
    return f"{done} of {len(results.results) * settings.seeds * case.epochs} epochs"
