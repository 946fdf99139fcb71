"""Backbone interface: features, logits, and the stages that freezing and layer decay act on.

A family of models is one file with a config dataclass and a `Backbone`, a row of `settings.families.FAMILIES` and one of
`models.families.BUILDERS`. Nothing outside its file asks which family a model is of.
"""

# B batch · C channels · H W image · N tokens (prefix + patches) · D width · E width of the pooled embedding · K classes

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from vitrail.models.attention import Attended, Mask, Tokens
from vitrail.models.card import Card
from vitrail.models.packing import packed_logits
from vitrail.models.receipt import Receipt
from vitrail.settings import Pair, Preprocessing

Images = Float[Tensor, "B C H W"]
Logits = Float[Tensor, "B K"]
Context = Any
"""Second input of the blocks, as `embed` returns it: mask, rotations, bias. See `Backbone.valid_tokens`."""
Model = TypeVar("Model", bound=nn.Module)


class MaskedPatches(NamedTuple):
    """Patches whose embedding is replaced by a mask token, before positions are added."""

    mask: Bool[Tensor, "B L"]
    """True for the patches that are masked, row by row, of the grid of `Backbone.stem_tokens`."""
    token: Float[Tensor, " D"]
    """Mask token, of the width of `Backbone.stem_tokens`."""

    def put(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Return the patch embeddings with the mask token in its places."""
        return torch.where(self.mask[..., None], self.token.to(x.dtype), x)


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """Options of one forward pass. A backbone raises ValueError for an option that it does not support."""

    pad: bool = False
    """Pad a side that the patch does not divide with zeros, on the right and below."""
    sizes: Int64[Tensor, "B 2"] | None = None
    """Height and width of each image, in pixels, in the upper left corner of its canvas; None: the whole canvas."""
    patch_size: int | Pair | None = None
    """Patch of this call; None is the model's own."""
    visible: Int64[Tensor, "B L"] | None = None
    """Row-major indices of the visible patches; None: all. Hidden patches are not computed."""
    masked: MaskedPatches | None = None
    """Patches that a mask token stands for; None: no patch is masked."""
    blocks: tuple[int, ...] | None = None
    """Blocks whose outputs are the maps of `Features.pyramid`, in this order; negative ones count from the end. None: the
    backbone's own maps."""

    @property
    def whole(self) -> bool:
        """True for a pass over whole images with all patches at the model's own size, and its own maps."""
        options = (self.sizes, self.patch_size, self.visible, self.masked, self.blocks)
        return all(option is None for option in options) and not self.pad


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Outputs of a backbone before its head."""

    pooled: Float[Tensor, "B E"]
    """Pooled embedding, the input of the head."""
    tokens: Float[Tensor, "B N D"] | None = None
    """Tokens after the last norm: prefix tokens, then patches row by row (in the order of `View.visible`); None: no tokens."""
    prefix: int = 0
    """Number of prefix tokens, which come before the patches."""
    grid: Pair | None = None
    """Patch rows and columns of the whole image; None without tokens."""
    pyramid: tuple[Float[Tensor, "B _C _h _w"], ...] | None = None
    """Feature maps from fine to coarse, or those of `View.blocks`, each row by row; None where there are none, as with hidden
    patches. Of a backbone of one resolution there is one map: its patch tokens. Gradients of the logits reach them where
    `pooled` is computed from them, except the maps of `View.blocks`."""
    read: Float[Tensor, "B N D"] | None = None
    """Tokens that the last block reads, where the head reads none of its patches, so that no gradient reaches `tokens` and
    the last map; None elsewhere."""
    stride: Pair | None = None
    """Pixels from one cell of the last map to the next, down and across; None: the sides divided by each other."""


class Stage(NamedTuple):
    """Part of a backbone, in forward order: the unit of freezing and layer decay."""

    name: str
    """Name, such as "stem", "blocks.3", "layers.2.blocks.0" or "head"."""
    paths: tuple[str, ...]
    """Paths of the modules and parameters in it, relative to the backbone."""
    block: nn.Module | None = None
    """Repeated block, if the stage is one: the unit of compilation, sharding, recomputation and Muon."""

    def owns(self, parameter: str) -> bool:
        """Return whether the parameter of this name belongs to the stage."""
        return any(parameter == path or parameter.startswith(f"{path}.") for path in self.paths)


@runtime_checkable
class HalvedBlock(Protocol):
    """Block of global attention whose halves can be called one by one, so that tokens can be merged between them."""

    def add_attention(self, x: Tokens, mask: Mask | None = None, kept: list[Attended] | None = None) -> Tokens:
        """Add the attention of the tokens; `kept` collects its inputs and output."""

    def add_mlp(self, x: Tokens) -> Tokens:
        """Add the MLP of each token."""


def on_meta(build: Callable[[], Model]) -> Model:
    """Build a model on the meta device, without memory for its weights: names, shapes, stages and cost can be inspected."""
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # torchvision's RegNet computes its widths with tensors
        return build().to("meta")


class Backbone(nn.Module):
    """Image model with features, and logits if it has a head."""

    config: Any
    """The family's frozen config dataclass. It has `img_size`, `in_channels` and `num_classes`."""
    card: Card = Card()
    """Metadata of the weights: preprocessing, classes, task, receipt. The four properties below read it."""
    checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    no_decay: frozenset[str] = frozenset()
    """Parameters with two or more dimensions that have no weight decay and are no matrices: tokens, positions, bias tables."""
    heads: tuple[str, ...] = ("head",)
    """Paths of the modules that a new set of classes replaces; the logits are the mean of their outputs."""
    global_attention: bool = False
    """True if all tokens attend to each other in every block, and the pass is `embed`, `blocks` and `read`, as in ViT:
    `embed` returns tokens and a context, and blocks have `forward(x, context, kept)` and `queries_keys_values(x, context)`."""
    pairwise_context: bool = False
    """True if the context has numbers for pairs of tokens, such as relative positions: images can't be packed then."""
    any_size_in_graph: bool = False
    """True if a traced graph of the model takes images of any size that `side_unit` divides."""
    class_attention_layers: int = 0
    """Number of layers whose class token's attention `class_attention` returns; then the first prefix token is that one."""
    stems: tuple[str, ...] = ()
    """Paths of the convolutions that take the images; a new number of channels adapts their weights."""

    @abstractmethod
    def features(self, images: Images, view: View = View()) -> Features:
        """Return the pooled embedding, and the tokens or feature maps that it is computed from."""

    @abstractmethod
    def head_logits(self, images: Images, *, patch_size: int | Pair | None = None) -> tuple[Logits, ...]:
        """Return the logits of each head of `heads`, in order."""

    @abstractmethod
    def stages(self) -> list[Stage]:
        """Return the stages from images to logits. Every parameter belongs to exactly one."""

    @abstractmethod
    def reset_head(self, num_classes: int) -> None:
        """Replace the head with a new one of `num_classes` outputs; 0 removes it, and the logits are the embedding."""

    def class_attention(self, images: Images) -> tuple[Float[Tensor, "B h N"], ...]:
        """Return the class token's attention weights on the tokens of `features`, layer by layer; each row sums to 1."""
        raise ValueError(f"{type(self).__name__} has no class attention; use a ViT")

    @property
    def preprocessing(self) -> Preprocessing | None:
        """Image preprocessing of the model (`card.preprocessing`)."""
        return self.card.preprocessing

    @preprocessing.setter
    def preprocessing(self, preprocessing: Preprocessing | None) -> None:
        self.card = replace(self.card, preprocessing=preprocessing)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes (`card.classes`)."""
        return self.card.classes

    @classes.setter
    def classes(self, classes: tuple[str, ...]) -> None:
        self.card = replace(self.card, classes=classes)

    @property
    def multi_label(self) -> bool:
        """True if an image may have any number of the classes (`card.task`)."""
        return self.card.task == "multi-label"

    @multi_label.setter
    def multi_label(self, multi_label: bool) -> None:
        self.card = replace(self.card, task="multi-label" if multi_label else "classify")

    @property
    def receipt(self) -> Receipt | None:
        """Status of every tensor of the loaded checkpoint (`card.receipt`)."""
        return self.card.receipt

    @receipt.setter
    def receipt(self, receipt: Receipt | None) -> None:
        self.card = replace(self.card, receipt=receipt)

    @property
    @abstractmethod
    def side_unit(self) -> Pair:
        """Height and width that image sides must be multiples of, in pixels; (1, 1) if every size is valid."""

    def stem_tokens(self, img_size: Pair) -> tuple[Pair, int]:
        """Return grid and width of the patch embeddings that `View.masked` replaces, for images of a size.

        Raises ValueError for a backbone without them.
        """
        raise ValueError(f"{type(self).__name__} has no patches that a mask token can stand for; use a ViT or a Swin")

    def check_channels(self, images: Images) -> None:
        """Raise ValueError for images with another number of channels than the model takes."""
        if images.shape[1] != self.config.in_channels:
            takes = self.config.in_channels
            raise ValueError(f"images have {images.shape[1]} channels, and the model takes {takes}; convert the images")

    def check_patch(self, patch: Pair) -> None:
        """Raise ValueError if `View.patch_size` can't be this patch. A backbone that resizes patches overrides this method."""
        raise ValueError(f"train.patch_sizes are for a ViT, and {type(self).__name__} has patches of its own; leave them out")

    def mergeable_blocks(self) -> list[HalvedBlock]:
        """Return the blocks, for a model whose tokens can be merged; then its `read` takes the sizes of tokens as the context.

        Raises ValueError for any other.
        """
        raise ValueError(
            f"{type(self).__name__} has no plain blocks, whose tokens can be merged; use a ViT, or leave merging out"
        )

    def valid_tokens(self, context: Context) -> Bool[Tensor, "B N"] | Float[Tensor, "B N"] | None:
        """Return the mask of valid tokens in the context of a pass with global attention; None: all are valid.

        Of merged tokens it is their sizes (`models.merging`).
        """
        return context

    def score_bias(self, layer: int, context: Context) -> Float[Tensor, "*B h N N"] | None:
        """Return the bias that a layer of global attention adds to its scores q kᵀ / √d; None where it adds none."""
        return None

    def attention_heads(self) -> int:
        """Return the number of attention maps in a block of global attention."""
        return int(self.config.num_heads)

    def context_tensors(self, context: Context) -> tuple[Float[Tensor, "b *_ N d"], ...]:
        """Return the tensors of a context that have a row for each token, such as rotations; b is 1 where images share them."""
        return ()

    def make_context(self, mask: Any, tensors: Sequence[Tensor]) -> Context:
        """Return the context of a mask and of tensors such as `context_tensors` returns."""
        return mask

    def stored(self) -> nn.Module:
        """Return the module whose state dict a checkpoint file holds."""
        return self

    def embedding(self, images: Images) -> Float[Tensor, "B E"]:
        """Return the inputs of the heads, concatenated if they differ."""
        return self.features(images).pooled

    def packed_logits(self, images: Images, sizes: Sequence[Pair]) -> Logits:
        """Return logits of images of many sizes, each in the upper left corner of its canvas, as `models.packing` does."""
        return packed_logits(self, images, sizes)

    def blocks_in_order(self) -> list[nn.Module]:
        """Return the repeated blocks, the units of compilation and sharding."""
        return [stage.block for stage in self.stages() if stage.block is not None]

    def head_modules(self) -> Iterator[nn.Module]:
        """Iterate over the modules of `heads`."""
        return (self.get_submodule(path) for path in self.heads)
