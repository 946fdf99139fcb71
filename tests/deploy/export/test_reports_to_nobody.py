"""OpenVINO and NNCF report to a statistics server where nobody keeps them from it; Vitrail does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "module",
    ["deploy.export.to_openvino", "deploy.openvino_forms", pytest.param("deploy.export.int8_openvino", marks=pytest.mark.slow)],
)
def test_nothing_is_reported(module: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = f"import vitrail.{module}, openvino.tools.ovc as ovc; print(type(ovc.telemetry).__module__)"
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "NNCF_CI")}
    environment["HOME"] = str(tmp_path)  # where an identification of this machine would be kept
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "openvino.tools.ovc.telemetry_stub\n"
    assert not (tmp_path / "intel").exists()
