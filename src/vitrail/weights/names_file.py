"""Names files: which tensor of ours each tensor of one checkpoint is, and what no tensor tells, as YAML to read and to mend.

A line is THEIRS: OURS. "#" is the number of a block, ".*" stands for weight and bias, `blocks.#.attn.q`, `.k` and `.v` are
projections of their own, " (transposed)" marks a matrix of (inputs, outputs), and `ignore` a tensor that is left out.
"""

# D width · I inner width of attention · M hidden width of the MLP

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vitrail.settings import nearest
from vitrail.weights.libraries.homemade import HEADS, layout_of
from vitrail.weights.library import Layout, Question, Shapes
from vitrail.weights.names import FLAT, LINEAR_PATCH, PIXEL_NORM, SAME, STACKED, TOKENS, TRANSPOSED, VIT_TABLE, Form, KeyRow
from vitrail.weights.structure import BUFFERS, Guess

IGNORE = "ignore"
TRANSPOSED_MARK = " (transposed)"
OURS = (
    *dict.fromkeys(row.ours for row in VIT_TABLE),
    *(f"patch_embed.{name}.{kind}" for name in ("pixel_norm", "norm") for kind in ("weight", "bias")),
    *(f"blocks.#.attn.{letter}.{kind}" for letter in "qkv" for kind in ("weight", "bias")),
)
NEEDED = (
    "patch_embed.proj.weight",
    *(f"blocks.#.{name}.weight" for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")),
)
FORMS: dict[str, Form] = {
    **dict.fromkeys(("cls_token", "dist_token", "reg_token", "pos_embed"), TOKENS),
    **{f"blocks.#.ls{index}.gamma": FLAT for index in (1, 2)},
    **{f"patch_embed.pixel_norm.{kind}": PIXEL_NORM for kind in ("weight", "bias")},
    "patch_embed.proj.weight": LINEAR_PATCH,
}


class NameLine(NamedTuple):
    """Line of a names file."""

    theirs: str
    ours: str
    """Ours, perhaps with " (transposed)", or "ignore"."""
    number: int = 0
    """In the file; 0 for a line that was not read from one."""
    comment: str = ""


@dataclass(frozen=True)
class NamesFile:
    """Table of names of one checkpoint, with answers."""

    lines: tuple[NameLine, ...]
    answers: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the model's config and answers of `arrange.ANSWERS` that no tensor tells."""
    source: str = ""
    """Checkpoint that the names are of, as the file states it."""
    path: str = "the names"
    """The file's own path, for messages."""
    questions: tuple[Question, ...] = ()
    """Questions that are left."""
    note: str = "guessed by shape, name and order"
    """How the names came about."""

    def __str__(self) -> str:
        return "\n".join(self.written()) + "\n"

    def written(self) -> Iterator[str]:
        """Yield the lines of the YAML."""
        yield f"# Names of a checkpoint's tensors in Vitrail, {self.note}. Mend what is wrong, answer what is open."
        yield '# THEIRS: OURS; "#" is the number of a block, ".*" weight and bias, "ignore" leaves a tensor out.'
        if self.source:
            yield f"file: {scalar(self.source)}"
        yield "names:"
        pairs = [(f"  {scalar(line.theirs)}: {scalar(line.ours)}", line.comment) for line in self.lines]
        width = min(max((len(text) for text, _ in pairs), default=0), 90)
        yield from (f"{text:{width}}  # {comment}" if comment else text for text, comment in pairs)
        yield "answers:" if self.answers or self.questions else "answers: {}"
        yield from (f"  {name}: {scalar(value)}" for name, value in self.answers.items())
        for question in self.questions:
            shown = " or ".join(scalar(answer) for answer in question.answers)
            yield f"  # {question.field}: {scalar(question.answers[0])}    # {shown}: {question.why}"

    def patterns(self) -> Iterator[tuple[str, str]]:
        """Yield the patterns of the file's names and ours, without ".*" and marks."""
        for line in self.lines:
            yield from expanded(line.theirs, line.ours.removesuffix(TRANSPOSED_MARK))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file. Returns its path."""
        target = Path(path)
        source = os.path.relpath(self.source, target.parent) if self.source and Path(self.source).exists() else self.source
        target.write_text(str(dataclasses.replace(self, source=source)), encoding="utf-8")
        return target

    def layout(self, shapes: Shapes) -> Layout:
        """Return the layout for a file of these shapes. Raises ValueError, with the line, for names that don't fit it."""
        rows, kept = self.rows(shapes)
        self.check_shapes(rows, shapes)
        if missing := [name for name in NEEDED if name not in {row.ours for row in rows}]:
            raise ValueError(f"{self.path} names no tensor for {missing[0]}; add the line THEIRS: {missing[0]}")
        patterns = {*kept, *(theirs for row in rows for theirs in row.theirs)}
        known = [re.compile(re.escape(pattern).replace(r"\#", r"\d+").replace(r"\*", ".*")) for pattern in patterns]
        for name, shape in shapes.items():
            if shape and not BUFFERS.search(name) and not any(pattern.fullmatch(name) for pattern in known):
                size = "x".join(map(str, shape))
                raise ValueError(f"{self.path} says nothing of {name} ({size}); add a line for it: one of our names, or ignore")
        return layout_of(tuple(rows), shapes)

    def rows(self, shapes: Shapes) -> tuple[list[KeyRow], list[str]]:
        """Return the rows of the table, and the patterns of names that are ignored."""
        found: dict[str, tuple[str, Form]] = {}
        ignored = []
        for line in self.lines:
            where = f"{self.path} line {line.number}" if line.number else self.path
            ours, mark = line.ours.removesuffix(TRANSPOSED_MARK), line.ours.endswith(TRANSPOSED_MARK)
            if ours == IGNORE:
                ignored.append(line.theirs)
                continue
            for theirs, name in expanded(line.theirs, ours):
                if name not in OURS:
                    raise ValueError(
                        f'{where}: "{name}" is no name of a tensor of a ViT{nearest(name, list(OURS))}; or write ignore'
                    )
                if ("#" in theirs) != ("#" in name):
                    raise ValueError(f'{where}: "#", the number of a block, stands on one side only; write it on both')
                if not any(fits_pattern(theirs, there) for there in shapes):
                    if theirs.endswith("bias") and line.theirs.endswith(".*"):
                        continue
                    patterns = sorted({re.sub(r"\d+", "#", there) if "#" in theirs else there for there in shapes})
                    raise ValueError(f'{where}: the checkpoint has no "{theirs}"{nearest(theirs, patterns)}')
                if name in found:
                    raise ValueError(f"{where}: {name} is {found[name][0]} already; leave one of the two out")
                form = FORMS.get(name, SAME)
                found[name] = theirs, TRANSPOSED if mark and name.endswith("weight") else form
        return list(stacked(found, shapes)), ignored

    def check_shapes(self, rows: Iterable[KeyRow], shapes: Shapes) -> None:
        """Raise ValueError for a tensor whose shape its name of ours can't have."""
        sizes = {row.ours: self.size(row, shapes) for row in rows}
        dim = sizes.get("patch_embed.proj.weight", (0,))[0]
        inner = sizes.get("blocks.#.attn.proj.weight", (0, 0))[-1]
        hidden = sizes.get("blocks.#.mlp.fc2.weight", (0, 0))[-1]
        wanted: dict[str, tuple[tuple[int, ...], ...]] = {
            "blocks.#.attn.qkv.weight": ((3 * inner, dim),),
            "blocks.#.attn.proj.weight": ((dim, inner),),
            "blocks.#.mlp.fc1.weight": ((hidden, dim), (2 * hidden, dim)),
            "blocks.#.mlp.fc2.weight": ((dim, hidden),),
            **{f"blocks.#.norm{index}.{kind}": ((dim,),) for index in (1, 2) for kind in ("weight", "bias")},
            **{f"norm.{kind}": ((dim,),) for kind in ("weight", "bias")},
        }
        for row in rows:
            size = sizes[row.ours]
            if row.ours in wanted and size not in wanted[row.ours]:
                number = next((line.number for line in self.lines if row.theirs[0] in dict(expanded(line.theirs, ""))), 0)
                shown, must = ("x".join(map(str, shape)) for shape in (size, wanted[row.ours][0]))
                where = f"{self.path} line {number}" if number else self.path
                raise ValueError(f"{where}: {row.theirs[0]} makes a {row.ours} of {shown}, and it must be {must}; name another")

    def size(self, row: KeyRow, shapes: Shapes) -> tuple[int, ...]:
        """Return the shape of a tensor of ours, from the first block's."""
        first = [next(shape for name, shape in shapes.items() if fits_pattern(theirs, name)) for theirs in row.theirs]
        if row.form is HEADS:
            return sum(shape[0] * shape[1] for shape in first), *first[0][2:]
        if row.form is TRANSPOSED or row.form is STACKED_TRANSPOSED:
            first = [shape[::-1] for shape in first]
        return sum(shape[0] for shape in first), *first[0][1:]


STACKED_TRANSPOSED = Form(lambda parts: STACKED.read([part.T for part in parts]), STACKED.write)


def stacked(found: Mapping[str, tuple[str, Form]], shapes: Shapes) -> Iterator[KeyRow]:
    """Yield the rows, with q, k and v that are tensors of their own in one."""
    for ours, (theirs, form) in found.items():
        letter = re.fullmatch(r"blocks\.#\.attn\.([qkv])\.(weight|bias)", ours)
        if letter is None:
            yield KeyRow(ours, (theirs,), form)
        elif letter[1] == "q" and all(f"blocks.#.attn.{other}.{letter[2]}" in found for other in "kv"):
            parts = tuple(found[f"blocks.#.attn.{other}.{letter[2]}"][0] for other in "qkv")
            axes = len(next(shape for name, shape in shapes.items() if fits_pattern(theirs, name)))
            heads = axes == (3 if letter[2] == "weight" else 2)
            by_kind = HEADS if heads else STACKED_TRANSPOSED if form is TRANSPOSED else STACKED
            yield KeyRow(f"blocks.#.attn.qkv.{letter[2]}", parts, by_kind)


def expanded(theirs: str, ours: str) -> list[tuple[str, str]]:
    """Return the pairs of a line: two for ".*"."""
    kinds = ("weight", "bias") if theirs.endswith(".*") else ("",)
    return [(theirs.replace("*", kind), ours.replace("*", kind)) for kind in kinds]


def fits_pattern(pattern: str, name: str) -> bool:
    """Return whether a name is one of a pattern's."""
    head, number, tail = pattern.partition("#")
    if not number:
        return name == pattern
    return name.startswith(head) and name.endswith(tail) and name[len(head) : len(name) - len(tail)].isdecimal()


def scalar(value: Any) -> str:
    """Return a value as YAML writes it on a line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).split("\n...")[0].strip()


# --------------------------------------------------------------------------------------------------------------------
# Reading and suggesting


def read_names(names: str | os.PathLike[str] | NamesFile) -> NamesFile:
    """Read a names file. Raises ValueError, with the line, for one that is not of this form."""
    if isinstance(names, NamesFile):
        return names
    path = Path(names)
    try:
        text = path.read_text(encoding="utf-8")
        tree: Any = yaml.compose(text, Loader=yaml.SafeLoader)
        loaded = yaml.safe_load(text)
    except OSError as error:
        raise ValueError(
            f"{path} can't be read: {error.strerror}; write one with vitrail convert SRC --suggest-names"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path} line {mark.line + 1}" if mark else str(path)
        raise ValueError(f"{where}: {getattr(error, 'problem', None) or 'no YAML'}; a line is THEIRS: OURS") from error
    if not isinstance(loaded, dict) or not isinstance(loaded.get("names"), dict):
        raise ValueError(f'{path} has no section "names"; write one with vitrail convert SRC --suggest-names')
    for key, _ in tree.value:
        if key.value not in ("file", "names", "answers"):
            raise ValueError(f'{path} line {key.start_mark.line + 1}: "{key.value}" is none of file, names, answers')
    lines = []
    [section] = [value for key, value in tree.value if key.value == "names"]
    for key, value in section.value:
        number = key.start_mark.line + 1
        if not isinstance(value.value, str):
            raise ValueError(f"{path} line {number}: {key.value} needs one name, or ignore")
        lines.append(NameLine(key.value, value.value, number))
    answers = loaded.get("answers") or {}
    if not isinstance(answers, dict):
        raise ValueError(f"{path}: its answers are no section of FIELD: VALUE")
    source = str(loaded.get("file") or "")
    beside = path.parent / source
    return NamesFile(tuple(lines), answers, str(beside) if source and beside.exists() else source, str(path))


def is_names_file(source: Any) -> bool:
    """Return whether a source of weights is a names file, which states the checkpoint."""
    return isinstance(source, str | os.PathLike) and str(source).endswith((".yaml", ".yml")) and Path(source).is_file()


def names_of_guess(guess: Guess, shapes: Shapes) -> NamesFile:
    """Return a guess as a names file."""
    lines: dict[str, NameLine] = {}
    for row, shape, by in guess.rows:
        letters = [""] if len(row.theirs) == 1 else list("qkv")
        for letter, theirs in zip(letters, row.theirs, strict=True):
            ours = row.ours.replace("attn.qkv", f"attn.{letter}") if letter else row.ours
            both = theirs.endswith(".bias") and ours.endswith(".bias")
            weight = lines.get(f"{theirs.removesuffix('bias')}weight") if both else None
            if weight is not None:
                del lines[weight.theirs]
                theirs, ours = f"{theirs.removesuffix('bias')}*", f"{ours.removesuffix('bias')}*"
                lines[theirs] = weight._replace(theirs=theirs, ours=ours)
            else:
                lines[theirs] = NameLine(
                    theirs, ours, comment=f"{'x'.join(map(str, shape))}, by {by}{' alone' * (by == 'order')}"
                )
    for pattern in guess.unexplained:
        shape = next(shape for name, shape in shapes.items() if fits_pattern(pattern, name))
        lines[pattern] = NameLine(pattern, IGNORE, comment=f"{'x'.join(map(str, shape))}: no place found for it")
    return NamesFile(tuple(lines.values()))
