"""`predict --ray` and `embed --ray`: the answers of one machine, each image once, whatever dies."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from command_line import TINY, Typed
from ray_cluster import is_alive, kill, ray_machines, wait_for, workers_of
from vitrail import cli
from vitrail.deploy import ray_data
from vitrail.deploy.part_files import PartFolder
from vitrail.deploy.ray_data import Cluster, compute_chunk, parse_workers
from vitrail.deploy.worker_jobs import Job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the embedded sample: two steps of a tiny model."""
    folder = tmp_path_factory.mktemp("runs") / "first run"
    assert cli.main(["train", "fashion-sample", "--out", str(folder), "--no-report", *TINY]) == 0
    return folder


def make_photos(root: Path, count: int, *, side: int = 28, broken: bool = True) -> Path:
    """Make a folder of grey images, and one that can't be read."""
    draw = np.random.default_rng(0)
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (side, side), dtype=np.uint8)).save(path)
    if broken:
        (root / "broken.png").write_bytes(b"no image")
    return root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", 40)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Computes the chunks here, in the place of a cluster of two workers. The number of images of each command is returned."""
    computed: list[int] = []

    def compute(ray: Any, job: Job, chunks: list[bytes], parts: PartFolder, *, rows: int, **options: Any) -> None:
        start = job.start()
        computed.append(sum(sum(compute_chunk(chunk, job, start, parts, rows=rows)) for chunk in chunks))

    monkeypatch.setattr(ray_data, "_run", compute)
    monkeypatch.setattr(ray_data, "_room", lambda ray, device, cluster: (2, {"num_cpus": 1}))
    monkeypatch.setattr(ray_data, "connected", lambda: contextlib.nullcontext())
    return computed


def rows_of(out: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a folder of Parquet files by path. No path is there twice."""
    system, root = fsspec.url_to_fs(out)
    tables = [pq.read_table(system.open(path)) for path in system.glob(f"{root}/part-*.parquet")]
    rows = pa.concat_tables(tables).to_pylist()
    paths = [row["path"] for row in rows]
    assert len(paths) == len(set(paths))
    return {row["path"]: row for row in rows}


@pytest.mark.parametrize("where", ["local", "memory"])
def test_predictions_are_those_without_ray(
    vitrail: Typed, run: Path, photos: Path, tmp_path: Path, in_this_process: list[int], where: str
) -> None:
    out = str(tmp_path / "out") if where == "local" else f"memory://{tmp_path.name}/out"
    alone = vitrail("predict", run, photos, "--csv", "--top", 2, "--backend", "fp32")
    expected = {row["path"]: row for row in csv.DictReader(alone.out.splitlines())}
    said = vitrail("predict", run, photos, "--top", 2, "--backend", "fp32", "--ray", "--out", out, "--rows", 16)
    assert said.code == alone.code == 1
    assert "1 of 41 images have no label (" in said.err
    assert "41 rows in " in said.out
    found = rows_of(out)
    assert found.keys() == expected.keys()
    for path, row in found.items():
        assert list(row) == list(expected[path])
        for name, cell in row.items():
            if name.startswith("probability") and cell is not None:
                assert cell == pytest.approx(float(expected[path][name]), abs=1e-5)
            else:
                shown = "" if cell is None else str(int(cell)) if isinstance(cell, bool) else cell
                assert shown == expected[path][name], (path, name)
    assert in_this_process == [41]


def test_csv_parts_are_those_of_csv(
    vitrail: Typed, run: Path, photos: Path, tmp_path: Path, in_this_process: list[int]
) -> None:
    alone = vitrail("predict", run, photos, "--csv", "--backend", "fp32").out.splitlines()
    vitrail("predict", run, photos, "--backend", "fp32", "--ray", "--out", tmp_path / "out", "--format", "csv")
    lines = [path.read_text().splitlines() for path in (tmp_path / "out").glob("part-*.csv")]
    assert {part[0] for part in lines} == {alone[0]}
    found, expected = (
        {row[0]: row for row in csv.reader(rows)} for rows in ([row for part in lines for row in part[1:]], alone[1:])
    )
    assert found.keys() == expected.keys()
    assert all(found[path][1] == expected[path][1] for path in found)


@pytest.mark.parametrize("options", [[], ["--patches", "--dtype", "float16"]])
def test_embeddings_are_those_without_ray(
    vitrail: Typed, run: Path, photos: Path, tmp_path: Path, in_this_process: list[int], options: list[str]
) -> None:
    words = ["embed", photos, "--weights", run, "--backend", "fp32", *options]
    assert vitrail(*words, "--out", tmp_path / "alone.parquet").code == 1
    said = vitrail(*words, "--ray", "--out", tmp_path / "out")
    assert said.code == 1
    assert "1 of 41 images have no embedding (broken.png: " in said.err
    alone = pq.read_table(tmp_path / "alone.parquet")
    expected = {row["path"]: row for row in alone.to_pylist()}
    found = rows_of(str(tmp_path / "out"))
    assert found.keys() == expected.keys()
    for path, row in found.items():
        np.testing.assert_allclose(row["embedding"], expected[path]["embedding"], atol=1e-3 if options else 1e-5)
        assert row["error"] == expected[path]["error"]
    schema = pq.read_schema(next((tmp_path / "out").glob("part-*.parquet")))
    assert schema.field("embedding").type == alone.schema.field("embedding").type
    theirs, ours = (json.loads(schema.metadata[b"vitrail"]) for schema in (alone.schema, schema))
    assert {key: ours[key] for key in ("sha256", "shape", "features", "preprocessing")} == {
        key: theirs[key] for key in ("sha256", "shape", "features", "preprocessing")
    }


def test_what_is_in_the_output_is_not_computed_again(
    vitrail: Typed, run: Path, photos: Path, tmp_path: Path, in_this_process: list[int]
) -> None:
    words = ["predict", run, photos, "--backend", "fp32", "--ray", "--out", tmp_path / "out", "--json"]
    assert json.loads(vitrail(*words).out)["begun_with"] == 0
    parts = sorted((tmp_path / "out").glob("part-*"))
    gone = pq.read_table(parts[0])["path"].to_pylist()
    kept = {path: path.stat().st_mtime_ns for path in parts[1:]}
    parts[0].unlink()
    shutil.copy(photos / "a" / "0.png", photos / "new.png")
    done = json.loads(vitrail(*words, "--rows", 3).out)
    assert in_this_process == [41, len(gone) + 1]
    assert (done["images"], done["begun_with"]) == (42, 41 - len(gone))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(rows_of(str(tmp_path / "out"))) == 42
    assert json.loads(vitrail(*words).out)["begun_with"] == 42
    assert len(in_this_process) == 2  # nothing was left to do, so no cluster was asked
    said = vitrail(*words, "--top", 2)
    assert said.code == 2
    assert "was begun with other settings: top (1, now 2)" in said.err
    assert vitrail(*words, "--top", 2, "--overwrite").code == 1
    assert "label_2" in next(iter(rows_of(str(tmp_path / "out")).values()))


def test_a_table_of_bytes_is_predicted(
    vitrail: Typed, run: Path, photos: Path, tmp_path: Path, in_this_process: list[int]
) -> None:
    files = [path for path in sorted(photos.rglob("*.png")) if path.name != "broken.png"]
    rows = [{"key": number, "picture": path.read_bytes()} for number, path in enumerate(files)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=7)
    said = vitrail(
        "predict", run, tmp_path / "t.parquet", "--backend", "fp32", "--ray", "--out", tmp_path / "out",
        "--columns", "key,picture", "--rows", 4,
    )  # fmt: skip
    assert said.code == 0, said.err
    found, alone = rows_of(str(tmp_path / "out")), json.loads(vitrail("predict", run, *files, "--json").out)
    assert found.keys() == {str(number) for number in range(40)}
    for number, expected in enumerate(alone):
        assert found[str(number)]["label"] == expected["label"]
    rows[3]["key"] = 2
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    said = vitrail("predict", run, tmp_path / "t.parquet", "--ray", "--out", tmp_path / "more", "--columns", "key,picture")
    assert said.code == 2
    assert 'belong to more than one image, such as "2"; each needs a name of its own' in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2"], "--workers is for --ray; add it, or leave it out"),
        (["--worker-cpus", "2"], "--worker-cpus is for --ray; add it, or leave it out"),
        (["--out", "x"], "--out and --overwrite are for --ray"),
        (["--ray"], "--ray needs --out"),
        (["--ray", "--out", "x", "--csv"], "use --format csv"),
        (["--ray", "--out", "x", "--workers", "3-2"], '"3-2" is no number of workers'),
        (["--ray", "--out", "x", "--columns", "id"], '--columns "id" must be two names'),
        (["--ray", "--out", "x", "--device", "gpu"], 'device "gpu" is none that torch knows'),
        (["--ray", "--out", "x", "--format", "npy"], "invalid choice: 'npy'"),
        (["--ray", "--out", "x", "--top", "0"], "top 0 must be at least 1"),
    ],
)
def test_mistakes_are_one_line(vitrail: Typed, run: Path, photos: Path, words: list[str], message: str) -> None:
    said = vitrail("predict", run, photos, *words)
    assert said.code == 2
    assert message in said.err
    assert said.err.count("\n") == 1


def test_the_output_lies_beside_the_data(vitrail: Typed, run: Path, photos: Path) -> None:
    said = vitrail("embed", photos, "--weights", run, "--ray", "--out", photos / "features")
    assert said.code == 2
    assert f"lies in the data {photos}; name a folder beside it" in said.err
    said = vitrail("embed", photos, "--weights", run, "--ray", "--out", photos.parent / "out", "--split", "val")
    assert "name the split's folder" in said.err


def test_without_ray_a_line_names_the_extra(
    vitrail: Typed, run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    for words in (["predict", run, photos], ["embed", photos, "--weights", run]):
        said = vitrail(*words, "--ray", "--out", tmp_path / "out")
        assert said.code == 2
        assert "pip install 'vitrail[ray]'" in said.err
        assert said.err.count("\n") == 1
    assert vitrail("predict", run, photos / "a").code == 0


def test_numbers_of_workers() -> None:
    assert parse_workers("3") == (3, 3)
    assert parse_workers("1-8") == (1, 8)


class Nodes:
    """Stands for the module ray, on a cluster with these machines."""

    def __init__(self, *resources: dict[str, float]) -> None:
        self.resources = resources
        self.data = __import__("ray.data").data

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Resources": one, "Alive": True} for one in self.resources] + [{"Resources": {"CPU": 9}, "Alive": False}]


def test_workers_fill_the_machines() -> None:
    small, big = {"CPU": 2.0}, {"CPU": 9.0}
    assert ray_data._room(Nodes(small), "auto", Cluster()) == (1, {"num_cpus": 2})
    assert ray_data._room(Nodes(big), "auto", Cluster()) == (2, {"num_cpus": 4})
    assert ray_data._room(Nodes(big, small), "auto", Cluster()) == (5, {"num_cpus": 2})
    assert ray_data._room(Nodes(big, small), "cpu", Cluster(cpus=3)) == (3, {"num_cpus": 3})
    gpus = {"CPU": 16.0, "GPU": 2.0}
    assert ray_data._room(Nodes(gpus, big), "auto", Cluster()) == (2, {"num_cpus": 4, "num_gpus": 1})
    assert ray_data._room(Nodes(gpus, big), "cpu", Cluster()) == (6, {"num_cpus": 4})
    with pytest.raises(ValueError, match="no machine of the Ray cluster has 10 CPUs for a worker; use --worker-cpus 9"):
        ray_data._room(Nodes(big), "auto", Cluster(cpus=10))
    with pytest.raises(ValueError, match="has no machine with a CPU and a GPU"):
        ray_data._room(Nodes(big), "cuda", Cluster())


# --------------------------------------------------------------------------------------------------------------------
# On a cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with ray_machines(2, cpus=1) as cluster:
        yield cluster


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "vitrail", *map(str, words)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_image_is_there_once_after_a_worker_is_killed(cluster: Any, run: Path, tmp_path: Path) -> None:
    photos, out = make_photos(tmp_path / "photos", 600, side=400, broken=False), tmp_path / "out"
    words = command("predict", run, photos, "--backend", "fp32", "--ray", "--out", out, "--worker-cpus", 1, "--rows", 16)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: len(list(out.glob("part-*"))) >= 2 or process.poll() is not None)
            victim = workers_of(cluster, "ray::MapWorker")[0]
            kill(victim)
            wait_for(lambda: not is_alive(victim))
            assert process.poll() is None, "it was done before a worker could be killed"
            printed, errors = process.communicate(timeout=400)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    found = rows_of(str(out))
    assert found.keys() == {str(path) for path in photos.rglob("*.png")}
    assert all(row["label"] for row in found.values())
    assert not list(out.glob(".part-*"))
    assert "600 rows in " in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_interrupted_command_goes_on(cluster: Any, run: Path, tmp_path: Path) -> None:
    photos, out = make_photos(tmp_path / "photos", 300, side=400), tmp_path / "out"
    words = command("embed", photos, "--weights", run, "--backend", "fp32", "--ray", "--out", out, "--json", "--rows", 16)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            wait_for(lambda: len(list(out.glob("part-*"))) >= 2 or process.poll() is not None)
            process.kill()
        finally:
            process.kill()
    wait_for(lambda: not workers_of(cluster, "ray::MapWorker"))
    there = len(rows_of(str(out)))
    assert there >= 16
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["begun_with"] == there
    assert len(rows_of(str(out))) == 301


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_error_in_a_worker_is_one_line(cluster: Any, run: Path, photos: Path, tmp_path: Path) -> None:
    words = command("predict", run, photos, "--ray", "--out", tmp_path / "out", "--backend", "fast")
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 2
    assert 'vitrail: backend "fast" is none of auto, ' in done.stderr
    ours = [line for line in done.stderr.splitlines() if not re.match(r"\[[^]]+\] core_worker", line)]  # Ray's own warning
    assert len(ours) == 1, done.stderr
