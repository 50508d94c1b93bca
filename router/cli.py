"""The `axion` command."""

import argparse
import http.client
import json
import logging
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from config import (
    ConfigError,
    LedgerSettings,
    ModelSettings,
    Problem,
    ServerSettings,
    Settings,
    read,
    refusal,
)
from router import VERSION
from router.address import url

if TYPE_CHECKING:
    from policies import Policy
    from router.training.data import Row

QUICKSTART = Path(__file__).parent.parent / "config" / "quickstart.yaml"

_POLICY_HELP = "a shipped policy, one of the configuration's, or a file"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: done. 1: it failed. 2: wrong usage. 3: trained, and not better; nothing has changed.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    for noisy in ("uvicorn", "httpx", "httpx2", "httpcore", "httpcore2", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.INFO if options.verbose else logging.WARNING)
    try:
        return int(options.run(options))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="axion",
        description="One OpenAI-compatible endpoint that routes each request to the right model.",
    )
    parser.add_argument("--version", action="version", version=f"axion {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--verbose", action="store_true", help="say more")
        return sub

    serve = command("serve", _serve, "Start the service.")
    check = command("check", _check, "Say everything that is wrong with a configuration file.")
    route = command("route", _route, "Say which model a request would get, and why; loads nothing.")
    plan = command("plan", _plan, "Say which models fit into memory, alone and together.")
    models = command("models", _models, "List the models and, if the service runs, their state.")
    text = "configuration file (default: the quickstart)"
    for sub in (serve, route):
        sub.add_argument("--config", type=Path, default=QUICKSTART, metavar="FILE", help=text)
    route.add_argument(
        "text", metavar="TEXT", nargs="?", help="what the user asks; - reads it from standard input"
    )
    route.add_argument(
        "--request", type=Path, metavar="FILE", help="the JSON body of a request, instead of TEXT"
    )
    route.add_argument("--policy", metavar="NAME", help="the policy to decide by")
    route.add_argument("--json", action="store_true", help="as JSON, as POST /v1/route answers")
    for sub in (check, plan, models):
        sub.add_argument(
            "config", type=Path, default=QUICKSTART, metavar="FILE", nargs="?", help=text
        )
    train = command("train", _train, "Train the classifier of tasks from labelled prompts.")
    evaluate = command("evaluate", _evaluate, "Say how good the classifier is on labelled prompts.")
    for sub, needed in ((train, False), (evaluate, True)):
        sub.add_argument(
            "prompts",
            type=Path,
            metavar="FILE",
            nargs="+" if needed else "*",
            help="labelled prompts, one JSON object a line, or a directory of such files"
            + ("" if needed else " (default: those that ship with the project)"),
        )
    result = train.add_mutually_exclusive_group(required=True)
    result.add_argument("--out", type=Path, metavar="FILE", help="where to write it")
    for flag, what in (
        (
            "--from-feedback",
            "train with the feedback of this configuration's ledger too, and put the classifier "
            "in use (at classifier) if it is better than the one that is; status 3: it "
            "is not",
        ),
        ("--rollback", "put back the classifier that was in use before"),
    ):
        result.add_argument(
            flag, type=Path, nargs="?", const=QUICKSTART, metavar="CONFIG", help=what
        )
    train.add_argument("--seed", type=int, default=0, help="the same seed gives the same model")
    evaluate.add_argument(
        "--classifier", type=Path, metavar="FILE", help="a trained one, instead of the shipped one"
    )
    evaluate.add_argument(
        "--compare",
        action="store_true",
        help="beside simpler ones, trained on the prompts that ship with the project (a minute)",
    )
    evaluate.add_argument(
        "--leave-one-source-out",
        action="store_true",
        help="beside models that are trained on the other sources of FILE (minutes)",
    )
    evaluate.add_argument(
        "--pictures", type=Path, metavar="DIRECTORY", help="where to write pictures, as SVG"
    )
    replay = command(
        "replay", _replay, "Say what another policy would change for recorded requests."
    )
    replay.add_argument(
        "ledger",
        type=Path,
        nargs="?",
        metavar="LEDGER",
        help="the file of a ledger (default: the one of --config)",
    )
    replay.add_argument("--policy", required=True, metavar="POLICY", help=_POLICY_HELP)
    replay.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration with the ledger, the models and the named policies (default: the "
        "quickstart; with LEDGER, the models that the ledger knows)",
    )
    simulate = command(
        "simulate", _simulate, "Compare policies and simpler ways on a virtual clock."
    )
    simulate.add_argument(
        "scenario",
        type=Path,
        nargs="?",
        metavar="SCENARIO",
        help="machine and traffic (default: the four production roles)",
    )
    simulate.add_argument(
        "--policy",
        action="append",
        metavar="POLICY",
        help=f"{_POLICY_HELP}; again for more (default: the shipped ones)",
    )
    simulate.add_argument(
        "--ledger", type=Path, metavar="FILE", help="take the requests that were recorded there"
    )
    simulate.add_argument(
        "--requests", type=_count, metavar="N", help="instead of the scenario's number"
    )
    simulate.add_argument("--seed", type=int, default=0, help="the same seed gives the same result")
    simulate.add_argument(
        "--pictures", type=Path, metavar="DIRECTORY", help="where to write a picture, as SVG"
    )
    on = "the service listens on"
    for sub, what in ((serve, "to listen on"), (models, on), (route, on)):
        for key in ("host", "port"):
            noun = "address" if key == "host" else key
            sub.add_argument(
                f"--{key}",
                type=_checked(key),
                metavar=key.upper(),
                help=f"{noun} {what}, instead of the file's server.{key}",
            )
    return parser


def _count(text: str) -> int:
    """Return a number of requests from a command line."""
    if not text.isdecimal() or not 1 <= int(text) <= 100_000_000:
        raise argparse.ArgumentTypeError("expected a number from 1 to 100000000")
    return int(text)


def _checked(key: str) -> Callable[[str], str | int]:
    """Return a reader of what a command line has for a key of `server`, by the checks of a file."""

    def value(text: str) -> str | int:
        given = int(text) if key == "port" and text.lstrip("-").isdecimal() else text
        if wrong := refusal(ServerSettings, key, given):
            raise argparse.ArgumentTypeError(wrong)
        return given

    return value


def _read(options: argparse.Namespace) -> Settings:
    """Return the settings in the file, with what the command line has instead."""
    from engines.vocabulary import vocabulary

    settings = read(options.config, vocabulary())
    keys = ("host", "port")
    given = {key: getattr(options, key) for key in keys if getattr(options, key, None) is not None}
    server = msgspec.structs.replace(settings.server, **given)
    return msgspec.structs.replace(settings, server=server)


def _base(options: argparse.Namespace) -> Path:
    """Return the directory that relative model sources start from."""
    return Path(options.config).resolve().parent


def _serve(options: argparse.Namespace) -> int:
    settings = _read_with_files(options, needed=True)
    _passed_tests(options, settings)

    from router.serve import run_checked  # the web stack takes a while; `check` does not need it

    return run_checked(settings, Path(options.config).resolve())


def _read_with_files(options: argparse.Namespace, needed: bool = False) -> Settings:
    """Return the settings, if no model's files are broken, or need another CPU, nor any other's.

    With `needed`, also if no directory is missing; else its files may come later.
    """
    settings, base = _read(options), _base(options)
    found = {
        f"models[{index}].source": _problem_of_files(model, base, needed)
        for index, model in enumerate(settings.models)
    }
    found["classifier"] = _problem_of_classifier(settings.classifier, base)
    found["ledger.path"] = _problem_of_ledger(settings.ledger, base)
    problems = [Problem(key, problem) for key, problem in found.items() if problem]
    if problems:
        raise ConfigError(options.config, problems)
    return settings


def _problem_of_files(model: ModelSettings, base: Path, needed: bool) -> str | None:
    from engines import cpu, sources

    if model.engine != "vllm":
        return None
    if needed and (lack := sources.missing(model.source, base)):
        return lack
    directory = sources.local_directory(model.source, base)
    return sources.damage(model.source, base) or (
        cpu.objection(model, directory) if directory else None
    )


def _problem_of_classifier(chosen: str | None, base: Path) -> str | None:
    if chosen is None:
        return None
    from router.classifier import DamagedWeights, in_use

    try:
        in_use(chosen, base)
    except DamagedWeights as error:
        return f"{error}. Put back a sound one, or leave this key out for the shipped one"
    return None


def _problem_of_ledger(ledger: LedgerSettings, base: Path) -> str | None:
    if ledger.path is None:
        return None
    from router.ledger import ledger_path, objection

    path = ledger_path(ledger, base)
    return f"{path} {wrong}" if path and (wrong := objection(path)) else None


def _check(options: argparse.Namespace) -> int:
    settings = _read_with_files(options)
    names = ", ".join(model.name for model in settings.models)
    passed = _passed_tests(options, settings)
    tests = f"; {passed} test{'s' * (passed != 1)} of its policies passed" if passed else ""
    sys.stdout.write(
        f"{options.config} is sound: {len(settings.models)} models ({names}){tests}.\n"
    )
    return 0


def _passed_tests(options: argparse.Namespace, settings: Settings) -> int:
    """Return how many tests the policies have; ConfigError if one fails or a policy is broken."""
    from router.catalogue import Catalogue
    from router.classifier import in_use
    from router.serve import make_policies

    base = _base(options)
    classifier = in_use(settings.classifier, base)
    policies = make_policies(
        settings, options.config.resolve(), Catalogue(settings, base), classifier
    )
    return policies.tested


def _route(options: argparse.Namespace) -> int:
    from router import route

    settings = _read(options)
    try:
        body = route.body(options.text, options.request)
        found = route.ask(settings, body, options.policy)
        if found is None:
            here = url(settings.server.host, settings.server.port)
            sys.stderr.write(
                f"axion: nothing listens on {here}; as it would be after a start, with every model "
                "cold:\n"
            )
            found = route.offline(settings, options.config.resolve(), body, options.policy)
    except route.NoAnswer as error:
        sys.stderr.write(f"axion: {error}\n")
        return 1
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n" if options.json else None
    sys.stdout.write(text or route.shown(found))
    return 0


def _models(options: argparse.Namespace) -> int:
    settings = _read(options)
    states = _running_states(settings)
    rows = [("MODEL", "STATE", "CONTEXT", "SOURCE", "DESCRIPTION")]
    for model in settings.models:
        context = str(model.max_model_len or "its own")
        state = states.get(model.name, "not running")
        rows.append((model.name, state, context, model.source, model.description))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        sys.stdout.write("  ".join([*cells, row[4]]).rstrip() + "\n")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from engines.plan import make_plan
    from router.plan import shown

    plan = make_plan(_read_with_files(options), _base(options))
    sys.stdout.write(shown(plan))
    return 1 if plan.problems else 0


def _train(options: argparse.Namespace) -> int:
    if options.rollback:
        return _rollback(options)
    from router.ledger import BadLedger
    from router.training import data
    from router.training.feedback import TooFew
    from router.training.train import train

    try:
        rows = data.read(options.prompts or [data.PROMPTS])
        if options.from_feedback:
            return _train_from_feedback(options, rows)
        classifier = train(rows, options.seed)
        classifier.save(options.out)
    except (OSError, ValueError, data.BadRow, BadLedger, TooFew) as error:
        sys.stderr.write(f"axion: {error}.\n")
        return 1
    sys.stdout.write(f"{options.out}: {json.dumps(classifier.card, indent=1)}\n")
    return 0


def _train_from_feedback(options: argparse.Namespace, prompts: "list[Row]") -> int:
    from router import ledger
    from router.classifier import in_use, shipped
    from router.training import data, feedback

    options.config = options.from_feedback
    settings, base = _read_with_files(options), _base(options)
    target = _classifier_path(options, settings)
    file = ledger.ledger_path(settings.ledger, base)
    if file is None:
        raise ConfigError(
            options.config,
            [Problem("ledger.path", "is not set, so there is no feedback; name a file in it")],
        )
    candidate, comparison = feedback.learn(
        ledger.read(file),
        in_use(settings.classifier, base),
        shipped(),
        prompts,
        data.read([data.REGRESSION]),
        options.seed,
    )
    sys.stdout.write(comparison.table())
    if objections := comparison.objections():
        sys.stdout.write(f"Not better, nothing has changed: {'; '.join(objections)}.\n")
        return 3
    feedback.promote(candidate, target)
    sys.stdout.write(
        f"Better: it is {target} now, and in use when the service is started again.\n"
        f"Back to the one before: axion train --rollback {options.config}\n"
    )
    return 0


def _rollback(options: argparse.Namespace) -> int:
    from router.training.feedback import rollback

    if options.prompts:
        sys.stderr.write("axion: --rollback takes a configuration, and no prompts.\n")
        return 2
    options.config = options.rollback
    # Not `_read_with_files`: what is damaged is to be put back, too.
    target = _classifier_path(options, _read(options))
    try:
        done = rollback(target)
    except OSError as error:
        sys.stderr.write(f"axion: {error}.\n")
        return 1
    if not done:
        sys.stderr.write(f"axion: there is no {target}: the shipped classifier is in use.\n")
        return 1
    now = f"{target} is the one before" if target.exists() else "the shipped classifier is"
    sys.stdout.write(f"Done: {now}, and in use when the service is started again.\n")
    return 0


def _classifier_path(options: argparse.Namespace, settings: Settings) -> Path:
    """Return where the configuration wants its classifier to be."""
    from router.classifier import chosen_path

    if settings.classifier is None:
        message = "is not set; name the file that a better classifier is to be written to"
        raise ConfigError(options.config, [Problem("classifier", message)])
    return chosen_path(settings.classifier, _base(options))


def _evaluate(options: argparse.Namespace) -> int:
    from router.classifier import WEIGHTS, DamagedWeights, load
    from router.training import data, evaluate, pictures

    try:
        rows = data.read(options.prompts)
        classifier = load(options.classifier or WEIGHTS)
        if not rows:
            raise evaluate.TooFew("no prompt in there has one of the known tasks")
        judged = evaluate.judge(classifier, rows)
        if options.pictures:
            pictures.write(judged, options.pictures)
        tables = evaluate.sections(judged)
        prompts = data.read([data.PROMPTS])
        if options.compare:
            tables["Beside others"] = evaluate.comparison(classifier, rows, prompts)
        if options.leave_one_source_out:
            tables["Sources left out"] = evaluate.left_out_sources(
                judged, prompts, lambda text: _step(f"training: {text}")
            )
    except (
        *(OSError, data.BadRow, DamagedWeights),
        *(evaluate.TooFew, pictures.Unavailable),
    ) as error:
        sys.stderr.write(f"axion: {error}.\n")
        return 1
    sys.stdout.write("\n".join(f"## {name}\n\n{table}\n" for name, table in tables.items()))
    return 0


def _replay(options: argparse.Namespace) -> int:
    from router import ledger, replay

    settings: Settings | None = None
    if options.config or not options.ledger:
        options.config = options.config or QUICKSTART
        settings = _read(options)
    path = options.ledger
    if path is None and settings is not None:
        path = ledger.ledger_path(settings.ledger, _base(options))
        if path is None:
            message = "is not set, so nothing was recorded; name a file in it, or give LEDGER"
            raise ConfigError(options.config, [Problem("ledger.path", message)])
    try:
        if settings is None:  # a file alone: what it knows of models is all there is
            models = replay.names(entry for entry, _ in ledger.read(path))
        else:
            models = [model.name for model in settings.models]
        if not models:
            raise ledger.BadLedger(f"{path} has no decision yet that could be made again")
        policy = _policy(options.policy, settings, options.config, models)
        found = replay.replay((entry for entry, _ in ledger.read(path)), policy)
    except (ledger.BadLedger, _NoPolicy) as error:
        sys.stderr.write(f"axion: {error}.\n")
        return 1
    sys.stdout.write(replay.shown(found))
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from router.ledger import BadLedger
    from router.simulation import compare, pictures
    from router.simulation.scenario import PRODUCTION, read_scenario
    from router.simulation.trace import recorded
    from router.training.pictures import Unavailable

    path = options.scenario or PRODUCTION
    scenario = read_scenario(path)
    if options.requests:
        scenario = msgspec.structs.replace(scenario, requests=options.requests)
    options.config = (path.parent / scenario.config).resolve()
    settings = _read(options)
    models = [model.name for model in settings.models]
    if lacking := [name for name in models if name not in scenario.hardware]:
        message = f"has no `{'`, `'.join(lacking)}`, which {scenario.config} has; add them"
        raise ConfigError(path, [Problem("hardware", message)])
    try:
        policies = [
            _policy(name, settings, options.config, models)
            for name in options.policy or ("balanced", "fastest", "quality")
        ]
        trace = recorded(options.ledger, scenario) if options.ledger else None
        found = compare.compare(scenario, settings, policies, options.seed, trace, _step)
        if options.pictures:
            pictures.write(found, options.pictures)
    except (BadLedger, _NoPolicy, Unavailable) as error:
        sys.stderr.write(f"axion: {error}.\n")
        return 1
    sys.stdout.write(compare.report(found))
    return 0


class _NoPolicy(Exception):
    """There is no such policy."""


def _policy(
    name: str, settings: Settings | None, config: Path | None, models: list[str]
) -> "Policy":
    """Return a policy that a command line names: shipped, of the configuration, or a file."""
    from policies import SHIPPED, read_policy, shipped_policy

    named = settings.policies if settings else {}
    source = named.get(name, name)
    if source in SHIPPED:
        return shipped_policy(source, models)
    path = Path(source) if name not in named or config is None else config.parent / source
    if not path.is_file():
        there = ", ".join(f"`{each}`" for each in (*SHIPPED, *named))
        raise _NoPolicy(f"there is no policy and no file called `{name}`; there are {there}")
    return read_policy(path, models)


def _step(text: str) -> None:
    """Say what is done next, where that takes long."""
    sys.stderr.write(f"axion: {text}\n")


def _running_states(settings: Settings) -> dict[str, str]:
    """Return the state of every model from the running service; empty when it does not run."""
    here = url(settings.server.host, settings.server.port)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
    try:
        with direct.open(f"{here}/v1/models", timeout=2) as response:
            entries = json.load(response)["data"]
        return {entry["id"]: entry["state"] for entry in entries if "state" in entry}
    except (http.client.HTTPException, urllib.error.HTTPError, ValueError, LookupError, TypeError):
        sys.stderr.write(
            f"axion: what listens on {here} is not this service; name its port with --port\n"
        )
    except TimeoutError:
        sys.stderr.write(f"axion: {here} does not answer within 2 s\n")
    except OSError:
        pass  # nothing listens there
    return {}


if __name__ == "__main__":
    from router.__main__ import main as begin

    sys.exit(begin())
