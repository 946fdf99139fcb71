"""Smaller models of recipes: read, checked, and applied below the user's settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from vitrail.models import check_model, meta_model
from vitrail.settings import Settings, layers
from vitrail.settings.smaller import SECTIONS, apply_smaller, read_smaller

DATA = {"model": {"in_channels": 3, "num_classes": 10, "img_size": 28}}


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes of our own, in the place of the package's."""
    texts = {
        "base": "model: Ti/16\nsmaller:\n  - model: {img_size: 64}\n    train: {batch_size: 32}\n  - model: {depth: 2}",
        "kin": "extends: base\nmodel: {depth: 10}",
        "grandchild": "extends: kin\noptim: {lr: 0.1}",
        "other": "extends: base\nmodel: S/16",
        "own": "extends: base\nsmaller: [{model: {depth: 1}}]",
        "none": "extends: base\nsmaller: []",
        "typo": "smaller: [{model: {dept: 1}}]",
        "section": "smaller: [{modle: {depth: 1}}]",
        "data": "smaller: [{model: {depth: 1}, data: {workers: 1}}]",
        "mapping": "smaller: {model: {depth: 1}}",
        "words": "smaller: [Ti/16]",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(layers, "RECIPES", tmp_path)
    return tmp_path


BASE = ({"model": {"img_size": 64}, "train": {"batch_size": 32}}, {"model": {"depth": 2}})


@pytest.mark.usefixtures("recipes")
@pytest.mark.parametrize(
    ("name", "smaller"),
    [("base", BASE), ("kin", BASE), ("grandchild", BASE), ("other", ()), ("own", ({"model": {"depth": 1}},)), ("none", ())],
)
def test_a_recipe_has_its_own_list_or_that_of_the_model_it_keeps(name: str, smaller: tuple[dict[str, Any], ...]) -> None:
    assert read_smaller(name) == smaller
    assert "smaller" not in layers.read_recipe(name), "a layer of settings holds sections alone"


@pytest.mark.usefixtures("recipes")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("typo", "recipe typo: smaller: model.dept is not a setting; did you mean model.depth?"),
        ("section", 'recipe section: smaller: "modle" is none of the sections'),
        ("data", "an entry sets model, augment, optim, train, and not data"),
        (
            "mapping",
            "recipe mapping: smaller is a list of sections, as in `smaller: [{model: {depth: 4}}]`; an entry is a mapping",
        ),
        ("words", "an entry is a mapping"),
        ("bas", 'recipe "bas" is none of .*; did you mean "base"'),
    ],
)
def test_a_wrong_entry_says_where_and_why(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message if name == "bas" else re.escape(message)):
        read_smaller(name)


def test_a_file_of_settings_has_no_smaller_models(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("smaller: [{model: {depth: 1}}]")
    with pytest.raises(ValueError, match='"smaller" is none of the sections model, data'):
        layers.read_config(tmp_path / "mine.yaml")


def test_requested_fields_stay() -> None:
    settings = layers.build([{"model": {"name": "Ti/16", "img_size": 128}, "optim": {"lr": 0.5}, "train": {"minutes": 2}}])
    smaller = {"model": {"img_size": 64, "depth": 3}, "train": {"batch_size": 16, "ema_decay": 0.9}, "optim": {"lr": 0.1}}
    applied = apply_smaller(settings, smaller, {"train": {"batch_size": 99, "precision": "auto"}, "optim": {"lr": 0.5}})
    assert (applied.model.img_size, applied.model.depth, applied.model.embed_dim) == (64, 3, 192)  # type: ignore[attr-defined]
    assert (applied.train.batch_size, applied.train.ema_decay, applied.optim.lr) == (256, 0.9, 0.5)
    assert applied.train.minutes == 2
    assert apply_smaller(settings, {}, {}) == settings


def entries() -> list[tuple[str, int]]:
    return [(name, index) for name in layers.recipes() for index in range(len(read_smaller(name)))]


def cost(settings: Settings) -> float:
    """Parameters times image area: grows with the time of a step."""
    side = settings.model.img_size
    assert isinstance(side, int)
    return sum(p.numel() for p in meta_model(settings.model).parameters()) * side**2


@pytest.mark.parametrize(("name", "index"), entries())
def test_each_smaller_model_of_the_package_builds_and_is_smaller_than_the_one_before(name: str, index: int) -> None:
    whole = layers.build([DATA, layers.read_recipe(name)])
    chain = [whole, *(apply_smaller(whole, smaller, {}) for smaller in read_smaller(name))]
    before, settings = chain[index], chain[index + 1]
    check_model(settings.model)
    assert cost(settings) < cost(before)
    assert settings.train.length() == whole.train.length()
    assert settings.data == whole.data
    assert not set(read_smaller(name)[index]) - set(SECTIONS)
    assert settings.train.seed == whole.train.seed


def test_photographs_have_smaller_models() -> None:
    assert read_smaller("from-scratch")
