"""What surrounds a vLLM engine, without vLLM."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from engines.protocol import EngineFailed
from engines.vllm import VllmEngine, VllmStarter


class StubbornLaunch:
    """A launch whose process is there to be killed only after some tries."""

    def __init__(self):
        self.began, self.ended = threading.Event(), threading.Event()
        self.kills = 0

    def kill(self):
        self.kills += 1
        if self.kills == 3:
            self.ended.set()


@pytest.fixture
def starter():
    """A starter whose starts last until the launch's process is killed."""

    def start(launch, directory):
        launch.began.set()
        launch.ended.wait(5)
        raise EngineFailed("killed")

    starter = object.__new__(VllmStarter)
    starter._thread = ThreadPoolExecutor(1)
    starter._ending = set()
    starter._start = start
    yield starter
    starter._thread.shutdown()


@pytest.mark.parametrize("cancels", [1, 2, 3])
async def test_a_start_is_ended_however_often_it_is_cancelled(starter, cancels):
    launch = StubbornLaunch()
    starting = asyncio.create_task(starter._launch(launch, Path()))
    await asyncio.to_thread(launch.began.wait)

    for _ in range(cancels):
        starting.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await starting

    assert await asyncio.to_thread(launch.ended.wait, 2)


class ClosedMeanwhile(VllmEngine):
    """An engine that the event loop closes as soon as another thread has looked at it once."""

    def __init__(self, llm):
        self._looks = iter([llm])

    @property
    def _llm(self):
        return next(self._looks, None)


def test_an_engine_can_be_looked_at_while_it_is_closed():
    llm = SimpleNamespace(
        output_processor=SimpleNamespace(get_num_unfinished_requests=lambda: 2),
        engine_core=SimpleNamespace(
            resources=SimpleNamespace(
                engine_manager=SimpleNamespace(processes=[SimpleNamespace(pid=7)])
            )
        ),
    )

    assert ClosedMeanwhile(llm).running == 2
    assert ClosedMeanwhile(llm).pids == [7]
