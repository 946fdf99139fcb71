"""What training scripts wrap around a state dict, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vitrail.weights.unwrap import CheckpointError, Tensors, from_numpy, unwrap


def state(value: float) -> dict[str, Tensor]:
    return {"blocks.0.norm1.weight": torch.full((3,), value), "head.bias": torch.zeros(2)}


MOMENTS = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}


def first(tensors: Mapping[str, Tensor]) -> float:
    return tensors["blocks.0.norm1.weight"][0].item()


@pytest.mark.parametrize(
    ("tree", "note"),
    [
        (state(1), None),
        ({"state_dict": state(1)}, None),
        ({"model": state(1), "optimizer": MOMENTS, "epoch": 3, "args": None, "scaler": {"scale": torch.ones(1)}}, None),
        ({"model": state(0), "model_ema": state(1), "optimizer": MOMENTS}, "took model_ema; the file also holds model"),
        ({"state_dict": state(0), "state_dict_ema": state(1)}, "took state_dict_ema; the file also holds state_dict"),
        (
            {"student": state(0), "teacher": state(1), "dino_loss": {"center": torch.ones(1, 4)}},
            "took teacher; the file also holds student",
        ),
        (
            {"encoder": state(0), "predictor": state(0), "opt": MOMENTS, "target_encoder": state(1)},
            "took target_encoder; the file also holds encoder, predictor",
        ),
        ({"encoder": state(1), "opt": {"state": {}}}, None),
        ({"module": {"model": {"state_dict": state(1)}}}, None),
        ({"model": state(1), "rng_state": torch.zeros(10, dtype=torch.uint8)}, None),
        ({"state_dict": state(1), "ema": {"decay": 0.9, "updates": torch.tensor(5)}}, None),  # an average with no weights
        ({"model_ema": {}, "model": state(1)}, None),
        ({"my_run": state(1), "epoch": 2}, "took my_run"),
        ({**state(1), "extra": {"a.b": torch.ones(2)}}, "took the tensors at the top; the file also holds extra"),
        ({**state(0), "ema": state(1)}, "took ema; the file also holds 2 tensors beside it"),
        (
            {  # Lightning
                "epoch": 1,
                "state_dict": state(1),
                "optimizer_states": [MOMENTS],
                "callbacks": {"best": {"score": torch.ones(1)}},
                "hyper_parameters": {"lr": 1},
            },
            None,
        ),
    ],
)
def test_the_state_dict_is_found(tree: dict[str, Any], note: str | None) -> None:
    tensors, notes = unwrap(tree, "x.pth")
    assert first(tensors) == 1
    assert sorted(tensors) == ["blocks.0.norm1.weight", "head.bias"]
    assert tensors.shapes == {"blocks.0.norm1.weight": (3,), "head.bias": (2,)}
    assert notes == ((note,) if note else ())


def test_prefixes_stay() -> None:
    tensors, _ = unwrap({"state_dict": {"module.backbone.norm.weight": torch.ones(2)}}, "x")
    assert list(tensors) == ["module.backbone.norm.weight"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_tree_of_flax_gets_the_names_of_google_s_files(wrapped: bool) -> None:
    tree: dict[str, Any] = {
        "embedding": {"kernel": np.ones((2, 3), np.float32)},
        "encoder": {"block_0": {"scale": np.zeros(4, np.float32)}},
        "step": 7,
    }
    tensors, notes = unwrap({"params": tree, "opt_state": tree} if wrapped else tree, "x")
    assert tensors.shapes == {"embedding/kernel": (2, 3), "encoder/block_0/scale": (4,)}
    assert not any("encoder" in note for note in notes)


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({}, "holds no weights: it has no keys at all"),
        ({"epoch": 3, "model": None}, "holds no weights: its keys are epoch, model;"),
        ({"model": {"epoch": 3}}, "holds no weights: its keys are model;"),
        ({"state": torch.tensor(1.0)}, "holds no weights"),
        ({"optimizer": MOMENTS}, "holds no weights: its keys are optimizer;"),
        ({f"k{i}": i for i in range(99)}, r"k6, k7, … \(99 in all\);"),
        ({"first": state(1), "second": state(1)}, "holds tensors under first, second, none of which is a usual name"),
        ({"a.b": np.ones(2, np.longdouble)}, 'x.pth: "a.b" has the number type (float128|longdouble), which torch lacks'),
    ],
)
def test_no_state_dict_in_it(tree: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        unwrap(tree, "x.pth")
    assert str(error.value).startswith("x.pth")
    assert "\n" not in str(error.value)


def test_what_goes_round_in_circles_ends() -> None:
    circle: dict[str, Any] = {"model": {"a.b": torch.ones(1)}}
    circle["model"]["model"] = circle["model"]
    with pytest.raises(CheckpointError, match="deeper than 16"):
        unwrap(circle, "x")
    shared: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(100):  # as a tree it has 2^100 leaves
        shared = {"x": shared, "y": shared}
    with pytest.raises(CheckpointError, match="twice, inside itself or too deep"):
        unwrap(shared, "x")
    deep: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(20_000):
        deep = {"x": deep, "w": torch.ones(1)}
    with pytest.raises(CheckpointError, match="too deep"):
        unwrap(deep, "x")
    while deep := deep.pop("x", {}):  # freed one by one: an interpreter may not free so deep a dict at once
        pass


def test_a_message_is_one_line() -> None:
    with pytest.raises(CheckpointError) as error:
        unwrap({"evil\nkey\x1b[31m": 1}, "x.pth")
    assert str(error.value).isprintable()
    assert len(str(CheckpointError("x" * 10_000))) < 1010


def test_leaves_come_out_plain_and_without_copies() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    array = np.ones(3, np.float32)
    tensors, _ = unwrap(MappingProxyType({"weight": weight, "array": array}), "x")
    assert not tensors["weight"].requires_grad
    assert tensors["weight"].data_ptr() == weight.data_ptr()
    array[0] = 5
    assert tensors["array"][0] == 5
    with pytest.raises(CheckpointError, match='"w" is on the meta device and has no numbers'):
        unwrap({"w": torch.ones(3, device="meta")}, "x")


def test_tensors_is_a_mapping_that_takes_only_what_is_asked_for() -> None:
    taken: list[str] = []

    def take(name: str) -> Tensor:
        taken.append(name)
        return torch.ones(2)

    tensors = Tensors({"a": (2,), "b": (2,)}, take)
    assert ("a" in tensors, "c" in tensors, len(tensors), list(tensors), repr(tensors)) == (
        *(True, False, 2, ["a", "b"]),
        "Tensors(2 names)",
    )
    assert taken == []
    assert tensors["b"].sum() == 2
    assert taken == ["b"]
    with pytest.raises(KeyError):
        tensors["c"]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        np.arange(6, dtype=np.float16)[::-1].reshape(2, 3),
        np.full((), 3, np.float32),
        np.zeros((0, 3), np.int8),
        np.arange(6, dtype=np.uint16),
        np.array([True, False]),
        np.array([1 + 2j], np.complex64),
    ],
)
def test_arrays_of_any_kind(array: np.ndarray) -> None:
    array.flags.writeable = False
    tensor = from_numpy(array)
    assert tuple(tensor.shape) == array.shape
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_two_nameless_bytes_are_bfloat16() -> None:
    values = torch.tensor([[1.0, -2.5, 3e38]]).bfloat16()
    array = values.view(torch.uint16).numpy().view("V2")
    assert torch.equal(from_numpy(array), values)
    with pytest.raises(CheckpointError, match=r"number type \|V3"):
        from_numpy(np.zeros(2, "V3"))
