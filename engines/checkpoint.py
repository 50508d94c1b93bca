"""What a model's files say about it, without loading it."""

import json
from pathlib import Path
from typing import Any

from msgspec import Struct


class Checkpoint(Struct, frozen=True, kw_only=True):
    """The facts of a checkpoint that routing needs.

    Attributes
    ----------
    max_position
        Longest context the model was made for, in tokens, or 0 when the files do not say.
    vision
        Whether it reads images.
    """

    max_position: int = 0
    vision: bool = False


def inspect(directory: Path) -> Checkpoint:
    """Return the facts in `directory/config.json`; the defaults where it cannot be read."""
    try:
        config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        # Multimodal checkpoints keep the language model's numbers in a section of their own.
        text = config.get("text_config") or config
        return Checkpoint(
            max_position=int(text.get("max_position_embeddings") or 0),
            vision="vision_config" in config,
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return Checkpoint()
