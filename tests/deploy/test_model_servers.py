"""`vitrail export --to triton|ovms`: a server's layout and configuration, as the export's own file has it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest

from command_line import TINY, Typed
from vitrail import cli
from vitrail.weights import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the embedded sample: two steps of a tiny model."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert cli.main(["train", "fashion-sample", "--out", str(folder), "--no-report", *TINY]) == 0
    return folder


def parse_pbtxt(text: str) -> dict[str, Any]:
    """Parse the text format of protobuf, as far as Triton's configurations use it; names that repeat become lists."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[\w.+-]+|[{}\[\]:,]', re.sub(r"#.*", "", text))

    def message(end: str) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        while tokens and tokens[0] != end:
            if tokens[0] == ",":
                tokens.pop(0)
                continue
            name = tokens.pop(0)
            if tokens[0] == ":":
                tokens.pop(0)
            fields[name] = value()
        if end:
            assert tokens.pop(0) == end
        return fields

    def value() -> Any:
        first = tokens.pop(0)
        if first == "{":
            return message("}")
        if first == "[":
            found = []
            while tokens[0] != "]":
                found.append(value())
                if tokens[0] == ",":
                    tokens.pop(0)
            tokens.pop(0)
            return found
        if first.startswith('"'):
            return json.loads(first)
        return int(first) if re.fullmatch(r"-?\d+", first) else first

    return message("")


@pytest.mark.parametrize(
    ("options", "dims"),
    [([], [1, 28, 28]), (["--dynamic", "size"], [1, -1, -1]), (["--raw-images"], [-1, -1, 1])],
    ids=["one size", "any size", "decoded"],
)
def test_triton_s_configuration_is_that_of_the_file(
    vitrail: Typed, run: Path, tmp_path: Path, options: list[str], dims: list[int]
) -> None:
    out = tmp_path / "repository" / "clothes"
    said = vitrail("export", run, "--to", "triton", "--out", out, "--count", 8, *options)
    assert said.code == 0, said.err
    config = parse_pbtxt((out / "config.pbtxt").read_text())
    assert (config["name"], config["backend"]) == ("clothes", "onnxruntime")
    session = onnxruntime.InferenceSession(out / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    for port, value in (("input", session.get_inputs()[0]), ("output", session.get_outputs()[0])):
        entry = config[port][0]
        assert entry["name"] == value.name
        assert entry["data_type"] == {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8"}[value.type]
        assert entry["dims"] == [length if isinstance(length, int) else -1 for length in value.shape[1:]]
        assert isinstance(value.shape[0], str)  # any number of images
    assert config["input"][0]["dims"] == dims
    kind = np.uint8 if config["input"][0]["data_type"] == "TYPE_UINT8" else np.float32
    for count in (1, config["max_batch_size"]):
        images = np.zeros((count, *(28 if side == -1 else side for side in config["input"][0]["dims"])), kind)
        assert session.run(None, {"images": images})[0].shape == (count, 10)
    queue = config["dynamic_batching"]
    assert queue["max_queue_delay_microseconds"] > 0
    assert queue["default_queue_policy"]["max_queue_size"] > 0
    labels = (out / config["output"][0]["label_filename"]).read_text().splitlines()
    assert tuple(labels) == read_run(run).classes
    assert (out / "card.json").is_file()
    assert (out / "contract.json").is_file()


def test_ovms_finds_the_version_under_its_base_path(vitrail: Typed, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "repository" / "clothes"
    said = vitrail("export", run, "--to", "ovms", "--out", out, "--count", 8)
    assert said.code == 0, said.err
    entry = json.loads((out / "config.json").read_text())["model_config_list"][0]["config"]
    assert entry["name"] == "clothes"
    folder = tmp_path / "repository" / Path(entry["base_path"]).relative_to("/models")  # the volume of the container
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["1"]
    model = openvino.Core().read_model(folder / "1" / "model.xml")
    assert model.input("images").get_partial_shape()[0].is_dynamic  # any number of images
    assert list(model.input("images").get_partial_shape())[1:] == [1, 28, 28]
    compiled = openvino.Core().compile_model(model, entry["target_device"])
    assert compiled(np.zeros((3, 1, 28, 28), np.float32))["logits"].shape == (3, 10)
