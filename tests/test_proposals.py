"""Proposals: the prior as proposal ignores x; the posterior as proposal makes log w constant."""

import math

import pytest
import torch

from lvmlib import draw, exact_log_marginal, posterior_proposal, prior_proposal, score
from tests.test_models import close

WITH_POSTERIOR = ["gaussian_mixture", "bernoulli_mixture", "linear_gaussian"]


@pytest.fixture(params=WITH_POSTERIOR)
def solvable(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("num_points", [1, 5])
def test_prior_proposal_has_one_law_per_data_point(model, data, num_points):
    assert prior_proposal(model)(data(model, num_points)).batch_shape == (num_points,)


def test_prior_proposal_has_the_density_of_the_prior(model, data):
    q = prior_proposal(model)(data(model))
    z = draw(q, 3)
    close(q.log_prob(z), model.log_prior(z).detach())


def test_prior_proposal_draws_anew_for_each_data_point(linear_gaussian, data):
    z = draw(prior_proposal(linear_gaussian)(data(linear_gaussian)), 3)
    assert len(z.reshape(-1, 2).unique(dim=0)) == 15


def test_log_w_under_the_prior_is_log_likelihood(model, data):
    x = data(model)
    q = prior_proposal(model)(x)
    z = draw(q, 3)
    close(score(model, x, q, z).log_w, model.log_likelihood(x, z).detach())


@pytest.mark.parametrize("num_points", [1, 3, 5])
def test_log_w_under_the_posterior_is_log_marginal_for_every_sample(solvable, data, num_points):
    x = data(solvable, num_points)
    q = posterior_proposal(solvable)(x)
    log_w = score(solvable, x, q, draw(q, 4)).log_w
    close(log_w, exact_log_marginal(solvable, x).expand(4, -1).detach(), rtol=1e-10)


def test_log_w_under_another_law_is_not_constant(solvable, data):
    x = data(solvable)
    q = prior_proposal(solvable)(x)
    assert (score(solvable, x, q, draw(q, 20)).log_w.std(0) > 0.1).all()


@pytest.mark.parametrize("name", ["binary_latent", "gaussian_latent"])
def test_posterior_proposal_refuses_a_model_whose_posterior_is_a_table(name, request, data):
    model = request.getfixturevalue(name)
    with pytest.raises(ValueError, match=f"model: the posterior of {type(model).__name__} is known only as a table"):
        posterior_proposal(model)(data(model))


def test_mixture_posterior_with_a_zero_weight_never_draws_that_component(weights, gaussian_mixture, data):
    x = data(gaussian_mixture)
    gaussian_mixture.weight_logits.data[1] = -math.inf
    assert not (draw(posterior_proposal(gaussian_mixture)(x), 200) == 1).any()


def test_proposals_do_not_modify_data(solvable, data):
    x = data(solvable)
    before = x.clone()
    posterior_proposal(solvable)(x)
    prior_proposal(solvable)(x)
    assert torch.equal(x, before)
