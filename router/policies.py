"""The policies in use: read, tested and swapped as one, so that traffic never sees half of them."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct

from config import AUTO, ConfigError, Problem, Settings, line_of, nearest, policy_problems, read_as
from config.names import Finding, KeyPath
from policies import SHIPPED, Policy, make_policy, read_policy, shipped_policy

log = logging.getLogger("axion.policy")

VERSIONS_MAX = 10
"""How many sets of policies are kept to go back to."""

WATCH_S = 0.5
"""Seconds between two looks at the files; what has changed must look the same twice."""

RETRY_S = 5.0
"""Seconds after which a refused reload is tried again: what was missing may be there by then."""

DEFAULT = "default"
"""The name of the policy of `auto`, which is `routing` in the configuration."""


class Tester(Protocol):
    """Tries the tests of a policy."""

    def __call__(self, policy: Policy, *, at: KeyPath) -> Sequence[Problem]:
        """Return what goes wrong in them; `at` is the key of the policy in its file."""


class Version(Struct, frozen=True):
    """The policies of one moment.

    Attributes
    ----------
    at
        When they came into use, in seconds since 1970.
    policies
        By name; `DEFAULT` is that of `auto`.
    chosen
        The names of those that the configuration has in `policies`.
    """

    at: float
    policies: dict[str, Policy]
    chosen: tuple[str, ...] = ()


class NothingBefore(Exception):
    """There is no earlier version to go back to."""


class Policies:
    """The policies in use, and those before. Belongs to the event loop, which it never holds up.

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

    Attributes
    ----------
    problem
        Why the last reload was refused, or None.

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
        self._aliases = settings.aliases
        self._change = asyncio.Lock()  # one at a time, in the order in which they were asked for
        self._background: set[asyncio.Task[None]] = set()
        self.problem: str | None = None
        self._versions = [self._made(settings)]
        self._files = {path, *_files(self._versions[-1])}
        self._seen = self._stamps()

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
    def chosen(self) -> Sequence[str]:
        """The names of those that the configuration has in `policies`."""
        return self._versions[-1].chosen

    @property
    def versions(self) -> Sequence[Version]:
        """The versions that are kept, oldest first; the last one is in use."""
        return self._versions

    @property
    def tested(self) -> int:
        """How many tests those in use have passed; the shipped ones are not tried here."""
        policies = self._versions[-1].policies.values()
        shipped = SHIPPED.values()
        return sum(len(each.tests) for each in policies if each.files[0] not in shipped)

    def find(self, name: str, version: str) -> Policy | None:
        """Return a policy as it was in one of the versions that are kept, or None."""
        kept = (each.policies.get(name) for each in reversed(self._versions))
        return next((each for each in kept if each and each.version == version), None)

    async def reload(self) -> bool:
        """Read the policies again, and use them; False if nothing has changed.

        Of the configuration only `routing` and `policies` are read; the rest needs a new start.

        Raises
        ------
        ConfigError
            Something is wrong with them, or one of their tests fails. Those in use stay.
        """
        async with self._change:
            self._seen = await asyncio.to_thread(self._stamps)
            try:
                made = await asyncio.to_thread(self._read_again)
            except ConfigError as error:
                self._files.add(error.path)
                self.problem = str(error)
                raise
            self.problem = None
            self._files = {self._path, *_files(made)}
            if _same(made, self._versions[-1]):
                return False
            self._versions = [*self._versions, made][-VERSIONS_MAX:]
            log.info("policies: loaded anew; that of auto is %s", made.policies[DEFAULT].version)
            return True

    async def rollback(self) -> None:
        """Go back to the version before; the next change of a file, or `reload`, goes forward.

        Raises
        ------
        NothingBefore
        """
        async with self._change:
            if len(self._versions) < 2:
                raise NothingBefore
            self._versions = self._versions[:-1]
            log.info("policies: gone back to %s", self._versions[-1].policies[DEFAULT].version)

    async def watch(self) -> None:
        """Reload whenever one of the files has changed. Runs until it is cancelled."""
        last, tried_at = self._seen, time.monotonic()
        while True:
            await asyncio.sleep(WATCH_S)
            now = await asyncio.to_thread(self._stamps)
            # Half a file may be a sound one, so an editor gets the time to write the other half.
            changed = now != self._seen and now == last
            last = now
            if changed or (self.problem and time.monotonic() - tried_at > RETRY_S):
                await self.try_reload(again=not changed)
                tried_at = time.monotonic()

    def reload_soon(self) -> None:
        """Reload in the background, for a signal's handler."""
        task = asyncio.get_running_loop().create_task(self.try_reload(), name="reload")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def try_reload(self, again: bool = False) -> None:
        """Reload; what is wrong goes into the log, but not `again` if it is the same as before."""
        known = self.problem if again else None
        try:
            await self.reload()
        except ConfigError as error:
            if str(error) != known:
                log.error("policies: not loaded, those in use stay: %s", error)
        except Exception:  # whoever watches must go on
            log.exception("policies: not loaded, those in use stay")

    def report(self) -> dict[str, Any]:
        """Return what is in use, for people: names, versions, files, the last problem."""
        used = self._versions[-1]
        return {
            "policies": [
                {
                    "name": policy.name,
                    "version": policy.version,
                    "files": [str(file) for file in policy.files],
                    "tests": len(policy.tests),
                }
                for policy in used.policies.values()
            ],
            "versions": [
                {"at": version.at, "in_use": version is used, "policies": _ids(version.policies)}
                for version in self._versions
            ],
            "problem": self.problem,
        }

    # --- not on the event loop: reading takes tens of milliseconds, and tests may take more -------

    def _read_again(self) -> Version:
        settings = self._read(self._path)
        if unknown := {model.name for model in settings.models} - set(self._models):
            read_as(self._path, Settings, lambda data: self._too_new(data, unknown))
        return self._made(settings)

    def _too_new(self, data: Mapping[str, Any], unknown: set[str]) -> list[Finding]:
        """Return where the policy names models that only a new start would bring."""
        advice = "; a new model needs a new start of the service"
        return [
            (("routing", *key), text + advice * any(f"`{name}`" in text for name in unknown))
            for key, text in policy_problems(data.get("routing"), self._models)
        ]

    def _made(self, settings: Settings) -> Version:
        """Return every policy of a configuration, each tested."""
        models = self._models
        made = {name: shipped_policy(name, models) for name in SHIPPED}
        refused = []
        for name, source in settings.policies.items():
            try:
                made[name] = self._one(name, source)
            except ConfigError as error:
                refused.append(error)
        try:
            routing = make_policy(DEFAULT, settings.routing, self._path, models, "routing")
            made[DEFAULT] = self._tested(routing, ("routing",))
        except ConfigError as error:
            refused.append(error)
        for alias, target in self._aliases.items():
            auto, _, name = target.partition(":")
            if auto == AUTO and name and name not in made and not refused:
                message = f"there is no policy called `{name}`{nearest(name, made)}"
                refused.append(self._problem(("aliases", alias), message))
        if refused:
            raise _together(refused)
        return Version(time.time(), made, tuple(settings.policies))

    def _one(self, name: str, source: str) -> Policy:
        """Return a policy that the configuration has in `policies`."""
        if source in SHIPPED:
            return shipped_policy(source, self._models, name)
        file = self._path.parent / source
        if not os.path.isfile(file):  # False also for what cannot be a name
            message = (
                f"there is no shipped policy and no file called `{source}`"
                f"{nearest(source, SHIPPED)}; shipped are {', '.join(SHIPPED)}"
            )
            raise self._problem(("policies", name), message)
        return self._tested(read_policy(file, self._models, name), ())

    def _problem(self, key: tuple[str, ...], message: str) -> ConfigError:
        """Return a problem of the configuration's file."""
        return ConfigError(self._path, [Problem(".".join(key), message, line_of(self._path, key))])

    def _tested(self, policy: Policy, at: KeyPath) -> Policy:
        if wrong := self._test(policy, at=at):
            raise ConfigError(policy.files[0], wrong)
        return policy

    def _stamps(self) -> dict[Path, tuple[int, ...] | None]:
        """Return what tells that a file has changed, as far as it is there."""
        found: dict[Path, tuple[int, ...] | None] = {}
        for path in tuple(self._files):
            try:
                status = path.stat()
                found[path] = (
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                    status.st_size,
                    status.st_ino,
                )
            except OSError:
                found[path] = None
        return found


def _files(version: Version) -> set[Path]:
    return {file for policy in version.policies.values() for file in policy.files}


def _same(one: Version, other: Version) -> bool:
    return _ids(one.policies) == _ids(other.policies) and one.chosen == other.chosen


def _ids(policies: Mapping[str, Policy]) -> dict[str, str]:
    return {name: policy.version for name, policy in policies.items()}


def _together(refused: Sequence[ConfigError]) -> ConfigError:
    """Return the errors of several files as one."""
    first = refused[0]
    if len(refused) > 1:
        first.args = ("\n".join(map(str, refused)),)
    return first
