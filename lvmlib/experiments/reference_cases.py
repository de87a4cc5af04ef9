"""Reference cases: small models, data and noise with exact numbers, for anybody who checks code of their own.

The file is plain JSON. `LAYOUT` says what stands where; it is part of the file too. All numbers are float64, written so
that reading them back gives the same bits, and the inputs have two decimals. Run the command with
``python -m lvmlib.experiments.reference_cases``; the page "Check your own code" shows how to use the result.
"""

import argparse
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lvmlib.bounds import kl_to_prior
from lvmlib.exact import exact_elbo, exact_expected_log_mean, exact_log_marginal
from lvmlib.experiments.results import ResultError, provenance, read_result, write_result
from lvmlib.gradients import doubly_reparameterized, iwae_pathwise, pathwise, sticking_the_landing
from lvmlib.importance import score
from lvmlib.mixtures import GaussianMixture
from lvmlib.models import BernoulliDecoder, BinaryLatentModel, GaussianLatentModel, LatentVariableModel, LinearGaussian
from lvmlib.models import mlp as network
from lvmlib.proposals import FreeBernoulli, FreeCategorical, FreeGaussian, GaussianEncoder, Proposal
from lvmlib.quadrature import Grid, QuadratureError
from lvmlib.weights import log_mean_exp

ERROR = 1e-12  # largest error of a number in the file
NOISE_RADIUS = 8.2
NOISE_SPACING = {1: 0.1, 2: 0.25}  # per axis of the noise, by the dimension of z
GRID = {1: Grid(1001, 9.0, tolerance=ERROR), 2: Grid(301, 9.0, tolerance=ERROR)}

GAUSSIAN_PRIOR = "p(z) = Normal(z; 0, 1) in each coordinate; "
PIXELS = "p(x[d] = 1 | z) = sigmoid(logits[d]), logits = W2 @ tanh(W1 @ z + b1) + b2"
GAUSSIAN_Q = "q(z | x) = Normal(z; loc, exp(log_scale)) in each coordinate"
ENCODER = GAUSSIAN_Q + ", (loc, log_scale) = V2 @ tanh(V1 @ x + c1) + c2, loc first"

INPUTS: dict[str, dict] = {
    "mixture": {
        "model": {
            "type": "GaussianMixture",
            "formula": "p(z = c) = softmax(weight_logits)[c]; "
            "p(x | z = c) = product over d of Normal(x[d]; loc[c, d], exp(log_scale[c, d]))",
            "parameters": {
                "weight_logits": [0.4, 0.15, -0.34],
                "loc": [[-1.16, -0.59], [-1.29, 0.88], [1.74, -0.64]],
                "log_scale": [[-0.19, 0.15], [0.11, 0.03], [-0.28, -0.01]],
            },
        },
        "x": [[0.9, -1.25], [-0.59, 0.47], [-1.68, 2.39], [0.31, -0.65]],
        "q": {
            "type": "FreeCategorical",
            "formula": "q(z = c | x[b]) = softmax(logits[b])[c]",
            "parameters": {
                "logits": [[0.19, -1.11, 0.73], [0.76, 0.38, -1.53], [0.08, 1.07, -1.33], [0.68, -0.57, 0.94]]
            },
        },
    },
    "bits": {
        "model": {
            "type": "BinaryLatentModel",
            "formula": "p(z[l] = 1) = sigmoid(prior_logits[l]), z[l] is 0 or 1; " + PIXELS,
            "parameters": {
                "prior_logits": [-0.48, -0.12, 0.53],
                "W1": [[-0.58, -0.11, 0.17], [0.06, -1.23, 0.08], [1.36, -1.55, 0.86], [0.12, -0.64, 2.0]],
                "b1": [0.38, -0.6, 0.04, 0.29],
                "W2": [
                    [-0.19, 0.68, -0.07, 0.67],
                    [1.44, -0.68, 0.2, -0.46],
                    [0.13, -1.19, -0.58, -0.25],
                    [0.9, 1.15, -1.32, -0.79],
                    [0.65, -1.99, -0.43, -0.1],
                ],
                "b2": [0.63, 0.34, -0.16, -0.18, -0.13],
            },
        },
        "x": [[1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0, 1.0]],
        "q": {
            "type": "FreeBernoulli",
            "formula": "q(z[l] = 1 | x[b]) = sigmoid(logits[b, l])",
            "parameters": {"logits": [[0.52, -0.32, 0.57], [-0.27, 0.84, -0.91]]},
        },
    },
    "linear_gaussian": {
        "model": {
            "type": "LinearGaussian",
            "formula": GAUSSIAN_PRIOR + "p(x[d] | z) = Normal(x[d]; (W @ z + b)[d], exp(log_scale))",
            "parameters": {
                "W": [[0.41, -0.9], [0.24, -1.18], [-1.42, -0.21]],
                "b": [-0.45, 0.08, 1.12],
                "log_scale": -0.15,
            },
        },
        "x": [[-0.83, -0.62, 0.27], [0.49, -0.18, -0.21], [0.7, 0.52, -1.03], [-0.08, 0.04, 1.05]],
        "q": {
            "type": "FreeGaussian",
            "formula": GAUSSIAN_Q + ", loc[b] and log_scale[b] for x[b]",
            "parameters": {
                "loc": [[0.71, 0.54], [0.59, -0.18], [1.04, -0.64], [0.15, 0.3]],
                "log_scale": [[-0.53, -0.47], [-0.43, -0.37], [-0.65, -0.45], [-0.37, -0.56]],
            },
        },
    },
    "curve": {
        "model": {
            "type": "GaussianLatentModel",
            "formula": GAUSSIAN_PRIOR + PIXELS,
            "parameters": {
                "W1": [[0.13], [-1.54], [1.25], [1.44]],
                "b1": [-0.03, -0.14, -0.08, -0.49],
                "W2": [
                    [0.88, -0.43, -0.04, -0.63],
                    [-0.5, -1.02, 1.01, -0.12],
                    [0.77, 0.01, -0.56, -0.26],
                    [-0.45, 0.11, -0.3, -0.24],
                    [-1.1, -0.65, 1.32, -0.54],
                ],
                "b2": [-0.53, 0.17, 0.7, -0.73, -0.1],
            },
        },
        "x": [[1.0, 0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0, 0.0]],
        "q": {
            "type": "GaussianEncoder",
            "formula": ENCODER,
            "parameters": {
                "V1": [[-0.54, 0.4, 0.1, -0.18, 0.62], [-0.36, 0.88, -0.06, 0.23, -0.17]],
                "c1": [-0.25, 0.06],
                "V2": [[0.78, 0.21], [-0.1, 0.31]],
                "c2": [0.08, -0.23],
            },
        },
    },
    "fixed_noise": {
        "model": {
            "type": "GaussianLatentModel",
            "formula": GAUSSIAN_PRIOR + PIXELS,
            "parameters": {
                "W1": [[-0.36, 0.71], [-0.75, 0.56], [0.49, 0.67]],
                "b1": [0.94, 0.74, -0.57],
                "W2": [
                    [-1.35, 0.65, -0.81],
                    [-0.01, 0.67, -1.32],
                    [-1.69, 0.21, 0.04],
                    [-0.2, 0.03, -0.69],
                    [-1.21, -0.13, -0.78],
                    [-1.31, 0.4, -0.05],
                ],
                "b2": [0.2, -0.49, -0.33, -0.5, -0.44, 0.1],
            },
        },
        "x": [
            [1.0, 1.0, 0.0, 1.0, 0.0, 0.0],
            [1.0, 1.0, 1.0, 0.0, 1.0, 1.0],
            [1.0, 0.0, 0.0, 1.0, 1.0, 0.0],
            [0.0, 1.0, 0.0, 0.0, 1.0, 1.0],
        ],
        "q": {
            "type": "GaussianEncoder",
            "formula": ENCODER,
            "parameters": {
                "V1": [[-0.41, -0.39, 0.88, 0.18, 0.33, 0.27], [0.3, -0.14, 0.69, 0.11, -0.11, 0.57]],
                "c1": [-0.12, 0.21],
                "V2": [[0.45, 0.06], [-0.47, -0.71], [-0.21, 0.23], [0.31, -0.15]],
                "c2": [-0.13, 0.19, -0.32, -0.27],
            },
        },
        "noise": [
            [[0.08, -1.08], [-0.27, -0.18], [1.19, 0.33], [-0.01, 1.53]],
            [[-0.56, -0.39], [-1.82, 1.57], [0.96, 0.92], [0.67, 0.11]],
            [[0.22, -0.25], [-0.2, 0.05], [1.51, 0.56], [-0.06, -0.58]],
            [[-0.63, 1.6], [0.51, 0.07], [-0.35, -1.11], [-0.07, 0.87]],
            [[-0.39, -0.23], [-0.22, 0.11], [-1.59, -0.24], [-0.85, 0.88]],
        ],
    },
}

NUM_DRAWS = (1, 3, 5)  # of the fixed noise
NOISE_ONLY = ("noise", "sample.", "draws.")  # what only the case with fixed noise has

GRADIENT = "{theta: {name: gradient}, phi: {name: gradient}}"
LAYOUT = {
    "model.type": "name of the model's class in lvmlib",
    "model.formula": "p(z) and p(x | z) in words; Normal(x; mean, standard deviation)",
    "model.parameters": "theta, name -> nested list or number; a matrix is (out, in)",
    "x": "data, (B, D)",
    "q.type": "name of the proposal's class in lvmlib",
    "q.formula": "q(z | x) in words",
    "q.parameters": "phi, name -> nested list; a matrix is (out, in)",
    "exact.method": "how log p(x) and expectations under q were computed",
    "exact.error": "no number of `exact` is off by more than this",
    "exact.log_p": "log p(x), (B,)",
    "exact.elbo": "E[log w], z ~ q, w = p(x, z) / q(z | x), (B,)",
    "exact.iwae.K": "E[log((w_1 + ... + w_K) / K)], (B,), for K = 1, 2, 5, or 1, 2 where q is Gaussian",
    "exact.reconstruction": "E[log p(x | z)], z ~ q, (B,)",
    "exact.kl_to_prior": "KL(q(z | x) || p(z)), (B,)",
    "exact.kl_to_posterior": "KL(q(z | x) || p(z | x)) = log_p - elbo, (B,)",
    "exact.entropy": "entropy of q(z | x), (B,)",
    "exact.gradients.log_p": "{theta: {name: gradient}}, of the sum over the B data points",
    "exact.gradients.elbo": GRADIENT + ", of the sum over the B data points",
    "exact.gradients.iwae.K": GRADIENT + ", of the sum over the B data points",
    "noise": "epsilon, (5, B, dimension of z), standard normal numbers; K draws use the first K rows",
    "sample.z": "loc + exp(log_scale) * epsilon, (5, B, dimension of z)",
    "sample.log_prior": "log p(z), (5, B)",
    "sample.log_likelihood": "log p(x | z), (5, B)",
    "sample.log_q": "log q(z | x), (5, B)",
    "sample.log_w": "log_prior + log_likelihood - log_q, (5, B)",
    "draws.K.elbo": "mean of log_w over the first K draws, (B,)",
    "draws.K.elbo_analytic_kl": "mean of log_likelihood over them, minus kl_to_prior, (B,)",
    "draws.K.log_p_hat": "log((w_1 + ... + w_K) / K), (B,)",
    "draws.K.gradients.pathwise": GRADIENT + " of elbo, summed over B",
    "draws.K.gradients.sticking_the_landing": GRADIENT + ": as pathwise, with phi held fixed in log q",
    "draws.K.gradients.analytic_kl": GRADIENT + " of elbo_analytic_kl, summed over B",
    "draws.K.gradients.iwae_pathwise": GRADIENT + " of log_p_hat, summed over B",
    "draws.K.gradients.doubly_reparameterized": GRADIENT + ": theta as iwae_pathwise, phi by DReG",
}

LAYERS = {"W1": "decoder.network.0.weight", "b1": "decoder.network.0.bias"}
LAYERS |= {"W2": "decoder.network.2.weight", "b2": "decoder.network.2.bias"}
NAMES = {  # parameters in the file and in lvmlib, where the two differ
    "BinaryLatentModel": LAYERS,
    "GaussianLatentModel": LAYERS,
    "LinearGaussian": {"W": "decoder.network.weight", "b": "decoder.network.bias", "log_scale": "decoder.log_scale"},
    "GaussianEncoder": {
        "V1": "network.0.weight",
        "c1": "network.0.bias",
        "V2": "network.2.weight",
        "c2": "network.2.bias",
    },
}


def tensor(values: list | float) -> Tensor:
    """Return numbers of the file as a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def build(case: dict) -> tuple[LatentVariableModel, Proposal]:
    """Return the model and the proposal of a case, with its parameters.

    Args:
        case: a value of `reference_cases`, of which only ``model``, ``q`` and ``x`` are read.

    >>> model, encoder = build(INPUTS["mixture"])
    >>> (exact_log_marginal(model, tensor(INPUTS["mixture"]["x"])) <= 0).tolist()
    [True, True, True, True]
    """
    p, q = case["model"]["parameters"], case["q"]["parameters"]
    sizes = {name: [len(values), len(values[0])] for name, values in (p | q).items() if name[0] in "WV"}
    num_data = len(case["x"])
    decoder = BernoulliDecoder(network(sizes["W1"][1], [sizes["W1"][0]], sizes["W2"][0])) if "W1" in p else None
    make = {
        "GaussianMixture": lambda: GaussianMixture(
            tensor(p["weight_logits"]).softmax(0), tensor(p["loc"]), tensor(p["log_scale"]).exp(), learn_scale=True
        ),
        "BinaryLatentModel": lambda: BinaryLatentModel(sizes["W1"][1], decoder, learn_prior=True),
        "LinearGaussian": lambda: LinearGaussian(tensor(p["W"]), tensor(p["b"])),
        "GaussianLatentModel": lambda: GaussianLatentModel(sizes["W1"][1], decoder),
        "FreeCategorical": lambda: FreeCategorical(num_data, len(q["logits"][0])),
        "FreeBernoulli": lambda: FreeBernoulli(num_data, len(q["logits"][0])),
        "FreeGaussian": lambda: FreeGaussian(num_data, len(q["loc"][0])),
        "GaussianEncoder": lambda: GaussianEncoder(network(sizes["V1"][1], [sizes["V1"][0]], sizes["V2"][0])),
    }
    made = [make[case[part]["type"]]().double() for part in ("model", "q")]
    for module, part in zip(made, ("model", "q"), strict=True):
        for name, parameter in parameters(module, case[part]).items():
            parameter.data.copy_(tensor(case[part]["parameters"][name]))
            parameter.requires_grad_(True)
    return tuple(made)


def parameters(module: nn.Module, part: dict) -> dict[str, Tensor]:
    """Return the parameters of a module by their names in the file."""
    names = NAMES.get(part["type"], {})
    return {name: module.get_parameter(names.get(name, name)) for name in part["parameters"]}


def gradients(value: Tensor, case: dict, model: nn.Module, encoder: nn.Module, parts: str = "theta phi") -> dict:
    """Return the gradient of the sum of a value ``(B,)`` in θ and φ, as the file has it."""
    found = {}
    for part, module, key in (("theta", model, "model"), ("phi", encoder, "q")):
        if part in parts:
            named = parameters(module, case[key])
            values = torch.autograd.grad(value.sum(), list(named.values()), retain_graph=True)
            found[part] = {name: gradient.tolist() for name, gradient in zip(named, values, strict=True)}
    return found


def noise_nodes(z_dim: int, spacing: float, radius: float = NOISE_RADIUS) -> tuple[Tensor, Tensor]:
    """Return nodes ``(S, 1, z_dim)`` and weights ``(S,)`` of the trapezoid rule for a standard normal noise.

    Args:
        z_dim: dimension of the noise, 1 or 2.
        spacing: distance of two neighbours.
        radius: nodes farther than this from 0 are left out.

    >>> nodes, weight = noise_nodes(1, 0.5)
    >>> (weight @ nodes[:, 0, 0] ** 4).round(decimals=6)  # the fourth moment of N(0, 1)
    tensor(3., dtype=torch.float64)
    """
    half = math.ceil(radius / spacing)
    axis = spacing * torch.arange(-half, half + 1, dtype=torch.float64)
    nodes = torch.cartesian_prod(*[axis] * z_dim).reshape(-1, 1, z_dim)
    squared = nodes.square().sum((1, 2))
    inside = squared <= radius**2
    density = torch.exp(-squared / 2) / (2 * math.pi) ** (z_dim / 2)
    return nodes[inside], (density * spacing**z_dim)[inside]


def mean_over_pairs(log_w: Tensor, weight: Tensor, chunk: int = 100) -> Tensor:
    """Return the mean of log((w_i + w_j) / 2) over all pairs of nodes, shape ``(B,)``, differentiable in log_w.

    Pairs are too many for autograd. The derivative in log w_i is twice the mean of w_i / (w_i + w_j) over j.
    """
    shift = log_w.detach().amax(0)
    w, value, slopes = (log_w.detach() - shift).exp().T, [], []  # (B, S)
    for start in range(0, len(weight), chunk):
        one = w[:, start : start + chunk, None]
        total = one + w[:, None]
        slopes.append(2 * weight[start : start + chunk] * ((one / total) @ weight))
        value.append((total.log() @ weight) @ weight[start : start + chunk])
    surrogate = (torch.cat(slopes, 1).T * log_w).sum(0)
    return sum(value) + shift - math.log(2) + surrogate - surrogate.detach()


def by_enumeration(model: LatentVariableModel, q, x: Tensor) -> dict:
    """Return log p(x), the ELBO and the IWAE bounds of a model with finitely many z, each ``(B,)``, by sums."""
    log_q = q.log_prob(model.states().expand(-1, len(x), *model.z_shape))
    log_w = model.log_joint(x, model.states()) - log_q
    iwae = {
        str(k): torch.stack([exact_expected_log_mean(log_w[:, b], log_q[:, b], k) for b in range(len(x))])
        for k in (1, 2, 5)
    }
    return {"log_p": exact_log_marginal(model, x), "elbo": exact_elbo(model, x, q), "iwae": iwae}


def by_quadrature(model: GaussianLatentModel, q, x: Tensor, spacing: float) -> dict:
    """Return log p(x), the ELBO and the IWAE bounds for a Gaussian q, each ``(B,)``, by the trapezoid rule."""
    grid = None if isinstance(model, LinearGaussian) else GRID[model.z_dim]
    nodes, weight = noise_nodes(model.z_dim, spacing)
    log_w = score(model, x, q, q.transport(nodes.expand(-1, len(x), -1))).log_w
    elbo = weight @ log_w
    iwae = {"1": elbo, "2": mean_over_pairs(log_w, weight)}
    return {"log_p": exact_log_marginal(model, x, grid=grid), "elbo": elbo, "iwae": iwae}


def exact(case: dict, refine: float = 1.0) -> dict:
    """Return the exact numbers of a case, with their gradients, as the file has them.

    Args:
        case: inputs, a value of `INPUTS`.
        refine: factor on the spacing of the noise, below 1 for a finer one.
    """
    (model, encoder), x = build(case), tensor(case["x"])
    q = encoder(x)
    if model.num_states is None:
        found = by_quadrature(model, q, x, refine * NOISE_SPACING[model.z_dim])
        log_p = "closed form" if isinstance(model, LinearGaussian) else "the trapezoid rule over z on [-9, 9]"
        method = f"log p(x): {log_p}; expectations: the trapezoid rule over the noise (z - loc) / exp(log_scale)"
    else:
        found = by_enumeration(model, q, x)
        method = f"sums over the {model.num_states} values of z; for iwae over how often each is drawn"
    divergence = kl_to_prior(q, model)
    of = lambda value, parts="theta phi": gradients(value, case, model, encoder, parts)  # noqa: E731
    values = found | {
        "reconstruction": found["elbo"] + divergence,
        "kl_to_prior": divergence,
        "kl_to_posterior": found["log_p"] - found["elbo"],
        "entropy": q.entropy(),
    }
    told = {name: value.tolist() for name, value in values.items() if name != "iwae"}
    return {
        "method": method,
        "error": ERROR,
        **told,
        "iwae": {k: value.tolist() for k, value in found["iwae"].items()},
        "gradients": {
            "log_p": of(found["log_p"], "theta"),
            "elbo": of(found["elbo"]),
            "iwae": {k: of(value) for k, value in found["iwae"].items()},
        },
    }


def analytic_kl(model: LatentVariableModel, x: Tensor, q, z: Tensor) -> Tensor:
    """Return the ELBO of given draws with the KL to the prior in closed form, ``(B,)``."""
    return score(model, x, q, z).log_likelihood.mean(0) - kl_to_prior(q, model)


ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "pathwise": pathwise,
    "sticking_the_landing": sticking_the_landing,
    "analytic_kl": analytic_kl,
    "iwae_pathwise": iwae_pathwise,
    "doubly_reparameterized": doubly_reparameterized,
}


def with_noise(case: dict) -> dict:
    """Return scores, bounds and gradient estimates of a case for exactly its noise, as the file has them."""
    (model, encoder), x, noise = build(case), tensor(case["x"]), tensor(case["noise"])
    q = encoder(x)
    sample = score(model, x, q, q.transport(noise))
    scores = sample._asdict() | {"log_w": sample.log_w}
    draws = {}
    for k in NUM_DRAWS:
        estimates = {name: estimator(model, x, q, q.transport(noise[:k])) for name, estimator in ESTIMATORS.items()}
        draws[str(k)] = {
            "elbo": sample.log_w[:k].mean(0).tolist(),
            "elbo_analytic_kl": estimates["analytic_kl"].tolist(),
            "log_p_hat": log_mean_exp(sample.log_w[:k]).tolist(),
            "gradients": {name: gradients(value, case, model, encoder) for name, value in estimates.items()},
        }
    return {"sample": {name: value.tolist() for name, value in scores.items()}, "draws": draws}


def numbers(content) -> list[float]:
    """Return all numbers of nested lists and dictionaries, in their order."""
    if isinstance(content, dict | list):
        return [
            number for part in (content.values() if isinstance(content, dict) else content) for number in numbers(part)
        ]
    return [] if isinstance(content, str) else [content]


def check_converged(name: str, one: dict, other: dict) -> None:
    """Refuse numbers that another spacing changes by more than `ERROR` (``QuadratureError``)."""
    error = max(abs(a - b) for a, b in zip(numbers(one), numbers(other), strict=True))
    if not error <= ERROR:
        raise QuadratureError(f"{name}: a wider spacing changes a number by {error:.2g}, allowed is {ERROR:g}")


def compute() -> dict[str, dict]:
    """Return all cases, inputs and numbers.

    Raises:
        QuadratureError: a number has not converged.
    """
    cases = {}
    for name, case in INPUTS.items():
        values = exact(case)
        if case["q"]["type"] in ("FreeGaussian", "GaussianEncoder"):
            check_converged(name, values, exact(case, refine=1.2))
        cases[name] = case | {"exact": values} | (with_noise(case) if "noise" in case else {})
    return cases


def checksum(cases: dict) -> str:
    """Return the SHA-256 of the cases as JSON with sorted keys and without blanks.

    >>> checksum({"b": 0.5, "a": [1.0]}) == hashlib.sha256(b'{"a":[1.0],"b":0.5}').hexdigest()
    True
    """
    return hashlib.sha256(json.dumps(cases, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def reference_cases() -> dict[str, dict]:
    """Return the committed cases by name, as `LAYOUT` describes them; lists, dictionaries and numbers only.

    Raises:
        ResultError: the file is missing, or its numbers are not those that its checksum was made of.

    >>> list(reference_cases())
    ['mixture', 'bits', 'linear_gaussian', 'curve', 'fixed_noise']
    """
    content = read_result("reference_cases")
    cases, wanted = content.get("cases", {}), content.get("sha256")
    if checksum(cases) != wanted:
        raise ResultError(f"reference_cases.json: the checksum of its cases is not {wanted}; reinstall lvmlib")
    return cases


def main() -> None:
    """Compute all cases and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "data" / "reference_cases.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = compute()
    head = provenance("python -m lvmlib.experiments.reference_cases")
    content = head | {"layout": LAYOUT, "sha256": checksum(cases), "cases": cases}
    write_result(options.output, content, rows=True)


if __name__ == "__main__":
    main()
