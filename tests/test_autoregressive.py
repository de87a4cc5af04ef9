"""The masked network: a normalized law, the chain rule, and two samplers of one law."""

import itertools
import math

import pytest
import torch

from lvmlib import AutoregressiveModel

F64 = torch.float64


def model(x_dim=5, hidden_dim=9, seed=0):
    torch.manual_seed(seed)
    return AutoregressiveModel(x_dim, hidden_dim).double().requires_grad_(False)


def all_images(x_dim):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=x_dim)), dtype=F64)


@pytest.mark.parametrize(("x_dim", "hidden_dim"), [(2, 1), (3, 2), (5, 9), (7, 6), (6, 40)])
def test_probabilities_of_all_images_sum_to_one(x_dim, hidden_dim):
    total = model(x_dim, hidden_dim).log_prob(all_images(x_dim)).exp().sum()
    assert total.item() == pytest.approx(1.0, abs=1e-12)


def test_log_prob_equals_a_loop_over_conditionals():
    m, x = model(), all_images(5)[[3, 17, 30]]
    for image, value in zip(x, m.log_prob(x), strict=True):
        total = 0.0
        for d in range(5):
            prefix = image.clone()
            prefix[d:] = 1 - prefix[d:]  # pixels that the conditional must not see are changed
            p_on = torch.sigmoid(m(prefix[None]).base_dist.logits[0, d]).item()
            total += math.log(p_on if image[d] == 1 else 1 - p_on)
        assert value.item() == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("pixel", range(5))
def test_logit_depends_on_every_earlier_pixel_and_on_no_other(pixel):
    m = AutoregressiveModel(5, 64).double()
    x = torch.full((1, 5), 0.5, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(m(x).base_dist.logits[0, pixel], x)
    assert torch.equal(gradient[0] != 0, torch.arange(5) < pixel)


def test_both_samplers_draw_the_same_images_from_the_same_uniforms():
    m, uniforms = model(7, 11), torch.rand(200, 7, dtype=F64, generator=torch.Generator().manual_seed(1))
    direct = m.sample(200, incremental=False, uniforms=uniforms)
    assert torch.equal(direct, m.sample(200, uniforms=uniforms))


@pytest.mark.parametrize("incremental", [True, False])
def test_sampler_inverts_the_law_exactly(incremental):
    """A uniform grid over the unit square draws each image of 2 pixels in proportion to its probability."""
    m, n = model(2, 3), 200
    axis = (torch.arange(n, dtype=F64) + 0.5) / n
    x = m.sample(n * n, incremental=incremental, uniforms=torch.cartesian_prod(axis, axis))
    images = all_images(2)
    frequency = (x[:, None] == images).all(-1).double().mean(0)
    # the grid resolves each conditional to 1/n
    torch.testing.assert_close(frequency, m.log_prob(images).exp(), rtol=0, atol=2 / n)


def test_gradient_of_log_prob_matches_finite_differences():
    m = AutoregressiveModel(3, 4).double()
    x = all_images(3)[[1, 6]]
    weight = m.output.weight.detach().clone().requires_grad_(True)

    def value(w):
        return torch.func.functional_call(m, {"output.weight": w}, x).log_prob(x)

    assert torch.autograd.gradcheck(value, (weight,))


def test_num_parameters_counts_what_the_masks_let_through():
    m = AutoregressiveModel(3, 2)  # unit 0 sees pixel 0, unit 1 sees pixels 0 and 1
    # inputs: 1 + 2; outputs: pixel 1 uses unit 0, pixel 2 uses both; biases 2 + 3
    assert m.num_parameters == 3 + 3 + 5


def test_sample_leaves_parameters_and_default_random_state_alone_when_given_uniforms():
    m, state = model(), torch.get_rng_state()
    m.sample(4, uniforms=torch.full((4, 5), 0.5, dtype=F64))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: AutoregressiveModel(1, 3), ValueError, "x_dim must be at least 2, got 1"),
        (lambda: AutoregressiveModel(5, 3), ValueError, "hidden_dim must be at least 4, got 3"),
        (lambda: AutoregressiveModel(5.0, 9), TypeError, "x_dim"),
        (lambda: model().log_prob(torch.zeros(2, 4, dtype=F64)), ValueError, r"x must have shape \(B, 5\)|shape"),
        (lambda: model().log_prob(torch.full((1, 5), 0.5, dtype=F64)), ValueError, "x must be 0 or 1"),
        (lambda: model().log_prob(torch.zeros(2, 5)), TypeError, "x must have the model's dtype torch.float64"),
        (lambda: model().sample(0), ValueError, "num_samples must be at least 1, got 0"),
        (lambda: model().sample(2, uniforms=torch.zeros(3, 5)), ValueError, r"uniforms must have shape \(2, 5\)"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
