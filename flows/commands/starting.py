"""Ctrl-C while the command's own code is still being imported: imported first, it ends the process without a word."""

from __future__ import annotations

import os
import signal
import sys


def _end(signum: int, _: object) -> None:
    os._exit(128 + signum)  # nothing was begun


def restore_interrupts() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt, as ever."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


_typed = sys.argv[0].endswith(("gptflow", "-m", "flows/__main__.py"))  # and not one who imports it, such as a test
if _typed and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # `nohup` and `&` ignore it
    signal.signal(signal.SIGINT, _end)
