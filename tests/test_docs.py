"""What README and the guides say is so: their code runs, their links lead somewhere, their figures are measured.

A `python` block runs as it stands, a `sh` block line by line: `vitrail …` through the command line's own entry, `make …` is
looked up in the Makefile. Trainings take two steps of a tiny model. A named set that does not come with the package is parsed
and not trained on, and nothing is resumed, for the run that the pages name is finished. `<!-- not run: reason -->` above a
block leaves it out.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import vitrail
from vitrail import cli
from vitrail.settings.families import FAMILIES, family_of
from vitrail.settings.layers import recipes
from vitrail.train import run, sweep

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
BLOCK = re.compile(r"^(<!-- not run: [^\n]+ -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TINY = {
    "model": {"depth": 1, "embed_dim": 24, "num_heads": 2},
    "augment": {},
    "optim": {},
    "data": {"workers": 0},
    "train": {"steps": 2, "batch_size": 8, "eval_every": 0},
}
real_train, real_pretrain, real_request = run.train, run.pretrain, run.make_request


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for left_out, language, code in BLOCK.findall(page.read_text()) if language in languages and not left_out]


def pages_with(*languages: str) -> list[Any]:
    return [pytest.param(page, id=page.relative_to(ROOT).as_posix()) for page in PAGES if blocks(page, *languages)]


def slow_pages(*fast: str) -> list[Any]:
    """Return the pages with commands; those that are not `fast` are for the slow tests."""
    cases = pages_with("sh")
    return [case if case.id in fast else pytest.param(*case.values, id=case.id, marks=pytest.mark.slow) for case in cases]


def tiny_pretrain(path: str | None = None, **settings: Any) -> Any:
    """vitrail.pretrain, with the run made short and model and decoder small."""
    settings["mae"] = {**(settings.get("mae") or {}), "decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}
    settings["lejepa"] = {**(settings.get("lejepa") or {}), "projector_dims": [16]}
    return tiny_train(path, start=real_pretrain, **settings)


def tiny_train(path: str | None = None, *, start: Callable[..., Any] = real_train, **settings: Any) -> Any:
    """vitrail.train, with the run made short and the model small."""
    settings.pop("minutes", None)
    return start(path, **shortened(settings))


def tiny_request(path: str | None, overrides: dict[str, Any], **options: Any) -> Any:
    """The request of a run of a sweep, made short and small."""
    return real_request(path, shortened(overrides), **options)


def shortened(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a short run of a small model."""
    settings = dict(settings)
    for section, fields in TINY.items():
        given = settings.get(section) or {}
        given = {"name": given} if isinstance(given, str) else dict(given)
        if section == "model" and (given.get("weights") or family_of(str(given.get("name", "B/16"))) is not FAMILIES["vit"]):
            fields = {}  # these have a shape of their own
        lengths = ("minutes", "epochs", "steps")
        settings[section] = {k: v for k, v in given.items() if section != "train" or k not in lengths} | fields
    return settings


def home_made() -> dict[str, Tensor]:
    """State dict of a ViT that nobody published."""
    layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True)
    parts = {"cut": nn.Conv2d(3, 48, 8, 8), "encoder": nn.TransformerEncoder(layer, 2), "kinds": nn.Linear(48, 10)}
    return {"summary": torch.zeros(1, 1, 48), "places": torch.zeros(1, 17, 48), **nn.ModuleDict(parts).state_dict()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages name: PHOTOS, PHOTO.jpg, RUN (trained on them), ALBUM, LABELLED, SCENES, WEIGHTS.safetensors, MINE.pth."""
    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for kind, colour in (("cat", (200, 80, 40)), ("dog", (40, 80, 200))):
            (folder / "PHOTOS" / split / kind).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(colour, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "PHOTOS" / split / kind / f"{i}.jpg")
    shutil.copy(folder / "PHOTOS" / "test" / "cat" / "0.jpg", folder / "PHOTO.jpg")
    shutil.copytree(folder / "PHOTOS" / "train", folder / "LABELLED")
    lines = [f"{k}/{i}.jpg,{k};any,{side}" for k in ("cat", "dog") for i, side in enumerate(["train"] * 8 + ["val"] * 4)]
    (folder / "LABELLED" / "labels.csv").write_text("\n".join(["path,labels,split", *lines]) + "\n")
    for kind, more in (("field", 0), ("wood", 40)):
        (folder / "SCENES" / kind).mkdir(parents=True)
        for i in range(12):
            values = rng.integers(1160, 1260, (24, 24)).astype(np.uint16) + np.uint16(more)
            Image.fromarray(values).save(folder / "SCENES" / kind / f"{i}.tif")
    shutil.copytree(folder / "PHOTOS" / "val", folder / "ALBUM" / "2020")
    shutil.copy(folder / "PHOTO.jpg", folder / "ALBUM")
    weights = timm.create_model("vit_tiny_patch16_224", depth=1).state_dict()  # somebody else's file
    save_file(weights, folder / "WEIGHTS.safetensors")
    torch.save(home_made(), folder / "MINE.pth")
    tiny_train(str(folder / "PHOTOS"), out=str(folder / "RUN"), model={"name": "Ti/16", "img_size": 32})
    return folder


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `place` to work in, in which trainings are short."""
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vitrail, "train", train_what_is_there)  # the one that Python blocks call
    monkeypatch.setattr(vitrail, "pretrain", tiny_pretrain)
    monkeypatch.setattr(run, "pretrain", tiny_pretrain)
    monkeypatch.setattr(run, "train", train_what_is_there)  # and the command line
    monkeypatch.setattr(sweep, "make_request", tiny_request)
    monkeypatch.setattr(
        run, "resume", lambda folder, workers=None: Parsed() if Path(folder).is_dir() else pytest.fail(f"no {folder}")
    )
    return tmp_path


class Parsed:
    """What stands for a run that was only parsed."""

    folder, task = Path("RUN"), "classify"


def train_what_is_there(path: str | None = None, **settings: Any) -> Any:
    return tiny_train(path, **settings) if path in (None, "fashion-sample") or Path(path).is_dir() else Parsed()


@pytest.mark.parametrize("page", slow_pages("README.md", "docs/cli.md"))
def test_commands_run(page: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for code in blocks(page, "sh"):
        for line in code.splitlines():
            words = shlex.split(line, comments=True)
            match words[:1]:
                case ["vitrail"]:
                    assert cli.main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
                case ["make"]:
                    assert set(words[1:]) <= targets, line
                case ["git" | "." | "python" | "pip"] | []:
                    pass
                case _:
                    pytest.fail(f"nothing here knows how to try: {line}")


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs(page: Path, here: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), names)


def test_a_block_is_run_unless_it_says_why_not() -> None:
    slow = "<!-- not run: slow -->\n"
    assert BLOCK.findall(f"a\n{slow}```sh\n1\n```\n```python\n2\n```\n{slow}```sh\n3\n```\n") == [
        (slow, "sh", "1\n"),
        ("", "python", "2\n"),
        (slow, "sh", "3\n"),
    ]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert name.startswith("https://") or file.exists(), f"{page.name} -> {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, target


def test_the_map_is_the_house() -> None:
    """Every module stands in README's map, and what stands there is there."""
    text = (ROOT / "README.md").read_text().partition("<!-- map -->")[2].split("```")[1]
    found, folders = set(), [""]
    for line in text.splitlines():
        if match := re.match(r"^([│ ├└─]*)([\w./*-]+)", line):
            depth = len(match[1]) // 4
            folders[depth:] = [match[2] if match[2].endswith("/") else ""]
            path = "".join(folders[:depth]) + match[2]
            assert list(ROOT.glob(path.rstrip("/"))), f"{path} is in the map and nowhere else"
            found.add(path)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "src" / "vitrail").rglob("*.py")}
    assert not {name for name in modules if not name.endswith(("__init__.py", "__main__.py"))} - found


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)
    spec.loader.exec_module(module)
    return module


def test_figures_are_the_measured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(ROOT / "benchmarks" / "tables.py", monkeypatch).stale(write=False) == [], "make tables"


MACHINE = {"cpu": "CPU", "cores": 2, "torch": "2.14.1", "date": "2026-01-01", "commit": "abc"}
SEED = {"interval": [0.85, 0.89], "test_images": 2000, "train_s": 119.6, "images_per_s": 3000.4, "steps": 9, **MACHINE}


def test_tables_are_made_of_results(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = load(ROOT / "benchmarks" / "tables.py", monkeypatch)
    rows = {
        "sample": {
            "command": "vitrail train x",
            "median": 0.87,
            "seeds": {str(i): {"top1": 0.86 + i / 100, **SEED} for i in range(3)},
        }
    }
    table = tables.accuracy(rows)
    assert "| `vitrail train x` | **87.0 %** | 86.0 to 88.0, 3 seeds | 85.0 to 89.0 | 2,000 | 120 s | 3,000 |" in table
    assert table.count("CPU, 2 cores, torch 2.14.1, 2026-01-01, commit abc") == 1
    made = {"accuracy": table}
    page = "above\n<!-- table:accuracy -->\nold\n<!-- /table:accuracy -->\nbelow\n"
    filled = tables.fill(page, made)
    assert table in filled
    assert "old" not in filled
    assert filled.startswith("above\n")
    assert filled.endswith("below\n")
    assert tables.fill(filled, made) == filled
    with pytest.raises(KeyError):
        tables.fill("<!-- table:none -->\n<!-- /table:none -->", made)
    recipe = tables.fill_recipe("# Measured [sample]: old\n# Measured [other]: old\nmodel: B/16\n", rows)
    assert recipe.splitlines()[0].startswith("# Measured [sample]: 87.0 % of 2,000 test images (86.0 to 88.0, 3 seeds), 120 s")
    assert recipe.splitlines()[1:] == ["# Not measured here [other].", "model: B/16"]
    assert tables.fill_recipe(recipe, {"other": rows["sample"]}).startswith(
        "# Not measured here [sample].\n# Measured [other]: 87"
    )


def test_training_steps_are_compared_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole script on a toy, four processes of it, without compiling."""
    bench = load(ROOT / "benchmarks" / "train_step.py", monkeypatch)
    table = load(ROOT / "benchmarks" / "tables.py", monkeypatch)
    speeds = {"timm": [10.0, 20.0], "vitrail": [30.0, 40.0]}
    ratios = [x / y for x, y in zip(speeds["vitrail"], speeds["timm"], strict=True)]
    assert bench.summary(ratios) == {"median": 2.5, "min": 2.0, "max": 3.0}
    case = {
        "title": "toy",
        "images_per_s": dict.fromkeys(bench.CONTENDERS, bench.summary([10.0])),
        "ratios": {f"{a} / {b}": bench.summary([2.0]) for a, b in bench.RATIOS},
    }
    assert "| toy | vitrail / timm | **2.00** | 2.00 to 2.00 |" in table.train_step(
        {"machine": MACHINE, "cases": {"toy": case}}
    )


@pytest.mark.parametrize("contender", ["timm", "vitrail"])
def test_a_contender_s_step_trains(contender: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load(ROOT / "benchmarks" / "train_step.py", monkeypatch)
    case = bench.CASES["smoke"]
    build: Callable[..., Callable[[], None]] = bench.CONTENDERS[contender][0]
    step = build(case.vit, bench.synthetic(case), compiled=False, dtype=torch.bfloat16)
    step()
    step()


def test_forms_of_inference_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load(ROOT / "benchmarks" / "inference.py", monkeypatch)
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        logits = {name: bench.build(name, "Ti/16", images)(images) for name in bench.contenders() if name.endswith("fp32")}
    torch.testing.assert_close(logits["vitrail fp32"], logits[bench.BASE], atol=1e-5, rtol=0)
    assert bench.case("S/16,4") == ("S/16", 4)
    rows = {
        name: {"images_per_s": bench.summary([speed]), "ratio": bench.summary([speed / 2]), "difference": gap}
        for name, speed, gap in ((bench.BASE, 2.0, 0.0), ("vitrail packed", 5.0, 3e-6))
    }
    result = {"machine": MACHINE, "rounds": 7, "cases": {"as it is": {"B/16, batch 8": rows}}}
    table = load(ROOT / "benchmarks" / "tables.py", monkeypatch).inference(result)
    assert "| timm fp32 | 2.0 images/s | 0e+00 |" in table
    assert "| vitrail packed | **2.50** (2.50 to 2.50) | 3e-06 |" in table


def test_families_are_compared_with_the_same_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load(ROOT / "benchmarks" / "family_speed.py", monkeypatch)
    contenders = ["vitrail", *bench.MODELS["swin_t"].peers]
    assert bench.parameters("swin_t", 224) == dict.fromkeys(contenders, 28_288_354)
    for contender in contenders:
        assert bench.build(contender, "swin_t", "forward", 1, 224, None)().shape == (1, 1000)
    bench.build("vitrail", "swin_t", "training step", 1, 224, None)()
    assert bench.reason_against("swin_t") is None
    assert "is not a name such as" in bench.reason_against("none_such")


def test_ways_to_compile_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = load(ROOT / "benchmarks" / "compile.py", monkeypatch)
    case = bench.case_of(1, 0.1, 2)
    assert case.vit.drop_path_rate == 0.1
    losses = bench.step_of("not compiled", case)()
    assert losses["loss"].isfinite()
    row = {
        "title": case.title,
        "first_step_s": dict.fromkeys(bench.WAYS, bench.summary([12.0])),
        "step_s": dict.fromkeys(bench.WAYS, bench.summary([0.5])),
        "first_step_ratio": bench.summary([0.25]),
        "speed_ratio": bench.summary([1.0]),
    }
    table = load(ROOT / "benchmarks" / "tables.py", monkeypatch).compiling({"machine": MACHINE, "cases": {"deep": row}})
    assert "| 1 blocks, stochastic depth 0.1: first step, s | 12.0 | 12.0 | 12.0 | time **0.25** (0.25 to 0.25) |" in table
    assert "later steps, s | 0.500 | 0.500 | 0.500 | speed **1.00** (1.00 to 1.00) |" in table


def test_the_example_changes_the_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["change_the_model.py", "--steps", "3", "--batch-size", "8"])
    load(ROOT / "examples" / "change_the_model.py", monkeypatch).main()
    assert re.search(r"accuracy [\d.]+% \(95 % interval .*\) on 2000 test images", capsys.readouterr().out)


def test_the_example_adapts_a_checkpoint(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["adapt_a_checkpoint.py", "WEIGHTS.safetensors", "--steps", "2"])
    load(ROOT / "examples" / "adapt_a_checkpoint.py", monkeypatch).main()
    out = capsys.readouterr().out
    assert "adapted  1 tensor, 245,760 parameters (26.3%): patch_embed.proj.weight 3 -> 5 channels" in re.sub(
        r"\([\d.]+%\)", "(26.3%)", out
    )
    assert float(re.search(r"differ by (\S+) at most", out)[1]) <= 1e-5  # type: ignore[index]


def test_the_example_adds_a_family(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from vitrail.models.families import BUILDERS
    from vitrail.settings.families import FAMILIES

    monkeypatch.setattr(sys, "argv", ["add_a_family.py", "--steps", "3"])
    before = dict(FAMILIES), dict(BUILDERS)
    try:
        load(ROOT / "examples" / "add_a_family.py", monkeypatch).main()
        assert re.search(r"[\d.]+% of the test images; a black image is one class to \d+%", capsys.readouterr().out)
        assert vitrail.create_model("mixer_s", img_size=32, depth=1).config.depth == 1
        with pytest.raises(ValueError, match='did you mean "mixer_s"'):
            vitrail.create_model("mixers")
    finally:
        for table, rows in zip((FAMILIES, BUILDERS), before, strict=True):
            table.clear()
            table.update(rows)


def test_the_example_adds_a_task(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from vitrail.tasks import TASKS

    monkeypatch.setattr(sys, "argv", ["add_a_task.py", "--steps", "3"])
    before = dict(TASKS)
    try:
        load(ROOT / "examples" / "add_a_task.py", monkeypatch).main()
    finally:
        TASKS.clear()
        TASKS.update(before)
    assert re.search(r"knn_accuracy [\d.]+% .*; the model has 0 classes", capsys.readouterr().out)


def test_the_example_adds_a_method(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from vitrail.explain import METHODS

    image = next(path for path in sorted(here.rglob("*")) if path.suffix in (".jpg", ".png"))
    monkeypatch.setattr(sys, "argv", ["add_a_method.py", "RUN", str(image), "--out", "compared.png"])
    before = dict(METHODS)
    try:
        load(ROOT / "examples" / "add_a_method.py", monkeypatch).main()
    finally:
        METHODS.clear()
        METHODS.update(before)
    out = capsys.readouterr().out
    assert re.search(r"^occlusion: insertion [\d.]+, deletion [\d.]+$", out, flags=re.MULTILINE)
    assert "-> compared.png" in out


def test_the_changed_model_starts_as_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    example = load(ROOT / "examples" / "change_the_model.py", monkeypatch)
    model = vitrail.create_model("Ti/4", img_size=(8, 16), in_channels=1, num_classes=3, depth=2, embed_dim=12).eval()
    images = torch.randn(2, 1, 8, 16)
    with torch.no_grad():
        plain = model(images)
        torch.testing.assert_close(example.localise(model)(images), plain)


def test_a_recipe_says_what_it_is() -> None:
    for recipe in (ROOT / "src" / "vitrail" / "recipes").glob("*.yaml"):
        head = recipe.read_text().splitlines()[0]
        assert head.startswith("# "), recipe
        assert re.search("vitrail (pre)?train", head), f"{recipe}: the first line holds the command"


def test_a_recipe_says_what_it_reached_and_what_it_cost() -> None:
    """Measured here, or published and not measured here: no line is both, and a cost stands in every one."""
    for recipe in (ROOT / "src" / "vitrail" / "recipes").glob("*.yaml"):
        head = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
        measured = [line for line in head if line.startswith("# Measured [")]
        published = [line for line in head if line.startswith("# Published:")]
        unmeasured = [line for line in head if "Not measured here" in line]
        assert bool(measured) != bool(unmeasured), f"{recipe}: measured here, or not"
        assert not (measured and published), f"{recipe}: what was measured and what was published are not mixed"
        assert all(re.search(r" % of [\d,]+ test images .* s of training; .*commit", line) for line in measured), recipe
        assert all(re.search(r"% .*\(.*\d{4}.*\)", line) for line in published), f"{recipe}: a figure and its source"
        assert measured or any(re.match("# Cost", line) for line in head), f"{recipe}: what does it cost?"


def test_the_guide_lists_every_recipe() -> None:
    table = (ROOT / "docs" / "training.md").read_text().partition("| recipe | for |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)) == set(recipes())
