"""`train` and `pretrain` start a run, `resume` continues one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from vitrail.data.batches import Part
from vitrail.data.dataset import Source
from vitrail.evaluate import Scores, save_evaluation
from vitrail.evaluate.evaluate import Among
from vitrail.evaluate.metrics import headline_text
from vitrail.models import meta_model
from vitrail.models.backbone import Backbone
from vitrail.models.device import pick_device
from vitrail.settings import SCRATCH, ModelSection, layers, nearest
from vitrail.tasks import TASKS
from vitrail.train import checkpoint
from vitrail.train.assemble import (
    Context,
    assemble,
    divide_resources,
    open_images,
    score_model,
)
from vitrail.train.before_after import PretrainingComparison, held_out_split, read_start, score_frozen, write_comparison
from vitrail.train.distributed import World, full_tensor, is_sharded, local_device, world
from vitrail.train.fit import fit_to_machine
from vitrail.train.folder import (
    CALL,
    can_resume,
    choose_folder,
    clear,
    create_folder,
    find_checkpoint,
    locked,
    read_settings,
    require_unfinished,
    write_skipped,
    write_text_atomically,
)
from vitrail.train.guard import Collapse
from vitrail.train.interrupt import Interrupt, Interrupted
from vitrail.train.loop import Loop
from vitrail.train.plan import Request, plan_from_settings, plan_on_all
from vitrail.train.progress import Display, duration, truncate_metrics
from vitrail.train.record import record_end, record_start
from vitrail.weights import save_model
from vitrail.weights.run_folder import SETTINGS


@dataclass(frozen=True)
class Run:
    """Finished run."""

    folder: Path
    evaluation: Scores
    """Scores on `split`: the test images, or the validation images of a data set without test split."""
    split: str
    seconds: float
    """Seconds of training, without loading and the last evaluation."""
    steps: int
    task: str = "classify"
    """Name of the task, as in `train.task`."""
    stopped: Collapse | None = None
    """Collapse that ended the run; its model is that of the best evaluation. None for a run that went to its end."""
    comparison: PretrainingComparison | None = None
    """Starting weights and pre-trained ones on held-out images; None with labels, and with `train.compare` false."""


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
    simmim: Mapping[str, Any] | None = None,
    beit: Mapping[str, Any] | None = None,
    dino: Mapping[str, Any] | None = None,
    lejepa: Mapping[str, Any] | None = None,
    views: Mapping[str, Any] | None = None,
    guard: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Run:
    """Train a model on a named data set or a folder, evaluate it, and write the run folder.

    Default of `path` is the sample data set of the package; of `recipe`, the one for the data set, or with `weights` (anything
    that `vitrail.load` takes) settings fitted to data, device and time, whose reasons are printed. The sections are mappings of
    single settings, `optim={"lr": 1e-3}`, and `model` may be a name. `out` is a folder that does not exist; by default, the
    next free one under runs/. With `resume` "auto", `out` may be the folder of a run started with the same arguments: the run
    resumes from its newest checkpoint, or restarts without one.
    Processes started by torchrun train together. Raises ValueError, in one line, for invalid arguments.
    """
    sections = {"model": model, "data": data, "augment": augment, "optim": optim, "distill": distill}
    sections |= {"mae": mae, "simmim": simmim, "beit": beit, "dino": dino, "lejepa": lejepa, "views": views}
    sections |= {"guard": guard, "train": train}
    overrides: dict[str, Any] = {name: section for name, section in sections.items() if section is not None}
    if minutes is not None:
        overrides["train"] = {**(train or {}), "minutes": minutes}
    request = make_request(path, overrides, weights=weights, recipe=recipe, config=config)
    return run_request(request, out=out, resume=resume, console=console)


def run_request(
    request: Request,
    *,
    out: str | Path | None = None,
    resume: Literal["auto"] | None = None,
    console: Console | None = None,
) -> Run:
    """Start the run of a request, or resume it. See `train`."""
    if resume is not None and out is None:
        raise ValueError(f"--resume {resume} needs --out, the run folder to go on with")
    with world(local_device(pick_device(request.device))) as processes:
        display = Display(console if processes.first else Console(quiet=True))
        if resume is not None and processes.run_on_first(lambda: prepare_resume(Path(str(out)), request)):
            return _resume(Path(str(out)), processes, display)
        return _start(request, out, processes, display)


def make_request(
    path: str | Path | None,
    overrides: Mapping[str, Any],
    *,
    weights: str | Path | None = None,
    recipe: str | None = None,
    config: str | Path | None = None,
) -> Request:
    """Return the request of `train` with its arguments. Raises ValueError for an unknown setting."""
    arguments: dict[str, Any] = {"data": {"path": str(path)}} if path is not None else {}
    if weights is not None:
        arguments["model"] = {"weights": str(weights)}
    file = None if config is None else layers.read_config(config)
    return Request(overrides=layers.merge(overrides, arguments), recipe=recipe, file=file)


def prepare_resume(folder: Path, request: Request) -> bool:
    """Return True for the folder of a run of the same request with a checkpoint; delete the folder of one without."""
    if can_resume(folder, request_record(request)):
        return True
    clear(folder)
    return False


def request_record(request: Request) -> dict[str, Any]:
    """Return the request as it is stored in the run folder, for comparison with a later one."""
    call: dict[str, Any] = json.loads(json.dumps({"asked": request.layer, "recipe": request.recipe}, default=str))
    return call


def _start(request: Request, out: str | Path | None, processes: World, display: Display) -> Run:
    """Start a run in one of its processes."""
    folder = processes.run_on_first(lambda: choose_folder(out, request.data))
    plan = plan_on_all(request, processes)
    for line in plan.notes:
        display.say(line)
    with create_folder(folder, processes):
        if processes.first:
            write_text_atomically(folder / CALL, json.dumps(request_record(request), indent=2) + "\n")
        source, loop = plan.source, build_loop(Context(plan, folder, display, processes))
        del plan  # and the tensors of the file with it, before the longest part of the run
        record_start(loop)
        if loop.stopped_at_probe:
            display.say("stopped early: the model is the linear probe")
            return conclude(loop, source)
        return finish(loop, source)


def build_loop(context: Context) -> Loop:
    """Build the loop of a new run, whose settings are written with a model that fits the machine."""
    context, images = fit_to_machine(context, open_images(context))
    if context.processes.first:
        write_text_atomically(context.folder / SETTINGS, layers.to_yaml(context.settings))
    return assemble(context, images)


DEFAULT_METHOD = "lejepa"
"""Method of `pretrain`: of any backbone, and with the best features of Fashion-MNIST in 10 minutes (docs/pretraining.md)."""
run_training = train
"""Alias of `train` for functions with an argument of that name."""


def pretrain(
    path: str | Path | None = None,
    *,
    method: str | None = None,
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
    simmim: Mapping[str, Any] | None = None,
    beit: Mapping[str, Any] | None = None,
    dino: Mapping[str, Any] | None = None,
    lejepa: Mapping[str, Any] | None = None,
    views: Mapping[str, Any] | None = None,
    guard: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    console: Console | None = None,
) -> Run:
    """Train a backbone without labels, score its embedding, and write the run folder, whose model has no head.

    `path` is whatever `train` takes, or a folder of images without classes, loose or in any tree of folders. Labels, where
    there are some, are for the k-NN score alone. Methods are the tasks without labels in `vitrail.tasks.TASKS`, each with
    the settings of the section of its name; `views` are those of the methods that compare views. Without `method` it is that
    of `config` or `recipe`, else `DEFAULT_METHOD`. The other arguments are those of `train`; without `recipe`, the method's
    own. Raises ValueError, in one line, for an unknown method, for a model
    that can't learn by it, and as `train` does.
    """
    methods = [name for name, task in TASKS.items() if not task.supervised]
    if method is None:
        supervised = set(TASKS).difference(methods)
        method = next((task for task in tasks_of(config, recipe) if task not in supervised), DEFAULT_METHOD)
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
        simmim=simmim,
        beit=beit,
        dino=dino,
        lejepa=lejepa,
        views=views,
        guard=guard,
        train={**(train or {}), "task": method},
        console=console,
    )


def tasks_of(config: str | Path | None, recipe: str | None) -> list[str]:
    """Return the tasks that a config file, the recipe below it, and a recipe name, in this order."""
    named = [layers.read_config(config)] if config is not None else []
    below = [named[0].get("extends")] if named else []
    named += [layers.read_recipe(one) for one in (*below, recipe) if one is not None]
    return [str(sections["train"]["task"]) for sections in named if "task" in sections.get("train", {})]


def resume(folder: str | Path, *, workers: int | None = None, console: Console | None = None) -> Run:
    """Resume a run from its newest checkpoint. Raises ValueError for a finished run, and for one without a checkpoint.

    `workers` overrides `data.workers`, the number of loader processes, which does not change the result.
    """
    settings = read_settings(Path(folder))
    with world(local_device(pick_device(settings.train.device))) as processes:
        display = Display(console if processes.first else Console(quiet=True))
        return _resume(Path(folder), processes, display, workers=workers)


def _resume(folder: Path, processes: World, display: Display, *, workers: int | None = None) -> Run:
    """Resume a run in one of its processes."""
    with locked(folder, processes):
        return _continue(folder, processes, display, workers=workers)


def _continue(folder: Path, processes: World, display: Display, *, workers: int | None) -> Run:
    require_unfinished(folder)  # in every process, so that all raise Finished and none PeerFailed
    path, state, damaged = processes.run_on_first(lambda: find_checkpoint(folder))
    for line in damaged:
        display.say(f"warning: skipped {line}")
    settings = read_settings(folder)
    if workers is not None:
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, workers=workers))
    plan = processes.raise_once(lambda: plan_from_settings(settings))
    if processes.first:  # before the loop opens the file, which is replaced here
        truncate_metrics(folder, step=state["step"], evaluated=state["evaluated"])
    processes.barrier()
    context = Context(plan, folder, display, processes, resumed=True)
    loop = assemble(context, open_images(context))
    processes.raise_once(lambda: loop.restore(path, state))
    record_start(loop)
    display.say(f"resumed at step {loop.step:,}")
    return finish(loop, plan.source)


def finish(loop: Loop, source: Source) -> Run:
    """Train to the end, save the model and score it."""
    loop.display.say(f"run folder {loop.folder}")
    try:
        loop.run()
    finally:
        if loop.metrics is not None:
            loop.metrics.close()
    return conclude(loop, source)


def conclude(loop: Loop, source: Source) -> Run:
    """Save the model and score it."""
    stopped = None if loop.collapse is None else {**loop.collapse.to_dict(), "model_step": take_best(loop, loop.collapse)}
    model, processes = loop.trained.eval(), loop.world
    loop.train_step.optimizers.forget()
    processes.broadcast_buffers(model)
    calibrate_model(loop, model)
    step = loop.step if stopped is None or stopped["model_step"] is None else stopped["model_step"]
    model.card = dataclasses.replace(model.card, images_seen=loop.images_seen(step), receipt=loop.receipt)
    complete = gather_model(model, loop.settings.model, processes)
    if complete is not None:
        save_model(complete, loop.folder, data=loop.settings.data.path)
    del complete
    split_name = held_out_split(loop.views) or "train"
    data = divide_resources(loop.settings.data, processes.local_size)
    split = loop.views.get(split_name) or source.load("train", preprocessing=loop.preprocessing, cfg=data)
    with Interrupt() as interrupt:

        def watch() -> None:
            if signal_number := processes.max(interrupt.number)[0]:
                command = "`vitrail evaluate`" if loop.stopped_at_probe else "`vitrail resume`"
                message = f"the model is trained and saved; {command} {loop.folder} scores it"
                raise Interrupted(message, number=int(signal_number))

        scores = score_model(
            loop.task, model, watch, split=split, device=loop.device, dtype=loop.train_step.autocast_dtype, processes=processes
        )
        assert scores is not None
        comparison = compare(loop, model, source)
    name, value, low, high = headline_text(scores, decimals=2)
    if stopped is None:  # else the pictures are drawn, and the model is that of an earlier step
        loop.draw(loop.views.get("val") or split)
    for skipped in processes.gather([split.skipped for split in (loop.split, *loop.views.values())]):
        loop.split.record([item for part in skipped for item in part])
    if processes.first:
        write_skipped(loop.folder, loop.split, *loop.views.values())
        record_end(loop)
        if comparison is not None:
            write_comparison(loop.folder, comparison)
        save_evaluation(scores, loop.folder, data=source.name, split=split_name, stopped=stopped)
    loop.display.say(
        f"{split_name} {name} {value} (95 % interval {low} to {high}) on {scores.count:,} images, "
        f"after {loop.step:,} steps in {duration(loop.pace.elapsed)}"
    )
    for line in comparison.lines() if comparison is not None else ():
        loop.display.say(line)
    processes.barrier()  # the others wait while the first writes
    return Run(
        folder=loop.folder,
        evaluation=scores,
        split=split_name,
        seconds=loop.pace.elapsed,
        steps=loop.step,
        task=loop.settings.train.task,
        stopped=loop.collapse,
        comparison=comparison,
    )


def take_best(loop: Loop, collapse: Collapse) -> int | None:
    """Print what ended the run, and load the best-scored checkpoint. Return its step; None without one: the model stays."""
    best = loop.world.run_on_first(lambda: checkpoint.find_best(loop.folder / "checkpoints"))
    if best is not None:
        loop.load_weights(*best)
    step = None if best is None else int(best[1]["step"])
    loop.display.say(collapse.message(loop.task.collapse_advice(collapse.cause), model_step=step))
    return step


def compare(loop: Loop, model: Backbone, source: Source) -> PretrainingComparison | None:
    """Compare the trained model with the starting weights on held-out images; None for a run without their scores."""
    name, task, processes = held_out_split(loop.views), loop.task, loop.world
    start = processes.run_on_first(lambda: read_start(loop.folder))
    if start is None or name is None:
        return None
    end = score_frozen(
        task,
        model,
        loop.views[name],
        num_classes=len(source.classes),
        seed=loop.settings.train.seed,
        device=loop.device,
        autocast_dtype=loop.train_step.autocast_dtype,
        world=processes,
    )
    cfg = loop.settings.model
    return PretrainingComparison(
        start, end, split=name, start_weights="random weights" if cfg.weights in (None, SCRATCH) else str(cfg.weights)
    )


def calibrate_model(loop: Loop, model: Backbone) -> None:
    """Fit the card's calibration to the validation images, where there are some and the task has one.

    Images or logits that it can't be fitted to cost a line, and not the model, which is saved after it.
    """
    if not len(loop.views.get("val", ())):
        return
    among = Among(Part(loop.world.rank, loop.world.size), gather=loop.world.gather)
    dtype = loop.train_step.autocast_dtype
    try:
        found = loop.task.calibrate(loop.views["val"], model=model, device=loop.device, autocast_dtype=dtype, among=among)
    except ValueError as error:
        loop.display.say(f"note: the model is not calibrated: {error}")
        return
    model.card = dataclasses.replace(model.card, calibration=found)


def gather_model(model: Backbone, cfg: ModelSection, processes: World) -> Backbone | None:
    """Gather a sharded model from all processes. Return the full model in the first process, None in the others."""
    if not is_sharded(model):
        return model if processes.first else None
    state = {}
    for name, value in model.state_dict().items():
        full = full_tensor(value)
        if processes.first:
            state[name] = full.cpu()
    if not processes.first:
        return None
    complete = meta_model(cfg)
    complete.load_state_dict(state, assign=True)
    complete.card = model.card
    return complete.eval()
