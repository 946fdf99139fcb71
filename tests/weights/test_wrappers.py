"""What training scripts wrap around a model's names, and what stands beside it: the model inside is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import DIM, HEADS, of_timm, random_like, renamed, same, some_images, timm_vit
from torch import Tensor, nn

import vitrail
from vitrail.models.receipt import Receipt

State = dict[str, Tensor]
MODEL = timm_vit()
STATE: State = MODEL.state_dict()
IMAGES = some_images(64)
EXPECTED = of_timm(MODEL, IMAGES)
OTHER: State = {name: value + 1 for name, value in STATE.items()}
MOMENTS = {"state": {0: {"exp_avg": random_like(3)}}, "param_groups": [{"lr": 0.1}]}
HEAD: State = {"head.weight": STATE["head.weight"], "head.bias": STATE["head.bias"]}
BACKBONE: State = {name: value for name, value in STATE.items() if not name.startswith("head.")}
PROJECTOR: State = {"projector.0.weight": random_like(64, DIM), "projector.0.bias": random_like(64)}


def within(part: str, wrapper: str) -> State:
    """With a wrapper in the middle of the names, as FSDP and torch.compile of single blocks leave it."""
    return {name.replace(part, f"{part}{wrapper}", 1): value for name, value in STATE.items()}


def loaded(source: Any, **changes: Any) -> tuple[vitrail.ViT, Receipt]:
    model = vitrail.load(source, num_heads=HEADS, **changes)
    assert isinstance(model.receipt, Receipt)
    return model, model.receipt


PREFIXES = (
    *("module.", "model.", "_orig_mod.", "backbone.", "encoder.", "net.", "teacher.", "student.", "visual.trunk.", "0."),
    *("module._orig_mod.", "_orig_mod.module.", "model._orig_mod.backbone.", "module.model.encoder.", "model_ema.module."),
    *("_fsdp_wrapped_module.", "_fsdp_wrapped_module.module._checkpoint_wrapped_module.", "_forward_module."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes(prefix: str) -> None:
    model, receipt = loaded(renamed(STATE, prefix))
    same(model, IMAGES, EXPECTED)
    assert {entry.status for entry in receipt.entries} == {"exact"}
    assert receipt.notes == ()


@pytest.mark.parametrize("part", ["blocks.0.", "blocks.1.attn.", "patch_embed."])
@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."])
def test_wrappers_in_the_middle(part: str, wrapper: str) -> None:
    model, receipt = loaded(renamed(within(part, wrapper), "module."))
    same(model, IMAGES, EXPECTED)
    assert {entry.status for entry in receipt.entries} == {"exact"}


TREES: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "state_dict": ({"state_dict": STATE, "epoch": 3}, ()),
    "DeiT's": ({"model": STATE, "optimizer": MOMENTS, "lr_scheduler": {}, "scaler": {"scale": random_like(1)}}, ()),
    "module in a container": ({"state_dict": renamed(STATE, "module.")}, ()),
    "DeiT's average": ({"model": OTHER, "model_ema": STATE}, ("took model_ema; the file also holds model",)),
    "timm's average": (
        {"state_dict": OTHER, "state_dict_ema": renamed(STATE, "module."), "optimizer": MOMENTS},
        ("took state_dict_ema; the file also holds state_dict",),
    ),
    "an average in containers": (
        {"model_ema": {"module": STATE}, "model": OTHER},
        ("took model_ema; the file also holds model",),
    ),
    "teacher and student": (
        {
            "student": renamed(OTHER, "module.backbone."),
            "teacher": renamed(STATE, "backbone."),
            "dino_loss": {"c": random_like(9)},
        },
        ("took teacher; the file also holds student",),
    ),
    "teacher and student, flat": (
        {**renamed(OTHER, "student.backbone."), **renamed(STATE, "teacher.backbone.")},
        ("took teacher.backbone; the file also holds student.backbone",),
    ),
    "an average beside the model, flat": (
        {**renamed(OTHER, "model."), **renamed(STATE, "ema.module.")},
        ("took ema.module; the file also holds model",),
    ),
    "I-JEPA's": (
        {"encoder": renamed(OTHER, "module."), "predictor": {}, "opt": MOMENTS, "target_encoder": renamed(STATE, "module.")},
        ("took target_encoder; the file also holds encoder",),
    ),
    "MoCo's": (
        {"state_dict": {**renamed(STATE, "module.base_encoder."), **renamed(OTHER, "module.momentum_encoder.")}},
        ("took module.base_encoder; the file also holds module.momentum_encoder",),
    ),
    "Lightning's": (
        {
            "epoch": 1,
            "global_step": 10,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": {**renamed(STATE, "model."), "criterion.weight": random_like(7)},
            "optimizer_states": [MOMENTS],
            "lr_schedulers": [],
            "callbacks": {"checkpoint": {"best_model_score": random_like(1)}},
            "hyper_parameters": {"lr": 1e-3, "classes": 7},
        },
        (),
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_containers(name: str) -> None:
    tree, notes = TREES[name]
    model, receipt = loaded(tree)
    same(model, IMAGES, EXPECTED)
    assert receipt.notes == notes
    assert "".join(notes) in str(receipt)
    assert not [entry for entry in receipt.entries if entry.status not in ("exact", "dropped")]


@pytest.mark.parametrize("name", TREES)
def test_containers_in_a_file(name: str, tmp_path: Path) -> None:
    torch.save(TREES[name][0], tmp_path / "checkpoint.pth")
    model, receipt = loaded(tmp_path / "checkpoint.pth")
    same(model, IMAGES, EXPECTED)
    assert receipt.notes == TREES[name][1]
    assert receipt.sha256 is not None


@pytest.mark.parametrize(
    ("prefix", "head"),
    [("backbone.", ""), ("model.backbone.", "model."), ("model.backbone.", ""), ("module.encoder.vit.", "module.")],
)
def test_a_head_beside_the_backbone(prefix: str, head: str) -> None:
    model, receipt = loaded({**renamed(BACKBONE, prefix), **renamed(HEAD, head), **PROJECTOR})
    same(model, IMAGES, EXPECTED)
    assert [entry.name for entry in receipt.entries if entry.status != "exact"] == [*PROJECTOR]


def test_the_nearest_head_is_the_model_s() -> None:
    far = {"head.weight": random_like(9, DIM), "head.bias": random_like(9)}
    model, receipt = loaded({**renamed(BACKBONE, "a.b."), **renamed(HEAD, "a."), **far})
    same(model, IMAGES, EXPECTED)
    assert [entry.name for entry in receipt.entries if entry.status == "dropped"] == [*far]


@pytest.mark.parametrize(
    "head",
    [
        {"head.weight": random_like(9, 64), "head.bias": random_like(9)},  # behind a projector
        {"head.mlp.0.weight": random_like(64, DIM), "head.last_layer.weight_v": random_like(9, 64)},  # DINO's
        {"fc.weight": random_like(7, DIM), "fc.bias": random_like(7)},
    ],
)
def test_a_head_of_something_else_is_dropped(head: State) -> None:
    model, receipt = loaded({**renamed(BACKBONE, "backbone."), **head})
    assert model.config.num_classes == 0
    same(model, IMAGES, {"embedding": EXPECTED["embedding"], "logits": EXPECTED["embedding"], "tokens": EXPECTED["tokens"]})
    assert {entry.name for entry in receipt.entries if entry.status == "dropped"} == set(head)


def test_moco_v3_s_small_has_twelve_heads() -> None:
    """At a width where every other family has six, so that nothing is taken for granted."""
    model = timm_vit(embed_dim=384, num_heads=12, num_classes=0)
    state = renamed(model.state_dict(), "module.base_encoder.")
    with pytest.raises(ValueError, match=r"num_heads \(12 in MoCo v3, .*\): give num_heads=12 or num_heads=6$"):
        vitrail.load({"state_dict": state, "arch": "vit_small"})
    same(vitrail.load(state, num_heads=12), IMAGES, of_timm(model, IMAGES))


def test_modules_around_a_model() -> None:
    """As they come out of training, without a state dict being asked for."""
    compiled = torch.compile(MODEL, backend="eager")
    averaged = torch.optim.swa_utils.AveragedModel(MODEL)
    several: list[Callable[[], nn.Module]] = [
        lambda: nn.DataParallel(MODEL),
        lambda: nn.Sequential(MODEL),
        lambda: compiled,
        lambda: averaged,
    ]
    for make in several:
        model = vitrail.load(make())
        same(model, IMAGES, EXPECTED)


def test_parameters_that_need_gradients_are_copied() -> None:
    state = {name: nn.Parameter(value.clone()) for name, value in STATE.items()}
    model, _ = loaded(state)
    with torch.no_grad():
        for value in state.values():
            value.zero_()
    same(model, IMAGES, EXPECTED)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_types_become_fp32(dtype: torch.dtype) -> None:
    model, receipt = loaded({name: value.to(dtype) for name, value in STATE.items()})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.blocks[0].attn.qkv.weight, STATE["blocks.0.attn.qkv.weight"].to(dtype).float())  # type: ignore[index, union-attr]
    assert {entry.status for entry in receipt.entries} == {"exact"}


@pytest.mark.parametrize(
    "tree",
    [{}, {"epoch": 3}, {"model": {}}, {"weights": {"a.b": random_like(3)}}, {"optimizer": MOMENTS}, {"x": 1.0, "y": "z"}],
)
def test_no_model_is_one_line(tree: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^.+$") as error:
        vitrail.load(tree)
    assert "\n" not in str(error.value)
