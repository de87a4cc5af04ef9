"""Small models with unequal sizes and no symmetry, all in float64 unless a test asks for float32."""

import pytest
import torch

from lvmlib import (
    BernoulliDecoder,
    BernoulliMixture,
    BinaryLatentModel,
    GaussianDecoder,
    GaussianLatentModel,
    GaussianMixture,
    LinearGaussian,
    mlp,
)

X_DIM = 7


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return fixed standard normal numbers in float64, without touching the global generator."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def own_random_state():
    """Give each test the same random numbers whatever ran before it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def all_uniform_numbers(monkeypatch):
    """Return a function after which `resample` gets all of (0, 1) in equal steps, one number per data point."""
    steps = lambda like: ((torch.arange(len(like)) + 0.5) / len(like)).to(like)[:, None]  # noqa: E731
    return lambda: monkeypatch.setattr(torch, "rand_like", steps)


@pytest.fixture
def weights():
    return torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


@pytest.fixture
def gaussian_mixture(weights):
    return GaussianMixture(weights, numbers(3, X_DIM), 0.5 + numbers(3, X_DIM, seed=1).abs())


@pytest.fixture
def bernoulli_mixture(weights):
    return BernoulliMixture(weights, numbers(3, X_DIM).sigmoid())


@pytest.fixture
def binary_latent():
    model = BinaryLatentModel(4, BernoulliDecoder(mlp(4, [6], X_DIM)), learn_prior=True).double()
    model.prior_logits.data = numbers(4, seed=2)
    return model


@pytest.fixture
def linear_gaussian():
    return LinearGaussian(numbers(X_DIM, 2), numbers(X_DIM, seed=1), 0.7)


@pytest.fixture(params=[1, 2])
def narrow_linear_gaussian(request):
    """Linear-Gaussian with 3 pixels and z_dim 1 or 2."""
    return LinearGaussian(numbers(3, request.param), numbers(3, seed=1), 0.8)


@pytest.fixture
def gaussian_latent():
    return GaussianLatentModel(1, BernoulliDecoder(mlp(1, [5], X_DIM))).double()


@pytest.fixture
def real_gaussian_latent():
    return GaussianLatentModel(1, GaussianDecoder(mlp(1, [5], X_DIM), 0.6)).double()


MODELS = ["gaussian_mixture", "bernoulli_mixture", "binary_latent", "linear_gaussian", "gaussian_latent"]
ENUMERABLE = MODELS[:3]


@pytest.fixture(params=MODELS)
def model(request):
    """Every kind of model that has an exact log p(x)."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=ENUMERABLE)
def enumerable(request):
    """Every kind of model with finitely many z."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def data(request):
    """Return a function from (model, B) to B data points that the model can have produced."""

    def make(model, num_points=5):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return model.sample(num_points)[1]

    return make
