"""`axion replay`: recorded requests are decided again, and what changes is told."""

import time

import pytest

from config import LedgerSettings, PolicySettings
from policies import Candidate, Task, decide, make_policy
from router.cli import main
from router.ledger import Entry, Ledger, Usage, read
from router.replay import AFFECTED_MAX, replay, shown, unseen
from tests.conftest import ROOT

MODELS = ["small", "big"]
NOON = time.mktime((2026, 6, 1, 12, 0, 0, 0, 0, -1))

SMALL = Candidate(
    model="small", max_model_len=8192, vision=False, tools=False, state="ready",
    decode_tokens_per_s=20.0,
)  # fmt: skip
BIG = Candidate(
    model="big", max_model_len=8192, vision=False, tools=False, state="cold", load_s=30.0,
    decode_tokens_per_s=2.0,
)  # fmt: skip

TO_SMALL = """
default: small
rules: [{name: all, when: {}, prefer: [small]}]
"""


def entry(number=0, **changes):
    fields = {
        "id": f"d{number}",
        "at": NOON + number,
        "endpoint": "chat",
        "asked": "auto",
        "model": "big",
        "task": Task(label="code", confidence=0.9, language="en", prompt_tokens=100),
        "rule": None,
        "reason": "",
        "inputs": (SMALL, BIG),
        "loads": ("big",),
        "outcome": "ok",
        "seconds": 100.0,
        "usage": Usage(100, 50),
    }
    return Entry(**{**fields, **changes})


def policy(*rules, **changes):
    import msgspec

    settings = msgspec.convert(
        {"default": "small", "rules": list(rules), **changes}, PolicySettings
    )
    return make_policy("new", settings, ROOT / "policies" / "new.yaml", MODELS)


ALL_TO_SMALL = {"name": "all", "when": {}, "prefer": ["small"]}


@pytest.fixture
def ledger(tmp_path):
    """A function that writes a ledger and returns where it is."""

    def write(*entries, keep_text=True):
        path = tmp_path / "ledger.sqlite"
        kept = Ledger.open(path, LedgerSettings(keep_text=keep_text))
        for each in entries:
            kept.record(each)
        kept.close()
        return path

    return write


def test_what_would_change_is_counted(ledger):
    path = ledger(entry(0), entry(1, model="small", loads=()), entry(2))

    found = replay((each for each, _ in read(path)), policy(ALL_TO_SMALL))

    assert (found.decided, found.changed) == (3, 2)
    assert dict(found.old.models) == {"big": 2, "small": 1}
    assert dict(found.new.models) == {"small": 3}
    assert (found.old.loads, found.new.loads) == (2, 0)
    # code: 350 tokens at 20 a second, after 100 at 1,000 a second
    assert found.new.total_s / 3 == pytest.approx(0.1 + 17.5)
    assert found.old.total_s == pytest.approx(2 * (30 + 0.1 + 175) + 0.1 + 17.5)


def test_what_the_policy_does_not_change_is_not_affected():
    found = replay([entry(0, model="small", loads=())], policy(ALL_TO_SMALL))

    assert (found.changed, found.affected) == (0, [])


def test_a_decision_is_made_again_as_it_was_made():
    tried = policy(price_per_second=0.001)
    choice = decide(entry().task, [SMALL, BIG], tried)

    found = replay([entry(model=choice.model)], tried)

    assert found.changed == 0


def test_models_that_clients_named_and_entries_without_a_state_are_left_out_and_counted():
    entries = [entry(0, asked="big"), entry(1, inputs=()), entry(2, asked="auto:fastest")]

    found = replay(entries, policy(ALL_TO_SMALL))

    assert (found.named, found.incomplete, found.decided) == (1, 1, 1)
    text = shown(found)
    assert "Left out: 1 that were for a model that the client named." in text
    assert "Left out: 1 that had no model or no state of the machine recorded." in text


def test_what_no_model_can_answer_is_left_out_and_counted():
    long = Task(label="code", confidence=0.9, language="en", prompt_tokens=10**6)

    found = replay([entry(task=long)], policy(ALL_TO_SMALL))

    assert (found.refused, found.decided) == (1, 0)
    assert "There is nothing to compare." in shown(found)


def test_the_most_affected_come_first_and_are_ten_at_most():
    entries = [
        entry(number, inputs=(SMALL, BIG.__class__(**{**_fields(BIG), "load_s": 10.0 * number})))
        for number in range(1, 30)
    ]

    found = replay(entries, policy(ALL_TO_SMALL))

    assert [each.id for each in found.affected] == [f"d{n}" for n in range(29, 19, -1)]
    assert len(found.affected) == AFFECTED_MAX
    assert "d29  code  big -> small  465.1 s -> 17.6 s  fit 0.55 -> 0.55" in shown(found)


def _fields(candidate):
    return {name: getattr(candidate, name) for name in candidate.__struct_fields__}


def test_a_rule_on_what_is_never_stored_is_named_and_applies_to_none():
    by_header = {"name": "vip", "when": {"headers": {"x-plan": "*"}}, "prefer": ["small"]}
    by_user = {"name": "ann", "when": {"user": "ann"}, "prefer": ["small"]}
    tried = policy(by_header, by_user, {**ALL_TO_SMALL, "prefer": ["big"]})

    found = replay([entry()], tried)

    assert found.changed == 0
    assert [each.split(",")[0] for each in unseen(tried, found)] == [
        "The rule `vip` looks at headers",
        "The rule `ann` looks at user",
    ]


def test_a_rule_on_the_text_applies_where_it_was_kept_and_the_others_are_counted():
    by_word = {"name": "sql", "when": {"keywords": ["postgres"]}, "prefer": ["small"]}
    tried = policy(by_word, {**ALL_TO_SMALL, "prefer": ["big"]})

    found = replay([entry(0, text="Tune Postgres"), entry(1)], tried)

    assert found.changed == 1
    (said,) = unseen(tried, found)
    assert "`sql` looks at the text (keywords), which was not kept of 1 of 2 requests" in said


def test_a_rule_on_the_hour_goes_by_when_the_request_came():
    before_noon = {"name": "morning", "when": {"hours": "11:57-12:00"}, "prefer": ["big"]}
    ended_at_noon = [entry(0, seconds=90), entry(0, seconds=0)]

    found = [replay([each], policy(before_noon)) for each in ended_at_noon]

    assert [[*each.new.models] for each in found] == [["big"], ["small"]]


def test_a_thousand_entries_take_less_than_a_second():
    entries = [entry(number) for number in range(1_000)]
    began = time.process_time()

    replay(entries, policy(ALL_TO_SMALL))

    assert time.process_time() - began < 1


# --- the command ---


def test_a_ledger_alone_is_enough(ledger, tmp_path, capsys):
    (tmp_path / "new.yaml").write_text(TO_SMALL)

    assert main(["replay", str(ledger(entry())), "--policy", str(tmp_path / "new.yaml")]) == 0

    out = capsys.readouterr().out
    assert "1 requests decided again by new" in out
    assert "small                0.0 %        100.0 %" in out


def test_a_configuration_has_the_ledger_and_the_policies(ledger, tmp_path, capsys):
    ledger(entry())
    (tmp_path / "new.yaml").write_text(TO_SMALL)
    config = tmp_path / "config.yaml"
    config.write_text(
        "models:\n"
        "- {name: small, source: ./x, engine: echo}\n"
        "- {name: big, source: ./x, engine: echo}\n"
        "ledger: {path: ledger.sqlite}\n"
        "policies: {mine: ./new.yaml}\n"
    )

    assert main(["replay", "--config", str(config), "--policy", "mine"]) == 0

    assert "100.0 %" in capsys.readouterr().out


def test_a_policy_that_is_not_there_is_told_with_those_that_are(ledger, capsys):
    assert main(["replay", str(ledger(entry())), "--policy", "best"]) == 1

    assert "there are `balanced`, `fastest`, `quality`" in capsys.readouterr().err


def test_a_configuration_without_a_ledger_says_what_to_do(capsys):
    assert main(["replay", "--policy", "fastest", "--config", str(ROOT / "config/axion.yaml")]) == 1

    assert "ledger.path: is not set, so nothing was recorded" in capsys.readouterr().err


def test_a_file_that_is_no_ledger_and_one_that_is_empty_are_refused(ledger, tmp_path, capsys):
    (tmp_path / "text").write_text("hello")

    assert main(["replay", str(tmp_path / "text"), "--policy", "fastest"]) == 1
    assert "is not a ledger" in capsys.readouterr().err
    assert main(["replay", str(ledger()), "--policy", "fastest"]) == 1
    assert "has no decision yet" in capsys.readouterr().err


def test_a_policy_with_a_mistake_is_refused_with_its_line(ledger, tmp_path, capsys):
    path = tmp_path / "new.yaml"
    path.write_text("default: smal\n")

    assert main(["replay", str(ledger(entry())), "--policy", str(path)]) == 1

    assert "line 1: default: there is no model called `smal`" in capsys.readouterr().err


def test_a_simulation_from_a_ledger_runs(ledger, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(
        "models:\n"
        "- {name: small, source: ./x, engine: echo}\n"
        "- {name: big, source: ./x, engine: echo}\n"
    )
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(
        "config: ./config.yaml\n"
        "hardware:\n"
        "  small: {size_gb: 1, tokens_per_s: 20}\n"
        "  big: {size_gb: 9, tokens_per_s: 2}\n"
        "budgets_gb: {all: 20}\n"
        "requests_per_min: {few: 1}\n"
        "requests: 20\n"
        "tasks: {code: {share: 1, prompt_tokens: 9, output_tokens: 9}}\n"
    )
    path = ledger(*(entry(number, asked="auto") for number in range(5)))

    assert main(["simulate", str(scenario), "--policy", "fastest"]) == 0
    assert "load: few" in capsys.readouterr().out
    assert main(["simulate", str(scenario), "--ledger", str(path), "--requests", "3"]) == 0
    assert "load: recorded" in capsys.readouterr().out


def test_a_scenario_that_lacks_a_model_is_refused(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("models:\n- {name: other, source: ./x, engine: echo}\n")
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(
        "config: ./config.yaml\n"
        "hardware: {small: {size_gb: 1, tokens_per_s: 20}}\n"
        "budgets_gb: {all: 20}\n"
        "requests_per_min: {few: 1}\n"
        "tasks: {code: {share: 1, prompt_tokens: 9, output_tokens: 9}}\n"
    )

    assert main(["simulate", str(scenario)]) == 1

    assert "hardware: has no `other`, which ./config.yaml has" in capsys.readouterr().err
