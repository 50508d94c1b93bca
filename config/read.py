"""Read a configuration file and say everything that is wrong with it, at once."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import yaml
from msgspec import Struct

from config.check_policy import policy_problems
from config.names import Finding, KeyPath, nearest, unknown_model
from config.settings import AUTO, Settings

T = TypeVar("T", bound=Struct)


class Problem(Struct, frozen=True):
    """One thing wrong with a file.

    Attributes
    ----------
    key
        Where, as a person would write it: `models[1].kv_cache_gb`.
    message
        What was found, what was expected, and the nearest name if one is close.
    line
        1-based line in the file, or 0 when it is not known.
    """

    key: str
    message: str
    line: int = 0


class ConfigError(Exception):
    """A file that cannot be used, with all its problems."""

    def __init__(self, path: Path, problems: Iterable[Problem]) -> None:
        self.path = path
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{path} has {count} problem{'s' if count != 1 else ''}:"
        super().__init__("\n  ".join([head, *(self._line(problem) for problem in self.problems)]))

    @staticmethod
    def _line(problem: Problem) -> str:
        where = f"line {problem.line}" if problem.line else ""
        return ": ".join(part for part in (where, problem.key, problem.message) if part)


class Vocabulary(Struct, frozen=True):
    """What only the engines know, for checks that this package cannot make alone.

    An empty set switches its check off.

    Attributes
    ----------
    engine_args
        Arguments that `engine_args` may have, each with its type as far as it is known, else `Any`.
    own_keys
        Engine arguments that may not be passed through, and why not.
    tool_parsers, reasoning_parsers, quantizations
        Names that the installed vLLM has.
    unsupported_quantizations
        Those of them that this processor cannot run, and why, with what works instead.
    source_problem
        Returns what is wrong with a model's `source` as it is written, or None.
    """

    engine_args: Mapping[str, Any] = {}
    own_keys: Mapping[str, str] = {}
    tool_parsers: frozenset[str] = frozenset()
    reasoning_parsers: frozenset[str] = frozenset()
    quantizations: frozenset[str] = frozenset()
    unsupported_quantizations: Mapping[str, str] = {}
    source_problem: Callable[[str], str | None] = lambda source: None


def read(path: Path, vocabulary: Vocabulary | None = None) -> Settings:
    """Return the settings in the YAML or JSON file at `path`.

    Raises
    ------
    ConfigError
        With every problem that could be found, not just the first.
    """
    words = vocabulary or Vocabulary()
    return read_as(
        path, Settings, lambda data: (*_check_names(data), *_check_vocabulary(data, words))
    )


def read_as(path: Path, kind: type[T], meaning: Callable[[Any], Iterable[Finding]]) -> T:
    """Return what a YAML or JSON file says, as `kind`.

    Parameters
    ----------
    meaning
        Returns what is wrong in the data beyond unknown keys and wrong types.

    Raises
    ------
    ConfigError
        With every problem that could be found, not just the first.
    """
    try:
        data, lines, found = _parse(path)
        found += _check({} if data is None and kind is not Settings else data, kind, ())
        found += meaning(data)
    except RecursionError:
        message = "is nested too deeply; expected at most a dozen levels"
        raise ConfigError(path, [Problem("", message)]) from None
    if found:
        problems = [
            Problem(_written(key), text, _line(lines, key)) for key, text in dict.fromkeys(found)
        ]
        raise ConfigError(path, sorted(problems, key=lambda problem: problem.line))
    return msgspec.convert({} if data is None else data, kind)


def line_of(path: Path, key: KeyPath) -> int:
    """Return the 1-based line of a key in a file that was read before, or 0 if it has none."""
    _, lines, _ = _parse(path)
    return _line(lines, key)


def refusal(kind: type[Struct], key: str, value: Any) -> str | None:
    """Return why a file could not have `value` for a key, or None: for values from elsewhere.

    Parameters
    ----------
    kind
        The section that has the key, one of those in `config.settings`.
    """
    annotation = get_type_hints(kind, include_extras=True)[key]
    return next((text for _, text in _check(value, annotation, ())), None)


# --- from text to data, with lines -------------------------------------------------------------


def _parse(path: Path) -> tuple[Any, dict[KeyPath, int], list[Finding]]:
    """Return the data, the line of every key, and what the data no longer shows."""
    text = _text(path)
    try:
        if is_json := path.suffix == ".json":
            data = json.loads(text)
            # The YAML parser knows the lines, also of JSON, but for tabs. None is left inside a
            # string: JSON writes it as an escape there.
            text = text.replace("\t", " ")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        walk = _Walk()
        if node is not None:
            walk.visit(node, ())
        if walk.endless:
            raise ConfigError(path, [Problem(*each) for each in walk.endless])
        return data if is_json else yaml.safe_load(text), walk.lines, walk.repeated
    except json.JSONDecodeError as error:
        raise ConfigError(path, [Problem("", f"not JSON: {error}", error.lineno)]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 0
        message = f"not YAML: {error.problem or error.context}"
        raise ConfigError(path, [Problem("", message, line)]) from None
    except (yaml.YAMLError, ValueError) as error:
        message = f"not YAML: {str(error).splitlines()[0]}"
        raise ConfigError(path, [Problem("", message)]) from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        message = "there is no such file"
    except IsADirectoryError:
        message = "this is a directory, not a file"
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text (byte {error.start}); save it as UTF-8"
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    except ValueError:
        message = "a file's name cannot have a NUL character"
    raise ConfigError(path, [Problem("", message)])


_ENTRIES_MAX = 100_000


class _Walk:
    """Visits every entry of a file.

    Attributes
    ----------
    lines
        The line of each.
    repeated
        The keys given twice, of which YAML and JSON keep the last without a word.
    endless
        Where an alias (`*name`) stands for what it is part of, or for so much that no end is seen:
        key, message and line.
    """

    def __init__(self) -> None:
        self.lines: dict[KeyPath, int] = {}
        self.repeated: list[Finding] = []
        self.endless: list[tuple[str, str, int]] = []
        self._inside: list[yaml.Node] = []

    def visit(self, node: yaml.Node, path: KeyPath) -> None:
        """Note `node`, which is at `path`, and what is in it."""
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        if any(node is outer for outer in self._inside):
            message = "is part of itself through an alias (*); write out what is meant"
            self.endless.append((_written(path), message, line))
        elif len(self.lines) > _ENTRIES_MAX:
            if not self.endless:
                message = f"with its aliases (*) the file has more than {_ENTRIES_MAX} entries"
                self.endless.append((_written(path), message, line))
        else:
            self._inside.append(node)
            self._visit_entries(node, path)
            self._inside.pop()

    def _visit_entries(self, node: yaml.Node, path: KeyPath) -> None:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key_node, value_node in node.value:
                key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
                here = (*path, key)
                self.lines[here] = key_node.start_mark.line + 1
                if key in seen:
                    self.repeated.append((here, "is given twice; keep one"))
                seen.add(key)
                self.visit(value_node, here)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, (*path, index))


def _line(lines: dict[KeyPath, int], key: KeyPath) -> int:
    """Return the line of `key`, or of what encloses it when `key` itself is missing."""
    while key not in lines and key:
        key = key[:-1]
    return lines.get(key, 0)


def _written(key: KeyPath) -> str:
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


# --- shape: unknown keys, missing keys, wrong types, bounds -------------------------------------


def _check(value: Any, annotation: Any, path: KeyPath) -> Iterator[Finding]:
    """Yield every problem of `value` against `annotation`; msgspec alone stops at the first."""
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    found: list[Finding] = []
    if get_origin(kind) in (Union, UnionType):
        yield from _check_union(value, annotation, get_args(kind), path)
        return
    if isinstance(kind, type) and issubclass(kind, Struct):
        yield from _check_struct(value, kind, path)
        return
    if get_origin(kind) is list and isinstance(value, list):
        for index, item in enumerate(value):
            found += _check(item, get_args(kind)[0], (*path, index))
    elif get_origin(kind) is dict and isinstance(value, dict):
        of_keys, of_items = get_args(kind)
        for key, item in value.items():
            here = (*path, str(key))
            if isinstance(key, str):
                found += _check_leaf(key, of_keys, here)
            else:
                found.append((here, "this name must be text; put it in quotes"))
            found += _check(item, of_items, here)
    yield from found or _check_leaf(value, annotation, path)


def _check_union(
    value: Any, annotation: Any, options: Sequence[Any], path: KeyPath
) -> Iterator[Finding]:
    """Yield the problems of `value` against that option which has its shape."""
    given = [option for option in options if option is not type(None)]
    if value is None and len(given) < len(options):
        return
    if len(given) > 1:
        given = [each for each in given if (get_origin(each) is list) is isinstance(value, list)]
    if len(given) == 1:
        yield from _check(value, given[0], path)
    else:
        yield from _check_leaf(value, annotation, path)


def _check_struct(value: Any, kind: type[Struct], path: KeyPath) -> Iterator[Finding]:
    if not isinstance(value, dict):
        yield path, f"expected a mapping of keys, found {_shown(value)}"
        return
    annotations = get_type_hints(kind, include_extras=True)
    for key in value:
        if key not in annotations:
            hint = nearest(str(key), annotations) or f" (known: {', '.join(annotations)})"
            yield (*path, str(key)), f"unknown key{hint}"
    for field in msgspec.structs.fields(kind):
        if field.name in value:
            yield from _check(value[field.name], annotations[field.name], (*path, field.name))
        elif field.required:
            yield (*path, field.name), "is missing and has no default"


def _check_leaf(value: Any, annotation: Any, path: KeyPath) -> Iterator[Finding]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path, f"expected a finite number, found {_shown(value)}"
        return
    try:
        msgspec.convert(value, annotation)
    except msgspec.ValidationError as error:
        text = str(error).replace("Expected", "expected", 1)
        for theirs, ours in _IN_PLAIN_WORDS.items():
            text = text.replace(theirs, ours)
        choices = _choices(annotation)
        if choices:
            text = f"expected one of {', '.join(choices)}"
        elif "matching regex" in text:
            text = f"expected {_description(annotation)}"
        text = f"{text.split(', got ')[0]}, found {_shown(value)}"
        if isinstance(value, str):
            text += nearest(value, choices)
            if "number" in text and _is_number(value):
                text += "; write it as a plain number (YAML reads 1e-3 as text, 1.0e-3 as a number)"
        yield path, text


_IN_PLAIN_WORDS = {
    " | null`": "`",
    "`array` of length >= 1": "a list with at least one entry",
    "`str` of length >= 1": "text that is not empty",
    "`array` of length <= ": "a list with at most this many entries: ",
    "`str` of length <= ": "text with at most this many characters: ",
    "`array`": "a list",
    "`object`": "a mapping of keys",
    "`str`": "text",
    "`int`": "a whole number",
    "`float`": "a number",
    "`null`": "nothing",
    "`bool`": "true or false",
}


def _choices(annotation: Any) -> list[str]:
    """Return the values of a Literal, also inside Annotated and Optional."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [text for part in get_args(annotation) for text in _choices(part)]


def _description(annotation: Any) -> str:
    metas = (meta for meta in get_args(annotation) if isinstance(meta, msgspec.Meta))
    return next((meta.description for meta in metas if meta.pattern and meta.description), "")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(value: Any) -> str:
    """Return `value` as a person would recognise it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


# --- meaning: names that must exist, be unique, or be known to vLLM -----------------------------


def _check_names(data: Any) -> Iterator[Finding]:
    """Yield problems between parts of the file; parts of the wrong shape are reported elsewhere."""
    names: set[str] = set()
    for path, model in _entries(data, "models"):
        name = model.get("name")
        if name == AUTO:
            yield (*path, "name"), "`auto` asks for a choice and cannot be a model's name"
        elif isinstance(name, str):
            if name in names:
                yield (*path, "name"), f"there is already a model called `{name}`"
            names.add(name)
    if not names:
        return

    for key, text in policy_problems(data.get("routing"), sorted(names)):
        yield ("routing", *key), text
    policies = data.get("policies")
    if isinstance(policies, dict) and "default" in policies:
        yield (
            ("policies", "default"),
            "is the policy of `auto`, which is `routing`; rename this one",
        )
    aliases = data.get("aliases")
    for alias, target in (aliases if isinstance(aliases, dict) else {}).items():
        if alias in names or alias == AUTO:
            yield ("aliases", str(alias)), "is already the name of a model; choose another alias"
        if not (isinstance(target, str) and target.startswith(f"{AUTO}:")):
            yield from unknown_model(("aliases", str(alias)), target, names | {AUTO})


def _check_vocabulary(data: Any, words: Vocabulary) -> Iterator[Finding]:
    for path, model in _entries(data, "models"):
        arguments = model.get("engine_args")
        for key, value in (arguments if isinstance(arguments, dict) else {}).items():
            here = (*path, "engine_args", str(key))
            if key in words.own_keys:
                yield here, words.own_keys[key]
            elif words.engine_args and key not in words.engine_args:
                hint = nearest(str(key), words.engine_args)
                yield here, f"the installed vLLM has no such engine argument{hint}"
            else:
                yield from _check_leaf(value, words.engine_args.get(key, Any), here)
        for key, known in (
            ("tool_parser", words.tool_parsers),
            ("reasoning_parser", words.reasoning_parsers),
            ("quantization", words.quantizations),
        ):
            name = model.get(key)
            if isinstance(name, str) and known and name not in known:
                hint = nearest(name, known) or f" (there are: {', '.join(sorted(known))})"
                yield (*path, key), f"the installed vLLM has no `{name}`{hint}"
        source = model.get("source")
        fetched = source and model.get("engine", "vllm") == "vllm"
        if isinstance(source, str) and fetched and (wrong := words.source_problem(source)):
            yield (*path, "source"), wrong
        name = model.get("quantization")
        if isinstance(name, str) and name in words.unsupported_quantizations:
            yield (*path, "quantization"), words.unsupported_quantizations[name]


def _entries(data: Any, key: str, path: KeyPath = ()) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Yield the mappings in the list `data[key]` with their paths; skip what has another shape."""
    items = data.get(key) if isinstance(data, dict) else None
    for index, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, dict):
            yield (*path, key, index), item
