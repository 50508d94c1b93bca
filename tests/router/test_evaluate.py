"""The report of `axion evaluate`: its numbers, its comparisons and its pictures."""

import re
import sys
from xml.etree import ElementTree

import numpy
import pytest

from router import cli, docs
from router.classifier import TASKS, shipped
from router.training import baselines, data, evaluate, pictures
from tests.benchmarks import classifier_page

PROMPTS = data.REGRESSION


@pytest.fixture(scope="module")
def few():
    """Prompts of every task, of three sources and both languages, enough to train on."""
    return [
        data.Row(row.text, row.task, str(index % 3), row.language, row.near_miss)
        for index, row in enumerate(data.read([data.PROMPTS])[::30])
    ]


@pytest.fixture(scope="module")
def judged():
    return evaluate.judge(shipped(), data.read([PROMPTS]))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A bootstrap of few rounds."""
    monkeypatch.setattr(evaluate, "_ROUNDS", 40)


def cells(table, name):
    """The cells of the row of a table that begins with `name`."""
    [line] = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_a_report_is_about_the_rows_it_was_given():
    rows = [data.Row("print(1", "code", "a"), data.Row("Hola", "chat", "b")]

    tables = evaluate.sections(evaluate.judge(shipped(), rows))

    assert tables["Overall"].startswith("2 prompts.")
    assert cells(tables["By source"], "a")[1] == "1"


def test_every_share_in_the_report_has_an_interval_around_it(judged):
    tables = evaluate.sections(judged)

    for name in ("By task", "By language", "By near miss", "By source"):
        found = re.findall(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", tables[name])
        assert len(found) >= len(tables[name].splitlines()) - 2
        assert all(float(low) <= float(value) <= float(high) for value, low, high in found)


def test_the_interval_of_a_share_is_wilsons():
    assert evaluate.share_interval(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert evaluate.share_interval(10, 10) == pytest.approx((0.722, 1), abs=1e-3)
    assert evaluate.share_interval(0, 10) == pytest.approx((0, 0.278), abs=1e-3)


def test_a_near_miss_has_a_row_of_its_own_when_there_are_ten_of_it():
    rows = [data.Row("Hola", "chat", "a", near_miss=("often", "rare"))]
    rows += [data.Row("Hola", "chat", "a", near_miss=("often",))] * 9 + [data.Row("", "chat", "a")]

    table = evaluate.sections(evaluate.judge(shipped(), rows))["By near miss"]

    assert cells(table, "often")[1] == "10"
    assert cells(table, "rarer ones")[1] == "1"
    assert cells(table, "all near misses")[1] == "10"
    assert cells(table, "no near miss")[1] == "1"
    assert "| rare |" not in table


def test_a_baseline_tells_every_text_to_be_some_task(few):
    for tell in baselines.baselines(few).values():
        assert {tell(text) for text in ("", "\ud800", "2 + 2", "x" * 10_000)} <= set(TASKS)


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("def f(): return a bug in python", "code"),
        ("Resuelve la ecuación y calcula el área", "math"),
        ("Hola, buenos días", "chat"),
        ("Escribe un cuento", "writing"),
        ("nothing known", "chat"),
        ("nothing known " * 10, "qa"),
        ("nothing known " * 1000, "extraction"),
    ],
)
def test_lists_of_keywords_tell_the_task_of_most_words_and_else_go_by_length(text, task):
    assert baselines.keywords(text) == task


def test_the_comparison_has_ours_beside_each_baseline(few):
    table = evaluate.comparison(shipped(), few, few)

    assert cells(table, "**this one**")[-1] == "1"
    assert float(cells(table, "always the commonest task")[-1]) < 0.5
    for name in ("length of the text", "lists of keywords, and length"):
        assert len(cells(table, name)) == 7
    trained = float(cells(table, "words and characters, TF-IDF")[1].split()[0])
    assert trained > 0.9  # it is judged on what it was trained on


def test_each_source_is_judged_by_models_that_saw_the_others(few, capsys):
    judged = evaluate.judge(shipped(), few)
    steps = []

    table = evaluate.left_out_sources(judged, few, steps.append)

    assert len(steps) == 2 + 2 * 3
    ours, others, with_prompts = (
        float(cell.split()[0]) for cell in cells(table, "**all, accuracy**")[2:]
    )
    assert ours == round(evaluate.accuracy(judged.truth, judged.found), 3)
    assert others < 0.8  # of a hundred prompts little can be learned,
    assert with_prompts > 0.9  # but here they had the answers
    assert {line.split("|")[1].strip() for line in table.splitlines()} >= {"0", "1", "2"}


def test_evaluate_says_why_no_source_can_be_left_out(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "Hola", "task": "chat"}\n{"text": "print(1)", "task": "code"}\n')

    assert cli.main(["evaluate", str(rows), "--leave-one-source-out"]) == 1

    assert "needs prompts of more sources (`source_group`)" in capsys.readouterr().err


def test_evaluate_prints_what_is_asked_for(tmp_path, capsys, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(PROMPTS.read_text(encoding="utf-8").splitlines()[::6]))
    monkeypatch.setattr(data, "PROMPTS", rows)  # fewer to train on

    assert cli.main(["evaluate", str(rows), "--compare", "--pictures", str(tmp_path)]) == 0

    printed = capsys.readouterr().out
    assert "## By near miss" in printed
    assert "## Beside others" in printed
    assert "## Sources left out" not in printed
    assert (tmp_path / "confusion.svg").exists()


def test_pictures_are_small_and_the_same_every_time(judged, tmp_path):
    first = pictures.write(judged, tmp_path / "first")
    again = pictures.write(judged, tmp_path / "again")

    assert [path.name for path in first] == ["reliability.svg", "confusion.svg", "sources.svg"]
    for one, other in zip(first, again, strict=True):
        text = one.read_text(encoding="utf-8")
        assert text == other.read_text(encoding="utf-8")
        assert len(text) < 100_000
        ElementTree.fromstring(text)  # noqa: S314 - it is our own
        assert "dc:date" not in text
    for row in evaluate.confusion(judged):
        assert f">{row.max()}<" in first[1].read_text(encoding="utf-8")


def test_evaluate_says_what_pictures_need(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert cli.main(["evaluate", str(PROMPTS), "--pictures", str(tmp_path / "pictures")]) == 1

    error = capsys.readouterr().err
    assert "matplotlib, which is not installed" in error
    assert error.count("\n") == 1


def test_evaluating_without_pictures_needs_no_matplotlib(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert cli.main(["evaluate", str(PROMPTS)]) == 0


@pytest.mark.parametrize("part", classifier_page.PARTS)
def test_the_page_of_the_classifier_has_every_part_that_is_measured(part):
    page = (docs.DOCS / "classifier.md").read_text(encoding="utf-8")

    changed = docs.filled(page, part, "nothing")

    assert changed != page
    assert docs.filled(changed, part, "nothing") == changed


def test_a_part_that_a_page_does_not_have_is_not_written():
    with pytest.raises(ValueError, match="expected one part"):
        docs.filled("# A page\n", "a part", "text")


def test_a_task_that_is_not_there_does_not_count_for_the_macro_f1():
    truth = numpy.array([0, 0, 1])

    assert evaluate.macro_f1(truth, truth) == 1
