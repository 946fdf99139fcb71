"""Token merging (ToMe: Bolya et al. 2023): every block merges the r pairs of patches that are most alike.

A model computes faster with it, without training, and a little less exactly. Between attention and MLP of a block the patches
are split into two sets in turns. Each patch of the first set looks for the one of the second with the most similar key, and the
r best pairs become one token each, their mean. In attention, and in the mean of all patches, a token counts as often as the
number of patches that it stands for.
"""

# B batch · C channels · H W image · N tokens (prefix + patches) · D width · h heads · d = D / h · E embedding · K classes
# a tokens of the first set · b of the second

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.models.attention import Attended, KeySizes, Tokens
from vitrail.models.backbone import Backbone, Features, Images, Logits, Stage, View
from vitrail.settings import Pair


class Pairs(NamedTuple):
    """Bipartite soft matching of the patches of each image."""

    rest: Int64[Tensor, "B _rest"]
    """Patches of the first set that are left, in order."""
    source: Int64[Tensor, "B r"]
    """Patches of the first set that are merged, the most similar first."""
    target: Int64[Tensor, "B r"]
    """Patch of the second set that each is merged into."""


def match(first: Float[Tensor, "B a d"], second: Float[Tensor, "B b d"], r: int) -> Pairs:
    """Match two sets of patches by the cosine similarity of their keys, and choose the r best pairs (appendix D)."""
    scores = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).transpose(1, 2)  # (B, a, b)
    similarity, best = scores.max(dim=-1)  # (B, a)
    order = similarity.argsort(dim=-1, descending=True)
    source, rest = order[:, :r], order[:, r:].sort(dim=-1).values
    return Pairs(rest, source, best.gather(1, source))


class MergeTokens(nn.Module):
    """Merge r pairs of patches by the similarity of their keys. `prefix` tokens stay as they are, in front."""

    def __init__(self, r: int, prefix: int) -> None:
        super().__init__()
        self.r, self.prefix = r, prefix

    def forward(
        self, x: Tokens, sizes: KeySizes | None, keys: Float[Tensor, "B h N d"]
    ) -> tuple[Float[Tensor, "B _M D"], Float[Tensor, "B _M"] | None]:
        """Return the tokens that remain: prefix, the first set's rest, the second set; and their sizes (None: all are 1)."""
        r = min(self.r, (x.shape[1] - self.prefix) // 2)
        if not r:
            return x, sizes
        sizes = x.new_ones(x.shape[:2]) if sizes is None else sizes
        prefix, offset = self.prefix, self.prefix % 2  # the sets alternate from the first token on, whatever is prefix
        first, second = slice(prefix + offset, None, 2), slice(prefix + 1 - offset, None, 2)
        alike = keys.mean(1)  # (B, N, d)
        pairs = match(alike[:, first], alike[:, second], r)

        x_first, x_second, size_first, size_second = x[:, first], x[:, second], sizes[:, first, None], sizes[:, second, None]
        x_source, size_source = rows_of(x_first, pairs.source), rows_of(size_first, pairs.source)  # (B, r, D), (B, r, 1)
        targets = torch.arange(x_second.shape[1], device=x.device)[:, None]
        into = (pairs.target[:, None] == targets).to(x.dtype)  # (B, b, r): a product with it is faster than a scattered sum
        size_merged = size_second + into @ size_source  # (B, b, 1)
        x_merged = (x_second * size_second + into @ (x_source * size_source)) / size_merged
        x = torch.cat([x[:, :prefix], rows_of(x_first, pairs.rest), x_merged], dim=1)
        sizes = torch.cat([sizes[:, :prefix], rows_of(size_first, pairs.rest)[..., 0], size_merged[..., 0]], dim=1)
        return x, sizes


def rows_of(x: Float[Tensor, "B a D"], index: Int64[Tensor, "B _r"]) -> Float[Tensor, "B _r D"]:
    """Return rows of each image, from one table of all images: other runtimes gather whole rows faster than elements."""
    start = torch.arange(x.shape[0], device=x.device)[:, None] * x.shape[1]  # no len(x), which an export would freeze
    return x.flatten(0, 1)[(index + start).flatten()].reshape(x.shape[0], index.shape[1], x.shape[2])


class MergedViT(Backbone):
    """A model whose blocks merge tokens, for inference; it shares weights and card with the model that it is made of.

    `r` patches are merged in each block, and at most half of those that are left. Raises ValueError for a model without plain
    blocks, and for a negative r.
    """

    def __init__(self, model: Backbone, r: int) -> None:
        super().__init__()
        if r < 0:
            raise ValueError(f"{r} merged tokens a block must be at least 0")
        blocks = model.mergeable_blocks()
        self.model, self.r = model, r
        self.merges = nn.ModuleList(MergeTokens(r, model.prefix_tokens) for _ in blocks)  # type: ignore[arg-type]
        self.config, self.card = model.config, model.card
        self.heads, self.stems = self.paths(model.heads), self.paths(model.stems)
        self.no_decay = frozenset(self.paths(model.no_decay))

    @staticmethod
    def paths(names: Iterable[str]) -> tuple[str, ...]:
        """Return the paths of the model's parts in this one."""
        return tuple(f"model.{name}" for name in names)

    def extra_repr(self) -> str:
        return f"r={self.r}"

    def forward(self, images: Images) -> Logits:
        """Return logits (B, K), or the embedding without a head."""
        logits: Tensor = self.model.read(*self.encode(images))  # type: ignore[operator]
        return logits

    def encode(self, images: Images) -> tuple[Tokens, KeySizes | None]:
        """Return the tokens that are left after the last block, before the norm, and their sizes."""
        x, _ = self.model.embed(images, pad=False, sizes=None)  # type: ignore[operator]
        sizes: Tensor | None = None
        for block, merge in zip(self.model.mergeable_blocks(), self.merges, strict=True):
            kept: list[Attended] = []
            x, sizes = merge(block.add_attention(x, sizes, kept), sizes, kept[0].keys)
            x = block.add_mlp(x)
        return x, sizes

    def features(self, images: Images, view: View = View()) -> Features:
        """Return the pooled embedding. Raises ValueError for other views than whole images: merged tokens have no place."""
        if not view.whole:
            raise ValueError("a model that merges tokens looks at whole images only; leave merging out")
        return Features(pooled=self.pooled_and_tokens(images)[0])

    def pooled_and_tokens(self, images: Images) -> tuple[Float[Tensor, "B E"], Tokens]:
        """Return the pooled embedding, and the tokens after the last norm."""
        x, sizes = self.encode(images)
        x = self.model.norm(x)  # type: ignore[operator]
        return self.model.pool(x, sizes), x  # type: ignore[operator]

    def head_logits(self, images: Images, *, patch_size: int | Pair | None = None) -> tuple[Logits, ...]:
        """Return the logits of each head."""
        if patch_size is not None:
            raise ValueError(f"a model that merges tokens has patches of its own, not of {patch_size}; leave merging out")
        logits: tuple[Tensor, ...] = self.model.apply_heads(*self.pooled_and_tokens(images))  # type: ignore[operator]
        return logits

    def stages(self) -> list[Stage]:
        """Return the model's stages."""
        return [Stage(name, self.paths(paths), block) for name, paths, block in self.model.stages()]

    def reset_head(self, num_classes: int) -> None:
        """Replace the head with a new one."""
        self.model.reset_head(num_classes)
        self.config = self.model.config

    @property
    def side_unit(self) -> Pair:
        """That of the model."""
        return self.model.side_unit

    def stored(self) -> nn.Module:
        """Return the model itself: merging has no weights."""
        return self.model.stored()
