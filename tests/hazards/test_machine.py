"""A minute of `machine.py`: long runs of anything, compared with `model.py` after each call."""

import machine
import pytest


@pytest.mark.slow
def test_long_runs_of_anything_are_as_the_model_has_them():
    machine.search(60, seed=0)
