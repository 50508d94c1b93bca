"""Shared by all tests: an app on echo engines, and the real service on the real model."""

import os
import sys
from pathlib import Path

import pytest

from config import (
    CapabilitySettings,
    ConditionSettings,
    ModelSettings,
    PolicySettings,
    PoolSettings,
    RuleSettings,
    Settings,
)
from config.policy import FitSettings
from engines.load import EngineLoader
from router.app import create_app
from router.serve import build

ROOT = Path(__file__).parents[1]

_STATUS = pytest.StashKey[int]()


ROLES = ("phi4_fast", "qwen_coder", "mistral_balanced", "gemma3_multimodal")


def echo_settings(**changes) -> Settings:
    """Return a configuration in which echo engines play the four roles."""

    def role(name, context, **more):
        return ModelSettings(name=name, source="echo", engine="echo", max_model_len=context, **more)

    defaults = {
        "models": [
            role("phi4_fast", 64, description="Quick"),
            role("qwen_coder", 128, tool_parser="hermes"),
            role("mistral_balanced", 128),
            role("gemma3_multimodal", 4096, capabilities=CapabilitySettings(vision=True)),
        ],
        # Nothing speaks for any model but the rules.
        "routing": PolicySettings(
            default="phi4_fast",
            price_per_second=0,
            fit={name: FitSettings(other=0.5, slope=0, languages={"es": 0}) for name in ROLES},
            rules=[
                RuleSettings(
                    name="code", when=ConditionSettings(task="code"), prefer=["qwen_coder"]
                ),
            ],
        ),
        "pool": PoolSettings(memory_budget_gb=1),
        "aliases": {"gpt-4o": "auto", "coder": "qwen_coder"},
    }
    return Settings(**{**defaults, **changes})


@pytest.fixture
def make_service():
    """Return a function that builds a service on echo engines, with any setting changed."""

    def make(loader=None, **changes):
        settings = echo_settings(**changes)
        return build(settings, ROOT / "axion.yaml", loader or EngineLoader(settings, ROOT))

    return make


@pytest.fixture
async def client(make_service):
    """An HTTP client of the app on echo engines, in process."""
    import httpx

    service = make_service()
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://axion") as client:
        client.service = service
        yield client
    await service.pool.close()


def pytest_sessionfinish(session, exitstatus):
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """End without the interpreter's own exit: vLLM's libraries report pages of leaks there."""
    if "vllm" in sys.modules and _STATUS in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_STATUS])


@pytest.fixture(scope="session")
def quickstart_loader():
    """A loader with vLLM imported, for the tests that start engines in this process."""
    from config import read

    settings = read(ROOT / "config" / "quickstart.yaml")
    return EngineLoader(settings, ROOT / "config")


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    """The real service with the shipped quickstart configuration, shared by the session."""
    from tests.service import RunningService

    log = tmp_path_factory.mktemp("service") / "log"
    running = RunningService(ROOT / "config" / "quickstart.yaml", log)
    yield running
    running.stop()
