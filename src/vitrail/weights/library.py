"""The record of one library: all that generic code needs to recognise, infer, preprocess and write its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from vitrail.models.backbone import Backbone
from vitrail.settings import Pair
from vitrail.weights.eval_transform import DefaultTransform, EvalTransform
from vitrail.weights.names import Form, KeyRow

Shapes = Mapping[str, tuple[int, ...]]
Config = Mapping[str, Any]
"""A JSON file beside the weights."""

ACTIVATIONS = {  # by their names in config files
    **dict.fromkeys(("gelu", "gelu_python"), "gelu"),
    **dict.fromkeys(("gelu_tanh", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu_tanh"),
    **dict.fromkeys(("quick_gelu", "quickgelu"), "quick_gelu"),
    "relu": "relu",
}


def activation(name: str) -> str:
    """Return our name of an activation. Raises ValueError for one that no plain ViT has."""
    if name not in ACTIVATIONS:
        raise ValueError(f'activation "{name}" is none of {", ".join(sorted(set(ACTIVATIONS.values())))}: not a plain ViT')
    return ACTIVATIONS[name]


def from_list(value: Any) -> Any:
    """Convert a list of JSON to a tuple."""
    return tuple(value) if isinstance(value, list) else value


# --------------------------------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True)
class Question:
    """A field of ViTConfig that neither tensors nor config determine."""

    field: str
    why: str
    answers: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.field} ({self.why}): give {' or '.join(f'{self.field}={answer!r}' for answer in self.answers)}"


class Evidence(NamedTuple):
    """Facts about the model in a file while its config is inferred."""

    shapes: Shapes
    """By our names."""
    fields: Mapping[str, Any]
    """Fields of ViTConfig inferred so far."""
    known: Mapping[str, Any]
    """Fields that the caller or config.json states."""
    config: Config
    """config.json, or {}."""


@dataclass(frozen=True)
class Layout:
    """One kind of plain-ViT checkpoint: its key names, and what the code behind it computes."""

    name: str
    anchor: str
    """Name of the patch projection: what precedes it in a file is a wrapper's prefix."""
    table: tuple[KeyRow, ...]
    assumes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ViTConfig that its code fixes and no tensor shows."""
    arrangement: Mapping[str, Any] = field(default_factory=dict)
    """Answers of `arrange.ANSWERS` that its code fixes and no tensor shows."""
    published: bool = True
    """Its widths are those of published models, whose number of heads is known."""
    ranked: bool = False
    """Blocks are counted in the order of their numbers, which may start at 1 or leave some out."""
    spellings: tuple[tuple[str, str], ...] = ()
    """Patterns of older names and their replacements, applied before the table is read."""
    ignored: str = r"(?!)"
    """Pattern of names inside the encoder's prefix that are no part of the encoder."""
    class_row: bool | None = None
    """True where the position embedding has a row for the class token; None if that varies."""
    computes_positions: bool = False
    """Its files may omit the position embedding, since its code computes it."""
    needs_positions: Callable[[Evidence], bool] = lambda evidence: True
    """True where a file without positions may be a model with rotary ones."""
    mixed_gelu: bool = False
    """Its SigLIP towers have several forms of GELU, which no tensor shows."""
    head_outside: bool = False
    """The head stands beside the encoder, without its prefix, when written."""
    adjust: Callable[[Evidence], Mapping[str, Any]] = lambda evidence: {}
    """Fields that its code fixes by what tensors there are."""
    questions: Callable[[Evidence], Iterable[Question]] = lambda evidence: ()
    """Fields that can't be determined for this layout."""
    assumptions: Callable[[Evidence], Iterable[str]] = lambda evidence: ()
    """Assumptions for the receipt: other code with the same tensors exists."""


class Labels(NamedTuple):
    """Class names and kind of the classification task, as a config.json states them."""

    names: Any = ()
    """A list, or a mapping from the index; not validated."""
    multi_label: bool = False


@dataclass(frozen=True)
class FamilyLayout:
    """One kind of checkpoint of a family other than the plain ViT: its names follow from ours, one by one."""

    family: type[Any]
    """Config class of the family."""
    name: str
    """Library, such as "timm"."""
    shows: tuple[str, ...]
    """Our names whose tensors a file has, under the library's names, if it is of this layout; the first finds the prefix."""
    names: Callable[[str], tuple[str, ...]] = lambda name: (name,)
    """Our name to those of the library: several for a tensor that is stored in parts."""
    form: Callable[[str], Form | None] = lambda name: None
    """Conversion of the tensor of our name; None: parts of equal size, joined along the first axis."""
    encoder: str = ""
    """Prefix of the library's names that a model without a head leaves out, such as "swin."."""
    ignored: str = r"(?!)"
    """Pattern of names in the file that are computed or of no use: they are left out of the receipt."""
    lacks: str = r"(?!)"
    """Pattern of names in the file that models of another family or version have: with one of them it is not this layout."""
    fits: Callable[[Callable[[str], tuple[int, ...]]], bool] = lambda shape: True
    """Return whether shapes, by the library's names, are the layout's, where another layout has the same names."""
    claims: Callable[[Config, Mapping[str, Any]], bool] = lambda config, overrides: True
    """False unless config.json, or fields that the caller states, say that tensors which others have too are the family's."""
    fields: Callable[[Config], Mapping[str, Any]] = lambda config: {}
    """Fields of the family's config that a config.json states. Raises ValueError for what the family can't be."""
    assumes: Mapping[str, str] = field(default_factory=dict)
    """Assumptions for the receipt, by the field that the caller may state instead."""


# --------------------------------------------------------------------------------------------------------------------
# Writing


@dataclass(frozen=True)
class Export:
    """Contents of a converted checkpoint."""

    to: str
    opens: str
    """The line of Python that opens it, with PATH for its path."""
    model: Backbone | None = None
    """Written as a run folder, if the library reads our own files."""
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """By the library's names: views of the model's tensors wherever the layout allows it."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """JSON by file name, or by suffix if the weights are one file."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Writer:
    """A target of `vitrail convert`."""

    name: str
    plans: Mapping[type[Any], Callable[[Any], Export]]
    """By the config of a family. Each raises Inexpressible for a model that the library has no class for."""
    suffixes: tuple[str, ...] = ()
    """Suffixes of the single file that is written, the default first; empty for a folder."""
    beside: tuple[str, ...] = ()
    """Suffixes of the files that are written beside the single file."""


# --------------------------------------------------------------------------------------------------------------------
# The record


@dataclass(frozen=True)
class Library:
    """All that is known of one library's checkpoints. A new library is one file and one row of LIBRARIES."""

    layouts: tuple[Layout, ...] = ()
    family_layouts: tuple[FamilyLayout, ...] = ()
    """Layouts of the other families; the first of a family is the one that is written."""
    unstack: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda tensors: tensors
    """Split tensors that hold several blocks; the same mapping if there are none."""
    fields: Callable[[Config], dict[str, Any]] = lambda config: {}
    """Fields of ViTConfig in its config.json, {} for another library's. Raises ValueError for one of no plain ViT."""
    config_assumptions: Callable[[Config], Iterable[str]] = lambda config: ()
    """Assumptions for the receipt that its config.json calls for."""
    processor_transform: Callable[[Config, Pair], EvalTransform | None] = lambda processor, img_size: None
    """Evaluation transform in its preprocessor_config.json, for weights of an image size; None for another library's."""
    config_transform: Callable[[Config], EvalTransform | None] = lambda config: None
    """Evaluation transform in its config.json; None for another library's."""
    default_transforms: tuple[DefaultTransform, ...] = ()
    labels: Callable[[Config], Labels] = lambda config: Labels()
    writer: Writer | None = None
