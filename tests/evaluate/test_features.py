from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cases import ImageFolder
from vitrail.data.augment import normalise
from vitrail.data.folder import open_folder
from vitrail.data.memory import FixedSplit
from vitrail.evaluate import features
from vitrail.evaluate.features import LabelledEmbeddings, embed, extract
from vitrail.models import ViT
from vitrail.settings import DataConfig, Preprocessing

IMAGES = Preprocessing(img_size=(8, 8), in_channels=1, mean=(0.3,), std=(0.4,))


def tiny(**fields: object) -> ViT:
    torch.manual_seed(0)
    shape: dict[str, object] = {"img_size": 8, "patch_size": 4, "in_channels": 1, "num_classes": 3}
    return ViT(**{**shape, "embed_dim": 8, "depth": 2, "num_heads": 2, **fields}).eval()


def pixels(count: int, seed: int = 0) -> FixedSplit:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return FixedSplit(images, labels=torch.arange(count) % 3, names=[f"{i}" for i in range(count)])


def of(model: nn.Module, split: FixedSplit, **options: object) -> LabelledEmbeddings:
    return extract(model, split, **{"preprocessing": IMAGES, "batch_size": 4, "device": "cpu", **options})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass through a model has had."""
    seen: list[int] = []

    def counted(model: nn.Module, images: Tensor) -> Tensor:
        seen.append(len(images))
        return embed(model, images)

    monkeypatch.setattr(features, "embed", counted)
    return seen


# What is computed


@pytest.mark.parametrize("pool", ["cls", "avg", "cls+avg", "map"])
def test_an_embedding_is_what_outputs_calls_so(pool: str) -> None:
    model = tiny(pool=pool)
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(embed(model, images), model.outputs(images).embedding)
        torch.testing.assert_close(model.head(embed(model, images)), model(images))


def test_with_a_distillation_token_it_is_what_both_heads_see() -> None:
    model = tiny(dist_token=True)
    images = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        one, two = embed(model, images).chunk(2, dim=1)
        assert model.head_dist is not None
        torch.testing.assert_close((model.head(one) + model.head_dist(two)) / 2, model(images))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_image_once_in_order_and_in_float32(batch_size: int) -> None:
    model, split = tiny(), pixels(11)
    result = of(model, split, batch_size=batch_size, cache=False)
    with torch.no_grad():
        expected = model.outputs(normalise(split.images, IMAGES)).embedding
    torch.testing.assert_close(result.embeddings, expected)
    assert result.embeddings.dtype == torch.float32
    assert torch.equal(result.labels, split.labels)
    rough = of(model, split, autocast_dtype=torch.bfloat16)
    assert rough.embeddings.dtype == torch.float32
    torch.testing.assert_close(rough.embeddings, expected, atol=0.1, rtol=0.1)
    assert not torch.equal(rough.embeddings, expected)


def test_the_model_is_left_as_it_was_and_what_comes_can_be_learned_from() -> None:
    model = tiny(drop_path_rate=0.5, pos_drop_rate=0.5).train()
    model.blocks[0].eval()
    first, again = of(model, pixels(5), cache=False), of(model, pixels(5), cache=False)
    assert torch.equal(first.embeddings, again.embeddings), "no dropout"
    assert model.training
    assert not model.blocks[0].training
    (first.embeddings @ torch.ones(8, 1, requires_grad=True)).sum().backward()


def test_another_family_says_it_itself() -> None:
    class Mean(nn.Module):
        def embedding(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

    split = pixels(5)
    torch.testing.assert_close(of(Mean(), split).embeddings, normalise(split.images, IMAGES).mean((2, 3)))


def test_features_are_taken_apart_and_put_together() -> None:
    whole = LabelledEmbeddings(torch.randn(5, 2), torch.arange(5))
    parts = whole.at(torch.tensor([3, 1])), whole.at(torch.arange(5) == 4)
    joined = parts[0].and_those_of(parts[1])
    assert joined.labels.tolist() == [3, 1, 4]
    assert torch.equal(joined.embeddings, whole.embeddings[joined.labels])


def test_mistakes_are_one_line() -> None:
    with pytest.raises(ValueError, match="no images to take features of"):
        of(tiny(), pixels(0))
    with pytest.raises(ValueError, match="images of 8x8 pixels, but the model takes 16x16"):
        of(tiny(), pixels(3), preprocessing=Preprocessing(img_size=(16, 16), in_channels=1, mean=(0.3,), std=(0.4,)))
    broken = tiny()
    nn.init.constant_(broken.norm.weight, torch.nan)
    with pytest.raises(ValueError, match="embeddings are not finite"):
        of(broken, pixels(3))


# What is kept


def test_what_was_computed_is_not_computed_again(passes: list[int]) -> None:
    first = of(tiny(), pixels(9))
    assert passes == [4, 4, 1]
    again = of(tiny(), pixels(9))
    assert passes == [4, 4, 1]
    assert torch.equal(first.embeddings, again.embeddings)
    assert torch.equal(again.labels, pixels(9).labels)


def test_the_key_is_all_that_the_features_depend_on(passes: list[int]) -> None:
    of(tiny(), pixels(4))
    changed = tiny()
    with torch.no_grad():
        changed.blocks[1].mlp.fc2.bias[3] += 1e-6
    of(changed, pixels(4))
    of(tiny(norm_eps=1e-5), pixels(4))
    replaced = tiny()
    replaced.blocks[0].mlp.act = nn.ReLU()
    of(replaced, pixels(4))
    of(tiny(), pixels(4, seed=1))
    of(tiny(), pixels(4), preprocessing=Preprocessing(img_size=(8, 8), in_channels=1, mean=(0.3,), std=(0.5,)))
    of(tiny(), pixels(4), autocast_dtype=torch.bfloat16)
    assert passes == [4] * 7


def test_the_head_is_no_part_of_the_key(passes: list[int]) -> None:
    model = tiny()
    of(model, pixels(4))
    model.reset_head(7)
    of(model, pixels(4))
    model.reset_head(0)
    of(model, pixels(4))
    of(tiny(drop_rate=0.0).train(), pixels(4))
    assert passes == [4]


def test_files_that_change_are_looked_at_again(image_folder: ImageFolder, passes: list[int]) -> None:
    photos = image_folder({"train": {"cat": 2, "dog": 2}})
    source = open_folder(photos, val_fraction=0)

    def features_of() -> LabelledEmbeddings:
        split = source.load("train", preprocessing=IMAGES, cfg=DataConfig(memory_gb=0, workers=0))
        return extract(tiny(), split, preprocessing=IMAGES, device="cpu")

    features_of()
    features_of()
    assert passes == [4]
    os.utime(photos / "train" / "cat" / "0.jpg", ns=(1, 1))
    features_of()
    assert passes == [4, 4]
    split = source.load("train", preprocessing=IMAGES, cfg=DataConfig(memory_gb=0, workers=0))
    (photos / "train" / "dog" / "1.jpg").unlink()
    for _ in range(2):  # one that went away is left out, and nothing is kept
        gone = extract(tiny(), split, preprocessing=IMAGES, device="cpu")
        assert gone.labels.tolist() == [0, 0, 1]
        assert len(gone.embeddings) == 3
    assert passes == [4, 4, 3, 3]


@pytest.mark.parametrize("how", ["a flipped bit", "cut off", "empty", "something else"])
def test_a_damaged_file_is_computed_anew_and_said(cache_folder: Path, passes: list[int], how: str) -> None:
    first = of(tiny(), pixels(4))
    (path,) = cache_folder.iterdir()
    data = bytearray(path.read_bytes())
    if how == "a flipped bit":
        data[-1] ^= 1
    damaged = {"cut off": data[:-5], "empty": b"", "something else": b"no such file"}.get(how, data)
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="are damaged .*computed anew") as said:
        again = of(tiny(), pixels(4))
    assert "\n" not in str(said[0].message)
    assert passes == [4, 4]
    assert torch.equal(first.embeddings, again.embeddings)
    assert torch.equal(of(tiny(), pixels(4)).embeddings, first.embeddings)
    assert passes == [4, 4], "it was put right"


def test_where_nothing_can_be_kept_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the features can't be kept in"):
        assert len(of(tiny(), pixels(4))) == 4


def test_nothing_half_written_stays(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(features.os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        of(tiny(), pixels(4))
    assert not list(cache_folder.iterdir())


def test_what_nobody_asks_for_makes_room(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for seed in range(3):
        of(tiny(), pixels(40, seed=seed))
        (new,) = set(cache_folder.iterdir()) - set(files)
        os.utime(new, ns=(seed, seed))
        files.append(new)
    monkeypatch.setattr(features, "KEPT_BYTES", 3.5 * files[0].stat().st_size)
    of(tiny(), pixels(40, seed=0))  # asked for again, so the second is the one
    of(tiny(), pixels(40, seed=3))
    assert files[0].exists()
    assert not files[1].exists()
    assert files[2].exists()
    monkeypatch.setattr(features, "KEPT_BYTES", 10)
    of(tiny(), pixels(40, seed=4))
    assert len(list(cache_folder.iterdir())) == 3, "what is larger than the whole cache is not kept"


def test_without_a_cache_nothing_is_written(cache_folder: Path) -> None:
    of(tiny(), pixels(4), cache=False)
    assert not cache_folder.exists()
