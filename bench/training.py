"""What the optimizer costs in a real training loop, for NumPy's update and for ours.

A multilayer perceptron is trained on random data with NumPy matmuls on the BLAS's own default
threads: what the package's threads meet in practice, unlike in back-to-back steps, are caches that
the matmuls have used and BLAS workers that spin. In each round every policy trains the same few
iterations, one after the other, so that the machine's drifts meet all of them:

    numpy     the update as NumPy expressions with out= everywhere
    serial    set_num_threads(1)
    default   the default policy
    team      set_num_threads(all): a team that stays awake

    python bench/training.py --out bench/results/training.json
"""

import argparse
import itertools
import json
from pathlib import Path
from time import perf_counter

import numpy as np
from limit import processor
from tqdm import tqdm

from rmsprop_c import RMSprop, build_info, get_num_threads, set_num_threads

BATCH = 32
DATA = 60_000  # images of an epoch, as in MNIST
MODELS = {  # units of each layer
    "1e4": (784, 12, 10),
    "1e5": (784, 128, 10),
    "784-512-10": (784, 512, 10),
    "1e6": (784, 1250, 10),
    "4e6": (784, 1600, 1600, 10),
    "1e7": (784, 2750, 2750, 10),
    "3e7": (784, 5000, 5000, 10),
}


class NumpyOut:
    """RMSprop as NumPy expressions that allocate nothing."""

    def __init__(self, params):
        self.accumulators = [np.zeros_like(p) for p in params]
        self.scratch = [(np.empty_like(p), np.empty_like(p)) for p in params]

    def step(self, params, grads):
        lr, rho, epsilon = np.float32(1e-5), np.float32(0.9), np.float32(1e-8)
        rest = np.float32(1) - rho
        for p, g, a, (t, u) in zip(params, grads, self.accumulators, self.scratch, strict=True):
            np.multiply(g, g, out=t)
            np.multiply(t, rest, out=t)
            np.multiply(a, rho, out=a)
            np.add(a, t, out=a)
            np.sqrt(a, out=t)
            np.add(t, epsilon, out=t)
            np.multiply(g, lr, out=u)
            np.divide(u, t, out=u)
            np.subtract(p, u, out=p)


class Network:
    """Rectified layers and a squared loss; gradients are written into fixed arrays."""

    def __init__(self, units, rng):
        self.params, self.grads = [], []
        for inputs, outputs in itertools.pairwise(units):
            w = rng.standard_normal((inputs, outputs), np.float32) / np.float32(np.sqrt(inputs))
            self.params += [w, np.zeros(outputs, np.float32)]
        self.grads = [np.empty_like(p) for p in self.params]

    def gradients(self, x, y):
        weights, biases = self.params[::2], self.params[1::2]
        layers = [x]
        for w, b in zip(weights, biases, strict=True):
            z = layers[-1] @ w
            z += b
            if w is not weights[-1]:
                np.maximum(z, 0, out=z)
            layers.append(z)
        delta = (layers[-1] - y) / np.float32(len(x))
        for i in reversed(range(len(weights))):
            np.matmul(layers[i].T, delta, out=self.grads[2 * i])
            np.sum(delta, axis=0, out=self.grads[2 * i + 1])
            if i:
                delta = delta @ weights[i].T
                delta *= layers[i] > 0


def measure(units, seconds, progress):
    """Seconds per iteration, and per update in it, by policy: medians over rounds, and ratios."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, units[0]), np.float32)
    y = rng.standard_normal((BATCH, units[-1]), np.float32)
    network = Network(units, rng)
    team = get_num_threads()
    optimizers = {
        "numpy": (None, NumpyOut(network.params)),
        "serial": (1, RMSprop(lr=1e-5)),
        "default": (None, RMSprop(lr=1e-5)),
        "team": (team, RMSprop(lr=1e-5)),
    }

    def train(optimizer, iterations):
        updates = 0.0
        begin = perf_counter()
        for _ in range(iterations):
            network.gradients(x, y)
            start = perf_counter()
            optimizer.step(network.params, network.grads)
            updates += perf_counter() - start
        return (perf_counter() - begin) / iterations, updates / iterations

    iteration, _ = train(optimizers["numpy"][1], 3)
    iterations = max(2, int(0.05 / iteration))
    rounds = {name: [] for name in optimizers}
    end = perf_counter() + seconds
    count = 0
    while perf_counter() < end or count < 5:
        order = list(optimizers)
        order = order[count % len(order) :] + order[: count % len(order)]
        for name in order:
            threads, optimizer = optimizers[name]
            set_num_threads(threads)
            train(optimizer, 1)  # the first one meets the caches of the policy before
            rounds[name].append(train(optimizer, iterations))
        count += 1
        progress.set_postfix(rounds=count)
    set_num_threads(None)
    serial = np.array(rounds["serial"])[:, 0]
    result = {}
    for name, values in rounds.items():
        whole, update = np.array(values).T
        result[name] = {
            "iteration": float(np.median(whole)),
            "iteration_quartiles": [float(q) for q in np.quantile(whole, (0.25, 0.75))],
            "update": float(np.median(update)),
            "share": float(np.median(update / whole)),
            "to_serial": float(np.median(whole / serial)),
            "epoch": float(np.median(whole)) * DATA / BATCH,
        }
    return {
        "units": units,
        "weights": sum(p.size for p in network.params),
        "rounds": count,
        "policies": result,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS), help="names, by commas")
    parser.add_argument("--seconds", type=float, default=20, help="for each model")
    parser.add_argument("--out", type=Path, help="file for the results, as JSON")
    arguments = parser.parse_args()
    results = {}
    with tqdm(arguments.models.split(","), unit="model") as progress:
        for name in progress:
            progress.set_description(name)
            results[name] = measure(MODELS[name], arguments.seconds, progress)
    print(f"{'model':>12} {'weights':>9}  ms per iteration (share of the update)")
    for name, result in results.items():
        cells = "  ".join(
            f"{policy} {cell['iteration'] * 1e3:8.3f} ({cell['share']:4.0%})"
            f" x{cell['to_serial']:.3f}"
            for policy, cell in result["policies"].items()
        )
        print(f"{name:>12} {result['weights']:>9}  {cells}")
    if arguments.out:
        facts = {"processor": processor(), "numpy": np.__version__, **build_info()}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"machine": facts, "models": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
