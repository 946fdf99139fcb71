"""Tables of key names: each reads back what it writes, in older spellings too; generic code names no library."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from vitrail.models import ViT
from vitrail.weights.convert import WRITERS
from vitrail.weights.libraries import LIBRARIES
from vitrail.weights.libraries.transformers.names import DINOV2_BLOCKS, DINOV2_LAYOUT, SWIGLU, VIT_BLOCKS, VIT_LAYOUT
from vitrail.weights.library import Layout
from vitrail.weights.names import key_table
from vitrail.weights.recognise import LAYOUTS, recognise
from vitrail.weights.targets import rename

MEAN = {"class_token": False, "pool": "avg"}
MAP = {"class_token": False, "pool": "map"}
CLIP = {"pre_norm": True, "num_classes": 0}
LUCID = {"qkv_bias": False, "num_classes": 5}
FIELDS: dict[str, list[dict[str, Any]]] = {
    "vitrail": [{"patch_norm": True, "head": "mlp"}, {"stem": "conv", "patch_size": 8}, {"dist_token": True, "reg_tokens": 0}],
    "timm": [{"reg_tokens": 2, "init_values": 0.1, "qk_norm": True}, {"pre_norm": True}, MAP, {"pool": "avg", "fc_norm": True}],
    "timm EVA": [{"num_classes": 5}],
    "DINOv2": [{"reg_tokens": 2, "init_values": 0.1}, {"mlp": "swiglu"}],
    "transformers": [{}, {"dist_token": True}, {"pool": "avg", "fc_norm": True}],
    "transformers DINOv2": [{"reg_tokens": 2, "init_values": 0.1}, {"mlp": "swiglu"}],
    "transformers SigLIP": [MEAN, {**MAP, "num_classes": 0}],
    "transformers CLIP": [CLIP],
    "torchvision": [{"head": "mlp"}],
    "Google vision_transformer": [{"head": "mlp"}, MEAN],
    "Google big_vision": [MEAN, MAP],
    "CLIPA": [{"pool": "avg", "fc_norm": True, "num_classes": 0}],
    "CLIP": [CLIP, {**CLIP, "init_values": 0.1}],
    "vit-pytorch": [{**LUCID, "patch_norm": True}],
    "vit-pytorch before 1.0": [LUCID],
    "d2l": [{"num_classes": 5}],
    "UvA": [{"num_classes": 5}],
    "mrdbourke": [{"num_classes": 5}],
    "tintn": [{"num_classes": 5}, {"final_norm": False}],
    "jeonsworld": [{"num_classes": 5}],
    "FrancescoSaverioZuppichini": [{"pool": "avg", "fc_norm": True}],
    "FrancescoSaverioZuppichini, linear": [{"pool": "avg", "fc_norm": True}],
}


def model(**fields: Any) -> ViT:
    """A tiny model whose every tensor is random."""
    torch.manual_seed(0)
    tiny = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": 2, "num_classes": 5, "mlp_ratio": 2.0}
    vit = ViT(**{**tiny, **fields})
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter)
    return vit


def read_back(written: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The tensors that a layout finds in a file, by our names."""
    match = recognise(written, (layout,))
    assert (match.foreign, match.prefix) == ((), "module.")
    return {name: source.read(written) for name, source in match.sources.items()}


def assert_same(read: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    assert read.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(read[name].reshape(value.shape), value, atol=0, rtol=0)


@pytest.mark.parametrize(("name", "fields"), [(name, fields) for name, cases in FIELDS.items() for fields in cases])
def test_a_table_reads_back_what_it_writes(name: str, fields: dict[str, Any]) -> None:
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    vit = model(**fields)
    state = {key: value.detach() for key, value in vit.state_dict().items()}
    if name == "timm EVA":  # its keys have no bias
        for key in [key for key in state if key.endswith("qkv.bias")]:
            state[key][16:32] = 0
    assert_same(read_back(rename(state, vit.config, layout, "module."), layout), state)


def test_every_layout_is_written_and_read_back() -> None:
    assert set(FIELDS) == {layout.name for layout in LAYOUTS}
    assert len(LAYOUTS) == len(FIELDS) + 1  # timm's with LayerScale spelled gamma_1, which is read alone


@pytest.mark.parametrize(
    ("layout", "spelling", "fields"),
    [
        (VIT_LAYOUT, VIT_BLOCKS, {}),
        (DINOV2_LAYOUT, DINOV2_BLOCKS, {"init_values": 0.1}),
        (DINOV2_LAYOUT, {**DINOV2_BLOCKS, **SWIGLU}, {"init_values": 0.1, "mlp": "swiglu"}),
    ],
)
def test_older_names_are_the_same_table_read_backwards(layout: Layout, spelling: Any, fields: dict[str, Any]) -> None:
    vit = model(**fields)
    state = {key: value.detach() for key, value in vit.state_dict().items()}
    today, before = (rename(state, vit.config, layout, "module.", names) for names in ({}, spelling))
    assert not [key for key in today.keys() & before.keys() if ".layers." in key]
    assert_same(read_back(before, layout), state)


def test_a_new_library_is_a_table_of_names() -> None:
    names = {"patch_embed.proj": "stem", "blocks.#.attn.qkv": "blocks.#.qkv", "norm": "last_norm"}
    layout = Layout("new", "stem.weight", key_table((f"{ours}.*", f"{theirs}.*") for ours, theirs in names.items()))
    file = [
        f"net.{name}.{kind}" for name in ("stem", "blocks.0.qkv", "blocks.1.qkv", "last_norm") for kind in ("weight", "bias")
    ]
    match = recognise([*file, "net.blocks.0.gate", "text.0"], (*LAYOUTS, layout))
    assert (match.layout, match.prefix, len(match.sources)) == (layout, "net.", 8)
    assert (match.foreign, match.outside) == (("net.blocks.0.gate",), ("text.0",))


@pytest.mark.parametrize("module", ["convert", "infer", "library", "load", "preprocess", "recognise", "targets"])
def test_generic_code_names_no_library(module: str) -> None:
    tree = ast.parse(inspect.getsource(importlib.import_module(f"vitrail.weights.{module}")))
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert not constants & ({*LIBRARIES, *WRITERS, *FIELDS} - {"vitrail"})
