"""How the service stops: what runs may finish for a while, and what comes is refused."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator

from router.errors import ApiError

FAREWELL_S = 1.0
"""What ended requests get to send their last bytes before their connections are cut."""

_TICK_S = 0.05


class Shutdown:
    """Knows which requests run, and ends them when the time has come.

    A request that has been admitted may finish, also if it still waits for its model, until the
    grace is over. Then it ends with the error `shutting_down`, which a stream that has begun gets
    as an event. Nothing is cancelled from outside, so nothing ends without an answer.

    Attributes
    ----------
    begun
        No new requests are admitted.
    over
        What still runs ends now.
    running
        How many requests have been admitted and are not over.
    """

    def __init__(self) -> None:
        self.begun = False
        self.over = False
        self.running = 0
        self._limits: set[asyncio.Timeout] = set()

    @contextlib.contextmanager
    def admit(self) -> Iterator[None]:
        """Let a request run in the block, which the service waits for before it stops.

        Raises
        ------
        ApiError
            `shutting_down`: the service is stopping.
        """
        if self.begun:
            raise _shutting_down()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1

    @contextlib.asynccontextmanager
    async def limit(self) -> AsyncGenerator[None, None]:
        """Await something in the block, but no longer than the grace.

        Raises
        ------
        ApiError
            `shutting_down`: the grace is over; what was awaited has been cancelled.
        """
        if self.over:
            raise _shutting_down()
        limit = asyncio.timeout(None)
        self._limits.add(limit)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise _shutting_down() from None
        finally:
            self._limits.discard(limit)

    async def run(self, grace_s: float, hurry: Callable[[], bool]) -> None:
        """Admit nothing more, and return once what runs is over.

        That is `FAREWELL_S` after the grace at the latest, unless a client does not take what it
        is sent; then `running` is not 0.

        Parameters
        ----------
        grace_s
            The seconds that running requests have.
        hurry
            Asked all the time whether to end them at once.
        """
        self.begun = True
        await self._idle(grace_s, hurry)
        self.over = True
        for limit in self._limits:
            limit.reschedule(0)
        await self._idle(FAREWELL_S, lambda: False)

    async def _idle(self, seconds: float, hurry: Callable[[], bool]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.running and not hurry():  # noqa: ASYNC110 - a signal changes it
                    await asyncio.sleep(_TICK_S)


def _shutting_down() -> ApiError:
    return ApiError(
        "The service is stopping. Ask again in a few seconds, or ask another one.",
        "shutting_down",
        retry_after_s=5,
    )
