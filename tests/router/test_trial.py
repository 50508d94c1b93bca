"""The tests inside policies: those of the shipped ones hold, and one that fails says why."""

from pathlib import Path

import pytest

from config import PolicySettings, PolicyTestSettings, read
from policies import SHIPPED, make_policy, shipped_policy
from router.catalogue import Catalogue
from router.classifier import shipped
from router.trial import failing

ROOT = Path(__file__).parents[2]
PRODUCTION = ROOT / "config" / "axion.yaml"


@pytest.fixture(scope="module")
def catalogue():
    return Catalogue(read(PRODUCTION), PRODUCTION.parent)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_tests_of_the_shipped_policies_hold_for_the_production_roles(catalogue, name):
    policy = shipped_policy(name, catalogue.names)

    assert policy.tests
    assert failing(policy, catalogue, shipped()) == []


def test_the_tests_of_the_production_configuration_hold(catalogue):
    routing = read(PRODUCTION).routing

    policy = make_policy("default", routing, PRODUCTION, catalogue.names, "routing")

    assert len(policy.tests) == 3
    assert failing(policy, catalogue, shipped()) == []


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ({"prompt": "Hola", "expect": "qwen_coder"}, "expected `qwen_coder`, but the policy "),
        (
            {"prompt": "Hola", "expect": ["qwen_coder", "gemma3_multimodal"]},
            "expected `qwen_coder` or `gemma3_multimodal`, but the policy chooses `",
        ),
        (
            {"request": {"messages": []}, "expect": "phi4_fast"},
            "this is no request: Invalid 'messages': empty array.",
        ),
        (
            {"prompt": "word " * 60_000, "expect": "phi4_fast"},
            "expected `phi4_fast`, and nobody can answer: This model's maximum context length",
        ),
    ],
    ids=["other", "others", "no request", "too long"],
)
def test_a_test_that_fails_says_what_is_chosen_and_why(catalogue, test, said):
    speeds = {"phi4_fast": 20, "qwen_coder": 45, "mistral_balanced": 10, "gemma3_multimodal": 2}
    settings = PolicySettings(tests=[PolicyTestSettings(**test, tokens_per_s=speeds)])
    policy = make_policy("mine", settings, PRODUCTION, catalogue.names)

    (problem,) = failing(policy, catalogue, shipped())

    assert problem.key == "tests[0]"
    assert problem.message.startswith(said)


def test_states_queues_and_speeds_of_a_test_count(catalogue):
    def chosen(**given):
        settings = PolicySettings(
            price_per_second=0.02,
            tests=[PolicyTestSettings(prompt="Hola", expect="phi4_fast", **given)],
        )
        policy = make_policy("mine", settings, PRODUCTION, catalogue.names)
        return not failing(policy, catalogue, shipped())

    slow = {"mistral_balanced": 5, "gemma3_multimodal": 2}
    assert chosen(tokens_per_s=slow)
    assert not chosen(tokens_per_s=slow, state={"phi4_fast": "failed"})
    assert not chosen(tokens_per_s=slow, state={"phi4_fast": "cold"}, queue_s={"phi4_fast": 60})
    assert not chosen(tokens_per_s={"phi4_fast": 0.1})
