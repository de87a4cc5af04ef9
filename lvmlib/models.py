r"""Latent variable models: a prior p(z) and a likelihood p(x | z), and what follows from the two.

Shapes: z carries the samples first, ``(K, B, *z_event)``; data are ``(B, D)``; scores are ``(K, B)``.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.distributions import Distribution

from lvmlib.contracts import check_count, check_finite, check_positive, checked, describe
from lvmlib.laws import BernoulliVector, DiagonalGaussian, FullGaussian


class LatentVariableModel(nn.Module):
    r"""The generative story: draw z from the prior, then x given z.

    .. math:: p(x, z) = p(z) \, p(x \mid z)

    A subclass defines `prior()` and `likelihood(z)`; the rest follows. Models with finitely many z also define
    `num_states` and `states(start, stop)`, and are then summed exactly by `lvmlib.exact`.
    """

    num_states: int | None = None
    z_shape: tuple[int, ...] = ()

    def prior(self) -> Distribution:
        """Return p(z), with batch shape ``()``."""
        raise NotImplementedError

    def likelihood(self, z: Tensor) -> Distribution:
        """Return p(x | z) for each z, with event shape ``(D,)``."""
        raise NotImplementedError

    def check_values(self, z: Tensor) -> None:
        """Refuse values of z that the prior cannot produce."""

    def check_z(self, z: Tensor) -> None:
        """Refuse a z of another shape than ``(K, B, *z_event)``, or with values that the prior cannot produce."""
        if z.dim() != 2 + len(self.z_shape) or tuple(z.shape[2:]) != self.z_shape:
            wanted = ", ".join(["K", "B", *map(str, self.z_shape)])
            raise ValueError(f"z must have shape ({wanted}), got {describe(z)}")
        self.check_values(z)

    def log_prior(self, z: Shaped[Tensor, "k b *z"]) -> Float[Tensor, "k b"]:
        """Return log p(z), shape ``(K, B)``; errors as for `log_likelihood`."""
        self.check_z(z)
        return self.prior().log_prob(z)

    @checked
    def log_likelihood(self, x: Shaped[Tensor, "b d"], z: Shaped[Tensor, "k b_or_1 *z"]) -> Float[Tensor, "k b"]:
        r"""Return log p(x | z).

        Args:
            x: data, shape ``(B, D)``.
            z: shape ``(K, B, *z_event)``: K values for each data point; or ``(S, 1, *z_event)``: every state with
                every data point.

        Returns:
            Shape ``(K, B)`` or ``(S, B)``, in nats per data point.

        Raises:
            TypeError: x has another dtype than the model, or a component number is not an int64.
            ValueError: shapes that do not pair, x not finite, x outside the support of the likelihood, or z outside
                that of the prior.
        """
        self.check_z(z)
        if z.shape[1] not in (1, len(x)):
            allowed = "1" if len(x) == 1 else f"1 or {len(x)}"
            raise ValueError(f"z must pair with x: axis 1 of z must be {allowed}, got shape {tuple(z.shape)}")
        law = self.likelihood(z)
        check_data(x, law)
        return law.log_prob(x)

    def log_joint(self, x: Shaped[Tensor, "b d"], z: Shaped[Tensor, "k b_or_1 *z"]) -> Float[Tensor, "k b"]:
        """Return log p(x, z) = log p(z) + log p(x | z); arguments and errors as for `log_likelihood`."""
        return self.log_likelihood(x, z) + self.log_prior(z)

    @torch.no_grad()
    def sample(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Draw from p(x, z) in one pass: z of shape ``(N, *z_event)`` and x of shape ``(N, D)``."""
        check_count("num_samples", num_samples)
        z = self.prior().sample((num_samples,))
        return z, self.likelihood(z).sample()


def check_data(x: Tensor, law: Distribution) -> None:
    """Refuse data that `law` cannot have produced: wrong dtype, wrong number of columns, outside the support.

    Raises:
        TypeError: x is not of the law's floating dtype.
        ValueError: x is empty, has another number of columns, is not finite, or lies outside the support.
    """
    parameter = law.base_dist.logits if isinstance(law, BernoulliVector) else law.mean
    if x.dtype != parameter.dtype:
        raise TypeError(f"x must have the model's dtype {parameter.dtype}, got {x.dtype}; use x.to({parameter.dtype})")
    if x.device != parameter.device:
        raise ValueError(f"x must be on the model's device {parameter.device}, got {x.device}")
    if len(x) == 0 or x.shape[1:] != law.event_shape:
        raise ValueError(f"x must have shape (B, {law.event_shape[0]}) with B >= 1, got {tuple(x.shape)}")
    bernoulli = isinstance(law, BernoulliVector)
    if _sound(x.detach(), bernoulli):
        return
    check_finite("x", x)
    if bernoulli:
        raise ValueError(
            "x must be 0 or 1 for Bernoulli pixels, got values from "
            f"{x.min().item():g} to {x.max().item():g}; choose: binarize the pixels (lvmlib.datasets.binarize; divide "
            "by 255 first if they go up to 255), or use a Gaussian likelihood (GaussianDecoder)"
        )


def _sound(x: Tensor, bernoulli: bool) -> bool:
    """Return whether all values are 0 or 1, or finite, by one cheap look; False may also mean a sum that overflows."""
    for part in x.split(128):  # what stays in cache is several times as fast
        # x = x² holds for 0 and 1 alone, and not for NaN; a NaN or an infinity stays one in a sum
        low, high = (part - part * part).aminmax() if bernoulli else (part.sum() * 0,) * 2
        if not low == high == 0:
            return False
    return True


def mlp(in_dim: int, hidden_dims: Sequence[int], out_dim: int) -> nn.Sequential:
    """Return a fully connected network with tanh between its layers: smooth, as quadrature over its input needs.

    >>> mlp(2, [16], 64)(torch.zeros(5, 2)).shape
    torch.Size([5, 64])
    """
    sizes = [in_dim, *hidden_dims, out_dim]
    for position, size in enumerate(sizes):
        check_count(f"size {position} of the network", size)
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


class BernoulliDecoder(nn.Module):
    r"""The conditional law p(x | z) of binary pixels, whose logits a network computes from z.

    Args:
        network: maps ``(..., z_dim)`` to logits ``(..., D)``.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, z: Float[Tensor, "... z"]) -> BernoulliVector:
        """Return p(x | z)."""
        return BernoulliVector(self.network(z))


class GaussianDecoder(nn.Module):
    r"""The conditional law p(x | z) = N(network(z), scale²) of real-valued data.

    Args:
        network: maps ``(..., z_dim)`` to means ``(..., D)``.
        scale: standard deviation, the same for all coordinates, > 0.
        learn_scale: whether training may change `scale`.
    """

    def __init__(self, network: nn.Module, scale: float = 1.0, learn_scale: bool = False):
        super().__init__()
        check_positive("scale", scale)
        self.network = network
        dtype = next((p.dtype for p in network.parameters()), None)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=dtype), requires_grad=learn_scale)

    def forward(self, z: Float[Tensor, "... z"]) -> DiagonalGaussian:
        """Return p(x | z)."""
        loc = self.network(z)
        return DiagonalGaussian(loc, self.log_scale.exp().expand_as(loc))


class BinaryLatentModel(LatentVariableModel):
    r"""L Bernoulli latents and a decoder: 2^L values of z.

    .. math:: p(x) = \sum_{z \in \{0, 1\}^L} \prod_l \pi_l^{z_l} (1 - \pi_l)^{1 - z_l} \, p(x \mid z)

    Args:
        z_dim: L.
        decoder: the conditional law p(x | z), such as a `BernoulliDecoder`.
        learn_prior: whether the prior logits are trained; they start at 0, fair coins.

    >>> BinaryLatentModel(3, BernoulliDecoder(mlp(3, [4], 8))).num_states
    8
    """

    def __init__(self, z_dim: int, decoder: nn.Module, learn_prior: bool = False):
        super().__init__()
        check_count("z_dim", z_dim)
        self.z_dim, self.z_shape, self.num_states = z_dim, (z_dim,), 2**z_dim
        self.decoder = decoder
        self.prior_logits = nn.Parameter(torch.zeros(z_dim), requires_grad=learn_prior)

    def prior(self) -> BernoulliVector:
        """Return p(z), L independent bits."""
        return BernoulliVector(self.prior_logits)

    def likelihood(self, z: Float[Tensor, "... z"]) -> Distribution:
        """Return p(x | z)."""
        check_latent(z, self.z_dim)
        return self.decoder(z)

    def check_values(self, z: Tensor) -> None:
        """Refuse latents that are not 0 or 1."""
        if not ((z == 0) | (z == 1)).all():
            raise ValueError(f"z must be 0 or 1, got values from {z.min().item():g} to {z.max().item():g}")

    def states(self, start: int = 0, stop: int | None = None) -> Float[Tensor, "s 1 z"]:
        """Return states `start` to `stop` − 1, shape ``(S, 1, L)``; the bits of the state's number, lowest first."""
        stop = self.num_states if stop is None else stop
        number = torch.arange(start, stop, device=self.prior_logits.device)[:, None, None]
        return ((number >> torch.arange(self.z_dim, device=number.device)) & 1).to(self.prior_logits.dtype)


class GaussianLatentModel(LatentVariableModel):
    r"""A standard normal prior and a decoder: the model of a variational autoencoder.

    .. math:: p(x) = \int \mathcal N(z; 0, I) \, p(x \mid z) \, dz

    Args:
        z_dim: dimension of z. For 1 and 2, `lvmlib.exact` integrates it by quadrature.
        decoder: the conditional law p(x | z).

    >>> model = GaussianLatentModel(2, BernoulliDecoder(mlp(2, [16], 64)))
    >>> [tuple(part.shape) for part in model.sample(5)]
    [(5, 2), (5, 64)]
    """

    def __init__(self, z_dim: int, decoder: nn.Module):
        super().__init__()
        check_count("z_dim", z_dim)
        self.z_dim, self.z_shape, self.decoder = z_dim, (z_dim,), decoder
        self.register_buffer("prior_loc", torch.zeros(z_dim), persistent=False)

    def prior(self) -> DiagonalGaussian:
        """Return p(z), a standard normal."""
        return DiagonalGaussian(self.prior_loc, torch.ones_like(self.prior_loc))

    def check_values(self, z: Tensor) -> None:
        """Refuse latents of another dtype than the model's."""
        if z.dtype != self.prior_loc.dtype:
            raise TypeError(f"z must have the model's dtype {self.prior_loc.dtype}, got {describe(z)}")

    def likelihood(self, z: Float[Tensor, "... z"]) -> Distribution:
        """Return p(x | z)."""
        check_latent(z, self.z_dim)
        return self.decoder(z)


class LinearGaussian(GaussianLatentModel):
    r"""Probabilistic principal component analysis: the model whose every integral is known.

    .. math:: z \sim \mathcal N(0, I), \quad x \mid z \sim \mathcal N(W z + \mu, \sigma^2 I), \quad
              x \sim \mathcal N(\mu, W W^\top + \sigma^2 I)

    Args:
        weight: W, shape ``(D, z_dim)``.
        bias: μ, shape ``(D,)``.
        scale: σ > 0.

    Reference:
        Tipping and Bishop (1999), section 3; chapter 2.

    >>> LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0).marginal().stddev  # 3² + 4² = 5²
    tensor([5.], grad_fn=<...>)
    """

    @checked
    def __init__(self, weight: Float[Tensor, "d z"], bias: Float[Tensor, " d"], scale: float = 1.0):
        check_finite("weight", weight)
        check_finite("bias", bias)
        x_dim, z_dim = weight.shape
        network = nn.utils.skip_init(nn.Linear, z_dim, x_dim, dtype=weight.dtype)
        network.weight, network.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        super().__init__(z_dim, GaussianDecoder(network, scale))
        self.to(weight.dtype)

    def _weight_bias_scale(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.decoder.network.weight, self.decoder.network.bias, self.decoder.log_scale.exp()

    def marginal(self) -> FullGaussian:
        """Return p(x), in closed form, with batch shape ``()``."""
        weight, bias, scale = self._weight_bias_scale()
        # W Wᵀ + σ² I = Aᵀ A with A = [Wᵀ; σ I]: the triangle of A's QR factors is the Cholesky factor, and A has only
        # the square root of the covariance's condition number
        stacked = torch.cat([weight.T, scale * torch.eye(len(bias), dtype=bias.dtype, device=bias.device)])
        triangle = torch.linalg.qr(stacked).R.T
        return FullGaussian(bias, triangle * triangle.diagonal().sign())

    @checked
    def posterior(self, x: Float[Tensor, "b d"]) -> FullGaussian:
        r"""Return p(z | x), in closed form, with batch shape ``(B,)``.

        .. math:: \mathcal N\big(M^{-1} W^\top (x - \mu), \; \sigma^2 M^{-1}\big), \quad M = W^\top W + \sigma^2 I
        """
        weight, bias, scale = self._weight_bias_scale()
        check_data(x, self.marginal())
        precision = weight.T @ weight / scale.square() + torch.eye(self.z_dim, dtype=x.dtype, device=x.device)
        covariance = torch.linalg.inv(precision)
        loc = (x - bias) @ weight @ covariance.T / scale.square()
        return FullGaussian(loc, torch.linalg.cholesky(covariance).expand(len(x), -1, -1))


def check_latent(z: Tensor, z_dim: int) -> None:
    """Refuse a z whose last axis is not `z_dim` or that is not floating (``ValueError``)."""
    if not z.is_floating_point() or z.dim() < 1 or z.shape[-1] != z_dim:
        raise ValueError(f"z must be floating with last axis {z_dim}, got {describe(z)}")
