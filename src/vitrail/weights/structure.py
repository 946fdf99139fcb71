"""The plain ViT in tensors whose names no table has: matched by shape, name and order.

Tensors that recur with a number in their names are the blocks; what they have to be there follows from the width D, which
all of them share. Where shapes leave a choice, words in the names decide, and where these say nothing, the order in the file.
"""

# D width · I inner width of attention · M hidden width of the MLP · C channels · P patch · L patches · K classes

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vitrail.weights.libraries.homemade import HEADS
from vitrail.weights.library import Shapes
from vitrail.weights.names import FLAT, LINEAR_PATCH, SAME, STACKED, TOKENS, Form, KeyRow, patch_of
from vitrail.weights.vocabulary import STEM, WORDS, digits_differ, is_attention, is_mask, is_mlp, is_position, natural, words_of

Evidence = Literal["shape", "name", "order"]
Shape = tuple[int, ...]

BUFFERS = re.compile(r"num_batches_tracked$|position_ids$|(^|\.)(attn_)?mask$")
FUSED, SEPARATE = ("qkv", "proj", "fc1", "fc2"), ("q", "k", "v", "proj", "fc1", "fc2")
NORM_LEAVES = (("weight", "bias"), ("gamma", "beta"), ("scale", "shift"), ("scale", "bias"), ("a_2", "b_2"), ("alpha", "beta"))


class GuessedRow(NamedTuple):
    """Row of a guessed table."""

    row: KeyRow
    shape: Shape
    """Shape of the first of the file's tensors."""
    by: Evidence
    """What decides: shapes alone, words in the names, or no more than the order in the file."""


@dataclass(frozen=True)
class Guess:
    """A table of names for one file."""

    rows: tuple[GuessedRow, ...]
    unexplained: tuple[str, ...]
    """Patterns of the names that have no place in a plain ViT, with "#" for the number of a block."""
    others: tuple[tuple[GuessedRow, ...], ...] = ()
    """Further tables that the shapes allow, the likelier first."""

    @property
    def table(self) -> tuple[KeyRow, ...]:
        """Return the rows without the evidence."""
        return tuple(guessed.row for guessed in self.rows)

    @property
    def unsure(self) -> tuple[str, ...]:
        """Return the names of ours that only the order decides."""
        return tuple(guessed.row.ours for guessed in self.rows if guessed.by == "order")


class NoViT(ValueError):
    """The tensors are no plain ViT's: the message is the reason, without the tensors' number and names."""


def guess(shapes: Shapes) -> Guess:
    """Match the tensors of a file. Raises NoViT, with what is missing, if they are no plain ViT's."""
    shapes = {name: shape for name, shape in shapes.items() if shape and not BUFFERS.search(name)}
    blocks = find_blocks(shapes)
    inside = {pattern: shapes[names[0]] for pattern, names in blocks.items()}
    used = {name for names in blocks.values() for name in names}
    outside = {name: shape for name, shape in shapes.items() if name not in used}
    order = {name: place for place, name in enumerate(shapes)}
    last = max(order[name] for name in used)
    candidates = []
    reason = "its blocks have no attention and MLP around one width"
    for dim in widths(inside):
        try:
            parts = block_rows(inside, dim)
            stem, left = outer_rows(outside, dim, after={name for name in outside if order[name] > last})
        except NoViT as error:
            reason = str(error)
            continue
        taken = {theirs for guessed in parts[0] for theirs in guessed.row.theirs}
        left += [pattern for pattern in inside if pattern not in taken]
        candidates.append(Guess((*stem, *parts[0]), tuple(left), tuple((*stem, *other) for other in parts[1:])))
    if not candidates:
        raise NoViT(reason)
    return min(candidates, key=lambda one: len(one.unexplained))


# --------------------------------------------------------------------------------------------------------------------
# Blocks


def find_blocks(shapes: Shapes) -> dict[str, list[str]]:
    """Return the names of each tensor of a block, in the order of the blocks, by their pattern with "#" for the number."""
    patterns: dict[str, dict[int, str]] = {}
    for name in shapes:
        for digits in re.finditer(r"\d+", name):
            patterns.setdefault(f"{name[: digits.start()]}#{name[digits.end() :]}", {})[int(digits[0])] = name
    families: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for pattern, names in patterns.items():
        if len({shapes[name] for name in names.values()}) == 1:
            families.setdefault((pattern.partition("#")[0], tuple(sorted(names))), []).append(pattern)

    def numbers_in(members: Iterable[str]) -> int:
        return sum(count(shapes[name]) for pattern in members for name in patterns[pattern].values())

    whole = [
        key
        for key, members in families.items()
        if is_progression(key[1]) and sum(len(shapes_of(pattern, patterns, shapes)) >= 2 for pattern in members) >= 2
    ]
    if not whole:
        raise NoViT("no tensors recur from block to block as attention and MLP do")
    best = max(whole, key=lambda key: (len(key[1]) > 1, numbers_in(families[key]), len(key[0])))
    chosen, covered = list(families[best]), set[str]()
    covered.update(name for pattern in chosen for name in patterns[pattern].values())
    for key in sorted(families, key=lambda key: -numbers_in(families[key])):  # blocks spread over several lists
        rest = [pattern for pattern in families[key] if covered.isdisjoint(patterns[pattern].values())]
        if key != best and key[1] == best[1] and rest and len(best[1]) > 1:
            chosen += rest
            covered.update(name for pattern in rest for name in patterns[pattern].values())
    place = {name: index for index, name in enumerate(shapes)}
    chosen.sort(key=lambda pattern: place[patterns[pattern][best[1][0]]])
    return {pattern: [patterns[pattern][number] for number in best[1]] for pattern in chosen}


def shapes_of(pattern: str, patterns: Mapping[str, Mapping[int, str]], shapes: Shapes) -> Shape:
    """Return the shape of the tensors of a pattern."""
    return shapes[next(iter(patterns[pattern].values()))]


def is_progression(numbers: Sequence[int]) -> bool:
    """Return True for numbers that start at 0 or 1 with equal steps."""
    return numbers[0] in (0, 1) and len({after - before for before, after in itertools.pairwise(numbers)}) <= 1


def count(shape: Shape) -> int:
    """Return the number of elements."""
    total = 1
    for side in shape:
        total *= side
    return total


def widths(inside: Shapes) -> list[int]:
    """Return candidates for the width D: it is the input of most matrices."""
    inputs = Counter(shape[-1] for shape in inside.values() if len(shape) >= 2)
    return [dim for dim, times in inputs.most_common(3) if times >= 2]


def block_rows(inside: Shapes, dim: int) -> list[tuple[GuessedRow, ...]]:
    """Return the tables of a block, the likeliest first. Raises NoViT for a block that is no plain ViT's."""
    matrices = {
        name: shape for name, shape in inside.items() if len(shape) >= 2 and 1 not in shape and not name.endswith("bias")
    }
    vectors = {name: shape for name, shape in inside.items() if name not in matrices}
    biases = {name: bias for name in matrices if (bias := bias_of(name, rows_of(matrices[name]), vectors))}
    free = {name: shape for name, shape in vectors.items() if name not in biases.values()}
    options = [*assignments(matrices, dim)]
    if not options:
        shown = ", ".join(f"{name} of {'x'.join(map(str, shape))}" for name, shape in itertools.islice(matrices.items(), 7))
        raise NoViT(f"its blocks have {len(matrices)} matrices ({shown}), which are not those of attention and an MLP")
    norms = paired(free, dim)
    named = {name for pair in norms for name in pair}
    if len(norms) != 2:
        raise NoViT(f"its blocks have {len(norms)} LayerNorms of width {dim}, and not two")
    head_norms = [pair for pair in paired(free, None) if not named.intersection(pair) and "norm" in pair[0].lower()]
    scales = [name for name, shape in free.items() if count(shape) == dim and name not in named]
    tables = []
    for roles, by in options:
        for norm_rows in in_both_orders("norm", norms, roles, inside):
            rows = [*matrix_rows(roles, by, biases, inside), *norm_rows]
            if len(scales) == 2:
                rows += in_both_orders("ls", [(name,) for name in scales], roles, inside)[0]
            if len(head_norms) == 2:
                rows += query_key_norms(head_norms, inside)
            tables.append(tuple(rows))
    return tables


def rows_of(shape: Shape) -> int:
    """Return the number of outputs of a matrix, or of a stack of one for each head."""
    return count(shape[:-1])


def bias_of(weight: str, outputs: int, vectors: Shapes) -> str | None:
    """Return the name of a matrix's bias."""
    for theirs, bias in (("weight", "bias"), ("kernel", "bias"), ("W", "b"), ("w", "b")):
        head, found, tail = weight.rpartition(theirs)
        name = f"{head}{bias}{tail}"
        if found and name in vectors and count(vectors[name]) == outputs:
            return name
    return None


def paired(vectors: Shapes, dim: int | None) -> list[tuple[str, str]]:
    """Return (weight, bias) of the norms, of width `dim` or of any."""
    pairs: list[tuple[str, str]] = []
    for name, shape in vectors.items():
        for weight, bias in NORM_LEAVES:
            head, found, tail = name.rpartition(weight)
            other = f"{head}{bias}{tail}"
            if found and vectors.get(other) == shape and (dim is None or shape == (dim,)):
                pairs.append((name, other))
                break
    return pairs


def assignments(matrices: Shapes, dim: int) -> Iterator[tuple[dict[str, str], dict[str, Evidence]]]:
    """Yield the roles of a block's matrices that their shapes allow, the likeliest first, and what decides each."""
    roles = {4: FUSED, 6: SEPARATE}.get(len(matrices))
    if roles is None:
        return
    place = {name: index for index, name in enumerate(matrices)}
    fitting = []
    for names in itertools.permutations(matrices):
        option = dict(zip(roles, names, strict=True))
        if fits({role: matrices[name] for role, name in option.items()}, dim):
            inversions = sum(place[a] > place[b] for a, b in itertools.combinations(names, 2))
            fitting.append((spelled(option), -inversions, option))
    fitting.sort(key=lambda one: one[:2], reverse=True)
    for score, _, option in fitting:
        by: dict[str, Evidence] = {}
        for role, name in option.items():
            others = [other for other_score, _, other in fitting if other[role] != name and other_score >= score]
            alone = all(other[role] == name for _, _, other in fitting)
            by[role] = "shape" if alone else "order" if others else "name"
        yield option, by


def fits(shapes: Mapping[str, Shape], dim: int) -> bool:
    """Return whether matrices of these shapes are attention and an MLP of width D."""
    if any(len(shape) > 2 for role, shape in shapes.items() if role not in ("q", "k", "v")):
        return False
    if "qkv" in shapes:
        inner, rest = divmod(shapes["qkv"][0], 3)
        attention = rest == 0 and shapes["qkv"][1] == dim
    else:
        inner = rows_of(shapes["q"])
        attention = shapes["q"] == shapes["k"] == shapes["v"] and shapes["q"][-1] == dim
    hidden = shapes["fc1"][0]
    return attention and shapes["proj"] == (dim, inner) and shapes["fc1"][1] == dim and shapes["fc2"] == (dim, hidden)


def spelled(option: Mapping[str, str]) -> int:
    """Score how well names say the roles."""
    score = 0
    for role, name in option.items():
        words = words_of(name)
        attention = role not in ("fc1", "fc2")
        score += 2 * (is_attention(words) - is_mlp(words)) * (1 if attention else -1)
        for letter in ("q", "k", "v", "qkv"):
            if WORDS[letter].intersection(words):
                score += 4 if letter == role else -4
        if WORDS["proj"].intersection(words):
            score += 1 if role == "proj" else 0 if not attention else -1
    return score + (natural(option["fc1"]) < natural(option["fc2"]) and digits_differ(option["fc1"], option["fc2"]))


def in_both_orders(
    ours: str, pairs: Sequence[tuple[str, ...]], roles: Mapping[str, str], inside: Shapes
) -> list[list[GuessedRow]]:
    """Return the rows of the first and the second norm (or LayerScale) of a block, in the likelier order and in the other."""
    a, b = pairs
    score = nearness(a[0], roles) - nearness(b[0], roles)
    if digits_differ(a[0], b[0]):
        score += 1 if natural(a[0]) < natural(b[0]) else -1
    orders = [(a, b), (b, a)] if score >= 0 else [(b, a), (a, b)]
    kinds, form = (("weight", "bias"), SAME) if ours == "norm" else (("gamma",), FLAT)
    by: Evidence = "name" if score else "order"
    return [
        [
            GuessedRow(KeyRow(f"blocks.#.{ours}{index}.{kind}", (name,), form), inside[name], by)
            for index, names in enumerate(order, start=1)
            for kind, name in zip(kinds, names, strict=True)
        ]
        for order in orders
    ]


def nearness(name: str, roles: Mapping[str, str]) -> int:
    """Return how much nearer a name stands to attention than to the MLP, by its words and by the modules around it."""
    words = words_of(name)
    parts = name.split(".")[:-2]

    def shared(role: str) -> int:
        theirs = roles[role].split(".")
        return sum(1 for _ in itertools.takewhile(lambda both: both[0] == both[1], zip(parts, theirs, strict=False)))

    attention, mlp = shared("proj"), shared("fc1")
    spoken = is_attention(words) - is_mlp(words) + ("before" in words) - ("after" in words)
    return spoken + (attention > mlp) - (mlp > attention)


def query_key_norms(pairs: Sequence[tuple[str, str]], inside: Shapes) -> list[GuessedRow]:
    """Return the rows of norms on queries and keys."""
    by_letter = {letter: pair for pair in pairs for letter in "qk" if WORDS[letter].intersection(words_of(pair[0]))}
    return [
        GuessedRow(KeyRow(f"blocks.#.attn.{letter}_norm.{kind}", (name,)), inside[name], "name")
        for letter, pair in by_letter.items()
        for kind, name in zip(("weight", "bias"), pair, strict=True)
    ]


def matrix_rows(
    roles: Mapping[str, str], by: Mapping[str, Evidence], biases: Mapping[str, str], inside: Shapes
) -> Iterator[GuessedRow]:
    """Yield the rows of attention and MLP."""
    places = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    stacked = tuple(roles[letter] for letter in "qkv" if letter in roles)
    if stacked:
        weakest: Evidence = "order" if "order" in [by[letter] for letter in "qkv"] else "name"
        form = HEADS if len(inside[stacked[0]]) == 3 else STACKED
        yield GuessedRow(KeyRow("blocks.#.attn.qkv.weight", stacked, form), inside[stacked[0]], weakest)
        parts = tuple(biases[name] for name in stacked if name in biases)
        if len(parts) == 3:
            yield GuessedRow(KeyRow("blocks.#.attn.qkv.bias", parts, form), inside[parts[0]], weakest)
    for role, ours in places.items():
        if role in roles:
            name = roles[role]
            yield GuessedRow(KeyRow(f"blocks.#.{ours}.weight", (name,)), inside[name], by[role])
            if name in biases:
                yield GuessedRow(KeyRow(f"blocks.#.{ours}.bias", (biases[name],)), inside[biases[name]], by[role])


# --------------------------------------------------------------------------------------------------------------------
# Around the blocks


def outer_rows(outside: Shapes, dim: int, *, after: set[str]) -> tuple[list[GuessedRow], list[str]]:
    """Return the rows of stem, tokens, positions, last norm and head, and the names that are left.

    `after` are the names behind the blocks in the file. Raises NoViT without a patch projection.
    """
    rows: list[GuessedRow] = []
    left = dict(outside)

    def take(ours: str, theirs: str, by: Evidence, form: Form = SAME) -> None:
        rows.append(GuessedRow(KeyRow(ours, (theirs,), form), left.pop(theirs), by))

    def take_layer(ours: str, theirs: str, by: Evidence, form: Form = SAME) -> None:
        outputs = rows_of(left[theirs]) if len(left[theirs]) != 4 else left[theirs][0]
        take(f"{ours}.weight", theirs, by, form)
        bias = bias_of(theirs, outputs, {name: shape for name, shape in left.items() if len(shape) == 1})
        if bias is not None:
            take(f"{ours}.bias", bias, by)

    stems = [name for name, shape in left.items() if len(shape) == 4]
    linear = [name for name, shape in left.items() if len(shape) == 2 and shape[0] == dim and patch_of(shape[1])]
    linear = [name for name in linear if not is_position(name)]
    if len(stems) > 1 or (stems and left[stems[0]][0] != dim):
        raise NoViT(f"{len(stems)} convolutions stand before its blocks, and a plain ViT has one that cuts patches")
    if not stems and not linear:
        raise NoViT("nothing in it projects patches of an image to its width")
    if stems:
        take_layer("patch_embed.proj", stems[0], "shape")
    else:
        stem = max(linear, key=lambda name: (bool(STEM & set(words_of(name))), name not in after))
        sure = len(linear) == 1 or STEM & set(words_of(stem))
        take_layer("patch_embed.proj", stem, "name" if sure else "order", LINEAR_PATCH)

    tables = [name for name, shape in left.items() if is_table(shape, dim) and "registers" not in name]
    spelled_tables = [name for name in tables if is_position(name)]
    flat = [
        name
        for name in tables
        if len(left[name]) == 2 and is_grid(left[name][0]) and bias_of(name, left[name][0], left) is None
    ]
    open_tables = [name for name in tables if len(left[name]) == 3] or (flat if len(flat) < len(tables) else [])
    if spelled_tables or len(open_tables) == 1:
        take("pos_embed", (spelled_tables or open_tables)[0], "name" if spelled_tables else "shape", TOKENS)
    for name in [name for name in left if is_table(left[name], dim) and {"reg", "register", "registers"} & set(words_of(name))]:
        take("reg_token", name, "name", TOKENS)
    norms = paired(left, dim)
    in_norms = {name for pair in norms for name in pair}
    tokens = [name for name, shape in left.items() if count(shape) == dim and name not in in_norms and not is_mask(name)]
    tokens = [name for name in tokens if not name.endswith("bias")]
    if len(tokens) == 1:
        take("cls_token", tokens[0], "name" if {"cls", "class", "token"} & set(words_of(tokens[0])) else "shape", TOKENS)
    heads = [name for name, shape in left.items() if len(shape) == 2 and shape[1] == dim and not is_mask(name)]
    head = heads[0] if len(heads) == 1 else None
    if head is not None:
        take_layer("head", head, "shape" if head in after else "name")
    for pair in paired(left, None):
        width = left[pair[0]]
        if width == (dim,) and len(norms) == 1:
            ours = "fc_norm" if head is not None and in_one_sequence(pair[0], head) else "norm"
            by: Evidence = "shape"
        elif width == (dim,) and len(norms) == 2:
            first = pair == min(norms, key=list(outside).index)  # type: ignore[arg-type]
            ours, by = ("norm_pre" if first else "norm"), "order"
        else:
            continue
        for kind, name in zip(("weight", "bias"), pair, strict=True):
            take(f"{ours}.{kind}", name, by)
    return rows, list(left)


def is_grid(rows: int) -> bool:
    """Return whether so many rows are those of a square of patches, with or without one for a class token."""
    return any(math.isqrt(rows - token) ** 2 == rows - token > 1 for token in (0, 1))


def is_table(shape: Shape, dim: int) -> bool:
    """Return whether a shape is that of positions: (N, D), (1, N, D) or (N, 1, D)."""
    return shape[-1] == dim and count(shape) > dim and (len(shape) == 2 or (len(shape) == 3 and 1 in shape[:2]))


def in_one_sequence(norm: str, head: str) -> bool:
    """Return whether norm and head are members of one nn.Sequential, in which the norm stands behind the pooling."""
    one, other = (name.rpartition(".")[0].rpartition(".") for name in (norm, head))
    return one[0] == other[0] and one[2].isdigit() and other[2].isdigit()
