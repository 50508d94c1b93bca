"""Which task a text is: on prompts that the classifier was not trained on, and on anything else."""

import json
import subprocess
import sys
import time
from collections import Counter

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from router import classifier, cli
from router.classifier import SURFACE, TASKS, WEIGHTS, DamagedWeights, grams, load, shipped, surface
from router.training import data
from router.training.evaluate import accuracy, calibration_error, f1
from router.training.train import SEEN_MIN, Trained, train


@pytest.fixture(scope="module")
def judged():
    """The regression set: (rows, truth, probabilities)."""
    rows = data.read([data.REGRESSION])
    truth = numpy.array([TASKS.index(row.task) for row in rows])
    likely = numpy.array([list(shipped().probabilities(row.text).values()) for row in rows])
    return rows, truth, likely


def test_the_regression_set_is_what_its_description_says():
    rows = data.read([data.REGRESSION])

    assert len(rows) >= 300
    assert {row.task for row in rows} == set(TASKS)
    assert sum(row.language == "es" for row in rows) == len(rows) / 2
    assert sum(bool(row.near_miss) for row in rows) >= 100
    trained_on = {row.text for row in data.read([data.PROMPTS])}
    assert not trained_on & {row.text for row in rows}


def test_the_tasks_of_the_regression_set_are_told_as_well_as_they_were(judged):
    rows, truth, likely = judged
    found = likely.argmax(axis=1)

    assert accuracy(truth, found) >= 0.87
    assert f1(truth, found) >= 0.90
    for language in ("en", "es"):
        here = numpy.array([row.language == language for row in rows])
        assert accuracy(truth[here], found[here]) >= 0.86, language
        assert f1(truth[here], found[here]) >= 0.89, language


def test_a_probability_is_the_share_that_is_right(judged):
    _, truth, likely = judged

    assert calibration_error(likely, truth) < 0.08


@pytest.mark.parametrize(
    "text", ["Hola", "", " \n", "¿Qué hace useEffect?", "x" * 5000, "🙂", "\x00"]
)
def test_probabilities_are_of_every_task_and_add_up_to_one(text):
    likely = shipped().probabilities(text)

    assert tuple(likely) == TASKS
    assert sum(likely.values()) == pytest.approx(1)


@given(st.text())
def test_any_text_has_probabilities(text):
    assert 0 < max(shipped().probabilities(text).values()) <= 1


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "مرحبا كيف حالك", "\u202eabc"])
def test_broken_and_foreign_text_is_text(text):
    assert shipped().probabilities(text)


@pytest.mark.parametrize("unit", ["a", " ", "\n", "hello there ", "🙂", "1 ", "(){}", "A) x\n"])
def test_ten_megabytes_take_as_long_as_a_page(unit):
    text = unit * (10_000_000 // len(unit))
    shipped()

    began = time.process_time()
    shipped().probabilities(text)

    # 2 ms were measured; the bound is for slow machines.
    assert time.process_time() - began < 0.2


def test_accents_case_and_numbers_do_not_count():
    assert grams("Calcula 15 más 3") == grams("calcula 4 MAS 99")
    assert grams("perro gato") != grams("gato perro")


def test_every_look_of_a_text_is_between_0_and_about_1():
    for text in ("", "?", "1" * 9, "{}\n" * 5000, "A) one\nB) two", "x" * 10**6):
        looks = surface(text)
        assert len(looks) == len(SURFACE)
        assert all(0 <= value <= 2 for value in looks)


@pytest.fixture(scope="module")
def few():
    """Enough rows to train on in a moment."""
    rows = data.read([data.PROMPTS])[::20]
    return rows, Trained(rows)


def test_what_is_served_scores_as_what_was_trained(few, tmp_path):
    _, trained = few
    trained.compiled(1.0, {}).save(tmp_path / "few.npz")
    served = load(tmp_path / "few.npz")
    texts = [row.text for row in data.read([data.REGRESSION])]

    scores = trained.scores(texts)
    compiled = numpy.array([served.scores(text) for text in texts])

    # Both have the same weights, in single precision; else they differ by some 1e-7.
    assert numpy.abs(scores - compiled).max() < 1e-9


def test_the_same_rows_and_seed_give_the_same_model(few):
    rows, trained = few

    again = Trained(rows)

    assert again.vocabulary == trained.vocabulary
    assert numpy.array_equal(again.model.coef_, trained.model.coef_)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_makes_no_other_model(few, threads):
    rows, trained = few

    with threadpool_limits(threads):
        again = Trained(rows)

    assert numpy.array_equal(again.model.coef_, trained.model.coef_)


def test_a_task_without_rows_is_refused(few):
    with pytest.raises(ValueError, match="there are no rows of code"):
        train([row for row in few[0] if row.task != "code"])


def test_damaged_weights_are_known(few, tmp_path):
    path = tmp_path / "few.npz"
    few[1].compiled(1.0, {}).save(path)
    with numpy.load(path) as file:
        arrays = dict(file)
    arrays["weights"][0, 0] += 1
    numpy.savez(path, **arrays)

    with pytest.raises(DamagedWeights, match="its checksum is wrong"):
        load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DamagedWeights, match="is not a classifier"):
        load(path)
    with pytest.raises(DamagedWeights, match="is not a classifier"):
        load(tmp_path / "gone")


def test_weights_for_other_features_are_known(few, tmp_path, monkeypatch):
    few[1].compiled(1.0, {}).save(tmp_path / "few.npz")
    monkeypatch.setattr(classifier, "SURFACE", (*SURFACE, "another"))

    with pytest.raises(DamagedWeights, match="train it again"):
        load(tmp_path / "few.npz")


def test_serving_needs_no_training_code():
    script = "import sys, router.describe, router.classifier as c; c.shipped()\n"
    script += "print({'sklearn', 'scipy', 'router.training'} & set(sys.modules))"

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout == "set()\n"


def test_the_weights_are_small_and_say_where_they_are_from():
    assert WEIGHTS.stat().st_size < 10_000_000
    card = shipped().card
    assert set(card["rows"]) == set(TASKS)
    assert card["sources"] == sorted(path.stem for path in data.PROMPTS.glob("*.jsonl"))


def test_the_shipped_weights_are_those_of_the_shipped_prompts():
    rows = data.read([data.PROMPTS])
    card = shipped().card
    with numpy.load(WEIGHTS) as file:
        arrays = dict(file)
    seen = Counter(gram for row in rows for gram in grams(row.text))

    assert card["rows"] == {task: sum(row.task == task for row in rows) for task in TASKS}
    kept = set(arrays["vocabulary"].tobytes().decode().split("\n"))
    expected = {gram for gram, count in seen.items() if count >= SEEN_MIN}
    # How conversations are read may change a little without a new training.
    assert len(kept ^ expected) < 0.01 * len(expected), "train it again: `axion train`"
    for name in ("weights", "surface_weights", "bias"):
        assert arrays[name].dtype == numpy.float32
        assert numpy.isfinite(arrays[name]).all()
        # scikit-learn's weights of all tasks add up to nothing: none of them is the one left over.
        assert numpy.abs(arrays[name].sum(axis=-1)).max() < 1e-3
    assert 0.1 < arrays["temperature"] < 10


def test_train_and_evaluate_are_commands(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    lines = [
        line for path in data.PROMPTS.glob("*.jsonl") for line in path.read_text().splitlines()
    ]
    rows.write_text("\n".join(lines[::40]))

    assert cli.main(["train", str(rows), "--out", str(tmp_path / "mine.npz")]) == 0
    assert '"accuracy_of_left_out_sources"' in capsys.readouterr().out
    given = ["--classifier", str(tmp_path / "mine.npz")]
    assert cli.main(["evaluate", str(data.REGRESSION), *given]) == 0
    assert "| F1 of code |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "rows.jsonl:1: not a prompt"),
        ('{"task": "code"}', "rows.jsonl:1: not a prompt"),
        ("", ""),
    ],
)
def test_what_is_no_prompt_is_said_with_its_line(tmp_path, capsys, line, said):
    (tmp_path / "rows.jsonl").write_text(line)

    assert cli.main(["evaluate", str(tmp_path / "rows.jsonl")]) == 1

    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_wider_format_of_public_collections_is_read(tmp_path):
    row = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hola"}]}],
        "labels": {"task": "chat", "language": "es"},
        "meta": {"set": "somewhere", "near_miss": "short"},
    }
    other = {**row, "labels": {"task": "vision"}}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")

    assert data.read([tmp_path]) == [
        data.Row("Hola", "chat", "somewhere", language="es", near_miss=("short",))
    ]
