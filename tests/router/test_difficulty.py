"""How hard a request is; how well that predicts outcomes is measured by a benchmark."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.classifier import TASKS, shipped
from router.difficulty import CHARS_MAX, difficulty


def of(text):
    return difficulty(shipped().probabilities(text), len(text))


def test_what_is_easy_and_what_is_hard_are_apart():
    assert of("Hola") < 0.1
    assert of("What is the capital of France?") < 0.4
    assert 0.4 < of("Write a Python function that reverses a string") < 0.8
    assert of("Five friends sit in a row. " * 20 + "Who sits in the middle?") > 0.8


def test_a_request_without_words_is_easy():
    assert difficulty({}, 0) == 0


@given(st.sampled_from(TASKS), st.integers(0, 10**7))
def test_it_is_between_0_and_1_and_grows_with_the_length_up_to_a_bound(task, chars):
    here = difficulty({task: 1.0}, chars)

    assert 0 <= here <= difficulty({task: 1.0}, chars + 1) <= 1
    if chars > CHARS_MAX:
        assert here == difficulty({task: 1.0}, CHARS_MAX)


def test_an_unsure_task_is_between_its_two():
    code, chat = difficulty({"code": 1.0}, 100), difficulty({"chat": 1.0}, 100)

    assert difficulty({"code": 0.5, "chat": 0.5}, 100) == pytest.approx((code + chat) / 2)
