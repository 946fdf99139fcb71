"""Relevance as its authors' equations have it, gradients as finite differences have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.explain import gradcam, integrated_gradients, relevance
from vitrail.explain.inputs import open_scene
from vitrail.explain.passes import class_gradient, forward_pass, held_norms
from vitrail.models import ViT
from vitrail.models import vit as vit_module

DEPTH, HEADS, DIM = 3, 2, 16


def vit(**fields: Any) -> ViT:
    torch.manual_seed(0)
    base = {"img_size": 16, "patch_size": 4, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "num_classes": 5}
    made = ViT(**base | fields).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def images(height: int = 16, width: int = 16, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


class Nudged:
    """Stands in for the model's attention: plain, in float64, each layer's matrix kept or moved by a little."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, moves: dict[int, Tensor] | None = None) -> None:
        self.matrices: list[Tensor] = []
        self.moves = moves or {}
        monkeypatch.setattr(vit_module, "attend", self)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, dropout: float) -> Tensor:
        matrix = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        matrix = matrix + self.moves.get(len(self.matrices), torch.zeros(()))
        self.matrices.append(matrix)
        return matrix @ v


def published(model: ViT, x: Tensor, target: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """R (N, N) of one image as the paper has it, ∇A by finite differences of every single attention weight.

    Chefer et al. 2021: Ā = E_h[(∇A ⊙ A)⁺] (equation 5), R ← R + Ā R from R = 1 (equation 6).
    """
    eps = 1e-5

    def logit(moves: dict[int, Tensor] | None = None) -> tuple[float, list[Tensor]]:
        with monkeypatch.context() as patch, torch.no_grad():
            seen = Nudged(patch, moves=moves)
            return model(x)[0, target].item(), seen.matrices

    _, matrices = logit()
    matrices = matrices[: model.config.depth]
    result = torch.eye(matrices[0].shape[-1], dtype=torch.float64)
    for layer, matrix in enumerate(matrices):
        grad = torch.zeros_like(matrix)
        for place in range(matrix.numel()):
            move = torch.zeros_like(matrix)
            move.view(-1)[place] = eps
            grad.view(-1)[place] = (logit({layer: move})[0] - logit({layer: -move})[0]) / (2 * eps)
        result = result + (grad * matrix).clamp(min=0).mean(1)[0] @ result
    return result


@pytest.mark.parametrize("fields", [{}, {"class_token": False, "pool": "avg"}], ids=["class token", "mean"])
def test_relevance_is_the_published_formula_by_finite_differences(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = vit(img_size=8, depth=2, **fields).double()
    x, target = images(8, 8, 1).double(), 3
    expected = published(model, x, target, monkeypatch)
    first = model.prefix_tokens
    row = expected[0, first:] if first else (expected - torch.eye(len(expected))).mean(0)
    assert row.max() > 1e-3, "nothing to compare"
    found = relevance(model, x, target=target)
    torch.testing.assert_close(found.maps[0].flatten(), row.float(), rtol=2e-3, atol=1e-6)
    asked = relevance(model, x, target=target, query=(6, 1))  # the second patch of four
    token = first + 1
    own = expected[token] - torch.eye(len(expected), dtype=torch.float64)[token]
    torch.testing.assert_close(asked.maps[0].flatten(), own[first:].float(), rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"reg_tokens": 2},
        {"dist_token": True},
        {"class_token": False, "pool": "avg"},
        {"pool": "cls+avg"},
        {"class_token": False, "pool": "map"},
        {"class_token": False, "pool": "avg", "fc_norm": True, "init_values": 0.5, "mlp": "swiglu", "qk_norm": True},
    ],
    ids=["plain", "registers", "distilled", "mean", "both", "pooling", "modern"],
)
def test_relevance_is_what_autograd_gives_with_plain_attention(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same by the road that libraries take: every matrix in the graph, and its gradient by autograd."""
    model, x = vit(**fields), images(8, 20)
    targets = [1, 4]
    found = relevance(model, x, target=targets)
    with monkeypatch.context() as patch:
        seen = Nudged(patch)
        logits = model(x)
    grads = torch.autograd.grad(logits[0, 1] + logits[1, 4], seen.matrices)
    steps = [(grad * matrix).clamp(min=0).mean(1) for grad, matrix in zip(grads, seen.matrices, strict=True)]
    tokens, prefix = steps[0].shape[1], model.prefix_tokens
    result = torch.eye(tokens).expand(2, -1, -1)
    for step in steps[:DEPTH]:
        result = result + step @ result
    evidence = result - torch.eye(tokens)
    if model.attn_pool is not None:
        expected = (steps[DEPTH] @ result)[:, 0]
    elif model.config.pool == "cls+avg":
        expected = (evidence[:, 0] + evidence[:, prefix:].mean(1)) / 2
    elif model.config.pool == "avg":
        expected = evidence[:, prefix:].mean(1)
    else:
        expected = evidence[:, :2].mean(1) if model.head_dist is not None else evidence[:, 0]
    torch.testing.assert_close(found.maps.flatten(1), expected[:, prefix:].detach(), rtol=1e-3, atol=1e-6)
    assert bool(found.note) == (model.config.pool != "cls" or model.head_dist is not None)


class Held(torch.nn.Module):
    """A LayerNorm whose scale is a constant, written down."""

    def __init__(self, norm: torch.nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        scale = (x.var(-1, unbiased=False, keepdim=True) + self.norm.eps).sqrt().detach()
        return (x - x.mean(-1, keepdim=True)) / scale * self.norm.weight + self.norm.bias


@pytest.mark.parametrize("method", [relevance, gradcam])
@pytest.mark.parametrize(
    "fields",
    [{}, {"class_token": False, "pool": "avg", "fc_norm": True, "qk_norm": True}, {"class_token": False, "pool": "map"}],
    ids=["class token", "mean", "pooling"],
)
def test_held_norms_are_constants_to_the_gradient(fields: dict[str, Any], method: Any) -> None:
    model, x = vit(**fields), images(8, 12)
    free, found = method(model, x, target=1), method(model, x, target=1, hold_norms=True)
    assert "held" not in free.note
    assert "the scales of the tokens' norms are held" in found.note
    assert found.labels == free.labels, "the pass is the same, and so is the class's probability"
    assert torch.equal(method(model, x, target=1).maps, free.maps), "and nothing is left behind"
    held = vit(**fields)
    for name, norm in list(held.named_modules()):
        if isinstance(norm, torch.nn.LayerNorm) and name.rpartition(".")[2] not in ("q_norm", "k_norm"):
            held.set_submodule(name, Held(norm))
    torch.testing.assert_close(found.maps, method(held, x, target=1).maps, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(found.maps, free.maps, rtol=0.05, atol=0.05 * free.maps.max().item())


def test_with_held_norms_the_logit_is_shared_out() -> None:
    """At a constant scale the last norm and the head are straight: gradient times token sums to the logit, less the biases."""
    model, x = vit(), images()
    with open_scene(model, x) as seen, held_norms(seen.model):
        there = forward_pass(seen)
        made = class_gradient(there, 2)
    assert isinstance(model.head, torch.nn.Linear)
    assert isinstance(model.norm, torch.nn.LayerNorm)
    with torch.no_grad():
        biases = model.head.bias[2] + model.head.weight[2] @ model.norm.bias
    shares = (made.grad * there.last).sum(dim=(1, 2))
    torch.testing.assert_close(shares, (made.logits[:, 2] - biases), rtol=1e-4, atol=1e-4)
    assert class_gradient(there, 2).grad.mul(there.last).sum().abs() < 1e-3, "the true gradient has nothing along a token"


def test_relevance_in_parts_and_over_masked_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = vit(), torch.tensor([[16, 5], [3, 16]])
    whole = relevance(model, images(), target=0, sizes=sizes)
    assert not whole.maps[0, :, 2:].any()
    assert not whole.maps[1, 1:].any()
    monkeypatch.setattr("vitrail.explain.passes.CHUNK_BYTES", 2000)
    torch.testing.assert_close(relevance(model, images(), target=0, sizes=sizes).maps, whole.maps, atol=1e-6, rtol=1e-4)


def test_classes_by_number_by_name_and_by_prediction() -> None:
    model, x = vit(), images()
    model.classes = ("ant", "bee", "cat", "dog", "eel")
    with torch.no_grad():
        logits = model(x)
    predicted = logits.argmax(1).tolist()
    found = relevance(model, x)
    assert torch.equal(found.maps, relevance(model, x, target=predicted).maps)
    share = logits.softmax(1)[0, predicted[0]].item()
    assert found.labels[0] == f"{model.classes[predicted[0]]} ({share:.1%})"
    assert torch.equal(relevance(model, x, target="cat").maps, relevance(model, x, target=2).maps)
    assert torch.equal(relevance(model, x, target=["cat", 0]).maps, relevance(model, x, target=[2, "ant"]).maps)
    for target, said in (
        ("cta", r'^class "cta" is none of this model\'s; did you mean "cat"\?$'),
        ("walrus", r'^class "walrus" is none of this model\'s; it has 5 classes, by number or by name$'),
        (5, r"^class 5 does not exist; this model has classes 0 to 4$"),
        ([0, 1, 2], r"^3 classes for 2 images; give one, or one for each$"),
    ):
        with pytest.raises(ValueError, match=said):
            relevance(model, x, target=target)  # type: ignore[arg-type]
    model.reset_head(0)
    with pytest.raises(ValueError, match=r"^this model has no head, so there is no class to explain"):
        relevance(model, x)


@pytest.mark.parametrize("fields", [{}, {"class_token": False, "pool": "avg"}], ids=["class token", "mean"])
@pytest.mark.parametrize("layer", [0, -1])
def test_gradcam_is_its_formula(fields: dict[str, Any], layer: int) -> None:
    model, x = vit(**fields), images(8, 12)
    found = gradcam(model, x, layer=layer, target=[2, 0])
    kept: list[Tensor] = []
    norm = model.blocks[layer].norm1
    assert isinstance(norm, torch.nn.Module)
    handle = norm.register_forward_hook(lambda module, taken, given: kept.append(given))
    logits = model(x)
    handle.remove()
    (grad,) = torch.autograd.grad(logits[0, 2] + logits[1, 0], kept[0])
    first = model.prefix_tokens
    alpha = grad[:, first:].mean(1)  # (B, D)
    expected = torch.einsum("bd,bld->bl", alpha, kept[0][:, first:]).clamp(min=0).detach()
    assert expected.max() > 1e-4
    torch.testing.assert_close(found.maps.flatten(1), expected, rtol=1e-4, atol=1e-6)
    assert found.labels[0].startswith(f"layer {layer % DEPTH}, class 2 (")


def test_integrated_gradients_sum_to_the_rise_of_the_logit() -> None:
    model, x = vit(), images(8, 12)
    found = integrated_gradients(model, x, target=1, steps=64)
    with torch.no_grad():
        rise = model(x)[:, 1] - model(torch.zeros_like(x))[:, 1]
    torch.testing.assert_close(found.maps.sum(dim=(1, 2)), rise, rtol=0.02, atol=0.02)
    assert found.signed
    assert "64 steps from the mean colour; the maps' sums miss the rise of the logit by" in found.note


def test_integrated_gradients_of_a_straight_model_are_exact() -> None:
    """Where the logit is linear in the pixels, a patch has weight times pixels, in one step, from any baseline."""
    model = vit(depth=1, class_token=False, pool="avg", final_norm=False, pos_embed="none")
    with torch.no_grad():
        for name, parameter in model.blocks.named_parameters():
            if "proj" in name or "fc2" in name:
                parameter.zero_()  # the block adds nothing
    x, baseline = images(8, 12), images(8, 12) * 0.3 + 0.1
    found = integrated_gradients(model, x, target=2, steps=1, baseline=baseline)
    proj = model.patch_embed.proj
    assert isinstance(model.head, torch.nn.Linear)
    patches = F.conv2d(x - baseline, proj.weight, stride=4)  # (B, D, 2, 3)
    expected = torch.einsum("bdyx,d->byx", patches, model.head.weight[2]) / 6
    torch.testing.assert_close(found.maps, expected.detach(), rtol=1e-4, atol=1e-5)
    assert "1 steps from the baseline given" in found.note


def test_no_step_is_none() -> None:
    with pytest.raises(ValueError, match=r"^steps 0 must be at least 1$"):
        integrated_gradients(vit(), images(), steps=0)


def test_nothing_is_left_on_the_model() -> None:
    model, x = vit(drop_path_rate=0.5).train(), images()
    first = [method(model, x, target=1).maps for method in (relevance, gradcam, integrated_gradients)]
    again = [method(model, x, target=1).maps for method in (relevance, gradcam, integrated_gradients)]
    assert all(map(torch.equal, first, again))
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        inside = relevance(model, x, target=1).maps
    assert torch.equal(inside, first[0])
    assert all(module.training for module in model.modules())


def test_in_inference_mode_and_with_frozen_weights() -> None:
    model, x = vit().requires_grad_(False), images()
    expected = relevance(model, x, target=1).maps
    assert expected.any()
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(relevance(model, x, target=1).maps, expected)


def test_in_bf16_it_is_near() -> None:
    model, x = vit(), images()
    exact = relevance(model, x, target=1).maps
    held = relevance(model, x, target=1, hold_norms=True).maps
    model.to(torch.bfloat16)
    for expected, fields in ((exact, {}), (held, {"hold_norms": True})):
        rounded = relevance(model, x, target=1, **fields).maps  # type: ignore[arg-type]
        assert torch.nn.functional.cosine_similarity(expected.flatten(), rounded.flatten(), dim=0) > 0.95
