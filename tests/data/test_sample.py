from __future__ import annotations

import hashlib
import importlib.util
import time
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from vitrail.data.named import NAMED
from vitrail.data.sources import open_source
from vitrail.settings import DataConfig, Preprocessing

ORIGINAL = NAMED["fashion-mnist"].installed
SAMPLE = Path(__file__).parents[2] / "src/vitrail/data/fashion_sample.npz"
CONTENTS = "b210f7b525b2ab072e982de4fb0533c78bcbd9e672785d6dd3f8c6f854a4b76a"
full = pytest.mark.skipif(not (ORIGINAL and ORIGINAL.is_dir()), reason="needs Debian's dataset-fashion-mnist")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_fashion_sample", SAMPLE.parents[3] / "tools/make_fashion_sample.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_sample_holds_what_its_maker_says(tool: ModuleType) -> None:
    with np.load(SAMPLE, allow_pickle=False) as arrays:
        assert tool.contents_sha256(dict(arrays)) == CONTENTS


@pytest.mark.full
@full
def test_the_script_makes_it_byte_for_byte(tool: ModuleType) -> None:
    arrays = tool.make(ORIGINAL)
    assert tool.contents_sha256(arrays) == CONTENTS
    packed = tool.npz_bytes(arrays)
    if "ng" in zlib.ZLIB_RUNTIME_VERSION:
        pytest.skip(f"zlib {zlib.ZLIB_RUNTIME_VERSION} packs the same arrays differently")
    assert hashlib.sha256(packed).digest() == hashlib.sha256(SAMPLE.read_bytes()).digest()


def test_classes_are_balanced_and_the_pixels_are_those_of_the_table() -> None:
    started = time.perf_counter()
    source = open_source("fashion-sample", val_fraction=0.0)
    grey = Preprocessing(img_size=(28, 28), in_channels=1, mean=source.mean, std=source.std)
    train, test = (source.load(name, preprocessing=grey, cfg=DataConfig()) for name in ("train", "test"))
    assert time.perf_counter() - started < 10  # a fraction of a second, unless the machine is busy
    assert train.labels.bincount().tolist() == [1000] * 10
    assert test.labels.bincount().tolist() == [200] * 10
    pixels = train.read(torch.arange(len(train)))[0].images.double() / 255
    assert source.mean == pytest.approx([pixels.mean().item()], abs=5e-5)
    assert source.std == pytest.approx([pixels.std().item()], abs=5e-5)
    assert 4.5e6 < SAMPLE.stat().st_size < 5.5e6


def test_the_notice_lies_beside_it() -> None:
    notice = SAMPLE.with_suffix(".LICENSE").read_text(encoding="utf-8")
    assert "The MIT License" in notice
    assert "Zalando SE" in notice
