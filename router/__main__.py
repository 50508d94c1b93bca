"""Where the `axion` command begins: what must hold before anything large is imported."""

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run the command line and return its exit status."""
    signal.signal(signal.SIGINT, _interrupted)
    try:
        from router.cli import main as command

        return command()
    except ImportError as error:
        sys.stderr.write(
            f"axion: the installation is damaged ({error}). Run: make clean && make serve\n"
        )
        return 1


def _interrupted(_: int, __: FrameType | None) -> None:
    """End at once and quietly: until the service listens, Ctrl-C has nothing to finish.

    A KeyboardInterrupt instead would surface in the middle of some library's import, with pages of
    traceback, or not at all.
    """
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
