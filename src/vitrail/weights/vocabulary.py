"""Words in the names of tensors: what they say of attention, MLP, positions and tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable

ATTENTION = {"msa", "mha", "mhsa", "sa", "self", "selfattn", "multihead", "head", "heads"}
MLP = {"mlp", "ffn", "ff", "feed", "forward", "feedforward", "ffwd", "fc", "dense", "linear", "expand", "contract"}
WORDS = {
    "q": {"q", "query", "queries", "wq"},
    "k": {"k", "key", "keys", "wk"},
    "v": {"v", "value", "values", "wv"},
    "qkv": {"qkv", "in"},
    "proj": {"o", "out", "output", "proj", "projection", "wo", "unify", "unifyheads", "combine"},
}
STEM = {"patch", "patches", "patcher", "embed", "embedding", "input", "projection", "proj"}


def words_of(name: str) -> list[str]:
    """Return the words and numbers of a name, in lower case: "toQueries.W_q" is to, queries, w, q."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def is_attention(words: Iterable[str]) -> bool:
    """Return True for words of attention."""
    return any("att" in word or word in ATTENTION for word in words)


def is_mlp(words: Iterable[str]) -> bool:
    """Return True for words of an MLP."""
    return any(word in MLP for word in words)


def natural(name: str) -> list[tuple[int, str]]:
    """Return a key by which names sort with their numbers as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", name)]


def digits_differ(one: str, other: str) -> bool:
    """Return True for names that differ in their numbers only, or in single letters: norm_a, norm_b."""
    counters = re.compile(r"\d+|(?<=[._])[a-d](?=[._]|$)")
    return one != other and counters.sub("#", one) == counters.sub("#", other)


def is_position(name: str) -> bool:
    """Return True for a name of positions."""
    return any(word.startswith("pos") or word == "pe" for word in words_of(name))


def is_mask(name: str) -> bool:
    """Return True for a name of MAE's mask token."""
    return "mask" in words_of(name)
