"""A small Hub on the loopback, and a client whose processes have an environment of their own.

The server speaks what huggingface_hub asks for: a repository's listing, HEAD and GET of a file, the redirect of large files to
another host, Range, and on the way up the making of a repository, the upload of large files and the commit. It misbehaves as
it is told.

huggingface_hub reads its environment when it is imported. The client imports Vitrail once, which does not import it, and is
forked for every scenario: run as a script, it takes lines of JSON and answers with lines of JSON.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE = (".safetensors", ".npz", ".bin", ".pt", ".pth", ".png")  # kept as LFS files


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def git_sha(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@dataclass
class Repo:
    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    private: bool = False
    gated: bool = False
    wrong: dict[str, bytes] = field(default_factory=dict)
    """What comes in the place of a large file."""


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    range: str
    token: str


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos: dict[str, Repo] = {}
        self.uploaded: dict[str, bytes] = {}
        self.token = "hf_secret"
        self.status = 0  # of every answer, where it is not 0
        self.cut_after: list[int] = []  # bytes after which each of the next answers of the other host is cut off
        self.stall = False  # after half of a large file, until `go_on`
        self.stalled, self.go_on = threading.Event(), threading.Event()
        self.asked: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes], **flags: Any) -> str:
        """A repository, or one more commit on its main branch; returns the commit."""
        commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        repo = self.repos.setdefault(name, Repo({}, {}, **flags))
        repo.commits[commit], repo.refs["main"] = files, commit
        return commit

    def asked_for(self, part: str) -> list[Asked]:
        return [each for each in self.asked if part in each.path]


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub = self.server
        path = urllib.parse.urlsplit(self.path).path
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.asked.append(Asked(self.command, path, self.headers.get("Range", ""), token))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if hub.status:
            self.refuse(hub.status, "")
        elif found := re.fullmatch(r"/cdn/(\w+)", path):
            self.large(found[1])
        elif found := re.fullmatch(r"/lfs/(\w+)", path):
            hub.uploaded[found[1]] = self.body
            self.send()
        elif self.command == "POST":
            self.post(path, token)
        else:
            self.read(path, token)

    # ---- down

    def read(self, path: str, token: str) -> None:
        found = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if found is None and file is None:
            return self.refuse(404, "")
        name, revision = (found or file).groups()[:2]  # type: ignore[union-attr]
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and token != self.server.token):
            return self.refuse(404 if token else 401, "RepoNotFound")  # what the Hub tells a stranger
        revision = urllib.parse.unquote(revision or "main")
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self.refuse(404, "RevisionNotFound")
        files = repo.commits[commit]
        if file is None:
            siblings = [self.sibling(name, body) for name, body in files.items()]
            return self.send(json.dumps({"id": name, "sha": commit, "siblings": siblings, "private": repo.private}).encode())
        if repo.gated and token != self.server.token:
            return self.refuse(403 if token else 401, "GatedRepo")
        if file[3] not in files:
            return self.refuse(404, "EntryNotFound", **{"X-Repo-Commit": commit})
        return self.file(file[3], files[file[3]], commit)

    @staticmethod
    def sibling(name: str, body: bytes) -> dict[str, Any]:
        lfs = {"lfs": {"sha256": sha256(body), "size": len(body), "pointerSize": 134}} if name.endswith(LARGE) else {}
        return {"rfilename": name, "size": len(body), "blobId": git_sha(body), **lfs}

    def file(self, name: str, body: bytes, commit: str) -> None:
        if not name.endswith(LARGE):
            return self.send(body, **{"X-Repo-Commit": commit, "ETag": f'"{git_sha(body)}"'})
        headers = {
            "Location": f"http://localhost:{self.server.server_address[1]}/cdn/{sha256(body)}",  # another host: no token there
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{sha256(body)}"',
            "X-Linked-Size": str(len(body)),
        }
        return self.send(status=302, **headers)

    def large(self, digest: str) -> None:
        hub = self.server
        bodies = {sha256(b): (n, b, r) for r in hub.repos.values() for c in r.commits.values() for n, b in c.items()}
        name, body, repo = bodies[digest]
        body = repo.wrong.get(name, body)
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        part = body[first:]
        self.send_response(206 if self.headers.get("Range") else 200)
        if self.headers.get("Range"):
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{digest}"')
        self.end_headers()
        cut = hub.cut_after.pop(0) if hub.cut_after else None
        if hub.stall:
            self.wfile.write(part[: len(part) // 2])
            hub.stalled.set()
            hub.go_on.wait(60)
            cut = 0
        if cut is not None:
            self.close_connection = True
        self.wfile.write(part[:cut])

    # ---- up

    def post(self, path: str, token: str) -> None:
        hub = self.server
        if token != hub.token:
            return self.refuse(401, "", **{"X-Error-Message": "Invalid username or password."})
        said = json.loads(self.body) if "/commit/" not in path else None
        if path == "/api/repos/create":
            name = f"{said['organization']}/{said['name']}"
            if name in hub.repos:
                return self.send(json.dumps({"url": f"{hub.url}/{name}"}).encode(), status=409)
            hub.add(name, {})
            hub.repos[name].private = said.get("private") or said.get("visibility") == "private"
            return self.send(json.dumps({"url": f"{hub.url}/{name}"}).encode())
        if path == "/api/validate-yaml":
            return self.send(b'{"errors": [], "warnings": []}')
        if found := re.fullmatch(r"/api/models/(.+)/branch/(.+)", path):
            repo = hub.repos[found[1]]
            repo.refs.setdefault(found[2], repo.refs["main"])
            return self.send(b"{}")
        if found := re.fullmatch(r"/api/models/(.+)/preupload/(.+)", path):
            modes = [(f["path"], "lfs" if f["path"].endswith(LARGE) else "regular") for f in said["files"]]
            files = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]
            return self.send(json.dumps({"files": files}).encode())
        if path.endswith("/info/lfs/objects/batch"):
            objects = [{**each, "actions": {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}} for each in said["objects"]]
            return self.send(json.dumps({"transfer": "basic", "objects": objects}).encode())
        if found := re.fullmatch(r"/api/models/(.+)/commit/(.+)", path):
            return self.commit(found[1], urllib.parse.unquote(found[2]))
        return self.refuse(404, "")

    def commit(self, name: str, branch: str) -> None:
        repo = self.server.repos[name]
        files = dict(repo.commits[repo.refs[branch]])
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploaded[value["oid"]]
        commit = hashlib.sha1(self.body).hexdigest()
        repo.commits[commit], repo.refs[branch] = files, commit
        url = f"{self.server.url}/{name}/commit/{commit}"
        self.send(json.dumps({"success": True, "commitOid": commit, "commitUrl": url}).encode())

    # ---- both

    def send(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, **headers: str) -> None:
        self.send(status=status, **{"X-Error-Code": code, **headers} if code else headers)

    def log_message(self, format: str, *args: object) -> None:
        pass


# --------------------------------------------------------------------------------------------------------------------


class Client:
    """Calls functions of vitrail.weights.hub, each scenario in a process of its own."""

    def __init__(self) -> None:
        foreign = ("HF_", "HUGGING", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        env |= {
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "no_proxy": "127.0.0.1,localhost",
            "NO_PROXY": "127.0.0.1,localhost",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, __file__], env=env, stdin=pipe, stdout=pipe, text=True)

    def start(self, *calls: tuple[Any, ...], **env: str) -> int:
        """Starts a process that makes these calls in turn, each a function's name, its arguments, and its keywords in a dict
        at the end; returns its id."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"env": env, "calls": calls}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def result(self) -> list[Any]:
        """What each call returned; of a ValueError the message, in a list of one. Empty if the process was killed."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def run(self, *calls: tuple[Any, ...], **env: str) -> list[Any]:
        self.start(*calls, **env)
        return self.result()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


def _serve() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from jaxtyping import install_import_hook

    install_import_hook("vitrail", "typecheck.checked")
    from vitrail.weights import hub

    assert "huggingface_hub" not in sys.modules, "importing vitrail pays for huggingface_hub"
    for line in sys.stdin:
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(read)
            order = json.loads(line)
            os.environ.update(order["env"])
            results: list[Any] = []
            for name, *args in order["calls"]:
                keywords = args.pop() if args and isinstance(args[-1], dict) else {}
                try:
                    value = getattr(hub, name)(*args, **keywords)
                    results.append(value if isinstance(value, str | bool | None) else str(value))
                except ValueError as error:
                    results.append([str(error)])
            with open(write, "w") as pipe:
                json.dump(results, pipe)
            os._exit(0)
        os.close(write)
        print(pid, flush=True)
        with open(read) as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        print(answer or "[]", flush=True)


if __name__ == "__main__":
    _serve()
