"""Networks that learn side by side: what comes of them, resuming bit for bit, and what may go wrong."""

from __future__ import annotations

import contextlib
import itertools
import math
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from invbench.harness import machine, memory, server
from invbench.harness.blocks import Slowdown
from invbench.harness.clock import eager_clock
from invbench.harness.point import Point
from invbench.models import SUBJECTS
from invbench.ops import unfold
from invbench.results import Result, ResultSet, Status
from invbench.results.quantities import Memory
from invbench.spec import BackendUnavailableError, InvbenchError, TrainingCase
from invbench.training import PAIRS, TrainingSubject, TrainSettings, Unwatched, checkpoints, learning, proving, running
from invbench.training.data_sets import DATA_SETS, Images
from invbench.training.learning import Data, Learner, TrainingJob, build, seed_of

# 2 whole batches and a part of one.
N, TRAINED, VALIDATED = 8, 20, 12
CASE = TrainingCase("digits", N, 28, 28, epochs=3)
REPORT = TrainSettings(pairs=("report",), backends=("unfold",))
CONV, INV = TrainingSubject("mnist-conv", "torch", "report"), TrainingSubject("mnist-inv", "unfold", "report")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither other processes nor large copies; torch's number of threads is put back."""
    before = torch.get_num_threads()
    monkeypatch.setattr(
        machine, "measure_peaks", lambda dtype, device: {"matmul_flop_per_s": 1e11, "copy_bytes_per_s": 1e10}
    )
    monkeypatch.setattr(server, "start", lambda backends=(): None)
    monkeypatch.setattr(memory, "cpu_peaks", lambda jobs, workers: {job.subject: Memory(7, "fake") for job in jobs})
    yield
    torch.set_num_threads(before)


def images_of(channels: int = 1, side: int = 28, train: int = TRAINED, seed: int = 0) -> Images:
    """Classes that can be told apart: each has its own row of light."""
    generator = torch.Generator().manual_seed(seed)

    def half(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.randint(10, (count,), generator=generator)
        x = 0.1 * torch.rand(count, channels, side, side, generator=generator)
        x[torch.arange(count), :, 2 * y + 4] = 1.0
        return x, y

    return Images("rows of light", *half(train), *half(VALIDATED))


class Log(Unwatched):
    """Remembers what it is told, and does what it is asked to after some epochs or steps."""

    def __init__(self, after: dict[int, Callable[[], None]] | None = None, steps: bool = False) -> None:
        self.epochs: list[str] = []
        self.lines: list[str] = []
        self.failures: dict[str, str] = {}
        self.begun: tuple[Sequence[str], int, Sequence[int]] | None = None
        self._after, self._calls, self._by_step = after or {}, itertools.count(1), steps

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def keep(self, line: str) -> None:
        self.lines.append(line)

    def begin(self, labels: Sequence[str], epochs: int, done: Sequence[int]) -> None:
        self.begun = (labels, epochs, done)

    def step(self, label: str, share: float) -> None:
        assert 0 < share <= 1
        if self._by_step:
            self._after.get(next(self._calls), lambda: None)()

    def epoch(self, label: str, loss: float, accuracy: float) -> None:
        self.epochs.append(label)
        if not self._by_step:
            self._after.get(next(self._calls), lambda: None)()

    def failed(self, label: str, reason: str) -> None:
        self.failures[label] = reason


def interrupt() -> None:
    raise KeyboardInterrupt


def trained(
    case: TrainingCase = CASE, settings: TrainSettings = REPORT, images: Images | None = None, **more: Any
) -> Point:
    return running.train_networks(case, settings, images or images_of(), **more)


def learned(row: Result) -> Any:
    """All of a row that training decides."""
    assert row.training is not None
    return row.subject, row.training.accuracy, row.training.loss


# --- Subjects ---


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_each_pair_adds_one_network_to_the_convolutional_one(data_set: str) -> None:
    family = "mnist" if data_set == "digits" else data_set
    subjects = TrainSettings(backends=("naive", "unfold")).subjects(data_set)
    assert [(each.model, each.backend, each.pair) for each in subjects] == [
        (f"{family}-conv", "torch", "report,params,macs"),
        *(
            (f"{family}-{kind}", backend, pair)
            for pair, kind in (("report", "inv"), ("params", "inv-params"), ("macs", "inv-macs"))
            for backend in ("naive", "unfold")
        ),
    ]
    for each in subjects:
        size = SUBJECTS[each.model].images
        assert (size.channels, size.side, size.side) == DATA_SETS[data_set].shape
    assert (set(PAIRS), subjects[1].label) == ({"report", "params", "macs"}, f"{family}-inv (naive)")


# --- What comes of it ---


def test_rows() -> None:
    log = Log()
    point = trained(settings=replace(REPORT, pairs=("report", "params")), watcher=log)
    conv, inv, matched = point.results
    assert [(row.subject, row.backend, row.pair) for row in point.results] == [
        ("mnist-conv", "torch", "report,params"), ("mnist-inv", "unfold", "report"),
        ("mnist-inv-params", "unfold", "params"),
    ]  # fmt: skip
    for row in point.results:
        assert (row.status, row.reason, row.baseline) == (Status.OK, None, "mnist-conv")
        # What others say is of MNIST, which every format says, too.
        assert (row.published is None) == (row.pair == "params")
        assert row.published is None or row.published["data_set"] == "MNIST"
        assert row.training is not None
        assert row.latency is not None
        assert [len(curve) for curve in (*row.training.accuracy, *row.training.loss)] == [3, 3]
        assert len(row.training.final) == len(row.training.seconds) == 1
        assert [len(block) for block in row.latency.blocks] == [TRAINED // N] * 3  # whole batches only
        assert row.training.seconds[0] > sum(map(sum, row.latency.blocks))  # with the last batch of each epoch
        assert (row.latency.stop, row.latency.clock, row.latency.cache) == ("epochs", "eager", "hot")
        assert row.flop == 6 * (row.macs or 0) > 0
        assert row.params == row.params_trainable
        assert row.memory is not None
        assert (row.memory.peak, row.memory.method) == (7, "fake")
        assert (row.memory.kept or 0) > 0
        assert row.first_call is not None
        assert row.error is not None
        assert row.error["relative"] is not None
        assert row.ratio is not None
        assert row.ratio.latency is not None
        assert row.ratio.latency.count == 3
    assert (conv.params, inv.params) == (34_826, 544)
    assert conv.ratio is not None
    assert conv.ratio.params == conv.ratio.memory == 1.0
    assert "only 3 epoch(s)" in " ".join(matched.warnings)
    assert log.begun == (["mnist-conv", "mnist-inv (unfold)", "mnist-inv-params (unfold)"], 3, [0, 0, 0])
    assert sorted(log.epochs[:3]) == sorted(log.epochs[3:6]) == sorted(log.begun[0])  # in turns
    document = ResultSet(point.results, "", "", "", dict(point.environment), {}, point.peaks)
    assert ResultSet.from_json(document.to_json()).results == point.results


def test_networks_learn() -> None:
    row = trained(replace(CASE, epochs=12), images=images_of(train=160)).results[0]
    assert row.training is not None
    assert row.training.final[0] > 80
    assert row.training.loss[0][-1] < row.training.loss[0][0] / 2


@pytest.mark.parametrize(("data_set", "channels", "side"), [("mnist", 1, 28), ("cifar10", 3, 32)])
def test_published_figures_stand_beside_the_same_data_set(data_set: str, channels: int, side: int) -> None:
    case = TrainingCase(data_set, N, side, side, 1)
    conv, inv, matched = trained(case, replace(REPORT, pairs=("report", "macs")), images_of(channels, side)).results
    assert conv.published is not None
    assert inv.published is not None
    assert conv.published["top1"] > inv.published["top1"]
    assert matched.published is None
    assert {row.status for row in (conv, inv, matched)} == {Status.OK}


def test_each_seed_is_the_run_of_that_seed() -> None:
    together = trained(settings=replace(REPORT, seeds=2, seed=5)).results
    for index, seed in enumerate((5, 6)):
        for row, alone in zip(together, trained(settings=replace(REPORT, seed=seed)).results, strict=True):
            assert row.training is not None
            assert alone.training is not None
            assert row.training.accuracy[index] == alone.training.accuracy[0]
            assert row.training.loss[index] == alone.training.loss[0]
    assert together[0].latency is not None
    assert len(together[0].latency.blocks) == 6
    assert together[0].training is not None
    assert len(set(together[0].training.loss)) == 2


def test_what_is_trained_beside_a_network_changes_nothing() -> None:
    beside = {row.name: learned(row) for row in trained(settings=replace(REPORT, pairs=("params", "report"))).results}
    for row in trained().results:
        assert learned(row) == beside[row.name]


def test_training_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    trained(replace(CASE, epochs=1))
    assert torch.equal(torch.rand(2), expected)


def test_backends_begin_with_the_same_weights_and_see_the_same_images() -> None:
    settings = replace(REPORT, backends=("unfold", "naive"))
    _, one, other = trained(settings=settings).results
    assert (one.backend, other.backend) == ("unfold", "naive")
    assert one.training is not None
    assert other.training is not None
    assert one.training.loss[0] == pytest.approx(other.training.loss[0], rel=1e-3)


def test_turns_are_drawn_anew_from_the_seed() -> None:
    logs = [Log(), Log()]
    for log in logs:
        trained(replace(CASE, epochs=8), watcher=log)
    firsts = logs[0].epochs[::2]
    assert logs[0].epochs == logs[1].epochs
    assert len(set(firsts)) == 2


def test_float64_and_channels_last() -> None:
    for row in trained(replace(CASE, dtype="float64", layout="channels_last", epochs=1)).results:
        assert row.status is Status.OK
        assert row.error is not None
        assert row.error["tolerance"] in (1e-8, 1e-6)


def test_an_epoch_sees_every_image_once_in_another_order() -> None:
    learner, seen = Learner(CONV, CASE, 0, 1e-3), []
    data = Data.of(images_of(), CASE)

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(x[:, 0, 0, 0])
        return torch.zeros(())

    learner.step = step  # type: ignore[method-assign]
    for number in range(2):
        learner.train(data, eager_clock(torch.device("cpu")))
        learner.history = [learning.Epoch(0.0, 0.0, (1.0,), 1.0)] * (number + 1)
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert torch.equal(first.sort().values, data.train_x[:, 0, 0, 0].sort().values)
    assert torch.equal(second.sort().values, first.sort().values)
    assert not torch.equal(first, second)


def test_accuracy_is_the_share_of_right_classes_in_all_batches() -> None:
    learner, data = Learner(CONV, CASE, 0, 1e-3), Data.of(images_of(), CASE)
    with torch.inference_mode():
        right = (learner.network.eval()(data.validation_x).argmax(1) == data.validation_y).double().mean()
    assert learner.validate(data) == pytest.approx(100 * float(right))


def test_seeds_for_different_purposes_differ() -> None:
    found = {seed_of(what, seed, name) for what in "ab" for seed in range(3) for name in ("x", "y")}
    assert len(found) == 12
    assert all(0 <= each < 2**63 for each in found)


# --- Truth and failures ---


@pytest.mark.parametrize("model", [name for name, model in SUBJECTS.items() if model.suite == "small"])
def test_every_network_is_right(model: str) -> None:
    side = SUBJECTS[model].images.side or 0
    case = TrainingCase("digits", 2, side, side, 1)
    found = proving.check(TrainingSubject(model, "unfold", ""), case, 0)
    assert found.is_close
    assert found.relative < 0.1 * found.tolerance


def test_a_wrong_gradient_of_one_parameter_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = proving._step

    def wrong(network: Any, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        found = right(network, x, y)
        return found if x.dtype == torch.float64 else [*found[:-1], found[-1] * 1.5]

    monkeypatch.setattr(proving, "_step", wrong)
    assert not proving.check(INV, CASE, 0).is_close


def test_a_mismatch_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    right = unfold.aggregate
    monkeypatch.setattr(unfold, "aggregate", lambda x, weight, spec: right(x, weight, spec).flip(-1))
    conv, inv = trained().results
    assert (conv.status, inv.status) == (Status.OK, Status.MISMATCH)
    assert "float64 reference" in (inv.reason or "")
    assert (inv.latency, inv.training, inv.memory) == (None, None, None)
    assert inv.ratio is not None
    assert inv.ratio.latency is None


@pytest.mark.parametrize(
    ("error", "status", "word"),
    [
        (None, Status.ERROR, "became nan in epoch 2 of 3"),
        (MemoryError("no more"), Status.OOM, "no more"),
        (RuntimeError("broken"), Status.ERROR, "broken"),
    ],
    ids=["nan", "oom", "error"],
)
def test_a_network_that_fails_ends_with_its_reason_and_others_go_on(
    error: Exception | None, status: Status, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Learner.step

    def step(learner: Learner, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = right(learner, x, y)
        if learner.subject == INV and learner.history:
            if error:
                raise error
            return loss * math.nan
        return loss

    monkeypatch.setattr(Learner, "step", step)
    log = Log()
    point = trained(settings=replace(REPORT, seeds=2), watcher=log)
    conv, inv = point.results
    assert (conv.status, inv.status, inv.latency) == (Status.OK, status, None)
    assert word in (inv.reason or "")
    assert word in log.failures["mnist-inv (unfold)"]
    assert inv.training is not None
    assert [len(curve) for curve in inv.training.accuracy] == [1]  # what there was; no seed after it
    assert (inv.training.final, inv.training.seconds) == ((), ())
    assert conv.training is not None
    assert len(conv.training.final) == 2
    ResultSet(point.results, "", "", "").to_json()  # no NaN in it


def test_a_backend_that_cannot_run_is_a_row_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(REPORT, backends=("triton-atomic", "unfold"), asked_for=("triton-atomic", "unfold"))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with_triton = trained(replace(CASE, epochs=1), settings).results
    if with_triton[1].status is not Status.OK:
        assert [row.status for row in with_triton] == [Status.OK, Status.UNAVAILABLE, Status.OK]
        with pytest.raises(BackendUnavailableError, match="--backend triton-atomic"):
            trained(settings=replace(settings, backends=("triton-atomic",), asked_for=("triton-atomic",)))


def test_more_images_in_a_batch_than_there_are_are_refused() -> None:
    with pytest.raises(InvbenchError, match=r"^--N must be at most the 20 images.*got 21; try"):
        trained(replace(CASE, N=21))


def test_what_was_left_open_is_what_is_here() -> None:
    case, settings = running.complete(CASE, TrainSettings(), "cpu", None)
    assert case.threads == machine.usable_cores()
    assert settings.backends != ("auto",)
    assert len(settings.backends) == 1


def test_the_memory_of_a_step_is_asked_for_by_a_job() -> None:
    job = pickle.loads(pickle.dumps(TrainingJob(INV, CASE, 0)))
    loss, *gradients = job.step().results()
    assert (job.subject, job.threads, loss.shape) == (INV, 1, ())
    network = build(INV.model, INV.backend, CASE, 0)
    assert [g.shape for g in gradients] == [p.shape for p in network.parameters()]


# --- Ctrl-C and checkpoints ---


def test_ctrl_c_keeps_what_was_trained() -> None:
    point = trained(settings=replace(REPORT, seeds=2), watcher=Log({7: interrupt}))
    assert point.interrupted
    for row in point.results:
        assert row.status is Status.OK
        assert row.training is not None
        assert row.latency is not None
        assert len(row.training.final) == len(row.training.seconds) == 1
        assert row.latency.stop == "interrupted"
        assert row.memory == memory.UNKNOWN
    assert sum(len(row.latency.blocks) for row in point.results if row.latency) == 7


def test_ctrl_c_before_a_networks_first_epoch_is_its_reason() -> None:
    rows = trained(watcher=Log({1: interrupt})).results
    assert sorted(row.status for row in rows) == [Status.ERROR, Status.OK]
    assert "interrupted before its first epoch" in next(row.reason or "" for row in rows if row.reason)


def test_ctrl_c_before_any_epoch_is_told_to_the_caller() -> None:
    with pytest.raises(KeyboardInterrupt):
        trained(watcher=Log({1: interrupt}, steps=True))


def weights(folder: Path) -> dict[str, Any]:
    """All tensors of all networks, and what came of their epochs but for times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.pt")):
        state = torch.load(path, weights_only=True)
        found |= {f"{path.name} {name}": tensor for name, tensor in state["network"].items()}
        for index, kept in state["optimizer"]["state"].items():
            found |= {f"{path.name} {index} {name}": tensor for name, tensor in kept.items()}
    return found


@pytest.mark.parametrize(("stops", "steps"), [((1,), False), ((4, 3), False), ((8,), True), ((11, 2), True)])
def test_resuming_changes_no_bit(stops: tuple[int, ...], steps: bool, tmp_path: Path) -> None:
    """Ctrl-C between networks, between seeds and inside an epoch, once or twice."""
    settings = replace(REPORT, pairs=("report", "params"), seeds=2)
    case = replace(CASE, epochs=2)
    undisturbed = trained(case, settings, folder=tmp_path / "whole").results
    for stop in stops:
        trained(case, settings, folder=tmp_path / "parts", resume=True, watcher=Log({stop: interrupt}, steps))
    log = Log()
    resumed = trained(case, settings, folder=tmp_path / "parts", resume=True, watcher=log).results
    assert [learned(row) for row in resumed] == [learned(row) for row in undisturbed]
    assert log.begun is not None
    assert 0 < sum(log.begun[2]) == 12 - len(log.epochs)
    assert f"{sum(log.begun[2])} of 12 epochs are in" in " ".join(log.lines)
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert one.keys() == other.keys()
    assert len(one) > 100
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert sorted(path.name for path in (tmp_path / "parts").iterdir() if path.suffix != ".lock") == sorted([
        ".lock", "run.json", *(f"mnist-{kind}-seed-{seed}.pt" for seed in (0, 1) for kind in (
            "conv-torch", "inv-params-unfold", "inv-unfold"))
    ])  # fmt: skip


def test_resuming_what_is_done_shows_it_again(tmp_path: Path) -> None:
    first = trained(folder=tmp_path, resume=True).results
    log = Log()
    again = trained(folder=tmp_path, resume=True, watcher=log).results
    assert log.epochs == []
    for row, other in zip(first, again, strict=True):
        assert row.latency is not None
        assert other.latency is not None
        assert (row.training, row.latency.blocks) == (other.training, other.latency.blocks)


DIFFERENT: dict[str, tuple[TrainingCase, TrainSettings, Images, str]] = {
    "epochs": (replace(CASE, epochs=4), REPORT, images_of(), r"epochs \(there 3, here 4\)"),
    "batch": (replace(CASE, N=10), REPORT, images_of(), r"N \(there 8, here 10\)"),
    "dtype": (replace(CASE, dtype="float64"), REPORT, images_of(), r"dtype \(there \"float32\", here \"float64\"\)"),
    "seed": (CASE, replace(REPORT, seed=1), images_of(), r"seed \(there 0, here 1\)"),
    "networks": (CASE, replace(REPORT, backends=("naive",)), images_of(), r"networks .*unfold.*naive"),
    "images": (CASE, REPORT, images_of(seed=1), "images"),
}


@pytest.mark.parametrize(("case", "settings", "images", "words"), DIFFERENT.values(), ids=DIFFERENT)
def test_another_training_in_the_folder_is_refused(
    case: TrainingCase, settings: TrainSettings, images: Images, words: str, tmp_path: Path
) -> None:
    trained(folder=tmp_path, watcher=Log({1: interrupt}))
    before = weights(tmp_path)
    with pytest.raises(InvbenchError, match=f"has another training, which differs in {words}") as refused:
        trained(case, settings, images, folder=tmp_path, resume=True)
    assert str(refused.value).count("(there") == 1
    assert "\n" not in str(refused.value)
    assert weights(tmp_path).keys() == before.keys()


def test_another_version_is_refused(tmp_path: Path) -> None:
    trained(folder=tmp_path, watcher=Log({1: interrupt}))
    run = tmp_path / "run.json"
    run.write_text(re.sub(r'"torch": "[^"]*"', '"torch": "1.0"', run.read_text()))
    with pytest.raises(InvbenchError, match=r"differs in torch \(there \"1\.0\", here"):
        trained(folder=tmp_path, resume=True)


def test_a_training_in_the_folder_is_not_gone_on_with_unasked(tmp_path: Path) -> None:
    trained(folder=tmp_path, watcher=Log({1: interrupt}))
    with pytest.raises(InvbenchError, match="has a training: add --resume"):
        trained(folder=tmp_path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", None], ids=["empty", "foreign", "torn"])
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Path) -> None:
    trained(folder=tmp_path)
    path = tmp_path / "mnist-inv-unfold-seed-0.pt"
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    with pytest.raises(InvbenchError, match=f"{path.name} cannot be read .*; delete it to train") as refused:
        trained(folder=tmp_path, resume=True)
    assert "\n" not in str(refused.value)
    whole = trained().results
    path.unlink()
    log = Log()
    again = trained(folder=tmp_path, resume=True, watcher=log).results
    assert log.epochs == ["mnist-inv (unfold)"] * 3
    assert [learned(row) for row in again] == [learned(row) for row in whole]


@pytest.mark.parametrize("content", ["", "[]", "{}", "{"])
def test_a_description_that_cannot_be_read_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InvbenchError, match=r"run\.json cannot be read .*; choose another folder"):
        trained(folder=tmp_path, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_networks_of_nobody_knows_what_are_refused(resume: bool, tmp_path: Path) -> None:
    trained(folder=tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(InvbenchError, match=r"lacks run\.json.*; delete them to train from the beginning"):
        trained(folder=tmp_path, resume=resume)


def test_a_pickle_that_runs_code_is_not_run(tmp_path: Path) -> None:
    trained(folder=tmp_path)
    torch.save({"network": Path, "optimizer": {}, "history": [1]}, tmp_path / "mnist-conv-torch-seed-0.pt")
    with pytest.raises(InvbenchError, match="cannot be read"):
        trained(folder=tmp_path, resume=True)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with checkpoints.open_checkpoints(tmp_path, False, {}), pytest.raises(InvbenchError, match="in use by another"):
        trained(folder=tmp_path, resume=True)


def test_a_disk_that_is_full_ends_the_training_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = torch.save, itertools.count(1)

    def full(state: Any, file: Any) -> None:
        if next(calls) > 3:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InvbenchError, match=r"cannot be written \(No space left on device\); what was there.*--resume"):
        trained(folder=tmp_path)
    monkeypatch.setattr(torch, "save", save)
    assert not list(tmp_path.glob("*.part"))
    log = Log()
    resumed = trained(folder=tmp_path, resume=True, watcher=log).results
    assert len(log.epochs) == 3
    assert [learned(row) for row in resumed] == [learned(row) for row in trained().results]


def test_a_file_that_does_not_fit_is_told_in_the_systems_words(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = checkpoints.Checkpoints(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(InvbenchError, match=r"cannot be written \(File too large\)"):
            folder.save(CONV, 0, {"network": torch.zeros(50_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


# --- On a GPU, and as if on one ---


class Hot:
    """A device that was spoiled in its first epoch, and capped in its second."""

    def __init__(self) -> None:
        self._looks = itertools.count()

    def look(self) -> int:
        return next(self._looks)

    def between(self, before: int, after: int) -> Slowdown:
        return Slowdown(spoiled=before == 0, capped=before == 2)


def test_epochs_in_which_the_device_was_slowed_down_are_labelled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(running.throttling, "watched", lambda device: contextlib.nullcontext(Hot()))
    rows = trained(replace(CASE, epochs=1), folder=tmp_path).results
    labels = [row.latency.power_capped for row in rows if row.latency]
    assert sorted(labels, key=str) == [(False,), (True,)]
    told = [" ".join(row.warnings) for row in rows]
    assert sum("1 epoch(s) are among the times all the same" in text for text in told) == 1
    assert sum("the power cap held the GPU's clocks" in text for text in told) == 1
    monkeypatch.setattr(running.throttling, "watched", lambda device: contextlib.nullcontext())
    again = trained(replace(CASE, epochs=1), folder=tmp_path, resume=True).results
    assert [row.latency.power_capped for row in again if row.latency] == labels


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    case, settings = running.complete(CASE, replace(REPORT, pairs=("report", "macs")), "cuda", 1)
    trained(case, settings, folder=tmp_path, watcher=Log({4: interrupt}))
    for row in trained(case, settings, folder=tmp_path, resume=True).results:
        assert (row.status, row.reason) == (Status.OK, None)
        assert row.memory is not None
        assert row.memory.method == "cuda-allocator"
        assert (row.memory.peak or 0) > (row.memory.kept or 0) / 2 > 0
        assert row.training is not None
        assert len(row.training.final) == 1


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InvbenchError, match=r"has other files, such as 'thesis.txt'; choose an empty folder"):
        trained(folder=tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) in (["thesis.txt"], [".lock", "thesis.txt"])
