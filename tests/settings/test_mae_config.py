"""Settings of masked autoencoding: defaults of the paper, one-line errors, no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vitrail.settings.mae import MaeConfig


def test_the_defaults_are_the_paper_s() -> None:
    assert MaeConfig() == MaeConfig(mask_ratio=0.75, decoder_dim=512, decoder_depth=8, decoder_heads=16, norm_pixels=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_ratio": 1.0}, r"mae.mask_ratio 1.0 must be above 0 and below 1"),
        ({"mask_ratio": float("nan")}, r"mae.mask_ratio nan must be above 0 and below 1"),
        ({"decoder_depth": 0}, r"mae.decoder_depth 0 must be at least 1"),
        ({"decoder_dim": 30, "decoder_heads": 2}, r"mae.decoder_dim 30 is not a multiple of 4 and of its heads; use 32"),
        ({"decoder_dim": 64, "decoder_heads": 5}, r"mae.decoder_dim 64 is not a multiple of 4 and of its heads; use 60"),
    ],
)
def test_errors_are_one_line(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        MaeConfig(**fields)  # type: ignore[arg-type]


def test_settings_need_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; import vitrail.settings.mae"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
