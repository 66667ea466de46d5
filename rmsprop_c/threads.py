"""How many threads a step may use, and what was built: the module-level settings."""

import operator
import os
from typing import Any

from . import _core
from ._version import __version__


def quota(root: str = "/sys/fs/cgroup") -> float:
    """Processors that a container's CPU quota allows (cgroup v2, then v1); infinity without one."""

    def text(name: str) -> str:
        with open(os.path.join(root, name)) as file:  # pathlib would take 5 ms of the import
            return file.read()

    try:
        allowed, period = text("cpu.max").split()
    except (OSError, ValueError):
        try:
            allowed = text("cpu/cpu.cfs_quota_us")
            period = text("cpu/cpu.cfs_period_us")
        except OSError:
            return float("inf")
    try:
        allowed_us, period_us = int(allowed), int(period)
    except ValueError:  # "max"
        return float("inf")
    return allowed_us / period_us if allowed_us > 0 and period_us > 0 else float("inf")


def processors(root: str = "/sys/fs/cgroup") -> int:
    """Processors this process may use: its affinity, and the quota of its container rounded up."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        count = os.cpu_count() or 1
    allowed = quota(root)
    return max(1, min(count, -int(-allowed // 1) if allowed != float("inf") else count))


def checked_count(value: Any, name: str) -> int:
    """A thread count of at least 1, or an error that names it."""
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; it must be an integer, or None for the default")
    if not 1 <= count <= 1024:
        raise ValueError(f"{name} is {value!r}; it must be between 1 and 1024")
    return count


def from_environment() -> int:
    """RMSPROP_C_NUM_THREADS, 0 if it is not set."""
    text = os.environ.get("RMSPROP_C_NUM_THREADS", "")
    if not text:
        return 0
    try:
        return checked_count(int(text), "RMSPROP_C_NUM_THREADS")
    except ValueError:
        raise ImportError(
            f"RMSPROP_C_NUM_THREADS is {text!r}; it must be an integer between 1 and 1024"
        ) from None


_processors = processors()
_requested = from_environment()
_core.configure_threads(_requested, _processors)


def set_num_threads(n: int | None) -> None:
    """Choose how many threads steps use, in this process.

    By default only steps of 4 Mi elements and more may run on several threads, which are made for
    that step and end with it: no thread busy-waits afterwards, and NumPy's own threads are not
    disturbed. Such steps are tried both ways, and go on in the one that proves faster in this
    program.

    Parameters
    ----------
    n : int or None
        1: all steps are serial. n > 1: steps of 32 Ki elements and more use OpenMP's team of n
        threads, which stays awake between steps; worth it in programs that do nothing threaded
        between steps. None: what RMSPROP_C_NUM_THREADS says, else the default.

    Notes
    -----
    The bits of the result do not depend on it. In a forked process, teams of the parent can't be
    used; there only the large steps of the default policy are threaded.
    """
    global _requested
    _requested = from_environment() if n is None else checked_count(n, "n")
    _core.configure_threads(_requested, _processors)


def get_num_threads() -> int:
    """The largest number of threads that a step would use now.

    It is what `set_num_threads` or RMSPROP_C_NUM_THREADS asked for, or else the least of OpenMP's
    own limit (OMP_NUM_THREADS, threadpoolctl), the process's affinity and its container's quota.
    """
    if not _core.openmp_version():
        return 1
    return _requested or min(_core.openmp_max_threads(), _processors)


def build_info() -> dict[str, Any]:
    """What was built and what was chosen on this machine.

    Returns
    -------
    dict
        ``version``, ``compiler``, ``openmp`` (its date, or None), ``isas`` (compiled instruction
        sets, mapped to whether this processor supports them), ``isa`` (the chosen one), ``roots``
        (by dtype, what it computes square roots with: ``"fma"``, or ``"sqrt"`` for the
        processor's own) and ``num_threads``.
    """
    return {
        "version": __version__,
        "compiler": _core.compiler(),
        "openmp": _core.openmp_version() or None,
        "isas": _core.compiled_isas(),
        "isa": _core.chosen_isa(),
        "roots": _core.chosen_roots(),
        "num_threads": get_num_threads(),
    }
