"""How engines come to be: the pool's only way to the outside."""

import logging
from pathlib import Path

from config import ModelSettings, Settings
from engines.echo import EchoEngine
from engines.fetch import fetch
from engines.need import need, too_small
from engines.protocol import Endpoint, Engine, EngineFailed
from engines.sources import local_directory

log = logging.getLogger("axion.load")


class EngineLoader:
    """Finds a model's files and starts its engine. See `engines.pool.Loader`.

    Parameters
    ----------
    settings
        The configuration; vLLM is imported now if one of its models needs it (5 to 10 s).
    base
        Directory that relative sources start from.
    """

    def __init__(self, settings: Settings, base: Path) -> None:
        self._base = base
        if any(model.engine == "vllm" for model in settings.models):
            # Here and nowhere else, so that everything but this runs without vLLM.
            from engines.vllm import VllmStarter

            self._vllm = VllmStarter()
            for model in settings.models:
                directory = local_directory(model.source, base)
                if model.engine == "vllm" and directory is not None:
                    self._vllm.warm(model, directory)

    async def locate(self, model: ModelSettings) -> Path:
        """Return the directory of the model's files, downloading them if need be.

        Cancelling ends the download; the files that are complete stay.
        """
        if model.engine == "echo":
            return self._base

        def report(line: str) -> None:
            log.info("%s: %s", model.name, line)

        return await fetch(model.source, self._base, report)

    def footprint_bytes(self, model: ModelSettings, directory: Path) -> int:
        """Return what the engine will take, in bytes; EngineFailed if it would not start."""
        if model.engine == "echo":
            return 0
        found = need(model, directory)
        if reason := too_small(found):
            raise EngineFailed(reason)
        return found.total_bytes

    def check(self, model: ModelSettings, endpoint: Endpoint, body: bytes) -> None:
        """Raise Refused if no engine of the model's kind could run this request."""
        if model.engine == "vllm":
            from engines.request import read_request

            read_request(endpoint, body)

    async def start(self, model: ModelSettings, directory: Path) -> Engine:
        """Start the engine. Cancelling ends what was started."""
        if model.engine == "echo":
            return EchoEngine(model.name, max_model_len=model.max_model_len or 4096)
        return await self._vllm.start(model, directory)

    def progress(self, model: ModelSettings) -> float | None:
        """Return which part of the weights a start under way has read, 0 to 1; None: unknown."""
        return None if model.engine == "echo" else self._vllm.progress(model)
