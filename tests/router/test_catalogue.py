"""What the service says of its models."""

import json

import pytest

from config import ModelSettings, PolicySettings, Settings
from engines.words import Snapshot
from router.catalogue import UNKNOWN_CONTEXT, Catalogue


def snapshot(state):
    return Snapshot(
        model="late",
        state=state,
        load_s=None,
        arrivals_per_min=0,
        running=0,
        waiting=0,
        footprint_bytes=0,
        failure=None,
        retry_in_s=0,
    )


@pytest.mark.parametrize("sets_context", [False, True])
def test_a_model_that_was_downloaded_since_the_start_is_looked_at_again(tmp_path, sets_context):
    model = ModelSettings(
        name="late", source="./late", max_model_len=2048 if sets_context else None
    )
    settings = Settings(models=[model], routing=PolicySettings(default="late"))
    catalogue = Catalogue(settings, tmp_path)
    unknown = 2048 if sets_context else UNKNOWN_CONTEXT
    assert catalogue.known(snapshot("cold")).max_model_len == unknown

    (tmp_path / "late").mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 32768}
    (tmp_path / "late" / "config.json").write_text(json.dumps(config))

    known = 2048 if sets_context else 32768
    assert catalogue.known(snapshot("loading")).max_model_len == unknown
    assert catalogue.known(snapshot("ready")).max_model_len == known
    assert catalogue.entry("late", [snapshot("ready")])["max_model_len"] == known
