"""The policies in use: read, tested, and swapped as one, so that traffic never sees half of them."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from config import ConfigError, Problem, Settings
from policies import SHIPPED, Policy, make_policy, read_policy, shipped_policy

log = logging.getLogger("axion.policy")

VERSIONS_MAX = 10
"""How many sets of policies are kept to go back to."""

DEFAULT = "default"
"""The name of the policy of `auto`, which is `routing` in the configuration."""

Tester = Callable[[Policy], list[Problem]]
"""Returns the tests of a policy that fail."""


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

    @property
    def id(self) -> str:
        """What it is called: the versions of its policies of one's own."""
        return self.policies[DEFAULT].version


class NothingBefore(Exception):
    """There is no earlier version to go back to."""


class Policies:
    """The policies in use, and those before.

    Parameters
    ----------
    path
        The configuration file, which is read again by `reload`.
    read
        Reads the configuration.
    test
        Tries the tests of a policy.

    Raises
    ------
    ConfigError
        A policy's file is broken, or one of its tests fails.
    """

    def __init__(
        self, settings: Settings, path: Path, read: Callable[[Path], Settings], test: Tester
    ) -> None:
        self._path = path
        self._read = read
        self._test = test
        self._models = [model.name for model in settings.models]
        self._versions = [Version(time.time(), self._made(settings))]
        self.problem: str | None = None
        """Why the last try to reload was refused, or None."""

    def get(self, name: str | None = None) -> Policy | None:
        """Return a policy by its name, that of `auto` without one; None if there is none."""
        return self._versions[-1].policies.get(name or DEFAULT)

    @property
    def names(self) -> list[str]:
        """The names of all."""
        return list(self._versions[-1].policies)

    @property
    def versions(self) -> Sequence[Version]:
        """The versions that are kept, oldest first; the last one is in use."""
        return self._versions

    @property
    def files(self) -> list[Path]:
        """The files that policies come from, as far as the operator wrote them."""
        found = {self._path, *self._named_files(self._read_quietly())}
        return sorted(found)

    def reload(self) -> bool:
        """Read the policies again, and use them; False if nothing has changed.

        Raises
        ------
        ConfigError
            Something is wrong with them, or one of their tests fails. Those in use stay.
        """
        try:
            made = self._made(self._read(self._path))
        except ConfigError as error:
            self.problem = str(error)
            raise
        self.problem = None
        if made == self._versions[-1].policies:
            return False
        self._use(Version(time.time(), made))
        return True

    def rollback(self) -> None:
        """Go back to the version before; `reload` goes forward again.

        Raises
        ------
        NothingBefore
        """
        if len(self._versions) < 2:
            raise NothingBefore
        gone = self._versions.pop()
        log.info("policies: %s is taken back, %s is in use", gone.id, self._versions[-1].id)

    def _use(self, version: Version) -> None:
        self._versions = [*self._versions, version][-VERSIONS_MAX:]
        log.info("policies: %s is in use", version.id)
