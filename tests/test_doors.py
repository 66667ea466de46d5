"""The doors into other libraries: what they stand on, and that nobody pays for those not used."""

import numpy as np

from rmsprop_c import RMSprop


def test_a_door_can_show_our_state_as_its_librarys_own():
    opt, other = RMSprop(lr=0.1, momentum=0.5), RMSprop(lr=0.1, momentum=0.5)
    params, same = [np.ones(3)], [np.ones(3)]
    opt.build(params)
    other.build(same)
    views = opt._views(writeable=True)
    assert list(views) == ["accumulator", "momentum"]
    values = [np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])]
    for (view,), value in zip(views.values(), values, strict=True):
        view[...] = value
    other.set_weights(values)
    opt.step(params, [np.ones(3)])
    other.step(same, [np.ones(3)])
    assert (params[0] == same[0]).all()
    assert all((view == x).all() for (view,), x in zip(views.values(), other.weights, strict=True))
    assert not any(view.flags.writeable for view in opt.weights)
