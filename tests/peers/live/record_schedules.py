"""Writes the schedules of the installed Keras 3, in float64, to recorded/schedules.npz.

Run it in the peers' environment: python tests/peers/record_schedules.py [FILE]
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

RECORDED = Path(__file__).parents[1] / "recorded" / "schedules.npz"
STEPS = 1000  # values of steps 0 to 1000

CASES = [
    ("ExponentialDecay", {"decay_steps": 100, "decay_rate": 0.96}),
    ("ExponentialDecay", {"decay_steps": 100, "decay_rate": 0.96, "staircase": True}),
    ("ExponentialDecay", {"decay_steps": 33.3, "decay_rate": 0.5}),
    ("ExponentialDecay", {"decay_steps": 7, "decay_rate": 1.01}),
    ("ExponentialDecay", {"decay_steps": 300, "decay_rate": 0.0, "staircase": True}),
    ("InverseTimeDecay", {"decay_steps": 1, "decay_rate": 0.5}),
    ("InverseTimeDecay", {"decay_steps": 0.7, "decay_rate": 0.01}),
    ("InverseTimeDecay", {"decay_steps": 90, "decay_rate": 2.5, "staircase": True}),
    ("PiecewiseConstantDecay", {"boundaries": [100], "values": [0.1, 0.03]}),
    ("PiecewiseConstantDecay", {"boundaries": [0, 7, 999], "values": [0.1, 0.7, 0.2, 0.0]}),
    ("PiecewiseConstantDecay", {"boundaries": [50, 50], "values": [0.1, 0.2, 0.3]}),
    ("PolynomialDecay", {"decay_steps": 700}),
    ("PolynomialDecay", {"decay_steps": 1000, "end_learning_rate": 0.3, "power": 2.0}),
    ("PolynomialDecay", {"decay_steps": 333.25, "power": 0.5}),
    ("PolynomialDecay", {"decay_steps": 90, "power": 0.0, "end_learning_rate": 0.01}),
    ("PolynomialDecay", {"decay_steps": 90, "power": 1.5, "cycle": True}),
    ("PolynomialDecay", {"decay_steps": 12.5, "end_learning_rate": 0.0, "cycle": True}),
    ("CosineDecay", {"decay_steps": 800}),
    ("CosineDecay", {"decay_steps": 250.5, "alpha": 0.1}),
    ("CosineDecay", {"decay_steps": 800, "warmup_steps": 100}),
    ("CosineDecay", {"decay_steps": 800, "warmup_target": 0.3, "warmup_steps": 100}),
    ("CosineDecay", {"decay_steps": 500, "warmup_target": 0.3, "warmup_steps": 7, "alpha": 0.05}),
    ("CosineDecay", {"decay_steps": 500, "warmup_target": 0.01}),
    ("CosineDecayRestarts", {"first_decay_steps": 100}),
    ("CosineDecayRestarts", {"first_decay_steps": 100, "t_mul": 1.0, "m_mul": 0.9}),
    ("CosineDecayRestarts", {"first_decay_steps": 33.3, "t_mul": 1.5, "m_mul": 0.8, "alpha": 0.05}),
    ("CosineDecayRestarts", {"first_decay_steps": 1, "t_mul": 3}),
    ("CosineDecayRestarts", {"first_decay_steps": 64, "t_mul": 1.25, "m_mul": 1.1}),
    ("CosineDecayRestarts", {"first_decay_steps": 600, "t_mul": 0.5, "m_mul": 0.5}),
]


def main():
    # TensorFlow and JAX compute schedules in float32 whatever floatx says. torch computes them in
    # float64, but rounds decay_steps where a step is cut to them: float32 must hold those of
    # CosineDecay and of PolynomialDecay without a cycle.
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    keras.config.set_floatx("float64")
    names, values = [], []
    for name, arguments in CASES:
        if name != "PiecewiseConstantDecay":
            arguments = {"initial_learning_rate": 0.1, **arguments}
        schedule = getattr(keras.optimizers.schedules, name)(**arguments)
        rates = [schedule(step) for step in range(STEPS + 1)]
        assert {keras.backend.standardize_dtype(rate.dtype) for rate in rates} == {"float64"}
        names.append(json.dumps([name, arguments]))
        values.append([float(rate) for rate in rates])
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDED
    np.savez_compressed(path, cases=names, values=values, keras=keras.__version__)


if __name__ == "__main__":
    main()
