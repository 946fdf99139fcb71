"""Terminal output for untrusted text: no markup, and control characters are escaped."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from vitrail.text import printable


class PlainConsole(Console):
    """A rich console that prints every string literally, in tables as well: no [markup], no :emoji:, no escape codes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """See rich.console.Console.render_str."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})
