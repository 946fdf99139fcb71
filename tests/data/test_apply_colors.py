"""Each sample gets the operation of its kind, by groups or in one expression."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitrail.data import apply_colors, color


def pictures(count: int, height: int = 19, width: int = 26, channels: int = 3) -> Tensor:
    """Noise over a slope, so that the levels are neither flat nor even."""
    generator = torch.Generator().manual_seed(count * 1000 + height * 100 + width * 10 + channels)
    noise = torch.rand(count, channels, height, width, generator=generator)
    return (noise * torch.linspace(30, 230, width) + 10).to(torch.uint8)


@given(kinds=st.lists(st.integers(-1, 2), min_size=0, max_size=9))
@settings(max_examples=40, deadline=None)
def test_apply_each_gives_every_sample_its_own(kinds: list[int]) -> None:
    images = pictures(len(kinds), 3, 4).float()
    strengths = torch.linspace(0.5, 1.5, len(kinds))
    operations = (color.brightness, color.invert, color.saturation)
    ours = images.clone()
    apply_colors.apply_each_(ours, kinds=torch.tensor(kinds, dtype=torch.long), operations=operations, strengths=strengths)
    for row, kind in enumerate(kinds):
        one, strength = images[row, None], strengths[row, None]
        torch.testing.assert_close(ours[row, None], operations[kind](one, strength) if kind >= 0 else one)


MANY = (color.autocontrast, color.equalize, color.invert, color.posterize, color.solarize, color.solarize_add, color.saturation)
MANY += (color.contrast, color.brightness, color.sharpness, color.grayscale, color.gaussian_blur, color.hue)
STRENGTHS = {color.posterize: 3.0, color.solarize: 100.0, color.solarize_add: 40.0, color.hue: 0.2}


def every_kind(kinds: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Images with their kinds and strengths."""
    images = pictures(len(kinds), 9, 12).float()
    strengths = [STRENGTHS.get(MANY[kind], 1.4) if kind >= 0 else 0.0 for kind in kinds]
    return images, torch.tensor(kinds, dtype=torch.long), torch.tensor(strengths)


@given(kinds=st.lists(st.integers(-1, len(MANY) - 1), min_size=0, max_size=12))
@settings(max_examples=40, deadline=None)
def test_one_expression_of_all_operations(kinds: list[int]) -> None:
    """`apply_compiled_` before any compiler: what each sample gets does not depend on how it is computed."""
    images, which, strengths = every_kind(kinds)
    ours, wanted = images.clone(), images.clone()
    apply_colors.apply_each_(wanted, kinds=which, operations=MANY, strengths=strengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apply_colors, "compiled", lambda: apply_colors.compute_formulas)
        patch.setattr(apply_colors, "_equal", {})
        for _ in range(2):  # the first batch of a size is computed twice
            ours = images.clone()
            apply_colors.apply_compiled_(ours, kinds=which, operations=MANY, strengths=strengths)
            torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


def test_wrong_results_of_a_compiler_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(
        apply_colors, "compiled", lambda: lambda images, *rest: calls.append(len(images)) or images + float("nan")
    )
    monkeypatch.setattr(apply_colors, "_equal", {})
    images, which, strengths = every_kind([0, 7, 2])
    wanted = images.clone()
    apply_colors.apply_each_(wanted, kinds=which, operations=MANY, strengths=strengths)
    for index in range(2):
        ours = images.clone()
        if index == 0:
            with pytest.warns(
                UserWarning, match=r"compiled colours of augmentation differ in 100\.0% of the pixels and are not"
            ):
                apply_colors.apply_compiled_(ours, kinds=which, operations=MANY, strengths=strengths)
        else:
            apply_colors.apply_compiled_(ours, kinds=which, operations=MANY, strengths=strengths)
        assert torch.equal(ours, wanted)
    assert calls == [3]


COMPILED = """
import torch
from torch._inductor import metrics
from vitrail.data import apply_colors, color
from vitrail.data.policy import _COLORS
torch.manual_seed(0)
images = (torch.rand(12, 3, 9, 12) * 255).round()
kinds, strengths = torch.arange(12) - 1, torch.linspace(1, 2, 12)
wanted = images.clone()
operations = (*_COLORS, color.hue)
apply_colors.apply_each_(wanted, kinds=kinds, operations=operations, strengths=strengths)
for _ in range(2):
    ours = images.clone()
    apply_colors.apply_compiled_(ours, kinds=kinds, operations=operations, strengths=strengths)
assert list(apply_colors._equal.values()) == [True]
print(metrics.generated_kernel_count, float((ours - wanted).abs().max()))
"""


@pytest.mark.slow
def test_compiled_operations_take_few_kernels(tmp_path: Path) -> None:
    """Ten operations, two of them with numbers of the whole image; in a process whose functions are not type-checked."""
    fresh = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}  # the compiler's cache mixes up AVX2 and AVX512
    done = subprocess.run([sys.executable, "-c", COMPILED], check=True, capture_output=True, text=True, env=fresh)
    kernels, difference = done.stdout.split()
    assert 1 <= int(kernels) <= 10
    assert float(difference) < 1e-3
    assert "lru_cache" not in done.stderr, "the compiler warns of what it ignores"
