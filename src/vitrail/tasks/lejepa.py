"""LeJEPA (Balestriero & LeCun 2025): views of an image agree, and projections of all images are normally distributed."""

# B images · V views · E embedding · P projection · A directions · T knots

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitrail.data.batch import Batch
from vitrail.data.dataset import Split
from vitrail.data.draws import Draws
from vitrail.evaluate.embedding import has_classes
from vitrail.models.backbone import Backbone
from vitrail.models.device import full_precision
from vitrail.settings import LejepaConfig, Preprocessing, Settings, ViewsConfig
from vitrail.tasks.across import LEAST_STEPS, BatchNorm, StepSums, sum_over_processes
from vitrail.tasks.task import CollapseCause
from vitrail.tasks.views import MultiView, check_views, embed_views, embedding_width

RANGE = 3.0
"""Largest point at which the characteristic functions are compared."""


def invariance(projections: Float[Tensor, "V B P"]) -> Tensor:
    """Compute the mean squared distance of the views' projections to the centre of their image."""
    return (projections - projections.mean(0)).square().mean()


class SigReg(nn.Module):
    """Sketched isotropic Gaussian regularisation: Epps and Pulley's statistic (1983) of random one-dimensional projections.

    For each direction a and view: N ∫ |φ̂(t) - exp(-t²/2)|² exp(-t²/2) dt, with φ̂ the empirical characteristic function of the N
    images' projections on a, over [-3, 3] by the trapezoid rule at T knots in [0, 3], both halves being equal. The statistic is
    the mean over views and directions; N and φ̂ are those of all processes.
    """

    def __init__(self, dim: int, *, directions: int, knots: int) -> None:
        super().__init__()
        points = torch.linspace(0, RANGE, knots)
        weights = torch.full((knots,), 2 * RANGE / (knots - 1))
        weights[[0, -1]] /= 2
        target = (-points.square() / 2).exp()
        self.register_buffer("points", points, persistent=False)
        self.register_buffer("target", target, persistent=False)
        self.register_buffer("weights", weights * target, persistent=False)
        self.register_buffer("directions", torch.zeros(dim, directions), persistent=False)
        self.points: Tensor
        self.target: Tensor
        self.weights: Tensor
        self.directions: Tensor
        self.draw(seed=0, step=0)

    @torch.no_grad()
    def draw(self, *, seed: int, step: int) -> None:
        """Draw directions, uniform on the sphere, for a step: the same ones in every process."""
        rows = torch.arange(self.directions.shape[0], device=self.directions.device)
        values = Draws(seed=seed, epoch=step, indexes=rows).normal("sigreg", self.directions.shape[1])
        self.directions.copy_(values / values.norm(dim=0))

    def forward(self, projections: Float[Tensor, "V B P"]) -> Tensor:
        """Return the statistic; 0 for projections that are standard normal, of N going to infinity."""
        phases = (projections @ self.directions)[..., None] * self.points  # (V, B, A, T)
        images = torch.full((1,), float(projections.shape[1]), device=projections.device)
        sums = torch.stack([phases.cos().sum(1), phases.sin().sum(1)])  # (2, V, A, T)
        images, sums = sum_over_processes(images), sum_over_processes(sums)
        real, imaginary = sums / images
        return (((real - self.target).square() + imaginary.square()) @ self.weights).mean() * images.squeeze()


class Spread(nn.Module):
    """Share of the output dimensions in use: mean of min(1, λ) over the eigenvalues λ of the outputs' covariance.

    The covariance is that of the images of all processes in a step, averaged over the steps since it was last taken. The share
    is 0 for outputs that are alike for all images, and 1 for standard normal ones, with which SIGReg is at rest.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.sums = StepSums(dim + dim * dim)
        self.register_buffer("total", torch.zeros(dim, dim))  # of the covariances
        self.register_buffer("steps", torch.zeros(()))
        self.total: Tensor
        self.steps: Tensor

    @torch.no_grad()
    def add(self, outputs: Float[Tensor, "B P"], *, counted: bool) -> None:
        """Add outputs of all processes to those of this step; a process whose images only stand in is not `counted`."""
        sums = torch.cat([outputs.sum(0), (outputs.T @ outputs).flatten()])
        self.sums.add_sum(sums, count=len(outputs), counted=counted)

    @torch.no_grad()
    def update(self) -> None:
        """End a step, and add the covariance of its outputs."""
        values, count = self.sums.take_mean()
        mean, products = values.split([len(self.total), self.total.numel()])
        self.total.add_(products.view_as(self.total) - mean.outer(mean))  # zeros for a step without images
        self.steps.add_((count > 0).float())

    def take(self) -> float | None:
        """Return the share, and begin anew; None after too few steps, which count for the next call."""
        steps = float(self.steps)
        if steps < LEAST_STEPS:
            return None
        used = torch.linalg.eigvalsh(self.total.double() / steps).clamp(0, 1).mean()
        self.total.zero_()
        self.steps.zero_()
        return float(used)


class Projector(nn.Sequential):
    """Hidden layers with batch norm and ReLU, then a linear layer."""

    def __init__(self, width: int, cfg: LejepaConfig) -> None:
        layers: list[nn.Module] = []
        for inner in cfg.projector_dims:
            layers += [nn.Linear(width, inner), BatchNorm(inner), nn.ReLU()]
            width = inner
        super().__init__(*layers, nn.Linear(width, cfg.projector_out))


class Lejepa(MultiView):
    """LeJEPA of any backbone: no teacher, no stop-gradient, and no labels."""

    def __init__(
        self,
        model: Backbone,
        *,
        preprocessing: Preprocessing,
        cfg: LejepaConfig,
        views: ViewsConfig,
        sizes: Tensor,
        seed: int,
        known: Split | None = None,
        neighbours: bool = False,
    ) -> None:
        super().__init__(
            model, preprocessing=preprocessing, views=views, sizes=sizes, seed=seed, known=known, neighbours=neighbours
        )
        self.cfg = cfg
        self.projector = Projector(embedding_width(model, preprocessing), cfg)
        self.sigreg = SigReg(cfg.projector_out, directions=cfg.directions, knots=cfg.knots)
        self.in_use = Spread(cfg.projector_out)

    def before_step(self, *, step: int, epoch: int, progress: float) -> None:
        """Draw the directions of the step."""
        self.sigreg.draw(seed=self.seed, step=step)

    def after_step(self, step: int) -> None:
        """End the step of the spread."""
        self.in_use.update()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return "loss", λ SIGReg + (1 - λ) invariance, and both parts."""
        assert batch.views is not None
        embeddings = embed_views(self.model, batch.views)  # (B, V, E)
        projections = self.projector(embeddings.flatten(0, 1)).unflatten(0, embeddings.shape[:2]).transpose(0, 1)
        with full_precision(projections.device):  # sums of cosines that bf16 would round
            projections = projections.float()
            close, normal = invariance(projections), self.sigreg(projections)
            self.in_use.add(projections.detach().mean(0), counted=not batch.stands_in)
        share = self.cfg.sigreg_weight
        return {"loss": share * normal + (1 - share) * close, "invariance": close, "sigreg": normal}

    def spread(self) -> float | None:
        """See Task.spread: that of the images' centres."""
        return self.in_use.take()

    def collapse_advice(self, cause: CollapseCause) -> str:
        """See Task.collapse_advice: SIGReg is what holds the rank, and strong views alone may cost accuracy."""
        if cause == "accuracy fell":
            return "lower optim.lr, or weaken the views: raise views.local_scale and lower the blur and colour of `views`"
        return f"raise lejepa.sigreg_weight, which is {self.cfg.sigreg_weight:g}, or train.batch_size; else lower optim.lr"


def lejepa_task(
    settings: Settings,
    model: Backbone,
    *,
    split: Split,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> Lejepa:
    """Build the task of a run. Classes, if the images have them, are for the k-NN score only."""
    return Lejepa(
        model,
        preprocessing=preprocessing,
        cfg=settings.lejepa,
        views=settings.views,
        sizes=split.sizes,
        seed=settings.train.seed,
        neighbours=has_classes(split),
    ).to(device)


def check_lejepa(settings: Settings, model: Backbone) -> None:
    """Raise ValueError for settings and a model, on the meta device, that LeJEPA does not support."""
    check_views(settings, model)
