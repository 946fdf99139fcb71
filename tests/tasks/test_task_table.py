"""The table of tasks: a row for each name, and recipes that build what the task takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitrail.data.sources import open_source
from vitrail.models import meta_model
from vitrail.settings import TrainConfig, layers
from vitrail.tasks import TASKS
from vitrail.train.folder import read_settings
from vitrail.train.plan import data_fields, find_task


def test_every_name_in_the_settings_has_a_row() -> None:
    assert TrainConfig().task in TASKS
    described = layers._documents(TrainConfig)["task"]
    assert all(f"{name}, " in described for name in TASKS)
    with pytest.raises(ValueError, match=r'^train.task "clasify" is none of classify, mae, .*; did you mean "classify"\?$'):
        find_task("clasify")


def test_what_a_row_leaves_unused_are_settings() -> None:
    known = layers.key_types()
    for task in TASKS.values():
        for entry in task.unused:
            key = entry.partition(" ")[0]
            assert key in known or key in layers.SECTIONS, entry


@pytest.mark.parametrize("name", [name for name in layers.recipes() if name.startswith("mae") and name != "mae-finetune"])
def test_recipes_of_the_masked_autoencoder_build(name: str) -> None:
    task, layer = TASKS["mae"], layers.read_recipe(name)
    cfg = layers.build(
        [data_fields(open_source("fashion-sample"), task), {"model": {"img_size": 224}} if name == "mae" else {}, layer]
    )
    assert cfg.train.task == "mae"
    task.check(cfg, meta_model(cfg.model))
    assert (cfg.augment.crop, cfg.augment.mixup_alpha, cfg.model.drop_path_rate) == ("resized", 0, 0)
    if name == "mae":  # the paper's table 8
        optim = cfg.optim
        assert (optim.lr, optim.betas, optim.weight_decay, optim.warmup) == (4 * 1.5e-4, (0.9, 0.95), 0.05, 40 / 800)
        assert (cfg.mae.mask_ratio, cfg.mae.decoder_dim, cfg.mae.decoder_depth) == (0.75, 512, 8)


def test_the_default_recipe_is_of_the_images(tmp_path: Path) -> None:
    task = TASKS["mae"]
    assert task.recipe_for(open_source("fashion-sample")) == "mae-small"
    assert {task.recipe, task.small_recipe} <= set(layers.recipes())


def test_settings_from_before_there_were_tasks_are_of_classification(tmp_path: Path) -> None:
    text = layers.to_yaml(layers.build([{"optim": {"lr": 0.5}}]))
    old = [line for line in text.splitlines() if not line.startswith("  task:")]
    start = old.index("mae:")
    del old[start : old.index("train:")]
    assert "mae" not in "\n".join(old)
    (tmp_path / "config.yaml").write_text("\n".join(old) + "\n")
    found = read_settings(tmp_path)
    assert (found.train.task, found.optim.lr) == ("classify", 0.5)
    assert found == layers.build([{"optim": {"lr": 0.5}}])
