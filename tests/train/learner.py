"""A model with a loss as a task: what a step moves, without data."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from vitrail.data.batch import Batch
from vitrail.models.backbone import Backbone, Stage
from vitrail.settings import Preprocessing
from vitrail.tasks import Task
from vitrail.tasks.classify import Classify

Objective = Callable[[nn.Module, Batch], dict[str, Tensor]]
NOTHING = Preprocessing(img_size=(8, 8), in_channels=1, mean=(0.0,), std=(1.0,))


class Whole(Backbone):
    """A backbone of one stage, without blocks: any module, called on images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def stages(self) -> list[Stage]:
        return [Stage("net", ("net",))]

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.net(images)
        return out


class Learner(Task):
    """Any function of a model and a batch."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        nn.Module.__init__(self)
        self.model, self.objective = model, objective  # type: ignore[assignment]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.objective(self.model, batch)


def learner(model: nn.Module, objective: Objective | None = None) -> Task:
    """A task that classifies, or one of another objective."""
    if objective is not None:
        return Learner(model, objective)
    return Classify(model, preprocessing=NOTHING)  # type: ignore[arg-type]
