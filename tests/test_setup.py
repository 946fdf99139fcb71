"""The repository installs, imports and ships as it says."""

from __future__ import annotations

import ast
import builtins
import dis
import importlib
import itertools
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [Requirement(r) for r in itertools.chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())]
FLOORS = {canonicalize_name(r.name): min(Version(s.version) for s in r.specifier) for r in REQUIREMENTS if r.specifier}


def pins(name: str) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines if line)
    return {canonicalize_name(package): version for package, version in (line.split("==") for line in lines if line)}


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_every_requirement_is_pinned_within_its_range(name: str) -> None:
    pinned = pins(name)
    for requirement in REQUIREMENTS:
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not pinned in {name}"
        assert requirement.specifier.contains(version), f"{requirement} does not allow {version} of {name}"


@pytest.mark.parametrize("requirement", PROJECT["dependencies"])
def test_the_oldest_run_tries_the_floors(requirement: str) -> None:
    name = canonicalize_name(Requirement(requirement).name)
    pinned, floor = Version(pins("constraints-oldest.txt")[name]), FLOORS[name]
    assert pinned.release[:2] == (*floor.release, 0)[:2]


def test_the_workflow_tries_the_pinned_torch() -> None:
    workflow = (ROOT / ".github/workflows/test.yml").read_text()
    for name in ("constraints.txt", "constraints-oldest.txt"):
        assert re.search(rf'torch: "{re.escape(pins(name)["torch"])}".*constraints: {re.escape(name)}}}', workflow)


def test_the_python_floor_is_said_once_and_the_same() -> None:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    floor = PROJECT["requires-python"].removeprefix(">=")
    assert tools["mypy"]["python_version"] == floor
    assert tools["ruff"]["target-version"] == "py" + floor.replace(".", "")
    assert f"sys.version_info < ({floor.replace('.', ', ')})" in (ROOT / "Makefile").read_text()


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports them by name alone: of two that are called alike, the second is not collected."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, group in itertools.groupby(names) if len(list(group)) > 1] == []


def test_imports_without_the_peers() -> None:
    """The package itself needs no peer: beside a CPU-only torch, torchvision would not even import."""
    script = """
import pkgutil, sys, importlib
for peer in ("torchvision", "timm", "transformers", "sklearn", "torchmetrics", "tensorboard", "beartype", "pyarrow"):
    sys.modules[peer] = None
import vitrail
for module in pkgutil.walk_packages(vitrail.__path__, "vitrail."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_public_names_can_be_called() -> None:
    """`vitrail.train` is a function and also the name of a room: once the room is imported, the name must still train."""
    script = """
import vitrail
import vitrail.train.run, vitrail.evaluate, vitrail.weights, vitrail.models, vitrail.deploy
for name in vitrail.__all__:
    for _ in range(2):
        assert callable(getattr(vitrail, name)), name
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_changelog_knows_the_version() -> None:
    assert f"\n## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_rooms_import_in_order() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: what is tracked is not known")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_place_on_somebody_s_machine() -> None:
    place = re.compile(rb"/(?:home|Users|root|work)/[\w.-]+")
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            assert not place.findall(data), path


def test_tracked_files_stay_small() -> None:
    for path in tracked():
        assert path.stat().st_size < 8_000_000, path


def test_the_sample_its_licence_and_the_recipes_are_in_the_wheel() -> None:
    """hatchling puts what is tracked under src/vitrail into the wheel, unless .gitignore names it."""
    names = {path.relative_to(ROOT).as_posix() for path in tracked()}
    assert any(re.fullmatch(r"src/vitrail/data/fashion_sample\.\w+", name) for name in names)
    assert "src/vitrail/data/fashion_sample.LICENSE" in names
    assert "src/vitrail/recipes/fashion-sample.yaml" in names
    assert "LICENSE" in names
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert hatch["targets"]["wheel"]["packages"] == ["src/vitrail"]
    assert "exclude" not in hatch["targets"]["wheel"]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("target", "installs"), [("package", "'.'"), ("venv", "'.[test,lint,export,serve,ray]'")])
def test_make_installs_what_the_target_needs(target: str, installs: str) -> None:
    shown = subprocess.run(["make", "-n", "--always-make", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    last = [line for line in shown.splitlines() if "-m pip install" in line][-1]
    assert f"-e {installs} " in last


MODULES = [".".join(path.relative_to(ROOT / "src").with_suffix("").parts) for path in sorted((ROOT / "src").rglob("*.py"))]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith(("__init__", "__main__"))])
def test_every_name_is_defined(name: str) -> None:
    """A forgotten import: shapes in annotations look like undefined names, so the checkers are not asked about any."""
    module = importlib.import_module(name)
    assert module.__file__ is not None
    code = compile(Path(module.__file__).read_text(encoding="utf-8"), module.__file__, "exec")
    bodies = [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    known = (
        vars(module).keys() | vars(builtins).keys() | {"__annotations__", "__class__", "__module__", "__qualname__", "__name__"}
    )
    used = {word for body in bodies for inner in walked(body) for word in operands(inner, "LOAD_GLOBAL", "LOAD_NAME")}
    of_classes = {word for body in bodies for inner in walked(body) for word in operands(inner, "STORE_NAME")}
    assert used - known - of_classes == set()
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    assert annotated(tree) - known - imported(tree) == set()


def annotated(tree: ast.Module) -> set[str]:
    """Names in annotations; the shapes of arrays are strings, and none of them."""
    found: set[str] = set()
    for node in ast.walk(tree):
        notes = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        found |= {name.id for note in notes if note is not None for name in ast.walk(note) if isinstance(name, ast.Name)}
    return found


def imported(tree: ast.Module) -> set[str]:
    """Names that imports bind, those for type checkers alone included."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {(alias.asname or alias.name).partition(".")[0] for node in imports for alias in node.names}


def walked(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from walked(inner)


def operands(code: CodeType, *names: str) -> Iterator[str]:
    """Operands of some of a code's instructions."""
    return (instruction.argval for instruction in dis.get_instructions(code) if instruction.opname in names)
