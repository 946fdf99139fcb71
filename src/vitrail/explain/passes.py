"""Through the blocks with open eyes: the tokens before every layer, and on the way back the gradient of a class.

The pass is the model's own, by its fast kernels. Weights of attention are computed afterwards, from queries and keys that are
made once more from the tokens: only the rows that somebody asks for, and a part of the rows at a time.
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

from vitrail.explain.inputs import Scene
from vitrail.models import ViT
from vitrail.models.vit import Attended, Block, attention_weights

CHUNK_BYTES = 64e6
"""Of attention weights that are in memory at a time."""


@dataclass(frozen=True, eq=False)
class Walk:
    """One pass through a model."""

    scene: Scene
    inputs: dict[int, Float[Tensor, "B N D"]]
    """The tokens before each layer asked for."""
    last: Float[Tensor, "B N D"]
    """The tokens where the pass ended."""
    mask: Tensor | None
    """(B, N), true where a token is there; None: everywhere."""

    @torch.no_grad()
    def asked(self, layer: int) -> Asked:
        """The queries and keys of a layer asked for, made once more: kept on the way, they would be its largest tensors."""
        block = cast(Block, self.scene.model.blocks[layer])
        queries, keys, _ = block.attn.queries_keys_values(block.norm1(self.inputs[layer]))
        return Asked(queries, keys)


class Asked(NamedTuple):
    """What any row of a layer's attention weights is made of."""

    queries: Float[Tensor, "B h Q d"]
    keys: Float[Tensor, "B h N d"]


@torch.no_grad()
def walk(scene: Scene, *, layers: Collection[int] = (), to_the_end: bool = True) -> Walk:
    """A pass that keeps the tokens before some layers; not `to_the_end`, it ends where the last of them begins."""
    x, mask = scene.embed()
    inputs = {}
    for index, block in enumerate(scene.model.blocks):
        if index in layers:
            inputs[index] = x
        if not to_the_end and index >= max(layers, default=0):
            break
        x = block.forward(x, mask)  # not block(): a compiled one would be compiled again for this size
    return Walk(scene, inputs, x, mask)


def weights(seen: Asked | Attended, rows: Tensor | slice, mask: Tensor | None) -> Float[Tensor, "B h Q N"]:
    """The attention weights of some queries, in float32."""
    return attention_weights(seen.queries[:, :, rows].float(), seen.keys.float(), mask)


def in_chunks(seen: Asked | Attended) -> Iterator[slice]:
    """All queries of a layer, some rows at a time."""
    batch, heads, queries, _ = seen.queries.shape
    step = max(1, int(CHUNK_BYTES / (4 * batch * heads * seen.keys.shape[2])))
    return (slice(start, min(start + step, queries)) for start in range(0, queries, step))


@contextmanager
def held_norms(model: ViT, *, hold: bool = True) -> Iterator[None]:
    """As long as this lasts, gradients take the scale of every norm of tokens for a constant, where that is asked for.

    The LayerNorm rule of Ali et al. 2022 (XAI for Transformers: Better Explanations through Conservative Propagation). The
    true gradient has nothing along a token's own direction: what made the token what it is, and would make more of it, gets
    none. Norms of queries and keys keep theirs: they are about where a token looks, not about what it holds.
    """
    with ExitStack() as hooks:
        for name, norm in model.named_modules():
            if hold and isinstance(norm, nn.LayerNorm) and not name.endswith(("q_norm", "k_norm")):
                hooks.enter_context(norm.register_forward_hook(with_held_scale))
        yield


def with_held_scale(norm: nn.LayerNorm, taken: tuple[Tensor], given: Tensor) -> Tensor:
    """What a norm gives, with the gradient of (x - mean) · weight / scale at a constant scale."""
    if not torch.is_grad_enabled():
        return given
    x = taken[0].to(torch.promote_types(given.dtype, torch.float32))
    centred = x - x.mean(dim=-1, keepdim=True)
    held = centred * (centred.detach().square().mean(dim=-1, keepdim=True) + norm.eps).rsqrt()
    return (held * norm.weight + norm.bias).to(given.dtype)


@dataclass(frozen=True, eq=False)
class Back:
    """One layer on the way back from a class's logit."""

    layer: int
    attended: Attended
    out_grad: Float[Tensor, "B h N d"]
    """The logit's gradient at what the attention gave, before its projection."""
    tokens_grad: Float[Tensor, "B N D"]
    """The logit's gradient at the tokens that the attention saw."""


def walk_back(there: Walk, grad: Float[Tensor, "B N D"]) -> Iterator[Back]:
    """From the last layer to the first of those asked for, given the logit's gradient behind the last block.

    Each block is computed once more with its graph, and forgotten before the next: the memory is one block's.
    """
    blocks = there.scene.model.blocks
    for layer in sorted(there.inputs, reverse=True):
        with torch.enable_grad():
            x = there.inputs[layer].detach().requires_grad_()
            kept: list[Attended] = []
            out = blocks[layer].forward(x, there.mask, kept)
            grad, out_grad, tokens_grad = torch.autograd.grad(out, [x, kept[0].out, kept[0].tokens], grad)
        seen = Attended(*(tensor.detach() for tensor in kept[0]))
        del out, kept
        yield Back(layer, seen, out_grad, tokens_grad)


@dataclass(frozen=True, eq=False)
class Decision:
    """What the head makes of the tokens behind the last block."""

    targets: Int64[Tensor, " B"]
    """The class that is meant, of each image."""
    logits: Float[Tensor, "B K"]
    grad: Float[Tensor, "B N D"]
    """The target's gradient at those tokens."""
    pooled: tuple[Attended, Tensor] | None
    """What attention pooling took and gave, and the gradient at what it gave; None where the model has none."""


def decide(there: Walk, target: object) -> Decision:
    """Logits, the class that is meant, and its gradient. Raises ValueError for a model without a head."""
    scene = there.scene
    if not scene.model.config.num_classes:
        raise ValueError("this model has no head, so there is no class to explain; rollout and attention need none")
    with torch.enable_grad():
        x = there.last.detach().requires_grad_()
        kept: list[Attended] = []
        logits = scene.model.read(x, there.mask, kept)
        targets = scene.targets(target, logits.detach().float())  # type: ignore[arg-type]
        meant = logits.gather(1, targets[:, None]).sum()
        grad, *pool_grad = torch.autograd.grad(meant, [x, *(seen.out for seen in kept)])
    pooled = (Attended(*(tensor.detach() for tensor in kept[0])), pool_grad[0]) if kept else None
    return Decision(targets, logits.detach().float(), grad, pooled)


@torch.no_grad()
def reader(there: Walk) -> tuple[Float[Tensor, "B N"], str]:
    """How much the head reads of each token behind the last block, a row that sums to one; and a note."""
    model, (batch, tokens) = there.scene.model, there.last.shape[:2]
    cfg, rows = model.config, torch.zeros(batch, tokens, device=there.last.device)
    start = 0 if cfg.pool_include_prefix else model.prefix_tokens
    here = torch.ones_like(rows) if there.mask is None else there.mask.to(rows.dtype)
    mean = here.clone()
    mean[:, :start] = 0
    mean /= mean.sum(dim=1, keepdim=True)
    if model.attn_pool is not None:
        kept: list[Attended] = []
        model.pool(model.norm(there.last), there.mask, kept)
        seen = None if there.mask is None else there.mask[:, start:]
        rows[:, start:] = weights(kept[0], slice(None), seen).mean(dim=1)[:, 0]
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
