"""What a model's files say about it."""

import pytest

from engines.checkpoint import Checkpoint, inspect


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('{"max_position_embeddings": 2048}', Checkpoint(max_position=2048)),
        (
            '{"text_config": {"max_position_embeddings": 8192}, "vision_config": {}}',
            Checkpoint(max_position=8192, vision=True),
        ),
        ("{}", Checkpoint()),
        ("[]", Checkpoint()),
        ("{", Checkpoint()),
        ('{"max_position_embeddings": "many"}', Checkpoint()),
    ],
)
def test_context_and_vision_are_read_from_config_json(tmp_path, config, expected):
    (tmp_path / "config.json").write_text(config)

    assert inspect(tmp_path) == expected


def test_without_a_config_nothing_is_known(tmp_path):
    assert inspect(tmp_path) == Checkpoint()
