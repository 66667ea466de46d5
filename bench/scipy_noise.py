"""Where RMSprop is worth having in scipy.optimize.minimize, and where it is not.

Three kinds of problems, each method with its defaults:

    noise     Rosenbrock's function of 10 variables, normal noise on its value and gradient
    batches   logistic regression on handwritten digits, another 32 images for each value and
              gradient; beside it the same methods on all images, with as many images in all
    smooth    functions without noise: evaluations until no entry of the gradient is above 1e-5

Under noise the line searches of SciPy's methods fail and the methods return. They are then started
again from their last point, until they have used as many evaluations as RMSprop. Only counts and
values are recorded, no times: the same SciPy gives the same file on any machine, but for rounding.

    python bench/scipy_noise.py --out bench/results/scipy.json
"""

import argparse
import json
from pathlib import Path

import numpy as np
import scipy
from scipy.optimize import minimize, rosen, rosen_der
from scipy.special import logsumexp
from sklearn.datasets import load_digits
from tqdm import tqdm

from rmsprop_c.scipy import rmsprop

METHODS = {"RMSprop": rmsprop, "L-BFGS-B": "L-BFGS-B", "BFGS": "BFGS", "CG": "CG"}
SEEDS = 5
EVALUATIONS = 3_000
SIGMAS = (0.0, 1e-2, 1.0, 10.0)
BATCH, BATCHES, PENALTY = 32, 3_000, 1e-3
VARIABLES, MAXITER = (2, 10, 100), 10_000


class SpentError(Exception):
    """All evaluations are used."""


def spend(method, fun, x0, evaluations):
    """The last point after so many evaluations, and how many the first run used."""
    x, used, first = np.array(x0, float), 0, None

    def counted(at):
        nonlocal used
        if used == evaluations:
            raise SpentError
        used += 1
        return fun(at)

    def keep(xk):
        nonlocal x
        x = xk.copy()

    # RMSprop has to know how many iterations there will be, and not to stop by chance.
    options = {"maxiter": evaluations - 1, "gtol": 0} if method is rmsprop else {}
    while used < evaluations:
        before = used
        try:
            x = minimize(counted, x, jac=True, method=method, callback=keep, options=options).x
        except SpentError:
            break
        first = used if first is None else first
        if used == before + 1:  # it has converged: there is nothing more to do
            break
    return x, evaluations if first is None else first


def summary(errors, firsts):
    low, middle, high = np.quantile(errors, (0, 0.5, 1))
    return {
        "error": float(middle),
        "smallest": float(low),
        "largest": float(high),
        "first_run": float(np.median(firsts)),
    }


def noise(progress):
    """The true value at the last point, by sigma and method; the minimum is 0."""
    x0 = np.tile([-1.2, 1.0], 5)
    cells = {}
    for sigma in SIGMAS:
        for name, method in METHODS.items():
            errors, firsts = [], []
            for seed in range(SEEDS):
                rng = np.random.default_rng(seed)

                def fun(x, rng=rng, sigma=sigma):
                    shaken = rosen_der(x) + sigma * rng.standard_normal(x.size)
                    return rosen(x) + sigma * rng.standard_normal(), shaken

                x, first = spend(method, fun, x0, EVALUATIONS)
                errors.append(rosen(x))
                firsts.append(first)
                progress.update()
            cells.setdefault(f"{sigma:g}", {})[name] = summary(errors, firsts)
    return cells


class Regression:
    """Multinomial logistic regression with an L2 penalty on the digits."""

    def __init__(self):
        images, self.digits = load_digits(return_X_y=True)
        self.images = np.hstack([images / 16, np.ones((len(images), 1))])
        self.size = self.images.shape[1] * 10

    def loss(self, x, rows=slice(None)):
        """Mean loss of these images, and its gradient."""
        images, digits = self.images[rows], self.digits[rows]
        weights = x.reshape(-1, 10)
        scores = images @ weights
        logs = scores - logsumexp(scores, axis=1, keepdims=True)
        each = np.arange(len(digits))
        delta = np.exp(logs)
        delta[each, digits] -= 1
        gradient = images.T @ delta / len(digits) + PENALTY * weights
        return -logs[each, digits].mean() + PENALTY / 2 * (x @ x), gradient.ravel()


def batches(progress):
    """The loss over all images at the last point, less the smallest possible."""
    model = Regression()
    best = minimize(
        model.loss,
        np.zeros(model.size),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 100_000, "maxfun": 100_000, "gtol": 1e-9, "ftol": 0},
    ).fun
    passes = BATCH * BATCHES // len(model.digits)
    cells = {"batches": {}, "all images": {}}
    for name, method in METHODS.items():
        errors, firsts = [], []
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)

            def fun(x, rng=rng):
                return model.loss(x, rng.integers(0, len(model.digits), BATCH))

            x, first = spend(method, fun, np.zeros(model.size), BATCHES)
            errors.append(model.loss(x)[0] - best)
            firsts.append(first)
            progress.update()
        cells["batches"][name] = summary(errors, firsts)
        x, first = spend(method, model.loss, np.zeros(model.size), passes)
        cells["all images"][name] = summary([model.loss(x)[0] - best], [first])
        progress.update()
    return {"images": len(model.digits), "passes": passes, "cells": cells}


def smooth(progress):
    """Evaluations until convergence on Rosenbrock's function; None where there is none."""
    cells = {}
    for n in VARIABLES:
        x0 = np.tile([-1.2, 1.0], n // 2)
        for name, method in METHODS.items():
            # ftol of L-BFGS-B is off: all go by the gradient
            options = {"ftol": 0} if name == "L-BFGS-B" else {}
            options["maxiter"] = MAXITER
            found = minimize(rosen, x0, jac=rosen_der, method=method, options=options)
            converged = bool(np.abs(found.jac).max() <= 1e-5)
            cells.setdefault(str(n), {})[name] = int(found.njev) if converged else None
            progress.update()
    return cells


def tables(results):
    """The results as the tables of docs/scipy.md, by name."""
    names = list(METHODS)
    rule = "|" + "---|" * (len(names) + 1)

    def lines(corner, rows):
        head = f"| {corner} | " + " | ".join(names) + " |"
        return "\n".join(
            [head, rule] + [f"| {key} | " + " | ".join(row) + " |" for key, row in rows]
        )

    def errors(cell):
        return [f"{cell[n]['error']:.2g} ({cell[n]['first_run']:,.0f})" for n in names]

    batch = results["batches"]
    return {
        "noise": lines("sigma", [(s, errors(cell)) for s, cell in results["noise"].items()]),
        "batches": lines(
            "",
            [
                (f"{BATCHES:,} times {BATCH} images", errors(batch["cells"]["batches"])),
                (f"{batch['passes']} times all images", errors(batch["cells"]["all images"])),
            ],
        ),
        "smooth": lines(
            "variables",
            [
                (n, ["none" if cell[m] is None else f"{cell[m]:,}" for m in names])
                for n, cell in results["smooth"].items()
            ],
        ),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file for the results, as JSON")
    arguments = parser.parse_args()
    runs = len(METHODS) * (len(SIGMAS) * SEEDS + SEEDS + 1 + len(VARIABLES))
    with tqdm(total=runs, unit="run") as progress:
        results = {
            "versions": {"numpy": np.__version__, "scipy": scipy.__version__},
            "noise": noise(progress),
            "batches": batches(progress),
            "smooth": smooth(progress),
        }
    for name, table in tables(results).items():
        print(f"\n{name}\n{table}")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
