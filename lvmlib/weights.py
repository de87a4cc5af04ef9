r"""Functions of the log-weights :math:`\log w = \log p(x, z) - \log q(z)` alone; no model is needed here.

Everywhere `log_w` has shape ``(K, B)``: K samples for each of B data points.
An entry of −∞ is a sample of zero weight and is legal; +∞ and NaN are refused.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvmlib.contracts import check_count, checked


class NonFiniteError(ValueError):
    """A log-weight, an objective, a gradient or a parameter is NaN or infinite where it must not be."""


def check_log_w(log_w: Tensor) -> None:
    """Refuse log-weights (K, B) with K = 0 (``ValueError``), or with entries that are NaN or +∞ (`NonFiniteError`)."""
    if log_w.shape[0] < 1:
        raise ValueError(f"log_w must hold at least 1 sample (num_samples >= 1), got shape {tuple(log_w.shape)}")
    # NaN is the largest of all to `amax`; where it finds something, look closely
    if log_w.numel() and not log_w.detach().amax() < math.inf:
        bad = (log_w.isnan() | (log_w == math.inf)).nonzero()
        k, b = bad[0].tolist()
        raise NonFiniteError(
            f"log_w must be finite or -inf, got {len(bad)} entries that are NaN or +inf, "
            f"first {log_w[k, b].item()} at sample {k} of data point {b}"
        )


def _shifted_weights(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(log_w − m) and the shift m (1, B): the largest log-weight, or 0 where all weights are zero."""
    check_log_w(log_w)
    shift = log_w.detach().amax(0, keepdim=True)
    shift = shift.masked_fill(shift == -math.inf, 0.0)
    return (log_w - shift).exp(), shift


@checked
def log_mean_exp(log_w: Float[Tensor, "k b"]) -> Float[Tensor, " b"]:
    r"""Logarithm of the mean weight, :math:`\log \hat p_K(x)`: the importance-sampling estimate of log p(x).

    .. math:: \log \hat p_K = \log \frac1K \sum_{k=1}^K w_k

    Its exponential is unbiased for p(x); itself it is biased low for log p(x), by Jensen's inequality.
    With K = 1 it is `log_w` itself. Where all weights are zero it is −∞ with gradient 0.

    Args:
        log_w: log-weights in nats, shape ``(K, B)``, K ≥ 1.

    Returns:
        Shape ``(B,)``, in nats.

    Raises:
        ValueError: an entry is NaN or +∞, or K = 0.

    Reference:
        Burda, Grosse and Salakhutdinov (2016), equation 8, arXiv:1509.00519; chapter 3.

    >>> log_mean_exp(torch.tensor([[1000.0], [-math.inf]]).double())  # log(e^1000 / 2), without overflow
    tensor([999.3069], dtype=torch.float64)
    """
    weights, shift = _shifted_weights(log_w)
    # weights far too small for a sum with the largest, 1, to see are made 0: the gradients that they multiply would be
    # denormal numbers, with which matrix products take two to three times as long; and a column of zeros, whose mean
    # has an infinite slope in the logarithm, gets the gradient 0 instead of NaN
    weights = torch.where(weights > torch.finfo(weights.dtype).tiny ** 0.5, weights, 0.0)
    mean = weights.mean(0)
    log_mean = mean.log()
    return torch.where(mean > 0, log_mean + shift[0], -math.inf)


@checked
def normalize_log_weights(log_w: Float[Tensor, "k b"]) -> Float[Tensor, "k b"]:
    r"""Self-normalized weights :math:`\tilde w_k = w_k / \sum_j w_j`, which sum to 1 over the samples of each x.

    .. math:: E_{p(z|x)}[f(z)] \approx \sum_k \tilde w_k f(z_k)

    The estimate on the right is biased for finite K, by a term of order 1/K.

    Args:
        log_w: log-weights in nats, shape ``(K, B)``.

    Returns:
        Shape ``(K, B)``, not logarithmic; all 0 where all weights are zero.

    Raises:
        ValueError: an entry is NaN or +∞, or K = 0.

    Reference:
        Owen (2013), Monte Carlo theory, methods and examples, section 9.2; chapter 3.

    >>> normalize_log_weights(torch.tensor([[0.0], [math.log(3.0)]])).squeeze()
    tensor([0.2500, 0.7500])
    """
    weights, _ = _shifted_weights(log_w)
    total = weights.sum(0)
    return weights / torch.where(total > 0, total, 1.0)


@checked
def effective_sample_size(log_w: Float[Tensor, "k b"]) -> Float[Tensor, " b"]:
    r"""Effective sample size of importance weights (not of a Markov chain).

    .. math:: \mathrm{ESS} = \frac{(\sum_k w_k)^2}{\sum_k w_k^2} = \frac1{\sum_k \tilde w_k^2} \in [1, K]

    K equal weights give K, a single non-zero weight gives 1, no non-zero weight gives 0.
    The relative error of the estimate is about 1/√ESS, as far as the sample can tell: where no sample met the region
    that matters, all weights look alike and the ESS is large.

    Args:
        log_w: log-weights in nats, shape ``(K, B)``.

    Returns:
        Shape ``(B,)``, a number of samples.

    Raises:
        ValueError: an entry is NaN or +∞, or K = 0.

    Reference:
        Kong (1992); Owen (2013), section 9.3; chapter 3.

    >>> effective_sample_size(torch.tensor([[0.0], [0.0], [-math.inf]]))
    tensor([2.])
    """
    weights, _ = _shifted_weights(log_w)
    squares = weights.square().sum(0)
    return weights.sum(0).square() / torch.where(squares > 0, squares, 1.0)


@checked
def resample(log_w: Float[Tensor, "k b"], num_kept: int) -> Int[Tensor, "m b"]:
    r"""Pick M of the K samples of each data point, with replacement, in proportion to their weights.

    .. math:: \mathbb E[\text{times that } k \text{ is picked}] = M \tilde w_k

    so the plain mean over the picked samples is, on average, the mean of all under their weights. Systematic: M
    points at equal distances through the cumulated weights, shifted by one uniform number; each sample is picked
    :math:`M \tilde w_k` times, rounded up or down.

    Args:
        log_w: log-weights in nats, shape ``(K, B)``.
        num_kept: M ≥ 1.

    Returns:
        Numbers of samples from 0 to K − 1, shape ``(M, B)``; 0 where all weights are zero.

    Raises:
        ValueError: an entry is NaN or +∞, K = 0 or M < 1.

    Reference:
        Carpenter, Clifford and Fearnhead (1999), Improved particle filter for nonlinear problems.

    >>> resample(torch.tensor([[-math.inf], [0.0], [-math.inf], [0.0]]), num_kept=4).squeeze()
    tensor([1, 1, 3, 3])
    """
    check_count("num_kept", num_kept)
    cumulated = normalize_log_weights(log_w.detach()).cumsum(0).T.contiguous()
    steps = torch.arange(num_kept, dtype=log_w.dtype, device=log_w.device)
    # in (0, 1], times the last sum, 1 but for rounding: a sample of zero weight is never the first to reach one
    points = (steps + 1 - torch.rand_like(cumulated[:, :1])) / num_kept
    return torch.searchsorted(cumulated, points * cumulated[:, -1:]).T


@checked
def pareto_k(log_w: Float[Tensor, "k b"]) -> Float[Tensor, " b"]:
    r"""Pareto :math:`\hat k`: estimated tail index of the weights, from the largest :math:`M = \min(K/5, 3\sqrt K)`.

    The law of w has finite moments of order below 1/k: mean finite for k < 1, variance finite for k < 1/2.
    Reading, of k: below 0.5 the weights have finite variance; from 0.5 to 0.7 the variance is infinite already, and
    the estimate still converges, with an error of order K^(k − 1); above 0.7 do not believe it. A negative k means
    bounded weights. Where the whole tail equals the largest weight there is none: −∞ by convention. The estimate k̂
    scatters, by about (1 + k)/√M.

    Args:
        log_w: log-weights in nats, shape ``(K, B)`` with K ≥ 25, so that the tail holds 5 samples.

    Returns:
        Shape ``(B,)``, without gradient. +∞ where fewer than 5 weights rise above the rest: no tail can be fitted to
        them, and they are all that counts.

    Raises:
        ValueError: K < 25, or an entry is NaN or +∞.

    Reference:
        Vehtari et al. (2024), arXiv:1507.02646, with the fit of Zhang and Stephens (2009); chapter 3.

    >>> quantiles = (torch.arange(10_000).double() + 0.5) / 10_000
    >>> pareto_k(-0.8 * quantiles.log()[:, None]).round(decimals=1)  # weights u^-0.8 have tail index 0.8
    tensor([0.8000], dtype=torch.float64)
    """
    num_samples = log_w.shape[0]
    if num_samples < 25:
        raise ValueError(f"log_w: pareto_k needs at least 25 samples, got {num_samples}")
    weights, _ = _shifted_weights(log_w.detach().double())
    tail_size = math.ceil(min(0.2 * num_samples, 3 * math.sqrt(num_samples)))
    tail = weights.sort(0).values[-tail_size - 1 :]
    fitted = [_generalized_pareto_shape(column[1:] - column[0]) for column in tail.T]
    k = torch.tensor(fitted, dtype=log_w.dtype, device=log_w.device)
    # a largest weight that fills the tail, as with constant weights or a z of few values, has nothing above it
    no_tail = (tail[0] == tail[-1]) & (tail[-1] > 0)
    return torch.where(no_tail, -math.inf, k)


def _generalized_pareto_shape(excess: Tensor) -> float:
    r"""Shape of a generalized Pareto law from sorted excesses over the threshold.

    Zhang and Stephens (2009): with :math:`\theta = k/\sigma` the profile likelihood is one-dimensional; the estimate
    of :math:`\theta` is its mean under a weakly informative prior on a grid of quantiles. The last line is the
    prior of Vehtari et al. (2024): ten observations' worth of k = 0.5.
    """
    excess = excess[excess > 1e-280]  # the largest weight is 1 here; below this the reciprocals overflow
    count = len(excess)
    if count < 5:
        return math.inf
    grid_size = 30 + math.isqrt(count)
    quartile = excess[int(count / 4 + 0.5) - 1]
    steps = torch.arange(1, grid_size + 1, dtype=excess.dtype) - 0.5
    theta = 1 / excess[-1] + (1 - (grid_size / steps).sqrt()) / (3 * quartile)
    shapes = torch.log1p(-theta[:, None] * excess).mean(1)
    profile = count * ((-theta / shapes).log() - shapes - 1)
    theta_hat = (profile.softmax(0) * theta).sum()
    k = torch.log1p(-theta_hat * excess).mean().item()
    return (count * k + 10 * 0.5) / (count + 10)
