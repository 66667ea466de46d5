"""Train a small neural network on real handwritten digits, with NumPy and RMSprop alone.

The data are the 1,797 images of 8 x 8 pixels of the UCI machine learning repository that come with
scikit-learn. The network has one hidden layer; its gradients are written out below. Then the same
training is done again with the update written as NumPy expressions: the weights come out with equal
bits, and the times of the two updates are compared.

    python examples/digits.py
"""

from pathlib import Path
from time import perf_counter

import matplotlib as mpl
import numpy as np
from sklearn.datasets import load_digits
from tqdm import trange

from rmsprop_c import RMSprop

mpl.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt

EPOCHS, BATCH, HIDDEN = 60, 32, 256
LR, RHO, EPSILON = 0.001, 0.9, 1e-8
OUT = Path("out")


def load(rng):
    """Images as rows of 64 numbers in [0, 1], and digits; a fifth is held out."""
    images, digits = load_digits(return_X_y=True)
    order = rng.permutation(len(digits))
    images, digits = (images[order] / 16).astype(np.float32), digits[order]
    held_out = len(digits) // 5
    return images[held_out:], digits[held_out:], images[:held_out], digits[:held_out]


def new_model(rng):
    """Weights and biases of 64 -> HIDDEN -> 10, scaled to the number of inputs (He et al. 2015)."""

    def dense(inputs, outputs):
        weights = rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)
        return [weights.astype(np.float32), np.zeros(outputs, np.float32)]

    return dense(64, HIDDEN) + dense(HIDDEN, 10)


def forward(params, x):
    """Activations of the hidden layer, and probabilities of the ten digits."""
    w1, b1, w2, b2 = params
    hidden = np.maximum(x @ w1 + b1, 0)
    scores = hidden @ w2 + b2
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return hidden, scores / scores.sum(axis=1, keepdims=True)


def loss_and_gradients(params, x, digits):
    """Mean cross-entropy of a batch, and its gradients by backpropagation."""
    _, _, w2, _ = params
    rows = np.arange(len(digits))
    hidden, probabilities = forward(params, x)
    loss = -np.log(probabilities[rows, digits] + 1e-12).mean()
    d_scores = probabilities
    d_scores[rows, digits] -= 1
    d_scores /= len(digits)
    d_hidden = (d_scores @ w2.T) * (hidden > 0)
    return loss, [x.T @ d_hidden, d_hidden.sum(axis=0), hidden.T @ d_scores, d_scores.sum(axis=0)]


def accuracy(params, x, digits):
    """Share of the digits that the model recognises."""
    return (forward(params, x)[1].argmax(axis=1) == digits).mean()


class NumpyRMSprop:
    """The same update as NumPy expressions, in place."""

    def __init__(self, params):
        self.accumulators = [np.zeros_like(p) for p in params]

    def step(self, params, grads):
        """Update the parameters in place."""
        rho, lr, epsilon = np.float32(RHO), np.float32(LR), np.float32(EPSILON)
        for p, g, a in zip(params, grads, self.accumulators, strict=True):
            a *= rho
            a += (1 - rho) * (g * g)
            p -= lr * g / (np.sqrt(a) + epsilon)


def train(name, make_optimizer):
    """Train for EPOCHS; returns the model, its losses and accuracy, and seconds per update."""
    rng = np.random.default_rng(0)
    x, digits, test_x, test_digits = load(rng)
    params = new_model(rng)
    optimizer = make_optimizer(params)
    losses, step_times = [], []
    for _ in (progress := trange(EPOCHS, desc=name, unit="epoch")):
        order = rng.permutation(len(digits))
        batches = range(0, len(order) - BATCH + 1, BATCH)
        total = 0.0
        for start in batches:
            batch = order[start : start + BATCH]
            loss, grads = loss_and_gradients(params, x[batch], digits[batch])
            begin = perf_counter()
            optimizer.step(params, grads)
            step_times.append(perf_counter() - begin)
            total += loss
        losses.append(total / len(batches))
        progress.set_postfix(loss=f"{losses[-1]:.4f}")
    return params, losses, accuracy(params, test_x, test_digits), np.median(step_times)


def main():
    """Train twice, compare, and draw the loss."""
    ours = train("rmsprop_c", lambda params: RMSprop(lr=LR, rho=RHO, epsilon=EPSILON))
    numpys = train("NumPy", NumpyRMSprop)

    equal = all(
        np.array_equal(a.view(np.uint32), b.view(np.uint32))
        for a, b in zip(ours[0], numpys[0], strict=True)
    )
    print(f"time per update    rmsprop_c {ours[3] * 1e6:.1f} us, NumPy {numpys[3] * 1e6:.1f} us")
    print(f"weights            {'equal in every bit' if equal else 'DIFFERENT'}")
    print(f"held-out accuracy  {ours[2]:.2%}")

    OUT.mkdir(exist_ok=True)
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.semilogy(range(1, EPOCHS + 1), ours[1], label="rmsprop_c", linewidth=4, alpha=0.5)
    axes.semilogy(range(1, EPOCHS + 1), numpys[1], "--", label="NumPy, the same bits")
    axes.set(xlabel="epoch", ylabel="mean cross-entropy", title="Handwritten digits, 64-256-10")
    axes.legend()
    figure.savefig(OUT / "digits.png", dpi=150)
    print(f"loss curve         {OUT / 'digits.png'}")
    return 0 if equal and ours[2] >= 0.97 else 1


if __name__ == "__main__":
    raise SystemExit(main())
