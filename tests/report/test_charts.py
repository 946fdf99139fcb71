"""Charts: well-formed, within their frame, and what they show is in their marks."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.evaluate.calibration import ReliabilityBin
from vitrail.report import charts
from vitrail.report.charts import (
    Axis,
    IntervalRow,
    Series,
    histogram,
    interval_chart,
    layer_chart,
    line_chart,
    reliability_diagram,
)
from vitrail.report.matrix import MOST, alike_together, components, confusion_chart, shown_order

VALUES = st.floats(-1e5, 1e5, allow_nan=False)


def parsed(drawing: str) -> ET.Element:
    """Return the SVG as a tree, after a look that nothing leaves the picture by more than its edge."""
    root = ET.fromstring(drawing)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"]
    for place in root.iter("circle"):
        assert -2 <= float(place.attrib["cx"]) <= width + 12
        assert -12 <= float(place.attrib["cy"]) <= height + 2
    return root


@given(points=st.lists(st.tuples(st.integers(0, 1000), VALUES), min_size=1, max_size=30, unique_by=lambda point: point[0]))
def test_a_line_has_its_points(points: list[tuple[int, float]]) -> None:
    root = parsed(line_chart([Series("a <b>", sorted(points), marks=True)], x=Axis("step"), y=Axis("loss"), label="Loss"))
    assert len(list(root.iter("circle"))) == len(points)


def test_lines_have_a_legend_and_bands() -> None:
    points = [(1.0, 0.2), (2.0, 0.4)]
    series = [Series("one", points, [(0.1, 0.3), (0.3, 0.5)]), Series("two & more", points), Series("empty", [])]
    root = parsed(line_chart(series, x=Axis("x"), y=Axis("y", share=True), label="Two lines"))
    words = [each.text for each in root.iter("text")]
    assert "one" in words
    assert "two & more" in words
    assert "empty" not in words
    assert "40 %" in words
    assert len([each for each in root.iter("path") if "band" in each.attrib["class"]]) == 1
    assert line_chart([Series("empty", [])], x=Axis("x"), y=Axis("y"), label="Nothing") == ""
    assert line_chart([Series("nan", [(1, float("nan"))])], x=Axis("x"), y=Axis("y"), label="Nothing") == ""


def test_long_lines_are_thinned_to_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(10 * charts.MOST_POINTS)]
    found = charts.thinned(Series("loss", points))
    assert len(found.points) <= charts.MOST_POINTS
    assert {value for _, value in found.points} == {0.5}


def test_intervals_stand_in_lines_with_their_names() -> None:
    rows = [IntervalRow("<script>", 0.5, (0.4, 0.6), "12"), IntervalRow("other", 1.0, (0.9, 1.0), "3")]
    root = parsed(interval_chart(rows, reference=0.7, axis=Axis("accuracy", (0.0, 1.0), share=True), label="Classes"))
    words = [each.text for each in root.iter("text")]
    assert {"<script>", "other", "12", "3", "accuracy", "0 %", "100 %"} <= set(words)
    assert len(list(root.iter("circle"))) == 2
    assert interval_chart([], reference=None, axis=Axis("x"), label="Nothing") == ""


def test_reliability_has_a_point_for_each_bin_and_the_diagonal() -> None:
    bins = [ReliabilityBin(10, 0.3, 0.2, (0.05, 0.5)), ReliabilityBin(10, 0.9, 0.95, (0.7, 1.0))]
    root = parsed(reliability_diagram(bins, label="Reliability"))
    assert len(list(root.iter("circle"))) == 2
    assert any("reference" in each.attrib["class"] for each in root.iter("path"))
    parsed(reliability_diagram(bins[:1], label="One bin"))


@given(values=st.lists(VALUES, min_size=1, max_size=50), threshold=st.none() | VALUES)
def test_bars_are_of_the_values(values: list[float], threshold: float | None) -> None:
    root = parsed(histogram(values, threshold=threshold, axis=Axis("energy"), label="Energy"))
    assert 1 <= len(list(root.iter("rect"))) <= 40


def test_bars_beyond_the_threshold_have_another_colour() -> None:
    root = parsed(histogram([0.0] * 5 + [10.0], threshold=5.0, axis=Axis("energy"), label="Energy"))
    assert [each.attrib["class"] for each in root.iter("rect")] == ["bar c1", "bar c2"]


def test_layers_have_a_dot_for_each_head() -> None:
    root = parsed(layer_chart([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]], reference=2.5, axis=Axis("patches"), label="Distance"))
    assert len(list(root.iter("circle"))) == 6
    parsed(layer_chart([[0.0]], reference=None, axis=Axis("patches"), label="One head"))


# --------------------------------------------------------------------------------------------------------------------
# Confusion matrix


def test_few_classes_carry_counts_and_keep_their_order() -> None:
    matrix = np.array([[8, 2, 0], [0, 5, 5], [0, 0, 0]])
    root = parsed(confusion_chart(matrix, ["cat", "<dog>", "nobody"], label="Matrix"))
    titles = [each.text for each in root.iter("title")]
    assert titles == [
        "cat → cat: 8 of 10 (80.0 %)",
        "cat → <dog>: 2 of 10 (20.0 %)",
        "<dog> → <dog>: 5 of 10 (50.0 %)",
        "<dog> → nobody: 5 of 10 (50.0 %)",
    ]
    cells = [float(each.attrib["fill-opacity"]) for each in root.iter("rect") if "fill-opacity" in each.attrib]
    assert cells == pytest.approx([0.8**0.5, 0.2**0.5, 0.5**0.5, 0.5**0.5], abs=0.01)
    assert {"8", "2", "5"} <= {each.text for each in root.iter("text")}
    assert shown_order(matrix) == [0, 1, 2]


def blocks(groups: int, size: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix whose classes are confused within groups alone, in random order, and the group of each."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(groups), size))
    matrix = np.where(group[:, None] == group[None], rng.integers(1, 9, (groups * size, groups * size)), 0)
    np.fill_diagonal(matrix, 50)
    return matrix, group


def test_many_classes_stand_beside_those_they_are_taken_for() -> None:
    matrix, group = blocks(10, 10)
    order = shown_order(matrix)
    assert sorted(order) == list(range(100))
    changes = int((np.diff(group[order]) != 0).sum())
    assert changes == 9, "each group is in one piece"


def test_a_chain_is_unrolled() -> None:
    chain = np.zeros((30, 30), dtype=int)
    places = np.random.default_rng(0).permutation(30)
    for a, b in pairwise(places.tolist()):
        chain[a, b] = 4
    order = alike_together(chain)
    assert order in (places.tolist(), places[::-1].tolist())


def test_classes_beyond_the_picture_are_those_with_fewer_mistakes() -> None:
    matrix, _ = blocks(1, 1)
    matrix = np.diag(np.full(MOST + 30, 9))
    matrix[5, 7] = 3
    order = shown_order(matrix)
    assert len(order) == MOST
    assert {5, 7} <= set(order)


def test_groups_are_found() -> None:
    linked = np.zeros((5, 5), dtype=bool)
    linked[0, 3] = linked[3, 0] = True
    assert components(linked) == [[0, 3], [1], [2], [4]]


def test_a_matrix_of_a_hundred_classes_is_small_and_can_be_read() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.multinomial(10_000, rng.dirichlet(np.full(10_000, 0.3))).reshape(100, 100)
    drawing = confusion_chart(matrix, [f"class number {k}" for k in range(100)], label="Matrix")
    assert len(drawing) < 1_500_000
    style = parsed(drawing).attrib["style"]
    least = float(re.search(r"min-width:(\d+)px", style)[1])  # type: ignore[index]
    assert least >= 800, "a phone scrolls it instead of shrinking it"
