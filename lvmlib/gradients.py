r"""Gradient estimators, each as a surrogate objective ``(B,)`` to be maximized, whose gradient is the estimator.

A surrogate is a pure function of given draws, ``surrogate(model, x, q, z)`` with ``z = draw(q, num_samples)``;
`objective` adds the draw and makes it an objective for `fit`. The *value* of a surrogate is the estimate of the bound
that it climbs (the relaxed bound for `gumbel_softmax`), so that a training history shows the bound. Where the gradient
of that estimate is not the estimator, `_carry` adds a term of value 0 that has the right gradient.

Below, θ are the parameters of p and φ those of q. Three families:

- by scores, for any q: z is a number, and the gradient in φ is a weighted sum of ∇ log q(z). For the ELBO
  `score_function`, `learned_baseline`, `leave_one_out`; for the IWAE bound `vimco`; `reweighted_wake_sleep`.
- along the path, for a q with `transport`: z itself carries the gradient. For the ELBO `pathwise`,
  `sticking_the_landing`; for the IWAE bound `iwae_pathwise`, `doubly_reparameterized`.
- relaxed, for binary latents, biased: `gumbel_softmax`, `straight_through`. They take noise instead of z.
"""

import inspect
import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributions import Distribution

from lvmlib.bounds import kl_to_prior
from lvmlib.contracts import check_count, check_positive, checked
from lvmlib.importance import FOR_ANY_LAW, Draw, draw, samples_per_chunk, score
from lvmlib.laws import BernoulliVector
from lvmlib.models import LatentVariableModel, check_data
from lvmlib.proposals import Proposal, detached
from lvmlib.weights import log_mean_exp, normalize_log_weights, resample


def objective(surrogate: Callable[..., Tensor], num_samples: int = 1, **options) -> Callable[..., Tensor]:
    """Return the objective ``(model, encoder, x) -> (B,)`` that draws from q and hands the draws to a surrogate.

    Args:
        surrogate: a function of this module, or another with the arguments ``(model, x, q, z)``. One whose fourth
            argument is called `noise` is given logistic noise instead of z.
        num_samples: K ≥ 1.
        options: further arguments of the surrogate, by name.

    Returns:
        An objective for `fit` and `fit_proposal`.

    >>> from lvmlib import LinearGaussian, prior_proposal
    >>> model = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0)
    >>> objective(doubly_reparameterized, num_samples=3)(model, prior_proposal(model), torch.zeros(5, 1)).shape
    torch.Size([5])
    """
    check_count("num_samples", num_samples)
    sampler = logistic_noise if "noise" in inspect.signature(surrogate).parameters else draw

    def estimate(model: LatentVariableModel, encoder: Proposal, x: Tensor) -> Tensor:
        q = encoder(x)
        return surrogate(model, x, q, sampler(q, num_samples), **options)

    return estimate


def _carry(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return `value`, with the gradient of `surrogate` added to its own."""
    return value + (surrogate - surrogate.detach()).nan_to_num()  # −∞ − (−∞): the value stays, the gradient is NaN


def _score(model: LatentVariableModel, x: Tensor, q: Distribution, z: Tensor, minimum: int = 1) -> Draw:
    """Score at least `minimum` given samples."""
    if len(z) < minimum:
        raise ValueError(f"z must hold at least {minimum} samples (num_samples >= {minimum}), got {len(z)}")
    return score(model, x, q, z)


def _by_scores(value: Tensor, sample: Draw, for_p: Tensor, for_q: Tensor) -> Tensor:
    """Return `value` with the gradient Σ_k a_k ∇ log p(x, z_k) + c_k ∇ log q(z_k), of given a and c, (K, B)."""
    log_joint = torch.where(for_p != 0, sample.log_prior + sample.log_likelihood, 0.0)  # 0 · (−∞) is 0
    return _carry(value, (for_p * log_joint + for_q * sample.log_q).sum(0))


def _reinforce(sample: Draw, signal: Tensor) -> Tensor:
    """Return the mean of log w, with the gradient mean_k ∇ log p(x, z_k) + signal_k ∇ log q(z_k)."""
    share = torch.full_like(signal, 1 / len(signal))
    return _by_scores(sample.log_w.detach().mean(0), sample, share, share * signal)


@checked
def score_function(
    model: LatentVariableModel,
    x: Float[Tensor, "b d"],
    q: Distribution,
    z: Shaped[Tensor, "k b *z"],
    baseline: Float[Tensor, "k b"] | Float[Tensor, " b"] | float | int = 0.0,
) -> Float[Tensor, " b"]:
    r"""Score-function estimator (REINFORCE) of the gradient of the ELBO, for any q.

    .. math:: \nabla_\phi \approx \frac1K \sum_k (\log w_k - b) \, \nabla_\phi \log q(z_k), \qquad
              \nabla_\theta \approx \frac1K \sum_k \nabla_\theta \log p(x, z_k)

    Unbiased for every baseline b that does not depend on :math:`z_k`, because :math:`\mathbb E_q[\nabla \log q] = 0`;
    for the same reason the direct part of the gradient, :math:`-\nabla_\phi \log q(z_k)`, is left out.
    The baseline decides the variance: at the posterior log w is log p(x), and with b = log p(x) that of φ is 0.

    Args:
        model: gives p.
        x: data, shape ``(B, D)``.
        q: the law that z was drawn from, batch shape ``(B,)``.
        z: shape ``(K, B, *z_event)``, taken as numbers.
        baseline: b in nats: a number, or shape ``(B,)`` or ``(K, B)``; no gradient flows into it.

    Returns:
        Shape ``(B,)``, in nats per data point; the mean of log w, an estimate of the ELBO. Where a sample has zero
        weight the ELBO is −∞ and its gradient is not finite.

    Raises:
        ValueError: K < 1, or shapes that do not fit one another.

    Reference:
        Williams (1992); Paisley, Blei and Jordan (2012), arXiv:1206.6430; Ranganath, Gerrish and Blei
        (2014), arXiv:1401.0118; Mnih and Gregor (2014), arXiv:1402.0030; chapter 7.

    >>> from lvmlib import GaussianMixture, posterior_proposal
    >>> model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(1))
    >>> objective(score_function, 5)(model, posterior_proposal(model), torch.zeros(1, 1)).detach()  # log p(x)
    tensor([-1.4189])
    """
    sample = _score(model, x, q, z.detach())
    return _reinforce(sample, (sample.log_w - baseline).detach())


@checked
def learned_baseline(
    model: LatentVariableModel, x: Float[Tensor, "b d"], q: Distribution, z: Shaped[Tensor, "k b *z"], network: Callable
) -> Float[Tensor, " b"]:
    r"""`score_function` with the baseline network(x), trained by the same ascent to predict log w.

    .. math:: \text{added to the objective, for the network only:} \quad
              -\frac1{2K} \sum_k \big(\log w_k - b_\psi(x)\big)^2

    Unbiased in θ and φ, whose gradients are those of `score_function`. The ascent must know the network's parameters:
    make it a part of the encoder, ``encoder.baseline = network``.

    Args:
        network: maps x ``(B, D)`` to b ``(B,)`` in nats, such as ``nn.Sequential(mlp(D, [16], 1), nn.Flatten(0))``.

    Other Args, Returns: as `score_function`.

    Raises:
        ValueError: the network returns another shape than ``(B,)``.

    Reference:
        Mnih and Gregor (2014), arXiv:1402.0030; chapter 7.

    >>> from lvmlib import LinearGaussian, prior_proposal
    >>> model, x = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0), torch.zeros(5, 1)
    >>> objective(learned_baseline, num_samples=3, network=lambda x: x[:, 0])(model, prior_proposal(model), x).shape
    torch.Size([5])
    """
    sample = _score(model, x, q, z.detach())
    baseline = network(x)
    if baseline.shape != (len(x),):
        raise ValueError(f"network must return shape ({len(x)},), one baseline per x, got {tuple(baseline.shape)}")
    signal = sample.log_w.detach() - baseline
    return _carry(_reinforce(sample, signal.detach()), -signal.square().mean(0) / 2)


@checked
def leave_one_out(
    model: LatentVariableModel, x: Float[Tensor, "b d"], q: Distribution, z: Shaped[Tensor, "k b *z"]
) -> Float[Tensor, " b"]:
    r"""`score_function` with the mean of the other log-weights as the baseline of each sample (RLOO).

    .. math:: b_k = \frac1{K - 1} \sum_{j \ne k} \log w_j, \qquad
              \log w_k - b_k = \frac{K}{K - 1} \Big(\log w_k - \frac1K \sum_j \log w_j\Big)

    Unbiased for the ELBO. At the posterior its variance in φ is 0, without knowing log p(x).

    Args, Returns: as `score_function`, with K ≥ 2.

    Raises:
        ValueError: K < 2.

    Reference:
        Salimans and Knowles (2014), arXiv:1401.1022; Kool, van Hoof and Welling (2019),
        https://openreview.net/forum?id=r1lgTGL5DE; chapter 7.

    >>> from lvmlib import GaussianMixture, posterior_proposal
    >>> model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(1))
    >>> objective(leave_one_out, 2)(model, posterior_proposal(model), torch.zeros(1, 1)).detach()  # log p(x)
    tensor([-1.4189])
    """
    sample = _score(model, x, q, z.detach(), minimum=2)
    log_w = sample.log_w.detach()
    return _reinforce(sample, (log_w - log_w.mean(0)) * len(z) / (len(z) - 1))


@checked
def vimco(
    model: LatentVariableModel, x: Float[Tensor, "b d"], q: Distribution, z: Shaped[Tensor, "k b *z"]
) -> Float[Tensor, " b"]:
    r"""Score-function estimator of the gradient of the IWAE bound, with a baseline from the other samples (VIMCO).

    .. math:: \nabla_\phi \approx \sum_k \big(\log \hat p_K - \log \hat p_{-k} - \tilde w_k\big)
              \nabla_\phi \log q(z_k), \qquad
              \nabla_\theta \approx \sum_k \tilde w_k \nabla_\theta \log p(x, z_k)

    where :math:`\hat p_{-k}` is the mean weight with :math:`w_k` replaced by the geometric mean of the others.
    Unbiased for the IWAE bound of K samples, and so biased for the ELBO. At the posterior the bracket is −1/K: the
    variance in φ is not 0. Where no other sample has a weight, :math:`\log \hat p_{-k}` is taken as 0. It needs memory
    for K² B numbers.

    Args: as `score_function`, with K ≥ 2.

    Returns:
        Shape ``(B,)``, in nats per data point; log p̂_K. −∞ with gradient 0 where all weights are zero.

    Raises:
        ValueError: K < 2.

    Reference:
        Mnih and Rezende (2016), arXiv:1602.06725; chapter 8.

    >>> from lvmlib import GaussianMixture, posterior_proposal
    >>> model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(1))
    >>> objective(vimco, 2)(model, posterior_proposal(model), torch.zeros(1, 1)).detach()  # log p(x)
    tensor([-1.4189])
    """
    sample = _score(model, x, q, z.detach(), minimum=2)
    log_w = sample.log_w.detach()
    bound, weights = log_mean_exp(log_w), normalize_log_weights(log_w)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)[..., None]  # (k, j, 1): is sample j the one left out?
    geometric = torch.where(own, 0.0, log_w).sum(1, keepdim=True) / (len(z) - 1)
    without = torch.where(own, geometric, log_w).logsumexp(1) - math.log(len(z))
    signal = torch.where(bound > -math.inf, bound - without.masked_fill(without == -math.inf, 0.0), 0.0)
    return _by_scores(bound, sample, weights, signal - weights)


@checked
def reweighted_wake_sleep(
    model: LatentVariableModel, x: Float[Tensor, "b d"], q: Distribution, z: Shaped[Tensor, "k b *z"]
) -> Float[Tensor, " b"]:
    r"""Reweighted wake–sleep: p climbs the IWAE bound; q descends KL(p(z | x) ‖ q), the wake update of φ.

    .. math:: \nabla_\theta \approx \sum_k \tilde w_k \nabla_\theta \log p(x, z_k), \qquad
              \nabla_\phi \approx \sum_k \tilde w_k \nabla_\phi \log q(z_k)
              \approx -\nabla_\phi \mathrm{KL}(p(z \mid x) \,\|\, q)

    Unbiased in θ for the IWAE bound. In φ it is no gradient of that bound, and as one of the KL it is biased by a term
    of order 1/K, as self-normalized weights are; with K = 1 its expectation is 0 and φ learns nothing.

    Args: as `score_function`.

    Returns:
        Shape ``(B,)``, in nats per data point; log p̂_K. −∞ with gradient 0 where all weights are zero.

    Reference:
        Bornschein and Bengio (2015), arXiv:1406.2751; Le et al. (2019), arXiv:1805.10469; chapter 8.

    >>> from lvmlib import GaussianMixture, posterior_proposal
    >>> model = GaussianMixture(torch.tensor([0.5, 0.5]), torch.tensor([[-1.0], [1.0]]), torch.ones(1))
    >>> objective(reweighted_wake_sleep, 5)(model, posterior_proposal(model), torch.zeros(1, 1)).detach()  # log p(x)
    tensor([-1.4189])
    """
    sample = _score(model, x, q, z.detach())
    weights = normalize_log_weights(sample.log_w.detach())
    return _by_scores(log_mean_exp(sample.log_w.detach()), sample, weights, weights)


def _score_path(model: LatentVariableModel, x: Tensor, q: Distribution, z: Tensor, law: Distribution) -> Tensor:
    """Return log w, (K, B), of a z that carries the gradient of q, with the log q of `law`: q, or q detached."""
    if not hasattr(q, "transport"):
        raise ValueError(
            f"q must have `transport`, so that z carries a gradient, got {type(q).__name__}; for any law there are the "
            f"estimators {FOR_ANY_LAW}, for binary latents also gumbel_softmax and straight_through"
        )
    log_w = _score(model, x, law, z).log_w
    if not z.requires_grad and q.log_prob(z).requires_grad:
        raise ValueError("z must carry the gradient of q (z = draw(q, num_samples) or q.transport(noise)), got one cut")
    return log_w


@checked
def pathwise(
    model: LatentVariableModel, x: Float[Tensor, "b d"], q: Distribution, z: Shaped[Tensor, "k b *z"]
) -> Float[Tensor, " b"]:
    r"""Pathwise (reparameterization) estimator of the gradient of the ELBO, through :math:`z = T_\phi(\epsilon)`.

    .. math:: \nabla_\phi \approx \frac1K \sum_k \nabla_\phi \big[\log p(x, T_\phi(\epsilon_k))
              - \log q_\phi(T_\phi(\epsilon_k))\big]

    Unbiased. Its variance is not 0 at the posterior: there :math:`-\nabla_\phi \log q_\phi(z)` at fixed z is left.

    Args:
        model: gives p.
        x: data, shape ``(B, D)``.
        q: the law that z was drawn from, batch shape ``(B,)``, with `transport`.
        z: ``draw(q, num_samples)`` or ``q.transport(noise)``, shape ``(K, B, *z_event)``, with its gradient.

    Returns:
        Shape ``(B,)``, in nats per data point; the mean of log w.

    Raises:
        ValueError: q has no `transport`, as a discrete law has none; or z has lost its gradient.

    Reference:
        Kingma and Welling (2014), arXiv:1312.6114; Rezende, Mohamed and Wierstra (2014),
        arXiv:1401.4082; chapter 7.

    >>> from lvmlib import LinearGaussian, posterior_proposal
    >>> model, x = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0), torch.tensor([[5.0]])
    >>> objective(pathwise, 2)(model, posterior_proposal(model), x).detach()  # log p(x)
    tensor([-3.0284])
    """
    return _score_path(model, x, q, z, q).mean(0)


@checked
def sticking_the_landing(
    model: LatentVariableModel, x: Float[Tensor, "b d"], q: Distribution, z: Shaped[Tensor, "k b *z"]
) -> Float[Tensor, " b"]:
    r"""Pathwise estimator of the gradient of the ELBO without the score of q: only the path carries a gradient to φ.

    .. math:: \nabla_\phi \approx \frac1K \sum_k \frac{\partial \log w(z_k)}{\partial z_k}
              \frac{\partial T_\phi(\epsilon_k)}{\partial \phi}, \qquad z_k = T_\phi(\epsilon_k)

    Unbiased: what it leaves out has expectation 0. At the posterior :math:`\log w(z)` is constant in z, and the
    variance in φ is 0.

    Args, Returns, Raises: as `pathwise`.

    Reference:
        Roeder, Wu and Duvenaud (2017), arXiv:1703.09194; chapter 7.

    >>> from lvmlib import LinearGaussian, posterior_proposal
    >>> model, x = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0), torch.tensor([[5.0]])
    >>> objective(sticking_the_landing, 2)(model, posterior_proposal(model), x).detach()  # log p(x)
    tensor([-3.0284])
    """
    return _score_path(model, x, q, z, detached(q)).mean(0)


def _pick(
    model: LatentVariableModel, x: Tensor, q: Distribution, z: Tensor, num_kept: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p̂_K (B,) without gradient, the samples that `resample` picks, (M, B, *z), and their w̃ (M, B)."""
    check_count("num_backward", num_kept)
    with torch.no_grad():
        log_w = torch.cat([_score(model, x, q, part).log_w for part in z.split(samples_per_chunk(x, q))])
    index, data = resample(log_w, num_kept), torch.arange(len(x), device=z.device)
    return log_mean_exp(log_w), z[index, data], normalize_log_weights(log_w)[index, data]


@checked
def iwae_pathwise(
    model: LatentVariableModel,
    x: Float[Tensor, "b d"],
    q: Distribution,
    z: Shaped[Tensor, "k b *z"],
    num_backward: int | None = None,
) -> Float[Tensor, " b"]:
    r"""Pathwise estimator of the gradient of the IWAE bound.

    .. math:: \nabla_{\theta, \phi} \approx \sum_k \tilde w_k \nabla_{\theta, \phi}
              \big[\log p(x, T_\phi(\epsilon_k)) - \log q_\phi(T_\phi(\epsilon_k))\big]

    Unbiased. In φ its signal falls faster with K than its noise: see `doubly_reparameterized`.

    The sum is a mean under the weights. With `num_backward` it is taken over M samples that `resample` picks: unbiased
    still, noisier, and with M ≪ K at best about three times as fast: the others need no backward pass (chapter 10).

    Args:
        num_backward: M ≥ 1, or None for all.

    Other Args, Raises: as `pathwise`. With M, the gradient of a data point whose weights are all zero means nothing.

    Returns:
        Shape ``(B,)``, in nats per data point; log p̂_K.

    Reference:
        Burda, Grosse and Salakhutdinov (2016), arXiv:1509.00519; Rainforth et al. (2018), arXiv:1802.04537; chapter 8.

    >>> from lvmlib import LinearGaussian, posterior_proposal
    >>> model, x = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0), torch.tensor([[5.0]])
    >>> objective(iwae_pathwise, 2)(model, posterior_proposal(model), x).detach()  # log p(x)
    tensor([-3.0284])
    """
    if num_backward is None:
        return log_mean_exp(_score_path(model, x, q, z, q))
    value, kept, _ = _pick(model, x, q, z, num_backward)
    return _carry(value, _score_path(model, x, q, kept, q).mean(0))


@checked
def doubly_reparameterized(
    model: LatentVariableModel,
    x: Float[Tensor, "b d"],
    q: Distribution,
    z: Shaped[Tensor, "k b *z"],
    num_backward: int | None = None,
) -> Float[Tensor, " b"]:
    r"""Doubly reparameterized estimator of the gradient of the IWAE bound (DReG): in φ the path alone, weighted twice.

    .. math:: \nabla_\phi \approx \sum_k \tilde w_k^2 \, \frac{\partial \log w(z_k)}{\partial z_k}
              \frac{\partial T_\phi(\epsilon_k)}{\partial \phi}, \qquad
              \nabla_\theta \approx \sum_k \tilde w_k \nabla_\theta \log p(x, z_k)

    Unbiased. With K = 1 it is `sticking_the_landing`; at the posterior its variance in φ is 0.

    Args, Returns, Raises: as `iwae_pathwise`.

    Reference:
        Tucker et al. (2019), arXiv:1810.04152; chapter 8.

    >>> from lvmlib import LinearGaussian, posterior_proposal
    >>> model, x = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0), torch.tensor([[5.0]])
    >>> objective(doubly_reparameterized, 2)(model, posterior_proposal(model), x).detach()  # log p(x)
    tensor([-3.0284])
    """
    value, kept, weights = (None, z.view_as(z), None) if num_backward is None else _pick(model, x, q, z, num_backward)
    log_w = _score_path(model, x, q, kept, detached(q))
    weights = normalize_log_weights(log_w.detach()) if weights is None else weights
    if kept.requires_grad:
        # the second w̃; log_mean_exp, or picking, brings the first. `view_as`: the caller's z must not get the hook
        kept.register_hook(lambda gradient: weights[..., None] * gradient)
    return log_mean_exp(log_w) if value is None else _carry(value, log_w.mean(0))


def logistic_noise(q: Distribution, num_samples: int) -> Float[Tensor, "k b z"]:
    """Draw standard logistic noise for `relax`: the logit of a uniform number, shape ``(K, B, L)``.

    >>> logistic_noise(BernoulliVector(torch.zeros(5, 2)), num_samples=3).shape
    torch.Size([3, 5, 2])
    """
    check_count("num_samples", num_samples)
    return torch.rand_like(q.mean.expand(num_samples, *q.mean.shape)).logit()


@checked
def relax(q: Distribution, noise: Float[Tensor, "k b z"], temperature: float) -> Float[Tensor, "k b z"]:
    r"""Return relaxed bits, numbers in (0, 1), that carry the gradient of q's logits (binary Concrete law).

    .. math:: z = \sigma\big((\ell + \epsilon) / \tau\big), \qquad
              \mathbf 1[z > \tfrac12] \sim \mathrm{Bernoulli}(\sigma(\ell)) \text{ for logistic } \epsilon

    Args:
        q: a BernoulliVector law, with logits ℓ, batch shape ``(B,)``.
        noise: ε, standard logistic, shape ``(K, B, L)``.
        temperature: τ > 0; towards 0 the bits become 0 or 1.

    Raises:
        ValueError: q is another law, τ is not above 0, K < 1, or shapes that do not fit.

    Reference:
        Maddison, Mnih and Teh (2017), arXiv:1611.00712; Jang, Gu and Poole (2017), arXiv:1611.01144.

    >>> relax(BernoulliVector(torch.zeros(1, 3)), torch.tensor([[[-2.0, 0.0, 2.0]]]), temperature=1.0)
    tensor([[[0.1192, 0.5000, 0.8808]]])
    """
    check_positive("temperature", temperature)
    if not isinstance(q, BernoulliVector):
        raise ValueError(
            f"q must be a BernoulliVector, got {type(q).__name__}; for any law there are the estimators {FOR_ANY_LAW}"
        )
    if len(noise) < 1 or noise.shape[1:] != q.mean.shape:
        raise ValueError(f"noise must have shape (K, *{tuple(q.mean.shape)}) with K >= 1, got {tuple(noise.shape)}")
    return ((q.base_dist.logits + noise) / temperature).sigmoid()


def _reconstruct(model: LatentVariableModel, x: Tensor, q: BernoulliVector, z: Tensor) -> Tensor:
    """Return the mean of log p(x | z), minus KL(q ‖ p); z need not be 0 or 1."""
    divergence, law = kl_to_prior(q, model), model.likelihood(z)
    check_data(x, law)
    return law.log_prob(x).mean(0) - divergence


@checked
def gumbel_softmax(
    model: LatentVariableModel,
    x: Float[Tensor, "b d"],
    q: Distribution,
    noise: Float[Tensor, "k b z"],
    temperature: float,
) -> Float[Tensor, " b"]:
    r"""Gradient of a relaxed ELBO, for binary latents: the decoder sees relaxed bits (binary Gumbel-softmax).

    .. math:: \frac1K \sum_k \log p(x \mid z_k) - \mathrm{KL}(q(z \mid x) \,\|\, p(z)), \qquad
              z_k = \sigma\big((\ell + \epsilon_k) / \tau\big)

    Biased, value and gradient, in θ and φ: they belong to the relaxed objective, which need not be below log p(x).
    The bias goes to 0 with τ, while the variance in φ grows as 1/τ. The KL is that of the discrete laws.

    Args:
        model: a `BinaryLatentModel`, whose decoder takes any number for a bit.
        x: data, shape ``(B, D)``.
        q: a BernoulliVector law, batch shape ``(B,)``.
        noise: standard logistic, shape ``(K, B, L)``, such as ``logistic_noise(q, num_samples)``.
        temperature: τ > 0.

    Returns:
        Shape ``(B,)``, in nats per data point; the relaxed ELBO.

    Raises:
        ValueError: q is another law, τ is not above 0, or K < 1.

    Reference:
        Jang, Gu and Poole (2017), arXiv:1611.01144; Maddison, Mnih and Teh (2017), arXiv:1611.00712; chapter 7.

    >>> from lvmlib import BernoulliDecoder, BinaryLatentModel, mlp, prior_proposal
    >>> model = BinaryLatentModel(2, BernoulliDecoder(mlp(2, [], 3)))
    >>> objective(gumbel_softmax, 4, temperature=0.5)(model, prior_proposal(model), torch.ones(5, 3)).shape
    torch.Size([5])
    """
    return _reconstruct(model, x, q, relax(q, noise, temperature))


@checked
def straight_through(
    model: LatentVariableModel,
    x: Float[Tensor, "b d"],
    q: Distribution,
    noise: Float[Tensor, "k b z"],
    temperature: float,
) -> Float[Tensor, " b"]:
    r"""Straight-through estimator for binary latents: the decoder sees bits, the gradient that of the relaxed bits.

    .. math:: z_k = \mathbf 1[\ell + \epsilon_k > 0] \quad\text{with}\quad
              \nabla_\phi z_k := \nabla_\phi \, \sigma\big((\ell + \epsilon_k) / \tau\big)

    Unbiased in θ. Biased in φ: as τ → 0 it takes, for the difference of log p(x | z) between the two values of a bit,
    the mean of its slopes at the two, which is the same where log p(x | z) is quadratic in the bit.

    Args, Raises: as `gumbel_softmax`.

    Returns:
        Shape ``(B,)``, in nats per data point; an unbiased estimate of the ELBO, with the KL in closed form.

    Reference:
        Bengio, Léonard and Courville (2013), arXiv:1308.3432; Jang, Gu and Poole (2017), arXiv:1611.01144; chapter 7.

    >>> from lvmlib import BernoulliDecoder, BinaryLatentModel, mlp, prior_proposal
    >>> model = BinaryLatentModel(2, BernoulliDecoder(mlp(2, [], 3)))
    >>> objective(straight_through, 4, temperature=0.5)(model, prior_proposal(model), torch.ones(5, 3)).shape
    torch.Size([5])
    """
    relaxed = relax(q, noise, temperature)
    bits = (relaxed > 0.5).to(relaxed)
    return _reconstruct(model, x, q, bits + (relaxed - relaxed.detach()))
