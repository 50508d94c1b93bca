"""The policies in use: read, tested and swapped as one, so that traffic never sees half of them."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from config import ConfigError, Problem, Settings
from policies import SHIPPED, Policy, make_policy, read_policy, shipped_policy

log = logging.getLogger("axion.policy")

VERSIONS_MAX = 10
"""How many sets of policies are kept to go back to."""

WATCH_S = 1.0
"""Seconds between two looks at the files."""

DEFAULT = "default"
"""The name of the policy of `auto`, which is `routing` in the configuration."""

Tester = Callable[[Policy], Sequence[Problem]]
"""Returns what goes wrong in the tests of a policy."""


class Version(Struct, frozen=True):
    """The policies of one moment.

    Attributes
    ----------
    at
        When they came into use, in seconds since 1970.
    policies
        By name; `DEFAULT` is that of `auto`.
    """

    at: float
    policies: dict[str, Policy]


class NothingBefore(Exception):
    """There is no earlier version to go back to."""


class Policies:
    """The policies in use, and those before.

    Parameters
    ----------
    settings
        The configuration at the start.
    path
        Its file, which `reload` reads again.
    read
        Reads a configuration file.
    test
        Tries the tests of a policy.

    Raises
    ------
    ConfigError
        A policy's file is broken, or one of its tests fails.
    """

    def __init__(
        self,
        settings: Settings,
        path: Path,
        read: Callable[[Path], Settings],
        test: Tester,
    ) -> None:
        self._path = path
        self._read = read
        self._test = test
        self._models = [model.name for model in settings.models]
        self._files: frozenset[Path] = frozenset()
        self._versions = [Version(time.time(), self._made(settings))]
        self._seen = self._stamps()
        self.problem: str | None = None
        """Why the last reload was refused, or None."""

    def get(self, name: str = DEFAULT) -> Policy | None:
        """Return a policy by its name, or None if there is none."""
        return self._versions[-1].policies.get(name)

    @property
    def current(self) -> Mapping[str, Policy]:
        """The policies in use, by name; a later version is another mapping."""
        return self._versions[-1].policies

    @property
    def names(self) -> list[str]:
        """The names of all, but that of `auto`."""
        return [name for name in self._versions[-1].policies if name != DEFAULT]

    @property
    def versions(self) -> Sequence[Version]:
        """The versions that are kept, oldest first; the last one is in use."""
        return self._versions

    def reload(self) -> bool:
        """Read the policies again, and use them; False if nothing has changed.

        Of the configuration only `routing` and `policies` are read; the rest needs a new start.

        Raises
        ------
        ConfigError
            Something is wrong with them, or one of their tests fails. Those in use stay.
        """
        self._seen = self._stamps()
        try:
            made = self._made(self._read(self._path))
        except ConfigError as error:
            self.problem = str(error)
            raise
        self.problem = None
        if _ids(made) == _ids(self._versions[-1].policies):
            return False
        self._versions = [*self._versions, Version(time.time(), made)][-VERSIONS_MAX:]
        log.info("policies: loaded anew; that of auto is %s", made[DEFAULT].version)
        return True

    def rollback(self) -> None:
        """Go back to the version before; the next change of a file, or `reload`, goes forward.

        Raises
        ------
        NothingBefore
        """
        if len(self._versions) < 2:
            raise NothingBefore
        self._versions = self._versions[:-1]
        log.info("policies: gone back to %s", self._versions[-1].policies[DEFAULT].version)

    async def watch(self) -> None:
        """Reload whenever one of the files has changed. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(WATCH_S)
            if await asyncio.to_thread(self._stamps) != self._seen:
                self.try_reload()

    def try_reload(self) -> None:
        """Reload; what is wrong goes into the log."""
        try:
            self.reload()
        except ConfigError as error:
            log.error("policies: not loaded, those in use stay: %s", error)

    def _made(self, settings: Settings) -> dict[str, Policy]:
        """Return every policy of a configuration, each tested."""
        models, base = self._models, self._path.parent
        made = {name: shipped_policy(name, models) for name in SHIPPED}
        for name, source in settings.policies.items():
            if source in SHIPPED:
                made[name] = shipped_policy(source, models)
            else:
                made[name] = self._tested(read_policy(base / source, models, name), base / source)
        routing = make_policy(DEFAULT, settings.routing, self._path, models, "routing")
        made[DEFAULT] = self._tested(routing, self._path)
        self._files = frozenset(file for policy in made.values() for file in policy.files)
        return made

    def _tested(self, policy: Policy, path: Path) -> Policy:
        if wrong := self._test(policy):
            raise ConfigError(path, wrong)
        return policy

    def _stamps(self) -> dict[Path, int]:
        """Return when each file was last changed, as far as it is there."""
        found = {}
        for path in {self._path, *self._files}:
            try:
                found[path] = path.stat().st_mtime_ns
            except OSError:
                found[path] = 0
        return found


def _ids(policies: dict[str, Policy]) -> dict[str, str]:
    return {name: policy.version for name, policy in policies.items()}
