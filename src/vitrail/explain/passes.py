"""Passes through a model of global attention, block by block: recorded block inputs, attention rows, gradients of a class.

The forward pass is the model's own, with its fused kernels. Attention weights are computed afterwards, from queries and keys
made again from the recorded inputs: only the rows that a method needs, and some rows at a time.
"""

# B batch · h heads · Q queries · N tokens · D width · K classes

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.explain.inputs import Query, Scene, Target
from vitrail.models.attention import Attended, attention_weights
from vitrail.models.backbone import Backbone, Context
from vitrail.models.vit import Block

CHUNK_BYTES = 64e6
"""Attention weights in memory at a time, in bytes."""


# --------------------------------------------------------------------------------------------------------------------
# Forward


class QueriesAndKeys(NamedTuple):
    """One layer's queries, keys and bias: every row of its attention weights is made of them."""

    queries: Float[Tensor, "B h Q d"]
    keys: Float[Tensor, "B h N d"]
    bias: Float[Tensor, "*B h Q N"] | None
    """Bias of the scores (`Backbone.score_bias`)."""


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One pass through a model's blocks."""

    scene: Scene
    inputs: dict[int, Float[Tensor, "B N D"]]
    """The tokens before each recorded layer."""
    last: Float[Tensor, "B N D"]
    """The tokens where the pass ended."""
    context: Context
    """Second input of the blocks (`Backbone.valid_tokens`)."""

    @property
    def mask(self) -> Tensor | None:
        """(B, N), true where a token is there; None: everywhere."""
        return self.scene.model.valid_tokens(self.context)

    @torch.no_grad()
    def queries_and_keys(self, layer: int) -> QueriesAndKeys:
        """Compute the queries and keys of a recorded layer again; kept during the pass, they would be its largest tensors."""
        block = cast(Block, self.scene.vit.blocks[layer])
        queries, keys, _ = block.queries_keys_values(self.inputs[layer], self.context)
        return QueriesAndKeys(queries, keys, self.scene.model.score_bias(layer, self.context))


def embed(scene: Scene) -> tuple[Float[Tensor, "B N D"], Context]:
    """Return the tokens before the first block, and the context of the blocks."""
    return scene.vit.embed(scene.images, pad=False, sizes=scene.sizes, patch_size=scene.patch)


@torch.no_grad()
def forward_pass(scene: Scene, *, layers: Collection[int] = (), to_the_end: bool = True) -> ForwardPass:
    """Run the blocks and record the input of some layers; not `to_the_end`, stop where the last of them begins."""
    x, context = embed(scene)
    inputs = {}
    for index, block in enumerate(scene.vit.blocks):
        if index in layers:
            inputs[index] = x
        if not to_the_end and index >= max(layers, default=0):
            break
        x = block.forward(x, context)  # not block(): a compiled one would be compiled again for this size
    return ForwardPass(scene, inputs, x, context)


def attention_rows(attended: QueriesAndKeys | Attended, rows: Tensor | slice, mask: Tensor | None) -> Float[Tensor, "B h Q N"]:
    """Return the attention weights of some queries, in float32."""
    bias = None if attended.bias is None else attended.bias[..., rows, :].float()
    return attention_weights(attended.queries[:, :, rows].float(), attended.keys.float(), mask, bias)


def query_chunks(attended: QueriesAndKeys | Attended) -> Iterator[slice]:
    """Yield all queries of a layer, as many at a time as `CHUNK_BYTES` holds weights of."""
    batch, heads, queries, _ = attended.queries.shape
    step = max(1, int(CHUNK_BYTES / (4 * batch * heads * attended.keys.shape[2])))
    return (slice(start, min(start + step, queries)) for start in range(0, queries, step))


@torch.no_grad()
def head_reading(forward: ForwardPass) -> tuple[Float[Tensor, "B N"], str]:
    """Return how much the head reads of each token behind the last block, a row that sums to one; and a note."""
    model, (batch, tokens) = forward.scene.vit, forward.last.shape[:2]
    cfg, rows = model.config, torch.zeros(batch, tokens, device=forward.last.device)
    start = 0 if cfg.pool_include_prefix else model.prefix_tokens
    mask = torch.ones_like(rows) if forward.mask is None else forward.mask.to(rows.dtype)
    mean = mask.clone()
    mean[:, :start] = 0
    mean /= mean.sum(dim=1, keepdim=True)
    if model.attn_pool is not None:
        kept: list[Attended] = []
        model.pool(model.norm(forward.last), forward.context, kept)
        pooled_mask = None if forward.mask is None else forward.mask[:, start:]
        rows[:, start:] = attention_rows(kept[0], slice(None), pooled_mask).mean(dim=1)[:, 0]
        return rows, "no class token: tokens weigh what attention pooling gives them, the mean of its heads"
    if cfg.pool == "avg":
        rows, note = mean, "no class token is read: the mean over the tokens that the head averages"
    elif cfg.pool == "cls+avg":
        rows[:, 0] = 0.5
        rows, note = rows + mean / 2, "the head reads the class token and the mean of the patches: half of each"
    else:
        rows[:, 0], note = 1.0, ""
    if model.head_dist is not None:
        rows = rows / 2
        rows[:, 1] += 0.5
        note = "the head reads the class token and the distillation token: half of each"
    return rows, note


def query_row(forward: ForwardPass, query: Query) -> tuple[Float[Tensor, "B N"], str]:
    """Return the weight of each token in a query, a row that sums to one; and a note. "cls" is what the head reads."""
    if query == "cls":
        return head_reading(forward)
    row = torch.zeros(forward.last.shape[:2], device=forward.last.device)
    row[:, forward.scene.token(query)] = 1.0
    return row, ""


# --------------------------------------------------------------------------------------------------------------------
# Backward


@dataclass(frozen=True, eq=False)
class BlockGradient:
    """One layer in the backward pass from a class's logit."""

    layer: int
    attended: Attended
    out_grad: Float[Tensor, "B h N d"]
    """Gradient of the logit at the output of attention, before its projection."""
    tokens_grad: Float[Tensor, "B N D"]
    """Gradient of the logit at the tokens that attention takes."""


def backward_pass(forward: ForwardPass, grad: Float[Tensor, "B N D"]) -> Iterator[BlockGradient]:
    """Yield gradients from the last layer to the first recorded one, given the logit's gradient behind the last block.

    Each block is run again with its graph, which is freed before the next: the memory is one block's. Every layer from the
    first recorded one on must be recorded.
    """
    blocks = forward.scene.vit.blocks
    for layer in sorted(forward.inputs, reverse=True):
        with torch.enable_grad():
            x = forward.inputs[layer].detach().requires_grad_()
            kept: list[Attended] = []
            out = blocks[layer].forward(x, forward.context, kept)
            grad, out_grad, tokens_grad = torch.autograd.grad(out, [x, kept[0].out, kept[0].tokens], grad)
        attended = _detached(kept[0])
        del out, kept
        yield BlockGradient(layer, attended, out_grad, tokens_grad)


def _detached(attended: Attended) -> Attended:
    return Attended(*(None if tensor is None else tensor.detach() for tensor in attended))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class ClassGradient:
    """The head's output on the tokens behind the last block, and its gradient."""

    targets: Int64[Tensor, " B"]
    """Target class of each image."""
    logits: Float[Tensor, "B K"]
    grad: Float[Tensor, "B N D"]
    """Gradient of the target's logit at those tokens."""
    pooled: tuple[Attended, Tensor] | None
    """Input and output of attention pooling, and the gradient at the output; None where the model has none."""


def class_gradient(forward: ForwardPass, target: Target) -> ClassGradient:
    """Run the head and return logits, target class, and the gradient of its logit."""
    scene = forward.scene
    with torch.enable_grad():
        x = forward.last.detach().requires_grad_()
        kept: list[Attended] = []
        logits = scene.vit.read(x, forward.context, kept)
        targets = scene.targets(target, logits.detach().float())
        target_logits = logits.gather(1, targets[:, None]).sum()
        grad, *pool_grad = torch.autograd.grad(target_logits, [x, *(pooling.out for pooling in kept)])
    pooled = (_detached(kept[0]), pool_grad[0]) if kept else None
    return ClassGradient(targets, logits.detach().float(), grad, pooled)


def class_labels(scene: Scene, logits: Float[Tensor, "B K"], targets: Int64[Tensor, " B"]) -> tuple[str, ...]:
    """Return the name of each image's target class and its probability."""
    probabilities = logits.sigmoid() if scene.model.multi_label else logits.softmax(dim=1)
    pairs = zip(targets.tolist(), probabilities.gather(1, targets[:, None])[:, 0].tolist(), strict=True)
    return tuple(f"{scene.class_name(number)} ({value:.1%})" for number, value in pairs)


# --------------------------------------------------------------------------------------------------------------------
# Norms with a constant scale


@contextmanager
def held_norms(model: Backbone, *, hold: bool = True) -> Iterator[None]:
    """Within the context, and with `hold`, gradients take the scale of every norm of tokens for a constant.

    The LayerNorm rule of Ali et al. 2022 (XAI for Transformers: Better Explanations through Conservative Propagation). The
    true gradient has nothing along a token's own direction: what made the token what it is, and would make more of it, gets
    none. Norms of queries and keys keep theirs: they decide where a token looks, not what it holds.
    """
    with ExitStack() as hooks:
        for name, norm in model.named_modules():
            if hold and isinstance(norm, nn.LayerNorm | nn.RMSNorm) and not name.endswith(("q_norm", "k_norm")):
                hooks.enter_context(norm.register_forward_hook(_constant_scale))
        yield


def held_note(hold: bool) -> str:
    """Return the note on a map whose gradient is not the model's own."""
    return "the scales of the tokens' norms are held (Ali et al. 2022)" if hold else ""


def _constant_scale(norm: nn.LayerNorm | nn.RMSNorm, args: tuple[Tensor], output: Tensor) -> Tensor:
    """Return the output of a norm with the gradient of (x - mean) · weight / scale at a constant scale; RMSNorm has no mean."""
    if not torch.is_grad_enabled():
        return output
    x = args[0].to(torch.promote_types(output.dtype, torch.float32))
    centred = x - x.mean(dim=-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    scaled = centred * (centred.detach().square().mean(dim=-1, keepdim=True) + (norm.eps or 0.0)).rsqrt() * norm.weight
    return (scaled + norm.bias if isinstance(norm, nn.LayerNorm) else scaled).to(output.dtype)
