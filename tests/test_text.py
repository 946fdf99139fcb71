from __future__ import annotations

import io
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail import terminal
from vitrail.console import PlainConsole
from vitrail.text import is_shown, json_escaped, one_line, printable, printable_errors

ANY = st.text(st.characters(codec=None, categories=None), max_size=20) | st.text(
    "\x1b[31m]\n\r\t\x85\u2028\u202e\udcff:smile[/]$", max_size=20
)


@given(ANY)
def test_one_line_whatever_it_holds(text: str) -> None:
    for shown in (printable(text), one_line(text)):
        assert len(shown.splitlines()) <= 1
        assert all(map(is_shown, shown))
        shown.encode()
    assert "\x1b" not in printable(text, lines=True)
    assert printable(text, lines=True).count("\n") == text.count("\n")
    assert printable(printable(text)) == printable(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred", r"a\x1b[31mred"),
        ("two\nlines\r\ttab", r"two\nlines\r\ttab"),
        ("\x85\x9b\x7f\x00", r"\x85\x9b\x7f\x00"),
        ("\u2028\u2029\u202egnp.exe\u200e\ufeff", r"\u2028\u2029\u202egnp.exe\u200e\ufeff"),
        ("\udcff\ue000\U000e0041", r"\udcff\ue000\U000e0041"),
        ("[bold]:smile:", "[bold]:smile:"),
        ("cat\u200d", r"cat\u200d"),
        ("\u200cc\u200cat", r"\u200cc\u200cat"),
        ("`\u200d", r"`\u200d"),
        ("👩\u200d\u200d", "👩\u200d" + r"\u200d"),
    ],
)
def test_what_a_terminal_would_obey_shows(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "café",
        "cafe\u0301",
        "犬　猫",
        "می\u200cخواهم",
        "👨\u200d👩\u200d👧",
        "👩🏽\u200d⚕️",
        "👁️\u200d🗨️",
        "क्\u200dष",
        "1\u00a0000",
        "naïve — “x”",
        r"C:\new",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert printable(text) == text


@given(st.recursive(ANY, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY, inner, max_size=3)))
def test_json_is_the_same_values_without_what_a_terminal_obeys(value: object) -> None:
    shown = json_escaped(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(shown) == json.loads(json.dumps(value))
    assert all(is_shown(c) or c == "\n" for c in shown)
    shown.encode()


@given(ANY)
def test_a_table_s_cells_are_lines(text: str) -> None:
    table, file = terminal.make_table("name", "x"), io.StringIO()
    table.add_row(text, "1")
    console = PlainConsole(file=file, width=1000)
    console.print(table)
    console.print(text)
    lines = file.getvalue().split("\n")
    assert lines[2].startswith(printable(text).rstrip())
    assert all(is_shown(c) for line in lines for c in line)
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (" a\n   b\t\r\n c\n", "a b c"),
        ('depth "\x1e": a number', r'depth "\x1e": a number'),
        ("a\u2028b\x85c", r"a\u2028b\x85c"),
        ("two  spaces, one\u3000wide", "two  spaces, one\u3000wide"),
    ],
)
def test_only_line_breaks_become_spaces(text: str, line: str) -> None:
    assert one_line(text) == line


def test_errors_leave_as_one_line() -> None:
    @printable_errors()
    def fails(text: str) -> None:
        raise ValueError(f'name "{text}"')

    with pytest.raises(ValueError, match=r'^name "a\\x1eb"$'):
        fails("a\x1eb")


def test_every_control_and_format_character_shows() -> None:
    for point in range(0x11000):
        if unicodedata.category(chr(point)) in ("Cc", "Cs", "Zl", "Zp"):
            assert printable(chr(point)).startswith("\\")
