"""The teacher sees the student's images in its own terms, to the last bit of the algebra; another's classes are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from vitrail.data.augment import normalise
from vitrail.models import ViT
from vitrail.models.baseline import create_baseline
from vitrail.settings import Preprocessing
from vitrail.tasks.teacher import Teacher, convert_preprocessing, load_teacher
from vitrail.weights import baseline, save_model

GREY = Preprocessing(img_size=(8, 8), in_channels=1, mean=(0.3,), std=(0.4,))
RGB = Preprocessing(img_size=(8, 8), in_channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLASSES = ("ant", "bee", "cat")
CPU = torch.device("cpu")


def vit(images: Preprocessing = RGB, classes: tuple[str, ...] = CLASSES, **fields: Any) -> ViT:
    torch.manual_seed(0)
    size = {"img_size": images.img_size, "in_channels": images.in_channels, "num_classes": len(classes)}
    model = ViT(**size | {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2} | fields)
    model.preprocessing, model.classes = images, classes
    return model


def run_of(model: ViT, folder: Path) -> str:
    folder.mkdir()
    save_model(model, folder, data="somewhere")
    return str(folder)


def pixels(channels: int, size: int = 8) -> Tensor:
    return torch.randint(0, 256, (3, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


numbers = st.floats(0.05, 0.95)


@given(
    mean=st.tuples(numbers, numbers, numbers),
    std=st.tuples(numbers, numbers, numbers),
    channels=st.sampled_from([1, 3]),
    theirs=st.sampled_from([1, 3]),
)
def test_images_come_out_as_if_they_had_been_normalised_for_the_teacher(
    mean: tuple[float, ...], std: tuple[float, ...], channels: int, theirs: int
) -> None:
    """Also where grey images stand for colours, and where colours are made grey."""
    student = GREY if channels == 1 else RGB
    target = Preprocessing(img_size=(8, 8), in_channels=theirs, mean=mean[:theirs], std=std[:theirs])
    raw = pixels(channels)
    seen = raw.expand(-1, 3, -1, -1) if theirs == 3 else raw.float()
    if theirs == 1 and channels == 3:
        seen = (raw.float() * torch.tensor([0.299, 0.587, 0.114]).view(-1, 1, 1)).sum(1, keepdim=True)
    converted = convert_preprocessing(normalise(raw, student), source=student, target=target)
    torch.testing.assert_close(converted, normalise(seen, target), atol=1e-4, rtol=1e-4)


def test_grey_is_what_pillow_makes_of_colours() -> None:
    raw = pixels(3)
    target = dataclasses.replace(GREY, mean=(0.0,), std=(1 / 255,))
    converted = convert_preprocessing(normalise(raw, RGB), source=RGB, target=target)
    for image, ours in zip(raw, converted, strict=True):
        pillows = torch.from_numpy(np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")))
        assert (ours - pillows).abs().max() <= 1, "Pillow gives whole levels"


def test_the_same_terms_are_the_same_tensor() -> None:
    images = normalise(pixels(3), RGB)
    assert convert_preprocessing(images, source=RGB, target=dataclasses.replace(RGB, crop_pct=0.9)) is images


def test_other_sizes_are_resized_antialiased_before_or_behind_the_scaling() -> None:
    raw, target = pixels(3, 16), dataclasses.replace(RGB, img_size=(8, 12), mean=(0.5,) * 3, std=(0.5,) * 3)
    converted = convert_preprocessing(normalise(raw, RGB), source=RGB, target=target)
    resized = F.interpolate(raw.float(), size=(8, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(converted, normalise(resized, target), atol=1e-4, rtol=1e-4)


def test_a_teacher_gives_what_its_model_gives_for_its_own_images(tmp_path: Path) -> None:
    theirs = dataclasses.replace(RGB, img_size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    model = vit(theirs, drop_rate=0.5, drop_path_rate=0.5).eval()
    teacher = load_teacher(run_of(model, tmp_path / "run"), num_classes=3, classes=CLASSES, preprocessing=RGB, device=CPU)
    raw = pixels(3, 16)
    with torch.no_grad():
        expected = model(normalise(raw, theirs))
    torch.testing.assert_close(teacher(normalise(raw, RGB)), expected, atol=1e-4, rtol=1e-4)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_teacher_with_a_distillation_token_speaks_with_both_heads() -> None:
    model = vit(dist_token=True).eval()
    images = normalise(pixels(3), RGB)
    outputs = model.outputs(images)
    assert outputs.dist_logits is not None
    said = Teacher(model, preprocessing=RGB, student=RGB)(images)
    torch.testing.assert_close(said, (outputs.logits + outputs.dist_logits) / 2)


# --------------------------------------------------------------------------------------------------------------------
# Teachers that do not fit


def refusal(name: str, classes: tuple[str, ...] = CLASSES, preprocessing: Preprocessing = RGB) -> str:
    with pytest.raises(ValueError, match=r"^distill.teacher ") as error:
        load_teacher(name, num_classes=len(classes), classes=classes, preprocessing=preprocessing, device=CPU)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_other_classes(tmp_path: Path) -> None:
    run = run_of(vit(), tmp_path / "run")
    way = "give one that was trained on this data: `vitrail train` makes one, with --model torchvision:resnet50 a CNN"
    assert refusal(run, ("ant", "bee")) == f'distill.teacher "{run}" has 3 classes, and the data 2; {way}'
    by_name = f'distill.teacher "{run}" has its classes by other names, "cat" where the data has "dog"; {way}'
    assert refusal(run, ("ant", "bee", "dog")) == by_name
    in_order = f'distill.teacher "{run}" has its classes in another order, "ant" where the data has "bee"; {way}'
    assert refusal(run, ("bee", "ant", "cat")) == in_order


def test_identifiers_of_imagenet_beside_words_go_by_number(tmp_path: Path) -> None:
    run = run_of(vit(), tmp_path / "run")
    identifiers = ("n01440764", "n01443537", "n01484850")
    load_teacher(run, num_classes=3, classes=identifiers, preprocessing=RGB, device=CPU)
    assert "by other names" in refusal(run, identifiers[::-1]), "not sorted, they are in nobody's order"
    other = run_of(vit(classes=identifiers), tmp_path / "other")
    assert "by other names" in refusal(other, ("n01440764", "n01443537", "n99999999"))


def test_a_name_alone_has_random_weights() -> None:
    assert refusal("B/16").endswith('"B/16" has random weights; train it, and give the folder of that run')


def test_channels_that_the_images_have_not(tmp_path: Path) -> None:
    five = Preprocessing(img_size=(8, 8), in_channels=5, mean=(0.5,) * 5, std=(0.5,) * 5)
    assert "takes images of 5 channels, and these have 3; give one" in refusal(run_of(vit(five), tmp_path / "run"))


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"does not exist|no file or folder"):
        load_teacher("runs/nothing/here", num_classes=3, classes=CLASSES, preprocessing=RGB, device=CPU)


# --------------------------------------------------------------------------------------------------------------------
# Published models of other libraries


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18", "timm:vit_tiny_patch16_224.augreg_in21k"])
def test_other_numbers_of_classes_are_refused_before_anything_is_fetched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "create_baseline", lambda *_, **__: pytest.fail("fetched"))
    count = "21,843" if "in21k" in name else "1,000"
    assert f'"{name}" has {count} classes, and the data 3; ' in refusal(name)


def test_a_cnn_of_another_library_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its published weights stand for random ones here: the way to it is what is looked at."""
    asked: list[dict[str, Any]] = []

    def unfetched(name: str, *, pretrained: bool) -> Any:
        asked.append({"pretrained": pretrained})
        net = create_baseline(name)
        net.preprocessing = dataclasses.replace(RGB, img_size=(32, 32))
        net.classes = tuple(f"word {i}" for i in range(1000))
        return net

    monkeypatch.setattr(baseline, "create_baseline", unfetched)
    folders = tuple(f"n{i:08d}" for i in range(1000))
    teacher = load_teacher("torchvision:resnet18", num_classes=1000, classes=folders, preprocessing=GREY, device=CPU)
    assert asked == [{"pretrained": True}]
    with torch.no_grad():
        assert teacher(normalise(pixels(1), GREY)).shape == (3, 1000)
        expected = teacher.net(F.interpolate(normalise(pixels(1).expand(-1, 3, -1, -1), RGB), (32, 32), mode="bilinear"))
    torch.testing.assert_close(teacher(normalise(pixels(1), GREY)), expected, atol=1e-3, rtol=1e-3)
