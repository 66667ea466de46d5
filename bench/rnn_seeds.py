"""The recurrent network of examples/rnn.py from several random starts: RMSprop and plain descent.

The sequences of a start are the same for both methods and for all learning rates. The losses depend
on the order in which the BLAS adds, so their last digits are those of one machine.

    python bench/rnn_seeds.py --out bench/results/rnn.json
"""

import argparse
import importlib.util
import json
from pathlib import Path

import numpy as np
from limit import processor
from tqdm import tqdm

from rmsprop_c import build_info

HERE = Path(__file__).resolve().parent
SPEC = importlib.util.spec_from_file_location("rnn", HERE.parent / "examples/rnn.py")
rnn = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(rnn)
WINDOW = 50  # updates of which the recorded losses are means


def table(result):
    """The errors as Markdown, the starts in one cell."""
    lines = ["| method | lr | median | smallest to largest |", "|---|---|---|---|"]
    for row in result["runs"]:
        errors = row["errors"]
        lines.append(
            f"| {row['method']} | {row['lr']:g} | {np.median(errors):.4f} "
            f"| {min(errors):.4f} to {max(errors):.4f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the results, as JSON")
    arguments = parser.parse_args()
    pairs = [(name, lr) for name, rates in rnn.LEARNING_RATES.items() for lr in rates]
    runs = []
    with tqdm(total=len(pairs) * arguments.seeds * rnn.UPDATES, unit="update") as progress:
        for name, lr in pairs:
            progress.set_description(f"{name} lr={lr:g}")
            errors, curves = [], []
            for seed in range(arguments.seeds):
                losses, error = rnn.train(rnn.METHODS[name](lr), progress, seed)
                errors.append(float(error))
                curves.append(np.reshape(losses, (-1, WINDOW)).mean(axis=1).astype(float).tolist())
            runs.append({"method": name, "lr": lr, "errors": errors, "losses": curves})
    result = {
        "machine": {"processor": processor(), "numpy": np.__version__, **build_info()},
        "length": rnn.LENGTH,
        "window": WINDOW,
        "runs": runs,
    }
    print(table(result))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
