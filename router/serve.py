"""Run the service: check, bind, fetch, import vLLM, listen, stop cleanly."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

import uvicorn
from msgspec import structs

from config import LedgerSettings, Settings, read
from engines.fetch import fetch
from engines.load import EngineLoader
from engines.memory import GIB, budget_bytes
from engines.plan import Plan, make_plan
from engines.pool import Loader, Pool
from engines.quickstart import cache_directory
from engines.sources import SourceError, is_local
from router import tokens
from router.address import CannotListen, listening, url
from router.app import Service, create_app
from router.catalogue import Catalogue
from router.choose import Chooser
from router.classifier import Classifier, DamagedWeights, in_use
from router.conversations import Conversations
from router.dispatch import Dispatcher
from router.forecast import Forecast
from router.journal import Journal
from router.ledger import BadLedger, Ledger, ledger_path
from router.policies import Policies
from router.shutdown import Shutdown
from router.trial import failing

log = logging.getLogger("axion")

_FLUSH_S = 5
"""What clients get to read the rest of their answers, once every request is over."""


class CannotStart(Exception):
    """The service cannot start; the message says why and what to do."""


def build(
    settings: Settings,
    config: Path,
    loader: Loader,
    footprints: Mapping[str, int] = {},
    speeds: Path | None = None,
) -> Service:
    """Return the service for `settings`, with nothing loaded yet.

    Parameters
    ----------
    config
        The configuration's file; policies are read from it again when it changes.
    footprints
        What models are likely to take, in bytes, as far as that is known.
    speeds
        The file that keeps what is known of the models' speed, or None.

    Raises
    ------
    ConfigError
        A policy cannot be used.
    DamagedWeights, BadLedger
        What `classifier` or `ledger.path` names is something else.
    """
    base = config.parent
    catalogue = Catalogue(settings, base)
    classifier = in_use(settings.classifier, base)
    policies = make_policies(settings, config, catalogue, classifier)
    budget = budget_bytes(settings.pool.memory_budget_gb)
    pool = Pool(settings.models, settings.pool, loader, budget, footprints=footprints)
    shutdown = Shutdown()
    path = ledger_path(settings.ledger, base)
    ledger = Ledger.open(path, settings.ledger) if path else None
    forecast, conversations = Forecast(settings.models, speeds), Conversations()
    chooser = Chooser(catalogue, classifier, pool, policies, forecast, conversations)
    journal = Journal(forecast, ledger)
    dispatcher = Dispatcher(chooser, conversations, forecast, journal, pool, shutdown)
    return Service(
        settings=settings,
        base=base,
        pool=pool,
        catalogue=catalogue,
        chooser=chooser,
        dispatcher=dispatcher,
        journal=journal,
        forecast=forecast,
        shutdown=shutdown,
        ledger=ledger,
    )


def build_offline(settings: Settings, config: Path, speeds: Path | None = None) -> Chooser:
    """Return what chooses for a service that does not run: every model is cold, none can be loaded.

    Raises
    ------
    ConfigError, DamagedWeights
        As `build`.
    """
    tokens.warm()
    return build(
        structs.replace(settings, ledger=LedgerSettings()),  # a look leaves nothing behind
        config,
        cast("Loader", None),  # nothing is ever asked of it
        _footprints(make_plan(settings, config.parent)),
        speeds,
    ).chooser


def make_policies(
    settings: Settings, config: Path, catalogue: Catalogue, classifier: Classifier
) -> Policies:
    """Return the policies of a configuration, each tested. Raises ConfigError."""
    test = partial(failing, catalogue=catalogue, classifier=classifier)
    return Policies(settings, config, read_configuration, test)


def read_configuration(path: Path) -> Settings:
    """Return the settings in a file, checked with what the engines know."""
    from engines.vocabulary import vocabulary

    return read(path, vocabulary())


def serve(settings: Settings, config: Path) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running requests finish.

    Parameters
    ----------
    config
        The configuration's file; relative sources start from its directory.

    Raises
    ------
    ConfigError
        A policy cannot be used.
    CannotListen
        The address or the port cannot be had.
    CannotStart
        A model's files are missing, or a model can never fit into memory; or the classifier or
        the ledger cannot be used.
    """
    base = config.parent
    with listening(settings.server.host, settings.server.port) as listener:
        _fetch(settings, base)
        footprints = _check_memory(settings, base)
        if any(model.engine == "vllm" for model in settings.models):
            log.info("importing vLLM (5 to 10 s)")
        loader = EngineLoader(settings, base)
        tokens.warm()
        try:
            service = build(settings, config, loader, footprints, speeds_file())
        except (DamagedWeights, BadLedger) as error:
            raise CannotStart(str(error)) from None
        web = uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=_FLUSH_S,
            server_header=False,
        )
        # From here on Ctrl-C is a clean stop, which uvicorn makes.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # uvicorn raises the signal again after its clean stop; the stop was what it asked for.
        signal.signal(signal.SIGTERM, lambda *_: None)
        with contextlib.suppress(KeyboardInterrupt):
            _Server(web, service).run(sockets=[listener])
    log.info("stopped")


def speeds_file() -> Path:
    """Return the file that keeps what is known of the models' speed across starts."""
    return cache_directory() / "speeds.json"


class _Server(uvicorn.Server):
    """uvicorn, with a greeting once it listens, and our own end of what runs before its own."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._settings = service.settings
        self._shutdown = service.shutdown
        self._policies = service.chooser.policies

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not os.isatty(0):
            # A service manager's wish for a new look at the configuration. At a terminal it means
            # that the terminal is gone, and the service with it.
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, self._policies.reload_soon)
        if self.started and sockets:
            sys.stdout.write(greeting(self._settings, sockets[0].getsockname()[1]))
            sys.stdout.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()  # no new connections; those that are kept alive get an answer
        grace_s = self._settings.server.shutdown_grace_s
        await self._shutdown.run(grace_s, hurry=lambda: self.force_exit)
        # uvicorn's way of hurrying is to leave without closing the engines; what is left is quick.
        self.force_exit = False
        if self._shutdown.running:
            for connection in list(self.server_state.connections):
                connection.transport.abort()  # its client does not take what it is sent
        await super().shutdown(sockets)


def greeting(settings: Settings, port: int) -> str:
    """Return what the terminal shows once the service listens, with a command to copy."""
    here = url(settings.server.host, port)
    models = "\n".join(f"  {model.name:<18} {model.description}" for model in settings.models)
    return f"""
Axion listens on {here} and chooses between:
{models}

Try it (the first answer waits until its model is loaded):
  curl {here}/v1/chat/completions -H 'content-type: application/json' -d \\
    '{{"model": "auto", "max_tokens": 50, "messages": [{{"role": "user", "content": "Hola"}}]}}'

Models and their state: {here}/v1/models   API page: {here}/docs   Stop: Ctrl-C

"""


def _fetch(settings: Settings, base: Path) -> None:
    """Make what `quickstart:` and local sources name available; hub models wait for their load."""
    for source in dict.fromkeys(m.source for m in settings.models if m.engine == "vllm"):
        if is_local(source):
            try:
                asyncio.run(fetch(source, base, log.info))
            except SourceError as error:
                raise CannotStart(str(error)) from None


def _check_memory(settings: Settings, base: Path) -> dict[str, int]:
    """Refuse a model that can never fit; warn of a budget that this machine does not have.

    Returns what each model takes, in bytes, as far as that is known.
    """
    plan = make_plan(settings, base)
    if plan.problems:
        raise CannotStart(". ".join(plan.problems))
    if plan.room.bytes < plan.room.budget_bytes and settings.pool.memory_budget_gb is not None:
        log.warning(
            "pool.memory_budget_gb is %.2f GiB, but only %.2f GiB are available for models: they "
            "will make room for each other earlier",
            plan.room.budget_bytes / GIB,
            plan.room.bytes / GIB,
        )
    return _footprints(plan)


def _footprints(plan: Plan) -> dict[str, int]:
    return {each.model: each.need.total_bytes for each in plan.models if each.need}


def run_checked(settings: Settings, config: Path) -> int:
    """Serve and end the process; return the exit status only if the service could not start."""
    try:
        serve(settings, config)
    except (CannotStart, CannotListen) as error:
        sys.stderr.write(f"axion: {error}.\n")
        return 1
    except KeyboardInterrupt:  # while still starting
        return 130
    # Everything is stopped and written. An ordinary exit would let vLLM's libraries fill the
    # operator's terminal with pages about their own leaks.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
