"""Losses of labels and of a teacher, and their targets."""

# N images · B batch · K classes

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from vitrail.data.batch import Batch
from vitrail.data.batches import class_weights
from vitrail.models.backbone import Backbone
from vitrail.settings import OptimConfig

Loss = Literal["ce", "bce"]
Kind = Literal["hard", "soft"]


def label_loss(
    logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"], *, loss: Loss, weights: Float[Tensor, " K"] | None = None
) -> Float[Tensor, ""]:
    """Compute the mean loss of the images; with `weights`, an image has the weight of its target's classes: w_i = Σ_k t_ik w_k.

    "ce" is cross-entropy, -Σ_k t_k log softmax(z)_k. "bce" is binary cross-entropy of each class, averaged over the classes,
    -1/K Σ_k [t_k log σ(z_k) + (1 - t_k) log(1 - σ(z_k))]: Wightman et al. 2021, section 2, on the scale of timm's, so that
    its learning rates hold. Mixed targets are used as they are: a class that has 0.3 of the image has the target 0.3.
    """
    entropy = F.cross_entropy if loss == "ce" else F.binary_cross_entropy_with_logits
    if weights is None:
        return entropy(logits, targets)
    each = entropy(logits, targets, reduction="none")  # (B,), or (B, K)
    image = (targets * weights).sum(dim=1)  # (B,); as a matrix product, autocast would round it
    return ((each if loss == "ce" else each.mean(dim=1)) * image).mean()


def target_smoothing(cfg: OptimConfig, *, multi_label: bool = False) -> float:
    """Return the label smoothing of the targets: none under BCE, which treats each class as present or absent."""
    return 0.0 if multi_label or cfg.loss == "bce" else cfg.label_smoothing


def balanced_weights(labels: Int64[Tensor, " N"], *, num_classes: int, label_smoothing: float = 0.0) -> Float[Tensor, " K"]:
    """Compute class weights for `label_loss`: inverse to the number of images, with an average weight of 1 per image.

    The average is over the smoothed targets, (1 - ε) of the label and ε / K of every class; mixing does not change it. A
    class without images has weight 0.
    """
    weights = class_weights(labels, num_classes)
    share = labels.bincount(minlength=num_classes) / len(labels)
    target = (1 - label_smoothing) * share + label_smoothing / num_classes
    return weights / (weights @ target)


def teacher_targets(logits: Float[Tensor, "B K"], *, kind: Kind, tau: float) -> Float[Tensor, "B K"]:
    """Compute the teacher's targets. Hard: one-hot of its prediction. Soft: its probabilities at temperature τ."""
    if kind == "hard":
        return F.one_hot(logits.argmax(dim=1), logits.shape[1]).to(logits.dtype)
    return F.softmax(logits / tau, dim=1)


def teacher_loss(logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"], *, kind: Kind, tau: float) -> Float[Tensor, ""]:
    """Compute the teacher's loss. Hard: cross-entropy with its prediction. Soft: τ² KL(teacher ‖ student) at temperature τ.

    The divergence is summed over the classes, as Hinton et al. 2015 have it; DeiT's code takes their mean, which makes the
    teacher's part K times smaller than its equation 2.
    """
    if kind == "hard":
        return F.cross_entropy(logits, targets)
    return tau**2 * F.kl_div(F.log_softmax(logits / tau, dim=1), targets, reduction="batchmean")


def call(forward: Callable[..., Any], batch: Batch) -> Any:
    """Run the model on the batch's images, with the batch's patch size, or with a size for each image, if it has them."""
    if batch.sizes is not None:
        assert isinstance(forward, Backbone), "images of many sizes are for a model with one head"
        return forward.packed_logits(batch.images, batch.sizes)
    return forward(batch.images) if batch.patch_size is None else forward(batch.images, patch_size=batch.patch_size)


def accuracy(logits: Float[Tensor, "B K"], batch: Batch) -> Float[Tensor, ""]:
    """Return the share of images whose class with the greatest target is predicted."""
    return (logits.detach().argmax(dim=1) == batch.targets.argmax(dim=1)).float().mean()
