"""Against a server on the loopback: nothing here reaches the network."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vitrail.data import named
from vitrail.data.download import DownloadError, fetch, unpack
from vitrail.data.named import NAMED, Published, find

BODY = bytes(range(256)) * 4000  # a megabyte
SHA256 = hashlib.sha256(BODY).hexdigest()


class Home(ThreadingHTTPServer):
    """A public home that misbehaves as it is told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files = {"/file": BODY}
        self.ranges = True
        self.cut_after: list[int] = []  # bytes after which each of the next answers is cut off
        self.status = 200
        self.asked: list[str] = []  # the Range of every request

    def url(self, path: str = "/file") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Answer(BaseHTTPRequestHandler):
    server: Home

    def do_GET(self) -> None:
        home = self.server
        asked = self.headers.get("Range", "")
        home.asked.append(asked)
        if home.status != 200 or self.path not in home.files:
            self.send_error(home.status if home.status != 200 else 404)
            return
        body, first = home.files[self.path], 0
        if home.ranges and asked:
            first = int(asked.removeprefix("bytes=").split("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        last = first + home.cut_after.pop(0) if home.cut_after else len(body)
        self.wfile.write(body[first:last])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Home() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(home: Home, folder: Path, *, size: int = len(BODY), sha256: str = SHA256) -> Path:
    return fetch(home.url(), folder / "cache" / "file.gz", size=size, sha256=sha256)


def test_a_file_arrives_and_is_not_fetched_twice(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = get(home, tmp_path)
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["file.gz"]
    assert capsys.readouterr().err == "downloading file.gz, 1.0 MB\n"
    get(home, tmp_path)
    assert len(home.asked) == 1


def test_it_goes_on_where_it_was_cut_off(home: Home, tmp_path: Path) -> None:
    home.cut_after = [300_000, 200_000]
    assert get(home, tmp_path).read_bytes() == BODY
    assert home.asked == ["bytes=0-", "bytes=300000-", "bytes=500000-"]


def test_the_next_call_goes_on_too(home: Home, tmp_path: Path) -> None:
    home.cut_after = [300_000] + [0] * 5
    with pytest.raises(DownloadError, match="cut off at 300000 of 1024000 bytes"):
        get(home, tmp_path)
    assert get(home, tmp_path).read_bytes() == BODY
    assert home.asked[-1] == "bytes=300000-"


def test_a_server_that_knows_no_ranges_starts_anew(home: Home, tmp_path: Path) -> None:
    home.ranges, home.cut_after = False, [300_000]
    assert get(home, tmp_path).read_bytes() == BODY


def test_a_wrong_file_is_not_kept(home: Home, tmp_path: Path) -> None:
    home.files["/file"] = b"x" * len(BODY)
    with pytest.raises(DownloadError, match="is not the file it should be: its sha256 is") as error:
        get(home, tmp_path)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_part_of_another_file_is_thrown_away(home: Home, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file.gz.part").write_bytes(b"x" * 500_000)
    assert get(home, tmp_path).read_bytes() == BODY
    (tmp_path / "cache" / "file.gz").rename(tmp_path / "cache" / "file.gz.part")  # whole, but never named
    (tmp_path / "cache" / "file.gz.part").write_bytes(BODY + b"and more")
    assert get(home, tmp_path).read_bytes() == BODY


def test_a_file_that_never_ends_is_stopped(home: Home, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="larger than the 1000 bytes"):
        get(home, tmp_path, size=1000)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_server_that_refuses(home: Home, tmp_path: Path, status: int) -> None:
    home.status = status
    with pytest.raises(DownloadError, match=f"answered {status}"):
        get(home, tmp_path)
    assert len(home.asked) == 1


def test_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:  # bound but not listening: refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file"
        with pytest.raises(DownloadError, match="no answer from http://127"):
            fetch(url, tmp_path / "file", size=1, sha256=SHA256)


def test_garbage_for_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def babble() -> None:
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=babble)
        thread.start()
        with pytest.raises(DownloadError, match="gave no proper answer"):
            fetch(f"http://127.0.0.1:{server.getsockname()[1]}/file", tmp_path / "file", size=1, sha256=SHA256)
        thread.join()


def test_a_proxy_that_refuses(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.status = 403
    monkeypatch.setenv("http_proxy", home.url(""))
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setattr("urllib.request._opener", None)  # it reads the environment once
    with pytest.raises(DownloadError, match="answered 403"):
        fetch("http://datasets.invalid/file", tmp_path / "file", size=1, sha256=SHA256)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(home: Home, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DownloadError, match="can't be written"):
        get(home, tmp_path)


def test_a_file_in_place_of_the_folder(home: Home, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(DownloadError, match="cache can't be written"):
        get(home, tmp_path)


# --------------------------------------------------------------------------------------------------------------------


def archive(path: Path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, body in members.items():
            if isinstance(body, tarfile.TarInfo):
                tar.addfile(body)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    return path


def test_only_what_was_asked_for_is_unpacked(tmp_path: Path) -> None:
    members = {
        "set/a.bin": b"a",
        "set/b.bin": b"b",
        "set/c.bin": b"c",
        "../evil": b"!",
        "/evil": b"!",
        "set/../a.bin": b"!",
    }
    out = unpack(archive(tmp_path / "x.tar.gz", members), tmp_path / "out", subfolder="set", names=("a.bin", "b.bin"))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"a.bin": b"a", "b.bin": b"b"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.tar.gz"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_not(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("set/a.bin")
    link.type, link.linkname = kind, "/etc/passwd"
    with pytest.raises(ValueError, match=r"does not hold set/a\.bin"):
        unpack(archive(tmp_path / "x.tar.gz", {"set/a.bin": link}), tmp_path / "out", subfolder="set", names=("a.bin",))
    assert not (tmp_path / "out").exists()


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.data.download.MAX_UNPACKED", 1 << 20)
    made = archive(tmp_path / "x.tar.gz", {"set/a.bin": bytes(2 << 20)})
    with pytest.raises(ValueError, match="unpacks to more than 1 MiB"):
        unpack(made, tmp_path / "out", subfolder="set", names=("a.bin",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_a_damaged_archive_says_so(tmp_path: Path, damage: str) -> None:
    made = archive(tmp_path / "x.tar.gz", {"set/a.bin": os.urandom(50_000)})
    data = made.read_bytes()
    made.write_bytes({"cut": data[:20_000], "garbage": b"garbage" * 99, "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"x\.tar\.gz .*get it anew") as error:
        unpack(made, tmp_path / "out", subfolder="set", names=("a.bin",))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------------------


def publish(home: Home, name: str, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts files at the loopback as the public home of a named set."""
    home.files.update({f"/{file}": body for file, body in files.items()})
    published = tuple(Published(file, len(body), hashlib.sha256(body).hexdigest()) for file, body in files.items())
    changed = {**vars(NAMED[name]), "home": home.url("/"), "published": published, "installed": None}
    monkeypatch.setitem(named.NAMED, name, named.NamedSet(**changed))


def test_a_named_set_is_downloaded_into_the_cache(
    home: Home, tmp_path: Path, idx_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(home, "mnist", {f"{file.name}.gz": gzip.compress(file.read_bytes()) for file in idx_set.iterdir()}, monkeypatch)
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    assert find("mnist") == tmp_path / "cache" / "data" / "mnist"
    images, labels = named.read_arrays(NAMED["mnist"], find("mnist"), "test")
    assert images.shape == (20, 1, 28, 28)
    assert labels.tolist() == [*range(10)] * 2
    assert len(home.asked) == 4


def test_an_archive_is_downloaded_unpacked_and_removed(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [file for files in NAMED["cifar10"].files.values() for file in files]
    made = archive(tmp_path / "made.tar.gz", {f"cifar-10-batches-bin/{file}": bytes(3073) for file in files})
    publish(home, "cifar10", {"cifar-10-binary.tar.gz": made.read_bytes()}, monkeypatch)
    monkeypatch.delenv("VITRAIL_DATA", raising=False)
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    folder = find("cifar10")
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    assert [path.name for path in folder.parent.iterdir()] == ["cifar10"]
    assert find("cifar10") == folder
    assert len(home.asked) == 1


@pytest.mark.parametrize("name", ["fashion-mnist", "mnist", "cifar10", "cifar100"])
def test_offline_says_what_to_put_where(home: Home, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home.status = 503
    publish(home, name, {file.name: b"" for file in NAMED[name].published}, monkeypatch)
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VITRAIL_DATA", raising=False)
    with pytest.raises(ValueError, match=f"{name} is not on this machine") as error:
        find(name)
    assert f"into FOLDER/{name} and set VITRAIL_DATA=FOLDER" in str(error.value)
    assert NAMED[name].published[0].name in str(error.value)
    assert ("Debian" in str(error.value)) == (name == "fashion-mnist")
    assert "\n" not in str(error.value)
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="is not on this machine") as error:
        find(name)
    assert f"into {tmp_path / name}" in str(error.value)
