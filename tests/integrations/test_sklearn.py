"""scikit-learn's estimators with our solver: their whole behaviour, and our bits."""

import copy
import inspect
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from common import assert_same_bits
from scipy.sparse import csr_matrix
from sklearn import neural_network
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

from rmsprop_c import RMSprop, reference, sklearn as integration
from rmsprop_c.sklearn import MLPClassifier, MLPRegressor

OURS = {"MLPClassifier": MLPClassifier, "MLPRegressor": MLPRegressor}
THEIRS = {name: getattr(neural_network, name) for name in OURS}
EVERY_OPTION = {
    "rho": 0.8,
    "decay": 0.01,
    "clipnorm": 0.5,
    "clipvalue": 0.05,
    "centered": True,
    "epsilon_in_sqrt": True,
    "initial_accumulator_value": 0.1,
    "lr_in_momentum": False,
    "bias_correction": True,
    "weight_decay": 0.01,
    "decoupled_weight_decay": True,
    "exclude_from_weight_decay": (2, 3),
    "lr_scale": (1.0, 0.5, 2.0, 1.0),
    "nonfinite": "skip",
    "flush_subnormals": True,
}  # parameter_clipnorm excludes clipnorm

few_epochs = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(autouse=True)
def one_blas_thread():
    """The models are small: a team costs more than it brings, and blocks where cores are few."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return train_test_split(x / 16, y, random_state=0)


def data(kind, dtype=np.float64, samples=60):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((samples, 5)).astype(dtype)
    z = x @ rng.standard_normal((5, 3))
    return x, (z.argmax(1) if kind == "MLPClassifier" else np.sin(z[:, :2]))


def weights(model):
    return [*model.coefs_, *model.intercepts_]


def same_weights(found, expected):
    for i, (a, b) in enumerate(zip(weights(found), weights(expected), strict=True)):
        assert_same_bits(a, b, f"parameter {i}")


CHECKS = parametrize_with_checks(
    [
        MLPClassifier(),
        MLPRegressor(),
        MLPClassifier(momentum=0.9, centered=True, clipnorm=1.0),
    ]
)


@few_epochs
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
# A list, as from scikit-learn 1.9: pytest 9 warns of the generator that 1.7 passes.
@pytest.mark.parametrize(CHECKS.args[0], list(CHECKS.args[1]), **CHECKS.kwargs)
def test_scikit_learn_checks_pass_and_none_is_expected_to_fail(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", OURS)
def test_every_parameter_of_scikit_learn_is_taken_with_its_default_apart_from_three(name):
    ours, theirs = OURS[name]().get_params(), THEIRS[name]().get_params()
    assert set(ours) == set(theirs) | set(integration.OPTIONS)
    own = {"solver": "rmsprop", "momentum": None, "nesterovs_momentum": None}
    assert ours == theirs | integration.OPTIONS | own
    # The same names may be given by position, in the same order.
    positions = [
        [p.name for p in inspect.signature(cls).parameters.values() if p.kind != p.KEYWORD_ONLY]
        for cls in (OURS[name], THEIRS[name])
    ]
    assert positions[0] == positions[1]
    with pytest.raises(TypeError, match="amsgrad"):
        OURS[name](amsgrad=True)


def record(monkeypatch):
    """The list into which each update puts its parameters before it, and its gradients."""
    calls = []
    update = integration._Solver.update_params

    def recorded(self, params, grads):
        calls.append((copy.deepcopy(params), copy.deepcopy(grads)))
        update(self, params, grads)

    monkeypatch.setattr(integration._Solver, "update_params", recorded)
    return calls


@few_epochs
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterovs_momentum": True, "epsilon": 1e-4, "rho": 0.5},
        {"momentum": 0.3, **EVERY_OPTION},
        {"parameter_clipnorm": 0.01},
    ],
)
@pytest.mark.parametrize("name", OURS)
def test_a_fit_has_the_bits_of_a_hand_loop_along_its_gradients(
    name, given, sparse, dtype, monkeypatch
):
    calls = record(monkeypatch)
    x, y = data(name, dtype)
    model = OURS[name](
        hidden_layer_sizes=(8,), batch_size=16, max_iter=5, learning_rate_init=0.01, random_state=0
    )
    model.set_params(**given).fit(csr_matrix(x) if sparse else x, y)
    assert len(calls) == 20
    options = {"momentum": 0.0, **given}
    options["nesterov"] = options.pop("nesterovs_momentum", False)
    params = copy.deepcopy(calls[0][0])
    hand = copy.deepcopy(params)
    opt = RMSprop(lr=0.01, **options)
    oracle = reference.RMSprop(params, lr=0.01, **options)
    for _, grads in calls:
        grads = [np.asarray(g, dtype) for g in grads]
        opt.step(hand, grads)
        oracle.step(params, grads)
    for found, by_hand, expected in zip(weights(model), hand, params, strict=True):
        assert found.dtype == dtype
        assert_same_bits(found, by_hand)
        assert_same_bits(found, expected)
    for found, expected in zip(model.optimizer_.get_weights(), oracle.weights, strict=True):
        assert_same_bits(found, expected)


def partial(model, x, y):
    """partial_fit, which wants to know a classifier's classes."""
    classes = {"classes": np.arange(3)} if hasattr(model, "predict_proba") else {}
    return model.partial_fit(x, y, **classes)


@pytest.mark.parametrize("name", OURS)
def test_every_option_reaches_the_optimizer(name):
    for option, value in {**EVERY_OPTION, "parameter_clipnorm": 0.7}.items():
        model = partial(OURS[name](hidden_layer_sizes=(3,), **{option: value}), *data(name))
        assert getattr(model.optimizer_, option) == value, option
    assert set(EVERY_OPTION) | {"parameter_clipnorm"} == set(integration.OPTIONS)
    shared = {"learning_rate_init": 0.5, "epsilon": 0.25, "momentum": 0.125}
    opt = partial(OURS[name](nesterovs_momentum=True, **shared), *data(name)).optimizer_
    assert (opt.lr, opt.epsilon, opt.momentum, opt.nesterov) == (0.5, 0.25, 0.125, True)


@few_epochs
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("name", OURS)
def test_other_solvers_are_scikit_learns_own(name, solver):
    x, y = data(name)
    given = {"solver": solver, "max_iter": 5, "random_state": 0, "learning_rate_init": 0.01}
    ours, theirs = (
        OURS[name](hidden_layer_sizes=(8,), **given),
        THEIRS[name](hidden_layer_sizes=(8,), **given),
    )
    before = ours.get_params()
    same_weights(ours.fit(x, y), theirs.fit(x, y))
    assert ours.get_params() == before
    if solver != "lbfgs":
        same_weights(partial(ours, x, y), partial(theirs, x, y))
    assert hasattr(ours, "partial_fit") == hasattr(theirs, "partial_fit")
    with pytest.raises(AttributeError, match="solver='rmsprop'"):
        ours.optimizer_  # noqa: B018
    ours.set_params(momentum=0.5, nesterovs_momentum=False)
    theirs.set_params(momentum=0.5, nesterovs_momentum=False)
    same_weights(ours.fit(x, y), theirs.fit(x, y))


@pytest.mark.parametrize("name", OURS)
def test_scikit_learns_own_classes_refuse_our_solver_as_before_and_ours_refuse_others(name):
    for model in (THEIRS[name](solver="rmsprop"), OURS[name](solver="rms")):
        with pytest.raises(ValueError, match="The 'solver' parameter"):
            model.fit(*data(name))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"rho": 1.5}, ValueError, "rho is 1.5; it must be in [0, 1]"),
        ({"centered": 1}, TypeError, "centered is 1; it must be True or False"),
        ({"nonfinite": "stop"}, ValueError, "nonfinite is 'stop'"),
        ({"clipnorm": 1.0, "parameter_clipnorm": 1.0}, ValueError, "set one of them to None"),
        ({"momentum": 2}, ValueError, "The 'momentum' parameter of MLP"),
        ({"nesterovs_momentum": "yes"}, ValueError, "The 'nesterovs_momentum' parameter of MLP"),
        ({"epsilon": 0.0}, ValueError, "The 'epsilon' parameter of MLP"),
    ],
)
@pytest.mark.parametrize("name", OURS)
def test_a_bad_parameter_is_refused_by_name_and_nothing_changes(name, given, error, message):
    x, y = data(name)
    model = OURS[name](hidden_layer_sizes=(3,), **given)
    for method in (lambda m: m.fit(x, y), lambda m: partial(m, x, y)):
        with pytest.raises(error, match=re.escape(message)):
            method(model)
    assert set(vars(model)) == set(vars(OURS[name]()))
    assert model.get_params() == OURS[name](hidden_layer_sizes=(3,)).get_params() | given


# What fits no network of one hidden layer, or none of float32 (so in the others a fit succeeds).
UNFIT = {
    "too few factors": ({"lr_scale": [1.0]}, "lr_scale has 1 factors, but there are 4 parameters"),
    "factors by name": (
        {"lr_scale": {"coefs_": 1.0}},
        "lr_scale is a dict, but the parameters have no keys; pass a sequence of factors",
    ),
    "an unknown parameter": (
        {"exclude_from_weight_decay": (9,)},
        "exclude_from_weight_decay has 9, but the parameters are [0, 1, 2, 3]",
    ),
    "epsilon": ({"epsilon": 1e-60}, "epsilon=1e-60 rounds to 0 in float32"),
    "learning rate": (
        {"learning_rate_init": 1e39},
        "learning_rate_init=1e+39 is infinite in the dtype",
    ),
    "factor": ({"lr_scale": [1e42] * 4}, "times lr_scale is infinite in the dtype"),
}


def everything(model):
    """What an estimator holds, arrays and optimizer by their bytes."""
    return {name: pickle.dumps(value) for name, value in vars(model).items()}


@few_epochs
@pytest.mark.parametrize(
    "how", ["fit", "fit warm", "partial_fit", "first fit", "first partial_fit"]
)
@pytest.mark.parametrize("case", UNFIT)
@pytest.mark.parametrize("name", OURS)
def test_what_does_not_fit_the_network_is_refused_before_anything_changes(name, case, how):
    given, message = UNFIT[case]
    x, y = data(name, np.float32)
    model = OURS[name](hidden_layer_sizes=(3,), max_iter=2, random_state=np.random.RandomState(0))
    other = y + 1 if name == "MLPClassifier" else y
    if "first" not in how:
        model.fit(x, y)
    if how == "partial_fit":
        model._optimizer = None  # so that it needs one
    if how == "fit warm":
        model.set_params(warm_start=True)
        other = y
    model.set_params(**given)
    before = everything(model)
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match=f".*{re.escape(message)}"):
            partial(model, x, y) if "partial" in how else model.fit(x, other)
        assert everything(model) == before


@few_epochs
@pytest.mark.parametrize("name", OURS)
def test_a_fit_that_raises_in_the_middle_leaves_the_estimator_as_it_was(name, monkeypatch):
    x, y = data(name)
    model = OURS[name](hidden_layer_sizes=(3,), max_iter=4, batch_size=10, random_state=0)
    model.fit(x, y)
    backprop, before, left = THEIRS[name]._backprop, everything(model), [8]

    def fails(*args):
        left[0] -= 1
        if not left[0]:
            raise MemoryError
        return backprop(*args)

    monkeypatch.setattr(THEIRS[name], "_backprop", fails)
    with pytest.raises(MemoryError):
        model.fit(x, y)
    assert everything(model) == before
    # Weights that are trained in place stay with their optimizer.
    for warm in (False, True):
        left[0] = 3
        model.set_params(warm_start=warm)
        with pytest.raises(MemoryError):
            model.fit(x, y) if warm else partial(model, x, y)
        assert model.optimizer_.iterations == (2 if warm else 26)
        assert everything(model)["coefs_"] != before["coefs_"]


@few_epochs
@pytest.mark.parametrize("name", OURS)
def test_an_optimizer_is_that_of_the_solver(name):
    x, y = data(name)
    for other in ("lbfgs", "sgd", "adam"):
        model = OURS[name](hidden_layer_sizes=(3,), max_iter=3, random_state=0).fit(x, y)
        assert model.optimizer_.iterations == 3
        model.set_params(solver=other).fit(x, y)
        theirs = THEIRS[name](hidden_layer_sizes=(3,), max_iter=3, random_state=0, solver=other)
        same_weights(model, theirs.fit(x, y))
        with pytest.raises(AttributeError, match="solver='rmsprop'"):
            model.optimizer_  # noqa: B018
    # From one partial_fit to the next, too.
    model.set_params(solver="rmsprop")
    assert partial(model, x, y).optimizer_.iterations == 1
    partial(model.set_params(solver="adam"), x, y)
    assert type(model._optimizer).__name__ == "AdamOptimizer"


@pytest.mark.parametrize("value", [True, np.inf])
def test_the_learning_rate_is_named_as_scikit_learn_names_it(value):
    model = MLPRegressor(learning_rate_init=value)
    with pytest.raises((TypeError, ValueError), match=f"learning_rate_init.*{value!r}"):
        model.fit(*data("MLPRegressor"))


@few_epochs
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OURS)
def test_partial_fit_goes_on_with_its_optimizer_also_through_pickle(name, dtype, monkeypatch):
    x, y = data(name, dtype)
    given = {"momentum": 0.9, "centered": True, "decay": 0.1, "batch_size": 16, "shuffle": False}
    fitted = OURS[name](hidden_layer_sizes=(8,), max_iter=6, random_state=0, **given).fit(x, y)
    assert fitted.optimizer_.iterations == 24
    parts = OURS[name](hidden_layer_sizes=(8,), random_state=0, **given)
    for copied in (lambda m: m, lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy) * 2:
        parts = partial(copied(parts), x, y)
    same_weights(parts, fitted)
    assert parts.optimizer_.iterations == 24
    # One epoch after a fit goes on where it ended; a fit begins again, warm or not.
    assert partial(fitted, x, y).optimizer_.iterations == 28
    warm = fitted.set_params(warm_start=True)
    before = copy.deepcopy(weights(warm))
    calls = record(monkeypatch)
    assert warm.fit(x, y).optimizer_.iterations == 24
    for found, expected in zip(calls[0][0], before, strict=True):
        assert_same_bits(found, expected)
    cold = warm.set_params(warm_start=False).fit(x, y)
    same_weights(
        cold, OURS[name](hidden_layer_sizes=(8,), max_iter=6, random_state=0, **given).fit(x, y)
    )


@few_epochs
@pytest.mark.parametrize("schedule", ["constant", "invscaling", "adaptive"])
def test_learning_rates_are_those_of_scikit_learns_sgd(schedule, capsys):
    x, y = data("MLPRegressor")
    rates, shown = [], []
    for solver in ("sgd", "rmsprop"):
        model = MLPRegressor(
            hidden_layer_sizes=(4,),
            solver=solver,
            learning_rate=schedule,
            learning_rate_init=0.01,
            power_t=0.3,
            tol=1e9,  # no epoch is an improvement
            n_iter_no_change=2,
            verbose=True,
            max_iter=50,
            random_state=0,
        ).fit(x, y)
        rates.append(model._optimizer.learning_rate)
        shown.append(re.sub(r"loss = \S+", "", capsys.readouterr().out))
        assert model.n_iter_ == (22 if schedule == "adaptive" else 4)
    assert rates[0] == rates[1] == model.optimizer_.lr
    assert (rates[0] == 0.01) == (schedule == "constant")
    assert shown[0] == shown[1]


@few_epochs
@pytest.mark.parametrize("name", OURS)
def test_float32_stays_float32_with_what_scikit_learn_computes_in_float64(name):
    x, y = data(name, np.float32)
    weighted = {"sample_weight": np.linspace(0.5, 2, len(x))}  # from scikit-learn 1.7 on
    takes_weights = "sample_weight" in inspect.signature(MLPClassifier.fit).parameters
    for arguments in [{}] + [weighted] * takes_weights:
        model = OURS[name](hidden_layer_sizes=(8,), max_iter=2, random_state=0).fit(
            x, y, **arguments
        )
        assert {w.dtype for w in weights(model)} == {np.dtype(np.float32)}
        assert {w.dtype for w in model.optimizer_.weights} == {np.dtype(np.float32)}


@pytest.mark.parametrize("solver", ["rmsprop", "sgd"])
def test_what_ends_a_fit_leaves_the_parameters_as_they_were(solver, monkeypatch):
    x, y = data("MLPClassifier")
    model = MLPClassifier(hidden_layer_sizes=(4,), solver=solver, nonfinite="raise", max_iter=3)
    before = model.get_params()

    def fails(*args):
        raise MemoryError

    monkeypatch.setattr(neural_network.MLPClassifier, "_backprop", fails)
    with pytest.raises(MemoryError):
        model.fit(x, y)
    assert model.get_params() == before


def test_a_fit_that_has_moved_nothing_warns_that_it_has_not_converged():
    """scikit-learn alone ends it without a word: the loss did not improve any more."""
    x, y = data("MLPRegressor", np.float32)
    x, y = x * np.float32(1e6), np.full_like(y, 1e15)  # the loss is finite
    model = MLPRegressor(nonfinite="skip", tol=1e25, random_state=0)
    message = "^no step was made: the gradients of all 12 are not finite, and nonfinite is 'skip'"
    with pytest.warns(ConvergenceWarning, match=message) as caught:
        model.fit(x, y)
    assert [warning.filename for warning in caught] == [__file__]
    assert (model.optimizer_.iterations, model.n_iter_) == (0, 12)
    with pytest.warns(ConvergenceWarning, match="^no step was made: the gradients of all 1 are"):
        partial(model, x, y)


@few_epochs
def test_steps_that_are_not_finite_are_refused_or_left_out_and_counted():
    x, y = data("MLPRegressor", np.float32)
    y[7] = 1e25  # the squares of its gradients overflow
    given = {"batch_size": 10, "max_iter": 3, "shuffle": False}
    with pytest.raises(ValueError, match=r"grads\[\d\]"):
        MLPRegressor(nonfinite="raise", **given).fit(x, y)
    model = MLPRegressor(nonfinite="skip", **given)
    model.fit(x, y)
    assert model.optimizer_.skipped_steps == 3
    assert model.optimizer_.iterations == 15


def test_early_stopping_keeps_the_best_weights_of_real_digits(digits):
    x, x_test, y, y_test = digits
    model = MLPClassifier(
        batch_size=32, learning_rate_init=0.003, early_stopping=True, random_state=0
    ).fit(x, y)
    assert model.n_iter_ < model.max_iter
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert model.validation_scores_[-1] < model.best_validation_score_
    assert model.score(x_test, y_test) > 0.95


def test_verbose_says_what_scikit_learn_says(capsys):
    x, y = data("MLPClassifier")
    with pytest.warns(ConvergenceWarning):
        model = MLPClassifier(hidden_layer_sizes=(4,), max_iter=2, verbose=True).fit(x, y)
    lines = [f"Iteration {i + 1}, loss = {loss:.8f}" for i, loss in enumerate(model.loss_curve_)]
    assert capsys.readouterr().out.splitlines() == lines


def test_a_grid_search_in_two_processes_over_a_pipeline(digits):
    x, x_test, y, y_test = digits
    mlp = MLPClassifier(
        hidden_layer_sizes=(32,), batch_size=32, early_stopping=True, random_state=0
    )
    grid = {
        "mlpclassifier__learning_rate_init": [1e-5, 3e-3],
        "mlpclassifier__solver": ["rmsprop", "adam"],
        "mlpclassifier__rho": [0.9],
    }
    search = GridSearchCV(make_pipeline(StandardScaler(), mlp), grid, cv=2, n_jobs=2)
    search.fit(x[:600], y[:600])
    assert search.best_params_["mlpclassifier__learning_rate_init"] == 3e-3
    assert search.score(x_test, y_test) > 0.8
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@few_epochs
@pytest.mark.parametrize("name", OURS)
def test_a_clone_has_the_parameters_and_nothing_of_the_fit(name):
    given = {**EVERY_OPTION, "momentum": 0.5, "max_iter": 2, "random_state": 0}
    model = OURS[name](hidden_layer_sizes=(3,), **given).fit(*data(name))
    cloned = clone(model)
    assert cloned.get_params() == model.get_params()
    assert set(vars(cloned)) == set(vars(OURS[name]()))
    same_weights(cloned.fit(*data(name)), model)
    assert f"{name}(" in repr(model)
    assert "bias_correction=True" in repr(model)
    assert "centered" in model._repr_html_()


def test_importing_it_without_scikit_learn_says_what_to_install(tmp_path):
    code = """
        import sys
        sys.modules["sklearn"] = None
        import rmsprop_c
        try:
            import rmsprop_c.sklearn
        except ImportError as error:
            assert "pip install 'rmsprop_c[sklearn]'" in str(error), error
        else:
            raise AssertionError
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=tmp_path)


def test_the_page_lists_every_parameter_of_ours():
    page = (Path(__file__).parents[2] / "docs/sklearn.md").read_text()
    table = page.split("## Parameters")[1].split("\n## ")[0]
    listed = {
        name
        for line in table.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    shared = {"solver", "learning_rate_init", "learning_rate", "power_t", "epsilon"}
    assert listed == set(integration.OPTIONS) | shared | set(integration.MOMENTUM)
