"""The pool on a virtual clock: nothing is lost, the same seed is the same story, and small ones
come out as they do by hand."""

import itertools
import math

import pytest
from msgspec import structs

from config import ConfigError, ModelSettings, PolicySettings, PoolSettings, Settings
from config.policy import FitSettings
from policies import Task, make_policy
from router.ledger import Entry, Ledger, Usage
from router.simulation import pictures
from router.simulation.compare import STATIC, Cell, compare, report
from router.simulation.contestants import Contestant, baselines
from router.simulation.machine import Machine
from router.simulation.measures import measured
from router.simulation.scenario import PRODUCTION, Hardware, Scenario, Work, read_scenario
from router.simulation.trace import Arrival, generated, recorded
from router.spread import Spread
from tests.conftest import ROOT

MODELS = ["small", "big"]


def model(name, **changes):
    return ModelSettings(name=name, source="./x", engine="echo", max_model_len=8192, **changes)


def scenario(**changes):
    fields = {
        "config": "config.yaml",
        "hardware": {
            "small": Hardware(size_gb=8, tokens_per_s=10, prefill=10),
            "big": Hardware(size_gb=28, tokens_per_s=2, prefill=10),
        },
        "budgets_gb": {"one": 30, "both": 40},
        "requests_per_min": {"few": 3},
        "requests": 150,
        "batch_cost": 0.0,
        "tasks": {
            "chat": Work(share=3, prompt_tokens=50, output_tokens=40, difficulty=0.1),
            "reasoning": Work(share=1, prompt_tokens=100, output_tokens=80, difficulty=0.9),
        },
        "static": {"reasoning": "big"},
    }
    return Scenario(**{**fields, **changes})


def policy(**changes):
    settings = PolicySettings(default="small", **changes)
    return make_policy("test", settings, ROOT / "policies" / "test.yaml", MODELS)


def arrival(at, label="chat", tokens=100, prompt=100, number=0, **changes):
    task = Task(label=label, confidence=0.9, language="en", prompt_tokens=prompt)
    return Arrival(at=at, task=task, output_tokens=tokens, conversation=number, **changes)


def only(name):
    return Contestant(name, policy(), lambda *_: [name])


def machine(contestant, budget_gb=40.0, pool=None, story=None, **of_models):
    models = [model(name, **of_models.get(name, {})) for name in MODELS]
    return Machine(
        models, pool or PoolSettings(), story or scenario(), budget_gb, contestant, policy()
    )


def everyone():
    ways = baselines(policy(), {"small": 8, "big": 28}, {"reasoning": "big"})
    eager = structs.replace(policy(), serve_while_loading=True)
    return [*ways, Contestant("ours", policy()), Contestant("eager", eager)]


def test_one_request_takes_its_load_its_prompt_and_its_answer():
    (outcome,) = machine(only("big")).run([arrival(0, tokens=20, prompt=100)])

    load, reading, token = 2 + 28, 100 / 20, 1 / 2
    assert outcome.waited_s == pytest.approx(load)
    assert outcome.first_s == pytest.approx(load + reading + token)
    assert outcome.whole_s == pytest.approx(load + reading + 20 * token)


def test_busy_engines_share_the_machine_evenly():
    ways = itertools.cycle(["small", "big"])
    each = Contestant("each", policy(), lambda *_: [next(ways)])
    run = machine(each, small={"preload": True}, big={"preload": True})

    outcomes = {
        each.model: each for each in run.run([arrival(0, tokens=90), arrival(0, tokens=90)])
    }

    # Small has 10 s of work, which take 20; big has 50, of which 10 are done by then.
    assert outcomes["small"].whole_s == pytest.approx(20)
    assert outcomes["big"].whole_s == pytest.approx(20 + 40)


def test_answers_of_one_engine_slow_each_other_by_the_batch_cost():
    run = machine(only("small"), story=scenario(batch_cost=0.5), small={"preload": True})

    outcomes = list(run.run([arrival(0, tokens=90), arrival(0, tokens=190)]))

    # 10 and 20 s of work: both at 1 / 1.5 for 15 s, and then the second alone.
    assert [each.whole_s for each in outcomes] == pytest.approx([15, 25])


def test_who_finds_no_free_place_waits_for_one():
    run = machine(only("small"), small={"preload": True, "max_num_seqs": 1})

    outcomes = list(run.run([arrival(0, tokens=90), arrival(4, tokens=90)]))

    assert [each.waited_s for each in outcomes] == pytest.approx([0, 6])
    assert [each.whole_s for each in outcomes] == pytest.approx([10, 16])


def test_a_conversation_that_is_still_cached_is_not_read_again():
    run = machine(only("small"), small={"preload": True})
    turns = [
        arrival(0, prompt=100, tokens=10, is_last=False),
        arrival(60, prompt=150, tokens=10),
        arrival(120, prompt=150, tokens=10),  # the conversation has ended
    ]

    outcomes = list(run.run(turns))

    assert [each.whole_s for each in outcomes] == pytest.approx([2.0, 1.5, 2.5])


def test_a_model_that_makes_room_is_loaded_again():
    ways = itertools.cycle(["small", "big"])
    each = Contestant("each", policy(), lambda *_: [next(ways)])
    run = machine(each, budget_gb=30.0)

    outcomes = list(run.run([arrival(200.0 * number) for number in range(4)]))

    assert [each.model for each in outcomes] == ["small", "big", "small", "big"]
    assert (run.loads, run.unloads) == (4, 3)


def test_one_that_answers_while_a_better_one_loads_does_not_wait():
    eager = structs.replace(
        policy(fit={"big": FitSettings(other=1.0), "small": FitSettings(other=0.1)}),
        serve_while_loading=True,
    )
    eager = structs.replace(eager, price_per_second=0.0)
    run = machine(Contestant("eager", eager), small={"preload": True})

    outcomes = list(run.run([arrival(0), arrival(100)]))

    assert [each.model for each in outcomes] == ["small", "big"]
    assert [each.waited_s for each in outcomes] == [0, 0]
    assert run.loads == 1


@pytest.mark.parametrize("who", range(len(everyone())), ids=lambda at: everyone()[at].name)
@pytest.mark.parametrize("budget_gb", [30.0, 40.0, 20.0])
def test_every_request_is_served_or_refused_once(who, budget_gb):
    """20 GiB do not even hold the big model; 20 requests a minute are more than can be served."""
    pool = PoolSettings(queue_max=5, load_wait_s=40)
    story = scenario(turns=2.0)
    run = machine(everyone()[who], budget_gb, pool, story)
    requests = list(generated(story, 20, seed=3))

    outcomes = list(run.run(requests))

    key = lambda each: (each.conversation, each.task.turns)  # noqa: E731
    ended = sorted((each.arrival for each in outcomes), key=key)
    assert ended == sorted(requests, key=key)
    for each in outcomes:
        if each.model is None:
            assert math.isinf(each.whole_s)
            assert each.fit == 0
        else:
            assert 0 <= each.waited_s <= each.first_s <= each.whole_s < math.inf


@pytest.mark.parametrize("who", range(len(everyone())), ids=lambda at: everyone()[at].name)
def test_with_room_for_all_nobody_is_ever_unloaded(who):
    run = machine(everyone()[who], budget_gb=1e6)

    found = measured(run, run.run(generated(scenario(), 10, seed=1)))

    assert found.unloads == 0
    assert found.loads <= len(MODELS)


def test_the_same_seed_gives_the_same_report_and_another_another():
    settings = Settings(models=[model(name) for name in MODELS])

    def told(seed):
        return report(compare(scenario(prices=[0.001]), settings, [policy()], seed))

    assert told(1) == told(1)
    assert told(1) != told(2)


def test_the_report_has_every_cell_and_everybody_in_it():
    settings = Settings(models=[model(name) for name in MODELS])
    steps = []

    found = compare(scenario(), settings, [policy()], step=steps.append)

    assert list(found.cells) == [Cell("one", "few"), Cell("both", "few")]
    assert len(steps) == len(found.cells) * (len(found.simple) + len(found.policies))
    text = report(found)
    for name in (*found.simple, *found.policies):
        assert text.count(f"\n| {name} |") == 2
    assert STATIC in found.simple


def test_the_picture_is_the_same_for_the_same_numbers(tmp_path):
    settings = Settings(models=[model(name) for name in MODELS])
    found = compare(scenario(requests=30), settings, [policy()])

    (one,) = pictures.write(found, tmp_path / "one")
    (two,) = pictures.write(found, tmp_path / "two")

    assert one.read_bytes() == two.read_bytes()
    assert b"static by task" in one.read_bytes()


@pytest.mark.parametrize("arrivals", ["poisson", "bursty", "day"])
def test_requests_come_in_order_and_at_the_rate_that_was_asked_for(arrivals):
    story = scenario(requests=20_000, arrivals=arrivals, turns=3.0)

    times = [each.at for each in generated(story, 60, seed=0)]

    assert times == sorted(times)
    if arrivals != "day":  # 20,000 s are not a whole one
        assert times[-1] / len(times) == pytest.approx(1, rel=0.2)


def test_lengths_difficulties_and_turns_are_as_the_scenario_says():
    story = scenario(requests=20_000, turns=3.0)

    requests = list(generated(story, 60, seed=0))

    chats = [each for each in requests if each.task.label == "chat"]
    assert len(chats) / len(requests) == pytest.approx(0.75, abs=0.03)
    written = sum(each.output_tokens for each in chats) / len(chats)
    assert written == pytest.approx(40, rel=0.05)
    assert sum(each.is_last for each in requests) / len(requests) == pytest.approx(1 / 3, rel=0.05)
    assert all(0 <= each.task.difficulty <= 1 for each in requests)


def test_recorded_requests_come_as_they_came(tmp_path):
    from config import LedgerSettings

    kept = Ledger.open(tmp_path / "ledger", LedgerSettings())
    ends = {"slow": (1_000.0, 90.0), "quick": (950.0, 1.0), "named": (999.0, 1.0)}
    for name, (at, seconds) in ends.items():
        kept.record(
            Entry(
                id=name,
                at=at + 2e9,
                endpoint="chat",
                asked="auto" if name != "named" else "big",
                model="big",
                task=arrival(0).task,
                rule=None,
                reason="",
                outcome="ok",
                seconds=seconds,
                usage=Usage(9, 33) if name == "slow" else None,
            )
        )
    kept.close()

    found = recorded(tmp_path / "ledger", scenario())

    assert [(each.at, each.output_tokens) for each in found] == [(0.0, 33), (39.0, 40)]


def test_the_shipped_scenario_fits_the_production_configuration():
    from config import read
    from engines.vocabulary import vocabulary

    story = read_scenario(PRODUCTION)
    settings = read((PRODUCTION.parent / story.config).resolve(), vocabulary())

    assert [each.name for each in settings.models] == list(story.hardware)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("load_s: 2", "load_sec: 2", "load_s"),
        ("  code: qwen_coder", "  code: qwen_codr", "did you mean `qwen_coder`"),
        ("tokens_per_s: 45", "tokens_per_s: 0", "hardware.qwen_coder.tokens_per_s"),
    ],
)
def test_a_broken_scenario_is_refused_with_what_to_do(tmp_path, old, new, words):
    path = tmp_path / "scenario.yaml"
    path.write_text(PRODUCTION.read_text().replace(old, new, 1))

    with pytest.raises(ConfigError) as refused:
        read_scenario(path)

    assert words in str(refused.value)


def test_traffic_in_which_nothing_is_ever_asked_is_refused(tmp_path):
    path = tmp_path / "scenario.yaml"
    head = PRODUCTION.read_text().split("tasks:")[0]
    path.write_text(f"{head}tasks: {{code: {{share: 0, prompt_tokens: 1, output_tokens: 1}}}}\n")

    with pytest.raises(ConfigError, match="no task has a share above 0"):
        read_scenario(path)


def test_quantiles_are_within_half_a_percent():
    spread = Spread()
    for number in range(1, 10_001):
        spread.add(number / 7)

    assert spread.quantile(0.5) == pytest.approx(5_000 / 7, rel=0.006)
    assert spread.quantile(0.95) == pytest.approx(9_500 / 7, rel=0.006)
    assert spread.share_above(9_000 / 7) == pytest.approx(0.1, abs=0.01)


def test_an_answer_that_never_comes_is_later_than_all_others():
    spread = Spread()
    for value in (0.0, 1.0, math.inf):
        spread.add(value)

    assert spread.quantile(0.3) < 0.001
    assert spread.quantile(0.6) == pytest.approx(1, rel=0.006)
    assert spread.quantile(0.95) == math.inf
    assert Spread().quantile(0.5) == 0
