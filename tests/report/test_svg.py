"""SVG elements, scales and ticks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.report.svg import Scale, element, picture, shortened, text, tick_labels, ticks, widened

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def test_elements_are_escaped() -> None:
    assert (
        element("text", "<b>&", class_='a"b', x=1.50, text_anchor=None) == '<text class="a&#34;b" x="1.5">&lt;b&gt;&amp;</text>'
    )
    assert element("rect", fill_opacity=0.25) == '<rect fill-opacity="0.25"/>'
    inner = element("title", "x < y")
    assert element("g", inner) == "<g><title>x &lt; y</title></g>", "an element is not escaped again"
    assert "&lt;/svg&gt;" in picture(10, 10, label="</svg>")
    assert text(1, 2, "a\nb", rotate=-90) == '<text x="1" y="2" text-anchor="start" transform="rotate(-90 1 2)">a b</text>'


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_place_that_is_no_number_is_our_bug(value: float) -> None:
    with pytest.raises(AssertionError, match="not finite"):
        element("rect", x=value)


@given(low=FINITE, high=FINITE, count=st.integers(1, 10))
def test_ticks_are_round_and_within(low: float, high: float, count: int) -> None:
    low, high = min(low, high), max(low, high)
    found = ticks(low, high, count=count)
    room = 1e-6 * max(1.0, high - low, abs(low), abs(high))
    assert all(low - room <= value <= high + room for value in found)
    assert len(found) <= 2 * count + 2
    assert found == sorted(found)


def test_ticks_of_whole_numbers_are_whole() -> None:
    assert ticks(0, 2, count=5, whole=True) == [0, 1, 2]
    assert ticks(-0.5, 0.5, whole=True) == [0]
    assert ticks(0, 0.8, count=4) == [0, 0.2, 0.4, 0.6000000000000001, 0.8]
    assert ticks(3, 3) == [3]


@pytest.mark.parametrize(
    ("values", "share", "labels"),
    [
        ([0.0, 0.5, 1.0], True, ["0 %", "50 %", "100 %"]),
        ([0.99, 0.995, 1.0], True, ["99.0 %", "99.5 %", "100.0 %"]),
        ([1000.0, 2000.0], False, ["1,000", "2,000"]),
        ([1.0105, 1.011], False, ["1.0105", "1.0110"]),
        ([2e-7, 4e-7], False, ["2.0e-07", "4.0e-07"]),
        ([3.0], False, ["3"]),
        ([], False, []),
    ],
)
def test_labels_tell_ticks_apart(values: list[float], share: bool, labels: list[str]) -> None:
    assert tick_labels(values, share=share) == labels


def test_bounds_have_room_and_shares_end() -> None:
    low, high = widened(0.5, 0.7)
    assert low < 0.5 < 0.7 < high
    assert widened(1.0, 1.0, share=True) == (0.9, 1.0)
    assert widened(0.0, 0.0) == (-1.0, 1.0)


def test_a_scale_maps_ends_to_ends() -> None:
    scale = Scale(10, 20, 100, 50)
    assert (scale(10), scale(20), scale(15)) == (100, 50, 75)
    assert Scale(1, 1, 0, 10)(1) == 5
    assert scale(1e9) == pytest.approx(49), "a value far outside is at the edge"


def test_names_are_shortened_in_the_middle() -> None:
    assert shortened("a name", 6) == "a name"
    assert shortened("0123456789", 7) == "012…789"
    assert len(shortened("0123456789", 4)) == 4
    assert shortened("a\tb\u202e", 20) == "a b\\u202e"
