"""Show text that is not ours, such as names of files and values of a config, on a terminal: one line stays one line.

Line breaks, escape codes and characters that reverse or hide others become visible escapes, as in "\\\\x1b".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

_KEPT = ("\u200c", "\u200d")  # joiners: Persian words and emoji are spelled with them


def printable(text: object, *, lines: bool = False) -> str:
    """The text with every character that a terminal would obey, or not show, as an escape.

    With `lines` it may be several lines: line feeds stay.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if is_shown(c) or (lines and c == "\n") else c.encode("unicode_escape").decode() for c in shown)


def is_shown(character: str) -> bool:
    """Return whether a character is one to read: no control, format, surrogate, private or unassigned one, no line break."""
    if character.isprintable() or character in _KEPT:
        return True
    return unicodedata.category(character) == "Zs"  # spaces of other widths


def one_line(text: object) -> str:
    """The text on one line: white space as single spaces, and the rest `printable`."""
    return printable(" ".join(str(text).split()))


def json_escaped(text: str) -> str:
    """JSON, whose strings have escapes for every character that is not `printable`: the same values, safe to show."""

    def escape(found: re.Match[str]) -> str:
        character = found[0]
        if is_shown(character):
            return character
        units = character.encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{int.from_bytes(units[i : i + 2], 'big'):04x}" for i in range(0, len(units), 2))

    return re.sub(r"[^\n -~]", escape, text)


@contextmanager
def printable_errors() -> Iterator[None]:
    """Makes the message of a ValueError that leaves here one line."""
    try:
        yield
    except ValueError as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (printable(error.args[0]), *error.args[1:])
        raise
