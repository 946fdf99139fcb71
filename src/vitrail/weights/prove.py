"""Match a live module of unknown code by trying: the table of names and the answers with which both compute the same."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitrail.models.backbone import Backbone
from vitrail.settings import pair
from vitrail.weights.arrange import ANSWERS, QKV_ORDERS
from vitrail.weights.infer import config_fields
from vitrail.weights.libraries.homemade import joined_name
from vitrail.weights.library import Shapes
from vitrail.weights.names_file import NamesFile, fits_pattern, names_of_guess
from vitrail.weights.read import Checkpoint, read
from vitrail.weights.recognise import bare_name, bare_shapes, unstack
from vitrail.weights.structure import NoViT, guess
from vitrail.weights.vit import load_vit

EQUAL = 1e-5
"""Greatest difference of two outputs, in parts of the largest or of 1, that counts as equal."""
SURE = 1e-6
"""The same between random weights in float64, at which the search ends: other computations differ by more."""
MOST_SECONDS = 120.0


@dataclass(frozen=True)
class Candidate:
    """One match: a table of names and answers."""

    names: NamesFile
    answers: Mapping[str, Any]

    def load(self, checkpoint: Checkpoint) -> Backbone:
        """Load the module's weights."""
        with_names = dataclasses.replace(checkpoint, names=self.names)
        return load_vit(with_names, None, {"pixel_scale": "unknown", **self.answers}, channels="repeat", strict=True)


@torch.no_grad()
def prove(module: nn.Module, checkpoint: Checkpoint, names: NamesFile | None, answers: Mapping[str, Any]) -> NamesFile:
    """Return the names and answers with which a ViT of ours computes what the module does.

    Parameters of a copy are made random, so that no two of them are alike, and matched by trying, the likeliest first;
    then the outputs with the module's own weights are compared. `names` restricts the tables to one, `answers` fixes
    what the caller knows. Raises ValueError, with the difference, if no match has equal outputs.
    """
    given = {**(names.answers if names else {}), **answers}
    tensors = unstack(checkpoint.tensors)
    shapes = bare_shapes(tensors)
    if names is None:
        try:
            found = guess(shapes)
        except NoViT as error:
            raise ValueError(f"this {type(module).__name__} is no plain ViT: {error}; use it with its own code") from error
        tables = [found, *(dataclasses.replace(found, rows=rows) for rows in found.others)]
        files = [names_of_guess(table, shapes) for table in tables]
    else:
        files = [names]
    best = search(Twin(module, checkpoint), files, choices(module, checkpoint, files[0], shapes, given))
    model = best.load(checkpoint)
    difference = apart(model(images_for(model)), output_of(copied(module), images_for(model)))
    if difference > EQUAL:
        raise ValueError(f"the outputs of this {type(module).__name__} differ by {difference:.2g} from those of its match")
    note = f"proved: outputs equal to {difference:.0e} on random images, as with random weights"
    return dataclasses.replace(best.names, answers={**best.names.answers, **best.answers}, note=note)


# --------------------------------------------------------------------------------------------------------------------
# Candidates


def choices(
    module: nn.Module, checkpoint: Checkpoint, names: NamesFile, shapes: Shapes, given: Mapping[str, Any]
) -> dict[str, Sequence[Any]]:
    """Return the values to try for each answer, the likeliest first."""
    stated = config_fields(checkpoint.config)
    layout = names.layout(shapes)
    ours = {row.ours: row.theirs for row in layout.table}
    qkv, stem = ours["blocks.#.attn.qkv.weight"], ours["patch_embed.proj.weight"][0]
    inner = names.size(next(row for row in layout.table if row.ours == "blocks.#.attn.qkv.weight"), shapes)[0] // 3
    heads = [heads for heads in (8, 4, 6, 12, 3, 2, 16, 1, 5, 10, 24, 32) if inner % heads == 0]
    encoders = [part for part in module.modules() if isinstance(part, nn.TransformerEncoderLayer)]
    eps: list[float] = [value for part in module.modules() if isinstance(value := getattr(part, "eps", None), float)]
    values: dict[str, Sequence[Any]] = {
        "num_heads": [stated["num_heads"]] if inner % stated.get("num_heads", inner + 1) == 0 else heads,
        "mlp": activations(module),
        "norm_eps": [*dict.fromkeys(eps[:1] or [1e-5, 1e-6])],
        "patch_order": ANSWERS["patch_order"] if len(shapes[stem]) == 2 else [],
        "qkv_order": [] if len(qkv) > 1 or qkv[0].endswith("in_proj_weight") else QKV_ORDERS,
        "attn_scale": ANSWERS["attn_scale"],
        "readout": readouts(names, "cls_token" in ours),
        "pos_embed": [] if "pos_embed" in ours else ["none"],
        "norm_first": [False, True] if encoders and not encoders[0].norm_first else [True, False],
    }
    fixed = {name: [value] for name, value in given.items() if name not in ("pool", "pool_include_prefix")}
    return {name: options for name, options in {**values, **fixed}.items() if options}


def activations(module: nn.Module) -> list[str]:
    """Return the activations of an MLP to try."""
    parts = {str(part) for part in module.modules()}  # "GELU(approximate='tanh')", "ReLU()"
    parts |= {"ReLU()" for part in module.modules() if getattr(part, "activation_relu_or_gelu", 0) == 1}
    likely = {"relu": "ReLU()" in parts, "gelu_tanh": "GELU(approximate='tanh')" in parts}
    return sorted(("gelu", "gelu_tanh", "relu", "quick_gelu"), key=lambda name: not likely.get(name, False))


class Readout(NamedTuple):
    """From tokens to the head."""

    pool: str
    include_prefix: bool
    norm_behind: bool
    """The last norm stands behind the pooling."""


def readouts(names: NamesFile, class_token: bool) -> list[Readout]:
    """Return the poolings to try, with the last norm before and behind them."""
    norms = [line.ours for line in names.lines if line.ours.startswith(("norm.", "fc_norm."))]
    behind = [False, True] if norms and norms[0].startswith("norm.") else [True, False] if norms else [False]
    means = [False, True] if class_token else [False]
    tokens = [Readout("cls", False, behind[0])] if class_token else []
    return [*tokens, *(Readout("avg", prefix, last) for prefix in means for last in behind)]


def combinations(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the places in lists of these sizes in the order of their sum: first what is likely in all of them."""
    for total in range(sum(size - 1 for size in sizes) + 1):
        yield from places_of(sizes, total)


def places_of(sizes: Sequence[int], total: int) -> Iterator[tuple[int, ...]]:
    """Yield the indices, one for each size, whose sum is `total`."""
    if not sizes:
        yield from [()] if total == 0 else []
        return
    for first in range(min(total, sizes[0] - 1) + 1):
        for rest in places_of(sizes[1:], total - first):
            yield (first, *rest)


def with_last_norm(names: NamesFile, *, behind: bool) -> NamesFile:
    """Return names whose last norm stands behind the pooling, or before it."""
    here, there = ("norm.", "fc_norm.") if behind else ("fc_norm.", "norm.")
    lines = (
        line._replace(ours=there + line.ours.removeprefix(here)) if line.ours.startswith(here) else line for line in names.lines
    )
    return dataclasses.replace(names, lines=tuple(lines))


# --------------------------------------------------------------------------------------------------------------------
# Trials


class Twin:
    """Copy of a live module in float64, whose every parameter is random, and whose blocks can be silenced in part."""

    def __init__(self, module: nn.Module, checkpoint: Checkpoint) -> None:
        self.whose = type(module).__name__
        self.module = randomised(module)
        self.checkpoint = dataclasses.replace(read(self.module.state_dict()), config=checkpoint.config)
        self.parameters: dict[str, list[Tensor]] = {}
        for name, value in self.module.state_dict().items():
            self.parameters.setdefault(joined_name(bare_name(name)), []).append(value)
        self.outputs: dict[Any, Tensor] = {}

    def difference(self, candidate: Candidate, silent: Sequence[str]) -> float:
        """Return the difference of the outputs, with the tensors of some patterns at zero. Raises ValueError if none can be."""
        names = [name for name in self.parameters if any(fits_pattern(pattern, name) for pattern in silent)]
        kept = [(value, value.clone()) for name in names for value in self.parameters[name]]
        for value, _ in kept:
            value.zero_()
        try:
            model = candidate.load(self.checkpoint).double()
            images = images_for(model).double()
            key = (tuple(images.shape), tuple(names))
            if key not in self.outputs:
                self.outputs[key] = output_of(self.module, images)
            return apart(model(images), self.outputs[key])
        finally:
            for value, before in kept:
                value.copy_(before)


@dataclass(frozen=True)
class Stage:
    """A part of the computation that is matched while the rest of the blocks is silent."""

    what: str
    fields: tuple[str, ...]
    silent: tuple[str, ...]
    """Beginnings of the names of ours that are zero in all blocks."""
    fixes: tuple[str, ...]
    """Beginnings of the names of ours that are known after it."""
    hint: str
    """Causes of a difference."""


STAGES = (
    Stage(
        "stem, positions and head",
        fields=("readout", "patch_order", "norm_first", "norm_eps", "pos_embed"),
        silent=("blocks.#.attn.", "blocks.#.mlp.", "blocks.#.ls"),
        fixes=("patch_embed.",),
        hint="positions that are computed, norms elsewhere, or another pooling",
    ),
    Stage(
        "norms and MLP",
        fields=("mlp",),
        silent=("blocks.#.attn.",),
        fixes=("blocks.#.mlp.", "blocks.#.norm"),
        hint="another activation, or norms elsewhere",
    ),
    Stage(
        "attention",
        fields=("num_heads", "qkv_order", "attn_scale"),
        silent=(),
        fixes=(),
        hint="rotary positions, a mask, or another scale",
    ),
)


def search(twin: Twin, files: Sequence[NamesFile], options: Mapping[str, Sequence[Any]]) -> Candidate:
    """Return the table and answers with equal outputs, found part by part. Raises ValueError if there are none."""
    answers = {name: values[0] for name, values in options.items()}
    until = time.monotonic() + MOST_SECONDS
    for stage in STAGES:
        blind = stage is STAGES[-1] and answers["readout"].pool == "cls"  # a class token sees patches through attention only
        fields = [name for name in (*stage.fields, *(["patch_order"] if blind else [])) if name in options]
        tables = files[:2] if stage is STAGES[0] else files  # the first two have their norms in both orders
        best, smallest, tried = None, float("inf"), 0
        reason: ValueError | None = None
        for place in combinations([len(tables), *(len(options[name]) for name in fields)]):
            trial = answers | {name: options[name][at] for name, at in zip(fields, place[1:], strict=True)}
            candidate = candidate_of(tables[place[0]], trial)
            silent = [line for line in candidate.names.patterns() if line[1].startswith(stage.silent)] if stage.silent else []
            try:
                difference = twin.difference(candidate, [theirs for theirs, _ in silent])
            except ValueError as error:
                reason = reason or error
                continue
            tried += 1
            if difference < smallest:
                best, smallest, table, found = candidate, difference, tables[place[0]], trial
            if smallest <= SURE or time.monotonic() > until:
                break
        if best is None:
            assert reason is not None
            raise reason
        if smallest > EQUAL:
            raise ValueError(
                f"{twin.whose} computes something else than a plain ViT in its {stage.what} ({stage.hint}): of {tried} matches "
                f"the closest differs by {smallest:.2g}; use it with its own code"
            )
        answers = found
        rows = fixed_rows(table, stage)
        files = [table, *(file for file in files if file is not table and fixed_rows(file, stage) == rows)]
        matched = best
    return matched


def fixed_rows(names: NamesFile, stage: Stage) -> set[tuple[str, str]]:
    """Return the lines of a table that a stage decides."""
    return {(theirs, ours) for theirs, ours in names.patterns() if ours.startswith(stage.fixes)}


def candidate_of(names: NamesFile, answers: Mapping[str, Any]) -> Candidate:
    """Return a table with answers, of which the readout places the last norm."""
    readout: Readout = answers["readout"]
    pooling = {"pool": readout.pool, "pool_include_prefix": readout.include_prefix}
    fields = {name: value for name, value in answers.items() if name != "readout"}
    return Candidate(with_last_norm(names, behind=readout.norm_behind), fields | pooling)


def copied(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a copy in evaluation mode on the CPU."""
    return copy.deepcopy(module).cpu().to(dtype).eval()


def randomised(module: nn.Module) -> nn.Module:
    """Return a copy in float64 whose every parameter is random: those that start as zero or one as well."""
    twin, generator = copied(module, torch.float64), torch.Generator().manual_seed(0)
    for parameter in twin.parameters():
        scale = 0.3 if parameter.ndim < 2 else 2 * parameter[0].numel() ** -0.5
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = (0.5 * parameter.data + scale * noise).float().double()  # positions are read in float32
    return twin


def images_for(model: Backbone) -> Tensor:
    """Return random images of the model's size."""
    size = pair(model.config.img_size)
    return torch.randn(2, model.config.in_channels, *size, generator=torch.Generator().manual_seed(1))


def output_of(module: nn.Module, images: Tensor) -> Tensor:
    """Return a module's output: of several the first, of a mapping its logits. Raises ValueError if it can't run."""
    try:
        output = module(images)
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        line = str(error).strip().partition("\n")[0]
        raise ValueError(f"the module can't run on images of {tuple(images.shape)}: {line}; give img_size") from error
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values())))
    output = getattr(output, "logits", output)
    output = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(output, Tensor):
        raise ValueError(f"the module returns a {type(output).__name__}, and no tensor to compare")
    return output


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Return the greatest difference, in parts of the largest value or of 1; infinite for other shapes."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / max(1.0, float(theirs.abs().max())))
