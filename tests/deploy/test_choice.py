"""A backend is chosen by measuring, only among those that are correct, and is remembered."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vitrail.deploy import BACKENDS, Backend, Predictor
from vitrail.deploy.backends import candidates, overview, require_available
from vitrail.deploy.choice import choose, difference, error_of, key_of, race
from vitrail.models import ViT
from vitrail.models.device import Processor
from vitrail.settings import Preprocessing
from vitrail.weights import save_model

CPU = torch.device("cpu")
PICTURES = [np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8) for i in range(5)]


def tiny(classes: int = 5) -> ViT:
    torch.manual_seed(0)
    model = ViT(img_size=16, patch_size=8, num_classes=classes, embed_dim=16, depth=1, num_heads=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    model = tiny()
    model.preprocessing = Preprocessing(img_size=(16, 16), in_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    (tmp_path / "run").mkdir()
    save_model(model, tmp_path / "run", data="animals")
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of choices, in a cache folder of this test."""
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "speed" / "backends.json"


@pytest.fixture(autouse=True)
def table() -> Iterator[None]:
    """The table of backends, as it was after the test."""
    rows = dict(BACKENDS)
    yield
    BACKENDS.clear()
    BACKENDS.update(rows)


Change = Callable[[Tensor], Tensor]


def other_backend(*, change: Change, fp32_s: float = 0.0, seconds: float = 0.0) -> list[int]:
    """Leave fp32, slowed down, and a backend "other" that changes its logits. Return the list of batches computed."""
    calls: list[int] = []

    def builder(seconds: float, change: Change) -> Callable[..., Any]:
        def build(model: nn.Module, batch_size: int) -> Any:
            def forward(images: Tensor) -> Tensor:
                calls.append(len(images))
                time.sleep(seconds)
                return change(model(images))

            return forward

        return build

    rows = {
        name: Backend(
            function=builder(wait, what),
            needs="needs_nothing",
            shows=name,
            tolerance=1e-4,
            auto=frozenset({"cpu"}),
        )
        for name, wait, what in (("fp32", fp32_s, lambda logits: logits), ("other", seconds, change))
    }
    BACKENDS.clear()
    BACKENDS.update(rows)
    return calls


@pytest.mark.parametrize(("fp32_s", "seconds", "best"), [(0.05, 0.0, "other"), (0.0, 0.05, "fp32")])
def test_the_faster_one_is_chosen(fp32_s: float, seconds: float, best: str) -> None:
    other_backend(change=lambda logits: logits + 1e-6, fp32_s=fp32_s, seconds=seconds)
    assert choose(tiny(), torch.randn(2, 3, 16, 16), batch_size=2) == best


@pytest.mark.parametrize("change", [lambda logits: logits * 1.01, lambda logits: logits * math.nan])
def test_a_fast_one_with_other_logits_is_not(change: Change) -> None:
    other_backend(change=change, fp32_s=0.05)
    assert choose(tiny(), torch.randn(2, 3, 16, 16), batch_size=2) == "fp32"


def test_one_that_fails_is_left_out_with_a_warning() -> None:
    def fails(logits: Tensor) -> Tensor:
        raise RuntimeError("no kernel\nfor this")

    other_backend(change=fails)
    with pytest.warns(UserWarning, match=r"^backend other is left out, it fails: no kernel$"):
        assert choose(tiny(), torch.randn(2, 3, 16, 16), batch_size=2) == "fp32"


def test_a_choice_is_remembered(choices: Path) -> None:
    calls = other_backend(change=lambda logits: logits, fp32_s=0.05)
    images = torch.randn(2, 3, 16, 16)
    assert choose(tiny(), images, batch_size=2) == "other"
    assert list(json.loads(choices.read_text()).values()) == ["other"]
    calls.clear()
    assert choose(tiny(), images, batch_size=2) == "other"
    assert calls == [1, 1]  # one image, to check it, and nothing is measured
    choose(tiny(), images[:1], batch_size=2)
    choose(tiny(classes=6), images, batch_size=2)
    assert len(json.loads(choices.read_text())) == 3  # by number of images and by architecture
    assert list(choices.parent.iterdir()) == [choices]


def test_a_choice_depends_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    images, model = torch.randn(2, 3, 16, 16), tiny()
    before = key_of(model, images)
    assert key_of(tiny(), images.clone()) == before
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    limited = key_of(model, images)
    monkeypatch.setattr("vitrail.deploy.choice.processor", lambda: Processor("Abacus", "Abacus", frozenset()))
    assert len({before, limited, key_of(model, images)}) == 3


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": '])
def test_a_damaged_file_is_measured_anew(choices: Path, content: str) -> None:
    other_backend(change=lambda logits: logits, fp32_s=0.05)
    choices.parent.mkdir(parents=True)
    choices.write_text(content)
    images = torch.randn(2, 3, 16, 16)
    with pytest.warns(UserWarning, match=r"backends\.json is damaged; backends are measured anew$"):
        assert choose(tiny(), images, batch_size=2) == "other"
    assert choose(tiny(), images, batch_size=2) == "other"  # without a warning, which would be an error here


@pytest.mark.parametrize("value", ["gone", 3, None, ["other"]])
def test_an_unknown_choice_is_measured_anew(choices: Path, value: object) -> None:
    other_backend(change=lambda logits: logits, fp32_s=0.05)
    choices.parent.mkdir(parents=True)
    model, images = tiny(), torch.randn(2, 3, 16, 16)
    choices.write_text(json.dumps({key_of(model, images): value}))
    assert choose(model, images, batch_size=2) == "other"
    assert json.loads(choices.read_text()) == {key_of(model, images): "other"}


def test_a_cache_that_cannot_be_written_gives_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other_backend(change=lambda logits: logits, fp32_s=0.05)
    (tmp_path / "file").touch()
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert choose(tiny(), torch.randn(2, 3, 16, 16), batch_size=2) == "other"
    assert "can't be kept in" in str(said[-1].message)
    assert all("\n" not in str(warning.message) for warning in said)


def test_nothing_is_remembered_of_outputs_that_are_not_finite(choices: Path) -> None:
    model = tiny()
    nn.init.constant_(model.head.weight, math.nan)
    assert choose(model, torch.randn(2, 3, 16, 16), batch_size=2) == "fp32"
    assert not choices.exists()


def test_a_measurement_ends_in_time() -> None:
    """Of slow backends fewer images and rounds are measured."""
    sizes: list[int] = []

    def slow(images: Tensor) -> Tensor:
        sizes.append(len(images))
        time.sleep(0.02 * len(images))
        return images.mean(dim=(2, 3))

    start = time.perf_counter()
    measured = race({"fp32": slow, "other": slow}, torch.randn(64, 3, 4, 4), seconds=0.5)
    assert time.perf_counter() - start < 5
    assert max(sizes) < 8
    assert measured["other"].images == max(sizes)
    assert measured["other"].difference == 0


def test_a_very_slow_model_is_measured_with_one_image_and_few_passes() -> None:
    calls: list[str] = []

    def slow(name: str, seconds: float) -> Callable[[Tensor], Tensor]:
        def forward(images: Tensor) -> Tensor:
            calls.append(f"{name} {len(images)}")
            time.sleep(seconds)
            return images.mean(dim=(2, 3))

        return forward

    measured = race({"fp32": slow("fp32", 0.2), "other": slow("other", 0.1)}, torch.randn(8, 3, 4, 4), seconds=0.3)
    assert calls == ["fp32 1", "other 1", "other 1"]
    assert measured["fp32"].images_per_s <= 5
    assert measured["other"].images_per_s <= 10


@given(st.lists(st.sampled_from([0.0, 1.0, -2.5, math.inf, -math.inf, math.nan]), min_size=1, max_size=6), st.integers(0, 5))
def test_difference_of_logits(values: list[float], place: int) -> None:
    reference = torch.tensor([values])
    other = reference.clone()
    other[0, place % len(values)] += 0.5
    finite = [math.isfinite(value) for value in values]
    expected = (0.5 if finite[place % len(values)] else 0.0) if any(finite) else math.nan
    assert difference(other, reference) == pytest.approx(expected, nan_ok=True)
    other[0, place % len(values)] = math.nan
    if finite[place % len(values)]:
        assert difference(other, reference) == math.inf


def test_every_backend_of_this_machine_is_correct() -> None:
    model, images = tiny(), torch.randn(4, 3, 16, 16)
    available = [name for name, row in BACKENDS.items() if not row.unavailable(CPU)]
    assert available[0] == "fp32"
    assert set(candidates(CPU)) <= set(available)
    assert all(BACKENDS[name].tolerance <= 1e-4 for name in candidates(CPU))
    for name in available:
        form = BACKENDS[name].build(model, batch_size=4)
        assert error_of(name, form, model, images) is None
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["fp32", "packed", "bf16"])
def test_a_named_backend_predicts_the_same_labels(run: Path, name: str) -> None:
    if BACKENDS[name].unavailable(CPU):
        pytest.skip(f"{name} is not available here")
    plain, other = (Predictor(run, device="cpu", backend=backend, batch_size=2) for backend in ("fp32", name))
    expected, done = plain.predict(PICTURES), other.predict(PICTURES)
    assert [p.label for p in done] == [p.label for p in expected]
    atol = 0.1 if name == "bf16" else 1e-5
    torch.testing.assert_close([p.probability for p in done], [p.probability for p in expected], atol=atol, rtol=0)
    comparison = other.compare(PICTURES)
    assert comparison is not None
    assert (comparison.backend, comparison.measured.images) == (name, 2)
    assert (comparison.measured.difference == 0) == (name == "fp32")


def test_auto_becomes_a_name_at_the_first_batch(run: Path, choices: Path) -> None:
    predictor = Predictor(run, device="cpu")
    assert predictor.backend == "auto"
    predictor.predict(PICTURES)
    assert predictor.backend in candidates(CPU)
    assert list(json.loads(choices.read_text()).values()) == [predictor.backend]


def test_wrong_logits_are_found_where_the_choice_is_remembered(run: Path) -> None:
    changed: list[float] = [0.0]
    other_backend(change=lambda logits: logits + changed[0], fp32_s=0.05)
    Predictor(run, device="cpu").predict(PICTURES)
    changed[0] = 1.0  # as other weights of the same shape could have it
    predictor = Predictor(run, device="cpu")
    with pytest.warns(UserWarning, match=r"^backend other differs from fp32 logits by 1\.0e\+00 .*; fp32 is used instead$"):
        done = predictor.predict(PICTURES)
    assert predictor.backend == "fp32"
    assert done == Predictor(run, device="cpu", backend="fp32").predict(PICTURES)
    with pytest.warns(UserWarning, match='; backend "fp32" has none$'):
        Predictor(run, device="cpu", backend="other").predict(PICTURES)


def test_nothing_is_compared_without_an_image(run: Path, tmp_path: Path) -> None:
    predictor = Predictor(run, device="cpu")
    assert predictor.compare([]) is None
    assert predictor.compare([tmp_path / "missing.png"]) is None


def test_wrong_names_are_one_line(run: Path) -> None:
    for name, message in (
        (
            "pack",
            f'backend "pack" is none of auto, {", ".join(BACKENDS)}; did you mean "packed"',
        ),
        ("compiled", 'backend "compiled" is not available: it is for a CUDA device, and this is cpu; use auto, fp32'),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            Predictor(run, device="cpu", backend=name)
        assert "\n" not in str(caught.value)
    meta = torch.device("meta")
    for name in ("packed", "bf16"):
        with pytest.raises(ValueError, match=f'backend "{name}" is not available: .*, and this is meta; use auto, fp32$'):
            require_available(name, meta)
    assert candidates(meta) == ["fp32"]


def test_the_overview_has_every_backend() -> None:
    assert [line.split()[0] for line in overview().splitlines()] == list(BACKENDS)
