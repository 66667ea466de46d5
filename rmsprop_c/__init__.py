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
import importlib.util
import os
from typing import TYPE_CHECKING

try:
    from . import _core  # noqa: F401  # tells an unbuilt checkout
except ImportError:
    if importlib.util.find_spec(f"{__name__}._core") is not None:
        raise
    _here = os.path.dirname(os.path.abspath(__file__))
    raise ImportError(
        f"{_here} is the source of rmsprop_c, in which nothing is compiled, and Python looks there "
        f"before it looks for an installed package: run 'pip install -e .' in "
        f"{os.path.dirname(_here)}, or start Python in another folder"
    ) from None

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
    # Of these the dataclasses take 6 ms to make, and the integrations need their libraries.
    _LATER = ("schedules", "scipy", "sklearn", "torch")

    def __getattr__(name):
        """Imports a module of the package when it is asked for."""
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(f"{__name__}.{name}")

    def __dir__():
        return sorted({*globals(), *__all__})


def get_include() -> str:
    """Folder of ``rmsprop.h``, for C code and for Cython code that cimports `rmsprop_c._core`."""
    return os.path.join(os.path.dirname(__file__), "include")
