"""Integrated gradients (Sundararajan et al. 2017) on the pixels, summed for each patch."""

# B batch · C channels · H W image · K classes · gh gw grid

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.explain.inputs import Images, Scene, Target, open_scene
from vitrail.explain.maps import Maps, maps_of
from vitrail.explain.passes import class_labels
from vitrail.settings import Pair


def integrated_gradients(
    model: nn.Module,
    images: Images,
    *,
    target: Target = None,
    steps: int = 32,
    baseline: Float[Tensor, "B C H W"] | None = None,
    pad: bool = False,
    sizes: Int64[Tensor, "B 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> Maps:
    """Return integrated gradients of the class's logit, summed over the pixels of each patch; signed.

    From the `baseline`, the data's mean colour unless given, to the image in `steps` of equal length, the gradient taken in the
    middle of each. The sum of a map is the rise of the logit on the way, and the note says how near it comes. A model without
    global attention has the patches of its last feature map. Raises ValueError for less than one step, for a class that does
    not exist, and for a model without a grid of features or a head.
    """
    if steps < 1:
        raise ValueError(f"steps {steps} must be at least 1")
    with open_scene(
        model, images, method="integrated_gradients", pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size
    ) as scene:
        logits = _logits(scene, scene.images).float()
        targets = scene.targets(target, logits)
        start = torch.zeros_like(scene.images) if baseline is None else baseline.to(scene.images)
        way = scene.images - start
        total = torch.zeros_like(scene.images, dtype=torch.float32)
        for step in range(steps):
            x = (start + way * ((step + 0.5) / steps)).requires_grad_()
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(_logits(scene, x).gather(1, targets[:, None]).sum(), x)
            total += grad.float()
        low = _logits(scene, start).float().gather(1, targets[:, None])[:, 0]
        rise = logits.gather(1, targets[:, None])[:, 0] - low
        maps = _patch_sums(scene, (total * way.float() / steps).sum(dim=1))
        missed = ((maps.sum(dim=(1, 2)) - rise).abs() / rise.abs().clamp(min=1e-6)).max().item()
        note = f"{steps} steps from the mean colour" if baseline is None else f"{steps} steps from the baseline given"
        note += f"; the maps' sums miss the rise of the logit by {missed:.1%} at most"
        labels = class_labels(scene, logits, targets)
        return maps_of(scene, maps, method="integrated_gradients", labels=labels, notes=(note,), signed=True)


def _logits(scene: Scene, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
    """Return the model's logits, where it can be run block by block with the graph of one block at a time."""
    if not scene.model.global_attention:
        return scene.logits(images, scene.sizes)
    x, context = scene.vit.embed(images, pad=False, sizes=scene.sizes, patch_size=scene.patch)
    for block in scene.vit.blocks:
        x = checkpoint(block.forward, x, context, use_reentrant=False)
    return scene.vit.read(x, context)


def _patch_sums(scene: Scene, pixels: Float[Tensor, "B H W"]) -> Float[Tensor, "B gh gw"]:
    """Sum over the pixels of each patch; the last patch of a side may reach beyond the image."""
    down, across = (count * side for count, side in zip(scene.grid, scene.patch, strict=True))
    pixels = F.pad(pixels, (0, across - pixels.shape[2], 0, down - pixels.shape[1]))
    return pixels.unflatten(2, (scene.grid[1], -1)).unflatten(1, (scene.grid[0], -1)).sum(dim=(2, 4))
