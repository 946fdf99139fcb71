"""`vitrail predict`: a table, JSON and CSV, for files, folders and lists."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from command_line import Typed, in_a_process


def test_predict_prints_a_table_and_reports_what_it_could_not_read(vitrail: Typed, run: Path, images: Path) -> None:
    said = vitrail("predict", run, images, images / "missing.png", "--top", "3")
    assert said.code == 1
    for name in ("a.png", "b[bold].png", "more/c.png"):
        assert re.search(rf"{re.escape(str(images / name))} +\S.* \d+\.\d %", said.out)
    assert re.search(r"broken\.png +unreadable", said.out)
    assert "\x1b" not in said.out
    assert f"vitrail: {images / 'broken.png'}: " in said.err
    assert said.err.endswith("vitrail: 2 of 5 images could not be read; the others are done\n")


def test_predict_sees_what_training_sees(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    """Any suffix or none, and through links; what is no image is told, and the exit code says so."""
    folder, picture = tmp_path / "mixed", Image.effect_noise((28, 28), 50)
    (folder / "@eaDir").mkdir(parents=True)
    for name, kind in (("a.jfif", "JPEG"), ("b.jpe", "JPEG"), ("c", "PNG"), ("d.AVIF", "AVIF"), ("@eaDir/a.jfif", "JPEG")):
        picture.save(folder / name, kind)
    (tmp_path / "elsewhere").mkdir()
    picture.save(tmp_path / "elsewhere" / "e.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    said = vitrail("predict", run, folder, "--csv")
    names = [Path(row["path"]).name for row in csv.DictReader(io.StringIO(said.out))]
    assert (said.code, names) == (0, ["a.jfif", "b.jpe", "c", "d.AVIF", "e.png"])
    (folder / "notes.txt").write_text("no image")
    (folder / "lost.png").symlink_to(folder / "nowhere.png")
    said = vitrail("predict", run, folder)
    assert said.code == 1
    assert "mixed/notes.txt: not an image" in said.err
    assert "mixed/lost.png: the file is not there" in said.err
    assert said.err.endswith("2 of 7 images could not be read; the others are done\n")


def test_predict_writes_names_that_are_no_utf8_to_a_pipe(run: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\r\x1b[2J.png"
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    os.rename(os.fsencode(tmp_path / "a.png"), path)
    for how in ("--json", "--csv"):
        words: list[str | bytes] = [sys.executable, "-m", "vitrail", "predict", str(run), path, how]
        done = subprocess.run(words, capture_output=True, check=False, timeout=120)
        assert (done.returncode, done.stderr) == (0, b"")
        text = done.stdout.decode()
        if how == "--json":
            assert json.loads(text)[0]["path"] == os.fsdecode(path)
        else:
            assert next(iter(list(csv.reader(io.StringIO(text, newline="")))[1:]))[0].endswith("\\udcff\r\x1b[2J.png")


def test_sets_of_a_coverage(vitrail: Typed, run: Path, images: Path) -> None:
    rows = json.loads(vitrail("predict", run, images, "--json", "--coverage", "0.5").out)
    assert [row.get("classes") is not None for row in rows] == [True, True, False, True]
    table = list(csv.reader(io.StringIO(vitrail("predict", run, images, "--csv", "--coverage", "0.5").out)))
    assert table[0] == ["path", "label", "probability", "set", "outlier", "error"]
    assert [row[3].split(";") if row[3] else [] for row in table[1:]] == [row.get("classes", []) for row in rows]
    assert "set" in vitrail("predict", run, images, "--coverage", "0.5").out
    said = vitrail("predict", run, images, "--coverage", "2")
    assert (said.code, said.err.count("\n")) == (2, 1)


def test_predict_as_json(vitrail: Typed, run: Path, images: Path) -> None:
    said = vitrail("predict", run, images, "--json", "--top", "2")
    rows = json.loads(said.out)
    assert [Path(row["path"]).name for row in rows] == ["a.png", "b[bold].png", "broken.png", "c.png"]
    assert [row["error"] is None for row in rows] == [True, True, False, True]
    assert [len(row["top"]) for row in rows] == [2, 2, 0, 2]
    assert all(row["top"][0] == {"label": row["label"], "probability": row["probability"]} for row in rows if row["top"])


@pytest.mark.parametrize("top", [1, 2, 50])
def test_predict_as_csv(vitrail: Typed, run: Path, images: Path, top: int) -> None:
    rows = list(csv.reader(io.StringIO(vitrail("predict", run, images, "--csv", "--top", str(top)).out)))
    ranks = min(top, 10)
    assert rows[0][:3] == ["path", "label", "probability"]
    assert rows[0][-1] == "error"
    assert rows[0][-2] == "outlier"
    assert {len(row) for row in rows} == {3 + 2 * ranks}
    assert [bool(row[-1]) for row in rows[1:]] == [False, False, True, False]
    assert all(sum(map(float, row[2:-1:2])) == pytest.approx(1, abs=1e-5) for row in rows[1:] if top == 50 and not row[-1])


def test_predict_reads_a_list_from_stdin(vitrail: Typed, run: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{images / 'a.png'}\n\n{images / 'more'}\r\n"))
    said = vitrail("predict", run, "--csv", "-", "--device", "cpu", images / "b[bold].png")
    assert said.code == 0, said.err
    assert [Path(row[0]).name for row in csv.reader(io.StringIO(said.out))] == ["path", "a.png", "c.png", "b[bold].png"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert vitrail("predict", run, "-").err == "vitrail: stdin named no image; write one path a line\n"


def test_python_m_vitrail_is_vitrail(run: Path, images: Path) -> None:
    done = in_a_process("predict", run, images / "a.png")
    assert done.returncode == 0, done.stderr
    assert "a.png" in done.stdout
    assert done.stderr == ""


def test_predict_takes_a_backend_and_tells_its_speed_and_difference(vitrail: Typed, run: Path, images: Path) -> None:
    plain = vitrail("predict", run, images, "--device", "cpu", "--backend", "fp32", "--verbose")
    assert re.search(r"^vitrail: backend fp32: [\d,.]+ images/s on 3 images$", plain.err, re.MULTILINE)
    said = vitrail("predict", run, images, "--device", "cpu", "--backend", "packed", "--verbose")
    line = r"^vitrail: backend packed: [\d,.]+ images/s, fp32 [\d,.]+; logits differ from fp32's by (\S+) at most on 3 images$"
    found = re.search(line, said.err, re.MULTILINE)
    assert found, said.err
    assert float(found[1]) <= 1e-4
    assert said.out == plain.out
    silent = vitrail("predict", run, images, "--device", "cpu")
    assert (silent.out, "vitrail: backend" in silent.err) == (plain.out, False)


def test_verbose_tells_nothing_where_no_image_can_be_read(vitrail: Typed, run: Path, images: Path) -> None:
    said = vitrail("predict", run, images / "broken.png", "--verbose", "--device", "cpu")
    assert (said.code, "vitrail: backend" in said.err) == (1, False)


def test_a_backend_that_is_not_there_is_one_line(vitrail: Typed, run: Path, images: Path) -> None:
    said = vitrail("predict", run, images, "--backend", "onnx")
    assert (said.code, said.err) == (
        2,
        'vitrail: backend "onnx" is none of auto, fp32, packed, bf16, compiled, openvino, openvino-bf16\n',
    )
    said = vitrail("predict", run, images, "--device", "cpu", "--backend", "compiled")
    assert said.code == 2
    assert said.err.startswith('vitrail: backend "compiled" is not available: it is for a CUDA device, and this is cpu; use ')
    assert said.err.count("\n") == 1


def test_help_lists_the_backends(vitrail: Typed) -> None:
    out = vitrail("predict", "--help").out
    for name in ("fp32", "packed", "bf16", "compiled"):
        assert re.search(rf"^  {name} +\S", out, re.MULTILINE)
