"""Methods on backbones without global attention, by hand: Swin, a pyramid alone, tokens alone, and no features at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vitrail.cli import main
from vitrail.explain import (
    METHODS,
    compare,
    faithfulness,
    gradcam,
    head_statistics,
    integrated_gradients,
    pca,
    similarity,
)
from vitrail.explain.inputs import model_name, offers_of, open_scene
from vitrail.explain.sheets import ExplainConfig, explain, side_by_side
from vitrail.models.backbone import Backbone, Features, Stage, View
from vitrail.models.swin import Swin
from vitrail.models.swin_v2_cr import SwinV2Cr
from vitrail.models.vit import ViT
from vitrail.settings import Preprocessing

IMAGES = Preprocessing(img_size=(20, 28), in_channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))


def swin(**fields: Any) -> Swin:
    """Patches of 4 pixels, merged once: cells of 8 pixels."""
    torch.manual_seed(0)
    base = {"img_size": (20, 28), "embed_dim": 8, "depths": (1, 2), "num_heads": (2, 2), "window_size": 2, "num_classes": 3}
    model = Swin(**base | fields).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def images(height: int = 20, width: int = 28, count: int = 2) -> Tensor:
    """20 x 28 pixels are 5 x 7 patches and 3 x 4 cells, of which the last in each direction reach beyond the image."""
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


class Pyramid(Backbone):
    """Two convolutions and a mean: maps without tokens. Its head is linear in the last map."""

    def __init__(self, *, maps: bool = True, tokens: bool = False, copied: bool = False) -> None:
        super().__init__()
        self.config = ViT(img_size=16, patch_size=4, embed_dim=8, depth=0, num_heads=1, num_classes=3).config
        self.fine, self.coarse = nn.Conv2d(3, 4, 2, stride=2), nn.Conv2d(4, 5, 4, stride=4)
        self.head = nn.Linear(5, 3)
        self.maps, self.tokens, self.copied = maps, tokens, copied

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).pooled)

    def features(self, images: Tensor, view: View = View()) -> Features:
        fine = self.fine(images)
        coarse = self.coarse(fine)
        tokens = coarse.flatten(2).mT  # (B, N, D)
        pooled = tokens.mean(dim=1)
        grid = (coarse.shape[2], coarse.shape[3])
        if self.tokens:
            pyramid = (tokens.mT.unflatten(2, grid),) if self.copied else None
            return Features(pooled=pooled, tokens=tokens, grid=grid, pyramid=pyramid)
        pyramid = (fine, coarse.clone() if self.copied else coarse) if self.maps else None
        return Features(pooled=coarse.mean(dim=(2, 3)), pyramid=pyramid)

    def head_logits(self, images: Tensor, *, patch_size: Any = None) -> tuple[Tensor, ...]:
        return (self(images),)

    def stages(self) -> list[Stage]:
        return [Stage("net", ("fine", "coarse", "head"))]

    def reset_head(self, num_classes: int) -> None:
        raise NotImplementedError

    @property
    def side_unit(self) -> tuple[int, int]:
        return 8, 8


# --------------------------------------------------------------------------------------------------------------------
# Grad-CAM


@pytest.mark.parametrize("layer", [0, -1])
def test_gradcam_of_swin_is_its_formula_on_the_last_map(layer: int) -> None:
    model, x = swin(), images()
    result = gradcam(model, x, layer=layer, target=[2, 0])
    kept: list[Tensor] = []
    block = model.layers[-1].blocks[-1]
    handle = block.register_forward_hook(lambda module, taken, given: kept.append(given))
    logits = model(x)
    handle.remove()
    (grad,) = torch.autograd.grad(logits[0, 2] + logits[1, 0], kept[0])
    expected = torch.einsum("bd,bld->bl", grad.mean(1), kept[0]).clamp(min=0).detach()  # (B, 3 x 4)
    assert expected.max() > 1e-4
    torch.testing.assert_close(result.maps, expected.unflatten(1, (3, 4)), rtol=1e-4, atol=1e-6)
    assert result.patch == (8, 8)
    assert result.image_sizes.tolist() == [[20, 28]] * 2
    share = logits.softmax(1)[0, 2].item()
    assert result.labels[0] == f"last features, class 2 ({share:.1%})"


def test_gradcam_with_held_norms_takes_the_last_norms_scale_for_a_constant() -> None:
    model, x = swin(), images()
    result = gradcam(model, x, target=1, hold_norms=True)
    kept: list[Tensor] = []
    handle = model.norm.register_forward_hook(lambda module, taken, given: kept.append(taken[0]))
    model(x)
    handle.remove()
    tokens = kept[0].detach().requires_grad_()
    scale = (tokens.var(-1, unbiased=False, keepdim=True) + model.norm.eps).sqrt().detach()
    normed = (tokens - tokens.mean(-1, keepdim=True)) / scale * model.norm.weight + model.norm.bias
    (grad,) = torch.autograd.grad(model.head(normed.mean(1))[:, 1].sum(), tokens)
    expected = torch.einsum("bd,bld->bl", grad.mean(1), tokens).clamp(min=0).detach().unflatten(1, (3, 4))
    torch.testing.assert_close(result.maps, expected, rtol=1e-3, atol=1e-6)
    assert "held" in result.note
    assert not torch.allclose(result.maps, gradcam(model, x, target=1).maps, rtol=0.05, atol=1e-4)


@pytest.mark.parametrize(
    "made",
    [{}, {"tokens": True}, {"tokens": True, "copied": True}],
    ids=["pyramid", "tokens", "tokens and a copy of them as a map"],
)
def test_gradcam_of_a_linear_head_is_the_class_activation_map(made: dict[str, bool]) -> None:
    """Zhou et al. 2016: behind a mean and a linear head, α_d is the head's weight over the number of patches."""
    model, x = Pyramid(**made), images(16, 24)
    result = gradcam(model, x, target=2)
    coarse = model.coarse(model.fine(x))
    expected = torch.einsum("d,bdyx->byx", model.head.weight[2], coarse).clamp(min=0).detach() / 6
    torch.testing.assert_close(result.maps, expected, rtol=1e-4, atol=1e-6)
    assert result.patch == (8, 8)


def test_a_map_beside_the_way_to_the_logits_has_no_gradient() -> None:
    with pytest.raises(
        ValueError, match=r"^the logits of Pyramid are computed from neither its last feature map nor its tokens"
    ):
        gradcam(Pyramid(copied=True), images(16, 24))


def test_swin_has_one_layer_to_explain() -> None:
    with pytest.raises(ValueError, match=r"^layer 1: of Swin only the last features are explained; leave the layer out$"):
        gradcam(swin(), images(), layer=1)


# --------------------------------------------------------------------------------------------------------------------
# Integrated gradients


def test_integrated_gradients_of_swin_by_hand() -> None:
    model, x = swin(), images()
    result = integrated_gradients(model, x, target=[1, 2], steps=4)
    total = torch.zeros_like(x)
    for step in range(4):
        point = (x * (step + 0.5) / 4).requires_grad_()
        logits = model(point)
        total += torch.autograd.grad(logits[0, 1] + logits[1, 2], point)[0]
    pixels = F.pad((total * x / 4).sum(1), (0, 4, 0, 4))  # to 24 x 32: whole cells
    expected = torch.stack([pixels[:, y : y + 8, z : z + 8].sum((1, 2)) for y in (0, 8, 16) for z in (0, 8, 16, 24)], dim=1)
    torch.testing.assert_close(result.maps, expected.unflatten(1, (3, 4)), rtol=1e-4, atol=1e-5)
    assert result.signed
    assert "4 steps from the mean colour" in result.note


def test_integrated_gradients_of_swin_sum_to_the_rise_of_the_logit() -> None:
    model, x = swin(), images()
    result = integrated_gradients(model, x, target=1, steps=64)
    with torch.no_grad():
        rise = model(x)[:, 1] - model(torch.zeros_like(x))[:, 1]
    torch.testing.assert_close(result.maps.sum(dim=(1, 2)), rise, rtol=0.03, atol=0.03)


def test_integrated_gradients_of_a_linear_model_are_weight_times_pixel() -> None:
    model, x = Pyramid(), images(16, 24, 1)
    baseline = 0.3 * x + 0.1
    result = integrated_gradients(model, x, target=0, steps=1, baseline=baseline)
    pixels = x.clone().requires_grad_()
    (weights,) = torch.autograd.grad(model(pixels)[0, 0], pixels)
    expected = (weights * (x - baseline)).sum(1).unflatten(2, (3, 8)).unflatten(1, (2, 8)).sum((2, 4))
    torch.testing.assert_close(result.maps, expected, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------------
# The grid


@pytest.mark.parametrize(("height", "width"), [(32, 64), (33, 64), (47, 31), (20, 8), (224, 230)])
def test_cells_are_as_large_as_the_stride_of_the_last_map(height: int, width: int) -> None:
    with open_scene(swin(), images(height, width, 1)) as scene:
        assert scene.patch == (8, 8)
        assert scene.grid == (math.ceil(height / 8), math.ceil(width / 8))
        assert scene.positions == math.ceil(height / 4) * math.ceil(width / 4)
        assert scene.present().all()


def test_a_cell_is_where_its_pixels_are() -> None:
    """A change of one pixel moves, of Swin's first stage in windows of one, the cell that holds it and no other."""
    model, x = swin(depths=(1, 1), window_size=1), images()
    y = x.clone()
    y[:, :, 17, 9] += 1
    with torch.no_grad():
        before, after = (model.features(one).pyramid[-1] for one in (x, y))
    assert ((before - after).abs().sum(1) > 0).nonzero().tolist() == [[0, 2, 1], [1, 2, 1]]
    with open_scene(model, x) as scene:
        assert scene.token((9, 17)) == 2 * 4 + 1


# --------------------------------------------------------------------------------------------------------------------
# What a backbone offers


def test_offers() -> None:
    assert offers_of(ViT(img_size=16, patch_size=4, embed_dim=8, depth=1, num_heads=1, num_classes=2)) == {
        *("attention", "rows", "tokens", "grid", "head")
    }
    assert offers_of(swin()) == {"tokens", "grid", "head"}
    assert offers_of(swin(num_classes=0)) == {"tokens", "grid"}
    assert offers_of(Pyramid()) == {"grid", "head"}
    assert offers_of(Pyramid(maps=False)) == {"head"}


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if "attention" in row.needs])
def test_methods_of_attention_refuse_swin_in_one_line(name: str) -> None:
    line = rf'^method "{name}" needs global attention, which Swin does not have; use gradcam or integrated_gradients$'
    for call in (
        lambda: METHODS[name].run(swin(), images()),
        lambda: compare(swin(), images(), methods=name),
        lambda: ExplainConfig(method=name).for_model(swin()),
    ):
        with pytest.raises(ValueError, match=line):
            call()


def test_other_refusals_are_one_line() -> None:
    with pytest.raises(ValueError, match=r"^head_statistics needs global attention, which Swin does not have; use a ViT$"):
        head_statistics(swin(), images())
    with pytest.raises(ValueError, match=r'^method "pca" needs patch tokens, which Pyramid does not have; use gradcam or'):
        pca(Pyramid(), images(16, 24))
    with pytest.raises(
        ValueError, match=r'^method "gradcam" needs a grid of features, which Pyramid does not have; use a ViT$'
    ):
        gradcam(Pyramid(maps=False), images(16, 24))
    with pytest.raises(
        ValueError, match=r"^this model has no head, so there is no class to explain; pca and similarity need none$"
    ):
        gradcam(swin(num_classes=0), images())
    with pytest.raises(
        ValueError, match=r"^Swin takes whole images in patches of its own; leave pad, sizes and patch_size out$"
    ):
        gradcam(swin(), images(), pad=True)
    with pytest.raises(ValueError, match=r'^query "cls": this model has no class token; ask for a patch by a pixel'):
        similarity(swin(), images())


def test_tokens_of_swin_have_components_and_likenesses() -> None:
    model, x = swin(), images(24, 32)
    tokens = model.features(x).tokens.detach()
    result = similarity(model, x, query=(9, 17))
    expected = F.cosine_similarity(tokens, tokens[:, None, 2 * 4 + 1], dim=2).unflatten(1, (3, 4))
    torch.testing.assert_close(result.maps, expected)
    assert result.labels[0] == "last features, patch at 9,17"
    rows = tokens.flatten(0, 1).double()
    _, values, axes = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    first = (rows - rows.mean(0)) @ axes[0] / values[0] * math.sqrt(len(rows))
    made = pca(model, x)
    torch.testing.assert_close(made.maps.flatten().abs(), first.abs().float(), rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------------------------------------------------------
# Around the methods


def test_nothing_is_left_on_swin_and_its_weights_may_be_frozen() -> None:
    model, x = swin(drop_path_rate=0.5).train(), images()
    first = [method(model, x, target=1).maps for method in (gradcam, integrated_gradients)]
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(False)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            again = [method(model, x, target=1).maps for method in (gradcam, integrated_gradients)]
            assert all(map(torch.equal, first, again))


def test_faithfulness_of_swin_begins_and_ends_with_the_whole_images() -> None:
    model, x = swin(), images()
    scores = faithfulness(model, x, gradcam(model, x, target=[1, 2]), target=[1, 2], steps=5)
    with torch.no_grad():
        whole, nothing = (model(one).softmax(dim=1)[torch.arange(2), torch.tensor([1, 2])] for one in (x, 0 * x))
    torch.testing.assert_close(scores.deletion_curves[:, [0, -1]], torch.stack([whole, nothing], dim=1))
    torch.testing.assert_close(scores.insertion_curves[:, -1], whole)


def test_swin_is_compared_by_the_methods_that_it_can_run() -> None:
    result = compare(swin(), images(), steps=3, draws=2)
    assert list(result.methods) == ["gradcam", "integrated_gradients"]
    assert all(one.maps.maps.shape == (2, 3, 4) for one in result.methods.values())


def test_swin_v2_cr_is_explained_as_swin_is() -> None:
    model = SwinV2Cr(img_size=32, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 1), num_classes=3).eval()
    assert offers_of(model) == offers_of(swin())
    assert gradcam(model, images()).maps.shape == gradcam(swin(), images()).maps.shape
    with pytest.raises(ValueError, match=r"^[^\n]* needs global attention, which SwinV2Cr does not have; use gradcam[^\n]*$"):
        METHODS["rollout"].run(model, images())


def test_sheets_of_swin(tmp_path: Path) -> None:
    model = swin()
    model.preprocessing, model.classes = IMAGES, ("ant", "bee", "cat")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    made = explain(model, tmp_path / "photo.png", ExplainConfig(steps=2, target="bee", layers="all", grid=True))
    assert [row["method"] for row in made.rows] == ["gradcam"]
    assert made.rows[0]["class"] == "bee"
    assert made.rows[0]["insertion"] is not None
    both, _ = side_by_side(model, tmp_path / "photo.png", ExplainConfig(steps=2))
    assert [row["method"] for row in both.rows] == ["gradcam", "integrated_gradients"]
    wrapped = torch.compile(model, backend="eager")
    torch.testing.assert_close(gradcam(wrapped, images()).maps, gradcam(model, images()).maps)


def test_a_named_size_is_called_by_its_name() -> None:
    with torch.device("meta"):
        assert model_name(Swin()) == "swin_t"
    assert model_name(swin()) == "Swin"


@pytest.fixture(scope="module")
def swin_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "swin"
    shape = ["--model.embed_dim", "8", "--model.depths", "[1,1]", "--model.num_heads", "[2,2]", "--model.window_size", "4"]
    assert main(["train", "--model", "swin_custom", *shape, "--train.steps", "2", "--out", str(run)]) == 0
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)).save(run.parent / "a.png")
    return run


@pytest.mark.parametrize(
    ("words", "methods"),
    [
        (["--steps", "2"], ["gradcam"]),
        (["--method", "integrated-gradients", "--steps", "2", "--img-size", "30x41"], ["integrated_gradients"]),
        (["--compare", "--steps", "2", "--query", "3"], ["gradcam", "integrated_gradients"]),
        (["--method", "similarity", "--query", "13,20"], ["similarity"]),
    ],
)
def test_the_command_explains_swin(
    swin_run: Path, words: list[str], methods: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = swin_run.parent / "a.png", swin_run.parent / "explained"
    capsys.readouterr()
    assert main(["explain", str(swin_run), str(image), *words, "--json", "--out", str(out)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == methods
    assert all(Path(row["file"]).is_file() for row in rows)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["IMAGE", "--method", "rollout"],
            'method "rollout" needs global attention, which Swin does not have; use gradcam or integrated_gradients',
        ),
        (["--model"], "--model needs global attention, which Swin does not have; use a ViT"),
        (["IMAGE", "--layers", "1"], "layer 1: of Swin only the last features are explained; leave the layer out"),
    ],
)
def test_the_command_refuses_in_one_line(
    swin_run: Path, words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    given = [str(swin_run.parent / "a.png") if word == "IMAGE" else word for word in words]
    assert main(["explain", str(swin_run), *given, "--out", str(swin_run.parent / "refused")]) == 2
    assert capsys.readouterr().err == f"vitrail: {line}\n"
