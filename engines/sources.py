"""Where a model's files come from: this disk, the quickstart, or a model hub."""

from collections.abc import Callable
from pathlib import Path

from engines import quickstart
from engines.quickstart import SourceError

__all__ = ["SourceError", "local_directory", "resolve"]

Report = Callable[[str], None]

_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.tiktoken"]
_OTHER_LAYOUTS = ["original/*", "metal/*", "consolidated*", "onnx/*"]  # the same weights again


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
        Called with a line for people whenever something slow begins.

    Raises
    ------
    SourceError
        The files are not there and cannot be had; the message says what to do.
    """
    if source.startswith(quickstart.PREFIX):
        _check_quickstart(source)
        return quickstart.fetch(report)
    if _is_path(source):
        return _checked(_path(source, base), source)
    return _from_hub(source, report)


def local_directory(source: str, base: Path) -> Path | None:
    """Return the directory of a model's files if they are on this disk already, else None."""
    if source.startswith(quickstart.PREFIX):
        return quickstart.cached()
    if _is_path(source):
        directory = _path(source, base)
        return directory if (directory / "config.json").is_file() else None
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = source.partition("@")
    found = try_to_load_from_cache(name, "config.json", revision=revision or None)
    return Path(found).parent if isinstance(found, str) else None


def _check_quickstart(source: str) -> None:
    if source != quickstart.SOURCE:
        raise SourceError(
            f"there is no {source!r}; the quickstart has one model: {quickstart.SOURCE}"
        )


def _is_path(source: str) -> bool:
    return source.startswith(("/", "./", "../", "~"))


def _path(source: str, base: Path) -> Path:
    return (base / Path(source).expanduser()).resolve()


def _checked(directory: Path, source: str) -> Path:
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise SourceError(
            f"source {source!r}: {directory} {what}; expected a directory with config.json and "
            "*.safetensors"
        )
    if not (directory / "config.json").is_file():
        raise SourceError(
            f"source {source!r}: {directory} has no config.json; expected a checkpoint in Hugging "
            "Face's layout"
        )
    if not any(directory.glob("*.safetensors")):
        raise SourceError(
            f"source {source!r}: {directory} has no *.safetensors; convert its weights to that "
            "format"
        )
    return directory


def _from_hub(source: str, report: Report) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
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
        )
    except GatedRepoError:
        reason = "its owner asks for consent: accept its licence on the hub, then set HF_TOKEN"
    except RevisionNotFoundError:
        reason = f"it has no revision {revision!r}"
    except RepositoryNotFoundError:
        reason = "the hub has no such model, or it is private: check the name, or set HF_TOKEN"
    except HFValidationError:
        reason = "that is not a hub id (owner/name), and a directory starts with /, ./, ../ or ~"
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set and it is not in the local cache"
    except LocalEntryNotFoundError:
        reason = "it is not in the local cache and the hub cannot be reached"
    except HfHubHTTPError as error:
        reason = f"the hub answered {error.response.status_code}"
    except OSError as error:
        reason = f"{error.strerror or error}"
    else:
        return _checked(Path(directory), source)
    raise SourceError(f"source {source!r} could not be downloaded: {reason}")
