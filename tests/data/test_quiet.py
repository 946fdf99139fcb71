from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.data.decode import BadImage, decode


def broken_tiffs(folder: Path) -> list[Path]:
    """Files of which libtiff complains itself, past Python."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    files = []
    for name, image, compression in (
        ("lzw.tif", Image.fromarray(pixels), "tiff_lzw"),
        ("deflate.tif", Image.fromarray(pixels), "tiff_adobe_deflate"),
        ("fax.tif", Image.fromarray(pixels).convert("1"), "group4"),
    ):
        files.append(folder / name)
        image.save(files[-1], compression=compression)
        data = bytearray(files[-1].read_bytes())
        data[300:600] = bytes(byte ^ 0x5A for byte in data[300:600])
        files[-1].write_bytes(data)
    return files


def test_libtiff_does_not_write_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = broken_tiffs(tmp_path)
    loud = "from PIL import Image; import sys\nfor f in sys.argv[1:]:\n  try: Image.open(f).load()\n  except OSError: pass"
    shown = subprocess.run([sys.executable, "-c", loud, *map(str, files)], capture_output=True, text=True, check=True)
    assert shown.stderr, "the files are to make libtiff complain"
    bad = []
    for file in files:
        try:
            decode(file, channels=3)
        except BadImage as error:
            bad.append(error)
    assert bad
    assert capfd.readouterr() == ("", "")


def test_pillow_does_not_log_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadImage):
        decode(b"no image", channels=3)
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("PIL").handlers)


def test_pillow_s_warnings_are_no_lines_of_the_command(tmp_path: Path) -> None:
    """A TIFF with a tag that is longer than it should be: Pillow warns each time that the file is opened."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("L", (16, 16), 40 * i).save(tmp_path / name / f"{i}.tif", dpi=(72, 72))
            data = bytearray((tmp_path / name / f"{i}.tif").read_bytes())
            tags = int.from_bytes(data[4:8], "little") + 2
            unit = next(at for at in range(tags, len(data), 12) if data[at : at + 2] == (296).to_bytes(2, "little"))
            data[unit + 4 : unit + 8] = (2).to_bytes(4, "little")  # numbers in a tag that has one
            (tmp_path / name / f"{i}.tif").write_bytes(data)
    opened = "import sys; from PIL import Image; Image.open(sys.argv[1]).load()"
    loud = subprocess.run([sys.executable, "-c", opened, str(tmp_path / "a/0.tif")], capture_output=True, text=True, check=True)
    assert "UserWarning" in loud.stderr
    command = [sys.executable, "-m", "vitrail", "check", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")
