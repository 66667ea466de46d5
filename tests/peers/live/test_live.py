"""`RMSprop.like` computes what the frameworks that are installed compute, at every call.

Tolerances are those of tests/support/recorded.py. Run it in the peers' environment:
bench/.venv/bin/pytest tests/peers
"""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from cases import DTYPES, LR, grid, inputs
from frameworks import FRAMEWORKS, LaterTFKeras, trajectory
from recorded import assert_close, like, trajectory as our_trajectory

from rmsprop_c import RMSprop

PAGE = (Path(__file__).parents[3] / "docs" / "torch.md").read_text()
CASES = {f"{case.framework}-{case.name}": case for case in grid()}
MAIN = ("plain", "momentum=0.875", "centered", "momentum=0.875,centered")
EXCHANGED = [f"{framework}-{name}" for framework in ("torch", "keras3", "optax") for name in MAIN]
EXCHANGED += [
    "keras3-use_ema,ema_momentum=0.9375,gradient_accumulation_steps=4",
    "keras3-CosineDecay,momentum=0.875,weight_decay=0.25,gradient_accumulation_steps=4",
    "optax-momentum=0.875,nesterov",
    "optax-bias_correction",
]
# Arguments that both sides have. The frameworks' others choose an implementation.
SHARED = {
    "torch": "lr alpha eps weight_decay momentum centered maximize",
    "keras3": "learning_rate rho momentum epsilon centered weight_decay clipnorm clipvalue "
    "global_clipnorm use_ema ema_momentum ema_overwrite_frequency gradient_accumulation_steps",
    "tf1": "learning_rate decay momentum epsilon centered",
    "tf_keras": "learning_rate rho momentum epsilon centered",
    "optax": "learning_rate decay eps initial_scale eps_in_sqrt centered momentum nesterov "
    "bias_correction",
    "timm": "lr alpha eps weight_decay momentum centered decoupled_decay lr_in_momentum",
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_every_framework_is_repeated_at_every_call(name, dtype):
    case = CASES[name]
    expected_params, expected_averages = trajectory(case, dtype)
    steps = our_trajectory(case, dtype, *inputs(dtype, case.scale))
    for call, (params, averages) in enumerate(steps):
        assert_close(params, expected_params[call], case, dtype, f"call {call + 1}")
        if averages:
            expected = expected_averages[call]
            assert_close(averages, expected, case, dtype, f"averages, call {call + 1}")


LATER = [
    (name, dtype)
    for name, case in CASES.items()
    if case.framework == "keras3"
    and not {"use_ema", "gradient_accumulation_steps"} & case.arguments.keys()
    for dtype in DTYPES
    # tf_keras computes schedules in float32.
    if dtype == "float32" or not isinstance(case.arguments.get("learning_rate"), dict)
]


@pytest.mark.parametrize(("name", "dtype"), LATER)
def test_tf_keras_from_2_11_on_is_repeated_as_keras_3(name, dtype):
    case = CASES[name]
    start, grads = inputs(dtype, case.scale)
    theirs = LaterTFKeras(start, case.arguments)
    rates = dict(case.lr_at)
    for call, (params, _) in enumerate(our_trajectory(case, dtype, start, grads)):
        if call in rates:
            theirs.set_lr(rates[call])
        theirs.step(grads[call])
        assert_close(params, theirs.params(), case, dtype, f"call {call + 1}")


def test_the_config_of_tf_keras_is_taken_as_it_is():
    original = LaterTFKeras.original()
    given = {"momentum": 0.875, "weight_decay": 0.25, "global_clipnorm": 2.0, "rho": 0.75}
    opt = RMSprop.like("keras3", **original(LR, **given).get_config())
    expected = RMSprop.like("keras3", learning_rate=LR, ema_overwrite_frequency=100, **given)
    assert opt.get_config() == expected.get_config()
    with pytest.raises(ValueError, match=r"^averages of tf_keras begin at the parameters before"):
        RMSprop.like("keras3", **original(use_ema=True).get_config())
    with pytest.raises(ValueError, match=r"^jit_compile is of tf_keras"):
        RMSprop.like("tf_keras", **original().get_config())
    legacy = FRAMEWORKS["tf_keras"].original()().get_config()
    assert RMSprop.like("tf_keras", **legacy).get_config()["epsilon"] == 1e-7
    with pytest.raises(ValueError, match="legacy"):
        RMSprop.like("keras3", **legacy)


def test_averages_of_tf_keras_begin_at_the_parameters():
    """Which is why they raise: in Keras 3 and here they begin after the first step."""
    start, grads = inputs("float64", 1.0)
    theirs = LaterTFKeras(start, {"learning_rate": LR, "use_ema": True, "ema_momentum": 0.75})
    theirs.step(grads[0])
    for x, begin, after in zip(
        theirs.optimizer._model_variables_moving_average, start, theirs.params(), strict=True
    ):
        np.testing.assert_allclose(x.numpy(), 0.75 * begin + 0.25 * after, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXCHANGED)
def test_training_goes_on_after_state_came_over_and_after_it_went_back(name, dtype):
    # After 10 calls Keras is in the middle of a cycle of gradient_accumulation_steps=4.
    case = CASES[name]
    start, grads = inputs(dtype, case.scale)
    make = FRAMEWORKS[case.framework]
    theirs = make(start, case.arguments)
    for g in grads[:10]:
        theirs.step(g)
    params = theirs.params()
    opt = like(case, dtype)
    opt.build(params)
    opt.import_state(case.framework, theirs.state())
    for call, g in enumerate(grads[10:30], 11):
        theirs.step(g)
        opt.step(params, g)
        assert_close(params, theirs.params(), case, dtype, f"call {call}")

    theirs = make(params, case.arguments)
    theirs.load(opt.export_state(case.framework, theirs.state(), leaf=theirs.leaf))
    for call, g in enumerate(grads[30:], 31):
        theirs.step(g)
        opt.step(params, g)
        assert_close(params, theirs.params(), case, dtype, f"call {call}")


def multi_steps(optax, rmsprop):
    return optax.MultiSteps(rmsprop, 4)


WRAPPERS = {
    "MultiSteps": multi_steps,
    "MultiSteps that skip": lambda optax, rmsprop: optax.MultiSteps(
        rmsprop, 4, should_skip_update_fn=optax.skip_not_finite
    ),
    "apply_if_finite": lambda optax, rmsprop: optax.apply_if_finite(rmsprop, 3),
    "masked": lambda optax, rmsprop: optax.masked(rmsprop, [True, True]),
    "chain": lambda optax, rmsprop: optax.chain(optax.zero_nans(), rmsprop),
    "inject_hyperparams": lambda optax, _: optax.inject_hyperparams(optax.rmsprop)(LR),
}


def optax_steps(wrapped, state, params, steps):
    """As many steps along gradients that are the parameters."""
    optax = pytest.importorskip("optax")
    for _ in range(steps):
        updates, state = wrapped.update(params, state, params)
        params = optax.apply_updates(params, updates)
    return state, params


@pytest.mark.parametrize("name", WRAPPERS)
def test_state_inside_a_wrapper_of_optax_goes_over_and_back(name):
    optax = pytest.importorskip("optax")
    wrapped = WRAPPERS[name](optax, optax.rmsprop(LR))
    cycle = 4 if "MultiSteps" in name else 1
    start = [np.full(3, 0.5, np.float32), np.ones((), np.float32)]
    state, theirs = optax_steps(wrapped, wrapped.init(start), start, 2 * cycle)
    mine = [np.array(x) for x in theirs]
    opt = RMSprop.like("optax", learning_rate=LR)
    opt.build(mine)
    opt.import_state("optax", state)
    if cycle > 1:
        assert opt.iterations == 2
        opt.gradient_accumulation_steps = cycle
    _, theirs = optax_steps(wrapped, state, theirs, cycle)
    for _ in range(cycle):
        opt.step(mine, [x.copy() for x in mine])
    back = opt.export_state("optax", state)
    more, theirs = optax_steps(wrapped, back, mine, cycle)
    for _ in range(cycle):
        opt.step(mine, [x.copy() for x in mine])
    for x, y in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    if cycle > 1:
        assert more.gradient_step == opt.iterations == 4


def test_state_of_optax_in_the_middle_of_a_cycle_raises():
    optax = pytest.importorskip("optax")
    wrapped, start = multi_steps(optax, optax.rmsprop(LR)), [np.ones(3, np.float32)]
    state, _ = optax_steps(wrapped, wrapped.init(start), start, 3)
    opt = RMSprop.like("optax", learning_rate=LR)
    opt.build(start)
    for call in (opt.import_state, opt.export_state):
        with pytest.raises(ValueError, match=r"mini_step is 3.*; finish the cycle first"):
            call("optax", state)


def test_state_of_optaxs_adam_is_not_that_of_a_centered_rmsprop():
    optax = pytest.importorskip("optax")
    start = [np.ones(3, np.float32)]
    opt = RMSprop.like("optax", learning_rate=LR, centered=True)
    opt.build(start)
    with pytest.raises(ValueError, match="of another optimizer, a ScaleByAdamState, not that of"):
        opt.import_state("optax", optax.adam(LR).init(start))


@pytest.mark.parametrize("name", ["ema", "apply_every", "add_noise"])
def test_what_optax_keeps_beside_rmsprop_and_steps_depend_on_raises(name):
    optax = pytest.importorskip("optax")
    arguments = {"ema": (0.9,), "apply_every": (3,), "add_noise": (0.1, 0.5, 1)}[name]
    wrapped = optax.chain(optax.rmsprop(LR), getattr(optax, name)(*arguments))
    start = [np.ones(3, np.float32)]
    state, _ = optax_steps(wrapped, wrapped.init(start), start, 3)
    opt = RMSprop.like("optax", learning_rate=LR)
    opt.build(start)
    with pytest.raises(ValueError, match=r"which optax\.rmsprop does not keep; pass the state of"):
        opt.import_state("optax", state)


@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
@pytest.mark.parametrize("frequency", [None, 3])
@pytest.mark.parametrize("cycle", [None, 4])
def test_averages_follow_a_variable_without_gradients_as_in_keras(cycle, frequency):
    start, grads = inputs("float64", 1.0)
    arguments = {"learning_rate": LR, "use_ema": True, "ema_momentum": 0.9375}
    arguments |= {"gradient_accumulation_steps": cycle, "ema_overwrite_frequency": frequency}
    theirs = FRAMEWORKS["keras3"](start, arguments)
    opt, params = RMSprop.like("keras3", **arguments), [p.copy() for p in start]
    for g in grads[:20]:
        params[1] += 0.5  # another program trains it
        theirs.variables[1].assign(theirs.variables[1] + 0.5)
        tensors = [None if i == 1 else theirs.ops.convert_to_tensor(x) for i, x in enumerate(g)]
        theirs.optimizer.apply(tensors, theirs.variables)
        opt.step(params, [None if i == 1 else x for i, x in enumerate(g)])
        np.testing.assert_allclose(params[1], theirs.params()[1], rtol=1e-12)
        np.testing.assert_allclose(opt.weights[4], theirs.averages()[1], rtol=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_defaults_are_those_of_the_framework(framework):
    original = FRAMEWORKS[framework].original()
    signature = inspect.signature(original.__init__ if inspect.isclass(original) else original)
    shared = {name: signature.parameters[name].default for name in SHARED[framework].split()}
    required = {"learning_rate": LR} if shared.get("learning_rate") is signature.empty else {}
    given = RMSprop.like(framework, **shared | required)
    assert given.get_config() == RMSprop.like(framework, **required).get_config()


def test_the_page_shows_how_state_comes_over_from_pytorch():
    pytest.importorskip("torch")
    section = PAGE.split("## Leaving torch and coming back")[1]
    (code,) = re.findall(r"^```python\n(.*?import_state.*?)^```", section, re.DOTALL | re.MULTILINE)
    there = """
for p in model.parameters():
    p.grad = torch.arange(1.0, p.numel() + 1).reshape(p.shape)
theirs.step()
"""
    here = """
grads = [p.grad.numpy() for p in model.parameters()]
opt.step(params, grads)
"""
    scope = {}
    code = code.replace("# ... training in torch ...", there)
    exec(code.replace("# ... training here ...", here), scope)
    params = [p.copy() for p in scope["params"]]  # of torch's own memory
    scope["theirs"].step()
    scope["opt"].step(params, scope["grads"])
    for p, expected in zip(params, scope["model"].parameters(), strict=True):
        assert np.abs(p - expected.detach().numpy()).max() < 1e-6
    assert {float(x["step"]) for x in scope["theirs"].state.values()} == {3}
