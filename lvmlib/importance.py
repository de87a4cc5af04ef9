r"""Draw z from a proposal, score it, and estimate log p(x) from the log-weights.

Two steps, kept apart: `draw` is random; `score` is a pure function of the z it is given.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributions import Distribution

from lvmlib.contracts import check_count, checked
from lvmlib.models import LatentVariableModel
from lvmlib.proposals import Proposal, check_law
from lvmlib.weights import log_mean_exp

FOR_ANY_LAW = "score_function, learned_baseline, leave_one_out, vimco and reweighted_wake_sleep"
CHUNK_ROWS = 2**16  # z's per chunk: bounds the hidden layers of a decoder
CHUNK_NUMBERS = 2**19  # pixels of x or coordinates of z per chunk of samples: about 2 MB, which stays in cache


class Draw(NamedTuple):
    r"""What was drawn, and its three scores, each of shape ``(K, B)``; z has shape ``(K, B, *z_event)``.

    >>> one = torch.ones(1, 1)
    >>> Draw(z=one, log_prior=-1 * one, log_likelihood=-2 * one, log_q=-4 * one).log_w
    tensor([[1.]])
    """

    z: Tensor
    log_prior: Tensor
    log_likelihood: Tensor
    log_q: Tensor

    @property
    def log_w(self) -> Tensor:
        r"""Return the log-weights :math:`\log w = \log p(z) + \log p(x \mid z) - \log q(z)`, shape ``(K, B)``."""
        return self.log_prior + self.log_likelihood - self.log_q


def draw(q: Distribution, num_samples: int) -> Shaped[Tensor, "k b *z"]:
    """Draw K independent z for each data point; differentiable in q's parameters if q has `transport`.

    Args:
        q: a proposal's law, batch shape ``(B,)``.
        num_samples: K ≥ 1.

    Returns:
        Shape ``(K, B, *z_event)``.

    Raises:
        ValueError: K < 1, or q has another batch shape than ``(B,)``.

    >>> from lvmlib import DiagonalGaussian
    >>> draw(DiagonalGaussian(torch.zeros(5, 2), torch.ones(5, 2)), num_samples=3).shape
    torch.Size([3, 5, 2])
    """
    check_count("num_samples", num_samples)
    if len(q.batch_shape) != 1:
        raise ValueError(f"q must have batch shape (B,), one law per data point, got {tuple(q.batch_shape)}")
    if hasattr(q, "transport"):
        loc = q.mean
        noise = torch.randn(num_samples, *q.batch_shape, *q.event_shape, dtype=loc.dtype, device=loc.device)
        return q.transport(noise)
    return q.sample((num_samples,))


@checked
def score(model: LatentVariableModel, x: Float[Tensor, "b d"], q: Distribution, z: Shaped[Tensor, "k b *z"]) -> Draw:
    """Score the given z under model and proposal; a pure function, with no randomness.

    Args:
        model: gives p(z) and p(x | z).
        x: data, shape ``(B, D)``.
        q: the law that z was drawn from, batch shape ``(B,)``.
        z: shape ``(K, B, *z_event)``.

    Returns:
        The `Draw`, with scores of shape ``(K, B)``.

    Raises:
        ValueError: x or z do not fit each other or the model, q's batch shape is not ``(B,)``, or q is a law over
            another space than the prior.

    >>> from lvmlib import LinearGaussian, exact_log_marginal, posterior_proposal
    >>> model, x = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0), torch.tensor([[5.0]])
    >>> log_w = score(model, x, posterior_proposal(model)(x), torch.randn(4, 1, 1)).log_w  # any z at all
    >>> torch.allclose(log_w, exact_log_marginal(model, x).expand(4, 1), atol=1e-4)
    True
    """
    check_law(model, q, len(x))
    log_likelihood = model.log_likelihood(x, z)
    return Draw(z, model.log_prior(z), log_likelihood, q.log_prob(z))


def check_path(q: Distribution, z: Tensor) -> None:
    """Refuse a gradient that draws of q do not carry: its scores would have one, and a wrong one (``ValueError``)."""
    if not hasattr(q, "transport") and q.log_prob(z).requires_grad:
        raise ValueError(
            f"encoder (or proposal): no gradient passes through draws of a {type(q).__name__}, and what autograd would "
            "return is not that of the bound; allowed are torch.no_grad(), a q without gradient (detached(q)), and the "
            f"surrogates {FOR_ANY_LAW} of lvmlib.gradients"
        )


def samples_per_chunk(x: Tensor, q: Distribution) -> int:
    """Return how many samples of each data point go through a decoder at a time, where no gradient is wanted."""
    per_sample = len(x) * max(x.shape[1], q.event_shape.numel())
    return max(1, min(CHUNK_ROWS // len(x), CHUNK_NUMBERS // max(1, per_sample)))


@checked
def log_marginal_estimate(
    model: LatentVariableModel, x: Float[Tensor, "b d"], proposal: Proposal, num_samples: int
) -> Float[Tensor, " b"]:
    r"""Importance-sampling estimate of log p(x), from K samples per data point, in memory that does not grow with K.

    .. math:: \log \hat p_K(x) = \log \frac1K \sum_{k=1}^K \frac{p(z_k) \, p(x \mid z_k)}{q(z_k \mid x)},
              \qquad z_k \sim q(z \mid x)

    Unbiased for p(x) where q covers the posterior; biased low for log p(x), by about Var(w) / (2 K p(x)²).
    With the prior as proposal it is the estimator of training by likelihood.

    Args:
        model: gives p(z) and p(x | z).
        x: data, shape ``(B, D)``.
        proposal: callable from x to the law q(z | x), such as ``prior_proposal(model)``.
        num_samples: K ≥ 1.

    Returns:
        Shape ``(B,)``, in nats per data point. Under autograd memory does grow with K.

    Raises:
        ValueError: K < 1, x does not fit the model, or a gradient is asked of a proposal whose draws carry none, such
            as a discrete one.

    Reference:
        Owen (2013), section 9.1; Burda, Grosse and Salakhutdinov (2016), equation 8, arXiv:1509.00519; chapter 3.

    >>> from lvmlib import LinearGaussian, exact_log_marginal, posterior_proposal
    >>> model, x = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0), torch.tensor([[5.0]])
    >>> error = log_marginal_estimate(model, x, posterior_proposal(model), 1) - exact_log_marginal(model, x)
    >>> bool(error.abs() < 1e-5)
    True
    """
    check_count("num_samples", num_samples)
    if len(x) == 0:
        raise ValueError(f"x must have shape (B, D) with B >= 1, got {tuple(x.shape)}")
    q = proposal(x)
    check_law(model, q, len(x))
    chunk = min(num_samples, samples_per_chunk(x, q))
    total = None
    for start in range(0, num_samples, chunk):
        size = min(chunk, num_samples - start)
        sample = score(model, x, q, draw(q, size))
        check_path(q, sample.z)
        part = log_mean_exp(sample.log_w)
        if total is not None:
            # the mean over all samples is that of the means so far, weighted by the numbers of samples in them; parts
            # that were kept to the end would lie scattered between the large arrays, and memory would grow with K
            shares = x.new_tensor([start, size]).log() - math.log(start + size)
            part = log_mean_exp(torch.stack([total, part]) + shares[:, None]) + math.log(2)
        total = part
    return total
