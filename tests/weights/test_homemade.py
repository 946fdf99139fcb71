"""Home-made ViTs: layouts of tutorials, names files, the guess by shape and order, and the proof on a live module."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from homemade_models import D2l, FineTuned, FromScratch, Odd, OfTorch, Replicating, Scaled, Uva, residual
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import DIM, HEADS, PATCH, randomised, renamed, some_images, timm_vit
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18

import vitrail
from vitrail.models import ViT
from vitrail.models.receipt import Receipt
from vitrail.weights.arrange import QKV_ORDERS, in_order, mean_std
from vitrail.weights.names_file import NamesFile, read_names
from vitrail.weights.structure import guess

State = dict[str, Tensor]
IMAGES = some_images()
OPEN = re.compile(r"(?:do not tell|; nor) (\w+) \(")
HEADS_ONLY = {"num_heads": HEADS, "pixel_scale": "unit"}
CODE = {**HEADS_ONLY, "norm_first": True, "mlp": "gelu"}

Case = tuple[Callable[[], nn.Module], str, dict[str, Any]]
CASES: dict[str, Case] = {  # model, origin in the receipt, and answers to all that is asked
    "d2l": (D2l, "d2l", HEADS_ONLY),
    "UvA": (Uva, "UvA", HEADS_ONLY),
    "paper replicating": (Replicating, "mrdbourke", HEADS_ONLY),
    "from scratch": (FromScratch, "tintn", HEADS_ONLY),
    "from scratch, by heads": (lambda: FromScratch(by_head=True), "tintn", {"pixel_scale": "unit"}),
    "ViT-pytorch": (FineTuned, "jeonsworld", HEADS_ONLY),
    "residual": (residual, "FrancescoSaverioZuppichini", {**HEADS_ONLY, "attn_scale": "after"}),
    "residual, three projections": (
        lambda: residual(fused=False, scale="width"),
        "FrancescoSaverioZuppichini",
        {**HEADS_ONLY, "attn_scale": "width"},
    ),
    "residual, linear": (
        lambda: residual(linear=True, scale="head"),
        "FrancescoSaverioZuppichini, linear",
        {**HEADS_ONLY, "attn_scale": "head"},
    ),
    "nn.TransformerEncoder": (OfTorch, "home-made", CODE),
    "nn.TransformerEncoder, its defaults": (
        lambda: OfTorch(norm_first=False, activation="relu", last_norm=False),
        "home-made",
        {**CODE, "norm_first": False, "mlp": "relu"},
    ),
    "nn.TransformerEncoder, ReLU": (lambda: OfTorch(activation="relu"), "home-made", {**CODE, "mlp": "relu"}),
    "nn.TransformerEncoder, bare": (lambda: OfTorch(last_norm=False, token=False), "home-made", CODE),
    "nn.MultiheadAttention, LayerScale": (Scaled, "home-made", CODE),
}


LIVE = ("from scratch, by heads", "residual", "nn.TransformerEncoder", "nn.TransformerEncoder, its defaults")


def logits(model: nn.Module, images: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        output = model(images)
    return output[0] if isinstance(output, tuple) else output


def relabelled(names: NamesFile, changes: dict[str, str]) -> NamesFile:
    """With other names of ours."""
    return dataclasses.replace(
        names, lines=tuple(line._replace(ours=changes.get(line.ours, line.ours)) for line in names.lines)
    )


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    expected = logits(theirs)
    assert expected.std() > 0.01
    assert (logits(ours) - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, str, dict[str, Any]]:
    torch.manual_seed(0)
    make, origin, answers = CASES[request.param]
    return randomised(make()), origin, answers


# --------------------------------------------------------------------------------------------------------------------
# State dicts


def test_equal_logits(case: tuple[nn.Module, str, dict[str, Any]]) -> None:
    model, origin, answers = case
    ours = vitrail.load(renamed(model.state_dict(), "model."), **answers)
    assert_equal(ours, model)
    receipt = ours.receipt
    assert isinstance(receipt, Receipt)
    assert (receipt.origin, receipt.backbone_share) == (origin, 1.0)
    assert not [entry for entry in receipt.entries if entry.status == "dropped"]
    assert ours.preprocessing is not None
    assert (ours.preprocessing.mean, ours.preprocessing.std) == ((0.0,) * 3, (1.0,) * 3)


def test_all_questions_are_in_one_line(case: tuple[nn.Module, str, dict[str, Any]]) -> None:
    model, _, answers = case
    with pytest.raises(ValueError, match=r"^the tensors do not tell .*$") as error:
        vitrail.load(model.state_dict())
    assert set(OPEN.findall(str(error.value))) == set(answers)
    assert "\n" not in str(error.value)


def test_other_sizes_and_classes() -> None:
    ours = vitrail.load(D2l().state_dict(), img_size=(16, 32), in_channels=5, num_classes=3, **HEADS_ONLY)
    assert ours(torch.randn(1, 5, 16, 32)).shape == (1, 3)


@pytest.mark.parametrize("scale", ["half", "0.1307/0.3081", "0.5,0.4,0.3/0.2,0.2,0.1", "unknown"])
def test_pixel_scales(scale: str) -> None:
    ours = vitrail.load(D2l().state_dict(), num_heads=HEADS, pixel_scale=scale)
    assert ours.preprocessing is not None
    numbers = mean_std(scale)
    mean = (0.485, 0.456, 0.406) if numbers is None else (numbers[0] * 3)[:3]
    assert ours.preprocessing.mean == mean


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"norm_first": "last"}, 'norm_first "last" is none of True, False'),
        ({"mlp": "silu"}, 'mlp "silu" is none of gelu, gelu_tanh, quick_gelu, relu, swiglu'),
        ({"pixel_scale": "units"}, 'pixel_scale "units" is none of unit, half, imagenet, byte, unknown; did you mean "unit"?'),
        ({"pixel_scale": "0.5/0"}, "is none of"),
        ({"qkv_order": "qkv"}, "qkv_order"),
        ({"num_heads": 7}, "num_heads 7 does not divide"),
    ],
)
def test_answers_that_are_none(answers: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        vitrail.load(OfTorch().state_dict(), **{**CODE, **answers})
    assert "\n" not in str(error.value)


@given(order=st.sampled_from(QKV_ORDERS), heads=st.integers(1, 4), d=st.integers(1, 4))
def test_orders_of_one_projection(order: str, heads: int, d: int) -> None:
    axes = order.split()
    [letters] = [axis for axis in axes if len(axis) == 3]
    labels = torch.arange(3 * heads * d).view(3, heads, d)  # (q k v, h, d)
    shuffled = labels[["qkv".index(letter) for letter in letters]]
    shuffled = shuffled.permute(*((letters, "h", "d").index(axis) for axis in axes)).reshape(-1)
    assert in_order(shuffled, heads, order).tolist() == labels.flatten().tolist()


@pytest.mark.parametrize(
    ("patch_order", "qkv_order", "scale"),
    [
        ("c p1 p2", "qkv h d", "head"),
        ("p1 p2 c", "h kqv d", "width"),
        ("c p1 p2", "h d vqk", "after"),
        ("p1 p2 c", "kvq h d", "none"),
    ],
)
def test_every_arrangement(patch_order: str, qkv_order: str, scale: str) -> None:
    torch.manual_seed(0)
    model = randomised(Odd(patch_order=patch_order, qkv_order=qkv_order, scale=scale))
    names = relabelled(vitrail.suggest_names(model.state_dict()), {"norm.*": "fc_norm.*"})
    answers = {**CODE, "patch_order": patch_order, "qkv_order": qkv_order, "attn_scale": scale}
    assert_equal(vitrail.load(model.state_dict(), names=names, **answers), model)


# --------------------------------------------------------------------------------------------------------------------
# Names files


@pytest.fixture
def odd(tmp_path: Path) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    model = randomised(Odd())
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "odd.safetensors")
    return tmp_path / "odd.safetensors", model


def test_what_only_order_tells_is_refused_with_the_way_out(odd: tuple[Path, nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"only their order tells .*vitrail convert SRC --suggest-names names.yaml"):
        vitrail.load(str(odd[0]))


def mended(path: Path, *, drop: str = "", **lines: str) -> Path:
    """The names file with lines replaced, by their names, and without another."""
    text = path.read_text()
    for theirs, ours in lines.items():
        text = re.sub(rf"(?m)^( *)(# )?({re.escape(theirs)}): [^#\n]*", rf"\1\3: {ours}  ", text)
    text = "".join(line for line in text.splitlines(keepends=True) if not drop or drop not in line)
    path.write_text(text)
    return path


ANSWERED = {"num_heads": "3", "patch_order": "c p1 p2", "qkv_order": "qkv h d", "norm_first": "true", "mlp": "gelu"}


def test_a_names_file_is_mended_and_loaded(odd: tuple[Path, nn.Module], tmp_path: Path) -> None:
    source, model = odd
    names = vitrail.suggest_names(source)
    assert {question.field for question in names.questions} == {*ANSWERED, "pixel_scale"}
    path = names.save(tmp_path / "names.yaml")
    right = {
        "stack#.b.*": "blocks.#.norm2.*",
        "stack#.a.*": "blocks.#.norm1.*",
        "end.*": "fc_norm.*",
        "stack#.x.*": "blocks.#.mlp.fc1.*",
        "stack#.y.*": "blocks.#.mlp.fc2.*",
        "stack#.inner.back.*": "blocks.#.attn.proj.*",
    }
    mended(path, **right, **ANSWERED, pixel_scale="half")
    assert_equal(vitrail.load(source, names=path), model)
    ours = vitrail.load(path, num_classes=2)  # the names file states its checkpoint
    assert ours.config.num_classes == 2
    assert ours.receipt is not None
    assert ours.receipt.file == str(source)
    again = read_names(path)
    assert read_names(again.save(tmp_path / "again.yaml")).answers == again.answers
    with pytest.raises(ValueError, match=r"num_heads 5 does not divide"):
        vitrail.load(source, names=path, num_heads=5)  # arguments go before the file's answers


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"out.*": "haed.*"},
            r'line \d+: "haed.weight" is no name of a tensor of a ViT; did you mean "head.weight"',
        ),
        ({"drop": "place:"}, r"names.yaml says nothing of place \(1x16x48\); add a line for it: one of our names, or ignore"),
        ({"stack#.inner.mix.*": "ignore"}, r"names no tensor for blocks.#.attn.qkv.weight; add the line THEIRS: blocks"),
        ({"stack#.inner.mix.*": "blocks.#.mlp.fc1.*"}, r"line \d+: blocks.#.mlp.fc1.weight is stack#.inner.mix.weight already"),
        ({"stack#.x.*": "mlp.fc1.*"}, r'line \d+: "mlp.fc1.weight" is no name'),
        ({"stack#.b.*": "norm.*"}, r'line \d+: "#", the number of a block, stands on one side only'),
        ({"start.*": "head.*", "out.*": "patch_embed.proj.*"}, r"names.yaml line \d+: .* and it must be"),
        ({"out.*": ""}, r"names.yaml line \d+"),
        ({"num_heads": "many"}, r'names.yaml: num_heads "many" is no number'),
    ],
)
def test_a_wrong_names_file_is_one_line(odd: tuple[Path, nn.Module], tmp_path: Path, change: dict[str, str], told: str) -> None:
    path = mended(vitrail.suggest_names(odd[0]).save(tmp_path / "names.yaml"), **{**ANSWERED, "pixel_scale": "unit", **change})
    with pytest.raises(ValueError, match=told) as error:
        vitrail.load(odd[0], names=path)
    assert "\n" not in str(error.value)


def test_names_of_another_checkpoint(tmp_path: Path) -> None:
    path = vitrail.suggest_names(OfTorch().state_dict()).save(tmp_path / "names.yaml")
    with pytest.raises(ValueError, match=r'names.yaml line \d+: the checkpoint has no "to_patches.weight"') as error:
        vitrail.load(D2l().state_dict(), names=path, **CODE)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"names no checkpoint; add the line"):
        vitrail.load(path)
    with pytest.raises(ValueError, match=r"needs no names file"):
        vitrail.suggest_names(timm_vit().state_dict())
    with pytest.raises(ValueError, match=r'"B/16" is the name of a model'):
        vitrail.load("B/16", names=path)


@pytest.mark.parametrize(
    "text", ["names: [", "a: 1", "- 3", "names:\n  a: [1]\n", "names: {}\nother: 1\n", "names: {}\nanswers: 3", "\x00"]
)
def test_no_names_file_at_all(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"names.yaml") as error:
        vitrail.load(OfTorch().state_dict(), names=tmp_path / "names.yaml")
    assert "\n" not in str(error.value)


def test_matrices_of_inputs_by_outputs() -> None:
    """x @ W, with W of (inputs, outputs)."""
    torch.manual_seed(0)
    model = randomised(Scaled())
    state = {
        name: value.T.contiguous() if name.endswith(("feed_forward.0.weight", "feed_forward.3.weight")) else value
        for name, value in model.state_dict().items()
    }
    names = vitrail.suggest_names(model.state_dict())
    names = relabelled(names, {f"blocks.#.mlp.fc{i}.*": f"blocks.#.mlp.fc{i}.* (transposed)" for i in (1, 2)})
    assert_equal(vitrail.load(state, names=names, **CODE), model)


# --------------------------------------------------------------------------------------------------------------------
# Live modules


@pytest.mark.parametrize("name", LIVE)
def test_a_live_module_is_proved(name: str) -> None:
    """Nothing is asked for: what tensors don't tell is tried."""
    torch.manual_seed(0)
    model = randomised(CASES[name][0]())
    ours = vitrail.load(model)
    assert_equal(ours, model)
    assert ours.receipt is not None
    assert any(note.startswith("proved: outputs equal") for note in ours.receipt.notes)


@pytest.mark.parametrize(
    "fields",
    [
        {"patch_order": "p1 p2 c", "qkv_order": "h kqv d"},
        {"qkv_order": "h d qkv", "scale": "after", "activation": lambda x: F.gelu(x, approximate="tanh")},
    ],
)
def test_ambiguities_are_settled_on_the_live_module(fields: dict[str, Any]) -> None:
    """The second norm is registered first, and all matrices have one shape."""
    torch.manual_seed(0)
    model = Odd(**fields).eval()  # norms and biases of a fresh model are alike
    names = vitrail.suggest_names(model)
    found = {line.theirs: line.ours for line in names.lines}
    assert (found["stack#.a.*"], found["stack#.b.*"]) == ("blocks.#.norm1.*", "blocks.#.norm2.*")
    assert names.answers["qkv_order"] == fields["qkv_order"]
    trained = randomised(Odd(**fields))
    assert_equal(vitrail.load(trained.state_dict(), names=names, pixel_scale="unit"), trained)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Odd(activation=F.silu), r"Odd computes something else .* in its norms and MLP .*differs by \d"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), r"is no plain ViT: no tensors recur"),
        (resnet18, r"is no plain ViT"),
    ],
)
def test_a_live_module_that_computes_something_else(make: Callable[[], nn.Module], told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        vitrail.load(make().eval())
    assert "\n" not in str(error.value)


def test_wrong_names_of_a_live_module_are_refused_with_the_difference() -> None:
    torch.manual_seed(0)
    model = randomised(OfTorch())
    names = vitrail.suggest_names(model.state_dict())
    assert_equal(vitrail.load(model, names=names), model)
    swap = {f"blocks.#.norm{i}.*": f"blocks.#.norm{3 - i}.*" for i in (1, 2)}
    with pytest.raises(ValueError, match=r"the closest differs by \d"):
        vitrail.load(model, names=relabelled(names, swap))


# --------------------------------------------------------------------------------------------------------------------
# The guess


@settings(max_examples=25)
@given(
    depth=st.integers(1, 4),
    heads=st.integers(1, 3),
    head=st.integers(2, 5),
    hidden=st.integers(2, 40),
    class_token=st.booleans(),
    words=st.lists(st.text("efghxyz", min_size=4, max_size=8), min_size=14, max_size=14, unique=True),
)
def test_shapes_and_order_tell_a_plain_vit(
    depth: int, heads: int, head: int, hidden: int, class_token: bool, words: list[str]
) -> None:
    """Names without any meaning, and numbers from 0 on: all is found, if no matrix of the MLP is like one of attention."""
    dim = 4 * heads * head
    if hidden in (dim, 3 * dim):
        hidden += 1
    fields: dict[str, Any] = {"embed_dim": dim, "num_heads": heads, "depth": depth, "mlp_ratio": hidden / dim, "img_size": 16}
    pool = "cls" if class_token else "avg"
    model = ViT(patch_size=PATCH, num_classes=7, class_token=class_token, pool=pool, **fields)
    parts = ["patch_embed", "proj", "cls_token", "pos_embed", "blocks", "norm1", "norm2", "attn", "qkv", "mlp", "fc1", "fc2"]
    spelling = dict(zip([*parts, "norm", "head"], words, strict=True))
    back = {}
    for name in model.state_dict():
        theirs = ".".join(spelling.get(part, part) for part in name.split("."))
        back[theirs] = name
    shapes = {theirs: tuple(model.state_dict()[name].shape) for theirs, name in back.items()}
    found = guess(shapes)
    assert found.unexplained == ()
    for row in found.table:
        assert back[row.theirs[0].replace("#", "0")] == row.ours.replace("#", "0")


DIT = {
    "x_embedder.proj.weight": torch.zeros(32, 4, 2, 2),
    "x_embedder.proj.bias": torch.zeros(32),
    "pos_embed": torch.zeros(1, 16, 32),
    "t_embedder.mlp.0.weight": torch.zeros(32, 256),
    "y_embedder.embedding_table.weight": torch.zeros(11, 32),
    **{
        f"blocks.{i}.{name}": torch.zeros(*shape)
        for i in range(2)
        for name, shape in {
            "attn.qkv.weight": (96, 32),
            "attn.proj.weight": (32, 32),
            "mlp.fc1.weight": (64, 32),
            "mlp.fc2.weight": (32, 64),
            "adaLN_modulation.1.weight": (192, 32),
        }.items()
    },
    "final_layer.linear.weight": torch.zeros(32, 32),
}


def text_model(cls: str, config: str, **fields: Any) -> State:
    config_of: Any = getattr(transformers, config)
    return getattr(transformers, cls)(config_of(**fields)).state_dict()


STRANGERS: dict[str, Callable[[], State]] = {
    "ResNet": lambda: resnet18().state_dict(),
    "BERT": lambda: text_model(
        "BertModel",
        "BertConfig",
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        vocab_size=50,
    ),
    "GPT-2": lambda: text_model("GPT2Model", "GPT2Config", n_layer=2, n_embd=48, n_head=4, vocab_size=50, n_positions=16),
    "T5": lambda: text_model("T5Model", "T5Config", d_model=48, d_ff=96, num_layers=2, num_heads=4, d_kv=12, vocab_size=50),
    "DiT": lambda: DIT,
    "nn.Transformer": lambda: nn.Transformer(48, 4, 2, 2, 96).state_dict(),
    "an MLP": lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)).state_dict(),
    "text encoder of torch": lambda: nn.ModuleDict(
        {
            "embedding": nn.Embedding(100, 48),
            "encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(48, 4, 96), 2),
            "head": nn.Linear(48, 3),
        }
    ).state_dict(),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_no_vit_stays_refused(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = STRANGERS[name]()
    with pytest.raises(ValueError, match=r"^(no plain ViT is in these|this .* is not a plain ViT)") as error:
        vitrail.load(state, **CODE)
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------------------
# Containers of the papers' own trainings


META: dict[str, Callable[[State], dict[str, Any]]] = {
    "DINO, backbone alone": lambda state: state,
    "DINO, student": lambda state: {"student": renamed(state, "module.backbone."), "epoch": 3},
    "DINO, teacher": lambda state: {"student": renamed(state, "module."), "teacher": renamed(state, "backbone.")},
    "DINOv2, teacher": lambda state: {"teacher": {**renamed(state, "backbone."), "dino_head.mlp.0.weight": torch.ones(8, DIM)}},
    "MAE": lambda state: {"model": state, "args": {"lr": 1e-3}},
    "DeiT": lambda state: {"model": renamed(state, "module."), "epoch": 3},
    "a state_dict": lambda state: {"state_dict": renamed(state, "module.")},
}


@pytest.mark.parametrize("name", META)
def test_containers_of_the_papers(name: str, tmp_path: Path) -> None:
    model = timm_vit(num_classes=0)
    torch.save(META[name](model.state_dict()), tmp_path / "checkpoint.pth")
    ours = vitrail.load(tmp_path / "checkpoint.pth", num_heads=HEADS)
    images = some_images(64)
    assert (logits(ours, images) - logits(model, images)).abs().max() < 1e-5
