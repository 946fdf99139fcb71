"""What a method gives can be drawn, saved and computed with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.explain import Maps, draw
from vitrail.explain.inputs import open_scene
from vitrail.explain.maps import maps_of
from vitrail.models import ViT
from vitrail.settings import Preprocessing

GENERATOR = torch.Generator().manual_seed(0)


def maps(**fields: Any) -> Maps:
    """Three images on a canvas of 12 x 24 pixels, in patches of 4 x 8; the second and third are padded."""
    given: dict[str, Any] = {
        "maps": torch.rand(3, 3, 3, generator=GENERATOR),
        "method": "integrated_gradients",
        "labels": ("class a", "class b", "class c"),
        "patch": (4, 8),
        "image_sizes": torch.tensor([[12, 24], [9, 14], [12, 14]]),
        "pixels": torch.randint(0, 256, (3, 3, 12, 24), generator=GENERATOR, dtype=torch.uint8),
        "names": ("photographs/a.jpg", "photographs/b.jpg", "#2"),
    }
    return Maps(**given | fields)


# --------------------------------------------------------------------------------------------------------------------
# Parts


def test_numbers_for_those_who_draw_themselves() -> None:
    made = maps()
    assert len(made) == 3
    assert made.numpy().dtype == np.float32
    np.testing.assert_array_equal(made.numpy(), made.maps.numpy())


@pytest.mark.parametrize("index", [0, 1, 2, -1, -3])
def test_one_image_of_them(index: int) -> None:
    made = maps(colors=torch.rand(3, 3, 3, 3), note="read me")
    one = made.at(index)
    assert len(one) == 1
    assert torch.equal(one.maps[0], made.maps[index])
    assert torch.equal(one.image_sizes[0], made.image_sizes[index])
    assert torch.equal(one.pixels[0], made.pixels[index])
    assert torch.equal(one.colors[0], made.colors[index])
    assert (one.labels, one.names) == ((made.labels[index],), (made.names[index],))
    assert (one.note, one.method, one.patch) == (made.note, made.method, made.patch)
    assert one.overlay().tobytes() == made.overlay(index).tobytes()


@pytest.mark.parametrize("index", [3, -4])
@pytest.mark.parametrize("ask", ["at", "picture", "placed", "overlay", "panel"])
def test_an_image_that_does_not_exist(ask: str, index: int) -> None:
    with pytest.raises(ValueError, match=rf"^image {index} does not exist; there are images 0 to 2 \(or -3 to -1\)$"):
        getattr(maps(), ask)(index)


def test_what_the_model_saw_is_without_padding() -> None:
    made = maps()
    for index, (height, width) in enumerate(made.image_sizes.tolist()):
        seen = made.picture(index)
        assert seen.size == (width, height)
        np.testing.assert_array_equal(np.asarray(seen), made.pixels[index, :, :height, :width].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels(channels: int) -> None:
    made = maps(pixels=torch.randint(0, 256, (3, channels, 12, 24), dtype=torch.uint8))
    assert made.picture(0).mode == "RGB"
    assert made.overlay(1).size == (14, 9)


# --------------------------------------------------------------------------------------------------------------------
# Pictures


def test_an_overlay_over_what_the_model_saw() -> None:
    made = maps()
    for index in range(3):
        over = made.overlay(index)
        assert over.size == made.picture(index).size
        assert over.tobytes() == draw.overlay(made.picture(index), made.placed(index)).tobytes()
        assert over.tobytes() == made.overlay(made.picture(index), index=index).tobytes()
        assert over.tobytes() != made.overlay(index, smooth=False).tobytes()
        assert over.tobytes() != made.overlay(index, alpha=0.5).tobytes()
    assert made.overlay(made.picture(0)).tobytes() == made.overlay().tobytes()


def test_pictures_of_every_kind_and_a_higher_resolution(tmp_path: Path) -> None:
    made = maps(pixels=None)
    large = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8))
    large.save(tmp_path / "large.png")
    expected = made.overlay(large, index=1)
    assert expected.size == (140, 90)
    for picture in (
        np.asarray(large),
        tmp_path / "large.png",
        str(tmp_path / "large.png"),
        (tmp_path / "large.png").read_bytes(),
    ):
        assert made.overlay(picture, index=1).tobytes() == expected.tobytes()
    grey = made.overlay(np.asarray(large.convert("L")), index=1)
    assert grey.tobytes() == expected.tobytes()


def test_a_picture_that_lies_on_its_side_is_set_upright(tmp_path: Path) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "side.png", exif=exif)
    expected = maps(pixels=None, maps=torch.eye(3).expand(3, 3, 3)).overlay(upright, index=1)
    with Image.open(tmp_path / "side.png") as lying:
        assert maps(pixels=None, maps=torch.eye(3).expand(3, 3, 3)).overlay(lying, index=1).tobytes() == expected.tobytes()


def test_signs_and_colours_reach_the_picture() -> None:
    values = torch.rand(3, 3, 3) - 0.5
    plain, signed = maps(maps=values), maps(maps=values, signed=True)
    pixels = plain.pixels
    coloured = maps(maps=values, colors=torch.rand(3, 3, 3, 3), pixels=pixels)
    signed = maps(maps=values, signed=True, pixels=pixels)
    made = [one.overlay(0) for one in (plain, signed, coloured)]
    assert len({one.tobytes() for one in made}) == 3
    assert made[1].tobytes() == draw.overlay(signed.picture(), signed.placed(), signed=True).tobytes()
    assert made[2].tobytes() == draw.overlay(coloured.picture(), coloured.placed(), colors=coloured.colors[0].numpy()).tobytes()


def test_errors_of_an_overlay() -> None:
    made = maps()
    with pytest.raises(ValueError, match=r"^image 0 is a number already; leave index 2 out, or give a picture$"):
        made.overlay(0, index=2)
    with pytest.raises(ValueError, match="a picture of 50x50 px has not the shape of what the model saw, 24x12 px"):
        made.overlay(Image.new("RGB", (50, 50)))
    with pytest.raises(ValueError, match=r"an array of float64 with shape \(12, 24, 3\) is no picture; give uint8"):
        made.overlay(np.zeros((12, 24, 3)))
    with pytest.raises(ValueError, match=r"shape \(3, 12, 24\) is no picture"):
        made.overlay(np.zeros((3, 12, 24), dtype=np.uint8))
    with pytest.raises(
        ValueError, match=r"does not say how its images are normalised.* give overlay the picture, or save"
    ) as error:
        maps(pixels=None).overlay(0)
    assert "\n" not in str(error.value)


def test_a_map_with_numbers_that_are_not_finite() -> None:
    values = torch.rand(3, 3, 3)
    values[0, 0, 1], values[1, 2, 1], values[2, 2, 2] = float("nan"), float("inf"), float("nan")
    made = maps(maps=values)
    for index, count in ((0, 9), (1, 6)):
        with pytest.raises(ValueError, match=f"^1 of the map's {count} numbers are not finite"):
            made.overlay(index)
    made.overlay(2)  # it lies in the padding


# --------------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("suffix", [".png", ".PNG"])
def test_a_saved_png_has_a_row_for_each_image(suffix: str, tmp_path: Path) -> None:
    made = maps(note="read me")
    path = made.save(tmp_path / f"all{suffix}")
    assert path == tmp_path / f"all{suffix}"
    heights = []
    for index, file in [
        (None, path),
        (1, made.save(tmp_path / "one.png", index=1)),
        (1, made.at(1).save(tmp_path / "same.png")),
    ]:
        figure = draw.sheet(
            [
                draw.SheetRow(one.picture(), Path(one.names[0]).name, [one.panel()])
                for one in map(made.at, [0, 1, 2] if index is None else [1])
            ],
            note="read me",
        )
        with Image.open(file) as image:
            assert (image.format, image.size) == ("PNG", tuple((figure.get_size_inches() * draw.DPI).round().astype(int)))
            heights.append(image.height)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    assert heights[0] > 2 * heights[1]
    assert (
        made.save(tmp_path / "grid.png", index=0, grid=True).read_bytes() != made.save(tmp_path / "0.png", index=0).read_bytes()
    )


def test_what_stands_around_a_map() -> None:
    made = maps(signed=True)
    panel = made.panel(1, line="insertion 0.7")
    assert (panel.label, panel.line, panel.signed, panel.legend) == (
        "integrated gradients\nclass b",
        "insertion 0.7",
        True,
        None,
    )
    assert made.panel(label="mine").label == "mine"
    assert maps(method="similarity", signed=True).panel().legend == ("unlike", "alike")


@pytest.mark.parametrize("name", ["maps.npy", "maps.NPY"])
def test_numbers_come_back_from_a_file(name: str, tmp_path: Path) -> None:
    made = maps(pixels=None)
    path = made.save(str(tmp_path / name))
    back = np.load(path)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, made.numpy())
    np.testing.assert_array_equal(np.load(made.save(tmp_path / name, index=-1)), made.numpy()[2:])


@pytest.mark.parametrize("name", ["maps.jpg", "maps"])
def test_another_ending_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf'^"{name}" ends neither in \.png nor in \.npy; name one of them$'):
        maps().save(tmp_path / name)
    with pytest.raises(ValueError, match=r"save the maps as \.npy"):
        maps(pixels=None).save(tmp_path / "maps.png")
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------------------
# From a method


def test_a_map_over_bands_says_which_the_picture_shows() -> None:
    model = ViT(img_size=(8, 8), patch_size=4, embed_dim=8, depth=1, num_heads=1, num_classes=2, in_channels=5)
    model.preprocessing = Preprocessing(img_size=(8, 8), in_channels=5, mean=(0.5,) * 5, std=(0.5,) * 5)
    with open_scene(model, torch.randn(1, 5, 8, 8)) as seen:
        made = maps_of(seen, torch.arange(5.0)[None], method="rollout", labels="all layers", notes=("first",))
    assert made.note == "first; the picture shows bands 1 to 3, as red, green, blue, of 5"


def test_rows_over_the_tokens_become_maps() -> None:
    """Prefix tokens are left out, and the patches lie line by line."""
    model = ViT(img_size=(8, 12), patch_size=4, embed_dim=8, depth=1, num_heads=1, num_classes=2, reg_tokens=2)
    model.preprocessing = Preprocessing(img_size=(8, 12), in_channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    pixels = torch.randint(0, 256, (2, 3, 7, 12), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    with open_scene(model, (pixels / 255 - mean) / std, pad=True) as seen:
        rows = torch.arange(18.0).reshape(2, 9)
        made = maps_of(seen, rows, method="rollout", labels="all layers", notes=("", "first", "second"))
        given = maps_of(seen, made.maps.double().float(), method="rollout", labels=("a", "b"))
    assert made.maps.tolist() == [[[3, 4, 5], [6, 7, 8]], [[12, 13, 14], [15, 16, 17]]]
    assert torch.equal(given.maps, made.maps)
    assert (made.labels, given.labels) == (("all layers", "all layers"), ("a", "b"))
    assert made.note == "first; second"
    assert made.image_sizes.tolist() == [[7, 12]] * 2
    for index in range(2):
        np.testing.assert_array_equal(np.asarray(made.picture(index)), pixels[index].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(made.placed(0).spread(smooth=False)[:, ::4], [[3, 4, 5]] * 4 + [[6, 7, 8]] * 3)
