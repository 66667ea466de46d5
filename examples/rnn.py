"""Train a recurrent network to add two numbers far apart in a sequence: RMSprop and plain SGD.

The adding problem (Hochreiter and Schmidhuber, Long Short-Term Memory, Neural Computation 9(8),
1997; in the form of Le, Jaitly and Hinton, arXiv:1504.00941, 2015): at each of 40 time steps come a
random number in [0, 1) and a mark, which is 1 at one step of each half and 0 elsewhere. At the end
the network has to say the sum of the two marked numbers. Who always says 1 has a mean squared error
of 1/6. The network is that of Le et al.: rectified units whose recurrent weights start as the
identity. Its gradients are written out below.

Both methods get the same clipping, the same sequences and the same number of learning rates. The
script prints every run and draws the losses.

    python examples/rnn.py
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from tqdm import tqdm

from rmsprop_c import RMSprop

mpl.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt

LENGTH, BATCH, HIDDEN, UPDATES = 40, 32, 32, 2500
CLIPNORM = 1.0
LEARNING_RATES = {  # a factor of about 3 apart, and the best of each in the middle
    "RMSprop": (0.0001, 0.0003, 0.001, 0.003, 0.01),
    "SGD": (0.003, 0.01, 0.03, 0.1, 0.3),
}
OUT = Path("out")


def sequences(rng, count):
    """Numbers and marks, shape (LENGTH, count, 2), and the sums, shape (count,)."""
    x = np.zeros((LENGTH, count, 2), np.float32)
    x[..., 0] = rng.random((LENGTH, count))
    half, each = LENGTH // 2, np.arange(count)
    first, second = rng.integers(0, half, count), rng.integers(half, LENGTH, count)
    x[first, each, 1] = x[second, each, 1] = 1
    return x, x[first, each, 0] + x[second, each, 0]


def new_model(rng):
    """Input weights, recurrent weights, biases, output weights and bias."""
    w_in = rng.standard_normal((2, HIDDEN)) * 0.1
    w_out = rng.standard_normal(HIDDEN) * 0.1
    params = [w_in, np.eye(HIDDEN), np.zeros(HIDDEN), w_out, np.zeros(())]
    return [p.astype(np.float32) for p in params]


def forward(params, x):
    """Hidden states before each time step and at the end, and what the network says."""
    w_in, w, b, w_out, b_out = params
    inputs = x @ w_in + b
    hidden = np.zeros((len(x) + 1, *inputs.shape[1:]), inputs.dtype)
    for t, at in enumerate(inputs):
        hidden[t + 1] = np.maximum(at + hidden[t] @ w, 0)
    return hidden, hidden[-1] @ w_out + b_out


def loss_and_gradients(params, x, sums):
    """Mean squared error of a batch, and its gradients by backpropagation through time."""
    _, w, _, w_out, _ = params
    hidden, said = forward(params, x)
    error = said - sums
    d_said = 2 * error / len(error)
    d_inputs = np.empty_like(hidden[1:])
    d_hidden = np.outer(d_said, w_out)
    for t in reversed(range(len(x))):
        d_inputs[t] = d_hidden * (hidden[t + 1] > 0)
        d_hidden = d_inputs[t] @ w.T
    grads = [
        np.tensordot(x, d_inputs, axes=([0, 1], [0, 1])),
        np.tensordot(hidden[:-1], d_inputs, axes=([0, 1], [0, 1])),
        d_inputs.sum(axis=(0, 1)),
        hidden[-1].T @ d_said,
        d_said.sum(),
    ]
    return (error**2).mean(), grads


class SGD:
    """Plain gradient descent, with the same clipping by the norm of all gradients."""

    def __init__(self, lr):
        self.lr = lr

    def step(self, params, grads):
        """Update the parameters in place."""
        norm = np.sqrt(sum(np.vdot(g, g) for g in grads))
        scale = np.float32(self.lr * min(1, CLIPNORM / norm))
        for p, g in zip(params, grads, strict=True):
            p -= scale * g


METHODS = {"RMSprop": lambda lr: RMSprop(lr=lr, clipnorm=CLIPNORM), "SGD": SGD}


def train(optimizer, progress, seed=0):
    """The losses of all updates, and the error on sequences that were never trained on."""
    rng = np.random.default_rng(seed)
    params = new_model(rng)
    test_x, test_sums = sequences(rng, 1000)
    losses = []
    for _ in range(UPDATES):
        loss, grads = loss_and_gradients(params, *sequences(rng, BATCH))
        optimizer.step(params, grads)
        losses.append(loss)
        progress.update()
    return losses, ((forward(params, test_x)[1] - test_sums) ** 2).mean()


def main():
    """Train with each learning rate of each method, compare, and draw the losses."""
    runs = [(name, lr) for name, rates in LEARNING_RATES.items() for lr in rates]
    results = {}
    with tqdm(total=len(runs) * UPDATES, unit="update") as progress:
        for name, lr in runs:
            progress.set_description(f"{name} lr={lr:g}")
            results[name, lr] = train(METHODS[name](lr), progress)
    print("mean squared error on new sequences (always saying 1: 0.1667)")
    for (name, lr), (_, error) in results.items():
        print(f"  {name:8} lr={lr:<7g} {error:.4f}")

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    best = {}
    for colour, (name, rates) in zip(("C0", "C1"), LEARNING_RATES.items(), strict=True):
        best[name] = min(rates, key=lambda lr: results[name, lr][1])
        for lr in rates:
            chosen = lr == best[name]
            axes.semilogy(
                np.arange(1, UPDATES // 50 + 1) * 50,
                np.reshape(results[name, lr][0], (-1, 50)).mean(axis=1),
                color=colour,
                alpha=1 if chosen else 0.25,
                linewidth=2 if chosen else 1,
                label=f"{name}, lr {lr:g}" if chosen else None,
            )
    axes.axhline(1 / 6, color="grey", linestyle=":", label="always saying 1")
    axes.set(
        xlabel=f"updates ({BATCH} sequences each)",
        ylabel="mean squared error",
        title=f"Adding two of {LENGTH} numbers, {len(LEARNING_RATES['SGD'])} learning rates each",
        ylim=(None, 1),
    )
    axes.legend()
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / "rnn.png", dpi=150)
    print(f"losses              {OUT / 'rnn.png'}")
    return 0 if results["RMSprop", best["RMSprop"]][1] < 0.02 else 1


if __name__ == "__main__":
    raise SystemExit(main())
