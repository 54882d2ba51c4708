#!/bin/sh
# torch 2.13.0 for CPUs (Linux, with the libgomp it brings): as soon as a second Python thread has computed with torch, every
# operation of the first one that is shared out to threads takes several times as long, even while the second thread does
# nothing any more. Each has a team of OpenMP threads, a team lives as long as its thread, and once all of them together
# outnumber the CPUs, libgomp lets none of them spin: they sleep after every operation and are woken for the next. A thread
# that reads the next weights while another one computes is enough. torch.set_num_threads(1) in that thread, before
# it computes, avoids it: torch counts threads for each thread that sets them.
#
# Seen on two CPUs (2 × 38,400 numbers multiplied by two, every 0.1 ms; medians):
#   alone:                                      16.3 µs
#   beside a thread that has computed alone:    16.3 µs
#   beside a thread that has computed with two: 102.1 µs
#
# Needs two CPUs. Takes a minute.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/teams.py" <<'PYTHON'
import os
import statistics
import threading
import time

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # before libgomp counts them

import torch

torch.set_num_threads(2)
numbers = torch.randn(2, 38_400)
result = torch.empty_like(numbers)


def microseconds() -> float:
    taken = []
    for _ in range(3_000):
        begun = time.perf_counter()
        while time.perf_counter() - begun < 1e-4:
            pass
        begun = time.perf_counter()
        torch.mul(numbers, 2, out=result)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) * 1e6


def beside(threads: int) -> float:
    computed, end = threading.Event(), threading.Event()

    def other() -> None:
        torch.set_num_threads(threads)
        numbers.mul(3).sum()
        computed.set()
        end.wait()

    thread = threading.Thread(target=other)
    thread.start()
    computed.wait()
    time.sleep(0.2)
    took = microseconds()
    end.set()
    thread.join()
    return took


alone, one, two = microseconds(), beside(1), beside(2)
print(f"alone:                                      {alone:.1f} µs")
print(f"beside a thread that has computed alone:    {one:.1f} µs")
print(f"beside a thread that has computed with two: {two:.1f} µs")
assert one < 2 * alone and two > 2.5 * alone, "this has changed"
PYTHON
"$folder/env/bin/python" "$folder/teams.py"
