"""The loop, in plain sight."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor

from vitrail.data.batch import Batch, RawBatch
from vitrail.data.batches import LoaderLost, Part, steps_per_epoch, train_batches
from vitrail.data.dataset import Split
from vitrail.evaluate import Scores
from vitrail.evaluate.metrics import headline_text
from vitrail.models.backbone import Backbone
from vitrail.settings import Pair, Preprocessing, Settings
from vitrail.tasks import Task
from vitrail.text import printable
from vitrail.train import checkpoint
from vitrail.train.distributed import ALONE, Ended, World, own_part
from vitrail.train.notes import long_warmup
from vitrail.train.optim import REFERENCE_BATCH, lr_factor
from vitrail.train.pace import Pace
from vitrail.train.progress import Display, Metrics, Rate
from vitrail.train.sizes import patch_at, side_unit, size_at
from vitrail.train.step import Ema, Step
from vitrail.weights.run_folder import SETTINGS, sha256, write_atomically

PATIENCE_S = 1.0
"""Seconds after which a second Ctrl-C is one of its own."""
LOG_EVERY_S = 1.0
"""Seconds between two lines of metrics.jsonl."""


@dataclass
class Loop:
    """All that a running training is made of; `step` and `pace` say how far it is."""

    settings: Settings
    folder: Path
    split: Split
    """The training images."""
    views: Mapping[str, Split]
    """The validation and test images, as they are evaluated."""
    preprocessing: Preprocessing
    device: torch.device
    move: Step
    """Moves the weights of the task by one batch."""
    ema: Ema | None
    pace: Pace
    evaluate: Callable[[Backbone, Callable[[], None]], Scores | None] | None
    """On the validation images, with something to call between two batches; None where there are none."""
    metrics: Metrics | None
    """None in the processes that do not write."""
    display: Display
    world: World = ALONE
    images_are: str = ""
    """A hash of the names of all images in their order, which every draw depends on."""
    stopped_at_probe: bool = False
    """Whether the model is the probe of its frozen features, and is not to be trained."""
    pictures: str | None = None
    """Folder inside the run's for what the task draws at each evaluation; None: it draws nothing."""
    step: int = 0
    evaluated: int = 0
    """The step of the last evaluation."""
    score: float | None = None
    """What it gave: the headline figure."""
    best: float | None = None
    """The best of all evaluations."""

    @property
    def task(self) -> Task:
        """What is learned."""
        return self.move.task

    @property
    def trained(self) -> Backbone:
        """The model that is evaluated and saved: the running mean where there is one."""
        return self.task.product() if self.ema is None else self.ema.backbone

    def run(self) -> None:
        """Trains to the end.

        Raises Interrupted behind a saved checkpoint, and ValueError where the loss is no number or a loader process is lost.
        """
        cfg = self.settings
        if self.pace.finished(self.step):  # resumed from its last checkpoint
            return
        start, saved = time.perf_counter() - self.pace.elapsed, time.perf_counter()
        rate, logged = Rate(), 0.0
        self.task.train()
        with self.display, Interrupt() as interrupt, self.saved_if_lost():
            missed = self.step > 0 and self.evaluation_is_due() and self.evaluated != self.step  # it was interrupted there
            if missed and self.validate(interrupt) and cfg.train.keep_best:
                self.save()
            for epoch, batch in self.batches():
                torch.manual_seed(step_seed(cfg.train.seed, self.step, rank=self.world.rank))
                lr = self.lr_factor()
                self.move.optimizers.set_lr(lr)
                losses = self.move(batch)
                self.task.after_step(self.step)
                if self.ema is not None:
                    self.ema.update(self.step)
                self.step += 1
                self.require_finite(losses, epoch, batch)

                now = time.perf_counter()
                images_per_s = rate.add(len(batch) * self.world.size)
                fitted = self.pace.advance(self.step, *self.world.greatest(now - start))
                if fitted and len(self.pace.fits) == 1 and (line := long_warmup(cfg.optim.warmup, self.pace.total)):
                    self.display.say(f"note: {line}")
                last = self.pace.finished(self.step)
                if now - logged >= LOG_EVERY_S or last:
                    logged = now
                    self.log(epoch, losses, lr=lr, images_per_s=images_per_s)
                if last:
                    self.save()
                    if asked := self.world.greatest(interrupt.number)[0]:  # while it was written
                        self.leave(asked, saved=True)
                    return
                long_ago = now - saved >= 60 * cfg.train.checkpoint_every
                asked, due = self.world.greatest(interrupt.number, long_ago)
                if asked:
                    self.leave(asked)
                best = self.evaluation_is_due() and self.validate(interrupt)
                if due or (best and cfg.train.keep_best):
                    self.save()
                    saved = time.perf_counter()

    def leave(self, number: float, *, saved: bool = False) -> NoReturn:
        """Saves, if that is not done, and ends the run as a signal asked."""
        if not saved:
            self.save()
        raise Interrupted(f"step {self.step} is saved; go on with `vitrail resume {self.folder}`", number=int(number))

    @contextmanager
    def saved_if_lost(self) -> Iterator[None]:
        """Saves where a loader process is lost, which is between two steps; several processes can't agree on it, and end."""
        try:
            yield
        except LoaderLost as error:
            if self.world.size > 1 or not self.step:
                raise
            self.save()
            raise LoaderLost(f"{error}; step {self.step} is saved, go on with `vitrail resume {self.folder}`") from error

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Augmented batches on the device, from the step on that the run stands at, in the size and patch of their step."""
        cfg, size = self.settings, self.preprocessing.img_size
        for epoch, raw in train_batches(
            self.split,
            batch_size=cfg.train.batch_size,
            seed=cfg.train.seed,
            augment=cfg.augment,
            start_step=self.step,
            balanced=cfg.data.balance == "sampler",
            part=Part(self.world.rank, self.world.size),
        ):
            if (now := self.img_size()) != size:
                size = now
                self.display.say(f"step {self.step:,}: images have {size[0]}x{size[1]} px from here on")
            if not len(raw):
                yield epoch, self.stand_in()
                continue
            yield epoch, self.task.batch(raw.to(self.device), epoch=epoch, img_size=size, patch_size=self.patch_size())

    def stand_in(self) -> Batch:
        """A black image that counts for nothing, where none of this process's can be read: it keeps step with the others."""
        size, cfg = self.img_size(), self.settings.model
        none = torch.zeros(1, dtype=torch.long)
        raw = RawBatch(
            images=torch.zeros(1, cfg.in_channels, *size, dtype=torch.uint8),
            sizes=torch.tensor([size]),
            boxes=torch.tensor([[0.0, 0.0, *map(float, size)]]),
            labels=none,
            indexes=none,
            targets=torch.zeros(1, cfg.num_classes) if self.split.multi_label else None,
        )
        batch = self.task.batch(raw.to(self.device), epoch=0, img_size=size, patch_size=self.patch_size())
        return dataclasses.replace(batch, stands_in=True)

    def img_size(self) -> Pair:
        """(height, width) of the images of this step: a function of the progress, which a resumed run walks again."""
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
        """The patch that this step's images are cut into; None is the model's own."""
        cfg = self.settings.train
        return patch_at(self.step, patches=cfg.patch_sizes, seed=cfg.seed) if cfg.patch_sizes else None

    def lr_factor(self) -> float:
        """The learning rate of this step, as a share of its peak."""
        cfg = self.settings.optim
        if self.step < cfg.warmup and cfg.warmup >= 1:  # in steps, however many there are in all
            return (self.step + 0.5) / cfg.warmup
        warmup = cfg.warmup if cfg.warmup < 1 else cfg.warmup / max(cfg.warmup, self.pace.total or 0)
        middle = self.pace.progress(self.step + 0.5)  # or the first step, or the last, would not move at all
        return lr_factor(middle, schedule=cfg.schedule, warmup=warmup)

    def evaluation_is_due(self) -> bool:
        """Whether this step ends one of the stretches that `train.eval_every` counts."""
        cfg = self.settings.train
        if self.evaluate is None or not cfg.eval_every:
            return False
        stretch = cfg.eval_every * steps_per_epoch(self.split, batch_size=cfg.batch_size)
        return self.step % max(1, round(stretch)) == 0

    def require_finite(self, losses: dict[str, Tensor], epoch: int, batch: Batch) -> None:
        """Raises ValueError, with step and batch named, where the loss or its gradient is no number: nothing is saved."""
        broken = [name for name in ("loss", "grad_norm") if name in losses and not math.isfinite(losses[name].item())]
        if not broken:
            return
        own = [] if batch.stands_in else [self.split.names[index] for index in batch.indexes.tolist()]
        names = [name for part in self.world.gather(own) for name in part]
        if not self.world.first:
            raise Ended(f"{broken[0]} is no number")
        (self.folder / "bad_batch.txt").write_text("\n".join(map(printable, names)) + "\n", encoding="utf-8")
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise ValueError(
            f"{broken[0]} is {losses[broken[0]].item()} at step {self.step} "
            f"(epoch {epoch}, images {some}; all in {self.folder / 'bad_batch.txt'}): "
            "lower optim.lr, lengthen optim.warmup or set optim.clip_norm; checkpoints up to here are good"
        )

    def log(self, epoch: int, losses: dict[str, Tensor], *, lr: float, images_per_s: float) -> None:
        """One line of metrics.jsonl, and the display; `lr` is the step's share of its peak."""
        values = {name: value.item() for name, value in losses.items()}
        peak = self.settings.optim.lr * self.settings.train.batch_size / REFERENCE_BATCH
        told = {"epoch": epoch, "seconds": round(self.pace.elapsed, 2), **values}
        self.write({**told, "lr": lr * peak, "images_per_s": round(images_per_s, 1)})
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
        """One line of metrics.jsonl, by the process that writes."""
        if self.metrics is not None:
            self.metrics.write(self.step, values)

    def validate(self, interrupt: Interrupt) -> bool:
        """Scores the trained model on the validation images; says whether it is the best so far.

        A signal on the way ends the run at this step, and a resumed run evaluates first.
        """
        assert self.evaluate is not None

        def watch() -> None:
            if asked := self.world.greatest(interrupt.number)[0]:
                raise Interrupted(number=int(asked))

        try:
            scores = self.evaluate(self.trained, watch)
        except Interrupted as stop:
            self.leave(stop.number)
        self.task.train()
        if scores is None:
            self.evaluated = self.step
            return False
        self.write({f"val_{name}": value for name, value in scores.figures().items()})
        name, shown, low, high = headline_text(scores, decimals=1)
        self.display.say(f"step {self.step:,}: validation {name} {shown} ({low} to {high})")
        self.draw(self.views["val"])
        value = scores.headline.value
        best = self.best is None or value > self.best
        self.evaluated, self.score, self.best = self.step, value, value if best else self.best
        return best

    def draw(self, split: Split) -> None:
        """Writes the task's picture of a split, under the step. All processes compute it, the first one writes."""
        if self.pictures is None:
            return
        picture = self.task.picture(split, device=self.device, autocast_dtype=self.move.autocast_dtype)
        if picture is None or not self.world.first:
            return
        (self.folder / self.pictures).mkdir(exist_ok=True)
        with write_atomically(self.folder / self.pictures / f"step_{self.step:06d}.png") as draft:
            picture.save(draft, format="PNG")

    def save(self) -> Path:
        """A checkpoint of all that the run needs to go on. Raises ValueError for weights that are no numbers.

        A gradient can make them so in a step whose loss is a number still.
        """
        broken = any(not bool(own_part(weight).isfinite().all()) for weight in self.task.parameters())
        if self.world.greatest(broken)[0]:
            if not self.world.first:
                raise Ended("the weights are no numbers")
            raise ValueError(
                f"the weights are no numbers after step {self.step}, and are not saved: "
                "lower optim.lr, lengthen optim.warmup or set optim.clip_norm; checkpoints up to here are good"
            )
        state = {"pace": self.pace.state(), "evaluated": self.evaluated, "best": self.best, "images": self.images_are}
        return checkpoint.save(
            self.folder / "checkpoints",
            step=self.step,
            model=self.task.model,
            ema=self.ema,
            optimizers=self.move.optimizers,
            state=state | {"settings": sha256(self.folder / SETTINGS)},
            keep=self.settings.train.keep,
            scaler=self.move.scaler,
            score=self.score if self.evaluated == self.step else None,
            companions=self.task.companions(),
            world=self.world,
        )

    def restore(self, path: Path, state: dict[str, Any]) -> None:
        """Goes back to a checkpoint. Raises ValueError where the images are others, or in another order, than they were."""
        if state["images"] != self.images_are:
            raise ValueError(
                f"the images of {self.settings.data.path} are not those that the run began with, so it can't go on as it would "
                "have; put them back, or train again"
            )
        move = self.move
        checkpoint.restore(
            path,
            state,
            model=self.task.model,
            ema=self.ema,
            optimizers=move.optimizers,
            scaler=move.scaler,
            companions=self.task.companions(),
        )
        self.step, self.pace = state["step"], Pace.from_state(state["pace"])
        self.evaluated, self.score, self.best = state["evaluated"], state["score"], state["best"]


def step_seed(seed: int, step: int, *, rank: int = 0) -> int:
    """What dropout's generator is seeded with at a step: keyed, as every other draw is, and another one in each process."""
    return (seed * 1_000_003 + step + rank * 7_368_787) % 2**63


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to end, and it has saved what it needs to go on."""

    def __init__(self, *text: str, number: int) -> None:
        super().__init__(*text)
        self.number = number


class Interrupt:
    """Turns Ctrl-C, SIGTERM and SIGUSR1 into a wish that is granted between two steps; a second Ctrl-C is not held back.

    Schedulers send the latter two some time before they kill: SLURM what `--signal` says, Kubernetes SIGTERM. One signal may
    come twice, from the scheduler and from torchrun, which hands on what it gets: that is no second wish.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))

    def __init__(self) -> None:
        self.number = 0
        """The signal that asked; 0 for none."""
        self.since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python does not allow it
            self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self.since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.since > PATIENCE_S:
            raise KeyboardInterrupt
