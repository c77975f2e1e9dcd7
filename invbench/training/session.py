"""What all networks of a run are trained with, and how far each is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from invbench.harness.blocks import Throttling
from invbench.harness.clock import Clock, eager_clock
from invbench.harness.steps import Step
from invbench.harness.timing import Arm
from invbench.results import Status
from invbench.spec import TrainingCase
from invbench.training import TrainingSubject, TrainSettings, Watcher
from invbench.training.checkpoints import Checkpoints
from invbench.training.learning import Data, Epoch


@dataclass
class TrainingArm(Arm[TrainingSubject, Step]):
    """A network, what is known of it so far, and by seed the epochs that it has behind it."""

    histories: dict[int, list[Epoch]] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        """Whether it is trained."""
        return self.result.status is Status.OK


@dataclass
class Session:
    """What all networks of a run are trained with. saved: where each was, by subject and seed."""

    case: TrainingCase
    settings: TrainSettings
    device: torch.device
    data: Data
    watcher: Watcher
    checkpoints: Checkpoints | None
    saved: dict[tuple[TrainingSubject, int], dict[str, Any]] = field(default_factory=dict)
    throttling: Throttling | None = None

    @property
    def clock(self) -> Clock:
        """Launches included; on a GPU by events around each step, synchronised before and after."""
        return eager_clock(self.device)
