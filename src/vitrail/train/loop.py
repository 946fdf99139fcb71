"""Training loop: steps, logging, evaluation, checkpoints and signals."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from vitrail.data.batch import Batch, RawBatch
from vitrail.data.batches import LoaderLost, Part, steps_per_epoch, train_batches
from vitrail.data.dataset import Split
from vitrail.evaluate import EmbeddingScores, Scores
from vitrail.evaluate.metrics import headline_text
from vitrail.models.backbone import Backbone
from vitrail.models.receipt import Receipt
from vitrail.settings import AugmentConfig, Pair, Preprocessing, Settings
from vitrail.tasks import Task
from vitrail.text import printable
from vitrail.train import checkpoint
from vitrail.train.distributed import SINGLE_PROCESS, PeerFailed, World, local_shard
from vitrail.train.guard import Collapse
from vitrail.train.history import History
from vitrail.train.interrupt import Interrupt, Interrupted
from vitrail.train.notes import check_warmup
from vitrail.train.optim import REFERENCE_BATCH, lr_factor
from vitrail.train.pace import Pace
from vitrail.train.progress import Display, Metrics, Rate
from vitrail.train.sizes import patch_at, side_unit, size_at
from vitrail.train.step import Ema, Step
from vitrail.train.stream import SideStream
from vitrail.train.watch import Watch
from vitrail.weights.run_folder import SETTINGS, sha256, write_atomically

LOG_EVERY_S = 1.0
"""Seconds between two lines of metrics.jsonl, and between two readings of the losses, which wait for the device."""
Evaluator = Callable[[Backbone, Callable[[], None]], Scores | None]
"""Function that scores a model, and calls its second argument between two batches."""


@dataclass
class Loop:
    """Training loop with its state: `step` and `pace` are the progress of the run."""

    settings: Settings
    folder: Path
    split: Split
    """Training images."""
    views: Mapping[str, Split]
    """Validation and test images in evaluation view."""
    preprocessing: Preprocessing
    reading: AugmentConfig
    """Augmentation by which training images are read; its crop is drawn by the loader."""
    device: torch.device
    train_step: Step
    """Optimizer step on one batch."""
    take_step: Callable[[Batch], dict[str, Tensor]]
    """The same step, or its replay from a recording."""
    ema: Ema | None
    pace: Pace
    evaluate: Evaluator | None
    """Score a model on the validation images, with a callback between two batches; None without validation images."""
    metrics: Metrics | None
    """None in all processes but the first."""
    display: Display
    world: World = SINGLE_PROCESS
    fingerprint: str = ""
    """Hash of the names of all images in their order, which every random draw depends on."""
    stopped_at_probe: bool = False
    """True where the model is the linear probe of its frozen features, and is not trained."""
    pictures: str | None = None
    """Folder inside the run folder for the task's picture at each evaluation; None for a task without pictures."""
    watch: Watch | None = None
    """Guard against collapse, curves and colours of patches; None for a task with labels."""
    seen_before: int | None = 0
    """Images that the starting weights were trained on, each pass counted; None: not known."""
    receipt: Receipt | None = None
    """Receipt of the starting weights; None for random ones."""
    history: History = field(default_factory=History)
    """Losses of the last steps."""
    step: int = 0
    evaluated: int = -1
    """Step of the last evaluation; -1 before the first."""
    score: float | None = None
    """Headline score of the last evaluation; with its sign changed where lower values are better."""
    best: float | None = None
    """Greatest `score` of all evaluations."""

    @property
    def task(self) -> Task:
        """Task that is trained."""
        return self.train_step.task

    @property
    def trained(self) -> Backbone:
        """Model that is evaluated and saved: the running mean if there is one."""
        return self.task.product() if self.ema is None else self.ema.backbone

    def images_seen(self, step: int) -> int | None:
        """Return how many images the weights of a step were trained on, each pass counted; None: not known."""
        return None if self.seen_before is None else self.seen_before + step * self.settings.train.batch_size

    @property
    def collapse(self) -> Collapse | None:
        """Collapse of the embedding that ended the run; None for a run without."""
        return None if self.watch is None else self.watch.collapse

    def run(self) -> None:
        """Train to the end, or to a collapse.

        Raises Interrupted on a signal, after saving a checkpoint, ValueError for a non-finite loss, and LoaderLost.
        """
        cfg = self.settings
        if self.pace.finished(self.step) or self.collapse:  # resumed from its last checkpoint
            return
        start, saved = time.perf_counter() - self.pace.elapsed, time.perf_counter()
        rate, logged = Rate(), 0.0
        self.task.train()
        with self.display, Interrupt() as interrupt, self.save_if_loader_lost():
            if self.observe(interrupt):  # the starting weights, or what a signal interrupted
                self.save()
            if self.collapse:
                self.leave(interrupt)
                return
            for epoch, batch in self.batches():
                seed_device(self.device, step_seed(cfg.train.seed, self.step, rank=self.world.rank))
                lr = self.lr_factor()
                only_heads = self.only_heads_learn()
                self.train_step.optimizers.set_lr(lr, model=0.0 if only_heads else 1.0)
                self.train_step.keep_statistics(only_heads)
                self.task.before_step(step=self.step, epoch=epoch, progress=self.pace.progress(self.step))
                losses = self.take_step(batch)
                self.task.after_step(self.step)
                if self.ema is not None:
                    self.ema.update(self.step)
                self.step += 1
                self.history.add(self.step, epoch, batch, losses)

                now = time.perf_counter()
                images_per_s = rate.add(len(batch) * self.world.size)
                elapsed, log_is_due = self.world.max(now - start, now - logged >= LOG_EVERY_S)
                fitted = self.pace.advance(self.step, elapsed)
                if fitted and len(self.pace.fits) == 1 and (line := check_warmup(cfg.optim.warmup, self.pace.total)):
                    self.display.say(f"note: {line}")
                last = self.pace.finished(self.step)
                if log_is_due or last:
                    logged = now
                    self.log(epoch, lr=lr, images_per_s=images_per_s)
                if last:
                    self.save()
                    self.leave(interrupt)
                    return
                interval_over = now - saved >= 60 * cfg.train.checkpoint_every
                signal_number, save_is_due = self.world.max(interrupt.number, interval_over)
                if signal_number:
                    self.interrupt(signal_number)
                if self.observe(interrupt) or save_is_due:
                    self.save()
                    saved = time.perf_counter()
                    if self.collapse:
                        self.leave(interrupt)
                        return

    def leave(self, interrupt: Interrupt) -> None:
        """Raise Interrupted for a signal that came while the last checkpoint was written."""
        if signal_number := self.world.max(interrupt.number)[0]:
            self.interrupt(signal_number, saved=True)

    def interrupt(self, number: float, *, saved: bool = False) -> NoReturn:
        """Save a checkpoint unless `saved`, and raise Interrupted for a signal."""
        if not saved:
            self.save()
        raise Interrupted(f"step {self.step} is saved; go on with `vitrail resume {self.folder}`", number=int(number))

    @contextmanager
    def save_if_loader_lost(self) -> Iterator[None]:
        """Save a checkpoint on LoaderLost, which is raised between two steps; with several processes, only raise it."""
        try:
            yield
        except LoaderLost as error:
            if self.world.size > 1 or not self.step:
                raise
            self.save()
            raise LoaderLost(f"{error}; step {self.step} is saved, go on with `vitrail resume {self.folder}`") from error

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield (epoch, augmented batch on the device) from the current step on, in the image and patch size of the step."""
        cfg, size = self.settings, self.preprocessing.img_size
        raw_batches = train_batches(
            self.split,
            batch_size=cfg.train.batch_size,
            seed=cfg.train.seed,
            augment=self.reading,
            start_step=self.step,
            balanced=cfg.data.balance == "sampler",
            part=Part(self.world.rank, self.world.size),
        )
        for (epoch, _), batch in SideStream(self.device).iterate(raw_batches, lambda item: self.prepare(*item)):
            if (now := self.img_size()) != size:
                size = now
                self.display.say(f"step {self.step:,}: images have {size[0]}x{size[1]} px from here on")
            yield epoch, batch

    def prepare(self, epoch: int, raw: RawBatch) -> Batch:
        """Copy a batch to the device and augment it there, in the image and patch size of this step."""
        if not len(raw):
            return dataclasses.replace(self.prepare(0, self.placeholder_batch()), stands_in=True)
        size, patch = self.img_size(), self.patch_size()
        return self.task.batch(raw.pixels_to(self.device), epoch=epoch, img_size=size, patch_size=patch)

    def placeholder_batch(self) -> RawBatch:
        """Return a black image for a process without a readable image, which has to step with the others."""
        size, cfg = self.img_size(), self.settings.model
        none = torch.zeros(1, dtype=torch.long)
        return RawBatch(
            images=torch.zeros(1, cfg.in_channels, *size, dtype=torch.uint8),
            sizes=torch.tensor([size]),
            boxes=torch.tensor([[0.0, 0.0, *map(float, size)]]),
            labels=none,
            indexes=none,
            targets=torch.zeros(1, cfg.num_classes) if self.split.multi_label else None,
        )

    def img_size(self) -> Pair:
        """Return (height, width) of the images of this step, a function of the progress alone, so that resuming repeats it."""
        cfg, full = self.settings.train, self.preprocessing.img_size
        if cfg.start_size is None:
            return full
        return size_at(
            self.pace.progress(self.step),
            start=cfg.start_size,
            stages=cfg.size_stages,
            full_from=cfg.full_size_from,
            full=full,
            patch=side_unit(cfg.patch_sizes, self.task.model),
        )

    def patch_size(self) -> int | None:
        """Return the patch size of this step; None for the model's."""
        cfg = self.settings.train
        return patch_at(self.step, patches=cfg.patch_sizes, seed=cfg.seed) if cfg.patch_sizes else None

    def lr_factor(self) -> float:
        """Return the learning rate of this step as a share of its peak."""
        cfg = self.settings.optim
        if self.step < cfg.warmup and cfg.warmup >= 1:  # in steps, independent of the total
            return (self.step + 0.5) / cfg.warmup
        warmup = cfg.warmup if cfg.warmup < 1 else cfg.warmup / max(cfg.warmup, self.pace.total or 0)
        middle = self.pace.progress(self.step + 0.5)  # at its ends, the first or the last step would have rate 0
        return lr_factor(middle, schedule=cfg.schedule, warmup=warmup)

    def only_heads_learn(self) -> bool:
        """Return True in the first steps of a run with `optim.warm_heads`."""
        share = self.settings.optim.warm_heads
        return share > 0 and self.pace.progress(self.step) < share

    def evaluation_is_due(self) -> bool:
        """Return True every `train.eval_every` epochs, once for each step; without labels also before the first step."""
        cfg = self.settings.train
        if (
            self.evaluate is None
            or not cfg.eval_every
            or self.evaluated == self.step
            or (self.step == 0 and self.watch is None)
        ):
            return False
        interval = cfg.eval_every * steps_per_epoch(self.split, batch_size=cfg.batch_size)
        return self.step % max(1, round(interval)) == 0

    def check_losses(self) -> None:
        """Read the losses since the last call. Raises ValueError, naming step and batch, for one that is not finite.

        Comes before every line of the log, evaluation and checkpoint, at the same step in all processes, so nothing is saved
        after such a loss. The weights of the steps since then are lost.
        """
        broken = self.history.read()
        if broken is None:
            return
        broken_step = broken.step
        local = [] if broken_step.indexes is None else [self.split.names[index] for index in broken_step.indexes.tolist()]
        names = [name for part in self.world.gather(local) for name in part]
        if not self.world.first:
            raise PeerFailed(f"{broken.name} is not finite")
        (self.folder / "bad_batch.txt").write_text("\n".join(map(printable, names)) + "\n", encoding="utf-8")
        some, steps = ", ".join(names[:3]) + (", …" if len(names) > 3 else ""), self.step - broken_step.step
        late = f"; noticed {steps} step{'s' * (steps > 1)} later" if steps else ""
        raise ValueError(
            f"{broken.name} is {broken.value} at step {broken_step.step} "
            f"(epoch {broken_step.epoch}, images {some}; all in {self.folder / 'bad_batch.txt'}{late}): "
            "lower optim.lr, lengthen optim.warmup or set optim.clip_norm; checkpoints up to here are good"
        )

    def log(self, epoch: int, *, lr: float, images_per_s: float) -> None:
        """Write a line of metrics.jsonl with the mean losses since the last one, and update the display.

        `lr` is a share of its peak.
        """
        self.check_losses()
        values = self.history.means()
        peak = self.settings.optim.lr * self.settings.train.batch_size / REFERENCE_BATCH
        record = {"epoch": epoch, "seconds": round(self.pace.elapsed, 2), **values}
        self.write({**record, "lr": lr * peak, "images_per_s": round(images_per_s, 1)})
        shown: dict[str, float] = {name: values[name] for name in ("loss", "accuracy", "binary_accuracy") if name in values}
        progress = self.pace.progress(self.step)
        left = self.pace.elapsed * (1 - progress) / progress if progress > 0 else None
        if self.pace.seconds is not None:
            left = self.pace.seconds - self.pace.elapsed
        self.display.show(
            step=self.step,
            total=self.pace.total,
            progress=progress,
            left_s=left,
            values=shown | {"images/s": images_per_s},
        )

    def write(self, values: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl in the first process."""
        if self.metrics is not None:
            self.metrics.write(self.step, values)

    def observe(self, interrupt: Interrupt) -> bool:
        """Evaluate, and check for a collapse, where it is due. Return True for a checkpoint to save: the best, or the last."""
        best = self.evaluation_is_due() and self.validate(interrupt)
        if self.watch is None:
            return best and self.settings.train.keep_best
        if self.watch.is_due(self.step, self.pace.progress(self.step)):
            scores = self.evaluate_now(self.watch.check, interrupt)
            assert isinstance(scores, EmbeddingScores)
            in_use = {"prototypes": self.task.prototypes_in_use(), "spread": self.task.spread()}
            self.write(self.watch.add(scores, step=self.step, progress=self.pace.progress(self.step), **in_use))
            if self.evaluate is None or not self.settings.train.eval_every:  # checks are all the scores that there are
                best = self.judge(scores)
            if self.collapse:
                self.draw(self.watch.images)
        return (best and self.watch.keeps_best) or self.collapse is not None

    def validate(self, interrupt: Interrupt) -> bool:
        """Score the trained model on the validation images. Return True for the best score so far.

        A signal interrupts the run at this step, and a resumed run evaluates first.
        """
        assert self.evaluate is not None
        scores = self.evaluate_now(self.evaluate, interrupt)
        if scores is None:
            self.evaluated = self.step
            return False
        self.write({f"val_{name}": value for name, value in scores.figures().items()})
        name, shown, low, high = headline_text(scores, decimals=1)
        self.display.say(f"step {self.step:,}: validation {name} {shown} ({low} to {high})")
        self.draw(self.views["val"])
        return self.judge(scores)

    def evaluate_now(self, evaluate: Evaluator, interrupt: Interrupt) -> Scores | None:
        """Evaluate the trained model between two steps. A signal saves a checkpoint and raises Interrupted."""
        self.check_losses()

        def watch() -> None:
            if signal_number := self.world.max(interrupt.number)[0]:
                raise Interrupted(number=int(signal_number))

        try:
            scores = evaluate(self.trained, watch)
        except Interrupted as stop:
            self.interrupt(stop.number)
        self.task.train()
        return scores

    def judge(self, scores: Scores) -> bool:
        """Record the headline of an evaluation. Return True for the best so far."""
        value = scores.headline.value if scores.direction == "higher" else -scores.headline.value
        best = self.best is None or value > self.best
        self.evaluated, self.score, self.best = self.step, value, value if best else self.best
        return best

    def draw(self, split: Split) -> None:
        """Write the pictures of this step. All processes compute them, the first one writes them."""
        if self.watch is not None:
            self.watch.draw(self.trained, step=self.step)
        if self.pictures is None:
            return
        picture = self.task.picture(split, device=self.device, autocast_dtype=self.train_step.autocast_dtype)
        if picture is None or not self.world.first:
            return
        (self.folder / self.pictures).mkdir(exist_ok=True)
        with write_atomically(self.folder / self.pictures / f"step_{self.step:06d}.png") as draft:
            picture.save(draft, format="PNG")

    def save(self) -> Path:
        """Write a checkpoint. Raises ValueError for non-finite weights.

        A gradient can make them so in a step whose loss is still finite.
        """
        self.check_losses()
        broken = any(not bool(local_shard(weight).isfinite().all()) for weight in self.task.parameters())
        if self.world.max(broken)[0]:
            if not self.world.first:
                raise PeerFailed("the weights are not finite")
            raise ValueError(
                f"the weights are not finite after step {self.step}, and are not saved: "
                "lower optim.lr, lengthen optim.warmup or set optim.clip_norm; checkpoints up to here are good"
            )
        state = {"pace": self.pace.state(), "evaluated": self.evaluated, "best": self.best, "images": self.fingerprint}
        state |= {"seen_before": self.seen_before, "receipt": None if self.receipt is None else self.receipt.state()}
        if self.watch is not None:
            state["guard"] = self.watch.guard.state()
        return checkpoint.save(
            self.folder / "checkpoints",
            step=self.step,
            model=self.task.model,
            ema=self.ema,
            optimizers=self.train_step.optimizers,
            state=state | {"settings": sha256(self.folder / SETTINGS)},
            keep=self.settings.train.keep,
            scaler=self.train_step.scaler,
            score=self.score if self.evaluated == self.step else None,
            companions=self.task.companions(),
            world=self.world,
        )

    def restore(self, path: Path, state: dict[str, Any]) -> None:
        """Load a checkpoint. Raises ValueError where the images, or their order, differ from those of the run."""
        if state["images"] != self.fingerprint:
            raise ValueError(
                f"the images of {self.settings.data.path} are not those that the run started with, so it can't be resumed; "
                "restore them, or train again"
            )
        self.load_weights(path, state)
        self.step, self.pace = state["step"], Pace.from_state(state["pace"])
        self.evaluated, self.score, self.best = state["evaluated"], state["score"], state["best"]
        self.seen_before = state.get("seen_before")  # older checkpoints lack it, and the receipt
        self.receipt = Receipt.from_state(state["receipt"]) if state.get("receipt") else None
        if self.watch is not None:
            self.watch.guard.restore(state.get("guard", []))  # older checkpoints lack it: the checks start here

    def load_weights(self, path: Path, state: dict[str, Any]) -> None:
        """Load weights and optimizer of a checkpoint, and no progress."""
        checkpoint.restore(
            path,
            state,
            model=self.task.model,
            ema=self.ema,
            optimizers=self.train_step.optimizers,
            scaler=self.train_step.scaler,
            companions=self.task.companions(),
        )


def step_seed(seed: int, step: int, *, rank: int = 0) -> int:
    """Return the seed of dropout for a step and a process, keyed like every other random draw."""
    return (seed * 1_000_003 + step + rank * 7_368_787) % 2**63


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the generators of the CPU and of a device.

    `torch.manual_seed` seeds those of every kind of device, and formats a stack trace for each kind that is not in use: a tenth
    of a millisecond at every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
