r"""Quadrature: nodes and weights for integrals over one or two dimensions, and a check of their resolution.

The trapezoid rule is for integrals of p(x, z) over z, Gauss–Hermite for expectations under a Gaussian q.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lvmlib.contracts import check_count

FREQUENCIES = (math.pi / 2, 2.0)  # radians per node, of the waves that check a grid's resolution


class QuadratureError(ValueError):
    """The grid does not resolve or does not hold the integrand: more nodes or a larger radius are needed."""


class Grid(NamedTuple):
    r"""Nodes of the trapezoid rule on [−radius, radius]^d, ``num_nodes`` (odd) per axis.

    For a smooth integrand that decays within the box its error falls faster than any power of the spacing.
    Every second node is the grid of twice the spacing, so the error estimate costs nothing.

    Reference:
        Trefethen and Weideman (2014), The exponentially convergent trapezoidal rule, theorem 5.1.
    """

    num_nodes: int = 81
    radius: float = 6.0
    tolerance: float = 1e-3

    def axis(self) -> Tensor:
        """Return the nodes of one axis, shape ``(num_nodes,)``, in float64."""
        return torch.linspace(-self.radius, self.radius, self.num_nodes, dtype=torch.float64)

    def nodes(self, z_dim: int) -> Float[Tensor, "s 1 z"]:
        """Return all nodes, shape ``(num_nodes^z_dim, 1, z_dim)``, in float64; the last axis varies fastest."""
        return torch.cartesian_prod(*[self.axis()] * z_dim).reshape(-1, 1, z_dim)

    def log_volume(self, z_dim: int) -> float:
        """Return the logarithm of the volume of one cell."""
        return z_dim * math.log(2 * self.radius / (self.num_nodes - 1))


def functionals(grid: Grid, z_dim: int) -> Float[Tensor, "m s"]:
    """Return the weights of the sums over nodes that `check_resolved` reads; row 0 is the integral itself."""
    shape = [grid.num_nodes] * z_dim
    rows = [torch.ones(shape, dtype=torch.float64)]
    if grid.tolerance < math.inf:
        coarse, edge = torch.zeros(shape).double(), torch.ones(shape).double()
        coarse[(slice(None, None, 2),) * z_dim] = 2.0**z_dim
        edge[(slice(1, -1),) * z_dim] = 0.0
        number = torch.arange(grid.num_nodes).double()
        waves = [
            wave.reshape([-1 if a == axis else 1 for a in range(z_dim)]).expand(shape)
            for axis in range(z_dim)
            for frequency in FREQUENCIES
            for wave in ((frequency * number).cos(), (frequency * number).sin())
        ]
        rows += [coarse, edge, *waves]
    return torch.stack(rows).reshape(len(rows), -1)


def check_resolved(shares: Tensor, grid: Grid) -> None:
    """Refuse a grid that misses or cuts the integrand, from the `functionals` of the nodes' shares of the mass.

    Twice the spacing is compared with the grid itself. That is blind to a peak halfway between two nodes, so Fourier
    coefficients of the shares are looked at too: they are 1 for one narrow peak of any position, and for a bump of
    Gaussian shape the coefficient at frequency f to the power (π/f)² is half the error at twice the spacing. Two
    frequencies, because two equal peaks can cancel at one. The density at the edge of the box, over the rate
    1 / radius at which the prior falls there, estimates the mass beyond. A mode wholly outside the box is invisible.
    """
    if grid.tolerance == math.inf:
        return
    _, coarse, edge, *waves = shares
    error = coarse.log().abs().max().item()
    for frequency, cosine, sine in zip(itertools.cycle(FREQUENCIES), waves[::2], waves[1::2]):
        error = max(error, 2 * torch.hypot(cosine, sine).max().item() ** (math.pi / frequency) ** 2)
    spacing = 2 * grid.radius / (grid.num_nodes - 1)
    outside = edge.max().item() * max(1.0, 1 / (spacing * max(1.0, grid.radius)))
    if not max(error, outside) <= grid.tolerance:
        raise QuadratureError(
            f"grid: {grid.num_nodes} nodes per axis on [-{grid.radius:g}, {grid.radius:g}] leave an error of "
            f"{error:.2g} nats (estimated by doubling the spacing) and a share {outside:.2g} of the mass at the "
            f"edge or beyond, allowed is {grid.tolerance:g}; use more nodes or a larger radius"
        )


def hermite_nodes(num_nodes: int, z_dim: int) -> tuple[Float[Tensor, "s 1 z"], Float[Tensor, " s"]]:
    """Return nodes and log-weights of tensor Gauss–Hermite quadrature for a standard normal; weights sum to 1.

    >>> z, log_weight = hermite_nodes(5, 1)
    >>> (log_weight.exp() * z[:, 0, 0] ** 4).sum().round(decimals=6)  # the fourth moment of N(0, 1)
    tensor(3., dtype=torch.float64)
    """
    check_count("num_nodes", num_nodes)
    if num_nodes > 300:
        raise ValueError(f"num_nodes must be at most 300, beyond which the weights overflow, got {num_nodes}")
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(num_nodes))
    log_weights = (weights / weights.sum()).log()
    z = torch.cartesian_prod(*[nodes] * z_dim).reshape(-1, 1, z_dim)
    return z, torch.cartesian_prod(*[log_weights] * z_dim).reshape(-1, z_dim).sum(1)
