"""`vitrail bench`: a small model end to end, and mistakes in one line."""

from __future__ import annotations

import json

import pytest

from command_line import Typed

SMALL = ("Ti/32", "--img-size", "32", "--batch-size", "2", "--minutes", "0.01", "--precision", "fp32")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No peer is installed."""
    monkeypatch.setattr("vitrail.bench.contender.missing", lambda packages: f"{packages[0]} is not here" if packages else None)


def test_figures_as_json(vitrail: Typed) -> None:
    said = vitrail("bench", *SMALL, "--json")
    assert said.code == 0
    report = json.loads(said.out)
    assert (report["model"], report["img_size"], report["batch_size"], report["device"]) == ("Ti/32", [32, 32], 2, "cpu")
    assert report["machine"]["cores"] >= 1
    assert report["train_precision"] == "fp32"
    for kind in ("training", "prediction"):
        phase = report[kind]
        assert phase["rounds"] >= 3
        rows = {row["contender"]: row for row in phase["results"]}
        assert {"Vitrail", "timm", "torchvision"} <= rows.keys()
        for row in rows.values():
            assert 0 < row["images_per_s"]["min"] <= row["images_per_s"]["median"] <= row["images_per_s"]["max"]
            assert row["share_of_ceiling"] > 0
        assert rows["timm"]["ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
        assert phase["ceilings"][0]["products"] == "matmul"
    logits = {row["contender"]: row["logits_difference"] for row in report["prediction"]["results"]}
    assert logits["Vitrail"] == 0
    assert logits["timm"] < 1e-5
    assert said.err.splitlines()[-1].startswith("vitrail: prediction: ")


@pytest.mark.usefixtures("alone")
def test_missing_peers_are_named_and_the_rest_is_measured(vitrail: Typed) -> None:
    said = vitrail("bench", *SMALL)
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[1] == "Ti/32, 32 x 32 px, batch 2, 0.02 GFLOPs an image"
    assert [line.split()[:2] for line in lines if line.startswith("Vitrail")] == [["Vitrail", "fp32"]] * 2
    assert "not measured: timm: timm is not here" in lines
    assert "not measured: ONNX Runtime: onnxruntime is not here" in lines
    assert lines[-2] == "`vitrail train` takes fp32 here."
    assert " rounds in " in lines[-1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("Ti/99x",), 'model "Ti/99x" is not a name'),
        (("Ti/16", "--img-size", "100"), "image side 100 is not a multiple of patch 16; use 96"),
        (("Ti/16", "--img-size", "wide"), 'model.img_size "wide": it takes a whole number'),
        (("Ti/16", "--device", "cuda:99"), 'device "cuda:99" is not on this machine'),
        (("Ti/16", "--minutes", "0"), "minutes 0 must be above 0"),
        (("timm:resnet18",), "is another library's model"),
        (("Ti/16", "--precision", "fp8"), "invalid choice"),
    ],
)
def test_mistakes_are_one_line(vitrail: Typed, words: tuple[str, ...], says: str) -> None:
    said = vitrail("bench", *words)
    assert said.code == 2
    assert says in said.err
    assert said.err.count("\n") == 1
