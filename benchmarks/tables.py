"""Writes the figures of benchmarks/results into README, docs and recipes, so that no figure is typed by hand.

    python benchmarks/tables.py            rewrites what is out of date
    python benchmarks/tables.py --check    says what is, and exits with 1

In Markdown, what stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->` is replaced by a table of `tables`; in a
recipe, a comment line that begins with `# Measured [NAME]:` or `# Not measured here [NAME]` is replaced by the row of that
name in results/accuracy.json; those of runs without labels in results/pretraining_methods.json and pretraining_photos.json.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- table:([\w-]+) -->\n).*?(<!-- /table:\2 -->)", re.DOTALL)
_MEASURED = re.compile(r"^# (?:Measured|Not measured here) \[([\w.-]+)\].*$", re.MULTILINE)


def accuracy(rows: dict[str, Any]) -> str:
    """One line for each way to train: the median of its seeds, how far they spread, what it cost."""
    cells = []
    for row in rows.values():
        seeds, middle = list(row["seeds"].values()), _middle(row)
        spread = _spread(seeds)
        interval = " to ".join(_percent(side) for side in middle["interval"])
        cells.append(
            [
                f"`{row['command']}`",
                f"**{_percent(row['median'])} %**",
                spread,
                interval,
                f"{middle['test_images']:,}",
                f"{middle['train_s']:.0f} s",
                f"{middle['images_per_s']:,.0f}",
            ]
        )
    head = ["command", "test accuracy", "least to greatest", "95 % interval", "test images", "training", "images/s"]
    machines = _machines(_middle(row) for row in rows.values())
    return f"{_grid(head, cells)}\n\nThe median of the seeds, on all test images. {machines}\n"


def train_step(result: dict[str, Any]) -> str:
    """Images a second of every contender, and the ratios that matter."""
    contenders = ["timm", "timm compiled", "vitrail", "vitrail compiled"]
    ratios = ["vitrail / timm", "vitrail / timm compiled", "vitrail compiled / timm", "vitrail compiled / timm compiled"]
    speeds, times = [], []
    for case in result["cases"].values():
        speeds.append([case["title"], *(f"{case['images_per_s'][name]['median']:,.1f}" for name in contenders)])
        for ratio in ratios:
            value = case["ratios"][ratio]
            times.append([case["title"], ratio, f"**{value['median']:.2f}**", f"{value['min']:.2f} to {value['max']:.2f}"])
    return (
        f"{_grid(['training step, images/s', *contenders], speeds)}\n\n"
        f"{_grid(['training step', 'ratio', 'median of the rounds', 'least to greatest'], times)}\n\n"
        f"All under bf16 autocast with AdamW, in interleaved rounds. {_machines([result['machine']])}\n"
    )


def compiling(result: dict[str, Any]) -> str:
    """What compiling by block costs and brings, beside compiling the model whole and not at all."""
    ways = ("not compiled", "by block", "whole")
    cells = []
    for case in result["cases"].values():
        for title, figure, digits, share in (
            ("first step, s", "first_step_s", 1, "first_step_ratio"),
            ("later steps, s", "step_s", 3, "speed_ratio"),
        ):
            seconds = (f"{case[figure][way]['median']:.{digits}f}" for way in ways)
            value = case[share]
            spread = f"**{value['median']:.2f}** ({value['min']:.2f} to {value['max']:.2f})"
            cells.append([f"{case['title']}: {title}", *seconds, f"{'time' if digits == 1 else 'speed'} {spread}"])
    note = "The first step includes compiling, in a new process without a cache; under bf16 autocast with AdamW."
    return f"{_grid(['', *ways, 'by block / whole'], cells)}\n\n{note} {_machines([result['machine']])}\n"


def attention(result: dict[str, Any]) -> str:
    """How much faster plain attention is than the fused kernel, for each number of tokens."""
    cells = [
        [
            tokens,
            *(
                f"{row[name]['median']:.2f} ({row[name]['min']:.2f} to {row[name]['max']:.2f})"
                for name in ("forward", "training")
            ),
        ]
        for tokens, row in result["speedup"].items()
    ]
    head = ["tokens", "forward", "forward and backward"]
    return f"{_grid(head, cells)}\n\nTimes as fast as the fused kernel, in bf16. {_machines([result['machine']])}\n"


def load(result: dict[str, Any]) -> str:
    """Time and memory of loading one file, beside timm."""
    cells = []
    for title, figure, digits in (("seconds", "seconds", 2), ("greatest memory beyond the imports, MB", "peak_mb", 0)):
        ratio = result[f"{figure}_ratio"]
        ours, theirs = (f"{result[figure][name]['median']:,.{digits}f}" for name in ("vitrail", "timm"))
        cells.append([title, theirs, ours, f"**{ratio['median']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f})"])
    head = ["ViT-B/16 from .safetensors", "timm", "vitrail", "ratio"]
    adapted, converted = (result["peak_mb_of"][name] for name in ("adapted", "converted"))
    more = f"The model has {result['model_mb']} MB, and so has the mapped file. Adapted to 384 px, 5 channels and 7 classes "
    more += f"it takes {adapted:,.0f} MB; loaded and converted for transformers, {converted:,.0f} MB."
    note = f"{result['rounds']} loads each, in turn, each in its own process; ours includes the sha256."
    return f"{_grid(head, cells)}\n\n{note} {more} {_machines([result['machine']])}\n"


def compatibility(result: dict[str, Any]) -> str:
    """How many architectures load, from which evidence, and why the others do not."""
    kinds = ("same", "asked", "config", "refused", "differs", "crashed", "not run")
    ends = ["equal", "equal after an answer", "equal with the config", "refused with a reason", "differ", "crashed", "not run"]
    head = ["library", "architectures", *ends, "equal of all"]
    cells = [
        [
            library,
            f"{sum(counts.values())}",
            *(f"{counts.get(kind, 0)}" for kind in kinds),
            f"{sum(counts.get(kind, 0) for kind in kinds[:3]) / sum(counts.values()):.0%}",
        ]
        for library, counts in result["counts"].items()
    ]
    reasons: dict[str, list[str]] = {}
    for row in result["rows"]:
        if row["outcome"] == "refused":
            reasons.setdefault(row["reason"], []).append(f"`{row['name']}`")
    refused = [[reason, ", ".join(names)] for reason, names in reasons.items()]
    machine = result["machine"]
    return (
        f"{_grid(head, cells)}\n\n"
        f"Every architecture of timm {machine['timm']}'s modules of ViTs and their family, every image encoder of "
        f"transformers {machine['transformers']}, torchvision's ViTs and Swin Transformers, and every shape of open_clip's own "
        "towers, shrunk to two blocks, with random weights: from the bare state dict, else with the library's own config "
        f"beside it; outputs equal to 1e-5. `python benchmarks/compatibility.py`, {machine['date']}.\n\n"
        f"{_grid(['refused, for', 'architectures'], refused)}\n"
    )


def decode(result: dict[str, Any]) -> str:
    """Images a second from JPEG files on one core, and what a training from files keeps of its speed."""
    contenders = ["Pillow + torchvision", "torchvision", "vitrail"]
    head = ["JPEG -> batch of crops, images/s on one core", *contenders, *(f"ratio to {name}" for name in contenders[:2])]
    cells = [
        [
            f"{size}, {filter_}",
            *(f"{row['images_per_s'][name]['median']:,.0f}" for name in contenders),
            *(_ratio(row["ratios"][name]) for name in contenders[:2]),
        ]
        for size, filters in result.get("read", {}).items()
        for filter_, row in filters.items()
    ]
    runs = [
        [
            f"{size}, {row['threads']} threads, {row['loaders']} loaders, {row['device']}",
            *(f"{row['images_per_s'][name]['median']:,.1f}" for name in ("memory", "files")),
            _ratio(row["ratio"]),
        ]
        for size, rows in result.get("train", {}).items()
        for row in rows
    ]
    size_kb = ", ".join(f"{size} {count / 1e3:,.0f} kB" for size, count in result["bytes"].items())
    trained = [f"training {result['model']}, images/s", "from memory", "from files", "ratio"]
    return (
        f"{_grid(head, cells)}\n\n"
        + (f"{_grid(trained, runs)}\n\n" if runs else "")
        + f"Random resized crops to 224 px from files of quality 90 ({size_kb}), in batches of {result['batch_size']}, "
        f"in interleaved rounds. {_machines([result['machine']])}\n"
    )


def checkpoints(result: dict[str, Any]) -> str:
    """What a checkpoint costs, and how many damages to one were found."""
    cells = []
    for size, row in result["cost"].items():
        seconds = row["save_s"]
        spread = f"{seconds['median']:.2f} ({seconds['min']:.2f} to {seconds['max']:.2f})"
        cells.append([size, f"{row['parameters']:,}", f"{row['mb']:,}", spread, f"**{100 * row['share']:.2f} %**"])
    head = ["AdamW and running mean", "parameters", "MB", "s", f"of {result['interval_s'] / 60:g} minutes"]
    titles = {"flipped": "a bit flipped", "cut": "a file cut", "emptied": "a file emptied", "removed": "a file removed"}
    damage = result["damage"]
    found = [
        [titles[kind], *(f"{form[kind]['found']} of {form[kind]['done']}" for form in damage.values())]
        for kind in next(iter(damage.values()))
    ]
    note = f"{result['rounds']} saves each, until all is hashed and on the disk; training stands still meanwhile."
    return (
        f"{_grid(head, cells)}\n\n{note} {_machines([result['machine']])}\n\n"
        f"{_grid(['damage at random, found', *(f'checkpoint {form}' for form in damage)], found)}\n"
    )


def memory(result: dict[str, Any]) -> str:
    """What training was predicted to take, and what it took."""
    cells = []
    for row in result["cases"]:
        limit = "" if row["limit_gb"] is None else f"{row['limit_gb']:g} GB"
        figures = (f"{row['predicted_mb']:,}", f"{row['measured_mb']['median']:,}", f"**{row['ratio']:.2f}**", limit)
        checkpointing = "yes" if row["checkpointing"] else "no"
        cells.append([f"{row['model']}, batch {row['batch_size']}", row["precision"], checkpointing, *figures])
    head = ["training at 224 px", "precision", "checkpointing", "predicted, MB", "measured, MB", "ratio", "limit"]
    processes = "one process" if result["rounds"] == 1 else f"the median of {result['rounds']} processes"
    note = f"Greatest resident memory beyond the imports in {result['steps']} steps with AdamW, {processes} for each figure."
    return f"{_grid(head, cells)}\n\n{note} {_machines([result['machine']])}\n"


def photographs(result: dict[str, Any]) -> str:
    """A ViT and a CNN from random weights, in the same loop for the same time."""
    cells = []
    for name, row in result.items():
        interval = " to ".join(_percent(side) for side in row["interval"])
        steps, speed = f"{row['steps']:,}", f"{row['images_per_s']:,.0f}"
        cells.append([name, f"`{row['command']}`", f"**{_percent(row['top1'])} %**", interval, steps, speed])
    rows = list(result.values())
    note = f"{rows[0]['test_images']:,} test images, {rows[0]['minutes']:g} minutes of training each, one seed."
    head = ["", "command", "test accuracy", "95 % interval", "steps", "images/s"]
    return f"{_grid(head, cells)}\n\n{note} {_machines(rows)}\n"


def transfer(result: dict[str, Any]) -> str:
    """What can be learned from few images of new classes, each way."""
    titles = {"knn": "k-NN", "probe": "linear probe", "fine-tuned": "fine-tuning", "scratch": "random weights"}
    cells = [[shots, *(_interval(ways[way]) for way in titles)] for shots, ways in result["rows"].items()]
    draws = len(result["cells"]) // len(result["rows"])
    return (
        f"{_grid(['images a class', *titles.values()], cells)}\n\n"
        f"Percent of {result['test_images']:,} test images of five classes, by weights that know five others "
        f"({_percent(result['pretraining_accuracy'])} % of those): mean of {draws} draws and its 95 % interval. The rules "
        f"were made on other draws of training images, scored on these test images. The ladder's advice agreed with what won, "
        f"fine-tuning or the probe, in {result['advice_right']:.0%} of {len(result['cells'])} cells. "
        f"{_machines([result['machine']])}\n"
    )


def pretraining(result: dict[str, Any]) -> str:
    """Frozen features before and after pre-training."""
    cells = []
    for title, row in result["rows"].items():
        scores = (row["frozen"][way] for way in ("knn", "probe"))
        shown = (f"**{_percent(one['accuracy'])}** ({' to '.join(_percent(end) for end in one['interval'])})" for one in scores)
        cells.append([title, *shown])
    trained = result["rows"]["pre-trained"]
    return (
        f"{_grid(['frozen features', 'k-NN', 'linear probe'], cells)}\n\n"
        f"Percent of {trained['test_images']:,} test images, one seed, with the 95 % interval. `{result['command']}`: "
        f"{trained['steps']:,} steps in {trained['train_s']:.0f} s. {_machines([result['machine']])}\n"
    )


def distillation(result: dict[str, Any]) -> str:
    """The same minutes with a teacher and without."""
    cells = [
        [f"seed {seed}", *(f"{_percent(result[way][seed]['top1'])} %" for way in ("alone", "taught"))]
        for seed in result["alone"]
    ]
    gains = [result["taught"][seed]["top1"] - row["top1"] for seed, row in result["alone"].items()]
    return (
        f"{_grid(['Fashion-MNIST', 'alone', 'with the teacher'], cells)}\n\n"
        f"{result['minutes']:g} minutes each, what the teacher took in them. The teacher: "
        f"`{result['teacher_options']}`, {_percent(result['teacher']['top1'])} % after "
        f"{result['teacher']['minutes']:g} minutes; "
        f"`{result['options']}`. Gain: {100 * min(gains):+.1f} to {100 * max(gains):+.1f} points. "
        f"{_machines([next(iter(result['taught'].values()))])}\n"
    )


def distributed(result: dict[str, Any]) -> str:
    """Two processes beside one, and a model that only two can train."""
    speeds = [
        [title, f"{row['one']:,.1f}", f"{row['two']:,.1f}", _ratio(row["ratio"])]
        for title, row in result.get("speed", {}).items()
    ]
    head = ["training, images/s", "one process, two threads", "two processes (DDP), a thread each", "ratio"]
    least = [f"{title}: {size} GB" for title, size in result["memory"]["least_gb"].items()]
    memory = result["memory"]
    alone = " ".join(memory["one"]["said"]) if memory["one"]["code"] else "it trained"
    parts = "trained it" if memory["two"]["saved"] else f"ended with code {memory['two']['code']}"
    return (
        f"{_grid(head, speeds)}\n\n"
        f"A ViT with 12 blocks of width 1024 and AdamW, least memory for data in each process: {'; '.join(least)}. With "
        f"{memory['limit_gb']} GB for each, one process: `{alone}`; two with `train.shard` {parts}. "
        f"{_machines(result['machines'].values())}\n"
    )


def faults(result: dict[str, Any]) -> str:
    """What was done to a training, how it ended, and what the run became that went on from there."""
    cells = []
    for row in (row for rows in result["faults"].values() for row in rows):
        tries = f"**{row['held']} of {row['tries']}**" if row["tries"] else "none"
        codes = ", ".join(f"{code}" for code in row["codes"])
        ends = ", ".join(f"{count} {end}" for end, count in row["ends"].items())
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        said = f"`{row['said'].replace('`', chr(39))}`" if row["said"] and row["tries"] else row["said"]
        cells.append([row["fault"], tries, codes, said.replace("|", "/"), ends, seconds])
    head = ["fault", "tries that held", "exit code", "what it says", "the run that went on", "s at most"]
    return f"{_grid(head, cells)}\n\n{_machines(result['machines'].values())}\n"


def explain_scores(result: dict[str, Any]) -> str:
    """Insertion and deletion of every method, on two models."""
    cells, said = [], []
    for name, title in (("demo", "the demo's run"), ("clothing", "clothing photographs")):
        one = result[name]
        for row in one["rows"]:
            shuffled, correlation = row["shuffled_gap"], row["rank_correlation"]
            cells.append(
                [
                    f"{title}, {row['method'].replace('_', ' ')}",
                    f"{row['insertion']:.3f}",
                    f"{row['deletion']:.3f}",
                    f"**{row['gap']:.3f}**" if row["method"] == one["best"] else f"{row['gap']:.3f}",
                    "" if shuffled is None else f"{shuffled:.3f}",
                    "" if correlation is None else f"{correlation:.2f}",
                ]
            )
        said.append(f"{title[0].upper()}{title[1:]} ({_percent(one['top1'])} % of its test images right): {one['verdict']}")
    head = ["model, method", "insertion", "deletion", "gap", "gap with shuffled weights", "rank correlation with those"]
    return f"{_grid(head, cells)}\n\n{' '.join(said)} {_machines([result['machine']])}\n"


def pointing(result: dict[str, Any]) -> str:
    """Hits of every method on images whose class is a small square's colour."""
    names = [key for key in next(iter(result["rows"].values())) if key not in ("accuracy", "chance")]
    cells = [
        [title, *(" ".join((_percent(row[name]["median"]), _range(row[name]))) for name in names)]
        for title, row in result["rows"].items()
    ]
    chance = max(row["chance"]["median"] for row in result["rows"].values())
    least = min(row["accuracy"]["min"] for row in result["rows"].values())
    return (
        f"{_grid(['the head reads', *(name.replace('_', ' ') for name in names)], cells)}\n\n"
        f"Percent of {result['images']} images, median of three trainings and their spread; chance is {_percent(chance)} %. "
        f"The models name at least {_percent(least)} % of the squares. {_machines([result['machine']])}\n"
    )


def explaining(result: dict[str, Any]) -> str:
    """Time and memory of the class token's rows, and memory of every method on a long image."""
    cells = [
        [f"{batch} image{'s' if batch != '1' else ''}", *(_ratio(value) for value in row.values())]
        for batch, row in result["time"].items()
    ]
    names = list(next(iter(result["time"].values())))
    memory, long = result["memory"], {name: mb for name, mb in result["long_mb"].items() if name != "forward"}
    each = ", ".join(f"{name.replace('_', ' ')} {mb:,}" for name, mb in long.items())
    return (
        f"{_grid(['ViT-B/16, 224 px, fp32', *names], cells)}\n\n"
        f"Time for the class token's attention of layer 6, or of the last, over a plain forward pass of the same library, in "
        f"the same round: median of {result['rounds']} and their spread. Ours stops where the layer asked for begins; "
        f"transformers gives all layers, with eager attention; timm's pass goes on with fused attention off. Memory of ours, "
        f"for the last layer: {memory['rows_mb']} MB for 8 "
        f"images, {memory['ratio']:.2f} of a forward pass. One image of 1,024 px (4,096 patches), MB beyond the model: {each}; "
        f"a forward pass {result['long_mb']['forward']:,}. {_machines([result['machine']])}\n"
    )


def inference(result: dict[str, Any]) -> str:
    """Speed of every form of a model relative to timm's eager fp32, and the largest difference of its logits."""
    grids = []
    for title, cases in result["cases"].items():
        names = list(next(iter(cases.values())))
        head = [f"instructions: {title}", *cases, "logits differ by at most"]
        cells = []
        for name in names:
            rows = [case[name] for case in cases.values()]
            speeds = [
                f"{row['images_per_s']['median']:,.1f} images/s" if name == names[0] else _ratio(row["ratio"]) for row in rows
            ]
            cells.append([name, *speeds, f"{max(row['difference'] for row in rows):.0e}"])
        grids.append(_grid(head, cells))
    note = "Times as fast as the first line, with the same weights: median of the interleaved rounds, least to greatest."
    return "\n\n".join([*grids, f"{note} {_machines([result['machine']])}\n"])


def export_speeds(result: dict[str, Any]) -> str:
    """Speed of exports relative to timm's eager fp32 and to the fastest peer of the same number type."""
    cases = result["cases"]
    names = list(next(iter(cases.values()))["contenders"])
    cells = []
    for name in names:
        rows = [case["contenders"][name] for case in cases.values()]
        speeds = [
            f"{row['images_per_s']['median']:,.1f} images/s" if name == names[0] else _ratio(row["ratio"]) for row in rows
        ]
        cells.append([name, *speeds, f"{max(row['difference'] for row in rows):.0e}"])
    against = []
    for kind in next(iter(cases.values()))["to_best_peer"]:
        rows = [case["to_best_peer"][kind] for case in cases.values()]
        shown = "int8, merged" if kind == "merged" else kind
        against.append([f"vitrail {shown}", *(f"{_ratio(row['ratio'])} of {row['peer']}" for row in rows)])
    grids = [
        _grid(["images/s", *cases, "logits differ by at most"], cells),
        _grid(["times as fast as the best peer of its type", *cases], against),
    ]
    facts = result["machine"]
    note = f"Random weights: speed only, not accuracy. Merged: {result['merge']} patches in each block. "
    note += f"Times as fast as the first line, median of {result['rounds']} interleaved rounds, least to greatest. "
    note += f"Instructions: {facts['instructions']}; onnxruntime {facts['onnxruntime']}, openvino {facts['openvino']}, "
    note += f"nncf {facts['nncf']}. {_machines([facts])}"
    return "\n\n".join([*grids, f"{note}\n"])


def export_accuracy(result: dict[str, Any]) -> str:
    """What int8 and token merging cost a trained run."""
    if "accuracy" not in result:
        return "Not measured yet: `python benchmarks/export_speed.py --run runs/demo`.\n"
    measured, cells = result["accuracy"], []
    for name, row in measured["rows"].items():
        low, high = (f"{100 * side:+.2f}" for side in row["paired"]["interval"])
        stays = ", ".join(f"`{layer}`" for layer in row["in_float"]) or "none" if "in_float" in row else ""
        sides = [f"{_percent(row[side]['accuracy'])} %" for side in ("before", "after")]
        cells.append([name, *sides, f"**{-row['loss_points']:+.2f}**", f"{low} to {high}", stays])
    head = ["", "top-1 before", "after", "points", "95 % interval", "layers in float"]
    first = next(iter(measured["rows"].values()))
    note = f"{measured['model']}, on {first['paired']['images']:,} images of {first['data']}. {_machines([result['machine']])}"
    return f"{_grid(head, cells)}\n\n{note}\n"


def laptop(result: dict[str, Any]) -> str:
    """What a machine without bf16 gets, beside this machine's own instructions."""
    parts, sets = result["parts"], ("as it is", "AVX2 alone")
    rows: dict[str, list[str]] = {}
    for title in parts.get("step", {}).get(sets[0], {}):
        rows[f"training step in fp32, {title}, / timm eager"] = [_ratio(parts["step"][name][title]) for name in sets]
    if "optimizer" in parts:
        rows["share of the optimizer in a step of `make demo`"] = [
            f"{100 * parts['optimizer'][n]['share']:.1f} %" for n in sets
        ]
    for part, title in (("demo", "`make demo`, test accuracy"), ("photographs", "photographs, 3 minutes, validation accuracy")):
        for name, scores in _by_way(parts.get(part, {})).items():
            rows[f"{title}{name}"] = [
                f"{_percent(scores[n]['accuracy'])} % ({scores[n]['steps']:,} steps)" if n in scores else "-" for n in sets
            ]
    note = "The variables are ATEN_CPU_CAPABILITY=avx2 and ONEDNN_MAX_CPU_ISA=AVX2; MKL is not bound by them. One seed each."
    grid = _grid(["instructions", *sets], [[name, *cells] for name, cells in rows.items()])
    lines = [
        f"- {title}, {n}: {score['line']}."
        for title, by_way in (("demo", parts.get("demo", {})), ("photographs", parts.get("photographs", {})))
        for n, score in ((n, row.get("fits", row)) for n, row in by_way.items())
        if score.get("line")
    ]
    return "\n\n".join([grid, *(["\n".join(lines)] if lines else []), f"{note} {_machines([result['machine']])}\n"])


def fp8(result: dict[str, Any]) -> str:
    """Mean losses over the parts of a run, and the accuracy at its end, by number format and seed."""
    runs = [(name, seed, run) for name, seeds in result["runs"].items() for seed, run in enumerate(seeds)]
    parts = len(runs[0][2]["loss"])
    rows = [
        [
            f"{part * result['steps'] // parts} to {(part + 1) * result['steps'] // parts}",
            *(f"{run['loss'][part]:.3f}" for *_, run in runs),
        ]
        for part in range(parts)
    ]
    rows.append(["test accuracy", *(f"{_percent(run['test_accuracy'])} %" for *_, run in runs)])
    grid = _grid(["loss of the steps", *(f"{name}, seed {seed}" for name, seed, _ in runs)], rows)
    note = "The embedded sample with its recipe. A CPU emulates fp8: it rounds as a GPU does, and takes longer than bf16."
    return f"{grid}\n\n{note} {_machines([result['machine']])}\n"


def _by_way(sets: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Scores by the way that a model was chosen, then by instructions."""
    ways: dict[str, dict[str, Any]] = {}
    for name, row in sets.items():
        for way, score in row.items() if "fits" in row else [("", row)]:
            title = {"fits": "", "refused": ", `--train.smaller false`"}.get(way, way)
            ways.setdefault(title, {})[name] = score
    return ways


def check_near(result: dict[str, Any]) -> str:
    """Recall of each way to make a near duplicate, by contender, and how many other images are named."""
    if "near" not in result:
        return "Not measured yet: `python benchmarks/check.py PHOTOS --part near`.\n"
    sets = {title: row for title, row in result["near"].items() if title != "machine"}
    columns = [(title, name) for title, row in sets.items() for name in row if name not in ("images", "planted")]
    rows = {
        way: [f"{_percent(sets[t][n]['recall'][way])} %" for t, n in columns]
        for way in sets[columns[0][0]][columns[0][1]]["recall"]
    }
    cells = [[f"found: {way}", *values] for way, values in rows.items()]
    cells += [["**found, all**", *(f"**{_percent(sets[t][n]['recall of all'])} %**" for t, n in columns)]]
    cells += [["other images named", *(f"{100 * sets[t][n]['others named']:.2f} %" for t, n in columns)]]
    cells += [["seconds", *(f"{sets[t][n]['seconds']:,.0f}" for t, n in columns)]]
    counts = "; ".join(f"{title}: {row['planted']:,} of {row['images']:,} images" for title, row in sets.items())
    note = "The other images that are named include real near duplicates of both sets."
    head = ["near duplicates", *(f"{title}: {name}" for title, name in columns)]
    return f"{_grid(head, cells)}\n\nOne copy each of {counts}. {note} {_machines([result['near']['machine']])}\n"


def check_faults(result: dict[str, Any]) -> str:
    """Planted faults that are found, and other images that are named, by contender."""
    if "faults" not in result:
        return "Not measured yet: `python benchmarks/check.py PHOTOS --part faults`.\n"
    row = result["faults"]
    names = [
        name
        for name in row
        if name not in ("images", "planted", "machine") and any(row[name][kind]["found"] for kind in row["planted"])
    ]
    cells = [
        [kind, f"{count}", *(f"{row[name][kind]['found']} ({row[name][kind]['others']} others)" for name in names)]
        for kind, count in row["planted"].items()
    ]
    cells += [["seconds", "", *(f"{row[name]['seconds']:,.0f}" for name in names)]]
    errors = "".join(f"{name} {row[name]['error']}. " for name in names if row[name]["error"])
    note = f"Among {row['images']:,} photographs. {errors}{_machines([row['machine']])}"
    return f"{_grid(['faults', 'planted', *names], cells)}\n\n{note}\n"


def check_speed(result: dict[str, Any]) -> str:
    """Images a second of exact findings beside a loop with Pillow."""
    if "speed" not in result:
        return "Not measured yet: `python benchmarks/check.py PHOTOS --part speed`.\n"
    sets = {title: row for title, row in result["speed"].items() if title != "machine"}
    cells = [
        [
            f"{title}, {row['images']:,} JPEGs",
            *(f"{row['images_per_s'][name]['median']:,.0f}" for name in ("Pillow", "exact")),
            _ratio(row["ratio"]),
        ]
        for title, row in sets.items()
    ]
    note = "In interleaved rounds, as many threads as cores, beside other work: the ratios count."
    head = ["images/s", "decoding with Pillow", "`--exact`", "ratio"]
    return f"{_grid(head, cells)}\n\n{note} {_machines([result['speed']['machine']])}\n"


def check_labels(result: dict[str, Any]) -> str:
    """Precision of label suspects where labels were flipped."""
    if "labels" not in result:
        return "Not measured yet: `python benchmarks/check.py PHOTOS --part labels`.\n"
    row = result["labels"]
    cells = [
        ["precision of the strongest 5 %", f"{_percent(row['precision of the top 5 %'])} %"],
        [f"precision of the {row['named']:,} that are named", f"{_percent(row['precision of the named'])} %"],
        ["share of the flipped labels that are named", f"{_percent(row['recall of the named'])} %"],
    ]
    what = f"{row['flipped']:,} of {row['images']:,} labels of {row['set']} flipped"
    what += f"; features of a run of {row['minutes']:g} minutes ({row['steps']:,} steps) on them"
    return f"{_grid(['label suspects', 'value'], cells)}\n\n{what}. {_machines([row['machine']])}\n"


def reports(result: dict[str, Any]) -> str:
    """Time of an evaluation with and without its report, by the clock and of the processor."""
    cells = []
    for name, words in (("with report", "`vitrail evaluate`, with its report"), ("without", "the same with `--no-report`")):
        row = result["commands"][name]
        by_clock, of_cpu = row["seconds"], row["cpu_seconds"]
        clock = f"{by_clock['median']:.0f} s ({by_clock['min']:.0f} to {by_clock['max']:.0f})"
        cells.append([words, f"**{of_cpu['median']:.1f} s** ({of_cpu['min']:.1f} to {of_cpu['max']:.1f})", clock])
    facts, low_high = result["machine"], result["machine"]["load_average"]
    images, size = f"{result['images']:,} images of {result['data']}", f"{result['parameters'] / 1e6:.2f} M parameters"
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"
    note = f"{images}, {size}, {threads}; the page has {result['page_bytes'] / 1e3:.0f} kB."
    if max(low_high) > facts["cores"]:
        load = f"load average {low_high[0]} to {low_high[1]} on {facts['cores']} cores"
        note += f" The machine had other work ({load}), so CPU time tells more than the clock."
    return f"{_grid(['from start to end', 'CPU time', 'by the clock'], cells)}\n\n{note} {_machines([facts])}\n"


def pages(result: dict[str, Any]) -> str:
    """Message of an image's attention, and time from a hover to the picture."""
    rows = []
    for name, row in result["models"].items():
        grid, zipped = "×".join(map(str, row["grid"])), f"{row['gzip_mb']:.2f} MB gzipped"
        rows.append(
            [
                name,
                f"{row['layers']} × {row['heads']}, {grid}",
                f"{row['message_mb']:.2f} MB, {zipped}",
                f"{row['compute_s']:.2f} s",
                f"{row['load_s']:.1f} s",
                f"{row['event_ms']:.1f} ms",
                f"**{row['picture_ms']:.0f} ms**",
                f"{row['picture_p95_ms']:.0f} ms",
            ]
        )
    head = [
        "model",
        "layers × heads, patches",
        "message",
        "computed in",
        "page ready in",
        "picture drawn in",
        "frame after it",
        "95 % of them",
    ]
    words = (
        "From a pointer event to the picture, and to the second frame after it, when it and all small panes are on the screen; "
        f"two frames are 33 ms at 60 Hz. Medians, in Chromium {result['browser']}. {_machines([result['machine']])}"
    )
    return f"{_grid(head, rows)}\n\n{words}\n"


def family_speeds(result: dict[str, Any]) -> str:
    """Forward pass and training step of families beside the same architecture of other libraries."""
    cells = []
    for name, row in result["models"].items():
        for work in ("forward", "training step"):
            speeds = row[work]["images_per_s"]
            each = [
                f"{speeds[library]['median']:.1f}" if library in speeds else ""
                for library in ("vitrail", "timm", "transformers")
            ]
            cells.append(
                [f"`{name}`, {work}, batch {row[work]['batch_size']}", *each, _ratio(row[work]["ratio_to_the_faster"])]
            )
    head = ["images/s", "Vitrail", "timm", "transformers", "ratio to the faster"]
    facts = result["machine"]
    note = f"{facts['precision']}, {facts['threads']} threads, {result['rounds']} interleaved rounds; ratios within a round."
    return f"{_grid(head, cells)}\n\n{note} {_machines([facts])}\n"


def pretraining_steps(result: dict[str, Any]) -> str:
    """Cost of steps without labels, in supervised steps of the same backbone."""
    cells = []
    for name, row in result["models"].items():
        for title, ratio in row["ratio"].items():
            if title != "supervised":
                beside = f", decoder of {row['decoder']}" if title.startswith("mae") else ""
                cells.append([f"{name}, {row['batch']} images of {row['side']} px", f"{title}{beside}", _ratio(ratio)])
    head = ["model", "step", "supervised steps"]
    note = f"{result['precision']}, {result['rounds']} interleaved rounds, beside other work; without reading and augmentation."
    return f"{_grid(head, cells)}\n\n{note} {_machines([result['machine']])}\n"


def guards(result: dict[str, Any]) -> str:
    """Planted collapses that are caught, and healthy runs that are stopped."""
    cells = [
        [name, str(row["seeds"]), str(row["stopped"]), str(row["within_fifth"]), ", ".join(row["causes"])]
        for name, row in result.items()
    ]
    head = ["runs", "seeds", "stopped", "in the first 20 %", "rule"]
    return f"{_grid(head, cells)}\n\n`python benchmarks/pretraining_guard.py`. {_machines(list(result.values()))}\n"


def pretraining_methods(result: dict[str, Any]) -> str:
    """Frozen features of each method, beside random weights of its backbone and pixels."""
    cells = []
    for name, seeds in {**result["frozen"], "pixels": {"0": result["pixels"]}}.items():
        row = [name]
        for way in ("knn", "probe"):
            values = sorted(one[way]["accuracy"] for one in seeds.values() if way in one)
            spread = f" ({_percent(values[0])} to {_percent(values[-1])})" if len(values) > 1 else ""
            row.append(f"**{_percent(statistics.median_low(values))}**{spread}" if values else "")
        steps = max(one.get("steps", 0) for one in seeds.values())
        cells.append([*row, str(len(seeds)), f"{steps:,}" if steps else ""])
    every = [one for seeds in result["frozen"].values() for one in seeds.values()]
    images = "Percent of the 10,000 test images of Fashion-MNIST by all 60,000 labels, median of the seeds and their range"
    note = f"{result['minutes']:g} minutes each, as many steps as all cores make in that time with nothing beside"
    return f"{_grid(['method', 'k-NN', 'linear probe', 'seeds', 'steps'], cells)}\n\n{images}. {note}. {_machines(every)}\n"


def few_labels(result: dict[str, Any]) -> str:
    """Fine-tuning with few labels, from a method's runs and from scratch."""
    if "few labels" not in result:
        return "Not measured yet: `python benchmarks/pretraining_methods.py --tune lejepa`.\n"
    cells, every = [], []
    for labels, starts in result["few labels"].items():
        for start, seeds in starts.items():
            every += seeds.values()
            middle = sorted(seeds.values(), key=lambda one: one["top1"])[(len(seeds) - 1) // 2]
            interval = " to ".join(_percent(end) for end in middle["interval"])
            cells.append([labels, start, f"**{_percent(middle['top1'])}** ({interval})", str(len(seeds))])
    head = ["labels a class", "start", "test accuracy, 95 % interval", "seeds"]
    return f"{_grid(head, cells)}\n\nPercent of 10,000 test images, the median seed. {_machines(every)}\n"


def going_on(result: dict[str, Any]) -> str:
    """What becomes of a supervised model that is pre-trained on."""
    cells = []
    for name, row in result["methods"].items():
        worst = 100 * (row["lowest"] - row["start"])
        shown = [_percent(row[key]) for key in ("start", "lowest", "last")]
        cells.append([name, *shown, f"{worst:+.1f}", row["stopped"] or ""])
    head = ["method", "start", "lowest", "end", "worst change", "stopped"]
    images = max(row["images"] for row in result["methods"].values())
    note = f"k-NN accuracy of {images:,} validation images in percent; {result['minutes']:g} minutes each"
    note += f", {result['together']} at a time on these cores" if result["together"] > 1 else ""
    return f"{_grid(head, cells)}\n\n{note}. {_machines(list(result['methods'].values()))}\n"


def pretrained_photographs(result: dict[str, Any]) -> str:
    """Fine-tuning after a time without labels, beside training from scratch for the same time in all."""
    cells, every = [], []
    tuned, whole = result["tune_minutes"], result["minutes"] + result["tune_minutes"]
    for parts in (value for value in result.values() if isinstance(value, dict)):
        for method, row in parts["trained"].items():
            frozen = parts["frozen"].get(method, {})
            every += [row, *([frozen] if frozen else [])]
            spent = f"{whole - tuned:g} without labels, {tuned:g} with" if frozen else f"{whole:g} with labels"
            ways = [f"{_percent(frozen[way]['accuracy'])}" if frozen else "" for way in ("knn", "probe")]
            interval = " to ".join(_percent(end) for end in row["interval"])
            cells.append([method, spent, *ways, f"**{_percent(row['top1'])}** ({interval})"])
        images = row["test_images"]
    head = ["start", "minutes", "k-NN, frozen", "probe, frozen", "trained, 95 % interval"]
    return f"{_grid(head, cells)}\n\nPercent of {images:,} test photographs, one seed. {_machines(every)}\n"


def trusted(result: dict[str, Any]) -> str:
    """Calibration, coverage and outliers of one run."""
    outliers = result["outliers"]
    cells = [
        ["calibration error at temperature 1", f"{100 * result['calibration_error_before']:.2f} %"],
        [f"at the card's temperature, {result['temperature']:.2f}", f"{100 * result['calibration_error']:.2f} %"],
        *(
            [f"sets of coverage {100 * float(c):.0f} %", f"{100 * v:.1f} %, {n:.2f} classes"]
            for c, (v, n) in result["coverage"].items()
        ),
        *([f"answered at {100 * float(at):.0f} % precision", f"{100 * v:.1f} %"] for at, v in result["answered"].items()),
        ["clothes marked as unlike the training images", f"{100 * outliers['of fashion']:.1f} %"],
        ["digits of MNIST marked", f"{100 * outliers['of digits']:.1f} %"],
        ["AUROC of the energy, clothes against digits", f"{outliers['auroc']:.3f}"],
    ]
    note = f"`{result['command']}`: {_percent(result['accuracy'])} % of 10,000 test images; "
    note += f"fitted to {result['calibrated_on']:,} validation images."
    return f"{_grid(['on test images', ''], cells)}\n\n{note} One seed. {_machines([result['machine']])}\n"


def serving(result: dict[str, Any]) -> str:
    """Speed beside other servers, then latency, overload and memory."""
    speed, ratio = result["speed"]["images_per_s"], result["speed"]["of_the_predictor"]
    speeds = [[name, f"{value['median']:,.0f}", _ratio(ratio[name]) if name in ratio else ""] for name, value in speed.items()]
    half, over, memory = result["latency"], result["overload"], result["memory"]
    count = over["statuses"].get
    answers = f"{over['answered']:,} of {over['sent']:,}: {count('200', 0):,} with predictions, {count('429', 0):,} refused"
    normal = over["normal_after_s"]
    health = f"{over['health']['statuses'].get('200', 0):,} of {over['health']['sent']:,}"
    rows = [
        [f"half load ({half['rate_per_s']:,.0f} requests/s): p50, p99", f"{half['p50_ms']:.1f} ms, {half['p99_ms']:.1f} ms"],
        ["p99 / p50", f"**{half['p99_ms'] / half['p50_ms']:.1f}**"],
        [f"ten times the capacity, {over['seconds']:.0f} s: answered", answers],
        ["refusals, p99", "none" if over["refused_p99_ms"] is None else f"**{over['refused_p99_ms']:.0f} ms**"],
        ["`/healthz` meanwhile: answered, p99", f"{health}, {over['health']['p99_ms']:.0f} ms"],
        ["as before after", "more than 10 s" if normal is None else f"**{normal:.1f} s**"],
        [f"resident memory over {memory['requests']:,} requests", f"{memory['grown_mb']:+.1f} MB"],
    ]
    note = (
        "One PNG of 28 x 28 px a request, 64 connections, unless said; median of interleaved rounds. The client is a process "
        "of its own on the same cores. Overload comes in forms of 32 images."
    )
    return (
        f"{_grid(['full load', 'images/s', 'times the Predictor'], speeds)}\n\n{_grid(['server', ''], rows)}\n\n"
        f"{note} {_machines([result['machine']])}\n"
    )


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "accuracy": ("accuracy", accuracy),
    "train-step": ("train_step", train_step),
    "compile": ("compile", compiling),
    "attention": ("attention", attention),
    "inference": ("inference", inference),
    "export-speed": ("export_speed", export_speeds),
    "export-accuracy": ("export_speed", export_accuracy),
    "laptop": ("laptop", laptop),
    "fp8": ("fp8", fp8),
    "load": ("load", load),
    "memory": ("memory", memory),
    "decode": ("decode", decode),
    "compatibility": ("compatibility", compatibility),
    "checkpoint": ("checkpoint", checkpoints),
    "distributed": ("distributed", distributed),
    "faults": ("faults", faults),
    "photographs": ("photographs", photographs),
    "transfer": ("transfer", transfer),
    "pretraining": ("pretraining", pretraining),
    "distillation": ("distillation", distillation),
    "explain": ("explain", explaining),
    "page": ("page", pages),
    "explain-scores": ("pictures", explain_scores),
    "pointing": ("pointing", pointing),
    "check-near": ("check", check_near),
    "check-faults": ("check", check_faults),
    "check-speed": ("check", check_speed),
    "check-labels": ("check", check_labels),
    "report": ("report", reports),
    "trust": ("trust", trusted),
    "pretraining-step": ("pretraining_step", pretraining_steps),
    "pretraining-guard": ("pretraining_guard", guards),
    "pretraining-methods": ("pretraining_methods", pretraining_methods),
    "pretraining-few": ("pretraining_methods", few_labels),
    "pretraining-on": ("pretraining_on", going_on),
    "pretraining-photos": ("pretraining_photos", pretrained_photographs),
    "family-speed": ("family_speed", family_speeds),
    "serve": ("serve", serving),
}


def families() -> str:
    """Which library's checkpoints of each family are read, and written: from the tables of the package."""
    from vitrail.settings import ViTConfig
    from vitrail.settings.families import FAMILIES
    from vitrail.weights.libraries import LIBRARIES

    shown = {name: library for name, library in LIBRARIES.items() if name != "vitrail"}
    cells = []
    for family in FAMILIES.values():
        row = []
        for library in shown.values():
            plain = family.config is ViTConfig and bool(library.layouts)
            read = plain or any(layout.family is family.config for layout in library.family_layouts)
            written = library.writer is not None and family.config in library.writer.plans
            row.append(", ".join(word for word, holds in (("read", read), ("written", written)) if holds))
        if any(row):
            cells.append([family.noun.partition(" ")[2], *row])
    return f"{_grid(['family', *shown], cells)}\n\nFrom the tables of the package; our own run folders hold every family.\n"


def tables(results: Path = RESULTS) -> dict[str, str]:
    """Every table as Markdown; one whose results are not there says how to make them."""
    made = {"families": families()}
    for name, (stem, render) in TABLES.items():
        source = results / f"{stem}.json"
        made[name] = (
            render(json.loads(source.read_text())) if source.exists() else f"Not measured yet: `python benchmarks/{stem}.py`.\n"
        )
    return made


def fill(markdown: str, made: dict[str, str]) -> str:
    """The text with every marked block replaced; raises KeyError for a block whose name is no table's."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{made[block[2]]}\n{block[3]}", markdown)


def fill_recipe(text: str, rows: dict[str, Any]) -> str:
    """The recipe with its measured lines replaced."""
    return _MEASURED.sub(lambda line: measured(line[1], rows.get(line[1])), text)


def measured(name: str, row: dict[str, Any] | None) -> str:
    """One row of accuracy.json as a line of a recipe."""
    if row is None:
        return f"# Not measured here [{name}]."
    seeds, middle = list(row["seeds"].values()), _middle(row)
    return (
        f"# Measured [{name}]: {_percent(row['median'])} % of {middle['test_images']:,} test images{row.get('how', '')} "
        f"({_spread(seeds)}), "
        f"{middle['train_s']:.0f} s of training; {_machine(middle)}."
    )


def pretrained_rows() -> dict[str, Any]:
    """Runs without labels as rows of accuracy.json, by the names that the recipes have for them."""
    rows, source = {}, RESULTS / "pretraining_methods.json"
    if source.exists():
        result = json.loads(source.read_text())
        for method, pace in result["pace"].items():
            seeds = {
                seed: {
                    **run,
                    "top1": run["probe"]["accuracy"],
                    "test_images": 10_000,
                    "train_s": run["steps"] / pace["steps_per_s"],
                }
                for seed, run in result["frozen"].get(method, {}).items()
            }
            if seeds:
                steps = max(seed["steps"] for seed in seeds.values())
                words = f"vitrail pretrain fashion-mnist --method {method} --train.steps {steps}"
                rows[f"{method}-small"] = {
                    "median": statistics.median_low(seed["top1"] for seed in seeds.values()),
                    "how": f" by a linear probe, `{words}`, {pace['instructions']}",
                    "seeds": seeds,
                }
    source = RESULTS / "pretraining_photos.json"
    if source.exists():
        result = json.loads(source.read_text())
        parts, name = next((parts, name) for name, parts in result.items() if isinstance(parts, dict))
        for method, run in parts["frozen"].items():
            words = f"vitrail pretrain {name.upper()} --method {method} --minutes {result['minutes']:g}"
            seed = {**run, "top1": run["probe"]["accuracy"], "test_images": parts["trained"][method]["test_images"]}
            rows[f"{method}-photos"] = {
                "median": seed["top1"],
                "how": f" by a linear probe, `{words}`, {run['instructions']}",
                "seeds": {"0": seed},
            }
    return rows


def stale(*, write: bool) -> list[str]:
    """The files whose figures are out of date, as paths relative to the repository; rewritten if asked."""
    source = RESULTS / "accuracy.json"
    rows = json.loads(source.read_text()) if source.exists() else {}
    rows |= pretrained_rows()
    made = tables()
    changes = {path: fill(path.read_text(), made) for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
    for recipe in sorted((ROOT / "src" / "vitrail" / "recipes").glob("*.yaml")):
        changes[recipe] = fill_recipe(recipe.read_text(), rows)
    changed = {path: text for path, text in changes.items() if path.read_text() != text}
    for path, text in changed.items() if write else ():
        path.write_text(text)
    return [path.relative_to(ROOT).as_posix() for path in changed]


def _interval(value: dict[str, float]) -> str:
    """A mean of shares in percent, with its interval if there is one."""
    mean = f"**{_percent(value['mean'])}**"
    return f"{mean} ({_percent(value['low'])} to {_percent(value['high'])})" if "low" in value else mean


def _spread(seeds: Sequence[dict[str, Any]]) -> str:
    """Least and greatest accuracy of the seeds, or that there is one only."""
    values = [seed["top1"] for seed in seeds]
    return f"{_percent(min(values))} to {_percent(max(values))}, {len(values)} seeds" if len(values) > 1 else "one seed"


def _middle(row: dict[str, Any]) -> dict[str, Any]:
    return next(seed for seed in row["seeds"].values() if seed["top1"] == row["median"])


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _ratio(value: dict[str, float]) -> str:
    return f"**{value['median']:.2f}** ({value['min']:.2f} to {value['max']:.2f})"


def _range(value: dict[str, float]) -> str:
    return f"({_percent(value['min'])} to {_percent(value['max'])})"


def _machine(facts: dict[str, Any]) -> str:
    return f"{facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}, {facts['date']}, commit {facts['commit']}"


def _machines(measurements: Iterable[dict[str, Any]]) -> str:
    return "Measured on " + "; ".join(dict.fromkeys(_machine(facts) for facts in measurements)) + "."


def _grid(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the measured figures into README, docs and recipes.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a figure is out of date")
    args = parser.parse_args()
    changed = stale(write=not args.check)
    for name in changed:
        print(f"{'out of date' if args.check else 'rewritten'}: {name}")
    sys.exit(1 if args.check and changed else 0)


if __name__ == "__main__":
    main()
