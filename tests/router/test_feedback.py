"""Feedback: taken by the service, learned from by `axion train`, and used only if it is better."""

import asyncio
import json
import time

import httpx
import pytest

from config import ConditionSettings, LedgerSettings, PolicySettings, RuleSettings
from policies import Task
from router import classifier, cli, ledger
from router.app import create_app
from router.classifier import TASKS, load, shipped
from router.ledger import Entry, Feedback
from router.training import data, feedback
from router.training.feedback import Comparison, TooFew, compare, learn, lessons, promote, rollback
from router.training.train import train
from tests.router.test_app import chat, error_of

WHAT = ("boiler", "lift", "door", "heating", "roof", "window", "gate", "drain", "radiator", "tap")
WHERE = ("in flat 3B", "in the hall", "in the cellar", "at number 12")
TICKETS = [f"Ticket: the {what} {where} is broken" for what in WHAT for where in WHERE]
"""What is extraction for those who send it, and is not told as such by `few`."""


# --- POST /v1/feedback ---


@pytest.fixture
async def kept(make_service, tmp_path):
    """A client of a service with a ledger in `ledger.sqlite`, and its settings."""
    settings = LedgerSettings(path=str(tmp_path / "ledger.sqlite"), keep_text=True)
    service = make_service(ledger=settings)
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
        client.service = service
        yield client
    await service.pool.close()
    service.ledger.close()


def kept_in(tmp_path):
    return list(ledger.read(tmp_path / "ledger.sqlite"))


async def judge(client, answer, **fields):
    id_ = answer if isinstance(answer, str) else answer.headers["x-axion-decision"]
    return await client.post("/v1/feedback", json={"decision_id": id_, **fields})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_decision_is_kept_and_can_be_judged_at_once(kept, tmp_path, stream):
    answer = await chat(
        kept, stream=stream, messages=[{"role": "user", "content": "Hola, ¿qué tal?"}]
    )
    id_ = answer.headers["x-axion-decision"]

    response = await judge(kept, answer, thumbs="down", task="math", model="coder", note="Why?")

    assert response.status_code == 200
    assert response.json() == {"object": "feedback", "decision_id": id_, "stored": True}
    kept.service.ledger.close()
    ((entry, said),) = kept_in(tmp_path)
    assert (entry.id, entry.asked, entry.model, entry.endpoint) == (
        id_,
        "auto",
        "phi4_fast",
        "chat",
    )
    assert (entry.outcome, entry.text, entry.task.label) == ("ok", "Hola, ¿qué tal?", "chat")
    assert entry.reason == answer.headers["x-axion-reason"]
    assert entry.usage == ledger.Usage(16 if stream else 3, 3)
    assert abs(entry.at - time.time()) < 60
    assert (said.thumbs, said.task, said.model, said.note) == ("down", "math", "qwen_coder", "Why?")


async def test_a_later_word_replaces_an_earlier_one(kept, tmp_path):
    answer = await chat(kept)

    await judge(kept, answer, thumbs="down", task="math")
    await judge(kept, answer, thumbs="up")

    kept.service.ledger.close()
    ((_, said),) = kept_in(tmp_path)
    assert (said.thumbs, said.task) == ("up", None)


async def test_failures_are_kept_and_refusals_are_not(kept, tmp_path):
    async def broken(*_):
        raise RuntimeError("a bug")

    await chat(kept)
    await kept.post("/v1/chat/completions", content=b"{")
    await chat(kept, model="nothing")
    kept.service.pool.engine("phi4_fast").generate = broken
    await chat(kept)

    kept.service.ledger.close()
    assert [entry.outcome for entry, _ in kept_in(tmp_path)] == ["ok", "internal_error"]


async def test_without_keep_text_no_word_of_the_client_is_on_the_disk(make_service, tmp_path):
    settings = LedgerSettings(path=str(tmp_path / "ledger.sqlite"))
    service = make_service(ledger=settings)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(service)), base_url="http://axion"
    ) as client:
        answer = await chat(
            client,
            messages=[{"role": "user", "content": "mi secreto"}],
            user="nombre-propio",
        )
        await judge(client, answer, thumbs="up", note="otra cosa")
        answer = await client.post(
            "/v1/chat/completions",
            json={"model": "auto", "messages": [{"role": "user", "content": "mi secreto"}]},
            headers={"authorization": "Bearer clave-privada"},
        )
    await service.pool.close()
    service.ledger.close()

    assert len(kept_in(tmp_path)) == 2
    files = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    for word in ("secreto", "nombre-propio", "otra cosa", "clave-privada", "127.0.0.1"):
        assert word.encode() not in files


async def test_without_a_ledger_nothing_is_kept_and_feedback_is_refused(client):
    answer = await chat(client)

    response = await judge(client, answer, thumbs="up")

    assert error_of(response)["code"] == "feedback_off"
    assert "Set ledger.path" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"decision_id": None, "thumbs": "up"}, "invalid_type", "decision_id"),
        ({"decision_id": "x" * 65, "thumbs": "up"}, "string_above_max_length", "decision_id"),
        ({"decision_id": "secret", "thumbs": "up"}, "decision_not_found", "decision_id"),
        ({}, "missing_required_parameter", "thumbs"),
        ({"note": "secret"}, "missing_required_parameter", "thumbs"),
        ({"thumbs": None}, "missing_required_parameter", "thumbs"),
        ({"thumbs": "secret"}, "invalid_value", "thumbs"),
        ({"thumbs": True}, "invalid_type", "thumbs"),
        ({"task": "secret"}, "invalid_value", "task"),
        ({"task": 1}, "invalid_type", "task"),
        ({"model": "secret"}, "model_not_found", None),
        ({"model": "auto"}, "invalid_value", "model"),
        ({"thumbs": "up", "note": "x" * 2001}, "string_above_max_length", "note"),
        ({"thumbs": "up", "note": ["secret"]}, "invalid_type", "note"),
    ],
)
async def test_what_is_wrong_with_feedback_is_said_without_repeating_it(kept, fields, code, param):
    answer = await chat(kept)

    error = error_of(
        await kept.post(
            "/v1/feedback", json={"decision_id": answer.headers["x-axion-decision"], **fields}
        )
    )

    assert (error["code"], error["param"]) == (code, param)
    assert "secret" not in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
async def test_feedback_that_is_not_json_is_refused(kept, body):
    error = error_of(await kept.post("/v1/feedback", content=body))

    assert error["code"] in ("invalid_json", "invalid_type")


async def test_feedback_without_an_id_says_so(kept):
    error = error_of(await kept.post("/v1/feedback", json={"thumbs": "up"}))

    assert (error["code"], error["param"]) == ("missing_required_parameter", "decision_id")


@pytest.mark.parametrize("task", [*TASKS, "general"])
async def test_every_task_can_be_named(kept, task):
    assert (await judge(kept, await chat(kept), task=task)).status_code == 200


async def test_feedback_that_cannot_be_written_is_a_503(kept):
    answer = await chat(kept)
    kept.service.ledger.close()

    response = await judge(kept, answer, thumbs="up")

    assert error_of(response)["code"] == "ledger_failed"
    assert response.headers["retry-after"] == "60"


async def test_the_ledger_is_closed_when_the_service_stops(make_service, tmp_path):
    service = make_service(ledger=LedgerSettings(path=str(tmp_path / "ledger.sqlite")))
    app = create_app(service)
    async with app.lifespan():
        service.ledger.record(said("a", "Hola", at=time.time())[0])

    assert [entry.id for entry, _ in kept_in(tmp_path)] == ["a"]


# --- what is learned from ---


def said(id_, text, label="extraction", *, at=1.0, asked="auto", **words):
    """Return a decision and what was said of it, if anything was."""
    entry = Entry(
        id=id_,
        at=at,
        endpoint="chat",
        asked=asked,
        model="a",
        task=Task(label=label, confidence=0.7, language="en", prompt_tokens=9),
        rule=None,
        reason="-> a",
        outcome="ok",
        seconds=0.1,
        text=text,
    )
    return entry, Feedback(decision_id=id_, at=at, **words) if words else None


def taught(*pairs, regression=()):
    found = lessons(pairs, regression)
    return sorted((row.text, row.task) for row in [*found.rows, *found.held_back])


@pytest.mark.parametrize(
    ("words", "task"),
    [
        ({"task": "chat"}, "chat"),
        ({"task": "chat", "thumbs": "up"}, "chat"),
        ({"thumbs": "up"}, "extraction"),
        ({"thumbs": "down"}, None),
        ({"model": "b"}, None),
        ({"task": "general"}, None),
        ({"task": "general", "thumbs": "up"}, None),
        ({"thumbs": "up", "label": "general"}, None),
        ({"thumbs": "up", "asked": "a"}, None),
        ({"task": "chat", "asked": "a"}, "chat"),
        ({}, None),
    ],
)
def test_a_task_is_known_when_it_was_named_or_confirmed(words, task):
    assert taught(said("a", "text", **words)) == ([("text", task)] if task else [])


def test_of_a_prompt_that_came_often_the_last_word_counts():
    first, second = (
        said("a", "The lift", task="qa", at=1),
        said("b", "the  LIFT", task="chat", at=2),
    )

    assert taught(first, second) == taught(second, first) == [("the  LIFT", "chat")]


def test_without_the_text_nothing_is_learned_and_it_is_counted():
    found = lessons([said("a", None, task="chat"), said("b", None, thumbs="down")], [])

    assert (found.rows, found.held_back, found.without_text) == ([], [], 1)


def test_one_prompt_in_four_is_held_back_and_always_the_same_ones():
    texts = [f"{ticket} {number}" for ticket in TICKETS for number in range(10)]
    pairs = [said(text, text, task="chat") for text in texts]

    found = lessons(pairs, [])
    held_back = {row.text for row in found.held_back}

    assert 0.2 < len(held_back) / len(texts) < 0.3
    assert not held_back & {row.text for row in found.rows}
    other_ids = [said(f"x{text}", text.upper(), task="qa") for text in texts[::2]]
    again = {row.text.lower() for row in lessons(other_ids, []).held_back}
    assert again == {text.lower() for text in held_back & set(texts[::2])}


def test_no_prompt_of_the_regression_set_is_trained_on():
    regression = [data.Row(text, "qa", "r") for text in TICKETS]
    pairs = [said(text, text.upper(), task="chat") for text in TICKETS]

    assert lessons(pairs, regression).rows == []


def test_too_little_feedback_is_said_with_what_to_do(few):
    pairs = [said(text, text, task="chat") for text in TICKETS[:19]]
    lost = [said(text, None, task="chat") for text in TICKETS[19:]]

    with pytest.raises(TooFew, match="there is feedback on 19 prompts to learn from, and at least"):
        learn(pairs, few, few, [], [])
    with pytest.raises(TooFew, match=r"Of 21 more the text was not kept: set ledger.keep_text"):
        learn([*pairs, *lost], few, few, [], [])


# --- what is better ---

PROMPTS = [
    data.Row(row.text, row.task, str(index % 2), row.language)  # each source takes a training
    for index, row in enumerate(data.read([data.PROMPTS])[::7])
]


@pytest.fixture(scope="module")
def few():
    """A classifier of few prompts, which trains in a moment."""
    return train(PROMPTS)


@pytest.fixture(scope="module")
def regression():
    return data.read([data.REGRESSION])


@pytest.fixture(scope="module")
def learned(few, regression):
    """What is learned when every ticket is corrected in the same way."""
    pairs = [said(text, text, task="extraction") for text in TICKETS]
    return learn(pairs, few, few, PROMPTS, regression)


def test_consistent_corrections_of_what_it_gets_wrong_make_it_better(learned, few):
    candidate, comparison = learned

    assert comparison.objections() == []
    assert comparison.right[0] == 0
    assert comparison.right[1] == comparison.held_back
    assert candidate.card["rows"]["extraction"] > 20 + few.card["rows"]["extraction"]
    assert "feedback" in candidate.card["sources"]


def test_the_same_feedback_and_seed_give_the_same_candidate(learned, few, regression):
    pairs = [said(text, text, task="extraction") for text in reversed(TICKETS)]

    again, comparison = learn(pairs, few, few, PROMPTS, regression)

    assert comparison == learned[1]
    for text in TICKETS:
        assert again.probabilities(text) == learned[0].probabilities(text)


def test_labels_that_contradict_each_other_are_not_better(few, regression):
    pairs = [said(text, text, task=TASKS[index % 7]) for index, text in enumerate(TICKETS)]

    _, comparison = learn(pairs, few, few, PROMPTS, regression)

    assert "may be luck" in comparison.objections()[0]


def test_a_candidate_that_is_worse_elsewhere_is_not_better(few, regression):
    wrong = [data.Row(row.text, "chat", "a") for row in PROMPTS if row.task == "code"]
    others = [row for row in PROMPTS if row.task != "code"]
    code = [row for row in PROMPTS if row.task == "code"][:1]
    tickets = [data.Row(text, "chat", "feedback") for text in TICKETS]
    spoiled = train([*others, *wrong, *code, *tickets])

    objections = compare(few, spoiled, few, tickets, regression).objections()

    assert [each.partition(" on the")[0] for each in objections] == [
        "its accuracy",
        "its F1 of code",
    ]


def numbers(**changes):
    fields = {
        "held_back": 20,
        "right": (10, 15),
        "gained": 5,
        "lost": 0,
        "accuracy": (0.84, 0.84),
        "f1": (0.87, 0.87),
        "floors": (0.83, 0.86),
    }
    return Comparison(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 0),
        ({"gained": 4}, 1),
        ({"gained": 0}, 1),
        ({"gained": 7, "lost": 1}, 0),
        ({"gained": 6, "lost": 1}, 1),
        ({"gained": 0, "lost": 9}, 1),
        ({"accuracy": (0.84, 0.83)}, 0),
        ({"accuracy": (0.84, 0.829)}, 1),
        ({"f1": (0.87, 0.859)}, 1),
        ({"gained": 1, "accuracy": (0.8, 0.7), "f1": (0.8, 0.7)}, 3),
    ],
)
def test_better_is_more_than_luck_and_no_loss_beyond_noise(changes, count):
    assert len(numbers(**changes).objections()) == count


def test_small_losses_do_not_add_up_because_the_shipped_one_sets_the_floor(few, regression):
    rows = [data.Row(text, "chat", "feedback") for text in TICKETS]

    comparison = compare(few, few, shipped(), rows, regression)

    assert comparison.floors[0] > comparison.accuracy[0] + 0.1
    assert len(comparison.objections()) == 3


# --- what is in use ---


def test_a_promotion_keeps_the_one_before_and_a_rollback_puts_it_back(few, learned, tmp_path):
    path = tmp_path / "new" / "mine.npz"

    promote(few, path)  # the shipped one was before
    promote(learned[0], path)
    assert "feedback" in load(path).card["sources"]

    assert rollback(path)
    assert "feedback" not in load(path).card["sources"]
    assert rollback(path)  # nothing is kept of more than one step
    assert list(path.parent.iterdir()) == []
    assert not rollback(path)


def test_the_first_promotion_goes_back_to_the_shipped_one(few, tmp_path):
    path = tmp_path / "mine.npz"
    feedback.previous(path).write_bytes(b"of long ago")

    promote(few, path)

    assert rollback(path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_leaves_the_one_in_use_as_it_is(few, tmp_path, monkeypatch):
    path = tmp_path / "mine.npz"
    promote(few, path)
    before = path.read_bytes()

    def full(file, **_):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(classifier.numpy, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        promote(few, path)

    assert path.read_bytes() == before


async def test_the_service_uses_the_classifier_of_the_configuration(
    make_service, learned, tmp_path
):
    path = tmp_path / "mine.npz"
    rule = RuleSettings(
        name="tickets", when=ConditionSettings(task="extraction"), prefer=["qwen_coder"]
    )
    routing = PolicySettings(default="phi4_fast", rules=[rule])

    for by_rule in (False, True):
        service = make_service(routing=routing, classifier=str(path))
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
            response = await chat(client, messages=[{"role": "user", "content": TICKETS[0]}])
        await service.pool.close()
        reason = response.headers["x-axion-reason"]
        assert reason.startswith("rule tickets: extraction (") == by_rule
        learned[0].save(path)  # there was no file at first


# --- the command ---


@pytest.fixture
def configured(tmp_path, few, monkeypatch):
    """A configuration with a ledger, and a service whose shipped classifier is that of `few`."""
    monkeypatch.setattr(classifier, "shipped", lambda: few)
    rows = tmp_path / "rows.jsonl"
    lines = [{"text": row.text, "task": row.task, "source_group": row.source} for row in PROMPTS]
    rows.write_text("\n".join(map(json.dumps, lines)))
    path = tmp_path / "axion.yaml"
    path.write_text(
        "models: [{name: a, source: x, engine: echo}]\n"
        "routing: {default: a}\nclassifier: mine.npz\n"
        "ledger: {path: ledger.sqlite, keep_text: true}\n"
    )

    def keep(pairs):
        settings = LedgerSettings(keep_text=True, keep_days=36_500)
        kept = ledger.Ledger.open(tmp_path / "ledger.sqlite", settings)

        async def judged():
            for entry, words in pairs:
                kept.record(entry)
                await kept.feedback(words)

        asyncio.run(judged())
        kept.close()

    return path, rows, keep


def test_train_promotes_what_is_better_and_rollback_undoes_it(configured, tmp_path, capsys):
    path, rows, keep = configured
    keep([said(str(number), text, task="extraction") for number, text in enumerate(TICKETS)])

    assert cli.main(["train", str(rows), "--from-feedback", str(path)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["in", "use", "candidate"]
    assert lines[1].startswith("held-back feedback, right of ")
    assert lines[4] == (
        f"Better: it is {tmp_path}/mine.npz now, and in use when the service is started again."
    )
    assert "feedback" in load(tmp_path / "mine.npz").card["sources"]
    assert cli.main(["check", str(path)]) == 0
    # The same feedback again: the one in use has learned it.
    assert cli.main(["train", str(rows), "--from-feedback", str(path)]) == 3
    assert "Not better, nothing has changed: on held-back feedback" in capsys.readouterr().out

    assert cli.main(["train", "--rollback", str(path)]) == 0
    assert "the shipped classifier is, and in use when" in capsys.readouterr().out
    assert not (tmp_path / "mine.npz").exists()
    assert cli.main(["train", "--rollback", str(path)]) == 1
    assert "the shipped classifier is in use" in capsys.readouterr().err


def test_train_says_when_there_is_too_little(configured, capsys):
    path, rows, keep = configured
    keep([said("a", TICKETS[0], task="chat"), said("b", None, task="chat")])

    assert cli.main(["train", str(rows), "--from-feedback", str(path)]) == 1

    assert capsys.readouterr().err == (
        "axion: there is feedback on 1 prompts to learn from, and at least 20 are needed: a task "
        "that was named, or a thumb up for one that was recognised. Of 1 more the text was not "
        "kept: set ledger.keep_text, which holds for later requests.\n"
    )


@pytest.mark.parametrize(
    ("routing", "kept", "said"),
    [
        ("", "ledger: {path: l}", "classifier: is not set; name the file that a better"),
        ("classifier: m", "", "ledger.path: is not set, so there is no feedback; name a file"),
        ("classifier: m", "ledger: {path: l}", "l yet; the service makes it when it runs"),
        ("classifier: m", "ledger: {path: axion.yaml}", "axion.yaml is not a ledger (no SQLite"),
        ("classifier: axion.yaml", "", "axion.yaml is not a classifier: "),
    ],
)
def test_train_says_what_the_configuration_lacks(tmp_path, capsys, routing, kept, said):
    path = tmp_path / "axion.yaml"
    path.write_text(
        "models: [{name: a, source: x, engine: echo}]\n"
        f"routing: {{default: a}}\n{routing}\n{kept}\n"
    )

    assert cli.main(["train", "--from-feedback", str(path)]) == 1

    assert said in capsys.readouterr().err


def test_a_damaged_classifier_stops_check_and_serve_but_not_the_rollback(tmp_path, capsys, few):
    path = tmp_path / "axion.yaml"
    path.write_text(
        "models: [{name: a, source: x, engine: echo}]\nrouting: {default: a}\nclassifier: m.npz\n"
    )
    few.save(tmp_path / "m.npz")
    assert cli.main(["check", str(path)]) == 0
    whole = (tmp_path / "m.npz").read_bytes()

    for damaged in (b"nothing", whole[:-100], whole[:5000] + b"?" + whole[5001:]):
        (tmp_path / "m.npz").write_bytes(damaged)
        capsys.readouterr()
        for command in (["check"], ["serve", "--port", "0", "--config"]):
            assert cli.main([*command, str(path)]) == 1
            error = capsys.readouterr().err
            assert f"classifier: {tmp_path}/m.npz is " in error
            assert "Put back a sound one, or leave this key out" in error

    assert cli.main(["train", "--rollback", str(path)]) == 0
    assert cli.main(["check", str(path)]) == 0


@pytest.mark.parametrize("command", [["check"], ["serve", "--port", "0", "--config"]])
def test_a_ledger_that_is_something_else_stops_check_and_serve(tmp_path, capsys, command):
    path = tmp_path / "axion.yaml"
    path.write_text(
        "models: [{name: a, source: x, engine: echo}]\nrouting: {default: a}\n"
        "ledger: {path: axion.yaml}\n"
    )

    assert cli.main([*command, str(path)]) == 1

    assert f"ledger.path: {path} is not a ledger (no SQLite" in capsys.readouterr().err


def test_a_rollback_takes_no_prompts(capsys):
    assert cli.main(["train", "my.jsonl", "--rollback"]) == 2

    assert "--rollback takes a configuration, and no prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["--out", "x", "--rollback"], ["--from-feedback", "a", "--out", "b"]]
)
def test_train_does_one_thing(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", *arguments])
