"""What the server reaches on this machine: speed beside the bare Predictor and other servers, latency, overload, memory.

    python benchmarks/serve.py RUN                    all parts; writes results/serve.json
    python benchmarks/serve.py RUN --part overload    one of them; the others keep their figures
    python benchmarks/serve.py RUN --peers PYTHON     a Python with litserve and our libraries; without, one is made
    python benchmarks/serve.py RUN --short --out F    to see that it works

The client is this process, each server another one, on loopback. Images are PNG files of the sample's size. Parts:

speed     images/s at full load, one image a request and 32, beside the Predictor on the same files without a server, LitServe,
          and a plain FastAPI handler around `Predictor.predict`; interleaved rounds.
latency   p50 and p99 at half of that load, requests at random moments.
overload  ten times the capacity for 30 s: answers, refusals, `/healthz` meanwhile, and the time back to normal.
memory    resident memory over 20,000 requests.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import serve_load as load
from machine import RESULTS, ROOT, facts

PARTS = ("speed", "latency", "overload", "memory")
OURS, BARE, PLAIN, LIT = "vitrail serve", "Predictor", "FastAPI handler", "LitServe"
SEVERAL = 32
CONNECTIONS = 64
START = "Serving"
LITSERVE = Path(__file__).with_name("serve_litserve.py")


@dataclass(frozen=True)
class Lengths:
    """How long the parts take."""

    rounds: int = 5
    round_s: float = 8.0
    images: int = 8000
    latency_s: float = 30.0
    overload_s: float = 30.0
    requests: int = 20_000


SHORT = Lengths(rounds=1, round_s=2.0, images=500, latency_s=3.0, overload_s=4.0, requests=1500)


# --------------------------------------------------------------------------------------------------------------------
# Contenders, each in its own process


def run_bare(run: str, folder: str, images: str) -> None:
    """Predict files at each line of stdin, and print images/s."""
    from vitrail.deploy import Predictor

    predictor, paths = Predictor(run), sorted(Path(folder).glob("*.png"))
    predictor.predict(paths[:64])
    work = [paths[place % len(paths)] for place in range(int(images))]
    print(START, 0, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        predictor.predict(work)
        print(len(work) / (time.perf_counter() - start), flush=True)


def run_plain(run: str, port: str) -> None:
    """Serve with the handler that one writes first."""
    import uvicorn
    from fastapi import FastAPI, Request
    from PIL import Image
    from starlette.concurrency import run_in_threadpool

    from vitrail.deploy import Predictor

    predictor, app = Predictor(run), FastAPI()

    async def predict(request: Request) -> dict[str, Any]:
        image = Image.open(io.BytesIO(await request.body()))
        return (await run_in_threadpool(predictor.predict, [image]))[0].to_dict()

    predict.__annotations__["request"] = Request  # which FastAPI looks for among a module's names
    app.post("/v1/predict")(predict)
    uvicorn.run(app, port=int(port), log_level="warning", access_log=False)


PROCESSES: dict[str, Callable[..., None]] = {"bare": run_bare, "plain": run_plain}


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process with the sources on its path, which ends with the context, its children too."""
    variables = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables, start_new_session=True
    ) as child:
        try:
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)


@contextlib.contextmanager
def our_server(run: str, *options: str) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """`vitrail serve`, with its port."""
    with process(sys.executable, "-m", "vitrail", "serve", run, "--port", "0", "--quiet", *options) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        port = re.search(r":(\d+)$", line.strip())
        if port is None:
            raise SystemExit(f"vitrail serve did not start: {line}")
        yield int(port[1]), child


def wait_for(port: int, child: subprocess.Popen[str], payload: bytes, *, seconds: float = 120) -> bool:
    """Wait until a server answers. Return False if its process ends before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and child.poll() is None:
        with contextlib.suppress(OSError):
            outcome = asyncio.run(load.closed_loop(port, [payload], connections=1, seconds=0.1))
            if outcome.latencies_s.get(200):
                return True
        time.sleep(0.3)
    return False


def peer_python(given: str | None, folder: Path) -> str | None:
    """Return a Python with litserve: the one given, or of a virtual environment made here, which sees our libraries too."""
    if given is not None:
        return given
    place = folder / "peers"
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "install", "-q", "litserve"], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{LIT} is left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip()
    Path(site, "ours.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # behind its own
    return str(python)


# --------------------------------------------------------------------------------------------------------------------
# Requests


def write_images(folder: Path) -> list[bytes]:
    """Write images of the sample as PNG files. Return their bytes."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    files = []
    with np.load(ROOT / "src" / "vitrail" / "data" / "fashion_sample.npz") as sample:
        for place, pixels in enumerate(sample["test_images"][:500]):
            path = folder / f"{place:04}.png"
            Image.fromarray(pixels).save(path)
            files.append(path.read_bytes())
    return files


def one_each(files: Sequence[bytes]) -> list[bytes]:
    return [load.request_bytes("/v1/predict", file, "image/png") for file in files]


def several_each(files: Sequence[bytes], count: int = SEVERAL) -> list[bytes]:
    """Forms with several images each."""
    payloads = []
    for start in range(0, len(files) - count + 1, count):
        parts = [
            f'--b\r\nContent-Disposition: form-data; name="images"; filename="{k}.png"\r\n\r\n'.encode() + file + b"\r\n"
            for k, file in enumerate(files[start : start + count])
        ]
        payloads.append(load.request_bytes("/v1/predict", b"".join(parts) + b"--b--\r\n", "multipart/form-data; boundary=b"))
    return payloads


def in_json(files: Sequence[bytes]) -> list[bytes]:
    texts = (json.dumps({"image": base64.b64encode(file).decode()}).encode() for file in files)
    return [load.request_bytes("/predict", text, "application/json") for text in texts]


# --------------------------------------------------------------------------------------------------------------------
# Parts


def measure_speed(run: str, files: list[bytes], folder: Path, lengths: Lengths, peers: str | None) -> dict[str, Any]:
    """Images/s of all contenders, in interleaved rounds."""
    speeds: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        script = str(Path(__file__).resolve())
        bare = stack.enter_context(
            process(sys.executable, script, "--process", "bare", run, str(folder / "images"), str(lengths.images))
        )
        assert bare.stdout is not None
        assert bare.stdin is not None
        bare.stdout.readline()
        port, _ = stack.enter_context(our_server(run))
        servers = {OURS: (port, one_each(files), 1), f"{OURS}, {SEVERAL} a request": (port, several_each(files), SEVERAL)}
        for name, command, payloads in (
            (PLAIN, [sys.executable, script, "--process", "plain"], one_each(files)),
            (LIT, None if peers is None else [peers, str(LITSERVE)], in_json(files)),
        ):
            if command is not None:
                port = free_port()
                child = stack.enter_context(process(*command, run, str(port)))
                if wait_for(port, child, payloads[0]):
                    servers[name] = (port, payloads, 1)
                else:
                    print(f"{name} is left out: its process did not answer", file=sys.stderr)
        for turn in range(lengths.rounds + 1):  # the first is not counted
            for name in (BARE, *servers):
                if name == BARE:
                    bare.stdin.write("go\n")
                    bare.stdin.flush()
                    value = float(bare.stdout.readline())
                else:
                    port, payloads, images = servers[name]
                    connections = CONNECTIONS if images == 1 else 6
                    outcome = asyncio.run(load.closed_loop(port, payloads, connections=connections, seconds=lengths.round_s))
                    value = images * outcome.per_second()
                if turn:
                    speeds.setdefault(name, []).append(value)
                print(f"round {turn}: {name} {value:,.0f} images/s", file=sys.stderr)
    ratios = {
        name: load.spread([ours / theirs for ours, theirs in zip(values, speeds[BARE], strict=True)])
        for name, values in speeds.items()
        if name != BARE
    }
    return {"images_per_s": {name: load.spread(values) for name, values in speeds.items()}, "of_the_predictor": ratios}


def capacity_of(port: int, payloads: Sequence[bytes], connections: int, seconds: float) -> float:
    """Requests/s at full load, after a first load that is not counted."""
    for _ in range(2):
        outcome = asyncio.run(load.closed_loop(port, payloads, connections=connections, seconds=seconds))
    return outcome.per_second()


def measure_latency(run: str, files: list[bytes], lengths: Lengths) -> dict[str, Any]:
    """Latency at half of the capacity."""
    with our_server(run) as (port, _):
        capacity = capacity_of(port, one_each(files), CONNECTIONS, lengths.round_s)
        outcome = asyncio.run(load.open_loop(port, one_each(files), rate=capacity / 2, seconds=lengths.latency_s))
    return {"capacity_per_s": capacity, "rate_per_s": capacity / 2, **outcome.summary()}


async def overloaded(port: int, payloads: list[bytes], one: bytes, rate: float, seconds: float) -> dict[str, Any]:
    """Load a server above its capacity, look at its health meanwhile, and see when it is as before."""
    health = load.request_bytes("/healthz", b"", "text/plain", method="GET")
    before = await load.open_loop(port, [one], rate=20, seconds=3)
    watching = asyncio.create_task(load.open_loop(port, [health], rate=10, seconds=seconds, most_connections=4))
    outcome = await load.open_loop(port, payloads, rate=rate, seconds=seconds)
    watched = await watching
    end, normal = time.perf_counter(), None
    most = max(3 * (before.percentile_ms(0.99, 200) or 0.0), 20.0)
    while normal is None and time.perf_counter() < end + 10:
        probe = await load.open_loop(port, [one], rate=50, seconds=0.2)
        if probe.answered == probe.sent == len(probe.latencies_s.get(200, [])) and (probe.percentile_ms(1.0) or 0.0) <= most:
            normal = time.perf_counter() - end
    return {
        "images_per_request": SEVERAL,
        "rate_per_s": rate,
        **outcome.summary(),
        "health": watched.summary(),
        "normal_after_s": normal,
    }


def measure_overload(run: str, files: list[bytes], lengths: Lengths) -> dict[str, Any]:
    """Ten times the capacity, in requests of many images: what the client can send costs less than what it asks for."""
    payloads = several_each(files)
    with our_server(run) as (port, _):
        capacity = capacity_of(port, payloads, 6, lengths.round_s)
        result = asyncio.run(overloaded(port, payloads, one_each(files)[0], 10 * capacity, lengths.overload_s))
    return {"capacity_per_s": capacity, **result}


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    kilobytes = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert kilobytes is not None
    return int(kilobytes[1]) / 1000


def measure_memory(run: str, files: list[bytes], lengths: Lengths) -> dict[str, Any]:
    """Resident memory after each tenth of the requests."""
    payloads, points = one_each(files), []
    with our_server(run) as (port, child):
        asyncio.run(load.closed_loop(port, payloads, connections=CONNECTIONS, seconds=lengths.round_s))
        done, tenth = 0, lengths.requests // 10
        points.append((0, resident_mb(child.pid)))
        while done < lengths.requests:
            outcome = asyncio.run(load.closed_loop(port, payloads, connections=CONNECTIONS, seconds=0.5))
            done += outcome.answered
            if done >= tenth * len(points):
                points.append((done, resident_mb(child.pid)))
    return {"requests": done, "resident_mb": points, "grown_mb": points[-1][1] - points[0][1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run; make demo's is runs/demo")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--peers", metavar="PYTHON", help="a Python with litserve")
    parser.add_argument("--short", action="store_true", help="a few seconds of each, to see that it works")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.json")
    if sys.argv[1:2] == ["--process"]:
        PROCESSES[sys.argv[2]](*sys.argv[3:])
        return
    args = parser.parse_args()
    lengths = SHORT if args.short else Lengths()
    result = json.loads(args.out.read_text()) if args.out.is_file() else {}
    with contextlib.suppress(ImportError):
        import uvloop  # a client that takes less of the two cores

        uvloop.install()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = write_images(folder / "images")
        for part in [args.part] if args.part else PARTS:
            print(part, file=sys.stderr)
            match part:
                case "speed":
                    result[part] = measure_speed(args.run, files, folder, lengths, peer_python(args.peers, folder))
                case "latency":
                    result[part] = measure_latency(args.run, files, lengths)
                case "overload":
                    result[part] = measure_overload(args.run, files, lengths)
                case "memory":
                    result[part] = measure_memory(args.run, files, lengths)
            result["machine"] = facts("fastapi", "uvicorn")
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
