"""Configs, states and names of other frameworks."""

import numpy as np
import pytest

import rmsprop_c
from rmsprop_c import Optimizer, RMSprop, get, schedules
from rmsprop_c.presets import PRESETS


def test_an_epsilon_of_none_is_that_of_keras_after_2_0():
    assert RMSprop(epsilon=None).epsilon == 1e-7
    assert RMSprop.from_config({"lr": 0.1, "epsilon": None}).get_config()["epsilon"] == 1e-7
    opt = RMSprop()
    opt.epsilon = None
    assert opt.epsilon == 1e-7


TF_KERAS = {
    "name": "RMSprop",
    "learning_rate": 0.01,
    "decay": 0.0,
    "rho": 0.8,
    "momentum": 0.5,
    "epsilon": 1e-7,
    "centered": True,
}


KERAS_3 = {
    "name": "rmsprop",
    "learning_rate": 0.01,
    "weight_decay": None,
    "clipnorm": 1.0,
    "global_clipnorm": None,
    "clipvalue": None,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
    "rho": 0.8,
    "momentum": 0.0,
    "epsilon": 1e-7,
    "centered": False,
}


@pytest.mark.parametrize(("framework", "config"), [("tf_keras", TF_KERAS), ("keras3", KERAS_3)])
def test_a_later_config_is_sent_to_like_which_takes_it(framework, config):
    message = rf"Unexpected keyword.*: use RMSprop.like\('{framework}', \*\*config\)$"
    with pytest.raises(TypeError, match=message):
        RMSprop.from_config(config)
    with pytest.raises(TypeError, match=message):
        get({"class_name": "RMSprop", "config": config})
    opt = RMSprop.like(framework, **config)
    assert (opt.lr, opt.rho, opt.momentum) == (0.01, 0.8, config["momentum"])


@pytest.mark.parametrize("framework", PRESETS)
def test_like_takes_a_serialized_schedule(framework):
    schedule = schedules.ExponentialDecay(0.1, 10, 0.5)
    opt = RMSprop.like(framework, learning_rate=schedules.serialize(schedule))
    assert opt.get_config()["lr"] == schedules.serialize(schedule)
    assert opt.lr == 0.1


def test_integrations_load_when_they_are_asked_for():
    assert rmsprop_c.scipy.rmsprop.__module__ == "rmsprop_c.scipy"
    assert rmsprop_c.sklearn.MLPClassifier is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        rmsprop_c.nothing  # noqa: B018


def test_no_folder_of_a_checkpoint_is_named_as_it_was_given(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        RMSprop().save(tmp_path / "none" / "run.npz")
    assert raised.value.filename == str(tmp_path / "none" / "run.npz")
    assert ".part" not in str(raised.value)
    assert str(raised.value).endswith("run.npz'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: b"", "it is not a file that save wrote$"),
        (lambda text: b"hello", "it is not a file that save wrote$"),
        (lambda text: text[:20], "it was cut off: it ends too early$"),
        (lambda text: text[:-200], "it was cut off: it ends too early$|should have .* cut off"),
        (lambda text: text[:-5], "it was cut off: it ends too early$"),
    ],
)
def test_a_foreign_or_cut_checkpoint_is_called_that(change, message, tmp_path):
    path, opt = tmp_path / "run.npz", RMSprop()
    opt.step([np.ones(3)], [np.ones(3)])
    opt.save(path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as raised:
        RMSprop.load(path)
    assert "meta" not in str(raised.value)


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"state": {0: {"square_avg": np.ones(3)}}}, ValueError, "parameter 0 has no step, only"),
        ({"state": {0: {"step": "x", "square_avg": np.ones(3)}}}, ValueError, "step .* is 'x'"),
        ({"state": {0: {"step": 1.5, "square_avg": np.ones(3)}}}, ValueError, "whole number"),
        ({"state": []}, TypeError, r"state\['state'\] is of type list"),
        ({"state": {0: []}}, TypeError, "state of parameter 0 is of type list"),
        ({"state": {}, "param_groups": [{}]}, ValueError, "has no params"),
    ],
)
def test_an_incomplete_state_of_torch_is_named(state, error, message):
    opt = RMSprop()
    opt.build([np.ones(3)])
    with pytest.raises(error, match=message):
        opt.import_state("torch", {"param_groups": [{"params": [0]}], **state})
    assert opt.iterations == 0


def test_a_state_of_keras_without_a_count_is_named():
    opt = RMSprop()
    opt.build([np.ones(3)])
    with pytest.raises(
        ValueError, match=r"^state\[0\], the iterations, is 'a'; it must be a whole"
    ):
        opt.import_state("keras3", ["a", 0.1, np.ones(3)])


def test_the_base_class_can_still_be_derived_from():
    class Mine(Optimizer):
        pass

    Mine(clipnorm=1.0).step([np.ones(1)], [np.ones(1)])
