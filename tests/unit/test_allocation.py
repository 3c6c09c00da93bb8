"""What is asked of the allocator: in a process of its own, since it holds until its end."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from fleet_worker.adapters import allocation

ALLOCATE_IN_THREADS = """
import re, sys, threading
from fleet_worker.adapters import allocation
if sys.argv[1] == "one":
    assert allocation.share_one_arena()
together = threading.Barrier(5)
def allocate():
    held = [bytes(5_000 + index) for index in range(2_000)]
    together.wait(20)
    together.wait(20)
    del held
threads = [threading.Thread(target=allocate) for _ in range(4)]
[thread.start() for thread in threads]
together.wait(20)
maps = open("/proc/self/smaps").read()
together.wait(20)
[thread.join() for thread in threads]
# An arena of a thread's own is reserved as 64 MB, of which little can be used at first: that stays without permissions.
print(len(re.findall(r" ---p 00000000 00:00 0 *$", maps, flags=re.MULTILINE)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas")
def test_threads_share_one_arena() -> None:
    def unused_parts(arenas: str) -> int:
        command = [sys.executable, "-c", ALLOCATE_IN_THREADS, arenas]
        return int(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)

    assert unused_parts("one") < unused_parts("many")


HOLES_ARE_LEFT = """
import re
from fleet_worker.adapters import allocation
def anonymous_kb():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
blocks = [bytearray(20_000) for _ in range(5_000)]
del blocks[:-1]
before = anonymous_kb()
allocation.RETURN_EVERY_S = 0
assert allocation.Returns().if_due()
print(before - anonymous_kb())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps holes that it can be asked for")
def test_holes_go_back_to_the_kernel() -> None:
    command = [sys.executable, "-c", HOLES_ARE_LEFT]
    assert int(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout) > 50_000


def test_it_is_not_done_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "RETURN_EVERY_S", 3600)
    assert not allocation.Returns().if_due()
