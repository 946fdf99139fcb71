"""What becomes of a training that is killed, cut off, starved or fed with rubbish, and of the run that goes on from there.

    python benchmarks/faults.py                            writes results/faults.json
    python benchmarks/faults.py --only killed --only disk  makes these rows anew
    python benchmarks/faults.py --quick --out quick.json   a few tries of each

A tiny ViT with dropout, mixup, a running mean and Muon learns made photographs, in fp32 on the CPU and for many epochs. Every
try is the command line, `vitrail train … --resume auto`, in processes of its own, to which the fault is done for real; then the
same command has to bring the run to its end. "Identical" are the bytes of model.safetensors and of evaluation.json and all
validation scores on the way, beside a run to which nothing happened. A try holds where all that its row promises came true;
what did not is in the results, word for word. A file system of a few MB takes root; without, those rows are left out.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from safetensors.torch import load_file

import machine
import tables
from vitrail.train import checkpoint

GONE_S, SILENT_S = 10.0, 60.0
"""Bars: seconds from a signal to the end of the process, and of silence behind the death of one of several."""
LIMIT_S = 600.0
"""Seconds after which a process is taken for one that hangs."""
TIMEOUT_S = 20
"""What the processes wait for each other."""
OPTIONS = """
    --recipe from-scratch --model Ti/16 --model.img_size 32 --model.depth 2 --model.embed_dim 32 --model.num_heads 2
    --model.proj_drop_rate 0.1 --model.drop_path_rate 0.1 --augment.mixup_alpha 0.2 --optim.name muon
    --optim.muon_precision fp32 --train.ema_decay 0.9 --train.batch_size 32 --train.eval_every 4
    --train.checkpoint_every 0.004 --train.precision fp32 --train.device cpu
"""


class Way(NamedTuple):
    """A way to run the training."""

    options: str = ""
    processes: int = 1


ALONE = Way()
LOADERS = Way("--data.memory_gb 0 --data.workers 1")
TWO = Way("", 2)
PARTS = Way("--train.shard true", 2)


@dataclass
class Try:
    """One fault that was done, and what came of it."""

    code: int | None = None
    """With which the process ended, as a shell tells it."""
    said: str = ""
    """Its last line."""
    seconds: float | None = None
    """What the row counts: until it was gone, or silent."""
    end: str = "unusable"
    """Of the run that went on: identical, differs or unusable."""
    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Takes note of what did not come true."""
        if not holds:
            self.wrong.append(otherwise)


Done = list[tuple[Path, Try]]
"""The run folder of each try, and the try."""


@dataclass
class Started:
    """A command that runs, and the file that it prints into."""

    process: subprocess.Popen[bytes]
    log: Path

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Its exit code, as a shell tells it. Raises TimeoutExpired where it hangs, and ends it."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return code if code >= 0 else 128 - code

    def kill(self) -> None:
        """Ends it and its children at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def text(self) -> str:
        """All that it has printed so far."""
        return self.log.read_text(errors="replace")

    def line(self) -> str:
        """The last line that Vitrail itself wrote; where it wrote none, the very last."""
        lines = [line.strip() for line in self.text().splitlines() if line.strip()]
        return next((line for line in reversed(lines) if line.startswith("vitrail")), lines[-1] if lines else "")


class Whole(NamedTuple):
    """A run to which nothing happened."""

    result: tuple[bytes, ...]
    seconds: float


class Ground:
    """A folder in which trainings are started."""

    def __init__(self, folder: Path, *, epochs: int) -> None:
        self.folder, self.epochs = folder, epochs
        self.photos = make_photographs(folder / "photos", {"train": 256, "val": 300, "test": 60})
        self._whole: dict[Way, Whole] = {}
        self._started: list[Started] = []
        self._numbers = itertools.count(1)

    def path(self, stem: str) -> Path:
        """A name that is free."""
        return self.folder / f"{stem}-{next(self._numbers)}"

    def words(self, out: Path, way: Way = ALONE, *, photos: Path | None = None, more: str = "") -> list[str]:
        """The command that begins a run and goes on with it."""
        options = f"{OPTIONS} --train.epochs {self.epochs} {way.options} {more}".split()
        return ["train", str(photos or self.photos), *options, "--out", str(out), "--resume", "auto"]

    def start(
        self, words: Sequence[str], way: Way = ALONE, *, script: str = "", restarts: int = 0, env: Any = None, behind: str = ""
    ) -> Started:
        """`vitrail` with these words, or a script that calls it, in as many processes as the way has; `behind` a mount."""
        program = ["-m", "vitrail"]
        if script:
            path = self.path("script").with_suffix(".py")
            path.write_text(script)
            program = [str(path)]
        launch = [sys.executable]
        if way.processes > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(way.processes)]
            launch += ["--max-restarts", str(restarts)]
        shell = ["unshare", "-m", "sh", "-c", f'{behind} && exec "$@"', "sh"] if behind else []
        log = self.path("log")
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*shell, *launch, *program, *words],
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "VITRAIL_TIMEOUT_S": str(TIMEOUT_S), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(Started(process, log))
        return self._started[-1]

    def whole(self, way: Way = ALONE) -> Whole:
        """What the run is when nothing happens to it."""
        if way not in self._whole:
            out, begun = self.path("whole"), time.monotonic()
            started = self.start(self.words(out, way), way)
            if started.end():
                raise RuntimeError(f"the run without a fault failed: {started.text()}")
            self._whole[way] = Whole(result_of(out), time.monotonic() - begun)
        return self._whole[way]

    def go_on(self, tried: Try, out: Path, way: Way = ALONE, *, words: Sequence[str] = ()) -> None:
        """Brings the run to its end, and sees what it has become."""
        started = self.start(words or self.words(out, way), way)
        try:
            code = started.end()
        except subprocess.TimeoutExpired:
            tried.wrong.append(f"going on, it hung: {started.line()}")
            return
        if code:
            tried.wrong.append(f"it did not go on, code {code}: {started.line()}")
            return
        self.compare(tried, out, way)

    def compare(self, tried: Try, out: Path, way: Way) -> None:
        """Whether a finished run is the one to which nothing happened."""
        same = [ours == theirs for ours, theirs in zip(result_of(out), self.whole(way).result, strict=True)]
        tried.end = "identical" if all(same) else "differs"
        for holds, name in zip(same, ("model.safetensors", "evaluation.json", "the validation scores"), strict=True):
            tried.expect(holds, f"{name} differs")

    def until_step(self, started: Started, out: Path, step: int) -> None:
        """Waits until a run has logged this step. Raises RuntimeError where it ends before."""
        begun = time.monotonic()
        while last_step(out) < step:
            if started.process.poll() is not None or time.monotonic() - begun > LIMIT_S:
                raise RuntimeError(f"it never came to step {step}: {started.text()}")
            time.sleep(0.02)

    def stopped(self, way: Way = ALONE, *, more: str = "") -> Path:
        """A run that a signal ended behind its first steps."""
        out = self.path("stopped")
        started = self.start(self.words(out, way, more=more), way)
        self.until_step(started, out, 1)
        started.process.send_signal(signal.SIGTERM)
        if started.end() != 128 + signal.SIGTERM:
            raise RuntimeError(f"a signal did not stop it: {started.text()}")
        return out

    def shown(self, text: str, out: Path) -> str:
        """A line without the names of these folders and without figures that change from try to try."""
        text = text.replace(str(out), "RUN").replace(str(self.photos), "PHOTOS").replace(str(self.folder), "")
        text = re.sub(r"\(epoch \d+, images [^;]*;", "(epoch …, images …;", re.sub(r"\x1b\[[\d;]*m", "", text))
        return re.sub(r"\bstep_\d+", "step_…", re.sub(r"\bstep [\d,]+", "step …", text))

    def close(self) -> None:
        """Ends what still runs."""
        for started in self._started:
            started.kill()


def result_of(out: Path) -> tuple[bytes, ...]:
    """What a finished run has become: weights, scores, and the validation scores on the way."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    scores = [line for line in lines if any(name.startswith("val_") for name in line)]
    return (out / "model.safetensors").read_bytes(), (out / "evaluation.json").read_bytes(), json.dumps(scores).encode()


def last_step(out: Path) -> int:
    """The newest step in metrics.jsonl; 0 where there is none."""
    try:
        steps = re.findall(r'^\{"step": (\d+), .*\}$', (out / "metrics.jsonl").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return max(map(int, steps), default=0)


def make_photographs(root: Path, counts: dict[str, int]) -> Path:
    """A folder of noise in three classes."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for number in range(count):
            path = root / split / "abc"[number % 3] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(rng).save(path, quality=90)
    return root


def noise(rng: np.random.Generator, *, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (40, 32, 3), dtype=np.uint8)).convert(mode)


def row(ground: Ground, fault: str, tries: Sequence[tuple[Path, Try]], *, bar_s: float | None = None) -> dict[str, Any]:
    """A line of the results."""
    all_ = [tried for _, tried in tries]
    for _, tried in tries:
        if bar_s is not None and tried.seconds is not None:
            tried.expect(tried.seconds <= bar_s, f"it took more than {bar_s:g} s")
    said = Counter(ground.shown(tried.said, out) for out, tried in tries if tried.said)
    seconds = [tried.seconds for tried in all_ if tried.seconds is not None]
    return {
        "fault": fault,
        "tries": len(all_),
        "held": sum(not tried.wrong for tried in all_),
        "codes": dict(Counter(str(tried.code) for tried in all_ if tried.code is not None)),
        "said": said.most_common(1)[0][0] if said else "",
        "ends": {end: count for end in ("identical", "differs", "unusable") if (count := sum(t.end == end for t in all_))},
        "seconds": round(max(seconds), 1) if seconds else None,
        "bar_s": bar_s,
        "wrong": [ground.shown(words, out) for out, tried in tries for words in tried.wrong],
    }


def left_out(fault: str, why: str) -> dict[str, Any]:
    """The line of a fault that can't be done here."""
    return {"fault": fault, "tries": 0, "held": 0, "codes": {}, "said": why, "ends": {}, "seconds": None, "wrong": []}


# --------------------------------------------------------------------------------------------------------------------
# Killed


def killed(ground: Ground, tries: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """SIGKILL at a moment drawn from the whole length of the run, its start included; and with one half's chance again."""
    done: Done = []
    kills, saved, length = 0, 0, ground.whole().seconds
    while len(done) < tries:
        out, tried, cut = ground.path("killed"), Try(), 0
        while not cut or rng.random() < 0.5:
            started = ground.start(ground.words(out))
            try:
                started.process.wait(rng.uniform(0, length))
                break  # at its end before it could be killed
            except subprocess.TimeoutExpired:
                started.process.kill()
                tried.code, cut = started.end(), cut + 1
                saved += bool(checkpoint.list_complete(out / "checkpoints"))
        if cut:
            ground.go_on(tried, out)
            done.append((out, tried))
            kills += cut
    yield {**row(ground, "SIGKILL at random moments", done), "kills": kills, "behind_a_checkpoint": saved}


DYING = '''
"""The command line; it dies by SIGKILL at the n-th thing that the first checkpoint does to the disk, half-way into it."""
import os, pathlib, signal, sys
from pathlib import Path
import vitrail.cli
from vitrail.train import checkpoint

last, done, saving, busy = int(os.environ["DIE_AT"]), 0, False, False

def count(half=lambda: None):
    global done, busy
    if not saving or busy:
        return
    done += 1
    if done == last:
        busy = True
        half()
        os.kill(os.getpid(), signal.SIGKILL)

def watch(event, args):
    written = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir") or event == "open" and (args[2] or 0) & written:
        count()

def torn(owner, name, place):
    do = getattr(owner, name)
    def counted(*args, **options):
        def half():
            do(*args, **options)
            os.truncate(args[place], os.path.getsize(args[place]) // 2)
        count(half)
        return do(*args, **options)
    setattr(owner, name, counted)

def before(owner, name):
    do = getattr(owner, name)
    def counted(*args, **options):
        count()
        return do(*args, **options)
    setattr(owner, name, counted)

sys.addaudithook(watch)
torn(checkpoint, "save_tensors", 1)
torn(pathlib.Path, "write_text", 0)
torn(pathlib.Path, "write_bytes", 0)
before(os, "fsync")
save, saves = checkpoint.save, 0

def first(*args, **options):
    global saving, saves
    saving = not saves
    saves += 1
    path = save(*args, **options)
    count()
    if saving:
        Path(os.environ["COUNTED"]).write_text(str(done))
    saving = False
    return path

checkpoint.save = first
sys.exit(vitrail.cli.main())
'''


def boundaries(ground: Ground, tries: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """SIGKILL at each thing that a save does to the disk: files made, half written, synced, renamed, deleted; 0 tries all."""
    begun, keep_one = ground.stopped(more="--train.keep 1"), "--train.keep 1"

    def die(at: int) -> tuple[Path, Started]:
        out = ground.path("cut")
        shutil.copytree(begun, out)
        env = {"DIE_AT": str(at), "COUNTED": str(ground.path("counted"))}
        started = ground.start(ground.words(out, more=keep_one), script=DYING, env=env)
        started.end()
        return out, started

    counted = ground.path("counted")
    probe = ground.path("probe")
    shutil.copytree(begun, probe)
    env = {"DIE_AT": "0", "COUNTED": str(counted)}
    if ground.start(ground.words(probe, more=keep_one), script=DYING, env=env).end():
        raise RuntimeError("the save whose steps are counted failed")
    moments = range(1, int(counted.read_text()) + 1)
    chosen = sorted(rng.sample(moments, tries)) if 0 < tries < len(moments) else list(moments)

    def one(at: int) -> tuple[Path, Try]:
        out, started = die(at)
        tried = Try(code=started.end())
        tried.expect(tried.code == 128 + signal.SIGKILL, f"moment {at}: it was not killed")
        try:
            damaged = checkpoint.find_newest(out / "checkpoints")[2]
            tried.expect(not damaged, f"moment {at}: half a checkpoint looks like one: {damaged}")
        except ValueError as error:
            tried.wrong.append(f"moment {at}: {error}")
        ground.go_on(tried, out, words=ground.words(out, more=keep_one))
        return out, tried

    ground.whole()
    with ThreadPoolExecutor(machine.cores()) as pool:
        done = list(pool.map(one, chosen))
    yield {**row(ground, "SIGKILL at each step of a save", done), "moments": len(moments)}


# --------------------------------------------------------------------------------------------------------------------
# Signals

SIGNALLED = '''
"""The command line; it sends itself a signal in the n-th step, batch of an evaluation, or save."""
import importlib, os, sys, time
from pathlib import Path
import vitrail.cli
from vitrail.train import checkpoint
from vitrail.train.step import Step

scoring = importlib.import_module("vitrail.evaluate.evaluate")
places = {"step": (Step, "__call__"), "evaluation": (scoring, "normalise"), "save": (checkpoint, "checksums")}
owner, name = places[os.environ["PLACE"]]
do, calls = getattr(owner, name), 0

def counted(*args, **options):
    global calls
    calls += 1
    if calls == int(os.environ["AT"]):
        Path(os.environ["ASKED"]).write_text(str(time.time()))
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
    return do(*args, **options)

setattr(owner, name, counted)
sys.exit(vitrail.cli.main())
'''


def signalled(ground: Ground, tries: int, rng: random.Random, *, name: str, place: str) -> Iterator[dict[str, Any]]:
    """A signal in a step, a batch of an evaluation, or a save."""
    number, done = signal.Signals[name], []
    occasions = {"step": 6 * ground.epochs, "evaluation": 2 * ((ground.epochs - 1) // 4), "save": 2}[place]
    for _ in range(tries):
        out, asked = ground.path("signalled"), ground.path("asked")
        env = {"PLACE": place, "AT": str(rng.randint(1, occasions)), "SIGNAL": str(int(number)), "ASKED": str(asked)}
        started = ground.start(ground.words(out), script=SIGNALLED, env=env)
        tried = Try(code=started.end(), said=started.line())
        tried.seconds = time.time() - float(asked.read_text())
        tried.expect(tried.code == 128 + number, f"it ended with {tried.code}: {tried.said}")
        tried.expect("is saved; go on with `vitrail resume" in tried.said, f"it said {tried.said}")
        ground.go_on(tried, out, words=["resume", str(out)])
        done.append((out, tried))
    yield row(ground, f"{name} in {'an' if place == 'evaluation' else 'a'} {place}", done, bar_s=GONE_S)


def signalled_at_random(ground: Ground, tries: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """SIGTERM at a moment drawn from the whole length of the run, its start included."""
    length = ground.whole().seconds
    done: Done = []
    while len(done) < tries:
        out, tried = ground.path("signalled"), Try()
        started = ground.start(ground.words(out))
        try:
            started.process.wait(rng.uniform(0, length))
            continue  # at its end before
        except subprocess.TimeoutExpired:
            started.process.terminate()
        begun = time.monotonic()
        tried.code = started.end()
        tried.seconds, line = time.monotonic() - begun, started.line()
        tried.said = line if "interrupted" in line else ""  # at its start, nothing
        tried.expect(tried.code in (0, 128 + signal.SIGTERM), f"it ended with {tried.code}: {line}")
        ground.go_on(tried, out)
        done.append((out, tried))
    yield row(ground, "SIGTERM at random moments", done, bar_s=GONE_S)


# --------------------------------------------------------------------------------------------------------------------
# Starved


@contextmanager
def small_disk(folder: Path, *, size: str) -> Iterator[Callable[[str], None]]:
    """A file system of its own at `folder`; gives what makes it larger."""

    def enlarge(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield enlarge
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def disk(ground: Ground, tries: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """A disk of 4 MB, on which all checkpoints are kept."""
    fault, keep = "the disk is full (4 MB)", "--train.keep 1000 --train.checkpoint_every 0.0001"
    if not is_root():
        yield left_out(fault, "not tried: mounting a file system takes root")
        return
    done = []
    for _ in range(tries):
        place, tried = ground.path("disk"), Try()
        with small_disk(place, size="4m") as enlarge:
            out = place / "run"
            started = ground.start(ground.words(out, more=keep))
            tried.code, tried.said = started.end(), started.line()
            tried.expect(tried.code == 2, f"it ended with {tried.code}")
            full = "could not be written" in tried.said and "make room, then `vitrail resume`" in tried.said
            tried.expect(full or "the disk is full" in tried.said, f"it said {tried.said}")
            again = ground.start(["resume", str(out)])  # while it is still full
            tried.expect(again.end() == 2 and "Traceback" not in again.text(), f"still full, it said {again.line()}")
            enlarge("2g")
            ground.go_on(tried, out, words=["resume", str(out)])
        done.append((out, tried))
    yield row(ground, fault, done)


def shared_memory(ground: Ground, tries: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """A /dev/shm that does not hold one batch of the loaders."""
    fault = "/dev/shm too small for a batch"
    small = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if not is_root():
        yield left_out(fault, "not tried: mounting a file system takes root")
        return
    for where in ("at the start", "going on"):
        done = []
        for _ in range(tries):
            out = ground.stopped(LOADERS) if where == "going on" else ground.path("starved")
            started, tried = ground.start(ground.words(out, LOADERS), behind=small), Try()
            tried.code, tried.said = started.end(), started.line()
            tried.expect(tried.code == 2, f"it ended with {tried.code}")
            tried.expect("ran out of shared memory (/dev/shm); make it larger" in tried.said, f"it said {tried.said}")
            ground.go_on(tried, out, LOADERS)
            done.append((out, tried))
        yield row(ground, f"{fault}, {where}", done)


def loader(ground: Ground, tries: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """A loader process is killed."""
    done: Done = []
    ground.whole(LOADERS)
    while len(done) < tries:
        out, tried = ground.path("loader"), Try()
        started = ground.start(ground.words(out, LOADERS))
        ground.until_step(started, out, rng.randint(1, 4 * ground.epochs))
        try:
            os.kill(children(started.process.pid)[0], signal.SIGKILL)
        except (IndexError, ProcessLookupError):  # at the end of an epoch's evaluation
            started.kill()
            continue
        begun = time.monotonic()
        tried.code = started.end()
        tried.seconds, tried.said = time.monotonic() - begun, started.line()
        tried.expect(tried.code == 2, f"it ended with {tried.code}")
        says = "a loader process was killed" in tried.said and "is saved, go on with `vitrail resume" in tried.said
        tried.expect(says, f"it said {tried.said}")
        ground.go_on(tried, out, LOADERS, words=["resume", str(out)])
        done.append((out, tried))
    yield row(ground, "a loader process is killed", done)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


def is_root() -> bool:
    """Whether file systems can be mounted."""
    return os.geteuid() == 0 and shutil.which("unshare") is not None and shutil.which("mount") is not None


# --------------------------------------------------------------------------------------------------------------------
# Several processes


def rank(ground: Ground, tries: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """One of two processes is killed; torchrun starts both again, and where nothing moves for a minute, so does this script."""
    for way, title in ((TWO, "DDP"), (PARTS, "FSDP2")):
        ground.whole(way)
        done, relaunched = [], 0
        for _ in range(max(1, tries // 2)):
            out, tried = ground.path("rank"), Try(seconds=0.0)
            started = ground.start(ground.words(out, way), way, restarts=3)
            ground.until_step(started, out, rng.randint(1, 4 * ground.epochs))
            os.kill(rng.choice(children(started.process.pid)), signal.SIGKILL)
            for launch in range(4):
                silent = silence(started, out)
                tried.seconds = max(tried.seconds or 0.0, silent)
                if started.process.poll() == 0:
                    break
                tried.said = tried.said or started.line()
                started.kill()
                if launch < 3:
                    relaunched += 1
                    started = ground.start(ground.words(out, way), way, restarts=3)
            tried.said = tried.said or next(
                (line for line in started.text().splitlines() if line.startswith("vitrail") and "process" in line), ""
            )
            tried.code = started.end()
            if tried.code == 0:
                ground.compare(tried, out, way)
            else:
                tried.wrong.append(f"it never came to its end: {started.line()}")
            done.append((out, tried))
        fault = f"one of two processes is killed ({title}, torchrun --max-restarts 3)"
        yield {**row(ground, fault, done, bar_s=SILENT_S), "relaunched": relaunched}


def silence(started: Started, out: Path) -> float:
    """The longest time in which a run neither printed nor logged, until it ends, or has been silent for the bar's time."""
    files, longest, since = (started.log, out / "metrics.jsonl"), 0.0, time.monotonic()
    before: list[int] = []
    while True:
        over, now = started.process.poll() is not None, [path.stat().st_size if path.exists() else 0 for path in files]
        longest = max(longest, time.monotonic() - since)
        if over or longest > SILENT_S:
            return longest
        if now != before:
            before, since = now, time.monotonic()
        time.sleep(0.1)


POISONED = '''
"""The command line; in the process of rank 1 a batch has an image that is no number."""
import os, sys
from pathlib import Path
import vitrail.cli
from vitrail.train.step import Step

call, calls = Step.__call__, 0

def poisoned(self, batch):
    global calls
    calls += 1
    if calls == int(os.environ["AT"]) and os.environ["RANK"] == "1":
        batch.images[0] = float("nan")
    return call(self, batch)

Step.__call__ = poisoned
try:
    code = vitrail.cli.main()
finally:
    Path(os.environ["COUNTED"] + os.environ["RANK"]).write_text(str(calls))
sys.exit(code)
'''


def poison(ground: Ground, tries: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """One of two processes has an image that is no number."""
    done = []
    for _ in range(tries):
        out, tried, counted = ground.path("poison"), Try(), ground.path("counted")
        at = rng.randint(4 * ground.epochs, 6 * ground.epochs)
        started = ground.start(ground.words(out, TWO), TWO, script=POISONED, env={"AT": str(at), "COUNTED": str(counted)})
        tried.code, tried.said = started.end(), started.line()
        tried.expect(tried.code != 0, "it went on")
        tried.expect(re.search(rf"(loss|grad_norm) is nan at step {at} ", tried.said) is not None, f"it said {tried.said}")
        steps = [path.read_text() if path.exists() else "none" for path in (Path(f"{counted}{n}") for n in range(2))]
        together = len(set(steps)) == 1 and steps[0].isdigit() and int(steps[0]) >= at  # losses are read once a second
        tried.expect(together, f"the processes stopped at steps {' and '.join(steps)}, not together from {at} on")
        for path in checkpoint.list_complete(out / "checkpoints"):
            tensors = [value for file in path.glob("*.safetensors") for value in load_file(file).values()]
            finite = all(bool(value.isfinite().all()) for value in tensors)
            tried.expect(finite, f"{path.name} holds what is no number")
        ground.go_on(tried, out, TWO)
        done.append((out, tried))
    yield row(ground, "an image of one of two processes is NaN", done)


# --------------------------------------------------------------------------------------------------------------------
# Fed with rubbish


def broken(ground: Ground, tries: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """1 % of the training images are files of ten kinds that can't be read; others are odd, and can."""
    photos = make_photographs(ground.path("rubbish"), {"train": 1000, "val": 90, "test": 60})
    bad = break_ten(photos / "train" / "a")
    done = []
    for way in (ALONE, LOADERS)[:tries]:
        out, tried = ground.path("broken"), Try()
        started = ground.start(ground.words(out, way, photos=photos, more="--train.epochs 2"), way)
        tried.code = started.end()
        tried.said = next((line for line in started.text().splitlines() if line.startswith("left out")), started.line())
        tried.expect(tried.code == 0, f"it ended with {tried.code}: {started.line()}")
        if tried.code == 0:
            named = {Path(line.split("\t")[0]).name for line in (out / "skipped.txt").read_text().splitlines()}
            tried.expect(named == bad, f"skipped.txt names {sorted(named)}, not {sorted(bad)}")
            tried.end = "-"
        done.append((out, tried))
    yield row(ground, f"{len(bad)} of 1,016 files are broken, in as many ways", done)


def break_ten(folder: Path) -> set[str]:
    """Puts ten files that can't be read into a class folder, and six odd ones that can. Returns the names of the ten."""
    rng = np.random.default_rng(1)

    def saved(mode: str, kind: str, **options: Any) -> bytes:
        file = BytesIO()
        noise(rng, mode=mode).save(file, kind, **options)
        return file.getvalue()

    def chunk(name: bytes, content: bytes, *, flip: int = 0) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) ^ flip)

    def png(side: int, pixels: bytes, *, flip: int = 0) -> bytes:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), flip=flip)
        return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")

    jpeg, webp, gif = saved("RGB", "JPEG"), saved("RGB", "WEBP"), saved("P", "GIF")
    sound = zlib.compress(bytes(40 * (1 + 3 * 40)))
    contents = {
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.webp": webp[: len(webp) // 2],
        "truncated.gif": gif[: len(gif) // 2],
        "empty.jpg": b"",
        "text.jpg": b"this is no picture\n",
        "archive.jpg": b"PK\x03\x04" + rng.bytes(500),
        "bomb.png": png(60_000, zlib.compress(bytes(1_000_000))),
        "checksum.png": png(40, sound, flip=1),
        "pixels.png": png(40, b"\xff" * 40),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    if os.geteuid():
        (folder / "archive.jpg").chmod(0)
    fine = {
        "cmyk.jpg": saved("CMYK", "JPEG"),
        "grey.jpg": saved("L", "JPEG"),
        "a.png.jpg": png(40, sound),
        "palette.gif": gif,
        "transparent.png": saved("RGBA", "PNG"),
    }
    for name, content in fine.items():
        (folder / name).write_bytes(content)
    Image.fromarray(rng.integers(0, 65536, (40, 32), dtype=np.uint16)).save(folder / "deep.png")
    (folder / "album.jpg").mkdir()
    (folder / "album.jpg" / "inside.jpg").write_bytes(jpeg)
    return {*contents, "gone.jpg"}


# --------------------------------------------------------------------------------------------------------------------


class Fault(NamedTuple):
    """What is done, and how often."""

    rows: Callable[[Ground, int, random.Random], Iterator[dict[str, Any]]]
    """Does it so many times, and gives the lines of the results."""
    tries: int
    quick: int


FAULTS = {
    "killed": Fault(killed, 20, 2),
    "boundaries": Fault(boundaries, 0, 4),
    "sigterm": Fault(signalled_at_random, 10, 1),
    **{
        f"{name.lower()}-{place}": Fault(functools.partial(signalled, name=name, place=place), 5, 1)
        for name in ("SIGTERM", "SIGUSR1")
        for place in ("step", "evaluation", "save")
    },
    "disk": Fault(disk, 3, 1),
    "loader": Fault(loader, 5, 1),
    "shared-memory": Fault(shared_memory, 2, 1),
    "rank": Fault(rank, 10, 2),
    "poison": Fault(poison, 3, 1),
    "broken": Fault(broken, 2, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(FAULTS), help="default: all")
    parser.add_argument("--quick", action="store_true", help="a few tries of each")
    parser.add_argument("--epochs", type=int, default=60, help="length of the run that the faults are done to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs go meanwhile; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / "faults.json")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is mounted goes, and what runs

    result: dict[str, Any] = {"faults": {}, "machines": {}}
    if args.only and args.out.exists():
        result = json.loads(args.out.read_text())
    result["seed"] = args.seed
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        ground = Ground(Path(folder), epochs=args.epochs)
        try:
            for name in args.only or FAULTS:
                fault, begun, rows = FAULTS[name], time.monotonic(), []
                for made in fault.rows(
                    ground, fault.quick if args.quick else fault.tries, random.Random(f"{args.seed} {name}")
                ):
                    rows.append(made)
                    print(f"{made['fault']}: {made['held']} of {made['tries']} held; {made['said']}", flush=True)
                    for wrong in made["wrong"]:
                        print(f"  {wrong}", flush=True)
                result["faults"][name], result["machines"][name] = rows, machine.facts()
                print(f"  ({name}: {math.ceil(time.monotonic() - begun)} s)", file=sys.stderr)
                result["faults"] = {name: result["faults"][name] for name in FAULTS if name in result["faults"]}
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(result, indent=1) + "\n")
        finally:
            ground.close()
    print(tables.faults(result))


if __name__ == "__main__":
    main()
