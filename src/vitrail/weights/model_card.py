"""README.md of a run on the Hub: what the model is, what it was trained on, its scores, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import Any

import yaml

from vitrail.settings.families import family_of_config
from vitrail.text import one_line
from vitrail.weights.provenance import read_provenance
from vitrail.weights.run_folder import CONFIG, read_run, write_atomically

SCORES = "evaluation.json"
PICTURE = "confusion.png"
LOWEST = 5
"""Classes of the lowest accuracy that the card names."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raise ValueError for one that can't be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)  # NaN is no JSON
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} can't be read ({type(error).__name__}: {error}); restore it from a copy, or make it anew"
        ) from error


def without_places(value: Any) -> Any:
    """Return a copy in which every absolute path is cut to its last part."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


def model_card(folder: str | Path, *, repo_id: str = "OWNER/NAME") -> str:
    """Return README.md for the Hub: the model of a finished run, and how to load it from `repo_id`.

    Raises ValueError for a folder that is no finished run.
    """
    folder = Path(folder)
    info, config = read_run(folder), read_json(folder / CONFIG)
    in_timm = "architecture" in config
    task = "image-classification" if info.config.num_classes else "image-feature-extraction"
    head: dict[str, Any] = {"library_name": "timm" if in_timm else "vitrail", "pipeline_tag": task}
    if licence := _licence(config):
        head["license"] = licence.lower()  # the Hub's identifiers: "apache-2.0", "cc-by-nc-4.0"
    name, what, shape, tags, _ = family_of_config(info.config).words(info.config)
    head["tags"] = [task, *tags, "vitrail", *(["timm"] if in_timm else [])]

    data = one_line(without_places(info.data))
    images, colours = info.preprocessing, {1: " (grey)", 3: " (RGB)"}
    rows = {
        "model": f"{name}, {shape}",
        "images": f"{images.img_size[0]}x{images.img_size[1]} pixels, {_count(images.in_channels, 'channel')}"
        + colours.get(images.in_channels, ""),
        "pixels": f"from 0 to 1, minus {_numbers(images.mean)}, over {_numbers(images.std)}",
        "classes": f"{info.config.num_classes:,}" + (f": {_first(info.classes)}" if info.classes else ""),
        **({"data": data} if data else {}),
    }
    if start := config["vitrail"].get("receipt"):
        rows["weights from"] = f"{start['origin']} · {without_places(start['file'])}, licence {licence or 'not stated'}"
    scores = read_json(folder / SCORES) if (folder / SCORES).exists() else None
    if scores is not None:
        rows |= _score(scores, folder / SCORES)
        head |= _index(scores, name=folder.resolve().name, task=task)
    rows |= _training(folder, sha256=info.sha256)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {name} for {data}" if data else f"# {name}",
        f"A {what}, {'trained' if data else 'converted'} with Vitrail.",
        "| | |\n| --- | --- |\n" + "\n".join(f"| {name} | {_cell(text)} |" for name, text in rows.items()),
    ]
    if (folder / PICTURE).exists():
        parts.append(f"![which class is taken for which]({PICTURE})")
    parts += _limits(scores or {})
    ours = f'model = vitrail.load("{repo_id}")  # model.preprocessing says what it takes, model.classes what it gives'
    parts += ["## Use", f"```python\nimport vitrail\n\n{ours}\n```"]
    if in_timm:
        parts += [
            "The same in timm:",
            f'```python\nimport timm\n\nmodel = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()\n```',
        ]
    return "\n\n".join(parts) + "\n"


def write_card(folder: str | Path, path: Path) -> Path:
    """Write the model card of a run atomically, and return its path. Raises ValueError as `model_card` does."""
    text = model_card(folder)
    with write_atomically(path) as draft:
        draft.write_text(text, encoding="utf-8")
    return path


def _licence(config: dict[str, Any]) -> str | None:
    """Return the licence of the weights in config.json, in Vitrail's part or in timm's."""
    licence = config["vitrail"].get("licence") or config.get("pretrained_cfg", {}).get("license")
    return str(licence) if licence else None


def _score(scores: Any, path: Path) -> dict[str, str]:
    """Return the name of each score, and its value with its interval. Raises ValueError for a file that holds none."""
    if "effective_rank" in scores:
        return _embedding_score(scores, path)
    key, what, on = ("mean_ap", "mean average precision", "on") if "mean_ap" in scores else ("top1", "accuracy", "of")
    try:
        low, high = scores[f"{key}_interval"]
        text = f"{scores[key]:.1%} {on} {_count(scores['count'], 'image')}, 95 % interval {low:.1%} to {high:.1%}"
        rows = {what: f"{text} ({without_places(scores['data'])}, {scores['split']})"}
        if scores.get("macro_f1") is not None:
            low, high = scores["macro_f1_interval"]
            rows["macro F1"] = f"{scores['macro_f1']:.1%}, 95 % interval {low:.1%} to {high:.1%}"
        return rows | _trust(scores.get("trust") or {})
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} can't be read ({reason}); `vitrail evaluate {path.parent}` makes it anew") from error


def _trust(trust: dict[str, Any]) -> dict[str, str]:
    """Return rows on probabilities: calibration, selective prediction, and the mark of unlike images."""
    if not trust:
        return {}
    rows = {"calibration error": f"{trust['error']:.1%} after temperature {trust['temperature']:.3g}"}
    for each in trust["selective"]:
        if each["count"]:
            words = f"the {each['share']:.1%} most confident answers, those of at least {each['threshold']:.1%}"
            rows[f"{each['target']:.0%} precision"] = words
    if trust["outliers"] is not None:
        rows["unlike training"] = f"{trust['outliers']['accuracy']:.1%} of the images are marked"
    return rows


def _index(scores: dict[str, Any], *, name: str, task: str) -> dict[str, Any]:
    """Return the model-index of the Hub, from which it draws the scores; empty for a model without classes."""
    known = (("accuracy", "top1", "accuracy"), ("f1", "macro_f1", "macro F1"), ("mean_average_precision", "mean_ap", "mAP"))
    values = [(kind, scores.get(key), words) for kind, key, words in known]
    metrics = [{"type": kind, "value": round(value, 4), "name": words} for kind, value, words in values if value is not None]
    if not metrics:
        return {}
    data = one_line(without_places(scores["data"]))
    slug = re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "data"
    dataset = {"name": data, "type": slug, "split": scores["split"]}
    results = [{"task": {"type": task}, "dataset": dataset, "metrics": metrics}]
    return {"metrics": [each["type"] for each in metrics], "model-index": [{"name": one_line(name), "results": results}]}


def _training(folder: Path, *, sha256: str) -> dict[str, str]:
    """Return rows on where and how long a run trained, with versions and the hash of its weights; empty for older runs."""
    provenance, rows = read_provenance(folder), {}
    if provenance.starts:
        start = provenance.starts[-1]
        length = f"{provenance.steps:,} steps in {provenance.seconds / 60:.1f} minutes on " if provenance.steps else ""
        rows["training"] = f"{length}{start.device}"
        commit = f", commit {start.commit}" if start.commit else ""
        rows["versions"] = f"vitrail {start.vitrail}{commit}, torch {start.torch}, Python {start.python}"
        rows["sha256"] = sha256
    return rows


def _limits(scores: dict[str, Any]) -> list[str]:
    """Return a part on the classes of the lowest accuracy, and what the figures hold for; empty without classes."""
    key = "accuracy" if "top1" in scores else "average_precision"
    scored = [each for each in scores.get("per_class") or () if each.get(key) is not None]
    if len(scored) < 2:
        return []
    lowest = sorted(scored, key=lambda each: each[key])[:LOWEST]
    rows = ((_cell(each["name"]), each[key], *each["interval"]) for each in lowest)
    words = "".join(f"\n- {name}: {value:.1%} ({low:.1%} to {high:.1%})" for name, value, low, high in rows)
    note = "All figures are of images like those that it was measured on; others may do worse."
    return ["## Limits", f"Lowest {key.replace('_', ' ')}, with 95 % intervals:\n{words}", note]


def _embedding_score(scores: dict[str, Any], path: Path) -> dict[str, str]:
    """Score of a model without a head."""
    try:
        headline, on = scores["headline"], f"{_count(scores['count'], 'image')}, 95 % interval"
        shape = ".1%" if headline["name"] == "knn_accuracy" else ".1f"
        value, low, high = (format(number, shape) for number in (headline["value"], *headline["interval"]))
        what = headline["name"].replace("_", " ")
        return {what: f"{value} of {on} {low} to {high} ({without_places(scores['data'])}, {scores['split']})"}
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} can't be read ({reason}); `vitrail evaluate {path.parent}` makes it anew") from error


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _first(names: tuple[str, ...], *, most: int = 20) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _cell(text: str) -> str:
    """Escape text for one cell of a Markdown table."""
    return one_line(text).replace("|", r"\|")
