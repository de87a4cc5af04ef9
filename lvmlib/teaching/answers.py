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


# ----------------------------------------------------------- 6.2, reconstruction minus KL to the standard normal prior


def _kl_to_normal(loc: Tensor, log_scale: Tensor) -> Tensor:
    """Return the KL of each coordinate, (B, d)."""
    return (loc.square() + (2 * log_scale).exp() - 1) / 2 - log_scale


def _second_face(loc: Tensor, log_scale: Tensor, log_likelihood: Tensor) -> Tensor:
    return log_likelihood.mean(0) - _kl_to_normal(loc, log_scale).sum(-1)


SECOND_FACE = Exercise(
    reference=_second_face,
    cases=(
        (numbers(5, 2, seed=20), numbers(5, 2, seed=21) / 2, numbers(3, 5, seed=22) - 20),
        (numbers(4, 3, seed=23), numbers(4, 3, seed=24) / 2 - 3, numbers(2, 4, seed=25) - 500),
    ),
    wrong={
        "The KL has the wrong sign: the rate is paid, not earned.": (
            lambda m, s, ll: ll.mean(0) + _kl_to_normal(m, s).sum(-1)
        ),
        "Sum the KL over the coordinates: a mean divides it by d.": (
            lambda m, s, ll: ll.mean(0) - _kl_to_normal(m, s).mean(-1)
        ),
        "You summed over the draws; an expectation is their mean.": lambda m, s, ll: (
            ll.sum(0) - _kl_to_normal(m, s).sum(-1)
        ),
        "You took log_scale for the logarithm of the variance.": lambda m, s, ll: (
            ll.mean(0) - (m.square() + s.exp() - 1 - s).sum(-1) / 2
        ),
        "You took log_scale for the scale itself.": lambda m, s, ll: (
            ll.mean(0) - ((m.square() + s.square() - 1) / 2 - s.abs().log()).sum(-1)
        ),
        "The factor one half is missing in the KL.": lambda m, s, ll: (
            ll.mean(0) - (m.square() + (2 * s).exp() - 1 - s).sum(-1)
        ),
        "The KL lacks its term −½: it must be 0 for a standard normal q.": (
            lambda m, s, ll: ll.mean(0) - (_kl_to_normal(m, s) + 0.5).sum(-1)
        ),
        "You used the scale where the variance belongs.": lambda m, s, ll: (
            ll.mean(0) - ((m.square() + s.exp() - 1) / 2 - s).sum(-1)
        ),
        "The mean enters squared.": lambda m, s, ll: ll.mean(0) - ((m + (2 * s).exp() - 1) / 2 - s).sum(-1),
        "You left the KL out: that is the reconstruction alone.": lambda m, s, ll: ll.mean(0),
        "You took the logarithm of a mean of probabilities; the bound has the mean of logarithms.": (
            lambda m, s, ll: ll.logsumexp(0) - math.log(len(ll)) - _kl_to_normal(m, s).sum(-1)
        ),
        "You averaged over the data points: that is one number in all.": lambda m, s, ll: _second_face(m, s, ll).mean(),
        "You summed over the data points: that is one number in all.": lambda m, s, ll: _second_face(m, s, ll).sum(),
        "One number per data point: average over the draws.": lambda m, s, ll: ll - _kl_to_normal(m, s).sum(-1),
    },
)


# ----------------------------------------------------------------------------- 6.3, the draw as a function of the noise

TRANSPORT = Exercise(
    reference=lambda loc, log_scale, noise: loc + log_scale.exp() * noise,
    cases=(
        (numbers(5, 2, seed=26), numbers(5, 2, seed=27), numbers(3, 5, 2, seed=28)),
        (numbers(4, 3, seed=29), numbers(4, 3, seed=30) - 20, numbers(2, 4, 3, seed=31)),
    ),
    wrong={
        "You took log_scale for the scale itself: here it is a logarithm.": lambda m, s, e: m + s * e,
        "You scaled by the variance.": lambda m, s, e: m + (2 * s).exp() * e,
        "You took log_scale for the logarithm of the variance.": lambda m, s, e: m + (s / 2).exp() * e,
        "You divided by the scale: that turns z into noise.": lambda m, s, e: m + (-s).exp() * e,
        "That is the way back, from z to noise.": lambda m, s, e: (e - m) / s.exp(),
        "The noise of all coordinates and draws is its own; you scaled the mean too.": (
            lambda m, s, e: (m + e) * s.exp()
        ),
        "Where is the noise? You returned the mean.": lambda m, s, e: m.expand_as(e),
        "The mean is missing.": lambda m, s, e: s.exp() * e,
        "You averaged over the draws.": lambda m, s, e: (m + s.exp() * e).mean(0),
    },
)


# ------------------------------------------------------- 7.2, what leave-one-out multiplies the score of each draw with


def _leave_one_out(log_w: Tensor) -> Tensor:
    return (log_w - log_w.mean(0)) * len(log_w) / (len(log_w) - 1)


LEAVE_ONE_OUT = Exercise(
    reference=_leave_one_out,
    cases=((numbers(5, 3, seed=40) * 2 - 4,), (numbers(2, 4, seed=41) * 50 - 1000,)),
    wrong={
        "Your baseline contains the draw's own log w: the gradient shrinks by 1 − 1/K.": lambda w: w - w.mean(0),
        "You multiplied by 1 − 1/K where the other draws ask for its inverse.": (
            lambda w: (w - w.mean(0)) * (len(w) - 1) / len(w)
        ),
        "The sign is wrong: a draw better than the others must become more probable.": lambda w: -_leave_one_out(w),
        "That is the baseline; subtract it from log w.": lambda w: (w.sum(0) - w) / (len(w) - 1),
        "You divided the sum of the others by K; they are K − 1.": lambda w: w - (w.sum(0) - w) / len(w),
        "You did not divide the sum of the others by their number.": lambda w: w - (w.sum(0) - w),
        "You averaged over the data points: each has its own baseline.": (
            lambda w: (w - w.mean(1, keepdim=True)) * len(w) / (len(w) - 1)
        ),
        "You averaged over draws and data points together.": lambda w: w - w.mean(),
        "No baseline is subtracted.": lambda w: w + 0.0,
        "You subtracted log p̂, the logarithm of a mean; this baseline is a mean of logarithms.": (
            lambda w: w - (w.logsumexp(0) - math.log(len(w)))
        ),
        "You took the geometric mean out of the weights; the signal is in log w.": (
            lambda w: w.exp() - ((w.sum(0) - w) / (len(w) - 1)).exp()
        ),
        "You returned the mean over the draws, which is 0: one signal per draw is asked.": (
            lambda w: _leave_one_out(w).mean(0)
        ),
    },
)


# ---------------------------------------------------------------- 8.2, the doubly reparameterized gradient from weights


def _dreg(log_w: Tensor, path_derivative: Tensor) -> Tensor:
    return (log_w.softmax(0) ** 2 * path_derivative).sum(0)


DREG = Exercise(
    reference=_dreg,
    cases=(
        (numbers(5, 3, seed=50), numbers(5, 3, seed=51)),
        (numbers(4, 2, seed=52) * 3 - 1000, numbers(4, 2, seed=53)),
    ),
    wrong={
        "Only one factor of the weight: that is the path with the weights of IWAE.": (
            lambda w, g: (w.softmax(0) * g).sum(0)
        ),
        "You squared the weights before normalizing them.": lambda w, g: ((2 * w).softmax(0) * g).sum(0),
        "The mean over the draws is already in the weights: sum.": lambda w, g: (w.softmax(0) ** 2 * g).mean(0),
        "The weights must sum to 1 over the draws, not over the data points.": (
            lambda w, g: (w.softmax(1) ** 2 * g).sum(0)
        ),
        "You summed over the data points.": lambda w, g: (w.softmax(0) ** 2 * g).sum(1),
        "The weights do not appear: that is sticking the landing.": lambda w, g: g.mean(0),
        "You used log w where the weights belong.": lambda w, g: (w**2 * g).sum(0),
        "You squared the derivative as well.": lambda w, g: ((w.softmax(0) * g) ** 2).sum(0),
        "You squared the sum: square each weight.": lambda w, g: (w.softmax(0) * g).sum(0) ** 2,
        "The sign is wrong: this gradient is climbed.": lambda w, g: -_dreg(w, g),
        "Unnormalized weights: exponentiate after subtracting log of the sum.": (
            lambda w, g: (w.exp() ** 2 * g).sum(0)
        ),
        "You kept the term of the score: a factor 1 − w̃ too many.": (
            lambda w, g: (w.softmax(0) ** 2 * (1 - w.softmax(0)) * g).sum(0)
        ),
    },
)


# ------------------------------------------------------------- 9.2, mutual information and aggregated posterior


def _aggregated(log_q: Tensor) -> Tensor:
    return log_q.logsumexp(1) - math.log(log_q.shape[1])


def _surgery(log_q: Tensor, log_prior: Tensor) -> Tensor:
    aggregated = _aggregated(log_q)
    information = (log_q.exp() * (log_q - aggregated[:, None])).sum(0).mean()
    return torch.stack([information, (aggregated.exp() * (aggregated - log_prior)).sum()])


def _rate(log_q: Tensor, log_prior: Tensor) -> Tensor:
    return (log_q.exp() * (log_q - log_prior[:, None])).sum(0).mean()


def _geometric(log_q: Tensor, log_prior: Tensor) -> Tensor:
    aggregated = log_q.mean(1)
    information = (log_q.exp() * (log_q - aggregated[:, None])).sum(0).mean()
    return torch.stack([information, (aggregated.exp() * (aggregated - log_prior)).sum()])


SURGERY = Exercise(
    reference=_surgery,
    cases=(
        (numbers(4, 6, seed=90).log_softmax(0), numbers(4, seed=91).log_softmax(0)),
        ((3 * numbers(5, 3, seed=92)).log_softmax(0), numbers(5, seed=93).log_softmax(0)),
    ),
    wrong={
        "The two are in the wrong order: the information comes first.": lambda q, p: _surgery(q, p).flip(0),
        "You averaged log q over the data; the aggregated posterior is a mean of probabilities.": _geometric,
        "You summed q over the data: log N is missing, so that is no law.": lambda q, p: torch.stack(
            [
                (q.exp() * (q - q.logsumexp(1)[:, None])).sum(0).mean(),
                (q.logsumexp(1).exp() * (q.logsumexp(1) - p)).sum(),
            ]
        ),
        "You summed the information over the data points; it is an average.": (
            lambda q, p: _surgery(q, p) * torch.tensor([q.shape[1], 1.0])
        ),
        "Your first number is the whole rate, KL(q(z | x) || p(z)), not the information in it.": (
            lambda q, p: torch.stack([_rate(q, p), _surgery(q, p)[1]])
        ),
        "Your second number is the whole rate: use the aggregated posterior in it.": (
            lambda q, p: torch.stack([_surgery(q, p)[0], _rate(q, p)])
        ),
        "Your divergence goes the wrong way: the expectation is under the aggregated posterior.": (
            lambda q, p: torch.stack([_surgery(q, p)[0], (p.exp() * (p - _aggregated(q))).sum()])
        ),
        "The information has the wrong sign.": lambda q, p: _surgery(q, p) * torch.tensor([-1.0, 1.0]),
        "That is one number per data point: take the average.": (
            lambda q, p: (q.exp() * (q - _aggregated(q)[:, None])).sum(0)
        ),
        "That is their sum, the rate; return the two parts.": lambda q, p: _surgery(q, p).sum(),
        "You averaged over the states instead of summing over them.": lambda q, p: _surgery(q, p) / len(p),
    },
)


# ---------------------------------------------------------- 10.2, log p(x) between forward and backward annealed chains


def _log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def _sandwich(forward: Tensor, back: Tensor) -> Tensor:
    return torch.stack([_log_mean(forward), -_log_mean(-back)])


SANDWICH = Exercise(
    reference=_sandwich,
    cases=(
        (numbers(5, 3, seed=70), numbers(4, 3, seed=71) + 1),
        (numbers(6, 2, seed=72) * 3 - 1000, numbers(3, 2, seed=73) * 3 - 990),
    ),
    wrong={
        "The rows are swapped: the forward chains bound from below.": lambda f, b: _sandwich(f, b).flip(0),
        "You averaged the weights of the backward chains; it is their inverses whose mean is known.": (
            lambda f, b: torch.stack([_log_mean(f), _log_mean(b)])
        ),
        "Your upper bound is log of the mean inverse weight: its sign is missing.": (
            lambda f, b: torch.stack([_log_mean(f), _log_mean(-b)])
        ),
        "You averaged the inverse weights of the forward chains too.": (
            lambda f, b: torch.stack([-_log_mean(-f), -_log_mean(-b)])
        ),
        "The chains are swapped: forward ones bound from below.": lambda f, b: _sandwich(b, f),
        "Both rows are made of forward chains; those that walk back bound from above.": lambda f, b: _sandwich(f, f),
        "Both rows are made of backward chains; the forward ones bound from below.": lambda f, b: _sandwich(b, b),
        "These are bounds, but not tightened: you averaged the logarithms.": (
            lambda f, b: torch.stack([f.mean(0), b.mean(0)])
        ),
        "You summed over the chains: the logarithms of their numbers are missing.": (
            lambda f, b: torch.stack([f.logsumexp(0), -(-b).logsumexp(0)])
        ),
        "The logarithm of the number of backward chains has the wrong sign.": (
            lambda f, b: torch.stack([_log_mean(f), -(-b).logsumexp(0) - math.log(len(b))])
        ),
        "There may be fewer backward chains than forward ones: each bound has its own number.": (
            lambda f, b: torch.stack([_log_mean(f), math.log(len(f)) - (-b).logsumexp(0)])
        ),
        "You kept the best forward chain and the lowest backward one; the bounds are means.": (
            lambda f, b: torch.stack([f.amax(0), b.amin(0)])
        ),
        "For log-weights near −1000 the exponential underflows: take the largest out first.": (
            lambda f, b: torch.stack([f.exp().mean(0).log(), -(-b).exp().mean(0).log()])
        ),
        "These are bounds on p(x), not on its logarithm.": lambda f, b: _sandwich(f, b).exp(),
        "You averaged over the data points: each has its own bounds.": lambda f, b: _sandwich(f, b).mean(1),
        "Rows and columns are swapped: the bounds are the rows.": lambda f, b: _sandwich(f, b).T,
        "The bounds stand one behind the other, not one below the other.": lambda f, b: _sandwich(f, b).flatten(),
    },
)


# ------------------------------------------------------------- 11.2, the estimate of log p(x) from a table of losses

LOG_MARGINAL = Exercise(
    reference=lambda loss: (-loss).logsumexp(0) - math.log(len(loss)),
    cases=(
        (numbers(7, 3, seed=60),),
        (numbers(5, 4, seed=61) * 3 + 1000,),
    ),
    wrong={
        "That is the logarithm of a sum over the samples: log K is missing.": lambda loss: (-loss).logsumexp(0),
        "You added log K instead of subtracting it.": lambda loss: (-loss).logsumexp(0) + math.log(len(loss)),
        "You divided the logarithm by K; the mean is taken inside it.": lambda loss: (-loss).logsumexp(0) / len(loss),
        "The weights are exp(−loss); you exponentiated the loss.": (
            lambda loss: loss.logsumexp(0) - math.log(len(loss))
        ),
        "Twice the wrong sign, before the exponential and after it: your worst sample counts most.": (
            lambda loss: math.log(len(loss)) - loss.logsumexp(0)
        ),
        "The sign is wrong at the end: that is an estimate of −log p(x).": (
            lambda loss: math.log(len(loss)) - (-loss).logsumexp(0)
        ),
        "That is the mean of the log-weights, which estimates the ELBO.": lambda loss: -loss.mean(0),
        "You summed the losses of the batch before the logarithm; each data point has its own estimate.": (
            lambda loss: ((-loss.sum(1)).logsumexp(0) - math.log(len(loss))).expand(loss.shape[1])
        ),
        "That is one number for the batch: sum over the samples, not over the data points.": (
            lambda loss: (-loss.sum(1)).logsumexp(0) - math.log(len(loss))
        ),
        "You averaged over the data points: that is one number per sample.": (
            lambda loss: (-loss).logsumexp(1) - math.log(loss.shape[1])
        ),
        "You averaged over samples and data points together.": (
            lambda loss: (-loss).flatten().logsumexp(0) - math.log(loss.numel())
        ),
        "For losses near 1000 the exponential underflows to 0: take the largest log-weight out first.": (
            lambda loss: (-loss).exp().mean(0).log()
        ),
        "That is an estimate of p(x), not of its logarithm.": lambda loss: (-loss).exp().mean(0),
        "You averaged the log-weights with the normalized weights; that is not the logarithm of their mean.": (
            lambda loss: ((-loss).softmax(0) * -loss).sum(0)
        ),
        "You kept the best sample only.": lambda loss: (-loss).amax(0),
    },
)


EXERCISES = {
    "0.2": KL_ROWS,
    "1.2": CHAIN_RULE,
    "2.2": E_STEP,
    "3.2": POSTERIOR_MEAN,
    "4.2": CATEGORICAL_ELBO,
    "5.2": SPLIT,
    "6.2": SECOND_FACE,
    "6.3": TRANSPORT,
    "7.2": LEAVE_ONE_OUT,
    "8.2": DREG,
    "9.2": SURGERY,
    "10.2": SANDWICH,
    "11.2": LOG_MARGINAL,
}
