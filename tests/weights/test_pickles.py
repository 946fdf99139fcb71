"""torch's files: what training scripts leave in them is passed over, and nothing in them is executed."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import pathlib
import pickle
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vitrail.weights.formats import open_weights
from vitrail.weights.pickles import STAND_INS, PickledArray, PickledType, load_pickle
from vitrail.weights.unwrap import CheckpointError

WEIGHTS = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.zeros(2)}
FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "old"])


def save(tree: Any, path: Path, is_zip: bool = True) -> Path:
    torch.save(tree, path, _use_new_zipfile_serialization=is_zip)
    return path


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


class Command:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


@FORMATS
def test_what_scripts_leave_beside_the_weights(tmp_path: Path, is_zip: bool) -> None:
    history = collections.defaultdict(list)
    history["loss"].append(0.5)
    tree = {
        "args": argparse.Namespace(lr=1e-3, output_dir=pathlib.Path("out"), betas=(0.9, 0.99)),
        "more": types.SimpleNamespace(x=1),
        "windows": pathlib.PureWindowsPath("c:/x"),
        "best": np.float64(83.1),
        "best_epoch": np.int64(3),
        "is_best": np.bool_(True),
        "random": np.random.RandomState(0).get_state(),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "torch": torch.__version__,
        "history": history,
        "seen": {1, 2},
        "counts": collections.Counter("aab"),
        "model": collections.OrderedDict(WEIGHTS),
    }
    tensors, notes = open_weights(save(tree, tmp_path / "x.pth", is_zip))
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {k: v.tolist() for k, v in WEIGHTS.items()}
    assert notes == ()
    assert isinstance(load_pickle(tmp_path / "x.pth", is_zip=is_zip)["args"], STAND_INS["argparse.Namespace"])


@pytest.mark.parametrize("name", ["lightning.fabric.utilities.data.AttributeDict", "yacs.config.CfgNode"])
def test_dicts_of_libraries_that_may_be_missing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, attribute = name.rpartition(".")
    stand = types.ModuleType(module)
    kind = type(attribute, (dict,), {"__module__": module})
    setattr(stand, attribute, kind)
    with monkeypatch.context() as installed:
        for end in (i for i, c in enumerate(f"{module}.") if c == "."):
            installed.setitem(__import__("sys").modules, module[:end], stand)
        hyper = kind(lr=1, depth=2)
        hyper.frozen = True
        save({"hyper_parameters": hyper, "state_dict": WEIGHTS}, tmp_path / "x.ckpt")
    assert list(open_weights(tmp_path / "x.ckpt")[0]) == list(WEIGHTS)
    assert dict(load_pickle(tmp_path / "x.ckpt", is_zip=True)["hyper_parameters"]) == {"lr": 1, "depth": 2}


@FORMATS
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
        np.arange(6, dtype=">f8"),
        np.array([True, False]),
        np.zeros((0, 3), np.float32),
    ],
)
def test_weights_as_arrays(tmp_path: Path, array: np.ndarray, is_zip: bool) -> None:
    tensors, _ = open_weights(save({"model": {"a.b": array, "a.c": np.ones(1)}}, tmp_path / "x.pth", is_zip))
    np.testing.assert_array_equal(tensors["a.b"].numpy(), array)


@FORMATS
@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
def test_what_else_torch_can_hold_is_passed_on(tmp_path: Path, is_zip: bool) -> None:
    weights = {
        "a.int8": torch.arange(4, dtype=torch.int8),
        "a.bfloat16": torch.ones(4).bfloat16(),
        "a.quantized": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        "a.parameter": nn.Parameter(torch.ones(4)),
        "a.view": torch.arange(8.0)[::2],
        "a.empty": torch.zeros(0, 3),
        "a.number": torch.tensor(7),
    }
    if is_zip:  # the old format came before it
        weights["a.float8"] = torch.ones(4).to(torch.float8_e4m3fn)
    tensors, _ = open_weights(save(weights, tmp_path / "x.pth", is_zip))
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {k: v.dtype for k, v in weights.items()}
    assert tensors["a.view"].tolist() == [0, 2, 4, 6]
    assert not tensors["a.parameter"].requires_grad


# --------------------------------------------------------------------------------------------------------------------
# Nothing is executed


@FORMATS
def test_a_pickle_that_would_run_code(tmp_path: Path, is_zip: bool) -> None:
    marker = tmp_path / "marker"
    save({"model": WEIGHTS, "evil": Touch(marker)}, tmp_path / "touch.pth", is_zip)
    with pytest.raises(CheckpointError, match=r"needs pathlib\.Path\.touch|needs builtins\.getattr|needs getattr"):
        open_weights(tmp_path / "touch.pth")
    save({"model": WEIGHTS, "evil": Command(f"touch {marker}")}, tmp_path / "system.pth", is_zip)
    with pytest.raises(CheckpointError, match=r"needs posix\.system, which could only be had by running code"):
        open_weights(tmp_path / "system.pth")
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_bare_pickle_is_not_opened_at_all(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps(Touch(marker), protocol=protocol))
    with pytest.raises(CheckpointError, match=r"pickle that torch\.save did not write whole|is text, not weights"):
        open_weights(path)
    assert not marker.exists()


@FORMATS
@pytest.mark.filterwarnings("ignore:.*source code:UserWarning")
def test_a_class_is_named(tmp_path: Path, is_zip: bool) -> None:
    save({"model": WEIGHTS, "when": datetime.date(2020, 1, 2)}, tmp_path / "date.pth", is_zip)
    with pytest.raises(CheckpointError, match=r"date\.pth needs datetime\.date, .* save the model's state_dict\(\)") as error:
        open_weights(tmp_path / "date.pth")
    assert str(error.value).isprintable()
    save(nn.Linear(2, 2), tmp_path / "model.pth", is_zip)
    with pytest.raises(CheckpointError, match=r"needs torch\.nn\.modules\.linear\.Linear"):
        open_weights(tmp_path / "model.pth")


def test_numpy_s_own_dtype_is_never_built(tmp_path: Path) -> None:
    """A dtype whose flags lie would have numbers taken for addresses of objects."""
    assert "numpy.dtype" in STAND_INS
    evil = PickledType("O8")
    evil.__setstate__((3, "|", None, None, None, -1, -1, 0))
    array = PickledArray()
    array.__setstate__((1, (1,), evil, False, b"\x41" * 8))
    assert array.value is None
    for code in ("V8", "f4,O", "M8", "S4", 7, None):
        assert PickledType(code).to_numpy() is None
    save({"a.b": torch.ones(2), "array": np.array([object], dtype=object)[:0]}, tmp_path / "x.pth")
    assert type(load_pickle(tmp_path / "x.pth", is_zip=True)["array"]) is type(None)


def test_what_the_process_allows_stays_its_own(tmp_path: Path) -> None:
    """What other libraries let torch.load build is not built here, and is allowed again afterwards."""
    save({"model": WEIGHTS, "when": datetime.date(2020, 1, 2)}, tmp_path / "x.pth")
    with torch.serialization.safe_globals([datetime.date]):
        before = set(torch.serialization.get_safe_globals())
        with pytest.raises(CheckpointError, match=r"needs datetime\.date"):
            open_weights(tmp_path / "x.pth")
        assert set(torch.serialization.get_safe_globals()) == before
    save({"model": WEIGHTS}, tmp_path / "y.pth")
    open_weights(tmp_path / "y.pth")
    assert not set(torch.serialization.get_safe_globals()) & set(STAND_INS.values())


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "clip.pt"))
    with pytest.raises(CheckpointError, match=r"is a TorchScript archive, .* torch\.save\(torch\.jit\.load\(…\)\.state_dict"):
        open_weights(tmp_path / "clip.pt")


# --------------------------------------------------------------------------------------------------------------------


def test_the_zip_format_is_mapped_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    path = save(WEIGHTS, tmp_path / "x.pth")
    before = path.read_bytes()
    tensors, _ = open_weights(path)
    assert tensors["head.weight"].untyped_storage().data_ptr() == tensors["head.weight"].untyped_storage().data_ptr()
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) in maps.read_text()
    tensors["head.weight"].zero_()
    assert path.read_bytes() == before


def test_a_pickle_by_the_wrong_name(tmp_path: Path) -> None:
    path = save(WEIGHTS, tmp_path / "x.pth").rename(tmp_path / "x.safetensors")
    assert open_weights(path)[0]["head.weight"].tolist() == WEIGHTS["head.weight"].tolist()


def test_no_state_dict(tmp_path: Path) -> None:
    for tree, told in ((torch.ones(2), "holds a Tensor"), ([WEIGHTS], "holds a list"), ({"a": 1}, "holds no weights")):
        save(tree, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match=told):
            open_weights(tmp_path / "x.pth")


def test_a_view_that_repeats_one_number_without_end(tmp_path: Path) -> None:
    save({"a.b": torch.zeros(1).expand(1 << 40)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="claims to hold 4,398,046,511,104, more than 100 times as many"):
        open_weights(tmp_path / "x.pth")
    save({"a.b": torch.zeros(1).expand(1000)}, tmp_path / "x.pth")
    assert open_weights(tmp_path / "x.pth")[0].shapes == {"a.b": (1000,)}


@FORMATS
def test_a_tensor_larger_than_its_storage(tmp_path: Path, is_zip: bool) -> None:
    path = save({"a.b": torch.zeros(0x1235)}, tmp_path / "x.pth", is_zip)
    body = path.read_bytes()
    size, shape = b"M\x35\x12", b"K\x00M\x35\x12\x85"  # BININT2; offset 0, then the shape, a tuple of one
    assert body.count(shape) == 1
    path.write_bytes(body.replace(shape, b"K\x00M\xff\xff\x85"))
    with pytest.raises(CheckpointError, match=r"can't be read as .*torch"):
        open_weights(path)
    assert size in body


def test_other_protocols_are_refused_in_one_line(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "x.pth", pickle_protocol=4)
    with pytest.raises(CheckpointError, match="can't be read as torch") as error:
        open_weights(tmp_path / "x.pth")
    assert str(error.value).isprintable()
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer, pickle_protocol=4, _use_new_zipfile_serialization=False)
    (tmp_path / "y.pth").write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match="can't be read as old torch"):
        open_weights(tmp_path / "y.pth")
