import pytest

from rmsprop_c import _core, set_num_threads

SUPPORTED = [isa for isa, supported in _core.compiled_isas().items() if supported]


@pytest.fixture(params=SUPPORTED)
def isa(request):
    """Each instruction set of this machine in turn."""
    chosen = _core.chosen_isa()
    _core.use_isa(request.param)
    yield request.param
    _core.use_isa(chosen)


@pytest.fixture
def team_at_any_size():
    """Steps use the threads that were asked for, and release the GIL, from one element on."""
    before = _core.configure_minimums(unlocked=1, persistent=1)
    yield
    _core.configure_minimums(**before)
    set_num_threads(None)
