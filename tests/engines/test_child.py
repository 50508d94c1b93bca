"""What an engine process says when it fails."""

import shutil
from typing import Annotated

import pytest
from annotated_types import Ge
from pydantic import BaseModel, ValidationError

from config import ModelSettings
from engines.child import clause
from engines.protocol import EngineFailed
from engines.vllm import _clause


@pytest.mark.parametrize(
    ("kind", "message", "said"),
    [
        ("ValueError", "The file is too short.\nTraceback ...", "The file is too short"),
        ("ValueError", "Value error, no such architecture", "no such architecture"),
        ("KeyError", "'model.norm.weight'", "KeyError 'model.norm.weight'"),
        ("MemoryError", "", "MemoryError"),
        (
            "ValueError",
            "Could not be read from one of:\n\n  a file\n  b",
            "Could not be read from one of: a file",
        ),
    ],
)
def test_a_failure_is_one_clause(kind, message, said):
    assert clause(kind, message) == said


def test_what_vllm_says_of_an_engine_argument_has_its_name():
    class Config(BaseModel):
        block_size: Annotated[int, Ge(16)]

    with pytest.raises(ValidationError) as caught:
        Config(block_size=7)

    said = _clause(caught.value)
    assert said == "block_size: Input should be greater than or equal to 16"


@pytest.mark.real
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("cut", "model.safetensors was cut off: it has 134530276 of 269060552 bytes"),
        ("unknown", "model type `nosuch`"),
    ],
)
async def test_a_model_whose_files_are_broken_fails_with_the_cause(
    quickstart_loader, tmp_path, harm, said
):
    model = ModelSettings(
        name="broken", source="./broken", max_model_len=256, kv_cache_gb=0.05, enforce_eager=True
    )
    whole = await quickstart_loader.locate(
        ModelSettings(name="whole", source="quickstart:smollm2-135m-instruct")
    )
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    if harm == "cut":
        weights = next(broken.glob("*.safetensors"))
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size // 2)
    else:
        config = broken / "config.json"
        config.write_text(config.read_text().replace('"llama"', '"nosuch"'))

    with pytest.raises(EngineFailed, match=said):
        await quickstart_loader.start(model, broken)
