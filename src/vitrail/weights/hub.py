"""Hugging Face Hub: download a model's repository to the cache, upload a run folder to a repository.

huggingface_hub caches, and handles mirrors (HF_ENDPOINT), the cache's location (HF_HOME), machines without a network
(HF_HUB_OFFLINE) and tokens (HF_TOKEN, `hf auth login`). It is imported on use: that takes longer than most commands.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.parse
from collections.abc import Collection, Iterable
from pathlib import Path, PurePath
from typing import NamedTuple

import yaml

from vitrail.weights.model_card import PICTURE, SCORES, model_card, read_json, without_places
from vitrail.weights.read import NO_MODEL, PREFERRED
from vitrail.weights.run_folder import CONFIG, SETTINGS, WEIGHTS, read_run, sha256

BESIDE = (CONFIG, "open_clip_config.json", "preprocessor_config.json", "README.md")
"""Files that are downloaded with the weights, if they exist."""
SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")
"""Suffixes of weights that have no usual name, in the order of preference."""

_URL = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/")
_PREFIX = re.compile(rf"{_URL.pattern}|hf[-_]hub:|hf://")
_REPO = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]{0,94}\w?)(?:@(?P<revision>\S+))?", re.ASCII)
_MODEL_NAME = re.compile(r"[A-Za-z]+\+?/\d+")  # "B/16", and also "b/16", which is to hear what it should have been
_FILES = (*SUFFIXES, ".ckpt", ".json", ".onnx", ".yaml")


# --------------------------------------------------------------------------------------------------------------------
# Names


def looks_like_repo(text: str) -> bool:
    """Return whether `text` has the form of a repository: "owner/name", "hf-hub:owner/name" or its address, each with an
    optional "@revision".

    A path such as "runs/photos" has that form too; callers check the disk first.
    """
    return _parse(text) is not None


def _parse(text: str) -> tuple[str, str | None] | None:
    """Return repository and revision, or None if `text` has another form."""
    prefix = _PREFIX.match(text)
    rest = text[prefix.end() :] if prefix else text
    if prefix and _URL.match(text):
        rest = urllib.parse.unquote(re.sub(r"/tree/([^/]+)$", r"@\1", rest.rstrip("/")))
    match = _REPO.fullmatch(rest)
    if match is None or ".." in match["repo"] or "--" in match["repo"] or match["repo"].endswith((".git", ".", "-")):
        return None
    if not prefix and (_MODEL_NAME.fullmatch(rest) or match["repo"].endswith(_FILES)):
        return None
    return match["repo"], match["revision"]


def _named(repo_id: str, revision: str | None) -> tuple[str, str | None]:
    parsed = _parse(repo_id)
    if parsed is None:
        raise ValueError(
            f'"{repo_id}" is not the name of a repository on the Hub; it is written "owner/name" or "owner/name@revision"'
        )
    repo, suffix = parsed
    if revision and suffix and revision != suffix:
        raise ValueError(f'"{repo_id}" names revision "{suffix}", and revision "{revision}" is asked for; give one of them')
    return repo, revision or suffix


def pick_weights(names: Collection[str]) -> str | None:
    """Choose the weights of a folder with these files: a file, or the index of a sharded checkpoint; None if there are none.

    Raises ValueError if there are several and none has one of the usual names.
    """
    for usual in PREFERRED:
        if usual in names:
            return usual
    top = sorted(name for name in names if "/" not in name and not NO_MODEL.fullmatch(name))
    for suffix in SUFFIXES:
        match [name for name in top if name.endswith(suffix)]:
            case [one]:
                return one
            case [_, *_] as several:
                raise ValueError(f"there are several files of weights ({_listed(several)}); download one and load that file")
    return None


def _shards(index: Path) -> list[str]:
    """Return the files that an index names, sorted."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("its weight_map names no files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index} is no index of shards ({type(error).__name__}: {error}); delete {index.resolve()} and load again"
        ) from error
    return sorted(names)


# --------------------------------------------------------------------------------------------------------------------
# From the Hub


class _File(NamedTuple):
    """A file of a repository, as the Hub lists it."""

    name: str
    size: int | None
    sha256: str | None
    """None for small files, which git stores itself."""


def fetch(repo_id: str, *, revision: str | None = None) -> Path:
    """Download a model from the Hub, unless it is cached, and return its folder in the cache.

    One set of weights is taken, and the files that describe it (`BESIDE`). Sizes and sha256 are compared with the Hub's.
    Without a network, returns the cached folder of this revision if its weights are complete. Raises ValueError, in
    one line, for any failure.
    """
    repo, revision = _named(repo_id, revision)
    from huggingface_hub import HfApi, constants

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except _failures(ValueError, TypeError, KeyError) as error:  # these three: an answer that is not the Hub's
        if not _unreachable(error):
            raise ValueError(_explained(error, repo, revision=revision)) from error
        cached = _cached(repo, revision)
        if cached is None:
            raise ValueError(_out_of_reach(error, repo)) from error
        return cached

    files = {
        each.rfilename: _File(each.rfilename, each.size, each.lfs.sha256 if each.lfs else None) for each in info.siblings or ()
    }
    try:
        weights = pick_weights(files)
    except ValueError as error:
        raise ValueError(f'"{repo}": {error}') from error
    if weights is None:
        raise ValueError(f'"{repo}" has no weights that can be read here, only {_listed(files)}; name a repository that has')
    commit = str(info.sha)
    for name in BESIDE:
        if name in files:
            _download(repo, files[name], commit, revision)
    path = _download(repo, files[weights], commit, revision)
    if weights.endswith(".index.json"):
        for name in _shards(path):
            if name not in files:
                raise ValueError(
                    f'"{repo}" lacks "{name}", which its {weights} names; tell its owner, or take another revision'
                )
            _download(repo, files[name], commit, revision)
    if revision != commit:
        _remember(repo, next(name for name in (*BESIDE, weights) if name in files), commit, revision)
    return path.parent


def _download(repo: str, file: _File, commit: str, revision: str | None) -> Path:
    """Download one file and check its size, and its sha256 if it was not cached.

    Cached files are not hashed again: `check` compares the hash that reading the weights computes anyway.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    name = file.name
    cached = isinstance(try_to_load_from_cache(repo, name, revision=commit), str)
    try:
        path = Path(hf_hub_download(repo, name, revision=commit))
    except _failures(ValueError) as error:
        raise ValueError(_explained(error, repo, revision=revision, file=name)) from error
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise ValueError(_damaged(path, f"it has {size:,} bytes, and the Hub says {file.size:,}"))
    trusted = cached and path.is_symlink()  # without links, nothing in the cache records what the Hub stated
    if file.sha256 and not trusted:
        digest = sha256(path)
        if digest != file.sha256:
            _forget(path)
            raise ValueError(
                f'{name} of "{repo}" arrived damaged: its sha256 is {digest}, and the Hub says {file.sha256}; '
                "it was thrown away, load again"
            )
    return path


def _remember(repo: str, name: str, commit: str, revision: str | None) -> None:
    """Record the commit of a branch in the cache, for loads without a network.

    Called once all files are there: an interrupted download leaves the branch at the last complete commit.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    branch = revision or constants.DEFAULT_REVISION
    known = try_to_load_from_cache(repo, name, revision=branch)
    if not isinstance(known, str) or Path(known).parent.name != commit:
        try:
            hf_hub_download(repo, name, revision=branch)
        except _failures() as error:
            raise ValueError(_explained(error, repo, revision=revision, file=name)) from error


def _cached(repo: str, revision: str | None) -> Path | None:
    """Return the cached folder of this revision, if its weights are complete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(repo, revision=revision, local_files_only=True)
    except LocalEntryNotFoundError as error:
        folder = getattr(error, "snapshot_path", "")  # of a snapshot that lacks files, perhaps others than the ones needed here
    if not folder:
        return None
    path = Path(folder)
    weights = pick_weights(_names(path))
    if weights is None:
        return None
    shards = _shards(path / weights) if weights.endswith(".index.json") else []
    return path if all((path / name).is_file() for name in shards) else None


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()]


def _forget(path: Path) -> None:
    """Remove a file from the cache, and the target of its link."""
    if path.is_symlink():
        (path.parent / os.readlink(path)).unlink(missing_ok=True)
    path.unlink()


# --------------------------------------------------------------------------------------------------------------------
# Hashes


def expected_sha256(folder: str | Path) -> str | None:
    """Return the sha256 that the Hub states for the weights in a folder of `fetch`.

    The cache stores it as the name of the file that the weights link to. None without such a link: outside a cache, on a disk
    without links, and for small files, which git stores itself. For shards, the sha256 of their hex digests, joined in the
    order of the files' names, as `read` computes it.
    """
    folder = Path(folder)
    weights = pick_weights(_names(folder))
    if weights is None:
        return None
    if not weights.endswith(".index.json"):
        return _in_name(folder / weights)
    digests = [_in_name(folder / name) for name in _shards(folder / weights)]
    known = [digest for digest in digests if digest]
    if len(known) < len(digests):
        return None
    return known[0] if len(known) == 1 else hashlib.sha256("".join(known).encode()).hexdigest()


def check(folder: str | Path, digest: str | None) -> None:
    """Raise ValueError if `digest`, the sha256 of the weights in a folder of `fetch`, is not the one that the Hub states."""
    expected = expected_sha256(folder)
    if digest and expected and digest != expected:
        path = Path(folder) / str(pick_weights(_names(Path(folder))))
        raise ValueError(_damaged(path, f"its sha256 is {digest}, and the Hub says {expected}"))


def _damaged(path: Path, how: str) -> str:
    """Format an error that names the link's target: the cache would link it again."""
    return f"{path.name} in {path.parent} is damaged: {how}; delete {path.resolve()} and load again"


def _in_name(path: Path) -> str | None:
    if not path.is_symlink():
        return None
    name = PurePath(os.readlink(path)).name  # one step only: the cache may share a file between repositories by another link
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else None


# --------------------------------------------------------------------------------------------------------------------
# Errors


def _failures(*more: type[Exception]) -> tuple[type[BaseException], ...]:
    """Return the exceptions that huggingface_hub raises on failure, and `more`.

    It has changed its HTTP library twice, and lets that one's errors through: their base class is one of its own error's.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, RuntimeError, *HfHubHTTPError.__bases__, *more)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of the error's response, if there is one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _unreachable(error: BaseException) -> bool:
    """Return whether the Hub did not answer, or answered that it can't."""
    status = _status(error)
    return not _on_this_machine(error) if status is None else status == 429 or status >= 500


def _on_this_machine(error: BaseException) -> bool:
    """Return whether it is an error of the operating system; HTTP libraries wrap those of connections."""
    return isinstance(error, OSError) and error.errno is not None


def _out_of_reach(error: BaseException, repo: str) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        why, first = "HF_HUB_OFFLINE is set", "unset it"
    else:
        why, first = f"{constants.ENDPOINT} can't be reached ({_reason(error)})", "set HF_ENDPOINT to a mirror"
    return (
        f'{why}, and the cache {constants.HF_HUB_CACHE} does not have "{repo}", or not all of it; {first}, or HF_HOME to a '
        "cache that was filled elsewhere (with HF_HUB_OFFLINE=1), or download the files elsewhere and load their folder"
    )


def _explained(error: BaseException, repo: str, *, revision: str | None, file: str | None = None) -> str:
    """Format an error as one line: what failed, and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page, status = f"{constants.ENDPOINT}/{repo}", _status(error)
    if isinstance(error, GatedRepoError):
        return f'"{repo}" is gated; accept its licence on {page}, then log in: `hf auth login`, or set HF_TOKEN'
    if isinstance(error, RevisionNotFoundError):
        return f'"{repo}" has no revision "{revision}"; take a branch or a tag that {page}/tree/main lists, or a commit'
    if isinstance(error, RepositoryNotFoundError):
        return (
            f'there is no repository "{repo}" at {constants.ENDPOINT}, or it is private; '
            "check the name, or give a token for a private one: `hf auth login`, or set HF_TOKEN"
        )
    if status in (401, 403):
        return (
            f'{constants.ENDPOINT} refuses access to "{repo}" ({_reason(error)}); accept its licence on {page} if it has one, '
            "and log in with a token that may do this: `hf auth login`, or set HF_TOKEN"
        )
    if isinstance(error, OSError) and _on_this_machine(error):
        where = error.filename or constants.HF_HUB_CACHE
        return f"{where} can't be used ({error.strerror}); make room for it, or set HF_HOME to another place"
    if file is None:
        return f'{constants.ENDPOINT} has no proper answer about "{repo}" ({_reason(error)}); try again later'
    return f'{file} of "{repo}" did not arrive whole ({_reason(error)}); load again, or download it elsewhere and load the file'


def _reason(error: BaseException) -> str:
    """Return the first line of an error's message; if the Hub did not answer, of the innermost error."""
    while _status(error) is None and (within := error.__cause__ or error.__context__) is not None:
        error = within
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200].rstrip(".:") if lines else type(error).__name__


def _listed(names: Iterable[str], *, most: int = 8) -> str:
    """Format names for a message or a table, the first few of many."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) or "no files") + rest


# --------------------------------------------------------------------------------------------------------------------
# To the Hub

_CARD = "README.md"


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "A model trained with Vitrail",
) -> str:
    """Upload the model of a finished run, and return its page's address.

    The repository, and the branch `revision`, are created if necessary; weights, config, settings and scores become one commit.
    `model_card` writes its README.md, unless the folder has one. Paths of this machine are not uploaded: a path among the
    settings is cut to its last part. Raises ValueError, in one line, for a folder that is no finished run or is damaged, and
    if the Hub refuses the upload.
    """
    folder = Path(folder)
    repo, revision = _named(repo_id, revision)
    info = read_run(folder)
    if not (folder / WEIGHTS).exists():
        raise ValueError(f"{folder / WEIGHTS} is missing; restore it from a copy, or `vitrail resume {folder}`")
    if sha256(folder / WEIGHTS) != info.sha256:
        raise ValueError(f"{folder / WEIGHTS} is damaged: its sha256 is not the one in {CONFIG}; restore it from a copy")
    contents: dict[str, Path | bytes] = {
        WEIGHTS: folder / WEIGHTS,
        CONFIG: (json.dumps(without_places(read_json(folder / CONFIG)), indent=2) + "\n").encode(),
        _CARD: folder / _CARD if (folder / _CARD).exists() else model_card(folder, repo_id=repo).encode(),
    }
    if (folder / SETTINGS).exists():
        settings = without_places(yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8")))
        contents[SETTINGS] = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode()
    if (folder / SCORES).exists():
        contents[SCORES] = (json.dumps(without_places(read_json(folder / SCORES)), indent=2) + "\n").encode()
    if (folder / PICTURE).exists():
        contents[PICTURE] = folder / PICTURE

    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    files = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()]
    try:
        url = str(api.create_repo(repo, private=private, exist_ok=True))
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        api.create_commit(repo, files, commit_message=commit_message, revision=revision)
    except _failures(ValueError) as error:
        raise ValueError(_not_pushed(error, repo, folder)) from error
    return url if revision is None else f"{url}/tree/{urllib.parse.quote(revision, safe='')}"


def _not_pushed(error: BaseException, repo: str, folder: Path) -> str:
    from huggingface_hub import constants

    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # "Error while uploading", from what it was
        error = error.__cause__
    if _status(error) in (401, 403, 404):
        return (
            f'{constants.ENDPOINT} does not let you write to "{repo}" ({_reason(error)}); '
            "log in with a token that may: `hf auth login`, or set HF_TOKEN"
        )
    return f'{folder} was not uploaded to "{repo}" at {constants.ENDPOINT} ({_reason(error)}); no commit was made, try again'
