r"""The model that chapter 1 compares with: one exact conditional per pixel, in a fixed order, no latent variable."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from lvmlib.contracts import check_count, checked
from lvmlib.laws import BernoulliVector
from lvmlib.models import check_data


class AutoregressiveModel(nn.Module):
    r"""Binary pixels, each a Bernoulli given all pixels before it; one masked network computes all the logits.

    .. math:: p(x) = \prod_{d=1}^D p(x_d \mid x_1, \dots, x_{d-1})

    Counting pixels from 0, hidden unit j may see the first :math:`m_j` pixels, and the logit of pixel d may use the
    units with :math:`m_j \le d`, so no logit sees its own pixel or a later one.

    Args:
        x_dim: D, the number of pixels, at least 2.
        hidden_dim: H, the number of hidden units; at least D − 1, so that each pixel can be seen by some unit.

    Reference:
        Germain et al. (2015), MADE, section 4 (the masks), arXiv:1502.03509; chapter 1.

    >>> model = AutoregressiveModel(4, 8)
    >>> x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)  # all 16 images
    >>> model.log_prob(x).exp().sum().detach().round(decimals=4)
    tensor(1.)
    """

    def __init__(self, x_dim: int, hidden_dim: int):
        super().__init__()
        check_count("x_dim", x_dim, minimum=2)
        check_count("hidden_dim", hidden_dim, minimum=x_dim - 1)
        self.x_dim = x_dim
        self.hidden, self.output = nn.Linear(x_dim, hidden_dim), nn.Linear(hidden_dim, x_dim)
        pixel = torch.arange(x_dim)
        # m_j runs through 1 .. D−1 as evenly as possible: unit j sees pixels 0 .. m_j − 1
        reach = 1 + torch.arange(hidden_dim) * (x_dim - 1) // hidden_dim
        self.register_buffer("hidden_mask", (pixel[None, :] < reach[:, None]).float(), persistent=False)
        self.register_buffer("output_mask", (reach[None, :] <= pixel[:, None]).float(), persistent=False)

    @property
    def num_parameters(self) -> int:
        """Number of parameters that the masks let through."""
        masks = self.hidden_mask.sum() + self.output_mask.sum()
        return int(masks) + self.hidden.bias.numel() + self.output.bias.numel()

    def _weights(self) -> tuple[Tensor, Tensor]:
        return self.hidden.weight * self.hidden_mask, self.output.weight * self.output_mask

    def forward(self, x: Float[Tensor, "b d"]) -> BernoulliVector:
        """Return the law whose logit d is that of p(x_d | x_<d), all D at once: one pass, because x is known."""
        hidden_weight, output_weight = self._weights()
        hidden = torch.relu(linear(x, hidden_weight, self.hidden.bias))
        return BernoulliVector(linear(hidden, output_weight, self.output.bias))

    @checked
    def log_prob(self, x: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        r"""Return the exact log p(x), by the chain rule.

        Args:
            x: binary images, shape ``(B, D)``.

        Returns:
            Shape ``(B,)``, in nats per image.

        Raises:
            TypeError, ValueError: x has another dtype, number of columns, or values other than 0 and 1.
        """
        check_data(x, BernoulliVector(self.output.bias))
        return self(x).log_prob(x)

    @torch.no_grad()
    def sample(self, num_samples: int, *, incremental: bool = True, uniforms: Tensor | None = None) -> Tensor:
        """Draw images pixel by pixel: D steps, each waiting for the one before. Both ways have the same law.

        Args:
            num_samples: N ≥ 1.
            incremental: if true, carry the hidden pre-activations along and add one column per pixel, O(D H) in all;
                if false, run the whole network once per pixel, O(D² H).
            uniforms: the random numbers, shape ``(N, D)`` in [0, 1); fresh ones if None. Pixel d is on where its
                number is below its probability.

        Returns:
            Shape ``(N, D)``.

        Raises:
            ValueError: N < 1, or `uniforms` has another shape.
        """
        check_count("num_samples", num_samples)
        bias = self.output.bias
        if uniforms is None:
            uniforms = torch.rand(num_samples, self.x_dim, dtype=bias.dtype, device=bias.device)
        if uniforms.shape != (num_samples, self.x_dim):
            raise ValueError(f"uniforms must have shape {(num_samples, self.x_dim)}, got {tuple(uniforms.shape)}")
        x = torch.zeros_like(uniforms)
        hidden_weight, output_weight = self._weights()
        carried = self.hidden.bias.expand(num_samples, -1).clone()
        for d in range(self.x_dim):
            if incremental:
                logit = torch.relu(carried) @ output_weight[d] + bias[d]
            else:
                logit = self(x).base_dist.logits[:, d]
            x[:, d] = (uniforms[:, d] < torch.sigmoid(logit)).to(x.dtype)
            if incremental:
                carried += x[:, d : d + 1] * hidden_weight[:, d]
        return x
