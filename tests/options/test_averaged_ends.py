"""averaged() sets back what can be set back."""

import numpy as np
import pytest
from common import assert_same_bits

from rmsprop_c import RMSprop


@pytest.mark.parametrize("form", ["list", "dict", "bare"])
@pytest.mark.parametrize("raising", [False, True])
def test_averaged_restores_what_can_be_restored_and_names_the_rest(form, raising):
    arrays = [np.ones(2)] if form == "bare" else [np.ones(2), np.ones((2, 3)), np.ones(2)]
    make = {
        "list": list,
        "dict": lambda x: dict(zip("abc", x, strict=False)),
        "bare": lambda x: x[0],
    }
    opt, params = RMSprop(use_ema=True), make[form](arrays)
    for _ in range(3):
        opt.step(params, make[form]([np.ones_like(x) for x in arrays]))
    before = [x.copy() for x in arrays]
    name = {"list": r"params\[0\]", "dict": r"params\['a'\]", "bare": "params"}[form]

    def evaluate():
        with opt.averaged(params):
            arrays[0].flags.writeable = False
            if raising:
                raise KeyError("in the body")

    with pytest.raises(ValueError, match=rf"^{name} \(.*read-only\) can't be set back") as raised:
        evaluate()
    assert isinstance(raised.value.__context__, KeyError) == raising
    for x, y in zip(arrays[1:], before[1:], strict=True):
        assert_same_bits(x, y)
    arrays[0].flags.writeable = True
    arrays[0][...] = before[0]
    opt.step(params, make[form]([np.ones_like(x) for x in arrays]))


def test_averaged_restores_a_dict_that_has_changed_meanwhile():
    params = {"a": np.ones(2), "b": np.ones(2)}
    opt = RMSprop(use_ema=True)
    for _ in range(3):
        opt.step(params, {"b": np.ones(2), "a": np.full(2, 3.0)})
    held, before = dict(params), {key: x.copy() for key, x in params.items()}
    with opt.averaged(params):
        params.clear()
    for key, x in held.items():
        assert_same_bits(x, before[key])

    def freeze():
        with opt.averaged({"b": held["b"], "a": held["a"]}):
            held["a"].flags.writeable = False

    with pytest.raises(ValueError, match=r"^params\['a'\] \(.*and still holds its average"):
        freeze()
    assert_same_bits(held["b"], before["b"])
