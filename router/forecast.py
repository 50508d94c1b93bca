"""How fast each model reads and writes, learned from its answers; the decision predicts by it.

Kept in a small file of numbers across restarts, so that the first decision after one is as good
as the last before it.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from config import ModelSettings
from engines import cores

log = logging.getLogger("axion.forecast")

WEIGHT = 0.2
"""Of the newest answer in a running mean; the first ones weigh more."""

SAVE_S = 300.0
"""Seconds between two writings of the file: a service that is killed loses no more."""

TOKENS_MIN = 4
"""Shorter answers, and prompts ten times as long, say nothing about speed."""

PREFILL = 30.0
"""How many times as fast as it writes a model reads, before anything was measured."""

_BANDWIDTH = 5e9  # bytes of weights that a core reads per second, before anything was measured
_FASTEST = 60.0  # tokens/s of one answer then, since a small model is not bound by its weights


class Mean(Struct):
    """A running mean."""

    value: float
    count: int = 0

    def add(self, value: float) -> None:
        """Move the mean to `value`, less and less."""
        self.count += 1
        self.value += max(WEIGHT, 1 / self.count) * (value - self.value)


class Speed(Struct):
    """Speeds of one model, in tokens/s.

    Attributes
    ----------
    prefill
        Of reading a prompt; None before the first.
    decode
        Of writing one answer, by how many are written at a time: 1, 2, 4, 8, ...
    error
        Mean of |predicted / measured - 1| of the seconds of a whole answer.
    """

    prefill: Mean | None = None
    decode: dict[int, Mean] = {}
    error: Mean | None = None

    @property
    def is_sound(self) -> bool:
        """Whether it can be divided by."""
        speeds = [self.prefill, *self.decode.values()]
        return all(mean.value > 0 for mean in speeds if mean)


class Forecast:
    """What is known of every model's speed.

    Parameters
    ----------
    models
        A measurement is kept for a source with its settings, not for a name.
    path
        The file, or None to keep nothing.
    """

    def __init__(self, models: Iterable[ModelSettings], path: Path | None = None) -> None:
        self._keys = {model.name: _key(model) for model in models}
        self._path = path
        self._speeds = self._kept()
        self._changed: set[str] = set()
        self._writing = threading.Lock()

    def prefill_tokens_per_s(self, model: str, footprint_bytes: int) -> float:
        """Return how fast `model` reads a prompt."""
        known = self._speed(model).prefill
        return known.value if known else PREFILL * _prior(footprint_bytes)

    def decode_tokens_per_s(self, model: str, running: int, footprint_bytes: int) -> float:
        """Return how fast it writes an answer beside `running` others."""
        known = self._speed(model).decode
        if not known:
            return _prior(footprint_bytes)
        wanted = _bucket(running + 1)
        return known[min(known, key=lambda bucket: abs(bucket - wanted))].value

    def error(self, model: str) -> float | None:
        """Return by what share predictions were off lately, or None before the first."""
        known = self._speed(model).error
        return known.value if known else None

    def known(self, model: str) -> Speed:
        """Return what was measured of a model, to look at."""
        return self._speed(model)

    def read(self, model: str, tokens: int, seconds: float) -> None:
        """Note that a prompt of `tokens` was read in `seconds`."""
        if tokens >= 10 * TOKENS_MIN and seconds > 0:
            speed = self._own(model)
            speed.prefill = speed.prefill or Mean(0.0)
            speed.prefill.add(tokens / seconds)

    def wrote(self, model: str, running: int, tokens: int, seconds: float) -> None:
        """Note that an answer of `tokens` was written in `seconds` beside `running` others."""
        if tokens >= TOKENS_MIN and seconds > 0:
            self._own(model).decode.setdefault(_bucket(running + 1), Mean(0.0)).add(
                tokens / seconds
            )

    def took(self, model: str, predicted_s: float, measured_s: float) -> None:
        """Note how long a whole answer took, and was expected to."""
        if measured_s > 0:
            speed = self._own(model)
            speed.error = speed.error or Mean(0.0)
            speed.error.add(abs(predicted_s / measured_s - 1))

    async def keep(self) -> None:
        """Save every few minutes, off the event loop. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(SAVE_S)
            await self.save()

    async def save(self) -> None:
        """Write what is new; a disk that refuses is no reason to fail."""
        if self._path is None or not self._changed:
            return
        changed, self._changed = self._changed, set()
        own = msgspec.json.encode({key: self._speeds[key] for key in changed})
        try:
            await asyncio.to_thread(self._write, self._path, own)
        except asyncio.CancelledError:  # the process may end before that is written
            self._changed |= changed
            raise

    def _write(self, path: Path, own: bytes) -> None:
        """Write `own` speeds into the file, beside those that other services measured."""
        with self._writing:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                whole = {**self._kept(), **msgspec.json.decode(own, type=dict[str, Speed])}
                new = path.with_name(f"{path.name}.{os.getpid()}")
                new.write_bytes(msgspec.json.encode(whole))
                new.replace(path)
            except OSError as error:
                log.warning("%s: cannot be written (%s); speeds are measured anew", path, error)

    def _kept(self) -> dict[str, Speed]:
        """Return what the file says; what is damaged is measured anew."""
        if self._path is None:
            return {}
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=dict[str, Speed])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            log.warning("%s: cannot be read (%s); speeds are measured anew", self._path, error)
            return {}
        return {key: speed for key, speed in kept.items() if speed.is_sound}

    def _speed(self, model: str) -> Speed:
        return self._speeds.get(self._keys[model], _UNKNOWN)

    def _own(self, model: str) -> Speed:
        """Return the speed of a model, to be changed."""
        key = self._keys[model]
        self._changed.add(key)
        return self._speeds.setdefault(key, Speed())


_UNKNOWN = Speed()


def _key(model: ModelSettings) -> str:
    """Return what the speed of a model depends on."""
    facts = (model.source, model.engine, model.dtype, model.quantization, model.enforce_eager)
    return " ".join(map(str, (*facts, model.threads, model.max_num_batched_tokens)))


def _prior(footprint_bytes: int) -> float:
    """Return the tokens/s of one answer as far as the size of a model tells."""
    return min(_BANDWIDTH * cores.usable() / max(footprint_bytes, 1), _FASTEST)


def _bucket(count: int) -> int:
    """Return the power of two that is not below `count`."""
    return 1 << max(count - 1, 0).bit_length()
