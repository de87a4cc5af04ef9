r"""Lower bounds on log p(x), as estimates from samples. Each has shape ``(B,)`` and is an objective for `fit`.

All three faces of the ELBO have the same expectation; their samples differ, and so does their variance.
As objectives they need draws that carry the gradient of q. A q without `transport`, as a discrete law, is refused
where its parameters ask for a gradient (``ValueError``): the estimators of `lvmlib.gradients` work there.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Categorical, Distribution, kl_divergence

from lvmlib.contracts import checked
from lvmlib.importance import Draw, check_path, draw, score
from lvmlib.laws import BernoulliVector, FullGaussian
from lvmlib.models import LatentVariableModel
from lvmlib.proposals import Proposal, check_law
from lvmlib.weights import log_mean_exp


@checked
def elbo(
    model: LatentVariableModel, x: Float[Tensor, "b d"], encoder: Proposal, num_samples: int = 1
) -> Float[Tensor, " b"]:
    r"""Evidence lower bound, the mean of the log-weights.

    .. math:: \mathrm{ELBO}(q) = \mathbb E_{q(z \mid x)}[\log p(x, z) - \log q(z \mid x)] \le \log p(x)

    The sample mean is unbiased for the ELBO, whatever K.

    Args:
        model: gives p.
        x: data, shape ``(B, D)``.
        encoder: callable from x to q(z | x).
        num_samples: K ≥ 1.

    Returns:
        Shape ``(B,)``, in nats per data point.

    Raises:
        ValueError: K < 1, or a gradient is asked of a q without `transport`, such as a discrete one.

    Reference:
        Jordan et al. (1999); Kingma and Welling (2014), section 2.2, arXiv:1312.6114; chapter 4.

    >>> from lvmlib import LinearGaussian, exact_log_marginal, posterior_proposal
    >>> model, x = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0), torch.tensor([[5.0]])
    >>> gap = exact_log_marginal(model, x) - elbo(model, x, posterior_proposal(model))  # none at the posterior
    >>> bool(gap.abs() < 1e-5)
    True
    """
    _, sample = _draw_and_score(model, x, encoder, num_samples)
    return sample.log_w.mean(0)


@checked
def elbo_analytic_kl(
    model: LatentVariableModel, x: Float[Tensor, "b d"], encoder: Proposal, num_samples: int = 1
) -> Float[Tensor, " b"]:
    r"""The ELBO as reconstruction minus KL to the prior, the second term in closed form.

    .. math:: \mathbb E_{q(z \mid x)}[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \,\|\, p(z))

    Args, Returns: as `elbo`.

    Reference:
        Kingma and Welling (2014), equation 3, arXiv:1312.6114; chapter 6.

    >>> from lvmlib import LinearGaussian, prior_proposal
    >>> model, x = LinearGaussian(torch.tensor([[0.0]]), torch.zeros(1), 1.0), torch.tensor([[0.0]])
    >>> elbo_analytic_kl(model, x, prior_proposal(model)).detach()  # KL is 0, and z does not matter
    tensor([-0.9189])
    """
    q, z = _draw(model, x, encoder, num_samples)
    return model.log_likelihood(x, z).mean(0) - kl_to_prior(q, model)


@checked
def elbo_analytic_entropy(
    model: LatentVariableModel, x: Float[Tensor, "b d"], encoder: Proposal, num_samples: int = 1
) -> Float[Tensor, " b"]:
    r"""The ELBO as minus energy plus entropy, the second term in closed form.

    .. math:: \mathbb E_{q(z \mid x)}[\log p(x, z)] + \mathrm H(q(z \mid x))

    Args, Returns: as `elbo`. Chapter 6.

    >>> from lvmlib import LinearGaussian, prior_proposal
    >>> model, x = LinearGaussian(torch.tensor([[0.0]]), torch.zeros(1), 1.0), torch.tensor([[0.0]])
    >>> elbo_analytic_entropy(model, x, prior_proposal(model), num_samples=1000).shape
    torch.Size([1])
    """
    q, z = _draw(model, x, encoder, num_samples)
    return model.log_joint(x, z).mean(0) + q.entropy()


@checked
def iwae_bound(
    model: LatentVariableModel, x: Float[Tensor, "b d"], encoder: Proposal, num_samples: int
) -> Float[Tensor, " b"]:
    r"""Importance-weighted bound: the estimate log p̂_K, as an objective; its expectation rises with K.

    .. math:: \mathcal L_K = \mathbb E\Big[\log \frac1K \sum_{k=1}^K w_k\Big] \le \log p(x)

    Args, Returns: as `elbo`, of which it is the case K = 1.

    Reference:
        Burda, Grosse and Salakhutdinov (2016), equation 8, arXiv:1509.00519; chapter 8.

    >>> from lvmlib import LinearGaussian, exact_log_marginal, posterior_proposal
    >>> model, x = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0), torch.tensor([[5.0]])
    >>> bool((iwae_bound(model, x, posterior_proposal(model), 5) - exact_log_marginal(model, x)).abs() < 1e-5)
    True
    """
    _, sample = _draw_and_score(model, x, encoder, num_samples)
    return log_mean_exp(sample.log_w)


@checked
def rate_and_distortion(
    model: LatentVariableModel, x: Float[Tensor, "b d"], encoder: Proposal, num_samples: int = 1
) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    r"""The two terms of the ELBO: what z costs, and what x costs once z is known.

    .. math:: R(x) = \mathrm{KL}(q(z \mid x) \,\|\, p(z)), \qquad D(x) = -\mathbb E_{q(z \mid x)}[\log p(x \mid z)],
              \qquad \mathrm{ELBO} = -(D + R)

    R is in closed form; the mean over K samples is unbiased for D. The objective of a β-VAE is −(D + βR).

    Args, Raises: as `elbo`.

    Returns:
        R and D, each of shape ``(B,)``, in nats per data point. R ≥ 0; D may be negative where x is continuous.

    Reference:
        Higgins et al. (2017); Alemi et al. (2018), arXiv:1711.00464; chapter 9.

    >>> from lvmlib import LinearGaussian, prior_proposal
    >>> model = LinearGaussian(torch.zeros(1, 1), torch.zeros(1))  # x does not depend on z
    >>> rate, distortion = rate_and_distortion(model, torch.zeros(1, 1), prior_proposal(model))
    >>> rate, distortion.detach()  # nothing, and log(2 pi) / 2
    (tensor([0.]), tensor([0.9189]))
    """
    q, z = _draw(model, x, encoder, num_samples)
    return kl_to_prior(q, model), -model.log_likelihood(x, z).mean(0)


def _draw(model: LatentVariableModel, x: Tensor, encoder: Proposal, num_samples: int) -> tuple[Distribution, Tensor]:
    if len(x) == 0:
        raise ValueError(f"x must have shape (B, D) with B >= 1, got {tuple(x.shape)}")
    q = encoder(x)
    check_law(model, q, len(x))
    z = draw(q, num_samples)
    check_path(q, z)
    return q, z


def _draw_and_score(
    model: LatentVariableModel, x: Tensor, encoder: Proposal, num_samples: int
) -> tuple[Distribution, Draw]:
    q, z = _draw(model, x, encoder, num_samples)
    return q, score(model, x, q, z)


def kl_to_prior(q: Distribution, model: LatentVariableModel) -> Float[Tensor, " b"]:
    r"""Return KL(q(z | x) ‖ p(z)) in closed form, shape ``(B,)``, in nats.

    Args:
        q: Gaussian, Categorical or BernoulliVector law with batch shape ``(B,)``; a probability of 0 is legal.
        model: gives the prior.

    Raises:
        ValueError: q is a law over another space than the prior.
        NotImplementedError: no closed form is known for this q.

    >>> from lvmlib import DiagonalGaussian, LinearGaussian
    >>> model = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0)
    >>> kl_to_prior(DiagonalGaussian(torch.tensor([[1.0]]), torch.tensor([[1.0]])), model)
    tensor([0.5000])
    """
    check_law(model, q, q.batch_shape.numel())
    prior = model.prior()
    if isinstance(q, Categorical):
        return _discrete_kl(q.logits, prior.logits)
    if isinstance(q, BernoulliVector):
        return _discrete_kl(q.log_probs(), prior.log_probs()).sum(-1)
    if isinstance(q, FullGaussian):
        prior = FullGaussian(prior.mean, torch.diag_embed(prior.stddev))
    return kl_divergence(q, prior)


def _discrete_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return Σ q (log q − log p) over the last axis, where 0 log 0 is 0 and has gradient 0."""
    possible = log_q > -torch.inf
    return torch.where(possible, log_q.exp() * (torch.where(possible, log_q, 0.0) - log_p), 0.0).sum(-1)
