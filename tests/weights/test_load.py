from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vitrail
from vitrail.weights import load


def test_a_name_gives_a_fresh_model() -> None:
    torch.manual_seed(0)
    model = load("Ti/16")
    assert (model.config.embed_dim, model.config.depth, model.config.patch_size) == (192, 12, 16)
    assert (model.preprocessing, model.classes) == (None, ())
    assert vitrail.load is load


def test_neither_a_folder_nor_a_name(tmp_path: Path) -> None:
    for source in ("runs/first", "b/16", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=r'^".*" is neither a run folder nor a name of a model \(model ".*\)$') as error:
            load(source)
        assert str(source) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load(tmp_path)
