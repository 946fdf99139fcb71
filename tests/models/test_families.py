"""Every family through every room: named, built, trained, resumed, saved, loaded, written for others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torchvision.models import SwinTransformer as TorchvisionSwin

import vitrail
from cases import ImageFolder, some_slow
from vitrail import cli
from vitrail.models import Swin, build_on_meta
from vitrail.models.families import BUILDERS
from vitrail.settings import OptimConfig, Preprocessing, ViTConfig
from vitrail.settings.beit import BEIT_SIZES
from vitrail.settings.cait import CAIT_SIZES
from vitrail.settings.cvt import CVT_SIZES
from vitrail.settings.families import FAMILIES, family_of, family_of_config, name_of, parse_name
from vitrail.settings.hybrid import HYBRID_SIZES
from vitrail.settings.swin import SWIN_SIZES, SwinConfig
from vitrail.settings.swin_v2 import SWIN_V2_SIZES
from vitrail.settings.swin_v2_cr import SWIN_V2_CR_SIZES
from vitrail.settings.vitdet import VITDET_SIZES
from vitrail.train.optim import group_table
from vitrail.weights import save_model

Typed = Callable[..., tuple[int, str, str]]
SHAPE: dict[str, Any] = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
SMALL = {
    "swin_t": ["img_size=32", "embed_dim=8", "depths=[2,2]", "num_heads=[2,4]"],
    "swinv2_t": ["img_size=32", "embed_dim=8", "depths=[2,2]", "num_heads=[2,4]"],
    "swinv2_cr_t": ["img_size=32", "embed_dim=8", "depths=[2,2]", "num_heads=[2,4]", "window_ratio=2"],
    "beit_b16": ["img_size=32", "embed_dim=8", "depth=2", "num_heads=2"],
    "cait_xxs24": ["img_size=32", "embed_dim=8", "depth=2", "num_heads=2"],
    "cvt_13": ["img_size=32", "embed_dims=[4,6,8]", "depths=[1,1,2]", "num_heads=[1,3,2]"],
    "R50+B/16": ["img_size=32", "embed_dim=8", "depth=2", "num_heads=2", "cnn_depths=[1,1]", "cnn_width=32", "patch_size=8"],
    "dinov3_s16": ["img_size=32", "embed_dim=16", "depth=2", "num_heads=2", "patch_size=8", "rope_rescale=2.0"],
    "sam_b16": ["img_size=32", "embed_dim=8", "depth=2", "num_heads=2", "patch_size=8", "window_size=3", "global_blocks=[1]"],
}
SHOWN = {
    "swin_t": "2-2 blocks from width 8, window 7",
    "swinv2_t": "2-2 blocks from width 8, window 8",
    "swinv2_cr_t": "2-2 blocks from width 8, window 4",
    "beit_b16": "width 8, 2 blocks, 2 heads",
    "cait_xxs24": "2 blocks of width 8 and 2 for the class, 2 heads",
    "cvt_13": "1-1-2 blocks of widths 4-6-8",
    "R50+B/16": "  stem        a ResNet with GroupNorm of 1-1 blocks\n  shape       width 8, 2 blocks, 2 heads",
    "dinov3_s16": "width 16, 2 blocks, 2 heads, MLP 64",
    "sam_b16": "2 blocks of width 8, 2 heads, window 3",
}
SIZE_NAMES = [*SWIN_SIZES, "swin_custom", *SWIN_V2_SIZES, "swinv2_custom", *SWIN_V2_CR_SIZES, "swinv2_cr_custom"]
SIZE_NAMES += [*BEIT_SIZES, "beit_custom", *CAIT_SIZES, "cait_custom", *CVT_SIZES, "cvt_custom", "dinov3_7b16", "modern_custom"]
SIZE_NAMES += [*VITDET_SIZES, "vitdet_custom"]
SIZE_NAMES += [*HYBRID_SIZES, "hybrid_custom"]
SHORT = ["--train.batch_size=8", "--train.device=cpu", "--train.precision=fp32", "--data.workers=0"]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    def run(*words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(list(map(str, words)))
        return code, *capsys.readouterr()

    return run


# --------------------------------------------------------------------------------------------------------------------
# Names and configs


def test_every_family_of_the_settings_has_a_builder() -> None:
    assert {family.config for family in FAMILIES.values()} == set(BUILDERS)


@pytest.mark.parametrize("name", ["B/16", "S+/16", "custom", *SIZE_NAMES, "timm:resnet18"])
def test_a_name_has_one_family_and_comes_back(name: str) -> None:
    family = family_of(name)
    assert [one for one in FAMILIES.values() if one.parse(name) is not None] == [family]
    fields = {**parse_name(name), **({"name": name} if "name" in family.fields() else {})}
    config = family.config(**fields)
    assert family_of_config(config) is family
    if "custom" not in name and "+" not in name:
        assert name_of(config) == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_x", 'model "swin_x" is none of swin_t, swin_s, swin_b, swin_l'),
        (
            "swint",
            'model "swint" is not a name such as "B/16", "vit_base_patch16_224", "swin_t" or "timm:resnet50"; did you mean '
            '"swin_t"?',
        ),
    ],
)
def test_a_name_that_is_nearly_right(name: str, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - compared as a whole below
        family_of(name)
    assert str(error.value).startswith(message)


def test_timm_s_names_are_ours() -> None:
    assert parse_name("swin_base_patch4_window12_384") == {
        **SWIN_SIZES["swin_b"]._asdict(),
        "patch_size": 4,
        "window_size": 12,
        "img_size": 384,
    }


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("deit3_s16", "deit3_small_patch16_224"),
        ("deit3_h14", "deit3_huge_patch14_224"),
        ("flexivit_s", "flexivit_small"),
        ("beit_b16", "beit_base_patch16_224"),
    ],
)
def test_names_of_other_papers_build_timm_s_models(ours: str, theirs: str) -> None:
    with torch.device("meta"):
        peer, models = timm.create_model(theirs), [vitrail.create_model(name) for name in (ours, theirs)]
    shapes = {name: value.shape for name, value in peer.state_dict().items()}
    for model in models:
        assert {name: value.shape for name, value in model.state_dict().items()} == shapes
        assert (model.config.img_size,) * 2 == peer.patch_embed.img_size


OF_ONE_BLOCK: dict[str, dict[str, Any]] = {
    "swin_t": {"depths": (1, 1, 1), "num_heads": (1, 1, 1), "embed_dim": 8},
    "swinv2_t": {"depths": (1, 1, 1), "num_heads": (1, 1, 1), "embed_dim": 8},
    "swinv2_cr_t": {"depths": (1, 1, 1), "num_heads": (1, 1, 1), "embed_dim": 8},
    "beit_b16": {"depth": 2, "embed_dim": 8, "num_heads": 2, "relative_bias": "both"},
    "cait_xxs24": {"depth": 2, "embed_dim": 8, "num_heads": 2},
    "cvt_13": {"depths": (1, 1, 2), "embed_dims": (8, 8, 8), "num_heads": (1, 1, 1)},
    "R50+B/16": {"depth": 2, "embed_dim": 8, "num_heads": 2, "cnn_depths": (1, 1), "cnn_width": 32, "patch_size": 8},
    "vit_base_resnet26d": {"depth": 2, "embed_dim": 8, "num_heads": 2, "cnn_depths": (1, 1), "cnn_width": 8, "patch_size": 8},
    "vit_base_mci": {"depth": 2, "embed_dim": 8, "num_heads": 2},
    "dinov3_s16": {"depth": 2, "embed_dim": 8, "num_heads": 2, "patch_size": 8},
    "sam_b16": {"depth": 2, "embed_dim": 8, "num_heads": 2, "patch_size": 8, "window_size": 3, "residual_blocks": (1,)},
    "sam3_l14": {"depth": 2, "embed_dim": 8, "num_heads": 2, "patch_size": 8, "window_size": 3},
    "vit_small_patch16_rope_mixed": {"depth": 2, "embed_dim": 8, "num_heads": 2, "patch_size": 8},
    "vit_dpwee_patch16_reg1_gap_256": {"depth": 2, "embed_dim": 8, "num_heads": 2, "patch_size": 8},
    "vit_small_patch16_18x2_224": {"depth": 2, "embed_dim": 8, "num_heads": 2, "patch_size": 8},
    "vit_srelpos_small_patch16_224": {"depth": 2, "embed_dim": 8, "num_heads": 2, "patch_size": 8},
}


@pytest.mark.parametrize("name", OF_ONE_BLOCK)
def test_every_parameter_is_in_one_stage_and_changes_with_its_head_only(name: str) -> None:
    model = vitrail.create_model(name, img_size=32, num_classes=3, **OF_ONE_BLOCK[name])
    stages = model.stages()
    for parameter, _ in model.named_parameters():
        assert sum(stage.owns(parameter) for stage in stages) == 1, parameter
    assert model.no_decay <= dict(model.named_parameters()).keys()
    for path in (*model.heads, *model.stems):
        model.get_submodule(path)
    rows = {row.name: row for row in group_table(model, OptimConfig(layer_decay=0.5, freeze=1))}
    blocks = [stage for stage in stages if stage.block is not None]
    for index, stage in enumerate(stages[1:-1]):
        for row in rows.values():
            if stage.owns(row.name):
                assert row.optimizer == ("frozen" if index == 0 else "adamw")
                assert row.lr_factor == (0 if index == 0 else 0.5 ** (len(blocks) - index))
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    embedding = model.embedding(images)
    model.reset_head(7)
    assert model(images).shape == (2, 7)
    assert model.config.num_classes == 7
    model.reset_head(0)
    torch.testing.assert_close(model(images), embedding)
    torch.testing.assert_close(model.features(images).pooled, embedding)


COMPILED = """
import torch, vitrail

shapes = {
    "swin_t": {"depths": (2, 2), "num_heads": (2, 2), "embed_dim": 8, "window_size": 4},
    "swinv2_t": {"depths": (2, 2), "num_heads": (2, 2), "embed_dim": 8, "window_size": 4},
    "swinv2_cr_t": {"depths": (2, 2), "num_heads": (2, 2), "embed_dim": 8, "window_size": 4},
    "beit_b16": {"depth": 3, "embed_dim": 8, "num_heads": 2, "relative_bias": "both"},
    "cait_xxs24": {"depth": 3, "embed_dim": 8, "num_heads": 2, "init_values": 0.5},
    "cvt_13": {"depths": (1, 2, 3), "embed_dims": (4, 6, 8), "num_heads": (1, 3, 2)},
    "R50+B/16": {"depth": 3, "embed_dim": 16, "num_heads": 2, "cnn_depths": (1, 1), "cnn_width": 32, "patch_size": 8},
    "vit_base_resnet26d": {"depth": 3, "embed_dim": 16, "num_heads": 2, "cnn_depths": (1, 1), "cnn_width": 8, "patch_size": 8},
    "dinov3_s16": {"depth": 3, "embed_dim": 16, "num_heads": 2, "init_values": 0.5},
    "sam_b16": {"depth": 4, "embed_dim": 8, "num_heads": 2, "patch_size": 8, "window_size": 3, "global_blocks": (1, 3)},
    "vit_pwee_patch16_reg1_gap_256": {"depth": 3, "embed_dim": 16, "num_heads": 2},
    "vit_small_patch16_18x2_224": {"depth": 3, "embed_dim": 16, "num_heads": 2},
    "vit_relpos_small_patch16_224": {"depth": 3, "embed_dim": 16, "num_heads": 2},
}

def results(model, images):
    torch.manual_seed(3)
    model.zero_grad()
    model(images).square().mean().backward()
    return [*(p.grad.clone() for p in model.parameters() if p.grad is not None), *(b.clone() for b in model.buffers())]

def keep(graph, inputs):
    graphs.append(graph)
    return graph.forward

for name, shape in shapes.items():
    for recompute in (False, True):
        torch._dynamo.reset()
        model = vitrail.create_model(name, img_size=32, num_classes=3, drop_path_rate=0.5, **shape).train()
        model.checkpointing = recompute
        state, images, graphs = {k: v.clone() for k, v in model.state_dict().items()}, torch.randn(4, 3, 32, 32), []
        plain = results(model, images)
        model.load_state_dict(state)
        for block in model.blocks_in_order():
            block.compile(backend=keep)
        for a, b in zip(plain, results(model, images), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
        print(name, len(graphs))
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_compiled_blocks_compute_the_same_and_share_a_graph_of_each_kind() -> None:
    """In a process of its own: the checks of annotations that tests add are no code that compiles."""
    said = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    kinds = {
        "swin_t": 4,
        "swinv2_t": 4,
        "swinv2_cr_t": 4,
        "beit_b16": 1,
        "cait_xxs24": 2,
        "cvt_13": 3,
        "R50+B/16": 3,
        "vit_base_resnet26d": 3,
        "dinov3_s16": 1,
        "sam_b16": 2,
        "vit_pwee_patch16_reg1_gap_256": 1,
        "vit_small_patch16_18x2_224": 1,
        "vit_relpos_small_patch16_224": 1,
    }  # widths, windows that shift, blocks for the class, and blocks without windows
    assert said.stdout.split() == [word for name, count in kinds.items() for word in (name, str(count)) * 2]


def test_groups_of_a_beit() -> None:
    model = vitrail.create_model("beit_b16", img_size=32, embed_dim=8, depth=2, num_heads=2, relative_bias="both")
    rows = {row.name: row for row in group_table(model, OptimConfig(name="muon", layer_decay=0.5, weight_decay=0.1))}
    assert set(rows) == {name for name, _ in model.named_parameters()}
    for table in ("rel_pos_bias.", "blocks.1.attn."):
        row = rows[f"{table}relative_position_bias_table"]
        assert (row.weight_decay, row.optimizer) == (0, "adamw")
    assert rows["blocks.1.attn.qkv.weight"].optimizer == "muon"
    factors = [rows[name].lr_factor for name in ("head.weight", "fc_norm.weight", "blocks.1.gamma_1", "blocks.0.gamma_1")]
    assert factors == [1, 1, 0.5, 0.25]
    assert rows["cls_token"].lr_factor == rows["rel_pos_bias.relative_position_bias_table"].lr_factor == 0.125


def test_groups_of_a_swin() -> None:
    model = build_on_meta(SwinConfig(**SHAPE))
    rows = {row.name: row for row in group_table(model, OptimConfig(name="muon", layer_decay=0.5, weight_decay=0.1))}
    assert set(rows) == {name for name, _ in model.named_parameters()}
    assert rows["layers.0.blocks.0.attn.relative_position_bias_table"].weight_decay == 0
    assert rows["layers.0.blocks.0.attn.relative_position_bias_table"].optimizer == "adamw"
    assert rows["layers.1.blocks.1.mlp.fc1.weight"].optimizer == "muon"
    assert rows["layers.1.blocks.1.mlp.fc1.weight"].lr_factor == 0.5
    assert rows["layers.0.blocks.0.mlp.fc1.weight"].lr_factor == 0.5**4
    assert rows["patch_embed.proj.weight"].lr_factor == 0.5**5
    assert rows["head.fc.weight"].lr_factor == 1
    frozen = {row.name for row in group_table(model, OptimConfig(freeze=2)) if row.optimizer == "frozen"}
    assert "layers.0.blocks.1.mlp.fc1.weight" in frozen
    assert "layers.1.downsample.reduction.weight" not in frozen


# --------------------------------------------------------------------------------------------------------------------
# Files


def a_swin(**fields: Any) -> Swin:
    torch.manual_seed(0)
    model = vitrail.create_model("swin_t", **{**SHAPE, "img_size": 32, "num_classes": 3, **fields})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    assert isinstance(model, Swin)
    model.preprocessing, model.classes = (
        Preprocessing(img_size=(32, 32), in_channels=model.config.in_channels, mean=(0.5,) * 3, std=(0.25,) * 3),
        ("a", "b", "c"),
    )
    return model.eval()


def test_a_saved_swin_is_loaded_by_us_and_by_timm(tmp_path: Path) -> None:
    model, images = a_swin(), torch.randn(2, 3, 32, 32)
    save_model(model, tmp_path, data="toys")
    ours = vitrail.load(tmp_path)
    assert (ours.config, ours.classes, ours.preprocessing) == (model.config, model.classes, model.preprocessing)
    torch.testing.assert_close(ours(images), model(images), rtol=0, atol=0)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(theirs(images), model(images), rtol=1e-5, atol=1e-5)
    written = json.loads((tmp_path / "config.json").read_text())
    written["vitrail"]["licence"] = "apache-2.0"
    (tmp_path / "config.json").write_text(json.dumps(written))
    licensed = vitrail.load(tmp_path).receipt
    assert licensed is not None
    assert licensed.licence == "apache-2.0"
    other = vitrail.load(tmp_path, num_classes=7, in_channels=1, window_size=2)
    assert other(images[:, :1]).shape == (2, 7)
    with pytest.raises(
        ValueError, match=r"^depth is a part of a ViT, and swin_custom is none: it takes img_size, .*leave it out$"
    ):
        vitrail.load(tmp_path, depth=3)


def test_converted_for_all_three(tmp_path: Path, typed: Typed) -> None:
    model, images = a_swin(), torch.randn(2, 3, 32, 32)
    (tmp_path / "run").mkdir()
    save_model(model, tmp_path / "run", data="toys")
    for target, destination in (("timm", "timm"), ("hf", "hf"), ("torchvision", "swin.pth")):
        code, out, err = typed("convert", tmp_path / "run", tmp_path / destination, "--to", target)
        assert (code, err) == (0, "")
        assert "Written: " in out
    theirs: Any = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    torch.testing.assert_close(theirs(images), model(images), rtol=1e-5, atol=1e-5)
    theirs = transformers.SwinForImageClassification.from_pretrained(tmp_path / "hf").eval()
    torch.testing.assert_close(theirs(images).logits, model(images), rtol=1e-5, atol=1e-5)
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    args = json.loads((tmp_path / "swin.json").read_text())["arguments"]
    theirs = TorchvisionSwin(**args).eval()
    theirs.load_state_dict(torch.load(tmp_path / "swin.pth", weights_only=True), strict=True)
    torch.testing.assert_close(theirs(images), model(images), rtol=1e-5, atol=1e-5)
    for written in ("timm", "hf", "swin.pth"):
        back = vitrail.load(tmp_path / written)
        torch.testing.assert_close(back(images), model(images), rtol=1e-5, atol=1e-5)
    code, out, err = typed("convert", tmp_path / "run", tmp_path / "swin.npz", "--to", "npz")
    assert (code, out.count("\n") > 0, err.count("\n")) == (2, True, 1)
    assert '"npz" has no Swin' in err


# --------------------------------------------------------------------------------------------------------------------
# As users type it


def small(name: str) -> list[str]:
    return ["--model", name, *(f"--model.{field}" for field in SMALL[name])]


@pytest.mark.parametrize("name", some_slow(SMALL))
def test_a_family_from_the_command_line(name: str, typed: Typed, image_folder: ImageFolder, tmp_path: Path) -> None:
    photos, run = image_folder({"train": {"dark": 6, "light": 6}, "test": {"dark": 3, "light": 3}}), tmp_path / "run"
    words = [*small(name), *SHORT, "--train.steps=3", "--train.checkpointing=true"]
    code, out, err = typed("train", photos, *words, "--out", run)
    assert (code, err) == (0, "")
    assert f"{name}: " in out
    written = (run / "config.yaml").read_text()
    assert "depth" in written
    assert ("reg_tokens" in written) == issubclass(family_of(name).config, ViTConfig)
    assert family_of(name).stored_as in json.loads((run / "config.json").read_text())["vitrail"]

    code, out, err = typed("evaluate", run, "--json")
    assert (code, err) == (0, "")
    image = next((photos / "test").rglob("*.jpg"))
    code, out, err = typed("predict", run, image, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)[0]["label"] in ("dark", "light")
    code, out, err = typed("probe", run, photos)
    assert (code, err) == (0, "")
    code, out, err = typed("show", run, "--groups")
    assert (code, err) == (0, "")
    assert SHOWN[name] in out
    tuned = tmp_path / "tuned"
    code, out, err = typed("train", photos, "--weights", run, *SHORT, "--train.steps=2", "--out", tuned)
    assert (code, err) == (0, "")
    assert "learning rate" in out
    code, out, err = typed("train", photos, "--weights", run, "--model", "B/16", "--out", tmp_path / "no")
    assert (code, err.count("\n")) == (2, 1)
    assert 'model.name "B/16" is not the model of the weights' in err


@pytest.mark.parametrize("name", some_slow(SMALL))
def test_a_resumed_run_is_the_same_to_the_last_bit(name: str, typed: Typed, image_folder: ImageFolder, tmp_path: Path) -> None:
    photos = image_folder({"train": {"dark": 8, "light": 8}, "test": {"dark": 2, "light": 2}})
    words = [
        *small(name),
        *SHORT,
        "--train.steps=6",
        "--model.drop_path_rate=0.2",
        "--optim.name=muon",
        "--train.ema_decay=0.9",
    ]
    code, _, err = typed(
        "train",
        photos,
        *words,
        "--train.steps=6",
        "--train.keep=9",
        "--train.checkpoint_every=0.000001",
        "--out",
        tmp_path / "run",
    )
    assert (code, err) == (0, "")
    whole = (tmp_path / "run" / "model.safetensors").read_bytes()
    for left in ("model.safetensors", "config.json", "evaluation.json"):
        (tmp_path / "run" / left).unlink()
    for step in range(4, 7):  # as if it had stopped behind step 3
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step_{step:08d}")
    code, out, err = typed("resume", tmp_path / "run")
    assert (code, err) == (0, "")
    assert "step 3" in out
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.depth=3"], "model.depth is a part of a ViT, and swin_t is none"),
        (["--model.num_heads=3"], 'model.num_heads "3": it takes whole numbers'),
        (["--model.window_size=0"], "window_size 0 must be at least 1"),
        (["--train.patch_sizes=[4]"], "train.patch_sizes are for a ViT, and Swin has patches of its own; leave them out"),
    ],
)
def test_mistakes(words: list[str], message: str, typed: Typed, image_folder: ImageFolder, tmp_path: Path) -> None:
    photos = image_folder({"train": {"dark": 4, "light": 4}})
    code, _, err = typed("train", photos, "--model", "swin_t", *words, "--out", tmp_path / "run")
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (tmp_path / "run").exists()
