"""RMSprop for CPUs: the optimizer of Keras 2.0, exact to the bit, at the speed of the processor.

>>> import numpy as np
>>> from rmsprop_c import RMSprop
>>> params = [np.array([3.0, -2.0])]
>>> opt = RMSprop(lr=0.01)
>>> for _ in range(500):
...     opt.step(params, [2 * params[0]])   # the gradient of sum(w**2)
>>> bool(abs(params[0]).max() < 0.01)
True
"""

import importlib
import os
from typing import TYPE_CHECKING

from . import constraints
from ._version import __version__
from .optimizer import Optimizer
from .rmsprop import RMSprop, deserialize, get, serialize
from .threads import build_info, get_num_threads, set_num_threads

__all__ = [
    "Optimizer",
    "RMSprop",
    "__version__",
    "build_info",
    "constraints",
    "deserialize",
    "get",
    "get_include",
    "get_num_threads",
    "schedules",
    "serialize",
    "set_num_threads",
]

if TYPE_CHECKING:
    from . import schedules
else:

    def __getattr__(name):
        """Imports `schedules` when it is asked for: its dataclasses take 6 ms to make."""
        if name != "schedules":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(f"{__name__}.schedules")

    def __dir__():
        return sorted({*globals(), *__all__})


def get_include() -> str:
    """Folder of ``rmsprop.h``, for C code and for Cython code that cimports `rmsprop_c._core`."""
    return os.path.join(os.path.dirname(__file__), "include")
