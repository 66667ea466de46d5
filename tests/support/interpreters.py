"""Code in a new interpreter, and a model for steps in threads."""

import os
import subprocess
import sys
import time

import numpy as np

from rmsprop_c import (
    reference,
)


def python(code, timeout=120, **environment):
    """What a new interpreter prints; a hang or a crash fails the test."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def expected(params, grads, steps):
    params = [p.copy() for p in params]
    accumulators = [np.zeros_like(p) for p in params]
    for t in range(steps):
        reference.step(params, grads, accumulators, t)
    return params


def sleeping(thread, deadline=20):
    """Wait until a thread sleeps, as Linux says, and keeps on sleeping while others can run."""
    path, seen = f"/proc/self/task/{thread.native_id}/stat", 0
    end = time.monotonic() + deadline
    while seen < 5 and time.monotonic() < end:
        time.sleep(0.01)
        with open(path) as stat:
            seen = seen + 1 if stat.read().rpartition(")")[2].split()[0] == "S" else 0
