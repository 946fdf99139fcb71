"""Grad-CAM (Selvaraju et al. 2017) on patch tokens, or on a model's last feature map."""

# B batch · C channels · H W image · L patches = gh gw · N tokens · D width · K classes · gh gw grid

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.explain.inputs import Images, Scene, Target, layer_label, model_name, open_scene, require_layer
from vitrail.explain.maps import Maps, maps_of
from vitrail.explain.passes import backward_pass, class_gradient, class_labels, forward_pass, held_norms, held_note
from vitrail.settings import Pair


def gradcam(
    model: nn.Module,
    images: Images,
    *,
    layer: int = -1,
    target: Target = None,
    hold_norms: bool = False,
    pad: bool = False,
    sizes: Int64[Tensor, "B 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> Maps:
    """Return Grad-CAM, (Σ_d α_d x_d)⁺ for each patch, with α_d the mean over the patches of the logit's gradient at channel d.

    With global attention, x are the patch tokens that the layer's attention takes; behind the last layer there is nothing to
    see where the head reads a class token, for no patch has a gradient there. Of any other model, x is the last map of the
    pyramid, or the tokens where there is none, or where it is a copy beside the way to the logits; where the head reads a
    class token, what its last attention reads. `hold_norms` is as
    `relevance` takes it. Raises ValueError for a layer or a class that does not exist, and for a model without a grid of
    features or a head.
    """
    with (
        open_scene(model, images, method="gradcam", pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size) as scene,
        held_norms(scene.model, hold=hold_norms),
    ):
        index = require_layer(scene.model, layer)
        features = _of_layer(scene, index, target) if scene.model.global_attention else _of_last_features(scene, target)
        alpha = features.grad.mean(dim=1, keepdim=True)  # (B, 1, D)
        cam = (features.values * alpha).sum(dim=2).clamp(min=0)  # (B, L)
        if features.mask is not None:
            cam = cam * features.mask
        name, classes = layer_label(scene.model, index), class_labels(scene, features.logits, features.targets)
        labels = tuple(f"{name}, {label}" for label in classes)
        return maps_of(scene, cam.unflatten(1, scene.grid), method="gradcam", labels=labels, notes=(held_note(hold_norms),))


class _Features(NamedTuple):
    """Patch features with the gradient of the target's logit, in float32."""

    values: Float[Tensor, "B L D"]
    grad: Float[Tensor, "B L D"]
    mask: Tensor | None
    """(B, L), true where a patch is there; None: everywhere."""
    logits: Float[Tensor, "B K"]
    targets: Int64[Tensor, " B"]


def _of_layer(scene: Scene, layer: int, target: Target) -> _Features:
    """Return the patch tokens that a layer's attention takes."""
    forward = forward_pass(scene, layers=range(layer, scene.vit.config.depth))
    gradient = class_gradient(forward, target)
    block = next(one for one in backward_pass(forward, gradient.grad) if one.layer == layer)
    tokens, grad = (tensor[:, scene.prefix :].float() for tensor in (block.attended.tokens, block.tokens_grad))
    mask = None if forward.mask is None else forward.mask[:, scene.prefix :]
    return _Features(tokens, grad, mask, gradient.logits, gradient.targets)


def _of_last_features(scene: Scene, target: Target) -> _Features:
    """Return the last map of the pyramid, or the tokens on the same grid, position by position.

    Raises ValueError for a model with several heads or a convolution as head, and for logits that are computed from neither.
    """
    heads = list(scene.model.head_modules())
    if len(heads) != 1:
        raise ValueError(f"Grad-CAM follows one head, and {model_name(scene.model)} has {len(heads)}; use another method")
    if isinstance(heads[0], nn.Conv2d):  # SqueezeNet's
        raise ValueError(f"Grad-CAM follows a linear head, and {model_name(scene.model)} has a convolution; use another method")
    with torch.enable_grad():
        images = scene.images.detach().requires_grad_()  # a graph, even where all weights are frozen
        features = scene.model.features(images)
        logits = heads[0](features.pooled)
        targets = scene.targets(target, logits.detach().float())
        candidates = [] if features.read is None else [features.read]
        candidates += [] if features.pyramid is None else [features.pyramid[-1]]
        if features.tokens is not None and features.grid == scene.grid:
            candidates.append(features.tokens)
        grads = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), candidates, allow_unused=True)
    for x, grad in zip(candidates, grads, strict=True):
        if grad is not None:  # None for a copy of what the head reads, beside the way to it
            values, grad = (one.flatten(2).mT if one.ndim == 4 else one[:, scene.prefix :] for one in (x, grad))  # (B, L, D)
            return _Features(values.detach().float(), grad.float(), None, logits.detach().float(), targets)
    raise ValueError(
        f"the logits of {model_name(scene.model)} are computed from neither its last feature map nor its tokens, so these have "
        "no gradient; use another method"
    )
