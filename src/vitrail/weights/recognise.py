"""Recognise the layout of a checkpoint from its key names, and map our names to them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitrail.weights.arrange import arranged
from vitrail.weights.libraries import LIBRARIES
from vitrail.weights.libraries.homemade import HOMEMADE, layout_of
from vitrail.weights.library import Layout, Shapes
from vitrail.weights.names import Form
from vitrail.weights.names_file import NamesFile
from vitrail.weights.structure import Guess, NoViT, guess

LAYOUTS = tuple(layout for library in LIBRARIES.values() for layout in library.layouts)
WRAPPERS = r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
ENCODER = (
    r"(blocks|layers?|encoder|[Tt]ransformer|\w*embed|conv|stem|bn|ln_|norm|pre_layer|post_layer|cls|class|pos|reg|attn|rope"
    r"|vit_merger|rotary|freq|.*(relative_position|rel_pos))"
)
AVERAGED = r"(teacher|ema(?![a-z])|target)"  # not MoCo's momentum encoder: its own code takes the other one


@dataclass(frozen=True)
class TensorSource:
    """Source of one tensor of ours: names in the file, and their form."""

    theirs: tuple[str, ...]
    form: Form

    def read(self, tensors: Mapping[str, Tensor], heads: int | None = None) -> Tensor:
        """Read the file's tensors and convert them; with the number of heads, in their order too."""
        value = self.form.read([tensors[name] for name in self.theirs])
        return value if heads is None or self.form.per_head is None else self.form.per_head(value, heads)


@dataclass(frozen=True)
class Recognised:
    """Key names of a checkpoint, resolved by a layout."""

    layout: Layout
    prefix: str
    """Added by a wrapper before the model's names."""
    sources: Mapping[str, TensorSource]
    """By our names."""
    foreign: tuple[str, ...]
    """Names inside the encoder that no row explains: the model is not a plain ViT."""
    outside: tuple[str, ...]
    """Names of other parts: heads of pre-training, text towers, decoders."""
    others: tuple[str, ...] = ()
    """Prefixes of further encoders in the same file."""

    def shapes(self, theirs: Shapes) -> dict[str, tuple[int, ...]]:
        """Return the shapes of our tensors from those of the file's, computed on the meta device."""
        meta = {name: torch.empty(theirs[name], device="meta") for s in self.sources.values() for name in s.theirs}
        shapes: dict[str, tuple[int, ...]] = {}
        for ours, source in self.sources.items():
            try:
                shapes[ours] = tuple(source.read(meta).shape)
            except (RuntimeError, IndexError) as error:
                stored = ", ".join(f"{name} of {'x'.join(map(str, theirs[name]))}" for name in source.theirs)
                raise ValueError(f"this {self.layout.name} checkpoint has {stored}, which makes no {ours}") from error
        return shapes

    def arranged(self, answers: Mapping[str, Any]) -> Recognised:
        """Return the same with the forms that go with answers of `arrange.ANSWERS`."""
        forms = {ours: arranged(ours, source.form, len(source.theirs), answers) for ours, source in self.sources.items()}
        sources = {ours: TensorSource(source.theirs, forms[ours]) for ours, source in self.sources.items()}
        return dataclasses.replace(self, sources=sources)

    def heads(self, theirs: Shapes) -> int | None:
        """Return the number of heads, if the file has an axis for them."""
        source = self.sources.get("blocks.0.attn.qkv.weight")
        if source is None or source.form.heads_axis is None:
            return None
        return theirs[source.theirs[0]][source.form.heads_axis]


def unstack(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Split tensors that hold several blocks, as some libraries store them; the same mapping if there are none."""
    for library in LIBRARIES.values():
        tensors = library.unstack(tensors)
    return tensors


def recognise(names: Iterable[str], layouts: Iterable[Layout] = LAYOUTS) -> Recognised:
    """Find the layout whose table explains the names best. Raises ValueError if none explains patch embedding and blocks."""
    layouts = tuple(layouts)
    actual = {bare_name(name): name for name in names}
    candidates = [
        match(layout, name[: len(name) - len(layout.anchor)], actual)
        for layout in layouts
        for name in actual
        if name == layout.anchor or name.endswith((f".{layout.anchor}", f"/{layout.anchor}"))
    ]
    candidates = [one for one in candidates if any(ours.startswith("blocks.") for ours in one.sources)]
    if not candidates:
        shown = ", ".join(sorted(actual)[:3])
        known = dict.fromkeys(layout.name.split(" ")[0] for layout in LAYOUTS if layout not in HOMEMADE.layouts)
        raise ValueError(
            f"no plain ViT is in these {len(actual)} tensors ({shown}…): patch embedding and blocks are not named as by "
            f"{', '.join(known)} or a known tutorial; "
            "give a plain ViT's, or name another library's model, as in timm:resnet50"
        )
    best = max(candidates, key=lambda one: (bool(re.search(AVERAGED, one.prefix)), len(one.sources), -len(one.foreign)))
    others = dict.fromkeys(one.prefix for one in candidates if one.prefix != best.prefix)
    return dataclasses.replace(best, others=tuple(others))


def explain(names: Iterable[str], shapes: Shapes, named: NamesFile | None = None) -> Recognised:
    """Find the layout that explains a file: of the names that the caller gives, of a library's, or guessed from the shapes.

    Raises ValueError for tensors of no plain ViT, and for a guess that is not certain.
    """
    actual = {bare_name(name): name for name in names}
    bare = {name: shapes[key] for name, key in actual.items()}
    if named is not None:
        return match(named.layout(bare), "", actual)
    try:
        return recognise(actual.values())
    except ValueError as error:
        try:
            found = guess(bare)
        except NoViT:
            raise error from None
        if reason := doubt(found):
            raise ValueError(f"{str(error).partition('; give')[0]}; {reason}") from None
    return match(layout_of(found.table, bare), "", actual)


def bare_name(name: str) -> str:
    """Return a name without what wrappers add."""
    return re.sub(WRAPPERS, "", name)


def bare_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by their names without what wrappers add."""
    return {bare_name(name): tuple(tensor.shape) for name, tensor in tensors.items()}


def doubt(found: Guess) -> str:
    """Return why a guess is not taken without being asked for, and the way out; "" for one without doubt."""
    way = "vitrail convert SRC --suggest-names names.yaml writes the guess, to be mended and given as --names"
    ours = {row.ours for row in found.table}
    if found.unexplained:
        more = len(found.unexplained) - 2
        shown = ", ".join(found.unexplained[:2]) + (f" and {more} more" if more > 0 else "")
        return f"nor do shapes tell what {shown} would be in one; give a plain ViT's, or if it is one, {way}"
    if "pos_embed" not in ours:
        return f"nor is a position embedding in them; give a plain ViT's, or if it is one, {way}"
    if found.unsure:
        return f"by their shapes they are one, but only their order tells {' from '.join(found.unsure[:2])}: {way}"
    return ""


def match(layout: Layout, prefix: str, actual: Mapping[str, str]) -> Recognised:
    """Resolve the names behind a prefix by a layout's table. `actual` are the file's names, by those without wrappers."""
    inside: dict[str, str] = {}
    for name, key in actual.items():
        if name.startswith(prefix):
            inside[respell(name[len(prefix) :], layout)] = key
    around = dict(inside)  # a head stands beside the encoder, at any level above it
    for name, key in actual.items():
        if not name.startswith(prefix):
            for level in levels(prefix):
                if name.startswith(level):
                    around.setdefault(respell(name[len(level) :], layout), key)
    sources: dict[str, TensorSource] = {}
    used: set[str] = set()
    whole = any(numbers(row.theirs[0], inside) for row in layout.table if row.ours == "blocks.#.attn.qkv.weight")
    place = ranks(layout, inside) if layout.ranked else {}
    for row in layout.table:  # transformers 5 writes the blocks of ViTMSNForImageClassification beside its embedding
        names = around if row.ours.startswith(("head",) if whole else ("head", "blocks.")) else inside
        for number in numbers(row.theirs[0], names):
            ours = row.ours.replace("#", place.get(number, number))
            parts = [part.replace("#", number) for part in row.theirs]
            if ours not in sources and all(part in names for part in parts):
                sources[ours] = TensorSource(tuple(names[part] for part in parts), row.form)
                used.update(names[part] for part in parts)
    if "dist_token" in sources and "head.weight" in sources and "head_dist.weight" not in sources:
        sources["reg_token"] = sources.pop("dist_token")  # without a head of its own it is a register
    left = {short: key for short, key in inside.items() if key not in used}
    foreign = [key for short, key in left.items() if not re.match(layout.ignored, short) and re.match(ENCODER, short)]
    rejected = set(foreign)
    outside = [key for key in actual.values() if key not in used and key not in rejected]
    return Recognised(layout, prefix, sources, tuple(foreign), tuple(outside))


def ranks(layout: Layout, names: Iterable[str]) -> dict[str, str]:
    """Return the place of each block by its number in the names, which may start at 1 or leave some out."""
    names = tuple(names)
    found = {number for row in layout.table if "#" in row.ours for number in numbers(row.theirs[0], names)}
    return {number: str(place) for place, number in enumerate(sorted(found, key=int))}


def respell(name: str, layout: Layout) -> str:
    """Replace a layout's older spellings."""
    for pattern, today in layout.spellings:
        name = re.sub(pattern, today, name)
    return name


def levels(prefix: str) -> list[str]:
    """Return the prefix without its last part, without its last two, … the nearest first: "a.b." gives "a." and ""."""
    parts = re.findall(r"[^./]+[./]", prefix)
    return ["".join(parts[:count]) for count in reversed(range(len(parts)))]


def numbers(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the block indices at "#"; one empty string for a pattern without it."""
    if "#" not in pattern:
        return [""]
    head, tail = pattern.split("#")
    indices = (name[len(head) : -len(tail)] for name in names if name.startswith(head) and name.endswith(tail))
    return [index for index in indices if index.isdecimal()]
