"""Which of a convolution's two layouts is its row: the faster one, whatever disturbed the machine meanwhile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch

from invbench.harness import arms, machine
from invbench.harness.arms import MOST_TRIALS, Preparation
from invbench.harness.settings import Settings, Subject
from invbench.harness.subjects import Runnable
from invbench.spec import LAYOUTS, Case, LayerSpec

CASE = Case(1, 9, 9, LayerSpec(16, 3, 4), threads=1)


def chosen(times: dict[str, Sequence[float]]) -> tuple[str | None, dict[str, list[int]]]:
    """The layout of a convolution whose samples are those, again and again; and how many calls each sample took."""
    asked: dict[str, list[int]] = {layout: [] for layout in LAYOUTS}

    def sampler(runnable: Runnable) -> Callable[[int], float]:
        values = itertools.cycle(times[runnable.layout])

        def sample(calls: int) -> float:
            asked[runnable.layout].append(calls)
            return next(values)

        return sample

    preparation = Preparation(CASE, Settings(), torch.device("cpu"), sampler)
    return preparation.arm(Subject("conv2d-3x3")).result.chosen_layout, asked


@pytest.mark.parametrize("faster", LAYOUTS)
def test_the_faster_layout_is_the_row(faster: str) -> None:
    layout, _ = chosen({name: [1e-3 if name == faster else 1.1e-3] for name in LAYOUTS})
    assert layout == faster


@pytest.mark.parametrize("faster", LAYOUTS)
def test_a_disturbance_does_not_choose(faster: str) -> None:
    """Neither a slow first sample nor a lucky one of the slower layout, which a minimum would believe."""
    disturbed, lucky = [9e-3, 1e-3, 1e-3, 1e-3, 1e-3], [1.1e-3, 1.1e-3, 0.5e-3, 1.1e-3, 1.1e-3]
    layout, _ = chosen({name: disturbed if name == faster else lucky for name in LAYOUTS})
    assert layout == faster


def test_a_layout_that_is_twice_as_slow_twice_costs_two_samples_each() -> None:
    layout, asked = chosen({"contiguous": [1.0], "channels_last": [0.4]})
    assert layout == "channels_last"
    assert asked == {"contiguous": [1, 1], "channels_last": [1, 1]}


def test_short_calls_are_tried_in_samples_that_the_clock_can_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arms, "TRIAL_SECONDS", 60.0)
    _, asked = chosen({"contiguous": [1e-5], "channels_last": [1.5e-5]})
    assert asked["contiguous"] == [1, *[50] * MOST_TRIALS]
    assert asked["channels_last"] == [1, *[34] * MOST_TRIALS]


def test_what_the_allocator_keeps_is_given_back_before_a_subject_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [0]
    monkeypatch.setattr(machine, "free_bytes", lambda device: free[0])
    monkeypatch.setattr(machine, "give_back", lambda device: free.__setitem__(0, 2**30))
    assert chosen({name: [1.0] for name in LAYOUTS})[0] is not None
    monkeypatch.setattr(machine, "give_back", lambda device: None)
    free[0] = 0
    assert chosen({name: [1.0] for name in LAYOUTS})[0] is None
