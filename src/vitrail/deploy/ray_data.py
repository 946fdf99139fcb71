"""Predictions and embeddings on a Ray cluster: Ray Data hands chunks of images to workers, which write finished part files.

A part's name is a hash of its images' names, and a part appears when it is complete. So a chunk that is computed again, since a
worker was killed, replaces its own parts or finds them; and an interrupted command goes on with the images that no part has.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from vitrail.deploy.decoding import decoded_batches
from vitrail.deploy.embeddings import load_backbone, require_choices
from vitrail.deploy.export.metadata import is_export
from vitrail.deploy.image_chunks import COLUMNS, NameSet, digests, is_url, open_images, pack, place_of, read_view, unpack
from vitrail.deploy.part_files import PartFolder, Written, with_metadata
from vitrail.deploy.predict import Predictor
from vitrail.deploy.worker_jobs import Compute, EmbedJob, Job, PredictJob
from vitrail.settings import Pair
from vitrail.text import one_line

ROWS = 4096
"""Images of a part file at most."""
PART_BYTES = 64e6
"""Size of a part's results in memory at most."""
WORKER_CPUS = 4
"""CPUs of a worker where the machines have so many."""
_LEAST_ROWS = 16
_CHUNKS_EACH = 8  # chunks that a worker gets at least, so that all end at about the same time
_WORKERS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Number of workers, and the resources of each."""

    workers: tuple[int, int] | None = None
    """Smallest and largest number; None: as many as the cluster has room for."""
    cpus: int | None = None
    """CPUs of a worker; None: 4, or as many as the smallest machine has."""


WHOLE_CLUSTER = Cluster()


@dataclass(frozen=True)
class Computed:
    """Result of a command on a cluster."""

    out: str
    written: Written
    """All that is in the folder."""
    begun_with: int
    """Images whose results were there already."""
    seconds: float
    """Time for the others."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        return {"out": self.out, **asdict(self.written), "begun_with": self.begun_with, "seconds": self.seconds}


def predict_on_ray(
    run: str | Path,
    data: Sequence[str],
    out: str,
    *,
    top: int = 1,
    coverage: float | None = None,
    calibrated: bool = True,
    device: str = "auto",
    batch_size: int = 32,
    backend: str = "auto",
    columns: tuple[str, str] = COLUMNS,
    format: str = "parquet",
    rows: int = ROWS,
    overwrite: bool = False,
    cluster: Cluster = WHOLE_CLUSTER,
) -> Computed:
    """Write the predictions for images of any number into the folder `out`, of .parquet or .csv files, on a Ray cluster.

    `data` and `columns` are as in `image_chunks.open_images`; `out` is a path that all machines see, or a URL. The same call
    goes on with what an interrupted one left. Raises ValueError as `Predictor` does, for results of other settings in `out`,
    for two images of one name, and where Ray is missing.
    """
    require_ray()
    if top < 1:
        raise ValueError(f"top {top} must be at least 1")
    if is_export(run):
        raise ValueError(f"{run} is an export, which does not travel to workers; name the run that it was made of")
    predictor = Predictor(run, device="cpu", batch_size=batch_size, calibrated=calibrated)
    if coverage is not None:
        predictor.check_coverage(coverage)
    job = PredictJob(
        model=predictor.model,
        batch_size=batch_size,
        device=device,
        backend=backend,
        calibrated=calibrated,
        top=top,
        coverage=coverage,
    )
    return _compute(job, data, PartFolder.of(out, format), "predict", columns, rows, overwrite, cluster)


def embed_on_ray(
    weights: str | Path,
    data: str,
    out: str,
    *,
    patches: bool = False,
    pool: str = "head",
    dtype: str = "float32",
    img_size: int | Pair | None = None,
    device: str = "auto",
    batch_size: int = 32,
    backend: str = "auto",
    columns: tuple[str, str] = COLUMNS,
    rows: int = ROWS,
    overwrite: bool = False,
    cluster: Cluster = WHOLE_CLUSTER,
) -> Computed:
    """Write the embeddings of images of any number into the folder `out`, of .parquet files, on a Ray cluster.

    Options are those of `embed` and of `predict_on_ray`.
    """
    require_ray()
    require_choices(pool=pool, dtype=dtype, patches=patches, batch_size=batch_size)
    model = load_backbone(weights, img_size=img_size, device="cpu")
    job = EmbedJob(
        model=model,
        batch_size=batch_size,
        device=device,
        backend=backend,
        features="patches" if patches else pool,
        dtype=dtype,
    )
    return _compute(job, [data], PartFolder.of(out, "parquet"), "embed", columns, rows, overwrite, cluster)


def require_ray() -> Any:
    """Return the module `ray`. Raises ValueError where Ray or Ray Data is missing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers otherwise
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(f"--ray needs Ray Data ({error}): pip install 'vitrail[ray]'") from error


def parse_workers(text: str) -> tuple[int, int]:
    """Return smallest and largest number of N or MIN-MAX. Raises ValueError."""
    match = _WORKERS.fullmatch(text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise ValueError(f'"{text}" is no number of workers; use one of at least 1, or a range such as 1-8')
    return least, most


# --------------------------------------------------------------------------------------------------------------------
# The worker


class Worker:
    """Actor of Ray Data: computes chunks and writes their parts."""

    def __init__(self, job: Any, parts: PartFolder, rows: int, cpus: int) -> None:
        """Take the reference of a Job in Ray's object store."""
        torch.set_num_threads(cpus)
        self.job: Job = importlib.import_module("ray").get(job)
        self.parts, self.rows = parts, rows
        self.compute: Compute | None = None

    def __call__(self, batch: dict[str, NDArray[Any]]) -> Iterator[dict[str, list[int]]]:
        """Yield the number of images of each part once it is written."""
        if self.compute is None:
            self.compute = self.job.start()  # here and not above, as Ray hands back the errors of calls as they are
        for packed in batch["chunk"]:
            for count in compute_chunk(bytes(packed), self.job, self.compute, self.parts, rows=self.rows):
                yield {"images": [count]}


def compute_chunk(packed: bytes, job: Job, compute: Compute, parts: PartFolder, *, rows: int) -> Iterator[int]:
    """Compute the parts of a chunk that are not there, and yield the number of images of each."""
    chunk = unpack(packed)
    items = chunk.items()
    assert job.model.preprocessing is not None  # whatever loads weights says what happens to images
    read = partial(read_view, preprocessing=job.model.preprocessing)
    for start in range(0, len(chunk.names), rows):
        names = chunk.names[start : start + rows]
        part, some = parts.part_name(names), islice(items, len(names))
        if parts.has(part):  # a worker died after it
            for _ in some:
                pass
        else:
            parts.try_again(part, names)
            batches = decoded_batches(some, read, batch_size=job.batch_size)
            parts.write(part, with_metadata(compute(batches), job.settings()))
        yield len(names)


# --------------------------------------------------------------------------------------------------------------------
# The command


def _compute(
    job: Job,
    data: Sequence[str],
    parts: PartFolder,
    command: str,
    columns: tuple[str, str],
    rows: int,
    overwrite: bool,
    cluster: Cluster,
) -> Computed:
    if job.device != "auto":
        require_device_name(job.device)
    _require_apart(data, parts.place)
    images, start = open_images(data, relative=command == "embed", columns=columns), time.perf_counter()
    rows = max(1, min(rows, int(PART_BYTES // job.row_bytes())))
    parts.begin(job.settings(), overwrite=overwrite)
    before = parts.computed()
    seen: list[NDArray[Any]] = []

    def wanted(names: Sequence[str]) -> Sequence[bool]:
        seen.append(digests(names))
        return [not there for there in before.holds(seen[-1]).tolist()]

    chunks = [pack(chunk) for chunk in images.chunks(rows, wanted)]
    all_names = NameSet(seen)
    _require_unique(all_names, lambda: images.chunks(ROWS, lambda names: [True] * len(names)))
    left = int((~before.holds(all_names.values)).sum())
    if left:
        with connected() as ray:
            room, resources = _room(ray, job.device, cluster)
            least, most = cluster.workers or (room, room)
            if len(chunks) < _CHUNKS_EACH * most:  # few images: smaller chunks, so that every worker has some
                rows = min(rows, max(_LEAST_ROWS, -(-left // (_CHUNKS_EACH * most))))
                chunks = [pack(chunk) for chunk in images.chunks(rows, wanted)]
            workers = min(least, len(chunks)), min(most, len(chunks))
            _run(ray, job, chunks, parts, rows=rows, workers=workers, resources=resources, total=left)
    written = parts.summary()
    parts.mark(command)
    return Computed(parts.place, written, len(before), time.perf_counter() - start)


def _run(
    ray: Any,
    job: Job,
    chunks: list[bytes],
    parts: PartFolder,
    *,
    rows: int,
    workers: tuple[int, int],
    resources: dict[str, float],
    total: int,
) -> None:
    """Compute chunks; each is one task, which another worker takes over where its own dies."""
    data = ray.data.from_items([{"chunk": chunk} for chunk in chunks], override_num_blocks=len(chunks))
    done = data.map_batches(
        Worker,
        fn_constructor_kwargs={"job": ray.put(job), "parts": parts, "rows": rows, "cpus": max(1, int(resources["num_cpus"]))},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=workers[0], max_size=workers[1]),
        **resources,
    )
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress, _errors_in_one_line(ray):
        bar = progress.add_task("images", total=total)
        for row in done.iter_rows():
            progress.advance(bar, int(row["images"]))


@contextmanager
def connected() -> Iterator[Any]:
    """Connect to the cluster of RAY_ADDRESS, or start one on this machine until the end."""
    ray = require_ray()
    if ray.is_initialized():
        yield ray
        return
    here = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **here)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"no connection to Ray at {os.environ.get('RAY_ADDRESS', 'this machine')}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _room(ray: Any, device: str, cluster: Cluster) -> tuple[int, dict[str, float]]:
    """Return how many workers the cluster has room for, and what each needs. Raises ValueError where there is none."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    on_gpus = device.startswith("cuda") or (device == "auto" and bool(with_gpus))
    usable = [node for node in (with_gpus if on_gpus else nodes) if node.get("CPU", 0) >= 1]
    if not usable:
        raise ValueError(f"the Ray cluster has no machine with a CPU{' and a GPU' if on_gpus else ''} for workers")
    cpus = cluster.cpus or min(WORKER_CPUS, int(min(node["CPU"] / (node["GPU"] if on_gpus else 1) for node in usable)) or 1)
    room = sum(int(min(node["CPU"] // cpus, node["GPU"] if on_gpus else node["CPU"])) for node in usable)
    if not room:
        most = int(max(node["CPU"] for node in usable))
        raise ValueError(f"no machine of the Ray cluster has {cpus} CPUs for a worker; use --worker-cpus {most} at most")
    return room, {"num_cpus": cpus, **({"num_gpus": 1} if on_gpus else {})}


@contextmanager
def _errors_in_one_line(ray: Any) -> Iterator[None]:
    """Raise a worker's error as ValueError."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, ValueError | ConnectionError):
            raise ValueError(str(cause)) from error
        reason = one_line(str(error).strip().rpartition("\n")[2] or type(error).__name__)
        raise ValueError(f"a worker failed ({reason}); what is computed stays, and the same command goes on with it") from error


def _require_unique(names: NameSet, chunks: Callable[[], Iterator[Any]]) -> None:
    """Raise ValueError for no images, and for two images of one name."""
    if not len(names):
        raise ValueError("the data has no images")
    if not len(names.repeated):
        return
    repeated = NameSet([names.repeated])
    name = next(name for chunk in chunks() for name in chunk.names if repeated.holds(digests([name]))[0])
    raise ValueError(f'{len(repeated)} names belong to more than one image, such as "{name}"; each needs a name of its own')


def _require_apart(data: Sequence[str], out: str) -> None:
    """Raise ValueError for an output folder inside of the data."""
    for text in data:
        place = place_of(text).rstrip("/")
        if is_url(place) == is_url(out) and f"{out}/".startswith(f"{place}/"):
            raise ValueError(f"the output {out} lies in the data {text}; name a folder beside it")


def require_device_name(device: str) -> None:
    """Raise ValueError for a device that torch has no name for."""
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f'device "{device}" is none that torch knows; use auto, cpu or cuda') from error
