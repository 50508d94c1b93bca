"""Reading configuration files: what is accepted, and what is said of what is not."""

import json
from pathlib import Path
from typing import Any

import pytest

from config import ConfigError, PolicySettings, ServerSettings, Vocabulary, read, refusal

SHIPPED = sorted((Path(__file__).parents[2] / "config").glob("*.yaml"))

SMALL = """\
models:
  - name: small
    source: ./small
routing:
  default: small
"""


def problems(tmp_path, text, vocabulary=None, name="axion.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read(path, vocabulary)
    return [(p.line, p.key, p.message) for p in caught.value.problems]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_shipped_files_are_sound(path):
    assert read(path).models


def test_everything_but_models_may_be_left_out(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("models: [{name: small, source: ./small}]\n")

    settings = read(path)

    assert [model.name for model in settings.models] == ["small"]
    assert settings.server.port == 8080
    assert settings.server.host == "127.0.0.1"
    assert settings.routing == PolicySettings()


def test_json_is_read_too_even_with_tabs(tmp_path):
    path = tmp_path / "small.json"
    data = {"models": [{"name": "small", "source": "./s"}], "routing": {"default": "small"}}
    path.write_text(json.dumps(data, indent="\t"))

    assert read(path).routing.default == "small"


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(tmp_path):
    text = """\
models:
  - name: small
    source: 5
    max_model_len: "2048"
    dtyp: auto
    dtype: bfloat17
    kv_cache_gb: -1
    threads: 1e-3
    preload: 3
  - name: small
  - 5
routing:
  default: smal
  rules:
    - {name: r, when: {task: codee, prompt_tokens_min: 4, prompt_tokens_max: 2}, prefer: []}
    - {name: r, when: {}, prefer: [large]}
pool: []
aliases: {small: auto, gpt: large, 3: auto}
servr: 1
"""
    number = "write it as a plain number (YAML reads 1e-3 as text, 1.0e-3 as a number)"
    assert problems(tmp_path, text) == [
        (3, "models[0].source", "expected text, found 5"),
        (4, "models[0].max_model_len", f'expected a whole number, found "2048"; {number}'),
        (5, "models[0].dtyp", "unknown key (did you mean `dtype`?)"),
        (
            6,
            "models[0].dtype",
            'expected one of auto, bfloat16, float16, float32, found "bfloat17"'
            " (did you mean `bfloat16`?)",
        ),
        (7, "models[0].kv_cache_gb", "expected a number > 0.0, found -1"),
        (8, "models[0].threads", f'expected a whole number, found "1e-3"; {number}'),
        (9, "models[0].preload", "expected true or false, found 3"),
        (10, "models[1].source", "is missing and has no default"),
        (10, "models[1].name", "there is already a model called `small`"),
        (11, "models[2]", "expected a mapping of keys, found 5"),
        (13, "routing.default", "there is no model called `smal` (did you mean `small`?)"),
        (
            15,
            "routing.rules[0].when.task",
            "expected one of code, math, reasoning, writing, qa, chat, extraction, general, "
            'found "codee" (did you mean `code`?)',
        ),
        (
            15,
            "routing.rules[0].prefer",
            "expected a list with at least one entry, found an empty list",
        ),
        (
            15,
            "routing.rules[0].when.prompt_tokens_min",
            "4 is more than prompt_tokens_max 2: this rule can never apply",
        ),
        (16, "routing.rules[1].name", "there is already a rule called `r`"),
        (16, "routing.rules[1].prefer[0]", "there is no model called `large` (there are: small)"),
        (17, "pool", "expected a mapping of keys, found an empty list"),
        (18, "aliases.3", "this name must be text; put it in quotes"),
        (18, "aliases.small", "is already the name of a model; choose another alias"),
        (18, "aliases.gpt", "there is no model called `large` (there are: auto, small)"),
        (19, "servr", "unknown key (did you mean `server`?)"),
    ]


def test_the_message_names_the_file_the_line_and_the_key(tmp_path):
    path = tmp_path / "axion.yaml"
    path.write_text(SMALL + "servr: {}\n")

    with pytest.raises(ConfigError) as caught:
        read(path)

    assert str(caught.value) == (
        f"{path} has 1 problem:\n  line 6: servr: unknown key (did you mean `server`?)"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, "", "expected a mapping of keys, found nothing")),
        ("- 1", (1, "", "expected a mapping of keys, found a list")),
        ("a: [", (1, "", "not YAML: expected the node content, but found '<stream end>'")),
        ("a: 1\na: 2", (2, "a", "is given twice; keep one")),
        ("models: {}\n", (1, "models", "expected a list, found a mapping")),
        (
            "a: \x01",
            (0, "", "not YAML: unacceptable character #x0001: special characters are not allowed"),
        ),
    ],
)
def test_a_file_of_the_wrong_shape_is_refused(tmp_path, text, expected):
    assert expected in problems(tmp_path, text)


def test_broken_json_is_refused_with_its_line(tmp_path):
    found = problems(tmp_path, '{\n"a": 1,\n}', name="axion.json")

    assert found[0][0] in (2, 3)
    assert found[0][2].startswith("not JSON: ")


def test_a_key_given_twice_in_json_is_refused(tmp_path):
    text = '{\n\t"models": [{"name": "a", "name": "b"}],\n\t"server":{"port":1,\n\t"port":-2}}'

    found = problems(tmp_path, text, name="axion.json")

    assert found == [
        (2, "models[0].name", "is given twice; keep one"),
        (2, "models[0].source", "is missing and has no default"),
        (4, "server.port", "is given twice; keep one"),
        (4, "server.port", "expected a whole number >= 0, found -2"),
    ]


def test_a_key_given_twice_hides_no_other_problem(tmp_path):
    found = problems(tmp_path, SMALL + "pool: {}\npool: {queue_maxx: 1}\n")

    assert [key for _, key, _ in found] == ["pool", "pool.queue_maxx"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pool", "{memory_budget_gb: .inf}"),
        ("pool", "{memory_budget_gb: -.inf}"),
        ("pool", "{memory_budget_gb: .nan}"),
        ("pool", "{memory_budget_gb: 1.0e+300}"),
        ("pool", "{load_wait_s: .nan}"),
        ("models", "[{name: a, source: ./a, kv_cache_gb: .inf}]"),
        ("models", "[{name: a, source: ./a, idle_unload_s: .inf}]"),
        ("models", f"[{{name: a, source: ./a, max_model_len: 1{'0' * 400}}}]"),
        ("models", "[{name: a, source: ./a, engine_args: {mm_processor_cache_gb: .inf}}]"),
    ],
)
def test_a_size_without_end_is_refused(tmp_path, key, value):
    found = problems(tmp_path, f"{key}: {value}\n")

    assert len([text for _, where, text in found if where != key and "expected a" in text]) == 1


def test_a_size_without_end_in_json_is_refused(tmp_path):
    found = problems(tmp_path, '{"pool": {"memory_budget_gb": Infinity}}', name="axion.json")

    message = "expected a finite number, found Infinity"
    assert (1, "pool.memory_budget_gb", message) in found


@pytest.mark.parametrize("name", ["deep.yaml", "deep.json"])
def test_a_file_that_is_nested_without_end_is_refused(tmp_path, name):
    found = problems(tmp_path, "[" * 100_000 + "]" * 100_000, name=name)

    assert found == [(0, "", "is nested too deeply; expected at most a dozen levels")]


def test_an_alias_that_stands_for_what_it_is_in_is_refused(tmp_path):
    found = problems(tmp_path, SMALL + "aliases: &a\n  x: *a\nserver: &b [*b]\n")

    message = "is part of itself through an alias (*); write out what is meant"
    assert found == [(6, "aliases.x", message), (8, "server[0]", message)]


def test_aliases_that_multiply_without_end_are_refused(tmp_path):
    text = "a0: &a0 [1]\n"
    for level in range(1, 10):
        text += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"

    ((_, _, message),) = problems(tmp_path, text)

    assert message == "with its aliases (*) the file has more than 100000 entries"


def test_aliases_and_merged_keys_may_be_used(tmp_path):
    path = tmp_path / "axion.yaml"
    path.write_text(
        "models:\n  - &a {name: a, source: ./a, threads: 2}\n  - {<<: *a, name: b}\n"
        "routing: {default: b}\n"
    )

    assert read(path).model("b").threads == 2


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("port", 8080, None),
        ("port", 65536, "expected a whole number <= 65535, found 65536"),
        ("port", "http", 'expected a whole number, found "http"'),
        ("host", "", 'expected text that is not empty, found ""'),
    ],
)
def test_a_value_from_elsewhere_is_held_to_the_same_bounds(key, value, said):
    assert refusal(ServerSettings, key, value) == said


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.mkdir(), "this is a directory, not a file"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not UTF-8 text (byte 0); save it as UTF-8"),
    ],
    ids=["missing", "directory", "not text"],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, make, message):
    path = tmp_path / "axion.yaml"
    make(path)

    with pytest.raises(ConfigError, match=r"has 1 problem") as caught:
        read(path)

    assert caught.value.problems[0].message == message


def test_no_model_may_be_called_auto(tmp_path):
    found = problems(tmp_path, SMALL.replace("small", "auto"))

    assert (2, "models[0].name", "`auto` asks for a choice and cannot be a model's name") in found


@pytest.mark.parametrize("name", ["a b", "", "ñ", "x" * 65, "-a", "a/b"])
def test_a_name_that_clients_could_not_write_is_refused(tmp_path, name):
    found = problems(tmp_path, f"models: [{{name: {json.dumps(name)}, source: s}}]\n")

    assert "letters, digits, '.', '_' and '-', at most 64 characters" in found[0][2]


def test_names_that_vllm_does_not_know_are_refused_with_the_nearest(tmp_path):
    text = SMALL.replace(
        "source: ./small",
        "source: ./small\n    tool_parser: hermess\n    quantization: awk\n"
        "    engine_args: {block_sizes: 16, max_model_len: 3, swap: 1}",
    )
    words = Vocabulary(
        engine_args={"block_size": int | None, "max_model_len": int, "moe_backend": Any},
        own_keys={"max_model_len": "set `max_model_len` of the model instead"},
        tool_parsers=frozenset({"hermes", "mistral"}),
        quantizations=frozenset({"awq"}),
    )
    none = "the installed vLLM has no"
    assert problems(tmp_path, text, words) == [
        (4, "models[0].tool_parser", f"{none} `hermess` (did you mean `hermes`?)"),
        (5, "models[0].quantization", f"{none} `awk` (did you mean `awq`?)"),
        (
            6,
            "models[0].engine_args.block_sizes",
            f"{none} such engine argument (did you mean `block_size`?)",
        ),
        (6, "models[0].engine_args.max_model_len", "set `max_model_len` of the model instead"),
        (6, "models[0].engine_args.swap", "the installed vLLM has no such engine argument"),
    ]


def test_an_engine_argument_of_another_type_is_refused_by_its_name(tmp_path):
    text = SMALL.replace(
        "source: ./small",
        "source: ./small\n    engine_args: {block_size: banana, seed: 1, moe_backend: [x]}",
    )
    words = Vocabulary(engine_args={"block_size": int | None, "seed": int, "moe_backend": Any})

    assert problems(tmp_path, text, words) == [
        (4, "models[0].engine_args.block_size", 'expected a whole number, found "banana"')
    ]


def test_a_source_that_the_engines_do_not_know_is_refused(tmp_path):
    words = Vocabulary(source_problem=lambda source: f"is not known: {source}")

    assert problems(tmp_path, SMALL, words) == [(3, "models[0].source", "is not known: ./small")]
    path = tmp_path / "echo.yaml"
    path.write_text(SMALL.replace("./small", "./small\n    engine: echo"))
    assert read(path, words)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ("awq", [(4, "models[0].quantization", "`awq` does not run here; use W4A8")]),
        ("compressed-tensors", []),
        ("[awq]", [(4, "models[0].quantization", "expected text, found a list")]),
    ],
)
def test_a_format_that_this_processor_cannot_run_is_refused(tmp_path, quantization, expected):
    text = SMALL.replace("./small", f"./small\n    quantization: {quantization}")
    words = Vocabulary(
        quantizations=frozenset({"awq", "compressed-tensors"}),
        unsupported_quantizations={"awq": "`awq` does not run here; use W4A8"},
    )

    if expected:
        assert problems(tmp_path, text, words) == expected
    else:
        path = tmp_path / "sound.yaml"
        path.write_text(text)
        assert read(path, words).models[0].quantization == quantization


@pytest.mark.parametrize(
    ("routing", "key", "message"),
    [
        (
            "{fit: {small: {languages: {fr: 0.1}}}}",
            "routing.fit.small.languages.fr",
            'expected one of en, es, found "fr"',
        ),
        (
            "{output_tokens: {cod: 9}}",
            "routing.output_tokens.cod",
            "expected one of code, math, reasoning, writing, qa, chat, extraction, general, "
            'found "cod" (did you mean `code`?)',
        ),
        (
            "{escalation: {refusals: true}}",
            "routing.escalation.refusals",
            "unknown key (did you mean `refusal`?)",
        ),
        ("{escalation: {logprob_min: 1}}", "routing.escalation.logprob_min", "<= 0.0, found 1"),
        (
            "{rules: [{name: r, when: {}, prefer: [small, 5]}]}",
            "routing.rules[0].prefer[1]",
            "expected text, found 5",
        ),
        (
            '{rules: [{name: r, when: {hours: "9-17"}, prefer: [small]}]}',
            "routing.rules[0].when.hours",
            'expected a time span like 22:00-06:00, found "9-17"',
        ),
        (
            f"{{rules: [{{name: r, when: {{keywords: {['x'] * 1001}}}, prefer: [small]}}]}}",
            "routing.rules[0].when.keywords",
            "expected a list with at most this many entries: 1000, found a list",
        ),
        (
            '{rules: [{name: r, when: {keywords: [a, " "]}, prefer: [small]}]}',
            "routing.rules[0].when.keywords[1]",
            'expected a word or phrase, not only spaces, found " "',
        ),
        (
            "{rules: [{name: r, when: {task: [code, maths]}, prefer: [small]}]}",
            "routing.rules[0].when.task[1]",
            "expected one of code, math, reasoning, writing, qa, chat, extraction, general, "
            'found "maths" (did you mean `math`?)',
        ),
        (
            "{rules: [{name: [r], when: [], prefer: {}}, {name: [r], when: 5, cap: []}]}",
            "routing.rules[0].name",
            "expected text, found a list",
        ),
    ],
)
def test_what_is_wrong_deep_inside_is_found_where_it_is(tmp_path, routing, key, message):
    found = problems(tmp_path, SMALL.replace("\n  default: small", f" {routing}"))

    where, text = next((where, text) for _, where, text in found if where == key)
    assert where == key
    assert text.endswith(message)


def test_keys_that_may_be_nothing_may_be_written_so(tmp_path):
    path = tmp_path / "axion.yaml"
    path.write_text(SMALL + "  deadline_s: null\n  escalation:\n  extends: null\n")

    assert read(path).routing == PolicySettings(default="small")


def test_bounds_are_refused_one_past_and_accepted_at_the_limit(tmp_path):
    def with_port(port):
        return f"{SMALL}server: {{port: {port}}}\n"

    path = tmp_path / "limit.yaml"
    for port in (0, 65535):
        path.write_text(with_port(port))
        assert read(path).server.port == port
    for port in (-1, 65536):
        assert problems(tmp_path, with_port(port))[0][1] == "server.port"
