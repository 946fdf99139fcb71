"""Training steps: ours as `vitrail train` takes it, and the plain step of other libraries' models with the same weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrail.bench.case import OURS, Case
from vitrail.bench.contender import DTYPES, Contender, Precision
from vitrail.bench.prediction import timm_model, torchvision_model
from vitrail.bench.processes import Call
from vitrail.data.batch import Batch
from vitrail.models.backbone import Backbone
from vitrail.models.device import autocast, keep_freed_memory
from vitrail.settings import OptimConfig, Preprocessing, pair
from vitrail.tasks.classify import Classify
from vitrail.train.optim import build_optimizers
from vitrail.train.step import Step
from vitrail.weights import load


def rows(precisions: Sequence[Precision]) -> list[Contender]:
    """Return the contenders."""
    kinds = (("Vitrail", ours, ()), ("timm", timm_step, ("timm",)))
    every = [Contender(name, precision, build, needs) for name, build, needs in kinds for precision in precisions]
    return [*every, Contender("torchvision", "fp32", torchvision_step, ("torchvision",))]


def ours(case: Case, precision: Precision) -> Call:
    """Build our step with the settings of `vitrail train`: AdamW, gradients clipped, freed memory kept."""
    keep_freed_memory()
    model = load(case.file(OURS)).to(case.device).train()
    return our_step(model, batch_of(case.images(), case.num_classes), dtype=DTYPES[precision], optim=OptimConfig())


def timm_step(case: Case, precision: Precision) -> Call:
    """Build the plain step of timm's model."""
    return plain_step(timm_model(case).train(), batch_of(case.images(), case.num_classes), dtype=DTYPES[precision])


def torchvision_step(case: Case, precision: Precision) -> Call:
    """Build the plain step of torchvision's model."""
    return plain_step(torchvision_model(case).train(), batch_of(case.images(), case.num_classes), dtype=DTYPES[precision])


def batch_of(images: Tensor, num_classes: int) -> Batch:
    """Return a batch of these images with random labels. Raises ValueError for a model without a head."""
    if not num_classes:
        raise ValueError("a model without classes has no labels to train on")
    labels = torch.randint(num_classes, (len(images),), generator=torch.Generator().manual_seed(0)).to(images.device)
    indexes = torch.arange(len(images), device=images.device)
    return Batch(images=images, targets=F.one_hot(labels, num_classes).float(), labels=labels, indexes=indexes)


def our_step(model: Backbone, batch: Batch, *, dtype: torch.dtype | None, optim: OptimConfig, compiled: bool = False) -> Call:
    """Return the step that `vitrail train` takes; `compiled` as train.compile does."""
    for part in (model.blocks_in_order() or [model]) if compiled else ():
        part.compile()
    cfg = model.config
    images = Preprocessing(img_size=pair(cfg.img_size), in_channels=cfg.in_channels, mean=(0.0,), std=(1.0,))
    optimizers = build_optimizers(model, optim, batch_size=len(batch))
    step = Step(Classify(model, preprocessing=images), optimizers, autocast_dtype=dtype, clip_norm=optim.clip_norm)
    return lambda: step(batch)


def plain_step(model: nn.Module, batch: Batch, *, dtype: torch.dtype | None, compiled: bool = False) -> Call:
    """Return forward, cross-entropy, backward and fused AdamW, with nothing around them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        with autocast(batch.images.device, dtype):
            loss = F.cross_entropy(forward(batch.images), batch.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
