"""The models as clients and the routing see them: names, aliases, capabilities, state."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from config import AUTO, ModelSettings, Settings, is_auto, nearest
from engines.checkpoint import Checkpoint, inspect
from engines.sources import local_directory
from engines.words import Snapshot
from router.errors import ApiError

UNKNOWN_CONTEXT = 4096
"""Assumed tokens of context for a model that is not on this disk yet and sets no max_model_len."""

NAME_MAX = 64
"""Characters of an unknown name that are compared with the known ones."""


class Listed(Struct, frozen=True):
    """What is known of a model before it is loaded."""

    settings: ModelSettings
    max_model_len: int
    vision: bool
    tools: bool
    is_here: bool


class Catalogue:
    """All models, in the order of the configuration.

    Parameters
    ----------
    base
        Directory that relative model sources start from.
    """

    def __init__(self, settings: Settings, base: Path) -> None:
        self._settings = settings
        self._base = base
        self._created = int(time.time())
        self._listed = {model.name: _listed(model, base) for model in settings.models}

    def resolve(self, name: str, policies: Sequence[str] = ()) -> str:
        """Return the model that `name` stands for, or `auto`, or `auto:` and a policy.

        Parameters
        ----------
        policies
            The names of the policies there are.

        Raises
        ------
        ApiError
            `model_not_found`, with the nearest name.
        """
        target = self._settings.aliases.get(name, name)
        if target == AUTO or target in self._listed:
            return target
        autos = [f"{AUTO}:{policy}" for policy in policies]
        if target in autos:
            return target
        known = [AUTO, *autos, *self._listed, *self._settings.aliases]
        raise ApiError(
            # Clients look for these words. Not repeated is the name: some take a "429" or a "rate
            # limit" in any error's text for the error of that name.
            "The model you asked for does not exist or you do not have access to it"
            f"{nearest(name[:NAME_MAX], known)}. There are: {', '.join(known)}.",
            "model_not_found",  # `param` is null, as it is at OpenAI
        )

    def one(self, name: str, policies: Sequence[str] = ()) -> str:
        """Return the one model that `name` stands for.

        Raises
        ------
        ApiError
            `model_not_found`, or `invalid_value` for `auto`, which is not one model.
        """
        target = self.resolve(name, policies)
        if is_auto(target):
            raise ApiError(
                "`auto` stands for all models; name one of them.", "invalid_value", param="model"
            )
        return target

    @property
    def names(self) -> list[str]:
        """The names of all models."""
        return list(self._listed)

    def listed(self, name: str) -> Listed:
        """Return what is known of a model before it is loaded."""
        return self._listed[name]

    def known(self, status: Snapshot) -> Listed:
        """Return what is known of a model by now: it may have been downloaded since the start."""
        listed = self._listed[status.model]
        if status.state == "ready" and not listed.is_here:
            listed = self._listed[status.model] = _listed(listed.settings, self._base)
        return listed

    def entries(
        self, statuses: list[Snapshot], policies: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Return the model objects of `GET /v1/models`: `auto` first, then every model.

        Parameters
        ----------
        policies
            Those that are listed, each as `auto:NAME`.
        """
        autos = [AUTO, *(f"{AUTO}:{policy}" for policy in policies)]
        return [
            *(self._auto_entry(name) for name in autos),
            *(self._model_entry(status) for status in statuses),
        ]

    def entry(self, name: str, snapshots: list[Snapshot]) -> dict[str, Any]:
        """Return the object of one model, of `auto`, or of `auto:` and a policy."""
        if is_auto(name):
            return self._auto_entry(name)
        return next(self._model_entry(status) for status in snapshots if status.model == name)

    def _auto_entry(self, name: str) -> dict[str, Any]:
        policy = name.partition(":")[2]
        return {
            **self._entry(name),
            "description": "Chooses one of the other models for each request"
            + (f", by the policy {policy}." if policy else "."),
            "max_model_len": max(listed.max_model_len for listed in self._listed.values()),
            "capabilities": {
                "vision": any(listed.vision for listed in self._listed.values()),
                "tools": any(listed.tools for listed in self._listed.values()),
            },
        }

    def _model_entry(self, status: Snapshot) -> dict[str, Any]:
        listed = self.known(status)
        return {
            **self._entry(status.model),
            "description": listed.settings.description,
            "source": listed.settings.source,
            "max_model_len": listed.max_model_len,
            "capabilities": {"vision": listed.vision, "tools": listed.tools},
            "state": status.state,
            "requests": status.held,
            "running": status.running,
            "waiting": status.waiting,
            "failure": status.failure,
        }

    def _entry(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "axion"}


def _listed(model: ModelSettings, base: Path) -> Listed:
    directory = local_directory(model.source, base) if model.engine == "vllm" else None
    facts = inspect(directory) if directory else Checkpoint()
    chosen = model.capabilities
    return Listed(
        settings=model,
        max_model_len=model.max_model_len or facts.max_position or UNKNOWN_CONTEXT,
        vision=facts.vision if chosen.vision is None else chosen.vision,
        tools=model.tool_parser is not None if chosen.tools is None else chosen.tools,
        is_here=directory is not None or model.engine == "echo",
    )
