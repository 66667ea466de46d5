"""Whole fits of scikit-learn's MLPClassifier: its own Adam and SGD, and RMSprop from here.

The data are real: scikit-learn's 1,797 handwritten digits, as they are (8x8) and enlarged to 28x28
at several random places, which is the size of MNIST. Each solver first gets the learning rate with
which it is best on a part of the training images, out of the same grid. Then, in each round, every
solver fits the same data from the same weights for the same number of epochs, one after the other,
in one process; the accuracy is that on the test images. The times inside of the solvers' updates
are summed up too. Where one thread works the clock is the process's own, which leaves out waiting
for other programs; with the BLAS's threads it is the one on the wall.

    python bench/sklearn_fit.py --out bench/results/sklearn.json
    python bench/sklearn_fit.py --draw      docs/sklearn.svg and the table, from that file
"""

import argparse
import json
import warnings
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import sklearn
from limit import processor
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network._stochastic_optimizers import BaseOptimizer
from threadpoolctl import threadpool_info, threadpool_limits
from tqdm import tqdm

from rmsprop_c import build_info
from rmsprop_c.sklearn import MLPClassifier, _Solver

HERE = Path(__file__).resolve().parent
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SOLVERS = {  # adam and sgd are scikit-learn's own code and defaults, SGD's momentum included
    "Adam": {"solver": "adam"},
    "SGD": {"solver": "sgd"},
    "RMSprop": {"solver": "rmsprop"},
    "RMSprop, momentum": {"solver": "rmsprop", "momentum": 0.9},
}
CASES = {  # data, units of the hidden layer, dtype, batch size, epochs, threads of the BLAS
    "64-100-10, float64, batch 200": ("digits", 100, "float64", 200, 100, 1),
    "64-100-10, float64, batch 32": ("digits", 100, "float64", 32, 30, 1),
    "784-512-10, float32, batch 32": ("enlarged", 512, "float32", 32, 3, 1),
    "784-512-10, float32, batch 200": ("enlarged", 512, "float32", 200, 5, 1),
    "784-512-10, float32, batch 1000": ("enlarged", 512, "float32", 1000, 10, 1),
    "784-512-10, float64, batch 200": ("enlarged", 512, "float64", 200, 5, 1),
    "784-512-10, float32, batch 200, BLAS's threads": ("enlarged", 512, "float32", 200, 5, None),
}


def enlarged(images, copies, rng):
    """The 8x8 images as 24x24, at random places of 28x28."""
    large = np.zeros((copies * len(images), 28, 28))
    small = np.kron(np.tile(images.reshape(-1, 8, 8), (copies, 1, 1)), np.ones((3, 3)))
    for place, image, (row, column) in zip(
        large, small, rng.integers(0, 5, (len(large), 2)), strict=True
    ):
        place[row : row + 24, column : column + 24] = image
    return large.reshape(len(large), -1)


def load(name, dtype):
    """Images and labels: to train with, to test with, and the former in two parts."""
    images, labels = load_digits(return_X_y=True)

    def split(x, y):
        x, rest, y, y_rest = train_test_split(x, y, test_size=0.25, stratify=y, random_state=0)
        return (x, y), (rest, y_rest)

    train, test = split(images / 16, labels)
    part, held = split(*train)
    sets = {"train": train, "test": test, "part": part, "held": held}
    for key, (x, y) in sets.items():
        copies = 8 if key in ("train", "part") else 1
        if name == "enlarged":
            x, y = enlarged(x, copies, np.random.default_rng(0)), np.tile(y, copies)
        sets[key] = x.astype(dtype), y
    return sets


class Watch:
    """The clock in use, and the time that updates took by it."""

    clock = staticmethod(perf_counter)
    updates = 0.0


def count_updates(watch):
    """Let every update add its time."""
    for solver in (BaseOptimizer, _Solver):

        def timed(self, params, grads, update=solver.update_params):
            begin = watch.clock()
            update(self, params, grads)
            watch.updates += watch.clock() - begin

        solver.update_params = timed


def fit(solver, rate, data, case, seed=0):
    _, hidden, _, batch, epochs, _ = case
    model = MLPClassifier(
        hidden_layer_sizes=(hidden,),
        batch_size=batch,
        learning_rate_init=rate,
        max_iter=epochs,
        n_iter_no_change=epochs,
        random_state=seed,
        **SOLVERS[solver],
    )
    return model.fit(*data)


def best_rates(case, sets):
    """Each solver's learning rate, and the accuracy on the images held back that chose it."""
    chosen = {}
    for solver in SOLVERS:
        scores = {r: fit(solver, r, sets["part"], case).score(*sets["held"]) for r in RATES}
        rate = max(scores, key=scores.get)
        chosen[solver] = {"rate": rate, "held": scores[rate]}
    return chosen


def measure(case, rates, sets, rounds, watch, progress):
    """Seconds of whole fits, of the updates in them, and accuracies, by solver and round."""
    watch.clock = process_time if case[-1] == 1 else perf_counter
    rows = {s: {**rates[s], "fit": [], "update": [], "accuracy": []} for s in SOLVERS}
    with threadpool_limits(case[-1], user_api="blas"):
        for count in range(rounds):
            names = list(SOLVERS)
            for solver in names[count % len(names) :] + names[: count % len(names)]:
                watch.updates, begin = 0.0, watch.clock()
                model = fit(solver, rates[solver]["rate"], sets["train"], case, seed=count)
                rows[solver]["fit"].append(watch.clock() - begin)
                rows[solver]["update"].append(watch.updates)
                rows[solver]["accuracy"].append(model.score(*sets["test"]))
                rows[solver]["steps"] = case[4] * -(-len(sets["train"][0]) // case[3])
                progress.set_postfix_str(f"{solver} {rows[solver]['fit'][-1]:.2f} s")
    return rows


def table(result):
    """Each case's figures: the smallest times of all rounds, the mean accuracy."""
    lines = [
        "| | | fit, s | of Adam's | an update, us | updates in all | accuracy | learning rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in result["cases"].items():
        adam = min(rows["Adam"]["fit"])
        for solver, row in rows.items():
            best = int(np.argmin(row["fit"]))
            lines.append(
                f"| {name if solver == 'Adam' else ''} | {solver} | {row['fit'][best]:.2f} "
                f"| {row['fit'][best] / adam:.2f} | {min(row['update']) / row['steps'] * 1e6:,.0f} "
                f"| {row['update'][best] / row['fit'][best]:.0%} "
                f"| {np.mean(row['accuracy']):.1%} | {row['rate']:g} |"
            )
    return "\n".join(lines)


def draw(result, path):
    """Stacked bars: what a fit spends in updates, and elsewhere."""
    from plot import COLOURS, GREY, STYLE, plt

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 0.25 * len(result["cases"]) * 5 + 1))
        y, ticks = 0, []
        for name, rows in result["cases"].items():
            axes.text(0, y, name, va="center", color=GREY, weight="bold")
            adam = min(rows["Adam"]["fit"])
            for solver, row in rows.items():
                y -= 1
                best = int(np.argmin(row["fit"]))
                update, whole = row["update"][best] / adam, row["fit"][best] / adam
                axes.barh(y, whole - update, color=COLOURS[2])
                axes.barh(y, update, left=whole - update, color=COLOURS[0])
                axes.text(whole, y, f" {np.mean(row['accuracy']):.1%}", va="center", color=GREY)
                ticks.append((y, solver))
            y -= 1.2
        axes.set_yticks(*zip(*ticks, strict=True))
        axes.set_ylim(y + 0.5, 0.7)
        axes.set_xlabel(
            "time of a whole fit, Adam's being 1; behind it the accuracy on test images"
        )
        bars = [plt.Rectangle((0, 0), 1, 1, color=c) for c in (COLOURS[2], COLOURS[0])]
        axes.legend(
            bars, ["gradients and the rest", "updates"], loc="lower center", ncols=2,
            bbox_to_anchor=(0.4, 1.0),
        )  # fmt: skip
        figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=";".join(CASES), help="names, by semicolons")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the results, as JSON")
    parser.add_argument("--draw", action="store_true", help="only draw the recorded results")
    arguments = parser.parse_args()
    recorded = HERE / "results/sklearn.json"
    if arguments.draw:
        result = json.loads(recorded.read_text())
        draw(result, HERE.parent / "docs/sklearn.svg")
        print(table(result))
        return
    warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is given
    watch, results, rates = Watch(), {}, {}
    count_updates(watch)
    with tqdm(arguments.cases.split(";"), unit="case") as progress:
        for name in progress:
            progress.set_description(name)
            case = CASES[name]
            sets = load(case[0], case[2])
            if case[:-1] not in rates:
                progress.set_postfix_str("learning rates")
                with threadpool_limits(1, user_api="blas"):
                    rates[case[:-1]] = best_rates(case, sets)
            results[name] = measure(case, rates[case[:-1]], sets, arguments.rounds, watch, progress)
    facts = {
        "processor": processor(),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "blas": [f"{x['internal_api']} {x['version']}" for x in threadpool_info()],
        "threads": [x["num_threads"] for x in threadpool_info()],
        **build_info(),
    }
    result = {"machine": facts, "cases": results}
    print(table(result))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
