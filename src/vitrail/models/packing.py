"""Images of many sizes in one pass, each computed as it would be alone (NaViT: Dehghani et al. 2023).

Tokens are embedded size by size. On a GPU all images then stand in one sequence, and attention is block-diagonal. On a CPU
images of nearly equal length form buckets, whose few padding tokens are masked.
"""

# B batch · C channels · H W canvas · n tokens of an image · N tokens of a bucket or sequence · D width · h heads · d = D / h
# K classes

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from vitrail.settings import Pair

if TYPE_CHECKING:
    from vitrail.models.backbone import Backbone

PADDING = 0.1
"""Largest share of padding tokens in a bucket of a CPU (benchmarks/packing.py)."""
TILE = 128
"""FlexAttention computes tiles of this many queries and keys; a sequence is padded to a multiple."""


@dataclass(frozen=True, eq=False)
class BlockDiagonal:
    """Mask of a sequence of several images: a token attends to those of its own image."""

    image: Int64[Tensor, " N"]
    """Number of the image of each token; padding has a number of its own."""

    @functools.cached_property
    def blocks(self) -> Any:
        """FlexAttention's mask, which is the same for all layers."""
        from torch.nn.attention.flex_attention import create_block_mask  # takes a while to import

        image, count = self.image, len(self.image)
        return create_block_mask(lambda b, h, q, k: image[q] == image[k], None, None, count, count, device=image.device)

    def attend(
        self, q: Float[Tensor, "1 h N d"], k: Float[Tensor, "1 h N d"], v: Float[Tensor, "1 h N d"]
    ) -> Float[Tensor, "1 h N d"]:
        """Compute softmax(q kᵀ / √d) v within each image."""
        return _flex_attention(q.is_cuda)(q, k, v, block_mask=self.blocks)


@functools.cache
def _flex_attention(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention  # type: ignore[return-value]


# --------------------------------------------------------------------------------------------------------------------
# Images


def pack_images(images: Sequence[Float[Tensor, "C _h _w"]]) -> tuple[Float[Tensor, "B C H W"], tuple[Pair, ...]]:
    """Place images of many sizes on canvases of one: the upper left corner is the image. Return canvases and sizes."""
    sizes = tuple((image.shape[1], image.shape[2]) for image in images)
    height, width = (max(side) for side in zip(*sizes, strict=True))
    canvas = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for row, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        canvas[row, :, :h, :w] = image
    return canvas, sizes


def require_packable(model: Backbone) -> None:
    """Raise ValueError for a model whose blocks don't see all tokens or see pairs of them, or that has several heads."""
    if model.pairwise_context:
        raise ValueError(f"{type(model).__name__} has a bias for pairs of tokens, so images can't be packed; use a plain ViT")
    if not model.global_attention or len(model.heads) > 1:
        name = type(model).__name__
        raise ValueError(f"{name}'s images can't be packed: it needs attention over all tokens and one head; use a plain ViT")


def packed_logits(model: Backbone, images: Float[Tensor, "B C H W"], sizes: Sequence[Pair]) -> Float[Tensor, "B K"]:
    """Return logits of images in the upper left corner of their canvases, each as its logits alone are.

    `sizes` are heights and widths in pixels, multiples of the patch. `patch_drop_rate` drops patches of each image before the
    packing. Raises ValueError for a model whose blocks don't see all tokens, and for one size too few or too many.
    """
    require_packable(model)
    if len(sizes) != len(images):
        raise ValueError(f"{len(sizes)} sizes for {len(images)} images; give the height and width of each")
    packed = embed_by_size(model, images, sizes)
    if images.is_cuda and not (model.training and model.config.attn_drop_rate):  # FlexAttention has no dropout
        return model.read(*_one_sequence(model, packed))  # type: ignore[operator]
    order, logits = list[int](), list[Tensor]()
    for rows in buckets([len(image.tokens) for image in packed]):
        x, context = _bucket(model, [packed[row] for row in rows])
        logits.append(model.read(_through_blocks(model, x, context), context))  # type: ignore[operator]
        order += rows
    place = torch.tensor(order).argsort()
    return torch.cat(logits)[place.to(images.device, non_blocking=True)]


class Embedded(NamedTuple):
    """One image before the first block."""

    tokens: Float[Tensor, "n D"]
    context: tuple[Float[Tensor, "*_ n d"], ...]
    """Its rows of `Backbone.context_tensors`."""


def embed_by_size(model: Backbone, images: Float[Tensor, "B C H W"], sizes: Sequence[Pair]) -> list[Embedded]:
    """Embed each image, with the positions of its own size."""
    packed = list[Embedded]()
    for (height, width), run in itertools.groupby(sizes):  # images in a row of one size
        part = images[len(packed) :][: len(list(run)), :, :height, :width]
        x, context = model.embed(part, pad=False, sizes=None)  # type: ignore[operator]
        tensors = [tensor.expand(len(x), *tensor.shape[1:]) for tensor in model.context_tensors(context)]
        packed += [Embedded(one, tuple(tensor[row] for tensor in tensors)) for row, one in enumerate(x.unbind(0))]
    return packed


# --------------------------------------------------------------------------------------------------------------------
# Sequences


def buckets(lengths: Sequence[int], padding: float = PADDING) -> list[list[int]]:
    """Divide images into groups of similar length, the longest first, with at most a share of `padding` in each."""
    groups: list[list[int]] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and tokens + lengths[row] >= (1 - padding) * longest * (len(groups[-1]) + 1):
            groups[-1].append(row)
            tokens += lengths[row]
        else:
            groups.append([row])
            tokens = lengths[row]
    return groups


def padded(tokens: list[Float[Tensor, "_n D"]]) -> tuple[Float[Tensor, "b N D"], Bool[Tensor, "b N"] | None]:
    """Stack the tokens of images of similar length; the mask is True where there is a token, None if all are equal."""
    lengths = [len(one) for one in tokens]
    if min(lengths) == max(lengths):
        return torch.stack(tokens), None
    places = torch.arange(max(lengths), device=tokens[0].device)
    counts = torch.tensor(lengths).to(places.device, non_blocking=True)
    return pad_sequence(tokens, batch_first=True), places < counts[:, None]


def _bucket(model: Backbone, images: list[Embedded]) -> tuple[Tensor, Any]:
    """Stack images of similar length; return their tokens and context."""
    x, mask = padded([image.tokens for image in images])
    rows = [pad_sequence([one.movedim(-2, 0) for one in kind], batch_first=True) for kind in _by_kind(images)]
    return x, model.make_context(mask, [row.movedim(1, -2) for row in rows])


def _one_sequence(model: Backbone, images: list[Embedded]) -> tuple[Tensor, Any]:
    """Compute all images in one sequence. Return their tokens after the last block, padded to one length, and the context."""
    lengths, device = torch.tensor([len(image.tokens) for image in images]), images[0].tokens.device
    spare = -int(lengths.sum()) % TILE
    number = torch.arange(len(images) + 1).repeat_interleave(torch.cat([lengths, torch.tensor([spare])]))
    x = F.pad(torch.cat([image.tokens for image in images]), (0, 0, 0, spare))[None]  # (1, N, D)
    tensors = [F.pad(torch.cat(kind, dim=-2), (0, 0, 0, spare))[None] for kind in _by_kind(images)]
    mask = BlockDiagonal(number.to(device, non_blocking=True))
    x = _through_blocks(model, x, model.make_context(mask, tensors))
    x, valid = padded(list(x[0, : x.shape[1] - spare].split(lengths.tolist())))
    return x, model.make_context(valid, [])


def _by_kind(images: list[Embedded]) -> list[list[Tensor]]:
    """Return the tensors of the images' contexts, kind by kind."""
    return [list(kind) for kind in zip(*(image.context for image in images), strict=True)]


def _through_blocks(model: Backbone, x: Tensor, context: Any) -> Tensor:
    for block in model.blocks:  # type: ignore[union-attr]
        recompute = model.checkpointing and model.training
        x = checkpoint(block, x, context, use_reentrant=False) if recompute else block(x, context)
    return x
