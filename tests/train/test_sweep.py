"""Plan of a sweep: combinations, folders, and the settings of each run."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitrail.commands.sweep import split_values
from vitrail.train.sweep import Combination, CombinationScores, choose_sweep_folder, combine, curves_of, plan_sweep, with_value
from vitrail.train.sweep_figure import draw_sweep

CHOICES = {"model.pool": ["cls", "avg"], "optim.lr": [1e-3, 1e-5]}


def test_combinations_are_the_product() -> None:
    found = combine(CHOICES, {})
    assert [each.name for each in found] == ["pool=cls,lr=0.001", "pool=cls,lr=1e-05", "pool=avg,lr=0.001", "pool=avg,lr=1e-05"]
    assert found[3].values == {"model.pool": "avg", "optim.lr": 1e-5}


def test_names_are_those_of_folders_and_different() -> None:
    sizes = combine({"model.name": ["S/16", "S-16", "../x"]}, {})
    assert [each.name for each in sizes] == ["name=S-16", "name=S-16-2", "name=..-x"]
    assert all("/" not in each.name for each in sizes)
    assert len({each.name for each in combine({"model.depth": [1, 2], "mae.decoder_depth": [1, 2]}, {})}) == 4
    several = combine({"model.drop_path_rate": [0.0, 0.1], "model.img_size": [(32, 48), 64]}, {})
    assert [each.name for each in several][:2] == ["drop_path_rate=0,img_size=32x48", "drop_path_rate=0,img_size=64"]
    same_field = combine({"model.drop_rate": [0.0, 0.1], "optim.lr": [1.0]}, {"model": {"depth": 1}})
    assert [each.name for each in same_field] == ["drop_rate=0,lr=1", "drop_rate=0.1,lr=1"]


@pytest.mark.parametrize(
    ("choices", "settings", "part"),
    [
        ({}, {}, "a sweep needs a setting"),
        ({"model.pol": ["cls"]}, {}, "model.pol is not a setting; did you mean model.pool?"),
        ({"train.seed": [1, 2]}, {}, "use --seeds N"),
        ({"optim.lr": []}, {}, "needs different values"),
        ({"optim.lr": [1, 1]}, {}, "needs different values"),
        ({"model.name": ["S/16", "B/16"]}, {"model": "Ti/16"}, "leave one of them out"),
        ({"optim.lr": [1, 2]}, {"optim": {"lr": 3}}, "leave one of them out"),
    ],
)
def test_choices_that_make_no_sweep(choices: dict[str, list[object]], settings: dict[str, object], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        combine(choices, settings)


def test_a_value_stands_beside_the_others() -> None:
    layer = {"model": "B/16", "augment": {"rand_augment": {"m": 5}, "flip": 0.0}}
    assert with_value(layer, "model.depth", 3)["model"] == {"name": "B/16", "depth": 3}
    found = with_value(layer, "augment.rand_augment.n", 1)
    assert found["augment"] == {"rand_augment": {"m": 5, "n": 1}, "flip": 0.0}
    assert layer["augment"] == {"rand_augment": {"m": 5}, "flip": 0.0}, "which stays as it is"


def test_each_run_has_its_settings_and_seed() -> None:
    settings = {"train": {"seed": 7, "steps": 2}}
    options = {"recipe": None, "config": None, "folder": Path("out")}
    runs = list(plan_sweep("fashion-sample", CHOICES, seeds=2, settings=settings, **options))  # type: ignore[arg-type]
    assert [run.seed for run in runs] == [7, 8] * 4
    assert runs[-1].folder == Path("out/pool=avg,lr=1e-05/seed-8")
    assert runs[-1].request.layer == {
        "train": {"seed": 8, "steps": 2},
        "model": {"pool": "avg"},
        "optim": {"lr": 1e-5},
        "data": {"path": "fashion-sample"},
    }


def test_the_next_free_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_sweep_folder(None, None) == Path("runs/fashion-sample-sweep-1")
    (tmp_path / "runs" / "photos-sweep-1").mkdir(parents=True)
    assert choose_sweep_folder(None, "some/photos") == Path("runs/photos-sweep-2")
    assert choose_sweep_folder("new", None) == Path("new")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is no sweep"):
        choose_sweep_folder("file", None)


def test_values_are_split_outside_of_brackets() -> None:
    assert split_values("cls, avg") == ["cls", "avg"]
    assert split_values("[8, 16],[8]") == ["[8, 16]", "[8]"]
    assert split_values("{n: 2, m: 9},null") == ["{n: 2, m: 9}", "null"]
    assert split_values("96x128") == ["96x128"]


def scores(accuracies: list[list[float]], *values: dict[str, object]) -> list[CombinationScores]:
    pairs = zip(values, accuracies, strict=True)
    return [CombinationScores(Combination(value, str(value)), list(each), [Path("x")] * len(each)) for value, each in pairs]


def test_curves_are_those_of_the_other_settings() -> None:
    parts = [{"data.fraction": share, "model.depth": depth} for depth in (1, 2) for share in (0.5, 1.0)]
    found = curves_of(scores([[0.5, 0.502], [0.596, 0.596], [0.5, 0.52], [0.5, 0.52]], *parts), device="cpu")
    assert [curve.where for curve in found] == ["model.depth=1", "model.depth=2"]
    assert found[0].gain == pytest.approx(0.095)
    assert "would help" in found[0].conclusion
    assert "no gain is shown" in found[1].conclusion
    assert curves_of(scores([[0.5], [0.6]], {"model.depth": 1}, {"model.depth": 2}), device="cpu") == ()
    assert curves_of(scores([[0.5]], {"data.fraction": 1.0}), device="cpu") == (), "the other runs failed"


@pytest.mark.parametrize(
    ("values", "curves", "rows"),
    [
        ([{"optim.lr": 1e-4, "model.pool": "cls"}, {"optim.lr": 1e-2, "model.pool": "cls"}], 1, 0),
        ([{"optim.lr": 1e-4, "model.pool": pool} for pool in ("cls", "avg")], 0, 2),
        ([{"data.pack": True}, {"data.pack": False}], 0, 2),
    ],
)
def test_numbers_are_drawn_as_a_curve_and_words_as_rows(values: list[dict[str, object]], curves: int, rows: int) -> None:
    axes = draw_sweep(scores([[0.7, 0.9], [0.8, 0.81]], *values)).axes[0]
    assert len([line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"]) == curves + rows  # type: ignore[arg-type]
    assert (len(axes.get_yticks()) == 2) == bool(rows)
    assert axes.get_xscale() == ("log" if curves else "linear")
