"""The process that ends what a test run started, when that run is gone: begun by `orphans`, by this file's path, with nothing but the
standard library.

A process of its own, since a run that is killed can do nothing any more, and since Linux' parent-death signal would come when the thread
ends that started a process: threads here come and go. It holds its charges by file descriptors, so a number that the kernel gives
away anew is never taken for one of them.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import sys

GRACE_S = 3.0
"""From SIGTERM, which a container's and a demo's own children need, to SIGKILL."""
CHARGES_MAX = 10_000
_NUMBERS_MAX_BYTES = 65_536


class Keeper:
    """Numbers of processes come in by standard input, a line each."""

    def __init__(self, parent: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._unread = b""
        self._charges: set[int] = set()
        self._parent = os.pidfd_open(parent)
        self._selector.register(self._parent, selectors.EVENT_READ)
        self._selector.register(0, selectors.EVENT_READ)
        os.set_blocking(0, False)

    def run(self) -> None:
        """Until the parent is gone; then until they all are."""
        while self._parent not in self._turn(None):
            continue
        self._selector.unregister(self._parent)  # it would stir for ever
        self._take_over()
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._signal(number)
            while self._charges and self._turn(GRACE_S):
                continue

    def _turn(self, wait_s: float | None) -> set[int]:
        """What stirred. Empty after that time."""
        stirred = {key.fd for key, _ in self._selector.select(wait_s)}
        for ended in stirred & self._charges:
            self._charges.discard(ended)
            self._selector.unregister(ended)
            os.close(ended)
        if 0 in stirred:
            self._take_over()
        return stirred

    def _take_over(self) -> None:
        """All that was written so far."""
        with contextlib.suppress(BlockingIOError):
            while told := os.read(0, _NUMBERS_MAX_BYTES):
                *numbers, self._unread = (self._unread + told).split(b"\n")
                for number in numbers:
                    self._charge(int(number))
            with contextlib.suppress(KeyError):
                self._selector.unregister(0)  # its end; the parent's is told by its own descriptor

    def _charge(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended, and its parent knows already
            charge = os.pidfd_open(number)
            self._charges.add(charge)
            self._selector.register(charge, selectors.EVENT_READ)
            assert len(self._charges) <= CHARGES_MAX

    def _signal(self, number: signal.Signals) -> None:
        for charge in self._charges:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(charge, number)


if __name__ == "__main__":
    told_parent = int(sys.argv[1])
    keeper = Keeper(told_parent)
    print("ready", flush=True)
    keeper.run()
