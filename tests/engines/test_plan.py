"""Which models fit, alone and together, and what to change where they do not."""

import re

import msgspec
import pytest

from config import ModelSettings, PolicySettings, PoolSettings, Settings
from engines import plan as module
from engines.memory import GIB, RESERVE_BYTES, Machine
from engines.need import Need, NotHere, Unknown, need
from engines.plan import SERVICE_BYTES, Room, make_plan, plan
from tests.hollow import LLAMA, write_gemma, write_model

HERE = Machine(total_bytes=128 * GIB, limit_bytes=None, available_bytes=120 * GIB)


def model(name, **settings) -> ModelSettings:
    return ModelSettings(name=name, source=f"./{name}", **settings)


def takes(gib, kv_cache_gib=0.0) -> Need:
    """Return the need of a model of so many GiB."""
    return Need(
        weights_bytes=int((gib - kv_cache_gib) * GIB),
        kv_cache_bytes=int(kv_cache_gib * GIB),
        overhead_bytes=0,
        server_bytes=0,
        total_bytes=int(gib * GIB),
        max_model_len=2048,
        max_num_seqs=8,
        kv_cache=None,
    )


def planned(budget_gib, free_gib=None, pinned=(), **sizes):
    """Return the plan for models of so many GiB each, or of an unknown need."""
    models = [model(name, pin=name in pinned) for name in sizes]
    needs = [takes(size) if isinstance(size, int) else size for size in sizes.values()]
    free = None if free_gib is None else free_gib * GIB
    room = Room(budget_bytes=budget_gib * GIB, free_bytes=free)
    return plan(models, needs, room, here=HERE, service_bytes=0)


def leaves(found):
    return {entry.model: "".join(entry.leave) for entry in found.models}


# --- together ---


@pytest.mark.parametrize(
    ("budget", "pinned", "sizes", "expected"),
    [
        pytest.param(6, "", {"a": 1, "b": 2, "c": 3}, ["abc"], id="all, and nothing to spare"),
        pytest.param(5, "", {"a": 1, "b": 2, "c": 3}, ["ab", "ac", "bc"], id="any two"),
        pytest.param(4, "", {"a": 1, "b": 2, "c": 3}, ["ab", "ac"], id="two of three"),
        pytest.param(5, "c", {"a": 1, "b": 2, "c": 3}, ["ac", "bc"], id="the pinned one stays"),
        pytest.param(3, "", {"a": 1, "b": 2, "c": 4}, ["ab"], id="without one that never fits"),
        pytest.param(1, "", {"a": 2}, [], id="nothing fits"),
        pytest.param(3, "", {"a": 3, "b": 2, "c": 1}, ["bc"], id="rather two small ones"),
        pytest.param(4, "", {"a": 2, "b": NotHere(""), "c": 2}, ["ac"], id="without the unknown"),
        pytest.param(1, "", {"a": 1, "b": 1}, ["a", "b"], id="one at a time"),
    ],
)
def test_the_largest_sets_that_fit(budget, pinned, sizes, expected):
    found = planned(budget, pinned=pinned, **sizes)

    assert ["".join(each) for each in found.together] == expected


def test_many_models_are_planned_at_once():
    found = planned(20, **{f"m{index}": 1 for index in range(40)})

    assert [len(each) for each in found.together] == [20] * 6


@pytest.mark.parametrize(
    ("budget", "pinned", "sizes", "expected"),
    [
        pytest.param(6, "", {"a": 1, "b": 2, "c": 3}, {"a": "", "b": "", "c": ""}, id="nobody"),
        # the others are used in the order of the file before, so the first of them goes first
        pytest.param(2, "", {"a": 1, "b": 1, "c": 1}, {"a": "b", "b": "a", "c": "a"}, id="first"),
        pytest.param(
            2, "a", {"a": 1, "b": 1, "c": 1}, {"a": "b", "b": "c", "c": "b"}, id="not the pinned"
        ),
        pytest.param(
            4,
            "",
            {"a": 1, "b": 1, "c": 2, "d": 4},
            {"a": "d", "b": "d", "c": "d", "d": "abc"},
            id="the large one was last, and takes all",
        ),
        pytest.param(4, "", {"a": 1, "b": 1, "c": 4}, {"a": "c", "b": "c", "c": "ab"}, id="both"),
        pytest.param(
            5,
            "",
            {"a": 1, "b": 3, "c": 3},
            {"a": "", "b": "c", "c": "b"},
            id="a alone would not do",
        ),
    ],
)
def test_who_leaves_for_whom(budget, pinned, sizes, expected):
    assert leaves(planned(budget, pinned=pinned, **sizes)) == expected


# --- alone ---


def test_a_model_that_never_fits_is_told_with_the_numbers():
    found = planned(2, a=1, b=3)

    assert found.problems == [
        "b takes 3.00 GiB, but the memory budget is 2.00 GiB: weights 3.00, KV cache 0.00, process "
        "0.00. Set pool.memory_budget_gb 3"
    ]


def test_a_budget_that_the_machine_does_not_have_is_no_use():
    found = planned(8, free_gib=2, a=3)

    assert found.problems == [
        "a takes 3.00 GiB, but the memory budget is 8.00 GiB and 2.00 GiB are available for "
        "models: weights 3.00, KV cache 0.00, process 0.00. Take a smaller or a quantised model"
    ]


def test_a_model_that_does_not_fit_beside_the_pinned_ones_is_told_so():
    found = planned(8, pinned="ab", a=3, b=4, c=2)

    assert found.problems == [
        "c takes 2.00 GiB, but a and b, pinned, leave 1.00 of 8.00 GiB. Unpin or change one of them"
    ]
    assert found.together == (("a", "b"),)


def test_what_a_file_does_not_say_is_a_problem_and_what_is_not_here_is_not():
    found = planned(8, a=Unknown("set kv_cache_gb"), b=NotHere("no weights"), c=None)

    assert [entry.problem for entry in found.models] == ["a: set kv_cache_gb", None, None]
    assert [entry.here for entry in found.models] == [True, False, True]


@pytest.mark.parametrize(
    ("settings", "budget", "expected"),
    [
        pytest.param(
            {"max_model_len": 65536, "max_num_seqs": 2},
            72,
            ["max_num_seqs", "max_model_len", "pool.memory_budget_gb"],
            id="derived: fewer requests, or shorter ones",
        ),
        pytest.param(
            {"max_model_len": 65536, "max_num_seqs": 1},
            66,
            ["max_model_len", "pool.memory_budget_gb"],
            id="derived: shorter",
        ),
        pytest.param(
            {"max_model_len": 24576, "kv_cache_gb": 24},
            72,
            ["kv_cache_gb", "pool.memory_budget_gb"],
            id="set: less",
        ),
        pytest.param(
            {"max_model_len": 65536, "kv_cache_gb": 24},
            66,
            ["max_model_len with kv_cache_gb", "pool.memory_budget_gb"],
            id="set: less, and shorter",
        ),
        pytest.param(
            {"max_model_len": 24576}, 60, ["pool.memory_budget_gb"], id="the weights alone"
        ),
    ],
)
def test_every_change_that_is_proposed_is_enough(tmp_path, settings, budget, expected):
    directory = write_gemma(tmp_path / "gemma")
    room = Room(budget_bytes=budget * GIB)

    def problems(budget_bytes=room.budget_bytes, **changes):
        gemma = model("gemma", **{**settings, **changes})
        needs = [need(gemma, directory)]
        room = Room(budget_bytes=budget_bytes)
        return plan([gemma], needs, room, here=HERE, service_bytes=0).problems

    (problem,) = problems()
    changes = re.search(r"Set (.*)", problem)[1].split(", or ")
    assert [re.sub(r" [\d.]+", "", change) for change in changes] == expected
    for change in changes:
        pairs = dict(re.findall(r"([\w.]+) ([\d.]+)", change))
        gib = pairs.pop("pool.memory_budget_gb", None)
        numbers = {key: float(text) if "gb" in key else int(text) for key, text in pairs.items()}
        budget_bytes = room.budget_bytes if gib is None else int(float(gib) * GIB)
        assert problems(budget_bytes, **numbers) == []
        # and no less would do
        if "max_model_len" in numbers:
            assert problems(**{**numbers, "max_model_len": numbers["max_model_len"] + 1})


def test_the_block_that_stays_empty_is_not_given_to_a_request(tmp_path):
    a = model("a", max_model_len=1024)
    found = need(a, write_model(tmp_path / "a", LLAMA, {"w": ("BF16", 1024, 1024)}))
    layout = found.kv_cache
    three = 3 * layout.blocks(1024) * layout.block_bytes  # without the empty block, two fit

    room = Room(budget_bytes=found.total_bytes - found.kv_cache_bytes + three)

    (problem,) = plan([a], [found], room, here=HERE, service_bytes=0).problems
    assert "Set max_num_seqs 2, or" in problem


# --- of a configuration ---


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(module, "machine", lambda: HERE)


def settings(*models, **pool) -> Settings:
    return Settings(
        models=list(models),
        routing=PolicySettings(default=models[0].name),
        pool=PoolSettings(**pool),
    )


def test_a_plan_looks_at_the_files_and_at_nothing_else(tmp_path, machine):
    write_model(tmp_path / "here", LLAMA, {"w": ("BF16", 1024, 1024)})
    chosen = settings(
        model("here"), model("gone"), model("echo", engine="echo"), memory_budget_gb=50
    )

    found = make_plan(chosen, tmp_path)

    here, gone, echo = found.models
    assert here.need == need(chosen.models[0], tmp_path / "here")
    assert (gone.need, gone.here, gone.problem) == (None, False, None)
    assert (echo.need, echo.here, echo.problem) == (None, True, None)
    assert found.together == (("here",),)


def test_the_room_is_the_budget_or_what_the_machine_has_without_service_and_reserve(
    tmp_path, machine
):
    a = model("a")
    found = need(a, write_model(tmp_path / "a", LLAMA, {"w": ("BF16", 1024, 1024)}))
    service = SERVICE_BYTES + found.server_bytes
    free = HERE.available_bytes - service

    for budget, expected in [(50, 50 * GIB), (500, free - RESERVE_BYTES), (None, int(free * 0.8))]:
        planned = make_plan(settings(a, memory_budget_gb=budget), tmp_path)
        assert planned.room.bytes == expected
        assert planned.service_bytes == service
    assert make_plan(settings(a), tmp_path, 7 * GIB).room.bytes == 7 * GIB  # while it runs


def test_a_plan_can_be_sent_as_json(tmp_path, machine):
    write_model(tmp_path / "here", LLAMA, {"w": ("BF16", 1024, 1024)})

    found = make_plan(settings(model("here")), tmp_path)

    assert msgspec.json.decode(msgspec.json.encode(found), type=module.Plan) == found
