"""Predictions are the model's own numbers, in the order asked for, and a bad image costs only its own row."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from vitrail.data.augment import normalise
from vitrail.data.decode import eval_view
from vitrail.deploy import Prediction, Predictor, find_images
from vitrail.models import ViT
from vitrail.settings import Preprocessing
from vitrail.weights import save_model

CLASSES = ("ant", "bee", "cat", "dog", "eel")


def make_run(folder: Path, *, channels: int = 3, side: int = 16) -> ViT:
    """A run folder with random weights that are large enough to tell images apart."""
    folder.mkdir()
    torch.manual_seed(0)
    model = ViT(img_size=side, patch_size=8, in_channels=channels, num_classes=5, embed_dim=16, depth=1, num_heads=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.preprocessing = Preprocessing(
        img_size=(side, side), in_channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels, crop_pct=0.9
    )
    model.classes = CLASSES
    save_model(model, folder, data="animals")
    return model.eval()


@pytest.fixture(scope="module")
def model_and_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[ViT, Path]:
    run = tmp_path_factory.mktemp("runs") / "animals"
    return make_run(run), run


@pytest.fixture(scope="module")
def predictor(model_and_run: tuple[ViT, Path]) -> Predictor:
    return Predictor(model_and_run[1], device="cpu", batch_size=3)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven photographs of several sizes and kinds, in two folders."""
    draw = np.random.default_rng(0)
    for number in range(7):
        pixels = draw.integers(0, 256, (20 + 9 * number, 50 - 4 * number, 3), dtype=np.uint8)
        folder = tmp_path / "photos" / ("one" if number % 2 else "two")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.{('png', 'bmp', 'webp', 'tiff')[number % 4]}")
    return tmp_path / "photos"


def test_probabilities_are_the_models_on_the_evaluation_view(
    model_and_run: tuple[ViT, Path], predictor: Predictor, photos: Path
) -> None:
    model, _ = model_and_run
    paths = list(find_images([photos]))
    assert len(paths) == 7
    for path, prediction in zip(paths, predictor.predict(paths), strict=True):
        view = eval_view(path, predictor.preprocessing)
        expected = model(normalise(view[None], predictor.preprocessing)).softmax(-1)[0].tolist()
        assert prediction.path == str(path)
        assert prediction.error is None
        assert [name for name, _ in prediction.top] == [c for _, c in sorted(zip(expected, CLASSES, strict=True), reverse=True)]
        assert dict(prediction.top) == pytest.approx(dict(zip(CLASSES, expected, strict=True)), abs=1e-5)
        assert (prediction.label, prediction.probability) == prediction.top[0]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 32])
def test_the_batch_size_changes_no_label(model_and_run: tuple[ViT, Path], photos: Path, batch_size: int) -> None:
    paths = sorted(find_images([photos]))
    one, other = (Predictor(model_and_run[1], device="cpu", batch_size=size).predict(paths) for size in (3, batch_size))
    assert [(p.path, p.label) for p in one] == [(p.path, p.label) for p in other]
    torch.testing.assert_close([p.probability for p in one], [p.probability for p in other], atol=1e-5, rtol=1e-5)


@given(readable=st.lists(st.booleans(), max_size=8))
@hypothesis_settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bad_images_cost_only_their_own_rows(predictor: Predictor, readable: list[bool]) -> None:
    good, bad = np.full((20, 20, 3), 90, np.uint8), np.zeros((3, 3, 3), np.float64)
    done = predictor.predict([good if fine else bad for fine in readable])
    assert [p.error is None for p in done] == readable
    assert [p.path for p in done] == [f"#{i}" for i in range(len(readable))]
    assert {(p.label, p.probability, p.top) for p in done if p.error} <= {(None, None, ())}
    assert len({p.label for p in done if not p.error}) <= 1


def test_paths_pictures_and_arrays_agree(predictor: Predictor, photos: Path) -> None:
    path = photos / "two" / "0.png"
    with Image.open(path) as image:
        image.load()
        forms = [path, str(path), image, np.asarray(image), image.copy()]
    done = predictor.predict(forms)
    assert len({(p.label, p.probability) for p in done}) == 1
    assert [p.path for p in done] == [str(path), str(path), str(path), "#3", "#4"]


def test_a_grey_model_takes_grey_arrays_of_two_and_three_axes(tmp_path: Path) -> None:
    make_run(tmp_path / "grey", channels=1)
    pixels = np.random.default_rng(1).integers(0, 256, (30, 20), dtype=np.uint8)
    flat, deep, rgb = Predictor(tmp_path / "grey", device="cpu").predict(
        [pixels, pixels[:, :, None], np.repeat(pixels[:, :, None], 3, axis=2)]
    )
    assert flat.top == deep.top
    assert flat.top == rgb.top


def test_every_unreadable_file_says_why(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    whole = (photos / "two" / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no image")
    paths = [tmp_path / name for name in ("cut.png", "empty.jpg", "text.png", "missing.png")] + [photos / "two" / "0.png"]
    done = predictor.predict(paths)
    assert all(p.error and "\n" not in p.error and p.label is None for p in done[:4])
    assert done[4].error is None


def test_top_is_cut_to_the_classes_there_are(predictor: Predictor, photos: Path) -> None:
    path = photos / "two" / "0.png"
    assert [len(predictor.predict([path], top=top)[0].top) for top in (1, 3, 5, 50)] == [1, 3, 5, 5]
    with pytest.raises(ValueError, match="top 0 must be at least 1"):
        predictor.predict([path], top=0)


def test_a_stream_reads_the_batch_that_it_decodes_ahead_and_no_more(predictor: Predictor) -> None:
    read: list[int] = []

    def pictures() -> Iterator[np.ndarray]:
        for number in range(100):
            read.append(number)
            yield np.zeros((16, 16, 3), np.uint8)

    stream = predictor.stream(pictures())
    next(stream)
    assert len(read) == 2 * predictor.batch_size
    stream.close()
    assert len(read) == 2 * predictor.batch_size


@given(delays=st.lists(st.sampled_from([0.0, 0.002, 0.01]), max_size=9), batch_size=st.integers(1, 4))
@hypothesis_settings(max_examples=10, deadline=None)
def test_the_order_is_kept_when_decoding_is_slow(model_and_run: tuple[ViT, Path], delays: list[float], batch_size: int) -> None:
    predictor = Predictor(model_and_run[1], device="cpu", batch_size=batch_size, backend="fp32")
    view, pixels = predictor._view, [np.full((16, 16, 3), 25 * number, np.uint8) for number in range(len(delays))]

    def slow(image: np.ndarray) -> object:
        time.sleep(delays[int(image[0, 0, 0]) // 25])
        return view(image)

    expected = predictor.predict(pixels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "_view", slow)
        done = predictor.predict(pixels)
    assert [p.path for p in done] == [f"#{number}" for number in range(len(delays))]
    assert [p.probability for p in done] == [p.probability for p in expected]


def test_the_next_batch_is_decoded_while_the_model_computes(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch's computation waits for a view of the next one, and nothing hangs."""
    view, probabilities, begun = predictor._view, predictor.probabilities, threading.Semaphore(0)

    def seen(image: np.ndarray) -> object:
        begun.release()
        return view(image)

    def waiting(images: Tensor) -> Tensor:
        for _ in range(2 * predictor.batch_size):  # this batch and the next
            assert begun.acquire(timeout=20)
        begun.release(predictor.batch_size)
        return probabilities(images)

    monkeypatch.setattr(predictor, "_view", seen)
    monkeypatch.setattr(predictor, "probabilities", waiting)
    stream = predictor.stream(np.zeros((16, 16, 3), np.uint8) for _ in range(100))
    assert [next(stream).path for _ in range(2 * predictor.batch_size)] == [f"#{i}" for i in range(2 * predictor.batch_size)]
    stream.close()


def test_what_was_read_before_an_error_is_answered(predictor: Predictor) -> None:
    def broken(count: int) -> Iterator[np.ndarray]:
        for _ in range(count):
            yield np.zeros((16, 16, 3), np.uint8)
        raise OSError("the disk is gone")

    stream = predictor.stream(broken(predictor.batch_size))
    assert [next(stream).path for _ in range(predictor.batch_size)] == [f"#{i}" for i in range(predictor.batch_size)]
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


def test_an_unexpected_error_of_decoding_ends_the_stream(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(image: object) -> object:
        raise ZeroDivisionError

    monkeypatch.setattr(predictor, "_view", fails)
    with pytest.raises(ZeroDivisionError):
        predictor.predict([np.zeros((16, 16, 3), np.uint8)] * 9)


def test_nothing_in_nothing_out(predictor: Predictor) -> None:
    assert predictor.predict([]) == []


def test_mistakes_are_one_line(model_and_run: tuple[ViT, Path], tmp_path: Path) -> None:
    for broken, message in (
        (lambda: Predictor(tmp_path / "nowhere"), "does not exist"),
        (lambda: Predictor(tmp_path), "holds no weights"),
        (lambda: Predictor(model_and_run[1], device="gpu"), 'device "gpu"'),
        (lambda: Predictor(model_and_run[1], batch_size=0), "batch_size 0 must be at least 1"),
        (lambda: list(find_images([tmp_path])), "holds no files"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            broken()
        assert "\n" not in str(caught.value)


def test_a_folder_is_listed_as_for_training(photos: Path) -> None:
    """Whatever its suffix a file is tried, and one that can't be read is in the answers."""
    (photos / "labels.csv").write_text("0,ant")
    (photos / ".thumbs").mkdir()
    (photos / ".thumbs" / "0.png").write_bytes(b"")
    (photos / "@eaDir").mkdir()
    (photos / "@eaDir" / "0.jpg").write_bytes(b"")
    (photos / "one" / "._1.bmp").write_bytes(b"")
    (photos / "UPPER.JPG").write_bytes(b"")
    (photos / "notes.txt").write_bytes(b"")
    (photos / "two" / "0.png").rename(photos / "two" / "10.jfif")
    (photos / "two" / "2.webp").rename(photos / "two" / "2")
    (photos / "linked").symlink_to(photos / "one")
    (photos / "two" / "ring").symlink_to(photos)
    (photos / "lost.png").symlink_to(photos / "nowhere.png")
    found = [str(path.relative_to(photos)) for path in find_images([photos])]
    one, two = ["1.bmp", "3.tiff", "5.bmp"], ["2", "4.png", "6.webp", "10.jfif"]
    first = [*(f"linked/{name}" for name in one), "lost.png", "notes.txt", *(f"one/{name}" for name in one)]
    assert found == [*first, *(f"two/{name}" for name in two), "UPPER.JPG"]
    assert list(find_images([photos / "labels.csv", "nowhere.png"])) == [photos / "labels.csv", Path("nowhere.png")]


def test_a_folder_that_is_hidden_itself_may_be_named(photos: Path) -> None:
    hidden = photos.rename(photos.with_name(".photos"))
    assert len(list(find_images([hidden]))) == 7


def test_of_any_number_of_labels_those_from_a_half_on_are_given(tmp_path: Path, photos: Path) -> None:
    model = make_run(tmp_path / "plain")
    model.multi_label = True
    (tmp_path / "labels").mkdir()
    save_model(model, tmp_path / "labels", data="animals")
    predictor, paths = Predictor(tmp_path / "labels", device="cpu"), sorted(find_images([photos]))
    for path, prediction in zip(paths, predictor.predict(paths, top=2), strict=True):
        expected = (
            model(normalise(eval_view(path, predictor.preprocessing)[None], predictor.preprocessing)).sigmoid()[0].tolist()
        )
        given = {name: p for name, p in zip(CLASSES, expected, strict=True) if p >= 0.5}
        assert prediction.labels is not None
        assert dict(prediction.labels) == pytest.approx(given, abs=1e-5)
        assert [p for _, p in prediction.labels] == sorted((p for _, p in prediction.labels), reverse=True)
        assert (len(prediction.top), prediction.top[0]) == (2, (prediction.label, prediction.probability))
        assert prediction.probability == pytest.approx(max(expected), abs=1e-5)
    assert predictor.predict([tmp_path / "missing.png"])[0].labels == ()
    assert "labels" not in Predictor(tmp_path / "plain", device="cpu").predict(paths[:1])[0].to_dict()


def test_json_has_every_field() -> None:
    top = (("ant", 0.75), ("bee", 0.25))
    assert Prediction("a.png", "ant", 0.75, top).to_dict() == {
        "path": "a.png",
        "label": "ant",
        "probability": 0.75,
        "top": [{"label": "ant", "probability": 0.75}, {"label": "bee", "probability": 0.25}],
        "error": None,
    }


def test_values_that_the_model_was_not_trained_for_give_a_warning(predictor: Predictor, photos: Path, tmp_path: Path) -> None:
    assert predictor.range_mismatch(find_images([photos])) is None
    Image.fromarray(np.random.default_rng(0).integers(0, 1000, (20, 20), dtype=np.uint16)).save(tmp_path / "deep.png")
    warning = predictor.range_mismatch([tmp_path / "deep.png"])
    assert warning is not None
    assert warning.startswith("values of uint16 from ")
    assert warning.endswith("; the model was trained without data.range, so it sees few levels of them")
