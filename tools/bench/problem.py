"""What all contestants are given: the same images, weights and tasks."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

PIXELS, HIDDEN, LATENT, COMPONENTS = 784, 200, 50, 20
RATE = 1e-3  # of Adam


@dataclasses.dataclass(frozen=True)
class Row:
    """A task: what is measured, and how much of it at once.

    Args:
        name: as the table shows it.
        kind: which of the contestants' functions does it.
        batch: images per step.
        samples: K.
        count: steps per measurement, at most; fewer where a contestant is slow.
    """

    name: str
    kind: str
    batch: int
    samples: int
    count: int

    @property
    def learns(self) -> bool:
        """Return whether a step changes the weights."""
        return self.kind in ("vae", "iwae", "mixture step")


def rows(short: bool) -> list[Row]:
    """Return the tasks; the short ones only show that everything runs."""
    samples, images = (200, 200) if short else (5000, 1000)
    few = 3 if short else 1
    return [
        Row("VAE step, batch 20", "vae", 20, 1, 200 // (10 * few if short else 1)),
        Row("VAE step, batch 100", "vae", 100, 1, 6 if short else 80),
        Row("IWAE step, K = 50, batch 20", "iwae", 20, 50, few if short else 25),
        Row(f"log p(x), K = {samples:,}, 20 images", "log p", 20, samples, 1),
        Row(f"mixture: log p(x) of {images:,} images", "mixture log p", images, 1, 50),
        Row(f"mixture: gradient step on {images:,} images", "mixture step", images, 1, 50),
    ]


@dataclasses.dataclass
class Task:
    """How a contestant does a row.

    Args:
        run: does so many steps, or evaluations.
        value: one estimate of what all contestants must agree on, in nats per image, at the present weights.
        note: how it was written.
    """

    run: Callable[[int], object]
    value: Callable[[], float]
    note: str = ""


class Problem:
    """The images and the weights, as arrays of NumPy: each contestant makes of them what it needs.

    Args:
        fresh: random images, and weights from which there is much to learn: to see that all learn the same. Otherwise
            images of MNIST and the weights of a finished training: to measure. (With fresh weights nearly all
            importance weights underflow, and one would measure how long a processor takes for denormal numbers.)
    """

    def __init__(self, fresh: bool):
        random = np.random.default_rng(0)
        if fresh:
            probs = random.uniform(0.05, 0.5, PIXELS)
            self.images = (random.random((8000, PIXELS)) < probs).astype(np.float32)
            sizes = (PIXELS, HIDDEN, HIDDEN, 2 * LATENT), (LATENT, HIDDEN, HIDDEN, PIXELS)
            self.encoder, self.decoder = (
                [glorot(random, *pair) for pair in itertools.pairwise(each)] for each in sizes
            )
        else:
            from lvmlib.datasets import mnist_sample  # here, because to name the rows takes no lvmlib
            from lvmlib.experiments import pretrained

            model, encoder = pretrained("elbo-1")
            self.images = np.tile(mnist_sample().x.numpy(), (16, 1))
            self.encoder, self.decoder = layers(encoder.network), layers(model.decoder.network)
        self.component_probs = random.uniform(0.1, 0.9, (COMPONENTS, PIXELS)).astype(np.float32)
        self.component_weights = np.full(COMPONENTS, 1 / COMPONENTS, np.float32)


def glorot(random: np.random.Generator, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a weight matrix (outputs, inputs), drawn as Glorot does, and small biases."""
    bound = (6 / (inputs + outputs)) ** 0.5
    weight = random.uniform(-bound, bound, (outputs, inputs))
    return weight.astype(np.float32), random.normal(0, 0.1, outputs).astype(np.float32)


def layers(network) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return weight matrix (outputs, inputs) and biases of each linear layer of a network."""
    return [(layer.weight.numpy(), layer.bias.numpy()) for layer in network if hasattr(layer, "weight")]
