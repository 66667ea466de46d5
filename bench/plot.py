"""Draws the recorded results: make plots writes docs/*.svg and docs/comparison.md.

The SVGs have no background and mid-tone colours: they can be read on light and on dark pages.
"""

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
from compare import table
from tqdm import tqdm

mpl.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
RESULTS, DOCS = HERE / "results", HERE.parent / "docs"
GREY = "#7d7d7d"
COLOURS = ["#d1495b", "#2a9d8f", "#4a7fd4", "#c98b1b", "#9467bd", "#8c8c8c"]
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rmsprop_c",  # the same file from the same results
    "savefig.transparent": True,
    "font.size": 10,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def read(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def save(figure, name):
    figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def speedup():
    """How many times longer each peer's step takes than ours: float32, one thread."""
    result = read("compare")
    cells = [c for c in result["cells"] if c["dtype"] == "float32" and c["threads"] == 1]
    models = list(dict.fromkeys(c["model"] for c in cells))
    ratios = {}
    for cell in cells:
        for name, row in cell["rows"].items():
            if name in result["peers"]:
                ratio = row["ratio"]["opt.step"]["median"]
                ratios.setdefault(name, {})[cell["model"]] = ratio
    names = sorted(ratios, key=lambda name: np.median(list(ratios[name].values())), reverse=True)
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(names) + 1.4))
    for i, model in enumerate(models):
        points = [(ratios[n][model], y) for y, n in enumerate(names) if model in ratios[n]]
        offset = (i - (len(models) - 1) / 2) * 0.09
        axes.scatter(
            [x for x, _ in points], [y + offset for _, y in points], s=26, label=model, zorder=3
        )
    axes.axvline(1, color=GREY, linewidth=1.5)
    marks = {"inside": " *", None: " +", "outside": ""}
    axes.set_yticks(range(len(names)), [n + marks[result["peers"][n]["formula"]] for n in names])
    axes.set_xscale("log")
    axes.set_xlabel(
        "time of a step, as a multiple of rmsprop_c's  "
        "(* epsilon in the root, + Adam: other formulas)"
    )
    axes.set_title(f"float32, 1 thread, {result['machine']['processor']}", color=GREY)
    axes.grid(axis="x")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.09), ncols=6, columnspacing=1)
    save(figure, "speedup")


def bandwidth():
    """Bytes moved per second over the size of one array, against the limits."""
    result = read("sweep")
    rows = [row for row in result["sizes"] if "ours" in row]
    figure, axes = plt.subplots(figsize=(8, 4.6))
    for i, threads in enumerate(sorted({row["threads"] for row in rows})):
        here = [row for row in rows if row["threads"] == threads]
        n = np.array([row["n"] for row in here])

        def rate(name, here=here, n=n):
            return 20e-9 * n / np.array([row[name]["median"] for row in here])

        plural = "s" if threads > 1 else ""
        axes.plot(n, rate("ours"), "o-", color=COLOURS[i], markersize=4)
        axes.plot([], [], "o-", color=COLOURS[i], label=f"rmsprop_c, {threads} thread{plural}")
        for name, style, label in (
            ("traffic", "--", f"memory traffic alone, {threads} thread{plural}"),
            ("divider", ":", f"root and division on the divider alone, {threads} thread{plural}"),
        ):
            axes.plot(n, rate(name), style, color=COLOURS[i], linewidth=1.2, label=label)
    for name, size in sorted(result["machine"]["caches"].items()):
        elements = size / 12
        if elements < n.max():
            axes.axvline(elements, color=GREY, linewidth=1, linestyle=":")
            axes.text(elements, axes.get_ylim()[1], f" {name}", va="top", fontsize=9)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("elements of one float32 array (12 bytes each with gradient and accumulator)")
    axes.set_ylabel("GB/s read and written")
    axes.set_title(result["machine"]["processor"], color=GREY)
    axes.grid()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=9)
    save(figure, "bandwidth")


def scaling():
    """Speed over the number of threads of a persistent team."""
    result = read("sweep")
    figure, axes = plt.subplots(figsize=(5.5, 3.8))
    most = 1
    for row in result["scaling"]:
        counts = sorted(int(key) for key in row if key.isdigit())
        most = max(most, *counts)
        axes.plot(counts, [1 / row[str(c)]["ratio"] for c in counts], "o-", label=row["model"])
    axes.plot([1, most], [1, most], ":", color=GREY, label="ideal")
    axes.set_xticks(range(1, most + 1))
    axes.set_xlabel("threads")
    axes.set_ylabel("times as fast as 1 thread")
    axes.set_ylim(bottom=0)
    axes.set_title(result["machine"]["processor"], color=GREY)
    axes.grid()
    axes.legend()
    save(figure, "scaling")


def variants():
    """Each option on 25 million elements against the memory traffic that it needs."""
    result = read("sweep")
    rows = result["variants"]
    names = list(dict.fromkeys(row["option"] for row in rows))[::-1]
    series = list(dict.fromkeys((row["dtype"], row["threads"]) for row in rows))
    figure, axes = plt.subplots(figsize=(8, 0.26 * len(names) + 1.2))
    for i, (dtype, threads) in enumerate(series):
        here = [r for r in rows if (r["dtype"], r["threads"]) == (dtype, threads)]
        offset = (i - (len(series) - 1) / 2) * 0.12
        axes.scatter(
            [row["ours"]["ratio"] for row in here],
            [names.index(row["option"]) + offset for row in here],
            s=22,
            label=f"{dtype}, {threads} thread{'s' if threads > 1 else ''}",
            zorder=3,
        )
    axes.axvline(1, color=GREY, linewidth=1.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, 1.3)
    axes.set_xlabel("time of a step, as a multiple of its own memory traffic without arithmetic")
    axes.set_title(f"25 million elements, {result['machine']['processor']}", color=GREY)
    axes.grid(axis="x")
    axes.legend(loc="center left", fontsize=9)
    save(figure, "options")


def epoch():
    """Where the time of a training iteration goes, with NumPy's update and with ours."""
    result = read("training")
    names = list(result["models"])
    figure, axes = plt.subplots(figsize=(8, 3.8))
    for x, name in enumerate(names):
        policies = result["models"][name]["policies"]
        whole = policies["numpy"]["iteration"]
        for offset, policy, colour in ((-0.2, "numpy", COLOURS[0]), (0.2, "default", COLOURS[2])):
            cell = policies[policy]
            rest = (cell["iteration"] - cell["update"]) / whole
            update = cell["update"] / whole
            axes.bar(x + offset, rest, 0.36, color=GREY, alpha=0.35)
            axes.bar(x + offset, update, 0.36, bottom=rest, color=colour)
            axes.text(x + offset, rest + update + 0.01, f"{cell['share']:.0%}", ha="center")
    axes.bar(0, 0, color=GREY, alpha=0.35, label="forward and backward (NumPy)")
    axes.bar(0, 0, color=COLOURS[0], label="update: NumPy with out=")
    axes.bar(0, 0, color=COLOURS[2], label="update: rmsprop_c")
    axes.set_xticks(range(len(names)), names)
    axes.set_xlabel("weights of the network (batches of 32)")
    axes.set_ylabel("time of an iteration\n(NumPy = 1)")
    axes.set_ylim(0, 1.42)
    axes.set_title(result["machine"]["processor"], color=GREY)
    axes.legend(ncols=3, loc="upper center", fontsize=9)
    save(figure, "epoch")


def rnn():
    """Losses of the recurrent network: each method's best learning rate from each start."""
    result = read("rnn")
    best = {}
    for run in result["runs"]:
        kept = best.setdefault(run["method"], run)
        if np.median(run["errors"]) < np.median(kept["errors"]):
            best[run["method"]] = run
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for (method, run), colour in zip(best.items(), (COLOURS[2], COLOURS[0]), strict=True):
        losses = np.array(run["losses"])
        updates = np.arange(1, losses.shape[1] + 1) * result["window"]
        axes.semilogy(updates, losses.T, color=colour, alpha=0.35, linewidth=1)
        label = f"{method}, lr {run['lr']:g}"
        axes.semilogy(updates, np.median(losses, axis=0), color=colour, linewidth=2, label=label)
    axes.axhline(1 / 6, color=GREY, linestyle=":", label="always saying 1")
    axes.set_xlabel(f"updates (losses are means of {result['window']})")
    axes.set_ylabel("mean squared error")
    starts = len(best["RMSprop"]["errors"])
    axes.set_title(f"Adding two of {result['length']} numbers: {starts} starts, median", color=GREY)
    axes.grid()
    axes.legend()
    save(figure, "rnn")


def comparison():
    """All cells of the comparison as a page."""
    text = ["# All cells of the comparison", ""]
    for name in ("compare", "compare-float64"):
        result = read(name)
        versions = ", ".join(f"{key} {value}" for key, value in result["versions"].items())
        text += [
            f"{result['machine']['processor']}, {result['machine']['processors']} processors, "
            f"{result['date']}, instruction set {result['package']['isa']}. {versions}.",
            "",
            "```{code-block} text\n:class: wide",
            table(result).strip("\n"),
            "```",
            "",
        ]
    (DOCS / "comparison.md").write_text("\n".join(text).rstrip() + "\n")


PICTURES = (speedup, bandwidth, scaling, variants, epoch, rnn, comparison)


def main():
    DOCS.mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        for draw in tqdm(PICTURES, unit="picture"):
            draw()


if __name__ == "__main__":
    main()
