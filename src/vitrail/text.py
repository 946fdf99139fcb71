"""Show text that is not ours, such as names of files and values of a config, on a terminal: one line stays one line.

Line breaks, escape codes and characters that reverse or hide others become visible escapes, as in "\\\\x1b".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_JOINERS = ("\u200c", "\u200d")  # Persian words, words of India and emoji are spelled with them
_BREAKS = re.compile(r"[ \t\n\r\f\v]*[\t\n\r\f\v][ \t\n\r\f\v]*")


def printable(text: object, *, lines: bool = False) -> str:
    """The text with every character that a terminal would obey, or not show, as an escape.

    With `lines` it may be several lines: line feeds stay.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        c if (lines and c == "\n") or (is_shown(c) and not (c in _JOINERS and hides(c, behind=before))) else escape(c)
        for before, c in zip(" " + shown, shown, strict=False)
    )


def escape(character: str) -> str:
    """Return the character as Python spells it: \\x1b, \\u2028."""
    return character.encode("unicode_escape").decode()


def hides(joiner: str, *, behind: str) -> bool:
    """Return whether a joiner has no effect but to make a name another one: behind a Latin letter it is invisible.

    A zero-width joiner has a use behind a virama, an Arabic letter or an emoji (RFC 5892, appendix A).
    """
    return not (
        unicodedata.combining(behind) == 9  # virama
        or unicodedata.bidirectional(behind) == "AL"
        or (joiner == "\u200d" and (behind == "\ufe0f" or (behind > "\u2190" and unicodedata.category(behind) in ("So", "Sk"))))
    )


def is_shown(character: str) -> bool:
    """Return whether a character is one to read: no control, format, surrogate, private or unassigned one, no line break."""
    if character.isprintable() or character in _JOINERS:
        return True
    return unicodedata.category(character) == "Zs"  # spaces of other widths


def one_line(text: object) -> str:
    """The text on one line: a line break or tab, and the spaces around it, as one space; the rest `printable`."""
    return printable(_BREAKS.sub(" ", str(text).strip(" \t\n\r\f\v")))


def listed(names: Sequence[str]) -> str:
    """The first names of many, and how many there are."""
    return ", ".join(names[:3]) + (f" … ({len(names)})" if len(names) > 3 else "")


def json_escaped(text: str) -> str:
    """JSON, whose strings have escapes for every character that is not `printable`: the same values, safe to show."""

    def escaped(found: re.Match[str]) -> str:
        character = found[0]
        if is_shown(character):
            return character
        units = character.encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{int.from_bytes(units[i : i + 2], 'big'):04x}" for i in range(0, len(units), 2))

    return re.sub(r"[^\n -~]", escaped, text)


@contextmanager
def printable_errors() -> Iterator[None]:
    """Makes the message of a ValueError that leaves here one line."""
    try:
        yield
    except ValueError as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (printable(error.args[0]), *error.args[1:])
        raise
