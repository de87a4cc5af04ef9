"""Right answers, inputs and usual wrong answers of the book's code exercises. Spoilers: try first, look later.

A new exercise is one more entry of `EXERCISES`. `tests/test_exercises.py` then asks that the inputs tell all its wrong
answers apart, and that one chapter checks a stub and a solution by this number.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot, softplus


@dataclass(frozen=True)
class Exercise:
    """What one code exercise is checked with.

    Args:
        reference: a right answer, with the arguments of the chapter's stub.
        cases: argument tuples to try. The first is plain, so that no two mistakes coincide there; later ones are hard
            (zeros, underflow, overflow), for what is right in the plain case only.
        wrong: hint -> a usual wrong answer. The hint says what is wrong, not what is right.
        tolerance: largest difference allowed, absolute plus relative.
    """

    reference: Callable
    cases: tuple[tuple, ...]
    wrong: Mapping[str, Callable]
    tolerance: float = 1e-4


def numbers(*shape: int, seed: int) -> Tensor:
    """Return fixed standard normal numbers in float32, without touching the global generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


# --------------------------------------------------------- 0.2, KL between the rows of two tables of log-probabilities


def _kl_rows(log_q: Tensor, log_p: Tensor) -> Tensor:
    q = log_q.exp()
    return (torch.xlogy(q, q) - q * log_p).sum(1)  # xlogy is 0 where q is 0


KL_ROWS = Exercise(
    reference=_kl_rows,
    cases=(
        (numbers(4, 3, seed=0).log_softmax(1), numbers(4, 3, seed=1).log_softmax(1)),
        (torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]).log(), numbers(2, 3, seed=2).log_softmax(1)),
    ),
    wrong={
        "The two laws are swapped: your expectation is under p.": lambda q, p: _kl_rows(p, q),
        "The sign is wrong: yours is never positive.": lambda q, p: -_kl_rows(q, p),
        "You averaged over the values as if all were equally likely under q.": lambda q, p: (q - p).mean(1),
        "You weighted with q and then divided by the number of values as well.": (
            lambda q, p: _kl_rows(q, p) / q.shape[1]
        ),
        "You weighted with log q, which is not a probability.": lambda q, p: (q * (q - p)).sum(1),
        "That is the cross-entropy: the entropy of q is not in it.": lambda q, p: -(q.exp() * p).sum(1),
        "Where q is 0 you get 0 · (−∞), which is not a number.": lambda q, p: (q.exp() * (q - p)).sum(1),
        "These are bits: the logarithm has base 2.": lambda q, p: _kl_rows(q, p) / math.log(2),
        "You summed over the laws: each row is a law of its own.": lambda q, p: _kl_rows(q.T, p.T),
        "You added the laws up: that is one number for the whole table.": lambda q, p: _kl_rows(q, p).sum(),
        "You averaged over the laws: that is one number for the whole table.": lambda q, p: _kl_rows(q, p).mean(),
    },
)


# ------------------------------------------------------- 1.2, log p(x) of binary images from the logits of their pixels


def _log_pixels(logits: Tensor, x: Tensor) -> Tensor:
    """Return log p of each pixel, (B, D)."""
    return x * logsigmoid(logits) + (1 - x) * logsigmoid(-logits)


CHAIN_RULE = Exercise(
    reference=lambda logits, x: _log_pixels(logits, x).sum(1),
    cases=(
        (numbers(5, 7, seed=0), (numbers(5, 7, seed=1) > 0).float()),
        (torch.tensor([[120.0, -150.0, 2.0], [-1.0, 200.0, 130.0]]), torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])),
    ),
    wrong={
        "A mean over pixels is not a log-probability.": lambda a, x: _log_pixels(a, x).mean(1),
        "You counted only the pixels that are on; a pixel that is off has a probability too.": (
            lambda a, x: (x * logsigmoid(a)).sum(1)
        ),
        "The two probabilities of a pixel do not sum to 1: a term is missing, for on and for off.": (
            lambda a, x: (x * a).sum(1)
        ),
        "The two probabilities of a pixel do not sum to 1: look at the sign of the logit in each term.": (
            lambda a, x: (x * a - softplus(-a)).sum(1)
        ),
        "Your pixels are on where the image has them off.": lambda a, x: _log_pixels(a, 1 - x).sum(1),
        "The sign is wrong: that is a loss, and it is never negative.": lambda a, x: -_log_pixels(a, x).sum(1),
        "You added probabilities where their logarithms add.": lambda a, x: _log_pixels(a, x).exp().sum(1),
        "That is a probability, not its logarithm.": lambda a, x: _log_pixels(a, x).exp().prod(1),
        "For a large logit your exponential overflows.": lambda a, x: (x * a - (1 + a.exp()).log()).sum(1),
        "For a large logit your probability rounds to 0 or 1, and the logarithm of the other one is lost.": (
            lambda a, x: (x * a.sigmoid().log() + (1 - x) * (1 - a.sigmoid()).log()).sum(1)
        ),
        "These are bits: the logarithm has base 2.": lambda a, x: _log_pixels(a, x).sum(1) / math.log(2),
        "You summed over the images: that is one number per pixel.": lambda a, x: _log_pixels(a, x).sum(0),
        "You summed over the images too: that is one number in all.": lambda a, x: _log_pixels(a, x).sum(),
        "That is one number per pixel and image: the chain rule has not been applied.": _log_pixels,
    },
)


# ----------------------------------------------------------------------------- 2.2, the E-step of a Bernoulli mixture


def _log_likelihood(x: Tensor, logits: Tensor) -> Tensor:
    """Return log p(x | z = c), (N, C)."""
    return x @ logits.T - softplus(logits).sum(1)


def _log_joint(x: Tensor, log_weights: Tensor, logits: Tensor) -> Tensor:
    """Return log p(x, z = c), (N, C)."""
    return log_weights + _log_likelihood(x, logits)


E_STEP = Exercise(
    reference=lambda x, log_weights, logits: _log_joint(x, log_weights, logits).softmax(1),
    cases=(
        ((numbers(5, 4, seed=0) > 0).float(), torch.tensor([0.2, 0.7, 0.1]).log(), numbers(3, 4, seed=1)),
        ((numbers(6, 300, seed=2) > 0).float(), torch.tensor([0.2, 0.8]).log(), 3 * numbers(2, 300, seed=3)),
    ),
    wrong={
        "Your columns sum to 1, over the images; it is the types that are the alternatives.": (
            lambda x, w, a: _log_joint(x, w, a).softmax(0)
        ),
        "You left out the weights of the types.": lambda x, w, a: _log_likelihood(x, a).softmax(1),
        "You left out the images: these are the weights of the types.": (
            lambda x, w, a: w.softmax(0).expand(len(x), -1)
        ),
        "You added the weights themselves to log-probabilities.": (
            lambda x, w, a: (w.exp() + _log_likelihood(x, a)).softmax(1)
        ),
        "The weights of the types enter twice.": (lambda x, w, a: (w + _log_joint(x, w, a)).softmax(1)),
        "You counted only the pixels that are on; a pixel that is off has a probability too.": (
            lambda x, w, a: (w + x @ logsigmoid(a).T).softmax(1)
        ),
        "A term that does not depend on the image is missing, and it differs from type to type.": (
            lambda x, w, a: (w + x @ a.T).softmax(1)
        ),
        "You averaged over the pixels: the images then count for less than they should.": (
            lambda x, w, a: (w + _log_likelihood(x, a) / x.shape[1]).softmax(1)
        ),
        "For many pixels the probabilities underflow, and 0 / 0 is not a number.": (
            lambda x, w, a: _log_joint(x, w, a).exp() / _log_joint(x, w, a).exp().sum(1, keepdim=True)
        ),
        "These are the logarithms of the responsibilities.": lambda x, w, a: _log_joint(x, w, a).log_softmax(1),
        "Your rows do not sum to 1: that is log p(x, z).": _log_joint,
        "Your rows do not sum to 1: that is p(x, z).": lambda x, w, a: _log_joint(x, w, a).exp(),
        "You gave each image wholly to its best type; the others have a share.": (
            lambda x, w, a: one_hot(_log_joint(x, w, a).argmax(1), len(w)).float()
        ),
        "That is the table of types by images.": lambda x, w, a: _log_joint(x, w, a).softmax(1).T,
    },
)


# ----------------------------------------------------------------- 3.2, the posterior mean by self-normalized weights

POSTERIOR_MEAN = Exercise(
    reference=lambda log_w, f: (log_w.softmax(0) * f).sum(0),
    cases=(
        (numbers(7, 3, seed=0), numbers(7, 3, seed=1)),
        (numbers(7, 3, seed=2) - 1000, numbers(7, 3, seed=3)),
    ),
    wrong={
        "Your weights sum to 1 over the data points; they should for each x by itself.": (
            lambda log_w, f: (log_w.softmax(1) * f).sum(0)
        ),
        "Your weights sum to 1 over the whole table; they should for each x by itself.": (
            lambda log_w, f: (log_w.flatten().softmax(0).reshape(log_w.shape) * f).sum(0)
        ),
        "These are plain means: the draws come from q, not from the posterior.": lambda log_w, f: f.mean(0),
        "Your weights are divided by K, and then they do not sum to 1.": lambda log_w, f: (log_w.exp() * f).mean(0),
        "Your weights are not divided by anything, and do not sum to 1.": lambda log_w, f: (log_w.exp() * f).sum(0),
        "You subtracted the largest log-weight and left it at that: your weights do not sum to 1.": (
            lambda log_w, f: ((log_w - log_w.amax(0)).exp() * f).sum(0)
        ),
        "You divided by K as well: the weights already sum to 1.": lambda log_w, f: (log_w.softmax(0) * f).mean(0),
        "You normalized the logarithms of the weights.": lambda log_w, f: (log_w / log_w.sum(0) * f).sum(0),
        "You used the logarithms of the normalized weights.": lambda log_w, f: (log_w.log_softmax(0) * f).sum(0),
        "The weights of e^−1000 underflow to 0, and 0 / 0 is not a number.": (
            lambda log_w, f: (log_w.exp() * f).sum(0) / log_w.exp().sum(0)
        ),
        "The sign of the log-weights is wrong: your unlikely draws count most.": (
            lambda log_w, f: ((-log_w).softmax(0) * f).sum(0)
        ),
        "You summed over the data points: that is one number per sample.": (
            lambda log_w, f: (log_w.softmax(0) * f).sum(1)
        ),
        "You summed over the data points too: that is one number in all.": lambda log_w, f: (
            log_w.softmax(0) * f
        ).sum(),
    },
)


# ---------------------------------------------------------------------------- 4.2, the exact ELBO of a categorical q


def _categorical_elbo(log_joint: Tensor, probs: Tensor) -> Tensor:
    return (probs * log_joint.T).sum(1) - torch.xlogy(probs, probs).sum(1)


CATEGORICAL_ELBO = Exercise(
    reference=_categorical_elbo,
    cases=(
        (numbers(3, 4, seed=0), numbers(4, 3, seed=1).softmax(1)),
        (numbers(2, 2, seed=2), torch.tensor([[1.0, 0.0], [0.5, 0.5]])),
    ),
    wrong={
        "That is the negative energy: the entropy of q is missing.": lambda j, p: (p * j.T).sum(1),
        "The entropy has the wrong sign.": lambda j, p: (p * j.T).sum(1) + torch.xlogy(p, p).sum(1),
        "That is the entropy of q alone: the model is missing.": lambda j, p: -torch.xlogy(p, p).sum(1),
        "Where a probability is 0 you get 0 · (−∞), which is not a number.": lambda j, p: (p * (j.T - p.log())).sum(1),
        "The sign is wrong: that is a loss.": lambda j, p: -_categorical_elbo(j, p),
        "That is log p(x), the logarithm of a mean; a bound has the mean of a logarithm.": lambda j, p: j.logsumexp(0),
        "You took the logarithm of the mean of p(x, z), not the mean of its logarithm.": (
            lambda j, p: (p * j.T.exp()).sum(1).log() - torch.xlogy(p, p).sum(1)
        ),
        "That is the gap, log p(x) − ELBO.": lambda j, p: j.logsumexp(0) - _categorical_elbo(j, p),
        "You weighted all values of z equally, and not by q.": lambda j, p: (j.T - p.log()).mean(1),
        "You forgot to weight with q.": lambda j, p: (j.T - p.log()).sum(1),
        "You weighted with q and then divided by the number of values as well.": (
            lambda j, p: _categorical_elbo(j, p) / len(j)
        ),
        "You used probabilities where their logarithms belong.": lambda j, p: (p * (j.T - p)).sum(1),
        "You summed over the data points: that is one number per value of z.": (
            lambda j, p: (p * j.T - torch.xlogy(p, p)).sum(0)
        ),
        "You summed over the data points too: that is one number in all.": lambda j, p: _categorical_elbo(j, p).sum(),
        "You averaged over the data points: that is one number in all.": lambda j, p: _categorical_elbo(j, p).mean(),
    },
)


# ------------------------------------------------------------ 5.2, approximation gap and amortization gap of an encoder

SPLIT = Exercise(
    reference=lambda log_p, best_elbo, encoder_elbo: torch.stack([log_p - best_elbo, best_elbo - encoder_elbo]),
    cases=(
        (
            torch.tensor([-17.0, -20.0, -31.0]),
            torch.tensor([-17.5, -20.1, -32.0]),
            torch.tensor([-18.0, -25.0, -34.5]),
        ),
    ),
    wrong={
        "The rows are swapped.": lambda p, b, e: torch.stack([b - e, p - b]),
        "The second row is the total gap, not what the encoder adds.": lambda p, b, e: torch.stack([p - b, p - e]),
        "The first row is the total gap; part of it is the encoder's.": lambda p, b, e: torch.stack([p - e, b - e]),
        "Both signs are wrong: a gap is never negative.": lambda p, b, e: torch.stack([b - p, e - b]),
        "The first row has the wrong sign: a gap is never negative.": lambda p, b, e: torch.stack([b - p, b - e]),
        "The second row has the wrong sign: a gap is never negative.": lambda p, b, e: torch.stack([p - b, e - b]),
        "Rows and columns are swapped: the gaps are the rows.": lambda p, b, e: torch.stack([p - b, b - e], 1),
        "The two gaps stand one behind the other, not one below the other.": lambda p, b, e: torch.cat([p - b, b - e]),
        "That is the total gap: it is not split.": lambda p, b, e: p - e,
        "You averaged over the data points: each has its own gaps.": lambda p, b, e: torch.stack([p - b, b - e]).mean(
            1
        ),
        "You summed over the data points: each has its own gaps.": lambda p, b, e: torch.stack([p - b, b - e]).sum(1),
    },
)


EXERCISES = {
    "0.2": KL_ROWS,
    "1.2": CHAIN_RULE,
    "2.2": E_STEP,
    "3.2": POSTERIOR_MEAN,
    "4.2": CATEGORICAL_ELBO,
    "5.2": SPLIT,
}
