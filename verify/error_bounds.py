"""The errors of a step against higher precision, as fractions of the bounds of docs/numerics.md.

python verify/error_bounds.py            # the figures of docs/numerics.md, in some minutes
python verify/error_bounds.py --write    # and the worst cases into tests/exactness/worst_cases.json
"""

import argparse
import decimal
import json
import math
from pathlib import Path

import numpy as np
from tqdm import tqdm

from rmsprop_c import RMSprop, reference

WORST_CASES = Path(__file__).resolve().parents[1] / "tests" / "exactness" / "worst_cases.json"
DIGITS = decimal.Context(prec=60)
VALUES = ("p", "g", "a", "lr", "rho", "epsilon")
KEPT = 4  # worst cases of each kind


def wide(x):
    """The same values where arithmetic is far more precise: float64 for float32, else Decimal."""
    if x.dtype == np.float32:
        return x.astype(np.float64)
    values = [decimal.Decimal(float(v)) for v in np.ravel(x)]
    return np.array(values, object).reshape(np.shape(x))


def extended(x):
    """As `wide`, but for float64 x86's long double, which errs by 2^-11 of a double's error."""
    return x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)


def judge(start, found, scalars, precise=wide, **formula):
    """The errors of one step as fractions of their bounds, by quantity.

    Parameters
    ----------
    start, found : dict of ndarray
        p, g, a and, where the formula has them, m and mean: before and behind the step.
    scalars : dict
        lr, rho, epsilon and, where the formula has them, momentum, weight_decay, rate (what
        decoupled decay takes off) and scale (of the gradient): in the dtype of the arrays, one or
        one for each element.
    precise : callable
        Converts an array to what exact values are computed in.
    **formula
        As of `bounds`.

    Returns
    -------
    dict of ndarray
        By the names of what was found, and "d", the step, where p was 0 before and shows it.
    """
    with decimal.localcontext(DIGITS):
        real = found["p"].dtype.type
        s = {name: precise(np.asarray(value)) for name, value in scalars.items()}
        s["one_minus_rho"] = precise(np.asarray(real(1) - scalars["rho"]))
        s["u"] = precise(np.asarray(np.finfo(real).eps / 2, real))
        x = {name: precise(value) for name, value in start.items()}
        y = {name: precise(value) for name, value in found.items()}
        exact, bound = bounds(x, y, s, **formula)
        ratios = {name: np.abs(y[name] - exact[name]) / bound[name] for name in found}
        if not start["p"].any():
            ratios["d"] = np.abs(y["p"] + exact["lost"]) / bound["lost"]
        return {name: ratio.astype(np.float64) for name, ratio in ratios.items()}


def bounds(
    x,
    y,
    s,
    momentum=False,
    nesterov=False,
    centered=False,
    epsilon_in_sqrt=False,
    lr_in_momentum=True,
    weight_decay=False,
    decoupled_weight_decay=False,
    scaled=False,
):
    """What a step from `x` gives exactly, and how far what was found, `y`, may be from that.

    The names of `reference.update`, and "lost": what p loses. Plain integers alone go with Decimal.
    """
    u = s["u"]
    exact, bound = {}, {}
    p, g = x["p"], x["g"]
    err_p, rel_g = 0 * u, 0  # of what decay leaves of p; of g as the update gets it, in u

    if scaled:
        g, rel_g = s["scale"] * g, 1
    if weight_decay and decoupled_weight_decay:
        p = x["p"] - s["rate"] * x["p"]
        err_p = u * (np.abs(p) + np.abs(s["rate"] * x["p"]))
    elif weight_decay:
        added = s["weight_decay"] * x["p"]
        rel_g = 1 + (rel_g * np.abs(g) + np.abs(added)) / np.abs(g + added)
        g = g + added

    a = s["rho"] * x["a"] + s["one_minus_rho"] * g * g
    exact["a"], bound["a"] = a, u * (3 * a + 2 * rel_g * s["one_minus_rho"] * g * g)
    v, rel_v = a, 3
    if centered:
        kept, taken = s["rho"] * x["mean"], s["one_minus_rho"] * g
        mean = exact["mean"] = kept + taken
        bound["mean"] = u * (np.abs(y["mean"]) + np.abs(kept) + (1 + rel_g) * np.abs(taken))
        v = a - mean * mean
        rel_v = (8 + 4 * rel_g) * a / v + 1

    lr_inside = lr_in_momentum or not momentum
    d = (s["lr"] if lr_inside else 1) * g / denominator(v, s["epsilon"], epsilon_in_sqrt)
    # Half of v's; root, quotient and lr * g; the sum with epsilon, in the root half of it.
    halves = rel_v + 2 * rel_g + 2 * (2 + lr_inside) + (1 if epsilon_in_sqrt else 2)
    err_d = halves * u * np.abs(d) / 2
    lost, err = d, err_d
    if momentum:
        m = s["momentum"] * x["m"] + d
        exact["m"] = lost = m
        err_m = u * np.abs(y["m"]) + u * np.abs(s["momentum"] * x["m"]) + err_d
        bound["m"] = err = err_m
        if nesterov:
            lost = d + s["momentum"] * m
            err = err_d + s["momentum"] * (err_m + u * np.abs(m)) + u * np.abs(lost)
        if not lr_in_momentum:
            lost, err = s["lr"] * lost, s["lr"] * err + u * np.abs(s["lr"] * lost)
    exact["lost"], bound["lost"] = lost, err
    exact["p"], bound["p"] = p - lost, u * np.abs(y["p"]) + err_p + err
    return exact, bound


def denominator(v, epsilon, inside):
    return np.sqrt(v + epsilon) if inside else np.sqrt(v) + epsilon


def spread(rng, n, dtype, low, high):
    """Positive values with random mantissas and exponents in [low, high)."""
    bits = np.finfo(dtype).nmant
    mantissas = 1 + rng.integers(2**bits, size=n) * 2.0**-bits
    return np.ldexp(mantissas, rng.integers(low, high, n)).astype(dtype)


def sample(rng, n, dtype, shared=False):
    """Values and scalars with random exponents: nothing under- or overflows in a step of them.

    Scalars differ from element to element, or are `shared` by all.
    """
    dtype = np.dtype(dtype)
    span = {4: 40, 8: 300}[dtype.itemsize]

    def random(low, high, n=n):
        return spread(rng, n, dtype, low, high)

    def some(share, these, others):
        return np.where(rng.random(n) < share, these, others).astype(dtype)

    def signs():
        return rng.choice(np.array([-1, 1], dtype), n)

    count = 1 if shared else n
    lr, epsilon = random(-20, 4, count), random(-span, 0, count)
    near_0, near_1 = random(-10, 0, count), 1 - random(-10, 0, count)
    rho = np.where(rng.random(count) < 0.5, near_0, near_1)
    lr, rho, epsilon = (np.resize(x, n) for x in (lr, rho, epsilon))
    # Half of the gradients are near epsilon, half of the accumulators near their squares, and
    # parameters from near the step, where p - d cancels, to so large that they hardly feel it.
    g = signs() * some(0.5, epsilon * random(-12, 12), random(-span, span))
    a = some(0.5, g * g * random(-12, 12), random(-2 * span, 2 * span))
    d = lr * g / (np.sqrt(rho * a + (1 - rho) * g * g) + epsilon)
    p = some(0.5, signs() * d * random(-4, 28), d * (1 + some(0.5, 0, random(-20, 0))))
    return dict(zip(VALUES, (p, g, a, lr, rho, epsilon), strict=True))


def split(values):
    """Values of `sample` as start and scalars."""
    start = {name: values[name] for name in ("p", "g", "a")}
    return start, {name: values[name] for name in ("lr", "rho", "epsilon")}


def step(values, **formula):
    """What a step of the definition finds; scalars may differ from element to element."""
    start, scalars = split(values)
    found = {"p": start["p"].copy(), "a": start["a"].copy()}
    reference.update(found["p"], start["g"], found["a"], **scalars, **formula)
    return found


def ratios(values, quantity, precise, **formula):
    """The errors of a quantity, as fractions of its bound."""
    if quantity == "d":
        values = values | {"p": np.zeros_like(values["p"])}
    start, scalars = split(values)
    return judge(start, step(values, **formula), scalars, precise, **formula)[quantity]


def worst(values, found, count):
    """The `count` worst of them."""
    order = np.argsort(found)[-count:]
    return {name: x[order] for name, x in values.items()}, found[order]


def climb(rng, values, found, quantity, precise, rounds, children, **formula):
    """Changes the worst cases at random, as long as that makes them worse."""
    parents = len(found)
    for _ in range(rounds):
        tried = {}
        for name, x in values.items():
            x = np.repeat(x, children)
            digits = rng.integers(0, np.finfo(x.dtype).nmant, x.size)
            change = rng.integers(-1, 2, x.size) << digits
            patterns = x.view(f"i{x.itemsize}")
            tried[name] = (patterns + change.astype(patterns.dtype)).view(x.dtype)
        good = (tried["rho"] > 0) & (tried["rho"] < 1)
        limit = np.finfo(x.dtype).tiny * x.dtype.type(2.0**30)
        for small in (tried["g"] ** 2, tried["a"], tried["lr"] * tried["g"], tried["epsilon"]):
            good &= (np.abs(small) > limit) & np.isfinite(small)
        tried = {name: x[good] for name, x in tried.items()}
        new = ratios(tried, quantity, precise, **formula)
        values = {name: np.concatenate([values[name], tried[name]]) for name in values}
        found = np.concatenate([found, new])
        _, unique = np.unique(values["g"] + values["a"], return_index=True)
        values = {name: x[unique] for name, x in values.items()}
        values, found = worst(values, found[unique], parents)
    return values, found


SEARCHED = (  # quantity, formula, its bound in u
    ("a", {}, 3),
    ("d", {}, 5.5),
    ("d", {"epsilon_in_sqrt": True}, 5),
    ("p", {}, 1),
)


def search(rng, dtype, quantity, formula, samples):
    """The worst of so many random samples, and the worst cases that climbing from them finds."""
    precise = extended if np.finfo(np.longdouble).nmant >= 63 else wide
    at_random, cases = 0.0, []
    for _ in range(KEPT):
        best = None
        for _ in range(max(1, samples // KEPT // 250_000)):
            values = sample(rng, 250_000, dtype)
            found = ratios(values, quantity, precise, **formula)
            at_random = max(at_random, found.max())
            values, found = worst(values, found, 500)
            if best is not None:
                values = {name: np.concatenate([values[name], best[0][name]]) for name in values}
                values, found = worst(values, np.concatenate([found, best[1]]), 500)
            best = values, found
        values, _ = climb(rng, *best, quantity, precise, 80, 100, **formula)
        values = {name: x[-1:] for name, x in values.items()}  # the last is the worst
        if quantity == "d":
            values["p"] = np.zeros_like(values["p"])
        case = {"dtype": dtype, "quantity": quantity, "formula": formula}
        case |= {name: float(x[0]).hex() for name, x in values.items()}
        case["ratio"] = float(ratios(values, quantity, wide, **formula)[0])
        cases.append(case)
    return at_random, sorted(cases, key=lambda case: -case["ratio"])


def drift(rho, steps=3000, n=20_000):
    """How far, in u, accumulators in float32 get from those of the same gradients in float64."""
    rng = np.random.default_rng(1)
    rho = float(np.float32(rho))
    narrow, exact = RMSprop(rho=rho), RMSprop(rho=rho)
    p, q = np.zeros(n, np.float32), np.zeros(n)
    largest = {}
    for kind in ("normal", "constant"):
        narrow.reset()
        exact.reset()
        g = rng.standard_normal(n).astype(np.float32)
        for _ in range(steps):
            if kind == "normal":
                g = rng.standard_normal(n).astype(np.float32)
            narrow.step(p, g)
            exact.step(q, g.astype(np.float64))
        a = exact.weights[0]
        largest[kind] = float((np.abs(narrow.weights[0] - a) / a).max()) * 2**24
    return largest


def cancellation(deviation, dtype, steps=300, n=20_000):
    """Median relative error of a centered step of gradients 1 + deviation * normal."""
    rng = np.random.default_rng(2)
    rho, epsilon = float(np.float32(0.9)), 2.0**-30
    grads = [1 + deviation * rng.standard_normal(n) for _ in range(steps)]
    if dtype == "float32":
        grads = [g.astype(np.float32) for g in grads]
    steps_found = []
    for precise in (np.dtype(dtype).type, np.float64 if dtype == "float32" else np.longdouble):
        a, mean, real = precise(0), precise(0), precise
        for g in grads:
            g = g.astype(real)
            a = real(rho) * a + (1 - real(rho)) * (g * g)
            mean = real(rho) * mean + (1 - real(rho)) * g
        v = np.maximum(a - mean * mean, real(0))
        steps_found.append(g / (np.sqrt(v) + real(epsilon)))
    found, exact = steps_found
    return float(np.median(np.abs(found - exact) / np.abs(exact)))


def norm_error(n, trials=20):
    """Worst relative error, in u, of the norm of float32 gradients of many scales."""
    rng = np.random.default_rng(3)
    largest = 0.0
    for _ in range(trials):
        g = (rng.standard_normal(n) * 10.0 ** rng.uniform(-6, 6, n)).astype(np.float32)
        exact = math.sqrt(math.fsum(g.astype(np.float64) ** 2))  # the squares are exact
        largest = max(largest, abs(reference.global_norm([g]) / exact - 1) * 2**53)
    return largest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="worst_cases.json again")
    parser.add_argument("--samples", type=int, default=20_000_000, help="float32; a tenth else")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    kept = []
    kinds = [(dtype, *kind) for dtype in ("float32", "float64") for kind in SEARCHED]
    for dtype, quantity, formula, limit in tqdm(kinds, "worst cases"):
        samples = arguments.samples // (1 if dtype == "float32" else 10)
        at_random, cases = search(rng, dtype, quantity, formula, samples)
        kept += cases
        inside = ", epsilon in the root" if formula else ""
        unit = "of the bound" if quantity == "p" else f"u of {limit} u"
        tqdm.write(
            f"{dtype}  {quantity}{inside}: at random {at_random * limit:.4f}, "
            f"climbing {cases[0]['ratio'] * limit:.4f} {unit}"
        )
    if arguments.write:
        WORST_CASES.write_text(json.dumps(kept, indent=1) + "\n")
    for rho in (0.9, 0.99, 0.999):
        found = drift(rho)
        limit = 3 + 2 * rho / (1 - rho)
        print(
            f"accumulator of 3000 steps, rho {rho}: normal gradients {found['normal']:.1f} u, "
            f"constant ones {found['constant']:.1f} u, of at most {limit:.0f} u"
        )
    for deviation in (1.0, 1e-1, 1e-2, 1e-3, 1e-4):
        found = ", ".join(
            f"{dtype} {cancellation(deviation, dtype):.1e}" for dtype in ("float32", "float64")
        )
        print(f"centered step, gradients 1 +- {deviation:g}: median relative error {found}")
    for n in (1000, 1_000_000):
        print(f"norm of {n} float32 gradients: {norm_error(n):.2f} u of a double")


if __name__ == "__main__":
    main()
