"""A process that is forked from the template and outlives it."""

import os
from multiprocessing import forkserver, popen_forkserver, util
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess


class Process(ForkServerProcess):
    """Like the fork server's own, but its sentinel tells of its own end only.

    The ordinary sentinel is a pipe that the fork server holds, so that the end of the fork server
    looks like the end of all its children.
    """

    @staticmethod
    def _Popen(process: BaseProcess) -> "_Popen":  # noqa: N802 - the name in multiprocessing
        return _Popen(process)


class _Popen(popen_forkserver.Popen):
    def _launch(self, process: BaseProcess) -> None:
        super()._launch(process)  # type: ignore[misc] # unknown to the stubs
        self._status = self.sentinel
        try:
            self.sentinel = os.pidfd_open(self.pid)
        except OSError:
            return  # it has ended already, as the ordinary sentinel tells too
        util.Finalize(self, os.close, (self.sentinel,))

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            if not wait([self.sentinel], 0 if flag == os.WNOHANG else None):
                return None
            try:
                self.returncode = forkserver.read_signed(self._status)
            except (OSError, EOFError):
                self.returncode = 255  # the fork server, which would know it, has ended
        return self.returncode
