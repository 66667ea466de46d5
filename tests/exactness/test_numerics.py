"""Errors stay within the bounds of docs/numerics.md, and no cut through a model changes a bit."""

import decimal
import json
import math

import numpy as np
import pytest
from common import assert_same_bits
from error_bounds import (
    DIGITS,
    KEPT,
    SEARCHED,
    WORST_CASES,
    cancellation,
    judge,
    sample,
    spread,
    wide,
)
from hypothesis import assume, given, settings, strategies as st

from rmsprop_c import RMSprop, reference, set_num_threads

DTYPES = ("float32", "float64")
CASES = json.loads(WORST_CASES.read_text())
STATE = ("a", "m", "mean")


def errors(start, scalars, clipnorm=None, **formula):
    """The errors of a step of the package; `scalars` are in the dtype of the arrays."""
    arguments = {name: x.item() for name, x in scalars.items() if name not in ("rate", "scale")}
    switches = {name: value for name, value in formula.items() if name != "scaled"}
    opt = RMSprop(**(switches | arguments), clipnorm=clipnorm)
    p = start["p"].copy()
    opt.build([p])
    names = [name for name in STATE if name in start]
    opt.set_weights([start[name] for name in names])
    opt.step([p], [start["g"]])
    found = {"p": p, **dict(zip(names, opt.weights, strict=True))}
    return judge(start, found, scalars, **formula)


def drawn(rng, n, dtype, zero=False):
    """A sample of which all share the scalars; with `zero` p is 0 and will show the step itself."""
    values = sample(rng, n, dtype, shared=True)
    start = {name: values[name] for name in ("p", "g", "a")}
    if zero:
        start["p"] = np.zeros_like(start["p"])
    return start, {name: values[name][0] for name in ("lr", "rho", "epsilon")}


@pytest.mark.parametrize("epsilon_in_sqrt", [False, True], ids=["epsilon out", "epsilon in"])
@pytest.mark.parametrize(("dtype", "n"), [("float32", 25_000), ("float64", 200)])
def test_steps_of_random_exponents_stay_within_the_bound(isa, dtype, n, epsilon_in_sqrt):
    rng = np.random.default_rng(7)
    largest = {}
    for batch in range(40):  # a million samples of float32
        start, scalars = drawn(rng, n, dtype, zero=batch % 2)
        for name, found in errors(start, scalars, epsilon_in_sqrt=epsilon_in_sqrt).items():
            largest[name] = max(largest.get(name, 0), found.max())
    assert max(largest.values()) <= 1, largest
    assert largest["p"] > 0.95, "the weight's bound is loose"
    assert largest["a"] > 0.7, "the accumulator's is"
    assert largest["d"] > 0.45, "the step's is"


def numbers(dtype, low, high):
    """Positive numbers with any mantissa and exponents from low to high - 1."""
    bits = np.finfo(dtype).nmant
    mantissa = st.integers(0, 2**bits - 1) | st.integers(0, 3).map(lambda k: 2**bits - 1 - k)
    return st.builds(
        lambda m, e: math.ldexp(1 + m * 2.0**-bits, e), mantissa, st.integers(low, high - 1)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_step_of_any_numbers_stays_within_the_bound(dtype, data):
    span = 30 if dtype == "float32" else 250
    real = np.dtype(dtype).type
    draw = {
        "p": numbers(dtype, -span, span) | st.just(0.0),
        "g": numbers(dtype, -span, span),
        "a": numbers(dtype, -2 * span, 2 * span) | st.just(0.0),
        "lr": numbers(dtype, -20, 8),
        "rho": numbers(dtype, -10, 0) | st.integers(1, 10).map(lambda k: 1 - 2.0**-k),
        "epsilon": numbers(dtype, -span, 1) | st.just(0.0),
    }
    values = {name: real(data.draw(strategy, name)) for name, strategy in draw.items()}
    assume(values["rho"] < 1)
    signs = data.draw(st.tuples(st.sampled_from([-1, 1]), st.sampled_from([-1, 1])))
    start = {name: np.full(19, values[name]) for name in ("p", "g", "a")}  # a vector, and a tail
    start["p"] *= real(signs[0])
    start["g"] *= real(signs[1])
    scalars = {name: values[name] for name in ("lr", "rho", "epsilon")}
    for name, found in errors(start, scalars).items():
        assert (found == found[0]).all()
        assert found[0] <= 1, (name, found[0])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['dtype']} {case['quantity']}")
def test_the_worst_cases_found_have_the_errors_recorded(isa, case):
    real = np.dtype(case["dtype"]).type
    values = {name: real(float.fromhex(case[name])) for name in ("p", "g", "a")}
    scalars = {name: real(float.fromhex(case[name])) for name in ("lr", "rho", "epsilon")}
    start = {name: np.full(35, x) for name, x in values.items()}  # vectors, and a tail
    found = errors(start, scalars, **case["formula"])[case["quantity"]]
    np.testing.assert_allclose(found, case["ratio"], rtol=1e-6)  # of the error, not of the result
    assert (found <= 1).all()


def test_the_worst_cases_found_come_near_the_bounds():
    least = {"a": 0.97, "d": 0.9, "p": 0.999}
    for dtype in DTYPES:
        for quantity, formula, _ in SEARCHED:
            kind = {"dtype": dtype, "quantity": quantity, "formula": formula}
            found = [case["ratio"] for case in CASES if kind.items() <= case.items()]
            assert len(found) == KEPT
            assert max(found) > least[quantity], kind


FORMULAS = {
    "momentum": {"momentum": True},
    "momentum, epsilon in": {"momentum": True, "epsilon_in_sqrt": True},
    "momentum, lr outside": {"momentum": True, "lr_in_momentum": False},
    "Nesterov": {"momentum": True, "nesterov": True},
    "Nesterov, lr outside": {"momentum": True, "nesterov": True, "lr_in_momentum": False},
    "centered": {"centered": True},
    "centered, epsilon in": {"centered": True, "epsilon_in_sqrt": True},
    "centered, Nesterov": {"centered": True, "momentum": True, "nesterov": True},
    "weight decay": {"weight_decay": True},
    "weight decay, momentum": {"weight_decay": True, "momentum": True},
    "decoupled": {"weight_decay": True, "decoupled_weight_decay": True},
    "clipnorm": {"scaled": True},
    "clipnorm, weight decay": {"scaled": True, "weight_decay": True},
    "clipnorm, centered": {"scaled": True, "centered": True},
}


def drawn_for(formula, rng, n, dtype, zero):
    """A sample for a formula: start, scalars and clipnorm."""
    start, scalars = drawn(rng, n, dtype, zero)
    real = start["p"].dtype.type
    lr, rho, scale = scalars["lr"], scalars["rho"], real(0.3 if formula.get("scaled") else 1)
    g = scale * start["g"]
    good = np.ones(n, bool)
    if formula.get("weight_decay"):
        scalars["weight_decay"] = spread(rng, 1, dtype, -10, 0)[0]
        scalars["rate"] = real(lr.item() * scalars["weight_decay"].item())
        if not formula.get("decoupled_weight_decay"):
            added = scalars["weight_decay"] * start["p"]
            g = g + added
            good &= np.abs(g) > 1e-3 * np.abs(added)  # it has digits left
    if formula.get("centered"):
        signs = rng.choice(np.array([-1, 1], dtype), n)
        start["mean"] = signs * np.sqrt(start["a"]) * real(0.999) * spread(rng, n, dtype, -8, 0)
        a = rho * start["a"] + (1 - rho) * g * g
        mean = rho * start["mean"] + (1 - rho) * g
        good &= a - mean * mean > 1e-3 * a  # so has this
    if formula.get("momentum"):
        scalars["momentum"] = spread(rng, 1, dtype, -4, 0)[0]
        d = g / (np.sqrt(start["a"]) + scalars["epsilon"])
        if formula.get("lr_in_momentum", True):
            d = lr * d
        start["m"] = -d * spread(rng, n, dtype, -8, 8)
    start = {name: x[good] for name, x in start.items()}
    clipnorm = None
    if formula.get("scaled"):
        norm = reference.global_norm([start["g"]])
        clipnorm = norm * 0.3
        scalars["scale"] = real(clipnorm / norm)
    return start, scalars, clipnorm


@pytest.mark.parametrize(("dtype", "n"), [("float32", 30_000), ("float64", 200)])
@pytest.mark.parametrize("name", FORMULAS)
def test_every_formula_stays_within_its_bound(name, dtype, n):
    formula = FORMULAS[name]
    rng = np.random.default_rng(8)
    largest = {}
    for batch in range(12):
        start, scalars, clipnorm = drawn_for(formula, rng, n, dtype, zero=batch % 3 == 0)
        for quantity, found in errors(start, scalars, clipnorm, **formula).items():
            largest[quantity] = max(largest.get(quantity, 0), found.max())
    assert max(largest.values()) <= 1, largest
    assert min(largest.values()) > 0.2, largest


@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_of_parameters_stay_within_their_bound(dtype):
    rng = np.random.default_rng(11)
    real = np.dtype(dtype).type
    p, ema = (
        rng.choice(np.array([-1, 1], dtype), 2000) * spread(rng, 2000, dtype, -6, 6) for _ in "pe"
    )
    opt = RMSprop(lr=0.0, use_ema=True, ema_momentum=real(0.7).item())
    opt.build([p])
    opt.set_weights([1, np.ones_like(p), ema])  # the first update would begin again
    opt.step([p], [np.ones_like(p)])
    with decimal.localcontext(DIGITS):
        given = (opt.weights[1], ema, p, real(0.7), 1 - real(0.7), np.finfo(dtype).eps / 2)
        found, ema, p, mu, c, u = (wide(np.asarray(x, dtype)) for x in given)
        bound = u * (np.abs(found) + np.abs(mu * ema) + np.abs(c * p))
        ratio = np.abs(found - (mu * ema + c * p)) / bound
    assert 0.5 < ratio.max() <= 1


def test_a_centered_step_has_no_such_bound():
    # What is constant but for a thousandth loses its digits in a - mean^2, those of float32 first.
    assert cancellation(1.0, "float32") < 10 * 2.0**-24
    assert cancellation(1e-3, "float32") > 1e5 * 2.0**-24
    assert cancellation(1e-3, "float64") > 1e5 * 2.0**-53


@pytest.mark.parametrize("rho", [0.9, 0.3])
@pytest.mark.parametrize(("dtype", "n"), [("float32", 40_000), ("float64", 3000)])
def test_underflow_adds_one_and_a_half_smallest_numbers_to_the_accumulators_bound(dtype, n, rho):
    rng = np.random.default_rng(9)
    info = np.finfo(dtype)
    low, high = info.minexp - info.nmant, info.minexp + 8  # exponents of subnormals, and a few more
    g = spread(rng, n, dtype, low // 2 - 3, high // 2)
    a = np.where(rng.random(n) < 0.2, 0, spread(rng, n, dtype, low, high)).astype(dtype)
    p = np.zeros(n, dtype)
    rho, epsilon = info.dtype.type(rho), info.dtype.type(2.0**-30)
    opt = RMSprop(lr=1.0, rho=rho.item(), epsilon=epsilon.item())
    opt.build([p])
    opt.set_weights([a])
    opt.step([p], [g])
    with decimal.localcontext(DIGITS):
        given = (g, a, opt.weights[0], p, rho, 1 - rho, epsilon, info.eps / 2)
        g, a, a_found, p, rho, c, epsilon, u = (wide(np.asarray(x, dtype)) for x in given)
        least = wide(np.asarray(info.smallest_subnormal, dtype))
        exact = rho * a + c * g * g
        assert (2 * np.abs(a_found - exact) <= 6 * u * exact + 3 * least).all()
        # The step does not feel it: epsilon is far larger than the root of the smallest number.
        d = g / (np.sqrt(exact) + epsilon)
        assert (2 * np.abs(-p - d) <= 11 * u * d).all()


@pytest.mark.parametrize(("dtype", "stuck"), [("float32", 4), ("float64", 5)])
def test_without_gradients_accumulators_end_at_a_few_smallest_numbers(dtype, stuck):
    p = np.ones(3, dtype)
    opt = RMSprop(rho=0.9)
    opt.step([p], [np.array([1, 0, 1e-3], dtype)])
    for _ in range(1000 if dtype == "float32" else 7200):
        opt.step([p], [np.zeros(3, dtype)])
    least = np.finfo(dtype).smallest_subnormal
    assert_same_bits(opt.weights[0], np.array([stuck, 0, stuck], dtype) * least)
    flushing = RMSprop(rho=0.9, flush_subnormals=True)
    flushing.build([p])
    flushing.set_weights(opt.get_weights())
    flushing.step([p], [np.zeros(3, dtype)])
    assert_same_bits(flushing.weights[0], np.zeros(3, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_square_that_overflows_stops_a_weight_for_ever_and_infinity_makes_it_nan(dtype):
    root = np.sqrt(np.finfo(dtype).max)
    p, opt = np.ones(4, dtype), RMSprop()
    opt.step([p], [np.array([1, root * 1.001, np.inf, np.nan], dtype)])
    np.testing.assert_array_equal(opt.weights[0][1:], [np.inf, np.inf, np.nan])
    for _ in range(3):
        opt.step([p], [np.ones(4, dtype)])
    assert p[0] < 1
    np.testing.assert_array_equal(p[1:], [1, np.nan, np.nan])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_errs_by_no_more_than_its_tree_allows(dtype):
    rng = np.random.default_rng(10)
    for n in (1, 15, 300, 4096, 4097, 30_001):
        g = (rng.standard_normal(n) * 10.0 ** rng.uniform(-9, 9, n)).astype(dtype)
        with decimal.localcontext(DIGITS):
            exact = sum(decimal.Decimal(x) ** 2 for x in g.tolist()).sqrt()
            for cuts in ([], [n // 3], sorted(rng.integers(0, n + 1, 9))):
                parts = np.split(g, cuts)
                found = decimal.Decimal(reference.global_norm(parts))
                blocks = sum(-(-len(part) // 4096) for part in parts)
                # Of the sum: 255 additions in a lane, 4 of lanes, those of blocks, and a square.
                additions = 255 + 4 + math.ceil(math.log2(blocks)) + (dtype == "float64")
                assert abs(found / exact - 1) <= (additions + 2) * decimal.Decimal(2) ** -54


ANYHOW = {
    "plain": {"lr": 0.01, "decay": 0.1},
    "momentum, averages": {
        "momentum": 0.9,
        "nesterov": True,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 2,
        "weight_decay": 0.1,
    },
    "centered, decoupled, accumulated": {
        "centered": True,
        "epsilon_in_sqrt": True,
        "bias_correction": True,
        "weight_decay": 0.1,
        "decoupled_weight_decay": True,
        "gradient_accumulation_steps": 2,
        "maximize": True,
    },
    "clipped, flushed, cleared": {
        "clipvalue": 0.5,
        "flush_subnormals": True,
        "centered": True,
        "momentum": 0.5,
        "lr_in_momentum": False,
        "nonfinite": "skip",
        "zero_grad": True,
    },
}  # whose results do not depend on how a model is split into arrays: no norms


@pytest.fixture(scope="module")
def wholes():
    """One array, its gradients, and what the reference makes of them, by options and dtype."""
    found = {}
    for dtype in DTYPES:
        p = reference.spread_values(20_011, 1, -4, 3, dtype)
        grads = [reference.spread_values(p.size, 10**6 * t, -72, 4, dtype) for t in range(1, 5)]
        for name, options in ANYHOW.items():
            own = p.copy()
            oracle = reference.RMSprop([own], **options)
            for g in grads:
                oracle.step([own], [g.copy()])
            found[name, dtype] = p, grads, [own, *oracle.weights]
    return found


def scattered(rng, x, cuts):
    """The parts of `x`, each in a buffer of its own, any number of elements behind a cache line."""
    parts = []
    for part in np.split(x, cuts):
        buffer = np.empty(part.nbytes + 128, np.uint8)
        start = -buffer.ctypes.data % 64 + rng.integers(64 // x.itemsize) * x.itemsize
        parts.append(buffer[start : start + part.nbytes].view(x.dtype))
        parts[-1][...] = part
    return parts


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ANYHOW)
def test_bits_do_not_depend_on_splits_places_and_threads(
    name, dtype, threads, wholes, isa, team_at_any_size
):
    set_num_threads(threads)
    p, grads, expected = wholes[name, dtype]
    rng = np.random.default_rng([threads, len(name)])
    for count in (0, 1, 5, 300):
        cuts = np.sort(rng.integers(0, p.size + 1, count))  # equal ones make empty parts
        params, opt = scattered(rng, p, cuts), RMSprop(**ANYHOW[name])
        for g in grads:
            opt.step(params, scattered(rng, g, cuts))
        state = [np.concatenate(arrays) for arrays in opt._views().values()]
        for i, (found, whole) in enumerate(
            zip([np.concatenate(params), *state], expected, strict=True)
        ):
            assert_same_bits(found, whole, f"array {i}, {count} cuts")
