"""`vitrail embed`: features in a Parquet file or an array, resumed bit for bit, and no image silently dropped."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import vitrail as package
from command_line import Typed, in_a_process
from vitrail.data.augment import normalise
from vitrail.data.decode import eval_view
from vitrail.deploy import BACKENDS, embeddings, tables
from vitrail.deploy.draft import Draft
from vitrail.models import ViT, create_model
from vitrail.settings import Preprocessing


def table_of(path: Path) -> Any:
    return pq.read_table(path)


def expected(run: Path, images: list[Path]) -> np.ndarray:
    model = package.load(run)
    assert model.preprocessing is not None
    views = torch.stack([eval_view(image, model.preprocessing) for image in images])
    with torch.no_grad():
        return model.features(normalise(views, model.preprocessing)).pooled.numpy()


def test_embed_writes_parquet(vitrail: Typed, run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.parquet"
    said = vitrail("embed", images, "--weights", run, "--out", out)
    assert said.code == 1
    assert said.err.startswith("vitrail: 1 of 4 images have no embedding (broken.png: not an image, ")
    assert said.err.count("\n") == 1
    assert f"Written: {out}\n4 rows of 16 numbers of float32, " in said.out
    table = table_of(out)
    assert table.column_names == ["path", "label", "embedding", "error"]
    assert table["path"].to_pylist() == ["a.png", "b[bold].png", "broken.png", "more/c.png"]
    assert table["label"].to_pylist() == [None] * 4
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[16]"
    found = table["embedding"].to_pylist()
    assert np.isnan(found[2]).all()
    assert [error is None for error in table["error"].to_pylist()] == [True, True, False, True]
    rows = expected(run, [images / name for name in ("a.png", "b[bold].png", "more/c.png")])
    np.testing.assert_allclose(np.array([found[0], found[1], found[3]]), rows, rtol=1e-4, atol=1e-5)
    about = json.loads(table.schema.metadata[b"vitrail"])
    assert (about["features"], about["shape"], about["preprocessing"]["img_size"]) == ("head", [16], [28, 28])
    assert about["sha256"] == package.load(run).receipt.sha256  # type: ignore[union-attr]
    assert not list(tmp_path.glob("*.part"))


def test_embed_writes_an_array_and_its_table(vitrail: Typed, run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "features.npy"
    said = vitrail("embed", photos, "--weights", run, "--out", out, "--json")
    assert said.code == 0
    assert json.loads(said.out)["shape"] == [16]
    values, rows = np.load(out), list(csv.DictReader((tmp_path / "features.csv").open()))
    assert values.shape == (12, 16)
    assert values.dtype == np.float32
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert [row["label"] for row in rows] == [row["path"].split("/")[1] for row in rows]
    np.testing.assert_allclose(values, expected(run, [photos / row["path"] for row in rows]), rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "features.json").read_text())["data"] == str(photos)


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embed_patches(vitrail: Typed, run: Path, images: Path, tmp_path: Path, suffix: str, dtype: str) -> None:
    out = tmp_path / f"patches.{suffix}"
    assert vitrail("embed", images, "--weights", run, "--out", out, "--patches", "--dtype", dtype).code == 1
    values = np.load(out) if suffix == "npy" else np.array(table_of(out)["embedding"].to_pylist(), dtype=dtype)
    model = package.load(run)
    assert model.preprocessing is not None
    view = normalise(eval_view(images / "more" / "c.png", model.preprocessing)[None], model.preprocessing)
    with torch.no_grad():
        level = model.features(view).pyramid[-1][0]  # type: ignore[index]
    assert values.dtype == np.dtype(dtype)
    assert values.shape == (4, level.shape[1], level.shape[2], level.shape[0])
    assert np.isnan(values[2]).all()
    tolerance = 1e-4 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(values[3], level.permute(1, 2, 0).numpy(), rtol=tolerance, atol=tolerance)


def vit(seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    model = create_model("Ti/16", img_size=32, depth=1, embed_dim=8, num_heads=2, num_classes=2)
    assert isinstance(model, ViT)
    model.preprocessing = Preprocessing(img_size=(32, 32), in_channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    return model


def test_pools(vitrail: Typed, run: Path, images: Path, tmp_path: Path) -> None:
    image, model, found = images / "a.png", vit().eval(), {}
    for pool in ("head", "cls", "avg"):
        package.embed(model, image, tmp_path / f"{pool}.npy", pool=pool, backend="fp32")
        found[pool] = np.load(tmp_path / f"{pool}.npy")
    package.embed(model, image, tmp_path / "p.npy", patches=True, backend="fp32")
    np.testing.assert_array_equal(found["head"], found["cls"])
    np.testing.assert_allclose(found["avg"], np.load(tmp_path / "p.npy").mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r'^pool "avg" makes one embedding of the patches; leave it out'):
        package.embed(run, image, tmp_path / "x.npy", pool="avg", patches=True)
    said = vitrail("embed", image, "--weights", run, "--out", tmp_path / "x.npy", "--pool", "max")
    assert (said.code, said.err) == (2, 'vitrail: pool "max" is none of head, cls, avg\n')
    said = vitrail("embed", image, "--weights", run, "--out", tmp_path / "x.npy", "--pool", "cls")  # the recipe's has none
    assert (said.code, said.err) == (2, 'vitrail: ViT has no class token; use pool "head" or "avg"\n')


def test_named_sets_lists_and_splits(vitrail: Typed, run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.npy"
    assert vitrail("embed", "fashion-sample", "--weights", run, "--out", out, "--split", "test").code == 0
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert (rows[0]["path"], len(rows)) == ("fashion-sample/test/0", len(np.load(out)))
    assert {row["label"] for row in rows} == set(package.load(run).classes)

    names = [photos / "test" / "dog" / "1.jpg", photos / "train" / "cat" / "0.jpg"]
    assert all(name.is_file() for name in names)
    (tmp_path / "some.txt").write_text("\n".join(map(str, names)) + "\n")
    assert vitrail("embed", tmp_path / "some.txt", "--weights", run, "--out", tmp_path / "b.npy").code == 0
    rows = list(csv.DictReader((tmp_path / "b.csv").open()))
    assert [row["path"] for row in rows] == list(map(str, names))
    assert {row["label"] for row in rows} == {""}
    np.testing.assert_allclose(np.load(tmp_path / "b.npy"), expected(run, names), rtol=1e-4, atol=1e-5)

    assert vitrail("embed", photos, "--weights", run, "--out", tmp_path / "c.npy", "--split", "test").code == 0
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert [row["path"].split("/")[0] for row in rows] == ["test"] * 4
    said = vitrail("embed", tmp_path / "some.txt", "--weights", run, "--out", tmp_path / "d.npy", "--split", "val")
    assert said.err == 'vitrail: split "val" is for a folder or a named set, and this is a list of images; leave it out\n'


def test_several_labels_an_image(run: Path, photos: Path, tmp_path: Path) -> None:
    folder = photos / "train"
    lines = ["path,labels", *(f"{kind}/{index}.jpg,{kind};any" for kind in ("cat", "dog") for index in range(4))]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "notes.md").write_text("no image")
    notes: list[str] = []
    package.embed(run, folder, tmp_path / "a.npy", report=notes.append)
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert {row["label"] for row in rows} == {"any;cat", "any;dog"}
    assert notes == ["not used: 1 file of notes (notes.md)"]


# --------------------------------------------------------------------------------------------------------------------
# Interruption


class Stopped(BaseException):
    """As Ctrl-C, at a chosen batch."""


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    real = Draft.append

    def stop(batches: int | None) -> None:
        left = iter(range(10**6 if batches is None else batches))

        def append(self: Draft, values: Any, failed: Any) -> None:
            if next(left, None) is None:
                raise Stopped
            real(self, values, failed)

        monkeypatch.setattr(Draft, "append", append)

    return stop


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_an_interrupted_call_goes_on_to_the_same_bits(
    run: Path, photos: Path, tmp_path: Path, stop_after: Callable[[int | None], None], suffix: str
) -> None:
    (photos / "test" / "cat" / "0.jpg").write_bytes(b"no image")  # the first batch is no whole one
    backend = "fp32" if BACKENDS["packed"].unavailable(torch.device("cpu")) else "packed"
    whole, out = tmp_path / f"whole.{suffix}", photos / f"features.{suffix}"  # in the data's own folder
    package.embed(run, photos, whole, batch_size=3, backend=backend)
    stop_after(2)
    with pytest.raises(Stopped):
        package.embed(run, photos, out, batch_size=3, backend=backend)
    assert not out.exists()
    rows = photos / f"features.{suffix}.part" / "rows.npy"
    with rows.open("ab") as file:
        file.write(b"half a row")
    stop_after(1)
    with pytest.raises(Stopped):
        package.embed(run, photos, out, batch_size=3, backend=backend)
    stop_after(None)
    with pytest.raises(
        ValueError, match=r"features\.\w+\.part was begun with other settings: batch size \(3, now 4\); run the"
    ):
        package.embed(run, photos, out, batch_size=4, backend=backend)
    with pytest.raises(ValueError, match=r"begun with other settings: features \(head, now avg\); run the first command again"):
        package.embed(run, photos, out, batch_size=3, backend=backend, pool="avg")
    done = package.embed(run, photos, out, batch_size=3, backend=backend)
    assert (done.resumed_at, done.count, [item.path for item in done.failed]) == (9, 12, ["test/cat/0.jpg"])
    assert out.read_bytes() == whole.read_bytes()
    if suffix == "npy":
        assert out.with_suffix(".csv").read_bytes() == whole.with_suffix(".csv").read_bytes()
    assert not rows.parent.exists()
    with pytest.raises(ValueError, match=r"exists; name another file, or replace it with --overwrite$"):
        package.embed(run, photos, out)
    again = package.embed(run, photos, out, overwrite=True)  # its own output in the folder is no image
    assert again.count == 12


def test_two_processes_do_not_write_one_file(run: Path, images: Path, tmp_path: Path) -> None:
    draft = Draft(tmp_path / "a.npy", settings={}, rows=4, shape=(2,), dtype="float32")
    draft.append(np.zeros((1, 2)), {})
    done = in_a_process("embed", images, "--weights", run, "--out", tmp_path / "a.npy", "--overwrite")
    assert done.returncode == 2
    assert done.stderr.endswith("a.npy.part is written by another process; wait for it, or name another file\n")
    draft.close()
    done = in_a_process("embed", images, "--weights", run, "--out", tmp_path / "a.npy", "--overwrite")
    assert done.returncode == 1


def test_another_model_does_not_go_on(photos: Path, tmp_path: Path, stop_after: Callable[[int | None], None]) -> None:
    first = vit().train()
    stop_after(1)
    with pytest.raises(Stopped):
        package.embed(first, photos, tmp_path / "a.npy", batch_size=4)
    assert first.training
    stop_after(None)
    with pytest.raises(ValueError, match=r"a.npy.part was begun with other settings: weights; run the first command again"):
        package.embed(vit(1), photos, tmp_path / "a.npy", batch_size=4)
    (photos / "test" / "cat" / "new.jpg").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"begun with other settings: data, images \(12, now 13\); run the first command again"
    ):
        package.embed(first, photos, tmp_path / "a.npy", batch_size=4)
    done = package.embed(vit(1), photos, tmp_path / "a.npy", batch_size=4, overwrite=True)
    assert done.resumed_at == 0
    with pytest.raises(ValueError, match=r"^img_size and device are for weights that are loaded here; load the model so"):
        package.embed(first, photos, tmp_path / "b.npy", device="cpu")


# --------------------------------------------------------------------------------------------------------------------
# Mistakes


def test_mistakes_are_one_line(
    vitrail: Typed, run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*words: str | Path) -> str:
        said = vitrail("embed", *words)
        assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
        return said.err.removeprefix("vitrail: ").rstrip("\n")

    weights, out = ("--weights", run), ("--out", tmp_path / "a.npy")
    assert error(tmp_path / "none", *weights, *out).startswith(f'data "{tmp_path / "none"}" is neither a folder nor one of')
    assert error(images, *weights, "--out", "a.h5") == '"a.h5" ends in neither of .parquet or .npy; name one of them'
    assert error(images, *weights, "--out", tmp_path / "x" / "a.npy").startswith(f"{tmp_path / 'x'} is not a folder; make it")
    assert error(images, *weights, *out, "--dtype", "float61").endswith('is none of float32, float16; did you mean "float16"?')
    assert error(images, *out).endswith("the following arguments are required: --weights; see vitrail embed --help")
    assert error(images, *weights, *out, "--split", "test").startswith('images has no split "test"; it has train')
    assert error(images / "broken.png", *weights, *out).startswith("none of the 1 images has an embedding (")
    assert not list(tmp_path.glob("a.npy*"))
    (tmp_path / "a.npy.part").mkdir()
    (tmp_path / "a.npy.part" / "mine.txt").write_text("mine")
    assert error(images, *weights, *out).endswith(
        "a.npy.part is in the way and no draft of a.npy; move it, or name another file"
    )
    (tmp_path / "b.csv").write_text("mine")
    assert error(images, *weights, "--out", tmp_path / "b.npy").startswith(f"{tmp_path / 'b.csv'} exists; name another file")
    assert (tmp_path / "b.csv").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r'needs pyarrow \(.*\); pip install "vitrail\[parquet\]", or name a .npy file$'):
        tables.format_of(Path("a.parquet"))


def test_what_is_not_finite_has_no_row(run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(embeddings.FEATURES, "head", lambda features, model: features.pooled * 1e6)
    done = package.embed(run, images / "a.png", tmp_path / "a.npy")
    assert not done.failed
    with pytest.raises(ValueError, match=r"a.png: its embedding does not fit float16; use float32\)$"):
        package.embed(run, images / "a.png", tmp_path / "b.npy", dtype="float16")
    monkeypatch.setitem(embeddings.FEATURES, "head", lambda features, model: features.pooled / 0)
    with pytest.raises(ValueError, match=r"a.png: the model's output for it is not finite"):
        package.embed(run, images / "a.png", tmp_path / "b.npy")


def test_help_needs_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; from vitrail import cli; cli.main(['embed', '--help'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--patches" in done.stdout


def test_a_list_on_stdin(run: Path, images: Path, tmp_path: Path) -> None:
    typed = f"{images / 'more' / 'c.png'}\n{images / 'a.png'}\n"
    done = in_a_process("embed", "-", "--weights", run, "--out", tmp_path / "a.npy", input=typed)
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["path"] for row in csv.DictReader((tmp_path / "a.csv").open())] == typed.split()


def test_models_without_tokens(images: Path, tmp_path: Path) -> None:
    model = create_model("timm:test_resnet", num_classes=2, img_size=64)
    model.preprocessing = Preprocessing(img_size=(64, 64), in_channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    done = package.embed(model, images / "a.png", tmp_path / "a.npy", patches=True, backend="fp32")
    assert done.shape == (2, 2, 96)
    with pytest.raises(ValueError, match=r'^timm:test_resnet has no class token; use pool "head" or "avg"$'):
        package.embed(model, images / "a.png", tmp_path / "b.npy", pool="cls")
    Image.new("L", (28, 28)).save(tmp_path / "grey.png")
    assert package.embed(model, [tmp_path / "grey.png"], tmp_path / "c.npy", pool="avg", backend="fp32").shape == (96,)


def test_random_weights_are_refused_in_one_line(vitrail: Typed, tmp_path: Path) -> None:
    said = vitrail("embed", tmp_path, "--weights", "B/16", "--out", tmp_path / "f.npy")
    assert said.code == 2
    assert "B/16 has random weights, whose features say nothing" in said.err
