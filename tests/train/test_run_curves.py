"""Curves of a run: which values are drawn, and the file."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from vitrail.train.curves import draw_curves, write_curves
from vitrail.weights.run_log import points

RECORDS = [
    {"step": 0, "val_effective_rank": 9.0, "val_uniformity": -1.0},
    {"step": 5, "loss": 2.0, "lr": 1e-3},
    {"step": 5, "check_effective_rank": 8.0},
    {"step": 9, "loss": None, "lr": 2e-3},  # a loss that was not finite
    {"step": 10, "val_effective_rank": 11.0, "val_uniformity": -1.5},
]


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_a_plot_for_each_kind_of_value_that_is_there() -> None:
    figure = draw_curves(RECORDS)
    assert titles(figure) == ["Loss", "Learning rate", "Effective rank", "Uniformity, lower is more even"]
    rank = figure.axes[2]
    assert [list(line.get_xdata()) for line in rank.lines] == [[0, 10], [5]]
    assert titles(draw_curves(RECORDS[:1])) == ["Effective rank", "Uniformity, lower is more even"]
    in_use = [{"step": 5, "check_spread": 0.4}, {"step": 5, "check_prototypes": 9.0}]
    assert titles(draw_curves(in_use)) == ["Share of the output dimensions in use", "Prototypes in use"]
    assert points(RECORDS, "loss") == [(5, 2.0)]


def test_the_file_is_written_whole_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    assert write_curves(tmp_path) is None
    text = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 11, "lo')
    path = write_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    with Image.open(path) as picture:
        assert picture.width > picture.height
    assert {each.name for each in tmp_path.iterdir()} == {"metrics.jsonl", "curves.png"}
