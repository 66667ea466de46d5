"""A loaded run continues with the same bits."""

import json
import zipfile

import naive_checkpoints as naive
import numpy as np
import pytest
from checkpoints import through_a_file
from fuzz import CORPUS, seeds
from hypothesis import given, strategies as st
from option_sets import (
    OPTION_SETS,
    as_form,
    assert_same_future,
    assert_same_snapshot,
    copied,
    everything,
    examples,
    made,
    model,
    options,
)

from rmsprop_c import RMSprop, schedules

SCHEDULES = {
    "CosineDecay": schedules.CosineDecay(0.1, 4, warmup_target=0.3, warmup_steps=2),
    "CosineDecayRestarts": schedules.CosineDecayRestarts(0.1, 2, m_mul=0.5),
    "ExponentialDecay": schedules.ExponentialDecay(0.1, 3, 0.7, staircase=True),
    "InverseTimeDecay": schedules.InverseTimeDecay(0.1, 2, 0.5),
    "PiecewiseConstantDecay": schedules.PiecewiseConstantDecay([2, 5], [0.1, 1 / 3, 0.01]),
    "PolynomialDecay": schedules.PolynomialDecay(0.1, 4, power=2.0, cycle=True),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@examples(150)
@given(
    arguments=options((0.01, *SCHEDULES.values())),
    seed=st.integers(0, 99),
    calls=st.integers(0, 8),
    form=st.sampled_from(["list", "tuple", "dict", "bare"]),
    order=st.sampled_from("CF"),
)
def test_a_loaded_run_continues_any_options_with_the_same_bits_also_within_a_cycle(
    tmp_path, arguments, seed, calls, form, order
):
    if form == "bare":
        arguments = {k: v for k, v in arguments.items() if "scale" not in k and "excl" not in k}
    opt = made(arguments, form)
    params, grads = model("mixed", 9, seed, nonfinite=arguments.get("nonfinite") == "skip")
    if form == "bare":
        params, grads = params[:1], [g[:1] for g in grads]
    params = [np.array(x, order=order) for x in params]
    for g in grads[:calls]:
        opt.step(as_form(params, form), as_form(copied(g), form))
    before = everything(opt)
    twin = through_a_file(opt, tmp_path / "run.npz")
    assert everything(twin) == everything(opt) == before
    assert_same_future(opt, twin, params, grads[calls:], form)


@pytest.mark.parametrize("calls", range(8))
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_goes_on_where_it_was(name, calls, tmp_path):
    assert set(SCHEDULES) == set(schedules.KNOWN)
    opt = RMSprop(lr=SCHEDULES[name], gradient_accumulation_steps=2)
    params, grads = model("mixed", 14, 3)
    for g in grads[:calls]:
        opt.step(params, g)
    twin = through_a_file(opt, tmp_path / "run.npz")
    assert twin._get_objects()[0] == SCHEDULES[name]
    assert_same_future(opt, twin, params, grads[calls:], "list")


def test_the_naive_way_begins_decay_again(tmp_path):
    opt, twin = RMSprop(decay=0.5), RMSprop(decay=0.5)
    params, grads = model("mixed", 4, 0)
    twin.build(params)
    for g in grads[:3]:
        opt.step(params, g)
    naive.save_in_place(opt, tmp_path / "run.npz")
    naive.resume(twin, tmp_path / "run.npz")
    assert twin.get_weights()[0].tobytes() == opt.get_weights()[0].tobytes()
    with pytest.raises(AssertionError, match="params"):
        assert_same_future(opt, twin, params, grads[3:], "list")


class Halving:
    def __init__(self, start):
        self.start = start

    def __call__(self, step):
        return self.start / 2**step

    def get_config(self):
        return {"start": self.start}


class Named(RMSprop):
    def __init__(self, label="", **arguments):
        super().__init__(**arguments)
        self.label = label

    def get_config(self):
        return super().get_config() | {"label": self.label}


def test_classes_of_ones_own_come_back(tmp_path):
    opt = Named("ü\n", lr=Halving(0.5), momentum=0.5)
    params, grads = model("mixed", 6, 1)
    opt.step(params, grads[0])
    twin = through_a_file(opt, tmp_path / "run.npz", custom_objects={"Halving": Halving})
    assert type(twin) is Named
    assert twin.label == "ü\n"
    assert_same_future(opt, twin, params, grads[1:], "list")
    with pytest.raises(ValueError, match=r"not a usable .*: Unknown schedule: Halving"):
        Named.load(tmp_path / "run.npz")
    with pytest.raises(ValueError, match="it holds a 'Named', not a 'RMSprop'"):
        RMSprop.load(tmp_path / "run.npz")


@pytest.mark.parametrize("keys", [(0, 1), ("1", 1), (-(2**70), "\ud800"), ("", "a" * 9999)])
def test_keys_keep_their_types(keys, tmp_path):
    opt = RMSprop(
        lr_scale=dict(zip(keys, (0.5, 2.0), strict=True)),
        exclude_from_weight_decay=keys[1:],
        weight_decay=0.5,
    )
    twin = through_a_file(opt, tmp_path / "fresh.npz")
    params = {key: np.ones(3) for key in keys}
    opt.step(params, {key: np.ones(3) for key in keys})
    again = through_a_file(opt, tmp_path / "run.npz")
    twin.step({key: np.ones(3) for key in keys}, {key: np.ones(3) for key in keys})
    for found in (twin, again):
        assert_same_snapshot(found, opt)
        assert found._keys() == keys
        assert repr(found) == repr(opt)


@pytest.mark.parametrize("form", ["list", "dict"])
def test_a_model_without_arrays_and_one_of_64_dimensions_come_back(form, tmp_path):
    dims = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32
    for params in ([], [np.zeros((1,) * dims), np.zeros((0, 10**6), np.float32)]):
        opt = RMSprop()
        opt.build(dict(enumerate(params)) if form == "dict" else params)
        assert_same_snapshot(through_a_file(opt, tmp_path / "run.npz"), opt)


def test_state_of_any_bits_comes_back(tmp_path):
    opt = RMSprop()
    values = np.frombuffer(np.random.default_rng(0).bytes(8 * 4096), np.float64)
    opt.build([values, values.view(np.float32)])
    opt.iterations = 2**62
    with np.errstate(all="ignore"):
        opt.set_weights([values, values.view(np.float32)])
    twin = through_a_file(opt, tmp_path / "run.npz")
    assert [x.tobytes() for x in twin.weights] == [x.tobytes() for x in opt.weights]
    assert twin.iterations == 2**62


@pytest.mark.parametrize("name", OPTION_SETS)
def test_numpy_alone_reads_it(name, tmp_path):
    opt = RMSprop(**OPTION_SETS[name])
    params, grads = model("mixed", 4, 2)
    for g in grads:
        opt.step(params, g)
    opt.save(tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz", allow_pickle=False) as archive:
        meta = json.loads(archive["meta"].tobytes())
        assert meta["iterations"] == opt.iterations
        assert RMSprop.from_config(meta["config"]).get_config() == opt.get_config()
        slots = opt._snapshot().slots
        assert archive.files == ["meta"] + [f"{slot}.{i}" for slot in slots for i in range(5)]
        for slot, arrays in slots.items():
            for i, x in enumerate(arrays):
                found = archive[f"{slot}.{i}"]
                assert (found.dtype, found.shape, found.tobytes()) == (
                    x.dtype,
                    x.shape,
                    x.tobytes(),
                )
    with zipfile.ZipFile(tmp_path / "run.npz") as archive:
        assert archive.testzip() is None


@pytest.mark.parametrize("name", OPTION_SETS)
def test_equal_states_make_equal_bytes(name, tmp_path):
    opts = [RMSprop(**OPTION_SETS[name]) for _ in range(2)]
    params, grads = model("mixed", 5, 2)
    for opt in opts:
        own = copied(params)
        for g in grads:
            opt.step(own, copied(g))
    for i, opt in enumerate((*opts, opts[0])):
        opt.save(tmp_path / f"{i}")
    through_a_file(opts[0], tmp_path / "0").save(tmp_path / "3")
    assert len({(tmp_path / str(i)).read_bytes() for i in range(4)}) == 1


def test_files_of_this_format_stay_readable_and_are_still_written_so(tmp_path):
    written = seeds()
    assert {path.stem for path in CORPUS.glob("*.npz")} == set(written)
    for name, text in written.items():
        assert (CORPUS / f"{name}.npz").read_bytes() == text
        through_a_file(RMSprop.load(CORPUS / f"{name}.npz"), tmp_path / name)
        assert (tmp_path / name).read_bytes() == text
