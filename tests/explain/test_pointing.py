"""A model learns to name the colour of a small square in noise, here and now: relevance has to find the square."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def pointing() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("pointing", BENCHMARKS / "pointing.py")
        assert spec is not None
        assert spec.loader is not None
        module: ModuleType = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "pointing", module)
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize(("head", "least"), [("mean of the patches", 0.95), ("class token", 0.6)])
@pytest.mark.slow
def test_relevance_finds_what_decides(pointing: Any, head: str, least: float, record_property: Any) -> None:
    """Of a class token it finds less: what the token is full of has no gradient, unless the norms' scales are held."""
    model = pointing.trained(**pointing.HEADS[head])
    right = pointing.named_right(model, pointing.squares(200, seed=7))
    assert len(right.labels) >= 190, "the model has to know the colours first"
    scores = {
        name: pointing.hits(method(model, right.images).maps, right.corners).float().mean().item()
        for name, method in pointing.METHODS.items()
    }
    record_property("pointing", scores)
    print({name: f"{score:.1%}" for name, score in scores.items()})  # rollout and attention as they are
    chance = pointing.touched(right.corners).float().mean().item()
    assert chance < 0.1
    assert scores["relevance"] >= least
    assert scores["relevance, norms held"] >= 0.95


def test_a_hit_is_a_patch_that_touches_the_square(pointing: Any) -> None:
    corners = torch.tensor([[3, 27], [8, 0]])
    touched = pointing.touched(corners)
    assert touched[0].nonzero().tolist() == [[0, 6], [0, 7], [1, 6], [1, 7]], "rows 3 to 7, columns 27 to 31"
    assert touched[1].nonzero().tolist() == [[2, 0], [2, 1], [3, 0], [3, 1]]
    maps = torch.zeros(2, 8, 8)
    maps[0, 1, 7] = maps[1, 1, 0] = 1.0
    assert pointing.hits(maps, corners).tolist() == [True, False]
