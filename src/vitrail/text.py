"""Escape untrusted text, such as file names and values of a config, for a terminal: one line stays one line.

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
    """Escape control characters and invisible characters in a text.

    With `lines`, line feeds stay.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        c if (lines and c == "\n") or (is_shown(c) and not (c in _JOINERS and hides(c, behind=before))) else escape(c)
        for before, c in zip(" " + shown, shown, strict=False)
    )


def escape(character: str) -> str:
    """Return the Python escape of a character: \\x1b, \\u2028."""
    return character.encode("unicode_escape").decode()


def hides(joiner: str, *, behind: str) -> bool:
    """Return True for a joiner that is invisible behind a character, so that two different names look the same.

    A zero-width joiner is visible behind a virama, an Arabic letter or an emoji (RFC 5892, appendix A).
    """
    return not (
        unicodedata.combining(behind) == 9  # virama
        or unicodedata.bidirectional(behind) == "AL"
        or (joiner == "\u200d" and (behind == "\ufe0f" or (behind > "\u2190" and unicodedata.category(behind) in ("So", "Sk"))))
    )


def is_shown(character: str) -> bool:
    """Return True for a visible character: no control, format, surrogate, private or unassigned one, no line break."""
    if character.isprintable() or character in _JOINERS:
        return True
    return unicodedata.category(character) == "Zs"  # spaces of other widths


def one_line(text: object) -> str:
    """Return the text on one line: a line break or tab, with the spaces around it, becomes a space; the rest is `printable`."""
    return printable(_BREAKS.sub(" ", str(text).strip(" \t\n\r\f\v")))


def listed(names: Sequence[str]) -> str:
    """Return the first three names and, if there are more, the number of all."""
    return ", ".join(names[:3]) + (f" … ({len(names)})" if len(names) > 3 else "")


def json_escaped(text: str) -> str:
    """Escape every character of a JSON text that is not printable; the values stay the same."""

    def escape_match(match: re.Match[str]) -> str:
        character = match[0]
        if is_shown(character):
            return character
        units = character.encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{int.from_bytes(units[i : i + 2], 'big'):04x}" for i in range(0, len(units), 2))

    return re.sub(r"[^\n -~]", escape_match, text)


@contextmanager
def printable_errors() -> Iterator[None]:
    """Escape the message of a ValueError raised in this context, so that it is one line."""
    try:
        yield
    except ValueError as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (printable(error.args[0]), *error.args[1:])
        raise
