"""Checkpoints from the Hugging Face hub, kept in the layout of huggingface_hub's cache.

The files are downloaded as those of a mirror are: bounded, resumed, and checked before they are recorded. What
downloads is imported when it is needed: requests takes a tenth of a second, and most runs download nothing.
"""

from __future__ import annotations

import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from ..display import redacted
from .cache import (
    FILE_NAME,
    has_all_files,
    is_inside,
    is_safe,
    locked,
    require_space,
    write_record,
)
from .contents import problem_of
from .directories import ADAPTER_NAME, CONFIG_NAME
from .errors import HubError, NoSpaceError
from .gguf_files import is_gguf, is_projector_name
from .options import RepoOptions
from .selection import stored, wanted_files

logger = logging.getLogger(__name__)
DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_INFO_BYTES = 32 * 2**20  # of what the hub says about a repository
_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def endpoint() -> str:
    """Return HF_ENDPOINT, else the hub's own address; the environment is read at each call, not at import."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def cached_repo(repo: str, root: Path, weights: bool, options: RepoOptions | None = None) -> Path | None:
    """Return what is wanted of a repository, from our cache or from Hugging Face's own, None if it is in neither.

    A snapshot with a link that leads out of its repository's folder, or with a file that is not regular, is not used.

    Returns:
        The directory of the snapshot; for GGUF files, the path of the language model's file.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    options = options or RepoOptions()
    for cache_dir in (root / "huggingface", None):
        is_ours = cache_dir is not None
        try:
            folder_of_commit = snapshot_download(
                repo, revision=options.revision, cache_dir=cache_dir, local_files_only=True
            )
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            continue
        folder, snapshot = Path(folder_of_commit).parents[1], Path(folder_of_commit) / options.subfolder
        if not is_safe(snapshot, folder):
            continue
        found = stored(snapshot, weights, options, is_ours)
        if found is not None:
            if not is_ours and is_gguf(found.name) and options.mmproj is None:
                _warn_without_mmproj(repo, found, options)
            return found
    return None


def _warn_without_mmproj(repo: str, language: Path, options: RepoOptions) -> None:
    """Warn that a model opens without eyes, perhaps because another program fetched one of its two files only."""
    if any(is_projector_name(path.name) for path in language.parent.iterdir()):
        return
    revision = f" --revision {options.revision}" if options.revision else ""
    logger.warning(
        "Hugging Face's cache has %s of %s without an mmproj file. Unless vision_tower (--vision-tower) names one, it "
        "is opened as a model for texts only. If the repository has one: hf download %s --include '*mmproj*'%s",
        language.name,
        repo,
        repo,
        revision,
    )


def fetch_repo(
    repo: str, root: Path, weights: bool, progress: bool | None = None, options: RepoOptions | None = None
) -> Path:
    """Download the files of a repository that are wanted, and return the same as `cached_repo`.

    Raises:
        HubError: the hub does not have it, or sends something else; the message says which file.
        NoSpaceError: the disk has too little space.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import build_hf_headers, validate_repo_id

    from .download import RemoteFile, download
    from .transfer import fetch_json

    options = options or RepoOptions()
    shown = f"{redacted(endpoint())}/{repo}" + (f" at {options.revision}" if options.revision else "")
    at, prefix = _url_parts(options)
    try:
        validate_repo_id(repo)
        headers = build_hf_headers(token=options.token)
        info = fetch_json(f"{endpoint()}/api/models/{repo}{at}?blobs=true", MAX_INFO_BYTES, headers)
        commit, files = _listing(info, prefix)
        try:
            chosen = wanted_files(files, weights, options)
        except HubError as error:
            raise HubError(f"{error}{_advice(info, prefix)}") from None
        if options.is_adapter:
            _refuse_tower(info, prefix)
        folder = root / "huggingface" / f"models--{repo.replace('/', '--')}"
        snapshot = folder / "snapshots" / commit / options.subfolder
        with locked(folder):
            snapshot.mkdir(parents=True, exist_ok=True)
            missing = [
                name
                for name in chosen
                if not _is_complete(snapshot / name, files[name], folder)
                and not _link_earlier(snapshot / name, files[name], folder, options.subfolder)
            ]
            require_space(snapshot, sum(files[name].size or 0 for name in missing))
            for name in missing:
                url = f"{endpoint()}/{repo}/resolve/{commit}/{prefix}{name}"
                (snapshot / name).unlink(missing_ok=True)
                remote = RemoteFile(url, files[name].size, files[name].sha256)
                download(remote, snapshot / name, progress, headers=headers)
            _publish(snapshot, shown, weights, chosen, list(filter(is_gguf, files)))
            _write_reference(folder, options.revision or "main", commit)
    except NoSpaceError:
        raise
    except (HubError, HFValidationError, OSError) as error:
        raise HubError(f"{shown}: {redacted(str(error))}") from error
    language = next((name for name in chosen if is_gguf(name) and not is_projector_name(name)), None)
    return snapshot if language is None else snapshot / language


class _Stated(NamedTuple):
    """What the hub states about a file; the hash of large files only."""

    size: int | None
    sha256: str | None


def _listing(info: Any, prefix: str = "") -> tuple[str, dict[str, _Stated]]:
    """Return the commit of a repository, and its files at the top or in the folder `prefix`, without the prefix.

    Raises:
        HubError: the answer is malformed.
    """
    try:
        commit = info["sha"]
        stated = [_stated(item) for item in info["siblings"] if item["rfilename"].startswith(prefix)]
        files = [(name[len(prefix) :], value) for name, value in stated]
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise HubError(f"the hub's answer is not a list of files: {type(error).__name__}: {error}") from None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise HubError(f"the hub's answer states the commit {commit!r:.80}, expected 40 hexadecimal digits")
    return commit, dict(file for file in files if FILE_NAME.fullmatch(file[0]))


def _stated(item: Any) -> tuple[str, _Stated]:
    lfs = item.get("lfs") or {}
    size, sha256 = item.get("size"), lfs.get("sha256")
    if not (size is None or (type(size) is int and size >= 0)):
        raise ValueError(f"size {size!r:.80}")
    if not (sha256 is None or (isinstance(sha256, str) and _SHA256.fullmatch(sha256))):
        raise ValueError(f"sha256 {sha256!r:.80}")
    return item["rfilename"], _Stated(size, sha256)


def _is_complete(path: Path, stated: _Stated, folder: Path) -> bool:
    """Return whether an earlier download of the same commit left the file."""
    from .download import sha256_of

    if not is_inside(path, folder) or stated.size not in (None, path.stat().st_size) or problem_of(path, path.name):
        return False
    return stated.sha256 is None or sha256_of(path) == stated.sha256


def _link_earlier(path: Path, stated: _Stated, folder: Path, subfolder: str) -> bool:
    """Make `path` a second name of the same file of another commit; return whether there was one.

    Most commits of a repository change its description, and no weights. Only large files have a hash to know them by.
    """
    if stated.sha256 is None:
        return False
    for snapshot in (folder / "snapshots").iterdir():
        earlier = snapshot / subfolder / path.name
        if earlier != path and _is_complete(earlier, stated, folder):
            path.unlink(missing_ok=True)
            with suppress(OSError):  # some file systems have no hard links
                os.link(earlier.resolve(), path)
                return True
    return False


def _publish(snapshot: Path, source: str, weights: bool, names: list[str], gguf: list[str]) -> None:
    """Record what of a snapshot is complete.

    Args:
        names: of the files that were downloaded.
        gguf: all GGUF files of the repository, so that a later choice among them needs no connection.
    """
    is_checkpoint = CONFIG_NAME in names and ADAPTER_NAME not in names and not any(map(is_gguf, names))
    if is_checkpoint and not has_all_files(snapshot, weights):
        raise HubError("it has no weights in a format that is known here, or not all of its shards")
    files = [{"name": name, "size": (snapshot / name).stat().st_size} for name in names]
    write_record(snapshot, source, weights and is_checkpoint, files, gguf)


def _advice(info: Any, prefix: str) -> str:
    """Return what to do if the folders of a repository may have what its top has not."""
    folders = {
        item["rfilename"].rpartition("/")[0] for item in info["siblings"] if is_gguf(item["rfilename"]) and not prefix
    }
    listed = ", ".join(sorted(filter(None, folders)))
    return f"; there are GGUF files in its folders {listed}: give one as subfolder" if listed else ""


def _refuse_tower(info: Any, prefix: str) -> None:
    """Refuse to leave out a vision tower that was trained with an adapter, which ShareGPT4V's training stores so."""
    if any(item["rfilename"] == f"{prefix}vision_tower/{CONFIG_NAME}" for item in info["siblings"]):
        raise HubError(
            "its adapter comes with a vision tower of its own, in the folder vision_tower: download the repository "
            "(`hf download`), and give its directory as adapter (--adapter), and its folder vision_tower as "
            "vision_tower (--vision-tower)"
        )


def _write_reference(folder: Path, revision: str, commit: str) -> None:
    """Let huggingface_hub find a snapshot by the name of its branch or tag."""
    if revision == commit:
        return
    path = folder / "refs" / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(commit, encoding="utf-8")
    temporary.replace(path)


def _url_parts(options: RepoOptions) -> tuple[str, str]:
    """Return the part of a URL that names the revision, and the prefix of the files' names."""
    at = f"/revision/{quote(options.revision, safe='')}" if options.revision else ""
    return at, f"{options.subfolder}/" if options.subfolder else ""
