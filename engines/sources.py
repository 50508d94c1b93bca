"""Where a model's files come from: this disk, the quickstart, or a model hub."""

import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines import quickstart
from engines.memory import GIB, weights_bytes
from engines.quickstart import SourceError

__all__ = [
    "Report",
    "SourceError",
    "at_hand",
    "damage",
    "is_local",
    "local_directory",
    "missing",
    "problem",
    "resolve",
]

Report = Callable[[str], None]

_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.tiktoken"]
_OTHER_LAYOUTS = ["original/*", "metal/*", "consolidated*", "onnx/*"]  # the same weights again

_PROGRESS_S = 5.0
"""Seconds between two lines about a download."""


def problem(source: str) -> str | None:
    """Return what is wrong with a source as it is written, and what was expected; None: nothing.

    Looks at no model's files; see `damage`.
    """
    if "\0" in source:
        return "has a NUL character, which no path and no hub id can have"
    if source.startswith(quickstart.PREFIX):
        return None if source == quickstart.SOURCE else f"there is only `{quickstart.SOURCE}`"
    if _is_path(source):
        try:
            Path(source).expanduser()
        except RuntimeError:
            return "starts with the home directory of a user that this machine does not have"
        return None
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    name, at, revision = source.partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return "is not a hub id (owner/name), and a directory starts with /, ./, ../ or ~"
    if at and not (revision.isprintable() and revision.strip() == revision != ""):
        return "has no revision after the @; expected owner/name@revision"
    return None


def is_local(source: str) -> bool:
    """Tell whether `source` is had without a model hub."""
    return source.startswith(quickstart.PREFIX) or _is_path(source)


def at_hand(source: str) -> bool:
    """Tell whether `resolve` has nothing to download or to convert, and so blocks for no time."""
    return _is_path(source) or (source == quickstart.SOURCE and quickstart.whole() is not None)


def _is_path(source: str) -> bool:
    return source.startswith(("/", ".", "~"))  # no hub id does


def resolve(source: str, base: Path, report: Report) -> Path:
    """Return the directory of a model's files, downloading or converting them if need be. Blocks.

    Parameters
    ----------
    source
        `quickstart:NAME`, a directory (absolute, or starting with `./`, `../` or `~`), or a hub id
        `owner/name`, with `@revision` if one is to be pinned.
    base
        Directory that relative ones start from.
    report
        Called with a line for people whenever something slow begins, goes on or is over.

    Raises
    ------
    SourceError
        The files are not there and cannot be had; the message says what to do.
    """
    if wrong := problem(source):
        raise SourceError(f"source {source!r} {wrong}")
    if source.startswith(quickstart.PREFIX):
        return quickstart.fetch(report)
    directory = _path(source, base) if _is_path(source) else _from_hub(source, report)
    if lack := _missing(directory):
        raise SourceError(f"source {source!r}: {lack}")
    return directory


def local_directory(source: str, base: Path) -> Path | None:
    """Return the directory of a model's files if they are on this disk already, else None."""
    if problem(source):
        return None
    if source.startswith(quickstart.PREFIX):
        return quickstart.cached()
    if _is_path(source):
        directory = _path(source, base)
        return directory if (directory / "config.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = source.partition("@")
    found = try_to_load_from_cache(name, "config.json", revision=revision or None)
    return Path(found).parent if isinstance(found, str) else None


def missing(source: str, base: Path) -> str | None:
    """Return what a local directory lacks; None: nothing, or `resolve` can fetch it."""
    return _missing(_path(source, base)) if _is_path(source) and not problem(source) else None


def damage(source: str, base: Path) -> str | None:
    """Return what is broken in a model's files that are here already; None: nothing.

    Reads headers, no weights.
    """
    directory = local_directory(source, base)
    if directory is None:
        return None
    config, again = directory / "config.json", "copy or download it again"
    try:
        if not isinstance(json.loads(config.read_text(encoding="utf-8")), dict):
            return f"{config} is not a JSON object; {again}"
    except (OSError, ValueError, RecursionError) as error:
        return f"{config} cannot be read ({error}); {again}"
    try:
        weights_bytes(directory)
    except FileNotFoundError as error:
        # The hub's cache lacks files while a download is under way, and the next load goes on.
        return f"{error.filename} is missing; {again}" if _is_path(source) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its weights cannot be read ({error}); {again}"
    return None


def _path(source: str, base: Path) -> Path:
    return (base / Path(source).expanduser()).resolve()


def _missing(directory: Path) -> str | None:
    """Return what a checkpoint's directory lacks, and what was expected."""
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        return f"{directory} {what}; expected a directory with config.json and *.safetensors"
    if not (directory / "config.json").is_file():
        return f"{directory} has no config.json; expected a checkpoint in Hugging Face's layout"
    if not any(directory.glob("*.safetensors")):
        return f"{directory} has no *.safetensors; convert its weights to that format"
    return None


def _from_hub(source: str, report: Report) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = source.partition("@")
    report(f"looking for {source} in the local cache and on the hub")
    try:
        directory = snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=_FILES,
            ignore_patterns=_OTHER_LAYOUTS,
            tqdm_class=_progress(report),
        )
    except GatedRepoError:
        reason = "its owner asks for consent: accept its licence on the hub, then set HF_TOKEN"
    except RevisionNotFoundError:
        reason = f"it has no revision {revision!r}"
    except RepositoryNotFoundError:
        reason = "the hub has no such model, or it is private: check the name, or set HF_TOKEN"
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set and it is not in the local cache"
    except IncompleteSnapshotError:
        reason = "the local cache has a part of it and the hub cannot be reached"
    except LocalEntryNotFoundError:
        reason = "it is not in the local cache and the hub cannot be reached"
    except HfHubHTTPError as error:
        reason = f"the hub answered {error.response.status_code}"
    except OSError as error:
        reason = f"{error.strerror or error}"
    else:
        report(f"{source} is in {directory}")
        return Path(directory)
    raise SourceError(f"source {source!r} could not be downloaded: {reason}")


def _progress(report: Report) -> type:
    """Return a class in the place of the hub's progress bars, which tells `report` instead."""
    from tqdm import tqdm

    class Progress(tqdm):  # type: ignore[misc] # it has no types
        monitor_interval = 0  # no thread that watches it

        def __init__(self, *arguments: Any, **options: Any) -> None:
            # There are bars for files, for what came over the network (compressed, of unknown
            # size), and for what is on disk of the files that were begun.
            self._counts = str(options.get("desc")).startswith("Reconstruct")
            self._said_at = time.monotonic()
            super().__init__(*arguments, **{**options, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            super().update(n)
            if self._counts and time.monotonic() - self._said_at >= _PROGRESS_S:
                self._said_at = time.monotonic()
                report(f"{self.n / GIB:.2f} of {self.total / GIB:.2f} GiB are here")

    Progress.set_lock(threading.RLock())  # else it makes one between processes
    return Progress
