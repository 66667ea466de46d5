"""RMSprop in scipy.optimize.minimize: what SciPy's own methods promise, and what only it does."""

import inspect
import subprocess
import sys
import warnings

import numpy as np
import pytest
from common import assert_same_bits
from scipy.optimize import (
    Bounds,
    OptimizeResult,
    OptimizeWarning,
    approx_fprime,
    basinhopping,
    minimize,
    rosen,
    rosen_der,
    rosen_hess,
)

from rmsprop_c import RMSprop, schedules
from rmsprop_c.scipy import rmsprop


def solve(fun, x0, **arguments):
    return minimize(fun, x0, method=rmsprop, **arguments)


def square(x):
    """The value and gradient of the squared distance from (1, -2)."""
    e = x - np.array([1.0, -2.0])
    return e @ e, 2 * e


def square_value(x):
    return square(x)[0]


def himmelblau(p):
    x, y = p
    u, v = x * x + y - 11, x + y * y - 7
    return u * u + v * v, np.array([4 * x * u + 2 * v, 2 * u + 4 * y * v])


def beale(p):
    x, y = p
    total, gradient = 0.0, np.zeros(2)
    for i, constant in enumerate((1.5, 2.25, 2.625), 1):
        r = constant - x + x * y**i
        total += r * r
        gradient += 2 * r * np.array([y**i - 1, i * x * y ** (i - 1)])
    return total, gradient


def booth(p):
    u, v = p[0] + 2 * p[1] - 7, 2 * p[0] + p[1] - 5
    return u * u + v * v, np.array([2 * u + 4 * v, 4 * u + 2 * v])


def ellipsoid(x):
    """A quadratic with condition number 1e4."""
    scales = np.logspace(0, 4, x.size)
    return x @ (scales * x) / 2, scales * x


def rosenbrock(x):
    return rosen(x), rosen_der(x)


# fun, x0, the minimum
PROBLEMS = {
    "rosenbrock 2": (rosenbrock, [-1.2, 1.0], np.ones(2)),
    "rosenbrock 5": (rosenbrock, [1.3, 0.7, 0.8, 1.9, 1.2], np.ones(5)),
    "rosenbrock 10": (rosenbrock, [-1.2, 1.0] * 5, np.ones(10)),
    "rosenbrock 100": (rosenbrock, [-1.2, 1.0] * 50, np.ones(100)),
    "himmelblau": (himmelblau, [0.0, 0.0], np.array([3.0, 2.0])),
    "beale": (beale, [1.0, 1.0], np.array([3.0, 0.5])),
    "booth": (booth, [0.0, 0.0], np.array([1.0, 3.0])),
    "ellipsoid": (ellipsoid, [1.0] * 20, np.zeros(20)),
    "far away": (square, [30.0, -50.0], np.array([1.0, -2.0])),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_minimum_is_found_with_the_defaults(name):
    """To 1e-3 in x: a gradient of 1e-5 leaves so much where the curvature is small."""
    fun, x0, minimum = PROBLEMS[name]
    result = solve(fun, x0, jac=True)
    assert result.success, result.message
    assert result.status == 0
    assert abs(result.jac).max() <= 1e-5
    np.testing.assert_allclose(result.x, minimum, atol=1e-3)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gradients_of_these_tests_are_right(name):
    fun, x0, _ = PROBLEMS[name]
    x = np.array(x0) + 0.1
    found = approx_fprime(x, lambda x: fun(x)[0], 1e-7)
    np.testing.assert_allclose(fun(x)[1], found, rtol=1e-4, atol=1e-3)


def test_the_fields_are_those_of_scipys_methods():
    result = solve(rosen, [0.5, 0.5], jac=rosen_der, options={"maxiter": 50})
    usual = minimize(rosen, [0.5, 0.5], jac=rosen_der, method="L-BFGS-B")
    assert isinstance(result, OptimizeResult)
    assert set(result) == set(usual) - {"hess_inv"}
    for name in result:
        assert np.shape(result[name]) == np.shape(usual[name]), name
    assert type(result.success) is bool
    assert type(result.status) is type(result.nit) is type(result.nfev) is type(result.njev) is int


def test_x_fun_and_jac_belong_together():
    result = solve(rosen, [0.5, 0.5], jac=rosen_der, options={"maxiter": 50})
    assert result.fun == rosen(result.x)
    assert_same_bits(result.jac, rosen_der(result.x))


class Counted:
    """A function that counts its calls and keeps what it was given."""

    def __init__(self, function):
        self.function, self.points = function, []

    def __call__(self, x, *args):
        self.points.append(x)
        return self.function(x, *args)


def test_calls_are_counted_as_they_were_made():
    fun, jac = Counted(rosen), Counted(rosen_der)
    result = solve(fun, [0.5, 0.5], jac=jac, options={"maxiter": 50})
    assert (result.nit, result.nfev, result.njev) == (50, 1, 51)
    assert (len(fun.points), len(jac.points)) == (1, 51)

    fun, jac = Counted(rosen), Counted(rosen_der)
    result = solve(fun, [0.5, 0.5], jac=jac, options={"maxiter": 50, "ftol": 0.0})
    assert (result.nit, result.nfev, result.njev) == (50, 51, 51)
    assert (len(fun.points), len(jac.points)) == (51, 51)

    both = Counted(rosenbrock)
    result = solve(both, [0.5, 0.5], jac=True, options={"maxiter": 50})
    assert (result.nit, result.nfev, result.njev) == (50, 51, 51)
    assert len(both.points) == 51


def test_an_object_whose_method_is_jac_is_not_taken_for_jac_true():
    class Problem:
        def __init__(self):
            self.calls = 0

        def __call__(self, x):
            self.calls += 1
            return rosen(x)

        def gradient(self, x):
            return rosen_der(x)

    problem = Problem()
    options = {"maxiter": 100}
    result = solve(problem, [-1.2, 1.0], jac=problem.gradient, options=options)
    assert (problem.calls, result.nfev, result.njev) == (1, 1, 101)
    # With jac=True SciPy has computed the values anyway.
    assert solve(rosenbrock, [-1.2, 1.0], jac=True, options=options).nfev == 101


def test_jac_true_and_a_callable_take_the_same_steps():
    together = solve(rosenbrock, [0.5, 0.5], jac=True, options={"maxiter": 50})
    apart = solve(rosen, [0.5, 0.5], jac=rosen_der, options={"maxiter": 50})
    assert_same_bits(together.x, apart.x)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", ">f8"])
def test_x0_is_never_changed_and_all_is_float64(dtype):
    x0 = np.array([3, 4], dtype)
    fun, jac = Counted(square_value), Counted(lambda x: square(x)[1])
    result = solve(fun, x0, jac=jac, bounds=[(0, 1), (0, 1)])
    assert x0.tolist() == [3, 4]
    assert not np.shares_memory(result.x, x0)
    assert result.x.dtype == result.jac.dtype == np.float64
    assert {x.dtype for x in fun.points + jac.points} == {np.dtype(np.float64)}


def test_a_read_only_x0_and_read_only_gradients_do():
    x0 = np.array([3.0, 4.0])
    x0.flags.writeable = False

    def jac(x):
        gradient = square(x)[1]
        gradient.flags.writeable = False
        return gradient

    assert solve(square_value, x0, jac=jac).success


def test_functions_may_keep_or_change_their_argument_and_return_it_as_gradient():
    kept = []

    def jac(x):
        kept.append(x)
        return x  # the gradient of x @ x / 2

    def fun(x):
        value = x @ x / 2
        x[:] = np.nan
        return value

    result = solve(fun, [3.0, 4.0], jac=jac, options={"maxiter": 3})
    assert len({tuple(x) for x in kept}) == 4
    assert np.isfinite(result.x).all()
    assert kept[0].tolist() == [3.0, 4.0]


def test_a_gradient_that_is_a_buffer_of_jac_is_neither_changed_nor_returned():
    buffer = np.zeros(2)

    def jac(x):
        buffer[:] = square(x)[1]
        return buffer

    result = solve(square_value, [3.0, 4.0], jac=jac, options={"maxiter": 3, "zero_grad": True})
    assert not np.shares_memory(result.jac, buffer)
    assert_same_bits(buffer, square(result.x)[1])
    before = []
    solve(
        square_value,
        [3.0, 4.0],
        jac=lambda x: before.append(buffer.copy()) or jac(x),
        options={"maxiter": 3, "zero_grad": True},
    )
    assert all(gradient.all() for gradient in before)


def test_args_reach_function_and_gradient():
    result = solve(
        lambda x, a, b: (x @ x - 2 * a * x.sum()) * b,
        [0.0, 0.0],
        args=(3.0, 2.0),
        jac=lambda x, a, b: 2 * (x - a) * b,
    )
    np.testing.assert_allclose(result.x, [3.0, 3.0], atol=1e-5)


def test_args_may_be_one_value_that_is_no_tuple():
    for call in (solve, rmsprop):
        arguments = {"args": 2.0, "jac": lambda x, a: 2 * (x - a)}
        result = call(lambda x, a: np.sum((x - a) ** 2), [0.0], **arguments)
        assert abs(result.x - 2).max() < 1e-4


def test_one_variable_may_be_a_number():
    result = solve(lambda x: float((x[0] - 2) ** 2), 0.0, jac=lambda x: 2 * (x[0] - 2))
    assert result.x.shape == result.jac.shape == (1,)
    np.testing.assert_allclose(result.x, 2.0, atol=1e-5)


def test_both_kinds_of_callback_see_each_point_once():
    xs, results = [], []

    def with_x(xk):
        xs.append(xk)

    def with_result(intermediate_result):
        results.append(intermediate_result)

    options = {"maxiter": 20}
    one = solve(rosen, [0.5, 0.5], jac=rosen_der, options=options, callback=with_x)
    two = solve(rosen, [0.5, 0.5], jac=rosen_der, options=options, callback=with_result)
    assert len(xs) == len(results) == 20
    assert_same_bits(xs[-1], one.x)
    assert_same_bits(two.x, one.x)
    for x, result in zip(xs, results, strict=True):
        assert isinstance(result, OptimizeResult)
        assert_same_bits(result.x, x)
        assert result.fun == rosen(x)
    assert (one.nfev, two.nfev) == (1, 21)


def test_a_callback_cant_change_the_run():
    def spoil(xk):
        xk[:] = np.nan

    plain = solve(rosen, [0.5, 0.5], jac=rosen_der, options={"maxiter": 20})
    spoilt = solve(rosen, [0.5, 0.5], jac=rosen_der, options={"maxiter": 20}, callback=spoil)
    assert_same_bits(plain.x, spoilt.x)


@pytest.mark.parametrize("name", ["xk", "intermediate_result"])
def test_a_callback_stops_the_run_as_it_stops_scipys_methods(name):
    calls = []

    def stop():
        calls.append(None)
        if len(calls) == 3:
            raise StopIteration

    callback = {
        "xk": lambda xk: stop(),
        "intermediate_result": lambda intermediate_result: stop(),
    }[name]
    result = solve(rosen, [0.5, 0.5], jac=rosen_der, callback=callback)
    calls.clear()
    usual = minimize(rosen, [0.5, 0.5], jac=rosen_der, callback=callback, method="BFGS")
    assert (result.nit, result.status, result.success) == (3, 99, False)
    assert (usual.nit, usual.status, usual.success) == (3, 99, False)
    assert "StopIteration" in result.message
    assert_same_bits(result.jac, rosen_der(result.x))


def test_an_error_in_a_function_or_callback_comes_through():
    def broken(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        solve(rosen, [0.5, 0.5], jac=broken)
    with pytest.raises(KeyError, match="mine"):
        solve(rosen, [0.5, 0.5], jac=rosen_der, callback=lambda xk: broken())


def test_maxiter_ends_without_success():
    result = solve(rosen, [-1.2, 1.0], jac=rosen_der, options={"maxiter": 7})
    assert (result.nit, result.njev, result.status, result.success) == (7, 8, 1, False)
    assert "maxiter" in result.message
    assert abs(result.jac).max() > 1e-5


def test_maxiter_0_evaluates_x0_only():
    result = solve(rosen, [-1.2, 1.0], jac=rosen_der, options={"maxiter": 0})
    assert (result.nit, result.nfev, result.njev, result.status) == (0, 1, 1, 1)
    assert result.x.tolist() == [-1.2, 1.0]


def test_a_start_at_the_minimum_is_success_at_once():
    result = solve(rosen, [1.0, 1.0], jac=rosen_der)
    assert (result.nit, result.status, result.success) == (0, 0, True)


@pytest.mark.parametrize("which", ["gtol", "tol"])
def test_gtol_bounds_the_largest_entry_of_the_gradient(which):
    found = {}
    for limit in (1e-1, 1e-4):
        how = {"tol": limit} if which == "tol" else {"options": {"gtol": limit}}
        gradients = []
        result = solve(
            rosen,
            [-1.2, 1.0],
            jac=lambda x, gradients=gradients: gradients.append(rosen_der(x)) or gradients[-1],
            **how,
        )
        assert result.success
        largest = [abs(g).max() for g in gradients]
        assert largest[-1] <= limit < min(largest[:-1])
        found[limit] = result.nit
    assert found[1e-1] < found[1e-4]


def test_gtol_wins_over_tol():
    result = solve(rosen, [-1.2, 1.0], jac=rosen_der, tol=10.0, options={"gtol": 1e-3})
    assert abs(result.jac).max() <= 1e-3


@pytest.mark.parametrize("offset", [0, 1000])
def test_ftol_stops_where_ten_iterations_change_fun_no_more(offset):
    values = []
    result = solve(
        lambda x: rosen(x) + offset,
        [-1.2, 1.0],
        jac=rosen_der,
        options={"ftol": 1e-4, "gtol": 0},
        callback=lambda intermediate_result: values.append(intermediate_result.fun),
    )
    assert (result.status, result.success) == (0, True)
    assert "ftol" in result.message
    values.insert(0, rosen([-1.2, 1.0]) + offset)
    spreads = [np.ptp(values[i - 10 : i + 1]) for i in range(10, len(values))]
    limits = [1e-4 * max(abs(value), 1) for value in values[10:]]
    stops = [s <= limit for s, limit in zip(spreads, limits, strict=True)]
    assert stops == [False] * (len(stops) - 1) + [True]
    assert abs(result.jac).max() > 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 16, "maxiter": 15},
        {"nonfinite": "skip", "maxiter": 30},
        {"lr": schedules.PiecewiseConstantDecay([20], [0.0, 0.1]), "maxiter": 20},
    ],
    ids=["a cycle", "skipped steps", "a learning rate of 0"],
)
def test_ftol_is_no_success_where_nothing_has_moved(options):
    def jac(x):
        return x * np.nan if "nonfinite" in options else square(x)[1]

    result = solve(square_value, [0.5, 0.3], jac=jac, options=options | {"ftol": 1e-3})
    assert (result.status, result.success, result.nit) == (1, False, options["maxiter"])
    assert result.x.tolist() == [0.5, 0.3]


def test_ftol_counts_the_iterations_that_have_moved_x():
    """With cycles of 3 calls, what ends the run after 10 moves without cycles ends it after 10."""
    options = {"lr": 1e-9, "decay": 0, "momentum": 0, "ftol": 1e-3, "maxiter": 1000}
    plain = solve(square_value, [0.5, 0.3], jac=lambda x: square(x)[1], options=options)
    cycles = options | {"gradient_accumulation_steps": 3}
    in_cycles = solve(square_value, [0.5, 0.3], jac=lambda x: square(x)[1], options=cycles)
    assert plain.success
    assert in_cycles.success
    assert (plain.nit, in_cycles.nit) == (10, 30)


def test_numbers_that_are_not_finite_end_the_run_before_a_step():
    def jac(x):
        return np.where(x < 0.4, np.nan, 1.0)

    result = solve(np.sum, [0.5, 0.5], jac=jac, options={"lr": 0.01, "momentum": 0})
    assert (result.status, result.success) == (3, False)
    assert 0 < result.nit < 100
    assert np.isfinite(result.x).all()
    assert np.isnan(result.jac).all()

    result = solve(lambda x: np.nan, [0.0], jac=lambda x: np.zeros(1))
    assert (result.status, result.success) == (3, False)
    assert np.isnan(result.fun)


BOUNDS = {
    "pairs": [(0, 0.5), (None, 3)],
    "tuples of numpy": tuple(map(tuple, np.array([(0, 0.5), (-np.inf, 3)]))),
    "array": np.array([(0, 0.5), (-np.inf, 3)]),
    "Bounds": Bounds([0, -np.inf], [0.5, 3]),
}


@pytest.mark.parametrize("form", BOUNDS)
def test_no_point_lies_outside_the_bounds(form):
    """The minimum on the border is that of L-BFGS-B; to 1e-6, what a gradient of 1e-5 leaves."""
    jac = Counted(lambda x: square(x)[1])
    result = solve(square_value, [2.0, 9.0], jac=jac, bounds=BOUNDS[form])
    points = np.array(jac.points)
    assert points[0].tolist() == [0.5, 3.0]
    assert (points[:, 0] >= 0).all()
    assert (points[:, 0] <= 0.5).all()
    assert (points[:, 1] <= 3).all()
    assert result.success
    usual = minimize(square, [2.0, 9.0], jac=True, bounds=BOUNDS[form], method="L-BFGS-B")
    np.testing.assert_allclose(result.x, usual.x, atol=1e-5)
    assert result.x[0] == 0.5
    assert result.jac[0] == -1.0  # the true gradient: the bound is what ends the run


@pytest.mark.parametrize(
    "bounds", [Bounds(-1, 0.25), Bounds([-1], 0.25), [(-1, 0.25)], np.array([[-1, 0.25]])]
)
def test_one_pair_of_bounds_is_for_all_entries_as_in_scipys_methods(bounds):
    result = solve(square, [0.0, 0.0], jac=True, bounds=bounds)
    assert result.success
    assert result.x.tolist() == [0.25, -1.0]
    usual = minimize(square, [0.0, 0.0], jac=True, bounds=bounds, method="L-BFGS-B")
    assert result.x.tolist() == usual.x.tolist()


def test_entries_may_be_fixed_by_bounds():
    result = solve(square, [0.0, 0.0], jac=True, bounds=[(0.25, 0.25), (None, None)])
    assert result.success
    assert result.x[0] == 0.25


@pytest.mark.parametrize("lb", [-1.0, -0.0, 0.1])
def test_projection_is_the_step_of_rmsprop_and_then_a_clip(lb):
    x, opt = np.array([0.5, 0.3]), RMSprop(lr=0.2)
    for _ in range(5):
        opt.step(x, square(x)[1])
        np.clip(x, lb, 0.6, out=x)
    options = {"lr": 0.2, "decay": 0, "momentum": 0, "maxiter": 5}
    result = solve(square, [0.5, 0.3], jac=True, bounds=Bounds(lb, 0.6), options=options)
    assert_same_bits(result.x, x)


FITTING = "but x0 has 2 entries: pass 2 pairs, or one for all"
PAIRS = "pass a (min, max) pair for each entry of x0, one pair for all, or scipy.optimize.Bounds"


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([], f"bounds has shape (0,), {FITTING}"),
        ([(0, 1)] * 3, f"bounds has shape (3,), {FITTING}"),
        (Bounds([0] * 3, [1] * 3), f"bounds has shape (3,), {FITTING}"),
        (Bounds(0, [1] * 3), f"bounds has shape (3,), {FITTING}"),
        (Bounds([[0, 0]], [[1, 1]]), f"bounds has shape (1, 2), {FITTING}"),
        ([("0", 1), (0, 1)], "bounds[0][0] is '0'; it must be a real number"),
        ([(0, 1), (0, [1, 2])], "bounds[1][1] is [1, 2]; it must be a real number"),
        ([(0, 10**400)], "bounds[0][1] is a number that no float can hold"),
        (Bounds(["a"], [1]), "bounds.lb has dtype <U1; it must be real numbers"),
        ([0, 1], f"bounds is [0, 1]; {PAIRS}"),
        (5, f"bounds is 5; {PAIRS}"),
        ([(0, 1, 2), (0, 1)], f"bounds is [(0, 1, 2), (0, 1)]; {PAIRS}"),
        ([(0, 1), (2, 1)], "bounds[1] is (2, 1): the lower one must come first"),
        ([(0, np.nan), (0, 1)], "bounds[0] is (0, nan): the lower one must come first"),
    ],
)
def test_bounds_that_do_not_fit_are_refused_by_name(bounds, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        solve(square, [0.0, 0.0], jac=True, bounds=bounds)
    assert str(caught.value) == message


@pytest.mark.parametrize("jac", [None, False, "2-point"])
def test_without_a_gradient_the_error_says_what_to_do(jac):
    with pytest.raises(ValueError, match=r"needs gradients.*jac=True.*approx_fprime"):
        solve(rosen, [0.5, 0.5], jac=jac)


def test_finite_differences_as_the_error_suggests():
    assert solve(square_value, [0.0, 0.0], jac=lambda x: approx_fprime(x, square_value)).success


@pytest.mark.parametrize(
    ("fun", "jac", "message"),
    [
        (lambda x: None, None, "the value of fun is None; it must be a real number"),
        (lambda x: "1.5", None, "the value of fun is '1.5'; it must be a real number"),
        (lambda x: 1j, None, "the value of fun is 1j; it must be a real number"),
        (None, lambda x: ["a", "b"], "the gradient of jac has dtype <U1; it must be real numbers"),
        (None, lambda x: [None, 1], "the gradient of jac[0] is None; it must be a real number"),
        (
            None,
            lambda x: 1j * x,
            "the gradient of jac has dtype complex128; pass real and imaginary parts as real "
            "numbers",
        ),
    ],
)
def test_results_that_are_no_real_numbers_are_named(fun, jac, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        solve(fun or square_value, [0.0, 0.0], jac=jac or (lambda x: 0 * x))
    assert str(caught.value) == message


def test_results_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"jac returned shape \(3,\), but x0 has shape \(2,\)"):
        solve(rosen, [0.5, 0.5], jac=lambda x: np.ones(3))
    with pytest.raises(ValueError, match=r"fun returned shape \(2,\)"):
        solve(lambda x: x, [0.5, 0.5], jac=rosen_der, options={"maxiter": 1})


def test_a_complex_x0_is_refused():
    with pytest.raises(TypeError, match="x0 has dtype complex128"):
        solve(square, np.array([1j, 0]), jac=True)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"hess": rosen_hess}, "hess"),
        ({"hessp": lambda x, p: p}, "hessp"),
        ({"constraints": {"type": "ineq", "fun": np.sum}}, "constraints"),
        ({"constraints": [{"type": "ineq", "fun": np.sum}]}, "constraints"),
        ({"options": {"maxcor": 5, "maxiter": 1}}, "options['maxcor']"),
    ],
)
def test_what_is_ignored_is_a_warning_where_minimize_was_called(arguments, named):
    with pytest.warns(OptimizeWarning) as caught:
        minimize(rosen, [0.5, 0.5], jac=rosen_der, method=rmsprop, **arguments)
    (warning,) = caught
    assert str(warning.message) == f"RMSprop ignores {named}"
    assert warning.filename == __file__


def test_nothing_ignored_is_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve(rosen, [0.5, 0.5], jac=rosen_der, constraints=[], options={"maxiter": 1})


def test_options_are_those_of_rmsprop():
    given = {
        "rho": 0.8,
        "epsilon": 1e-3,
        "centered": True,
        "momentum": 0.5,
        "clipnorm": 1.0,
        "weight_decay": 0.1,
        "decay": 0.01,
    }
    for name in ("lr", "learning_rate"):
        x, opt = np.array([0.5, 0.3]), RMSprop(lr=0.02, **given)
        for _ in range(25):
            opt.step(x, square(x)[1])
        options = given | {name: 0.02, "maxiter": 25}
        assert_same_bits(solve(square, [0.5, 0.3], jac=True, options=options).x, x)


def test_lr_falls_over_maxiter_unless_decay_or_a_schedule_says_otherwise():
    def reference(lr, **given):
        x, opt = np.array([0.5, 0.3]), RMSprop(lr=lr, momentum=0.9, **given)
        for _ in range(25):
            opt.step(x, square(x)[1])
        return x

    falling = schedules.ExponentialDecay(0.05, 25, 1e-8)
    cosine = schedules.CosineDecay(0.05, 25)
    for given, expected in (
        ({"lr": 0.05}, reference(falling)),
        ({"lr": 0.05, "decay": 0}, reference(0.05)),
        ({"lr": cosine}, reference(cosine)),
        ({"learning_rate": cosine}, reference(cosine)),
        ({}, reference(schedules.ExponentialDecay(0.01, 25, 1e-8))),
    ):
        options = given | {"maxiter": 25}
        assert_same_bits(solve(square, [0.5, 0.3], jac=True, options=options).x, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"maxiter": np.inf},
            "maxiter is inf, but lr falls in maxiter iterations; say how it goes by decay or a "
            "schedule as lr",
        ),
        ({"maxiter": -1}, "maxiter is -1; it must be a whole number, at least 0"),
        ({"maxiter": 2.5}, "maxiter is 2.5; it must be a whole number, at least 0"),
        ({"maxiter": "10"}, "maxiter is '10'; it must be a real number"),
        ({"maxiter": 10**400}, "maxiter is a number that no float can hold"),
        ({"maxiter": True}, "maxiter is True; pass a number, or leave it out"),
        ({"gtol": "small"}, "gtol is 'small'; it must be a real number"),
        ({"gtol": np.nan}, "gtol is nan; pass a number, or leave it out"),
        ({"ftol": [1]}, "ftol is [1]; it must be a real number"),
        ({"tol": 1j}, "tol is 1j; it must be a real number"),
        ({"lr_scale": [1, 2]}, "lr_scale has 2 factors, but there is 1 parameter"),
        (
            {"lr_scale": {"x": 1}},
            "lr_scale is a dict, but the parameters have no keys; pass a sequence of factors",
        ),
    ],
)
def test_numbers_without_meaning_are_named_as_they_were_given(options, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        solve(square, [0.0, 0.0], jac=True, options=options)
    assert str(caught.value) == message


def test_maxiter_may_be_none_or_a_whole_float_as_in_scipys_methods():
    expected = solve(rosenbrock, [-1.2, 1.0], jac=True)
    for maxiter in (None, 1e4, np.array(10_000)):
        found = solve(rosenbrock, [-1.2, 1.0], jac=True, options={"maxiter": maxiter})
        assert (found.nit, found.x.tolist()) == (expected.nit, expected.x.tolist())
    options = {"maxiter": np.inf, "decay": 0, "lr": 0.1, "momentum": 0, "gtol": 0.2}
    assert solve(square, [0.0, 0.0], jac=True, options=options).success


@pytest.mark.parametrize(
    ("x0", "message"),
    [
        ([], "x0 has shape (0,); it must have one dimension, and not be empty"),
        ([[1.0, 2.0]], "x0 has shape (1, 2); it must have one dimension, and not be empty"),
        (None, "x0[0] is None; it must be a real number"),
        ([1.0, 10**400], "x0[1] is a number that no float can hold"),
        (["1", "2"], "x0 has dtype <U1; it must be real numbers"),
        (np.array(["2026-01-01"], "M8[D]"), "x0 has dtype datetime64[D]; it must be real numbers"),
    ],
)
def test_what_is_no_start_is_refused_as_x0(x0, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        rmsprop(square_value, x0, jac=square)
    assert str(caught.value) == message


def test_what_is_no_callback_is_refused_by_name():
    with pytest.raises(TypeError, match=r"^callback is 3; it must be callable$"):
        solve(square, [0.0, 0.0], jac=True, callback=3)


def test_errors_of_options_name_them():
    with pytest.raises(ValueError, match="rho is 2"):
        solve(square, [0.0, 0.0], jac=True, options={"rho": 2})
    with pytest.raises(TypeError, match="both lr and learning_rate"):
        solve(square, [0.0, 0.0], jac=True, options={"lr": 0.1, "learning_rate": 0.1})


def test_maximize_goes_up():
    result = solve(
        lambda x: -square(x)[0],
        [0.0, 0.0],
        jac=lambda x: -square(x)[1],
        bounds=[(None, 0.5), (None, None)],
        options={"maximize": True},
    )
    assert result.success
    np.testing.assert_allclose(result.x, [0.5, -2.0], atol=1e-5)


def noisy(rng):
    def fun(x):
        value, gradient = square(x)
        return value + rng.normal(), gradient + rng.normal(size=2)

    return fun


def test_averages_are_what_use_ema_returns_without_convergence():
    points = []
    options = {"gtol": 0, "maxiter": 300, "use_ema": True, "ema_momentum": 0.9, "decay": 0}
    result = solve(
        noisy(np.random.default_rng(1)),
        [0.0, 0.0],
        jac=True,
        options=options,
        callback=points.append,
    )
    average = points[0]
    for x in points[1:]:
        average = 0.9 * average + (1 - 0.9) * x
    assert result.status == 1
    np.testing.assert_allclose(result.x, average, rtol=1e-12)

    options = {"maxiter": 5, "use_ema": True}
    result = solve(square, [0.0, 0.0], jac=True, options=options)
    assert result.fun == square_value(result.x)
    assert_same_bits(result.jac, square(result.x)[1])

    result = solve(square, [0.0, 0.0], jac=True, options={"use_ema": True})
    assert result.success
    assert abs(result.jac).max() <= 1e-5


def test_noise_that_stops_lbfgsb_does_not_stop_it():
    """By the mean distance over 20 runs. The others stop by themselves, long before maxiter."""
    far = {}
    for method in (rmsprop, "L-BFGS-B", "BFGS"):
        options = {"maxiter": 2000} | ({"gtol": 0} if method is rmsprop else {})
        far[method] = []
        for seed in range(20):
            fun = noisy(np.random.default_rng(seed))
            found = minimize(fun, [8.0, 8.0], jac=True, method=method, options=options)
            far[method].append(np.linalg.norm(found.x - [1, -2]))
    assert np.mean(far[rmsprop]) < 0.1
    assert np.mean(far["L-BFGS-B"]) > 5 * np.mean(far[rmsprop])
    assert np.mean(far["BFGS"]) > 5 * np.mean(far[rmsprop])


def test_each_run_starts_afresh():
    results = [solve(rosenbrock, [0.5, 0.5], jac=True, options={"maxiter": 50}) for _ in range(2)]
    assert_same_bits(results[0].x, results[1].x)


def test_inside_basinhopping_the_global_minimum_is_found():
    def fun(x):
        """The two-dimensional example of SciPy's basinhopping: -1.0109 at (-0.1951, -0.1)."""
        wave = np.cos(14.5 * x[0] - 0.3)
        value = wave + (x[1] + 0.2) * x[1] + (x[0] + 0.2) * x[0]
        slope = -14.5 * np.sin(14.5 * x[0] - 0.3) + 2 * x[0] + 0.2
        return value, np.array([slope, 2 * x[1] + 0.2])

    arguments = {"method": rmsprop, "jac": True, "options": {"maxiter": 500, "gtol": 1e-4}}
    # SciPy 1.15 gave seed another name.
    seed = {"rng" if "rng" in inspect.signature(basinhopping).parameters else "seed": 0}
    result = basinhopping(fun, [1.0, 1.0], minimizer_kwargs=arguments, niter=40, **seed)
    assert result.lowest_optimization_result.success
    np.testing.assert_allclose(result.x, [-0.1951, -0.1000], atol=1e-4)
    assert abs(result.fun - -1.0109) < 1e-4
    assert result.minimization_failures == 0


def test_disp_prints_how_it_ended(capsys):
    solve(square, [0.0, 0.0], jac=True, options={"maxiter": 1})
    assert capsys.readouterr().out == ""
    solve(square, [0.0, 0.0], jac=True, options={"maxiter": 1, "disp": True})
    out = capsys.readouterr().out
    assert "maxiter iterations were made without convergence" in out
    assert "nit 1, nfev 2, njev 2" in out


def test_without_scipy_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['scipy'] = None\n"
        "try:\n    import rmsprop_c.scipy\n"
        "except ImportError as error:\n    print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "rmsprop_c.scipy needs SciPy: pip install 'rmsprop_c[scipy]'\n"


def test_the_package_itself_does_not_import_scipy():
    code = "import sys, rmsprop_c; print([m for m in sys.modules if m.startswith('scipy')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"
