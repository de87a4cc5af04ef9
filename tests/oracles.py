"""Reference computations: loops and plain formulas on Python numbers and lists. Nothing here imports lvmlib.

Sums of exponentials use 60-digit decimals, whose exponents reach far beyond those of floats.
"""

import itertools
import math
from decimal import Context, Decimal

DIGITS = Context(prec=60, Emin=-999_999_999, Emax=999_999_999)


def _exp(value):
    return Decimal(0) if value == -math.inf else DIGITS.exp(Decimal(value))


def _sum(values):
    total = Decimal(0)
    for value in values:
        total = DIGITS.add(total, value)
    return total


def log_sum_exp(values):
    """Return log Σ exp(v), −∞ for no mass."""
    total = _sum(_exp(value) for value in values)
    return float(DIGITS.ln(total)) if total else -math.inf


def log_mean_exp(values):
    """Return log((1/K) Σ exp(v))."""
    mean = DIGITS.divide(_sum(_exp(value) for value in values), Decimal(len(values)))
    return float(DIGITS.ln(mean)) if mean else -math.inf


def normalized_weights(values):
    """Return exp(v_k) / Σ exp(v_j)."""
    weights = [_exp(value) for value in values]
    total = _sum(weights)
    return [float(DIGITS.divide(weight, total)) if total else 0.0 for weight in weights]


def effective_sample_size(values):
    """Return (Σ w)² / Σ w²."""
    weights = [_exp(value) for value in values]
    total, squares = _sum(weights), _sum(DIGITS.multiply(weight, weight) for weight in weights)
    return float(DIGITS.divide(DIGITS.multiply(total, total), squares)) if total else 0.0


def normal_log_density(x, loc, scale):
    """Return log N(x; loc, scale²) of numbers."""
    return -0.5 * math.log(2 * math.pi) - math.log(scale) - 0.5 * ((x - loc) / scale) ** 2


def diagonal_log_density(x, loc, scale):
    """Return Σ_d log N(x_d; loc_d, scale_d²) of lists."""
    return math.fsum(normal_log_density(*triple) for triple in zip(x, loc, scale, strict=True))


def bernoulli_log_mass(x, logits):
    """Return Σ_d log p(x_d) of binary pixels given logits, each term without cancellation."""
    terms = []
    for pixel, logit in zip(x, logits, strict=True):
        wrong = -logit if pixel == 1 else logit  # log p = −log(1 + e^wrong)
        terms.append(-(max(wrong, 0.0) + math.log1p(math.exp(-abs(wrong)))))
    return math.fsum(terms)


def perceptron(z, layers):
    """Apply (weight, bias) layers with tanh between them to a list."""
    for position, (weight, bias) in enumerate(layers):
        if position:
            z = [math.tanh(value) for value in z]
        z = [math.fsum(w * v for w, v in zip(row, z, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
    return z


def cholesky(matrix):
    """Return the lower Cholesky factor of a positive definite matrix."""
    size = len(matrix)
    factor = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[i][j] - math.fsum(factor[i][k] * factor[j][k] for k in range(j))
            factor[i][j] = math.sqrt(rest) if i == j else rest / factor[j][j]
    return factor


def full_log_density(x, loc, covariance):
    """Return log N(x; loc, covariance) by forward substitution in its Cholesky factor."""
    factor, solved = cholesky(covariance), []
    for i, row in enumerate(factor):
        solved.append((x[i] - loc[i] - math.fsum(row[k] * solved[k] for k in range(i))) / row[i])
    log_det = math.fsum(math.log(factor[i][i]) for i in range(len(x)))
    return -0.5 * len(x) * math.log(2 * math.pi) - log_det - 0.5 * math.fsum(value**2 for value in solved)


def linear_gaussian_covariance(weight, scale):
    """Return W Wᵀ + σ² I."""
    return [
        [
            math.fsum(a * b for a, b in zip(p, q, strict=True)) + (scale**2 if i == j else 0.0)
            for j, q in enumerate(weight)
        ]
        for i, p in enumerate(weight)
    ]


def bits(size):
    """Return all bit vectors of this size, lowest bit fastest."""
    return [tuple(reversed(row)) for row in itertools.product((0.0, 1.0), repeat=size)]


def expected_over_tuples(log_w, log_q, num_samples, statistic):
    """Return the exact mean of statistic(list of K log-weights) over all K-tuples of independent draws."""
    terms = []
    for indices in itertools.product(range(len(log_w)), repeat=num_samples):
        probability = math.exp(math.fsum(log_q[i] for i in indices))
        terms.append(probability * statistic([log_w[i] for i in indices]))
    return math.fsum(terms)


def integral(function, radius, num_cells):
    """Return ∫ function over [−radius, radius] by the midpoint rule."""
    width = 2 * radius / num_cells
    return width * math.fsum(function(-radius + (i + 0.5) * width) for i in range(num_cells))


def generalized_pareto_shape(excess):
    """Return the shape of sorted excesses: Zhang and Stephens (2009), equations 5 to 9, with 5 / 10 pseudo-counts.

    The pseudo-counts shrink towards 0.5: Vehtari et al. (2024), appendix G.
    """
    n = len(excess)
    grid_size = 30 + int(math.sqrt(n))
    quartile = excess[int(n / 4 + 0.5) - 1]
    log_profile, thetas = [], []
    for j in range(1, grid_size + 1):
        theta = 1 / excess[-1] + (1 - math.sqrt(grid_size / (j - 0.5))) / (3 * quartile)
        shape = math.fsum(math.log1p(-theta * value) for value in excess) / n
        log_profile.append(n * (math.log(-theta / shape) - shape - 1))
        thetas.append(theta)
    theta = math.fsum(w * t for w, t in zip(normalized_weights(log_profile), thetas, strict=True))
    shape = math.fsum(math.log1p(-theta * value) for value in excess) / n
    return (n * shape + 5) / (n + 10)
