"""Dense features of a token model: its patch tokens as feature maps, behind the last block or behind several."""

# B batch · N tokens (prefix + patches) · L patches = gh gw · D width

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.settings import Pair

Tokens = Float[Tensor, "B N D"]
Map = Float[Tensor, "B D gh gw"]


class BlockTokens(list[Tensor]):
    """Tokens behind the blocks of `View.blocks`: takes those of every block in order, and keeps the chosen ones."""

    def __init__(self, blocks: Sequence[int], depth: int) -> None:
        """Raise ValueError for a block that does not exist; negative ones count from the end."""
        super().__init__()
        if wrong := [block for block in blocks if not -depth <= block < depth]:
            raise ValueError(f"block {wrong[0]} does not exist; this model has blocks 0 to {depth - 1} (or -{depth} to -1)")
        self.blocks = [block % depth for block in blocks]
        self.passed = 0

    def append(self, tokens: Tensor) -> None:
        """Take the tokens behind the next block."""
        if self.passed in self.blocks:
            super().append(tokens)
        self.passed += 1

    def chosen(self) -> list[Tensor]:
        """Return the tokens in the order of `View.blocks`."""
        kept = dict(zip(sorted(set(self.blocks)), self, strict=True))
        return [kept[block] for block in self.blocks]


def block_tokens(blocks: Sequence[int] | None, depth: int) -> BlockTokens | None:
    """Return what keeps the tokens of the blocks; None where none are asked for."""
    return None if blocks is None else BlockTokens(blocks, depth)


def begun_grid(images: Float[Tensor, "B C H W"], patch: Pair) -> Pair:
    """Return the rows and columns of patches; one that is begun counts, as with `View.pad`."""
    return -(-images.shape[-2] // patch[0]), -(-images.shape[-1] // patch[1])


def tokens_and_maps(
    tokens: Tokens,
    blocks: BlockTokens | None,
    *,
    norm: Callable[[Tensor], Tensor],
    prefix: int,
    grid: Pair,
    whole: bool = True,
) -> tuple[Tokens, tuple[Map, ...] | None]:
    """Return the tokens after the last norm, and the maps of `Features.pyramid`.

    Without `blocks` there is one map, and with gradients on the tokens are made of it: gradients of whatever is computed from
    them reach the map. With `blocks`, a map for each, after `norm`, beside the way to the output. None where patches are
    hidden: not `whole`, or dropped in training. Raises ValueError for `blocks` there.
    """
    if not whole or tokens.shape[1] != prefix + grid[0] * grid[1]:
        if blocks is not None:
            raise ValueError("View.blocks are maps of all patches, and some are hidden here; leave them out, or hide none")
        return tokens, None
    if blocks is not None:
        return tokens, tuple(patch_map(norm(kept), prefix=prefix, grid=grid) for kept in blocks.chosen())
    last = patch_map(tokens, prefix=prefix, grid=grid)
    if torch.is_grad_enabled():
        patches = last.flatten(2).mT  # (B, L, D): the same memory, behind the map for gradients
        tokens = torch.cat([tokens[:, :prefix], patches], dim=1) if prefix else patches
    return tokens, (last,)


def patch_map(tokens: Tokens, *, prefix: int, grid: Pair) -> Map:
    """Return the patch tokens as a feature map (B, D, gh, gw), without a copy."""
    return tokens[:, prefix:].mT.unflatten(2, grid)
