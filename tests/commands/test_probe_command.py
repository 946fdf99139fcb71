"""`vitrail probe`: a line for each rung, JSON, and what is refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from cases import ImageFolder
from command_line import Typed, in_a_process


def test_probe_prints_a_line_for_each_rung(vitrail: Typed, run: Path) -> None:
    said = vitrail("probe", run, "--shots", "1,3", "--draws", "2")
    assert said.code == 0, said.err
    assert re.match(
        r"fashion-sample: 10 classes; learned from [\d,]+ train \+ \d+ val; scored on 2,000 test images\n", said.out
    )
    for name in ("k-NN", "linear probe"):
        assert re.search(rf"^{name} +1,000 +\d+\.\d % +\d+\.\d to \d+\.\d +2,000 images", said.out, re.M)
        for shots in (1, 3):
            assert re.search(rf"^{name} +{shots} +\d+\.\d % +\d+\.\d to \d+\.\d +the mean of 2 draws", said.out, re.M)
    assert re.search(r"^Fine-tuning can('t)? be expected to beat the probe: .*\.$", said.out, re.M)
    assert "\x1b" not in said.out + said.err


def test_probe_as_json_on_other_classes(vitrail: Typed, run: Path, image_folder: ImageFolder) -> None:
    photos = image_folder({"train": {"cat": 6, "dog": 2}, "test": {"cat": 4, "dog": 4}})
    said = vitrail("probe", run, photos, "--json", "--shots", "5", "--batch-size", "3")
    assert said.code == 0, said.err
    numbers = json.loads(said.out)
    assert (numbers["data"], numbers["classes"]) == ("photos", 2)
    assert numbers["images"]["test"] == 8
    for rung in ("knn", "probe"):
        score = numbers[rung]["test"]
        assert score["count"] == 8
        assert score["interval"][0] <= score["accuracy"] <= score["interval"][1]
    (five,) = numbers["few_shot"]
    assert (five["shots"], len(five["probe"]["draws"])) == (5, 5)
    assert "dog" in five["short"]
    assert numbers["advice"]["why"].startswith("fine-tuning can")
    assert json.loads(vitrail("probe", run, photos, "--json", "--shots", "5").out) == numbers, "from the cache"


def test_probe_says_what_it_lacks(vitrail: Typed, run: Path, image_folder: ImageFolder, tmp_path: Path) -> None:
    photos = image_folder({"train": {"cat": 6, "dog": 6}})
    config = tmp_path / "run" / "config.yaml"
    config.parent.mkdir()
    for name in ("config.json", "model.safetensors", "config.yaml"):
        (config.parent / name).write_bytes((run / name).read_bytes())
    config.write_text(config.read_text().replace("val_fraction: 0.1", "val_fraction: 0.0"))
    said = vitrail("probe", config.parent, photos, "--shots", "1")
    assert re.fullmatch(r"vitrail: --shots needs images to score on, and photos has neither test nor val[^\n]*\n", said.err)
    said = vitrail("probe", config.parent, photos)
    assert said.code == 0
    assert "learned from 12 train; scored on training images, held out in turn" in said.out
    config.unlink()
    assert re.fullmatch(r"vitrail: \S+ is no folder of `vitrail train`[^\n]* name DATA\n", vitrail("probe", config.parent).err)


def test_a_warning_is_one_line(vitrail: Typed, run: Path) -> None:
    done = in_a_process("probe", run, env={**os.environ, "VITRAIL_CACHE": str(run / "config.json")})
    assert done.returncode == 0
    assert done.stderr.count("vitrail: the features can't be kept in") == len(done.stderr.splitlines()) > 0
