"""`axion` with echo engines that take 50 ms a word: `python -m tests.slow_service serve …`."""

import sys

from engines.echo import EchoEngine
from router import cli

EchoEngine.__init__.__kwdefaults__["word_s"] = 0.05

if __name__ == "__main__":
    sys.exit(cli.main())
