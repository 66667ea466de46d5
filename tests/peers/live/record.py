"""Runs all cases in the frameworks that are installed and writes recorded/ again.

Run it in the peers' environment: bench/.venv/bin/python tests/peers/record.py

cases.json has a case on each line, inputs.npz the starts and the gradients, and <framework>.npz the
parameters after calls 1, 2, 10 and 50, and with use_ema their averages: all of a model in one row.
"""

import importlib.metadata
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from cases import DTYPES, grid, inputs
from frameworks import DISTRIBUTIONS, FRAMEWORKS, trajectory
from tqdm import tqdm

RECORDED = Path(__file__).parents[1] / "recorded"
CALLS = (1, 2, 10, 50)


def rows(models):
    return np.stack([np.concatenate([p.ravel() for p in models[call - 1]]) for call in CALLS])


def main():
    cases = grid()
    arrays = {"inputs": {}} | {framework: {} for framework in FRAMEWORKS}
    for case in tqdm(cases):
        for dtype in DTYPES:
            start, grads = inputs(dtype, case.scale)
            for i, p in enumerate(start):
                arrays["inputs"][f"start/{dtype}/{i}"] = p
                each = np.stack([call[i] for call in grads])
                arrays["inputs"][f"grads/{dtype}/{case.scale}/{i}"] = each
            params, averages = trajectory(case, dtype)
            arrays[case.framework][f"{case.name}/{dtype}"] = rows(params)
            if averages:
                arrays[case.framework][f"{case.name}/{dtype}/averages"] = rows(averages)
    for name, each in arrays.items():
        np.savez_compressed(RECORDED / f"{name}.npz", **each)
    lines = ",\n".join(json.dumps(asdict(case)) for case in cases)
    (RECORDED / "cases.json").write_text(f"[\n{lines}\n]\n")
    versions = {name: importlib.metadata.version(name) for name in DISTRIBUTIONS}
    (RECORDED / "versions.json").write_text(json.dumps(versions, indent=4) + "\n")


if __name__ == "__main__":
    main()
