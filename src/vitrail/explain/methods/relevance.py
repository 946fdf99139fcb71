"""What speaks for a class: attention weighted by gradients, Grad-CAM on tokens, and integrated gradients."""

# B batch · C channels · H W image · h heads · Q queries · N tokens · D width · K classes · gh gw grid

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitrail.config import Pair
from vitrail.explain.attention import starting_row
from vitrail.explain.inputs import Images, Query, Scene, Target, require_layer, scene
from vitrail.explain.maps import Maps, maps_of
from vitrail.explain.walk import Decision, Walk, decide, held_norms, in_chunks, walk, walk_back, weights
from vitrail.models.vit import Attended


def relevance(
    model: nn.Module,
    images: Images,
    *,
    target: Target = None,
    query: Query = "cls",
    hold_norms: bool = False,
    pad: bool = False,
    sizes: Int64[Tensor, "B 2"] | None = None,
    patch_size: int | Pair | None = None,
    img_size: int | Pair | None = None,
) -> Maps:
    """Gradient-weighted attention (Chefer et al. 2021, Generic Attention-Model Explainability, equations 5 and 6).

    Ā = mean over the heads of (∇A ⊙ A)⁺, with ∇A the gradient of the class's logit, and R ← R + Ā R from the first layer to
    the last; the map is what the head reads of R's rows, without the 1 that R starts from. The attention stays fused:
    ∇A = ∇O Vᵀ, from the gradient at what the attention gave, and the one row of R that counts is walked from the last layer to
    the first. With `hold_norms` the gradient takes the scales of the tokens' LayerNorms for constants (Ali et al. 2022), and
    finds what a class token is full of already. Raises ValueError for a class that the model has not.
    """
    with (
        scene(model, images, pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size) as seen,
        held_norms(seen.model, hold=hold_norms),
    ):
        there = walk(seen, layers=range(seen.model.config.depth))
        made = decide(there, target)
        start, note = starting_row(there, query)
        row = start
        if query == "cls" and made.pooled is not None:  # what the pooling reads of each token is evidence already
            row, start = pooled_row(there, made), torch.zeros_like(start)
        for back in walk_back(there, made.grad):
            row = row + toward_class(back.attended, back.out_grad, row, there.mask)
        return maps_of(seen, row - start, method="relevance", labels=called(seen, made), notes=(note, held(hold_norms)))


def pooled_row(there: Walk, made: Decision) -> Float[Tensor, "B N"]:
    """What attention pooling reads of each token for the class: its own gradient-weighted attention."""
    assert made.pooled is not None
    attended, out_grad = made.pooled
    start = there.last.shape[1] - attended.keys.shape[2]
    mask = None if there.mask is None else there.mask[:, start:]
    row = toward_class(attended, out_grad, torch.ones(len(out_grad), 1, device=out_grad.device), mask)
    return nn.functional.pad(row, (start, 0))


@torch.no_grad()
def toward_class(
    seen: Attended, out_grad: Float[Tensor, "B h Q d"], row: Float[Tensor, "B Q"], mask: Tensor | None
) -> Float[Tensor, "B N"]:
    """A row times Ā, the mean over the heads of (∇A ⊙ A)⁺; a part of the matrix at a time."""
    values = seen.values.float().mT
    result = torch.zeros(len(row), seen.keys.shape[2], device=row.device)
    for part in in_chunks(seen):
        matrix = weights(seen, part, mask).mul_(out_grad[:, :, part].float() @ values).clamp_(min=0)  # (B, h, q, N)
        result += torch.einsum("bq,bhqn->bn", row[:, part], matrix) / matrix.shape[1]
    return result


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
    """Grad-CAM (Selvaraju et al. 2017) on the patch tokens that a layer's attention sees: (Σ_d α_d x_d)⁺.

    α_d is the mean over the patches of the class's gradient at channel d. Behind the last layer there is nothing to see where
    the head reads a class token: no patch has a gradient there. `hold_norms` is as `relevance` takes it.
    """
    with (
        scene(model, images, pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size) as seen,
        held_norms(seen.model, hold=hold_norms),
    ):
        index, first = require_layer(seen.model, layer), seen.model.prefix_tokens
        there = walk(seen, layers=range(index, seen.model.config.depth))
        made = decide(there, target)
        back = next(one for one in walk_back(there, made.grad) if one.layer == index)
        tokens, grad = back.attended.tokens[:, first:].float(), back.tokens_grad[:, first:].float()  # (B, L, D)
        cam = (tokens * grad.mean(dim=1, keepdim=True)).sum(dim=2).clamp(min=0)
        if there.mask is not None:
            cam = cam * there.mask[:, first:]
        labels = tuple(f"layer {index}, {label}" for label in called(seen, made))
        return maps_of(seen, nn.functional.pad(cam, (first, 0)), method="gradcam", labels=labels, notes=(held(hold_norms),))


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
    """Integrated gradients (Sundararajan et al. 2017) of the class's logit, summed over the pixels of each patch; signed.

    From the `baseline`, the data's mean colour unless given, to the image in `steps` of equal length, the gradient taken in the
    middle of each. The sum of a map is the rise of the logit on the way, and the note says how near it comes.
    Raises ValueError for less than one step.
    """
    if steps < 1:
        raise ValueError(f"steps {steps} must be at least 1")
    with scene(model, images, pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size) as seen:
        there = walk(seen)
        made = decide(there, target)
        start = torch.zeros_like(seen.images) if baseline is None else baseline.to(seen.images)
        way = seen.images - start
        total = torch.zeros_like(seen.images, dtype=torch.float32)
        for step in range(steps):
            x = (start + way * ((step + 0.5) / steps)).requires_grad_()
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(checkpointed(seen, x).gather(1, made.targets[:, None]).sum(), x)
            total += grad.float()
        with torch.no_grad():
            low = checkpointed(seen, start).float().gather(1, made.targets[:, None])[:, 0]
        rise = made.logits.gather(1, made.targets[:, None])[:, 0] - low
        parts = (total * way.float() / steps).sum(dim=1)  # (B, H, W)
        maps = parts.unflatten(2, (seen.grid[1], -1)).unflatten(1, (seen.grid[0], -1)).sum(dim=(2, 4))
        missed = ((maps.sum(dim=(1, 2)) - rise).abs() / rise.abs().clamp(min=1e-6)).max().item()
        note = f"{steps} steps from the mean colour" if baseline is None else f"{steps} steps from the baseline given"
        note += f"; the maps' sums miss the rise of the logit by {missed:.1%} at most"
        return maps_of(seen, maps, method="integrated_gradients", labels=called(seen, made), notes=(note,), signed=True)


def checkpointed(seen: Scene, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
    """The model's logits, with a graph that holds one block's activations at a time."""
    model = seen.model
    x, mask = model.embed(images, pad=False, sizes=seen.sizes, patch_size=seen.patch)
    for block in model.blocks:
        x = checkpoint(block.forward, x, mask, use_reentrant=False)
    return model.read(x, mask)


def held(norms: bool) -> str:
    """What is said of a gradient that is not the model's own."""
    return "the scales of the tokens' norms are held (Ali et al. 2022)" if norms else ""


def called(seen: Scene, made: Decision) -> tuple[str, ...]:
    """The class that each map is about, and its probability."""
    share = (made.logits.sigmoid() if seen.model.multi_label else made.logits.softmax(dim=1)).gather(1, made.targets[:, None])
    pairs = zip(made.targets.tolist(), share[:, 0].tolist(), strict=True)
    return tuple(f"{seen.called(number)} ({value:.1%})" for number, value in pairs)
