"""The contract of a backbone: images to features and logits, and the stages that training acts on.

A family of models is one file with a config dataclass and a `Backbone`, a row of `settings.families.FAMILIES` and one of
`models.families.BUILDERS`. Nothing outside its file asks which family a model is of.
"""

# B batch · C channels · H W image · N tokens (prefix + patches) · D width · E width of the pooled embedding · K classes

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor, nn

from vitrail.models.card import Card
from vitrail.models.receipt import Receipt
from vitrail.settings import Pair, Preprocessing

Images = Float[Tensor, "B C H W"]
Logits = Float[Tensor, "B K"]


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """How one call looks at its images. A backbone raises ValueError for a view that it does not have."""

    pad: bool = False
    """Pad a side that the patch does not divide with zeros, on the right and below."""
    sizes: Int64[Tensor, "B 2"] | None = None
    """Height and width of each image, in pixels, in the upper left corner of its canvas; None: the whole canvas."""
    patch_size: int | Pair | None = None
    """Patch of this call; None is the model's own."""
    visible: Int64[Tensor, "B L"] | None = None
    """Positions, row by row, of the patches that the backbone sees; None: all. What is hidden is never computed."""

    @property
    def whole(self) -> bool:
        """Whether it looks at whole images, with all of the model's own patches."""
        return not self.pad and self.sizes is None and self.patch_size is None and self.visible is None


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What a backbone makes of images, before its head."""

    pooled: Float[Tensor, "B E"]
    """The embedding that the head sees."""
    tokens: Float[Tensor, "B N D"] | None = None
    """After the last norm: prefix tokens, then patches row by row (with `View.visible`, in its order); None: no tokens."""
    prefix: int = 0
    """Tokens before the patches."""
    grid: Pair | None = None
    """Patches down and across, of the whole image; None without tokens."""
    pyramid: tuple[Float[Tensor, "B _C _h _w"], ...] | None = None
    """Feature maps from fine to coarse; None where there are none. Gradients of the logits reach them where `pooled` is
    computed from them."""


class Stage(NamedTuple):
    """A part of a backbone, in the order of the forward pass: what freezing and layer decay count."""

    name: str
    """"stem", "blocks.3", "layers.2.blocks.0", "head"."""
    paths: tuple[str, ...]
    """Paths of the modules and parameters in it, relative to the backbone."""
    block: nn.Module | None = None
    """Of a stage that is one repeated block: what is compiled, sharded and recomputed as a unit, and what Muon moves."""

    def owns(self, parameter: str) -> bool:
        """Whether a parameter of that name belongs to the stage."""
        return any(parameter == path or parameter.startswith(f"{path}.") for path in self.paths)


class Backbone(nn.Module):
    """A model of images: features, and logits where it has a head."""

    config: Any
    """The family's frozen config dataclass. It has `img_size`, `in_channels` and `num_classes`."""
    card: Card = Card()
    """What the weights know besides numbers: preprocessing, classes, task, receipt. The four below are read from it."""
    checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""
    no_decay: frozenset[str] = frozenset()
    """Parameters with two or more dimensions that have no weight decay and are no matrices: tokens, positions, bias tables."""
    heads: tuple[str, ...] = ("head",)
    """Paths of the modules that a new set of classes replaces. Their outputs, on average, are the logits."""
    global_attention: bool = False
    """Whether in every block all tokens attend to each other, and the pass can be made block by block: `embed`, `blocks` and
    `read`, as ViT has them."""
    stems: tuple[str, ...] = ()
    """Paths of the convolutions that see the images: other channels adapt their weights."""

    @abstractmethod
    def features(self, images: Images, view: View = View()) -> Features:
        """What the head sees, and the tokens or feature maps that it is made of."""

    @abstractmethod
    def head_logits(self, images: Images, *, patch_size: int | Pair | None = None) -> tuple[Logits, ...]:
        """Logits of each head of `heads`, in order."""

    @abstractmethod
    def stages(self) -> list[Stage]:
        """Parts from the images to the logits. Every parameter is in exactly one of them."""

    @abstractmethod
    def reset_head(self, num_classes: int) -> None:
        """Put a fresh head for `num_classes` outputs in place; 0 leaves it out, and the logits are the embedding."""

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What happens to an image before the model (`card.preprocessing`)."""
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
        """Whether an image may have any number of the classes (`card.task`)."""
        return self.card.task == "multi-label"

    @multi_label.setter
    def multi_label(self, multi_label: bool) -> None:
        self.card = replace(self.card, task="multi-label" if multi_label else "classify")

    @property
    def receipt(self) -> Receipt | None:
        """What became of every tensor of the checkpoint that the weights come from (`card.receipt`)."""
        return self.card.receipt

    @receipt.setter
    def receipt(self, receipt: Receipt | None) -> None:
        self.card = replace(self.card, receipt=receipt)

    @property
    @abstractmethod
    def side_unit(self) -> Pair:
        """Pixels that height and width are multiples of; (1, 1) for a model that takes any size."""

    def check_patch(self, patch: Pair) -> None:
        """Raise ValueError where `View.patch_size` can't be this patch. A backbone that resizes patches overrides it."""
        raise ValueError(f"train.patch_sizes are for a ViT, and {type(self).__name__} has patches of its own; leave them out")

    def stored(self) -> nn.Module:
        """The module whose state dict a checkpoint file holds."""
        return self

    def embedding(self, images: Images) -> Float[Tensor, "B E"]:
        """What the heads see, side by side where they see different things."""
        return self.features(images).pooled

    def blocks_in_order(self) -> list[nn.Module]:
        """The repeated blocks: what is compiled and sharded one by one."""
        return [stage.block for stage in self.stages() if stage.block is not None]

    def head_modules(self) -> Iterator[nn.Module]:
        """The modules of `heads`."""
        return (self.get_submodule(path) for path in self.heads)
