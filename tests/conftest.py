"""Shapes are checked in every test: jaxtyping reads the annotations, `typecheck` holds the code to them."""

from __future__ import annotations

import importlib.util
import os
import sys

from jaxtyping import install_import_hook

install_import_hook("vitrail", "typecheck.checked")  # before anything imports vitrail
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # tests report to no statistics server
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the Hub; those of the Hub's client speak to a server of their own

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from types import ModuleType  # noqa: E402

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from cases import ImageFolder  # noqa: E402
from command_line import Said, Typed  # noqa: E402

hypothesis.settings.register_profile("vitrail", deadline=None, max_examples=50)  # a busy machine is no fault of what is tested
hypothesis.settings.load_profile("vitrail")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long runs last."""
    items.sort(key=lambda item: any(item.get_closest_marker(name) for name in ("slow", "full")))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is taken from the cache of whoever runs the tests, and nothing is left in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITRAIL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def vitrail(capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command line in this process."""
    from vitrail import cli

    def typed(*words: str | Path) -> Said:
        capsys.readouterr()
        return Said(cli.main([str(word) for word in words]), *capsys.readouterr())

    return typed


@pytest.fixture
def image_folder(tmp_path: Path) -> ImageFolder:
    """Makes a folder of small JPEG photographs: `image_folder({"train": {"cat": 3, "dog": 2}})`, or without splits."""

    def make(
        layout: dict[str, int] | dict[str, dict[str, int]], *, size: tuple[int, int] = (40, 32), name: str = "photos"
    ) -> Path:
        root, rng = tmp_path / name, np.random.default_rng(0)
        for first, below in layout.items():
            classes = {f"{first}/{k}": n for k, n in below.items()} if isinstance(below, dict) else {first: below}
            for folder, count in classes.items():
                (root / folder).mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(root / folder / f"{i}.jpg", quality=90)
        return root

    return make


@pytest.fixture
def idx_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny "mnist" under $VITRAIL_DATA: 60 training and 20 test images in idx files."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for prefix, count in (("train", 60), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = b"\0\0\x08\x03" + np.array(images.shape, ">u4").tobytes()
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + np.array([count], ">u4").tobytes() + labels.tobytes()
        )
    monkeypatch.setenv("VITRAIL_DATA", str(folder.parent))
    return folder


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The model's file as users import it: the checks of annotations that tests add are no code that compiles."""

    def load(module: str, name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, importlib.import_module(module).__file__)
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded)
        spec.loader.exec_module(loaded)
        return loaded

    for part in ("onednn", "linear", "drop_path", "attention", "plain_attention"):  # which the file imports
        load(f"vitrail.models.{part}", f"vitrail.models.{part}")
    yield load("vitrail.models.vit", "unchecked_vit")
    torch._dynamo.reset()
