"""The `axion` command."""

import argparse
import json
import logging
import sys
import urllib.error
import urllib.request
from pathlib import Path

import msgspec

from config import ConfigError, Problem, Settings, read
from router import VERSION

QUICKSTART = Path(__file__).parent.parent / "config" / "quickstart.yaml"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 it failed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    for noisy in ("uvicorn", "httpx", "asyncio"):
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
    serve.add_argument("--host", help="address to listen on, instead of the file's server.host")
    serve.add_argument("--port", type=int, help="port to listen on, instead of server.port")
    check = command("check", _check, "Say everything that is wrong with a configuration file.")
    check.add_argument("config", type=Path, metavar="FILE")
    plan = command("plan", _plan, "Say which models fit into memory, alone and together.")
    models = command("models", _models, "List the models and, if the service runs, their state.")
    for sub in (serve, plan, models):
        sub.add_argument(
            "--config",
            type=Path,
            default=QUICKSTART,
            metavar="FILE",
            help="configuration file (default: the quickstart)",
        )
    return parser


def _read(path: Path) -> Settings:
    from engines.vocabulary import vocabulary

    return read(path, vocabulary())


def _serve(options: argparse.Namespace) -> int:
    settings = _read(options.config)
    given = {key: getattr(options, key) for key in ("host", "port") if getattr(options, key)}
    if options.port == 0:
        given["port"] = 0
    server = msgspec.structs.replace(settings.server, **given)
    settings = msgspec.structs.replace(settings, server=server)

    from router.serve import run_checked  # the web stack takes a while; `check` does not need it

    return run_checked(settings, options.config.resolve().parent)


def _check(options: argparse.Namespace) -> int:
    from engines import cpu
    from engines.sources import local_directory

    settings = _read(options.config)
    base, problems = options.config.resolve().parent, []
    for index, model in enumerate(settings.models):
        try:
            directory = local_directory(model.source, base) if model.engine == "vllm" else None
            refusal = cpu.objection(model, directory) if directory else None
        except ValueError:  # the hub's own library has looked at the name
            refusal = "is not a hub id (owner/name), and a directory starts with /, ./, ../ or ~"
        if refusal:
            problems.append(Problem(f"models[{index}].source", refusal))
    if problems:
        raise ConfigError(options.config, problems)
    names = ", ".join(model.name for model in settings.models)
    sys.stdout.write(f"{options.config} is sound: {len(settings.models)} models ({names}).\n")
    return 0


def _models(options: argparse.Namespace) -> int:
    settings = _read(options.config)
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

    plan = make_plan(_read(options.config), options.config.resolve().parent)
    sys.stdout.write(shown(plan))
    return 1 if plan.problems else 0


def _running_states(settings: Settings) -> dict[str, str]:
    """Return the state of every model from the running service; empty when it does not run."""
    url = f"http://{settings.server.host}:{settings.server.port}/v1/models"
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            entries = json.load(response)["data"]
        return {entry["id"]: entry.get("state", "") for entry in entries}
    except (urllib.error.URLError, OSError, ValueError, KeyError, TypeError):
        return {}


if __name__ == "__main__":
    sys.exit(main())
