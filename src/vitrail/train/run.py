"""From settings to a run folder: `train` starts a run, `resume` goes on with one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from vitrail.data.dataset import Source
from vitrail.evaluate import Scores, save_evaluation
from vitrail.evaluate.metrics import headline_text
from vitrail.models import meta_model
from vitrail.models.backbone import Backbone
from vitrail.models.device import pick_device
from vitrail.settings import ModelSection, layers, nearest
from vitrail.tasks import TASKS
from vitrail.train.assemble import Context, assemble, score_model, shared_by
from vitrail.train.distributed import World, is_sharded, own_device, whole, world
from vitrail.train.folder import (
    CALL,
    clear,
    found,
    free_folder,
    goes_on,
    locked,
    new_folder,
    require_unfinished,
    settings_of,
    write_skipped,
    write_whole,
)
from vitrail.train.loop import Interrupt, Interrupted, Loop
from vitrail.train.plan import Request, plan_of, plan_together
from vitrail.train.progress import Display, duration, truncate_metrics
from vitrail.weights import save_model
from vitrail.weights.run_folder import SETTINGS


@dataclass(frozen=True)
class Run:
    """A finished training."""

    folder: Path
    evaluation: Scores
    """On the test images; on the validation images where the set has no test split (`split` says which)."""
    split: str
    seconds: float
    """Of training, without loading and the last evaluation."""
    steps: int
    task: str = "classify"
    """What was learned, as in `train.task`."""


def train(
    path: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    out: str | Path | None = None,
    resume: Literal["auto"] | None = None,
    minutes: float | None = None,
    model: str | Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    augment: Mapping[str, Any] | None = None,
    optim: Mapping[str, Any] | None = None,
    distill: Mapping[str, Any] | None = None,
    mae: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Run:
    """Trains on a named set or a folder, evaluates, and writes the run folder.

    Without `path`, on the sample that comes with the package. Without `recipe`, with the one for that set; from `weights`
    (whatever `vitrail.load` takes), with settings fitted to data, device and time, whose reasons are printed. The sections
    are mappings of single settings, `optim={"lr": 1e-3}`, and `model` may be a name. `out` is a folder that does not
    exist yet; without it, the next free one under runs/. With `resume` "auto" it may be one that the same call began: then
    that run goes on from its newest checkpoint, or begins anew where it has none.
    Started by torchrun, the processes train together. Raises ValueError, in one line, for what can't be.
    """
    sections = {"model": model, "data": data, "augment": augment, "optim": optim, "distill": distill}
    sections |= {"mae": mae, "train": train}
    given: dict[str, Any] = {name: section for name, section in sections.items() if section is not None}
    if minutes is not None:
        given["train"] = {**(train or {}), "minutes": minutes}
    top: dict[str, Any] = {"data": {"path": str(path)}} if path is not None else {}
    if weights is not None:
        top["model"] = {"weights": str(weights)}
    file = None if config is None else layers.read_config(config)
    request = Request(overrides=layers.merge(given, top), recipe=recipe, file=file)
    if resume is not None and out is None:
        raise ValueError(f"--resume {resume} needs --out, the run folder to go on with")
    with world(own_device(pick_device(request.device))) as processes:
        display = Display(console if processes.first else Console(quiet=True))
        if resume is not None and processes.on_first(lambda: resumable(Path(str(out)), request)):
            return _resume(Path(str(out)), processes, display)
        return _start(request, out, processes, display)


def resumable(folder: Path, request: Request) -> bool:
    """Return whether a folder holds a run of the same request to go on with; clear what a run without checkpoint left."""
    if goes_on(folder, call_of(request)):
        return True
    clear(folder)
    return False


def call_of(request: Request) -> dict[str, Any]:
    """What a run folder keeps of a request, to compare another call with."""
    call: dict[str, Any] = json.loads(json.dumps({"asked": request.layer, "recipe": request.recipe}, default=str))
    return call


def _start(request: Request, out: str | Path | None, processes: World, display: Display) -> Run:
    """A new run, in the processes that carry it out."""
    folder = processes.on_first(lambda: free_folder(out, request.data))
    plan = plan_together(request, processes)
    for line in plan.notes:
        display.say(line)
    with new_folder(folder, processes):
        if processes.first:
            write_whole(folder / CALL, json.dumps(call_of(request), indent=2) + "\n")
            write_whole(folder / SETTINGS, layers.to_yaml(plan.settings))
        loop = assemble(Context(plan, folder, display, processes))
        if loop.stopped_at_probe:
            display.say("stopped at the probe, which is the model now")
            return conclude(loop, plan.source)
        return finish(loop, plan.source)


run_training = train
"""`train`, where an argument has that name."""


def pretrain(
    path: str | Path | None = None,
    *,
    method: str = "mae",
    weights: str | Path | None = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    out: str | Path | None = None,
    resume: Literal["auto"] | None = None,
    minutes: float | None = None,
    model: str | Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    augment: Mapping[str, Any] | None = None,
    optim: Mapping[str, Any] | None = None,
    distill: Mapping[str, Any] | None = None,
    mae: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Run:
    """Train a backbone without labels, score its embedding, and write the run folder, whose model has no head.

    `path` is whatever `train` takes, or a folder of images without classes, loose or in any tree of folders. Labels, where
    there are some, are for the k-NN score alone. "mae" is the masked autoencoder (He et al. 2022), with the settings of the
    section `mae`. The other arguments are those of `train`; without `recipe`, the method's own. Raises ValueError, in one
    line, for an unknown method, for a model that can't learn by it, and as `train` does.
    """
    methods = [name for name, task in TASKS.items() if not task.supervised]
    if method not in methods:
        raise ValueError(f'method "{method}" is none of {", ".join(methods)}{nearest(method, methods)}')
    return run_training(
        path,
        weights=weights,
        recipe=recipe,
        config=config,
        out=out,
        resume=resume,
        minutes=minutes,
        model=model,
        data=data,
        augment=augment,
        optim=optim,
        distill=distill,
        mae=mae,
        train={**(train or {}), "task": method},
        console=console,
    )


def resume(folder: str | Path, *, workers: int | None = None, console: Console | None = None) -> Run:
    """Goes on with a run from its newest checkpoint. Raises ValueError where it is finished, or holds no checkpoint.

    `workers` are other loader processes than `data.workers` says, for these change nothing of what is learned.
    """
    settings = settings_of(Path(folder))
    with world(own_device(pick_device(settings.train.device))) as processes:
        display = Display(console if processes.first else Console(quiet=True))
        return _resume(Path(folder), processes, display, workers=workers)


def _resume(folder: Path, processes: World, display: Display, *, workers: int | None = None) -> Run:
    """`resume`, in the processes of a run."""
    with locked(folder, processes):
        return _go_on(folder, processes, display, workers=workers)


def _go_on(folder: Path, processes: World, display: Display, *, workers: int | None) -> Run:
    require_unfinished(folder)  # in every process: none of them has failed
    path, state, damaged = processes.on_first(lambda: found(folder))
    for line in damaged:
        display.say(f"passed over: {line}")
    settings = settings_of(folder)
    if workers is not None:
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, workers=workers))
    plan = processes.told_once(lambda: plan_of(settings))
    if processes.first:  # before the loop opens the file, or it would write into the old one
        truncate_metrics(folder, step=state["step"], evaluated=state["evaluated"])
    processes.barrier()
    loop = assemble(Context(plan, folder, display, processes, resumed=True))
    processes.told_once(lambda: loop.restore(path, state))
    display.say(f"going on at step {loop.step:,}")
    return finish(loop, plan.source)


def finish(loop: Loop, source: Source) -> Run:
    """Trains to the end, saves the model and scores it."""
    loop.display.say(f"run folder {loop.folder}")
    try:
        loop.run()
    finally:
        if loop.metrics is not None:
            loop.metrics.close()
    return conclude(loop, source)


def conclude(loop: Loop, source: Source) -> Run:
    """Saves the model and scores it."""
    model, processes = loop.trained.eval(), loop.world
    loop.move.optimizers.forget()
    processes.same_buffers(model)
    complete = put_together(model, loop.settings.model, processes)
    if complete is not None:
        save_model(complete, loop.folder, data=loop.settings.data.path)
    del complete
    which = next((name for name in ("test", "val") if len(loop.views.get(name, ()))), "train")
    data = shared_by(loop.settings.data, processes.neighbours)
    split = loop.views.get(which) or source.load("train", preprocessing=loop.preprocessing, cfg=data)
    with Interrupt() as interrupt:

        def watch() -> None:
            if asked := processes.greatest(interrupt.number)[0]:
                way = "`vitrail evaluate`" if loop.stopped_at_probe else "`vitrail resume`"
                raise Interrupted(f"the model is trained and saved; {way} {loop.folder} scores it", number=int(asked))

        scores = score_model(
            loop.task, model, watch, split=split, device=loop.device, dtype=loop.move.autocast_dtype, processes=processes
        )
        assert scores is not None
    name, value, low, high = headline_text(scores, decimals=2)
    loop.draw(loop.views.get("val") or split)
    for lost in processes.gather([split.skipped for split in (loop.split, *loop.views.values())]):
        loop.split.record([item for part in lost for item in part])
    if processes.first:
        write_skipped(loop.folder, loop.split, *loop.views.values())
        save_evaluation(scores, loop.folder, data=source.name, split=which)
    loop.display.say(
        f"{which} {name} {value} (95 % interval {low} to {high}) on {scores.count:,} images, "
        f"after {loop.step:,} steps in {duration(loop.pace.elapsed)}"
    )
    processes.barrier()  # nobody leaves while the first still writes
    task = loop.settings.train.task
    return Run(folder=loop.folder, evaluation=scores, split=which, seconds=loop.pace.elapsed, steps=loop.step, task=task)


def put_together(model: Backbone, cfg: ModelSection, processes: World) -> Backbone | None:
    """The model with whole weights in the first process, None in the others, all of which give their parts."""
    if not is_sharded(model):
        return model if processes.first else None
    state = {}
    for name, value in model.state_dict().items():
        full = whole(value)
        if processes.first:
            state[name] = full.cpu()
    if not processes.first:
        return None
    complete = meta_model(cfg)
    complete.load_state_dict(state, assign=True)
    complete.card = model.card
    return complete.eval()
