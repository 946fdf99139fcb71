"""Gradient-weighted attention (Chefer et al. 2021): what speaks for a class, through all layers."""

# B batch · h heads · Q queries · N tokens

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.explain.inputs import Images, Query, Target, open_scene
from vitrail.explain.maps import Maps, maps_of
from vitrail.explain.passes import (
    ClassGradient,
    ForwardPass,
    attention_rows,
    backward_pass,
    class_gradient,
    class_labels,
    forward_pass,
    held_norms,
    held_note,
    query_chunks,
    query_row,
)
from vitrail.models.attention import Attended
from vitrail.settings import Pair


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
    """Return gradient-weighted attention (Chefer et al. 2021, Generic Attention-Model Explainability, equations 5 and 6).

    Ā = mean over the heads of (∇A ⊙ A)⁺, with ∇A the gradient of the class's logit, and R ← R + Ā R from the first layer to
    the last; the map is what the head reads of R's rows, without the 1 that R starts from. The attention stays fused:
    ∇A = ∇O Vᵀ, from the gradient at the output of attention, and the one row of R that counts goes from the last layer to the
    first. With `hold_norms` the gradient takes the scales of the tokens' LayerNorms for constants (Ali et al. 2022), and
    finds what a class token is full of already. Raises ValueError for a class that the model does not have, and for a model
    without global attention or head.
    """
    with (
        open_scene(model, images, method="relevance", pad=pad, sizes=sizes, patch_size=patch_size, img_size=img_size) as scene,
        held_norms(scene.model, hold=hold_norms),
    ):
        forward = forward_pass(scene, layers=range(scene.vit.config.depth))
        gradient = class_gradient(forward, target)
        start, note = query_row(forward, query)
        row = start
        if query == "cls" and gradient.pooled is not None:  # what the pooling reads of each token is evidence already
            row, start = _pooled_row(forward, gradient), torch.zeros_like(start)
        for block in backward_pass(forward, gradient.grad):
            row = row + _weighted_rows(block.attended, block.out_grad, row, forward.mask)
        labels = class_labels(scene, gradient.logits, gradient.targets)
        return maps_of(scene, row - start, method="relevance", labels=labels, notes=(note, held_note(hold_norms)))


def _pooled_row(forward: ForwardPass, gradient: ClassGradient) -> Float[Tensor, "B N"]:
    """Return the gradient-weighted attention of attention pooling."""
    assert gradient.pooled is not None
    attended, out_grad = gradient.pooled
    start = forward.last.shape[1] - attended.keys.shape[2]
    mask = None if forward.mask is None else forward.mask[:, start:]
    row = _weighted_rows(attended, out_grad, torch.ones(len(out_grad), 1, device=out_grad.device), mask)
    return nn.functional.pad(row, (start, 0))


@torch.no_grad()
def _weighted_rows(
    attended: Attended, out_grad: Float[Tensor, "B h Q d"], row: Float[Tensor, "B Q"], mask: Tensor | None
) -> Float[Tensor, "B N"]:
    """Multiply a row with Ā, the mean over the heads of (∇A ⊙ A)⁺; some rows of the matrix at a time."""
    values = attended.values.float().mT
    result = torch.zeros(len(row), attended.keys.shape[2], device=row.device)
    for chunk in query_chunks(attended):
        weights = attention_rows(attended, chunk, mask)
        matrix = weights.mul_(out_grad[:, :, chunk].float() @ values).clamp_(min=0)  # (B, h, q, N)
        result += torch.einsum("bq,bhqn->bn", row[:, chunk], matrix) / matrix.shape[1]
    return result
