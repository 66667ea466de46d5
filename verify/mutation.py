"""Changes of one place of a source text, and their judgement in processes of their own."""

import contextlib
import multiprocessing
import os
import signal
import time
from typing import NamedTuple

from shared import record, unexplained
from tqdm import tqdm

KILLED, SURVIVED, STILLBORN = "killed", "survived", "stillborn"


class Mutant(NamedTuple):
    """A change: source[start:end] becomes new."""

    start: int
    end: int
    new: str

    def apply(self, source):
        return source[: self.start] + self.new + source[self.end :]

    def show(self, source):
        """The line before and after, as reasons.json has it."""
        first = source.rfind("\n", 0, self.start) + 1
        last = source.find("\n", max(self.end, self.start))
        old = source[first:last]
        new = source[first : self.start] + self.new + source[self.end : last]
        return " -> ".join(" ".join(text.strip("\\ \n").split()) for text in (old, new))

    def line(self, source):
        return source.count("\n", 0, self.start) + 1


def survives(function, seconds):
    """Whether function() returns True in a child, in time, without a crash."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            os.setpgid(0, 0)
            code = 0 if function() else 1
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status == 0
        time.sleep(0.01)
    for kill in (os.killpg, os.kill):  # with what its tests have started
        with contextlib.suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def judge_all(work, jobs, processes=None):
    """{mutant: outcome} of all jobs, of which ``work(job)`` gives one each."""
    with multiprocessing.Pool(processes) as pool:
        judged = pool.imap_unordered(work, jobs)
        return dict(tqdm(judged, total=len(jobs), unit="mutant"))


def verdict(title, file, source, outcomes, least, partly):
    """Record what {mutant: outcome} says, unless it is a sample; the exit status of the check."""
    killed = [m for m, outcome in outcomes.items() if outcome == KILLED]
    alive = sorted(m for m, outcome in outcomes.items() if outcome == SURVIVED)
    total = len(killed) + len(alive)
    share = 100 * len(killed) / max(total, 1)
    figures = {
        "summary": f"{len(killed)} of {total} mutants of `{file}` killed ({share:.1f} %)",
        "survivors": {file: list(dict.fromkeys(m.show(source) for m in alive))},
    }
    print(figures["summary"])
    for mutant in alive:
        print(f"survived, line {mutant.line(source)}: {mutant.show(source)}")
    if not partly:
        record(title, figures)
    missing = unexplained("survivors", figures["survivors"])
    print(f"{len(missing)} survivors without a reason")
    return share < least or bool(missing)
