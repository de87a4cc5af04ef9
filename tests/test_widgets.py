"""Figures with sliders: what their expressions compute in Vega, at several settings, against the library.

No browser: vl-convert runs Vega itself. A field of a chart is read by drawing its rows as text with 17 digits.
"""

import json
import math
import re
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import pytest
import torch
from torch.distributions import Normal

from lvmlib import (
    BernoulliDecoder,
    DiagonalGaussian,
    GaussianDecoder,
    GaussianLatentModel,
    Grid,
    LinearGaussian,
    effective_sample_size,
    exact_elbo,
    exact_expected_log_mean,
    exact_log_marginal,
    exact_posterior,
    leave_one_out,
    log_mean_exp,
    mlp,
    normalize_log_weights,
    pathwise,
    score,
    score_function,
    sticking_the_landing,
)
from lvmlib.quadrature import hermite_nodes
from lvmlib.teaching import widgets
from tests.conftest import numbers

vl_convert = pytest.importorskip("vl_convert")
EXACT = {"rtol": 1e-9, "atol": 1e-12}  # the same formula in the same precision, with 17 digits in between
f64 = torch.float64


# ------------------------------------------------------------------------------------------- reading a chart


def moved(spec: dict, values: dict) -> dict:
    """Return the chart with its sliders set to the values given."""
    unknown = values.keys() - {param["name"] for param in spec["params"]}
    assert not unknown, f"no such sliders: {unknown}"
    params = [param | {"value": values.get(param["name"], param["value"])} for param in spec["params"]]
    return spec | {"params": params}


def units(spec: dict) -> list[dict]:
    """Return all marks of a chart, each with the data and the transforms that it inherits."""
    found = []
    for part in spec.get("vconcat", []) + spec.get("concat", []) + spec.get("layer", []):
        inherited = {key: part.get(key, spec.get(key)) for key in ("data", "name") if part.get(key, spec.get(key))}
        transform = spec.get("transform", []) + part.get("transform", [])
        found += units(part | inherited | {"transform": transform})
    return found or [spec]


def steps_to(spec: dict, field: str, marks=None) -> tuple[dict, list[dict]]:
    """Return the first mark (of those given, or of all) that computes a field, and its transforms up to that field."""
    for part in marks or units(spec):
        for number, step in enumerate(part["transform"]):
            if f'"as": "{field}"' in json.dumps(step):
                return part, part["transform"][: number + 1]
    raise LookupError(f"no mark of the chart computes {field}")


def text_of(svg: str) -> list[str]:
    """Return the texts of a picture in their order."""
    return [element.text for element in ElementTree.fromstring(svg).iter() if (element.text or "").strip()]


def column(widget: widgets.Widget, field: str, marks=None, **values) -> torch.Tensor:
    """Return a field of all rows of the chart's data, as Vega computes it, with the sliders at the values given."""
    spec = moved(widget.spec(), values)
    part, steps = steps_to(spec, field, marks)
    shown = {
        "$schema": spec["$schema"],
        "params": [{key: param[key] for key in ("name", "value")} for param in spec["params"]],
        "datasets": spec.get("datasets", {}),
        "data": part["data"],
        "transform": [*steps, {"calculate": f"format(datum['{field}'], '.17e')", "as": "shown"}],
        "mark": "text",
        "encoding": {"text": {"field": "shown", "type": "nominal"}},
    }
    # Vega writes a true minus sign
    found = [float(text.replace("\u2212", "-")) for text in text_of(vl_convert.vegalite_to_svg(shown))]
    return torch.tensor(found, dtype=f64)


def words(widget: widgets.Widget, **values) -> str:
    """Return what the chart says in words, with the sliders at the values given."""
    spec = moved(widget.spec(), values)
    return " ".join(text_of(vl_convert.vegalite_to_svg(spec))).replace("\u2212", "-")


def said(text: str, before: str) -> float:
    """Return the number that follows some words."""
    return float(re.search(re.escape(before) + r":? (-?[\d.]+)", text)[1])


def normal(loc: float, scale: float) -> Normal:
    """Return a Gaussian in float64."""
    return Normal(torch.tensor(loc, dtype=f64), torch.tensor(scale, dtype=f64))


# ------------------------------------------------------------------------------------------------- chapter 3

NOISE = numbers(50)
SETTINGS_3 = [{"m": 0.0, "s": 1.0}, {"m": 0.75, "s": 0.3}, {"m": -1.5, "s": 0.55}, {"m": 2.15, "s": 2.4}]


@pytest.fixture(scope="module", params=[(1.0, 0.0, 1.0, 1.5), (1.7, -0.4, 0.6, 0.9)], ids=["chapter", "other"])
def weighing(request):
    """The widget of chapter 3, its model and its data point."""
    weight, bias, scale, x = request.param
    model = LinearGaussian(torch.tensor([[weight]], dtype=f64), torch.tensor([bias], dtype=f64), scale)
    model.requires_grad_(False)
    x = torch.tensor([[x]], dtype=f64)
    return widgets.importance_weights(model, x, NOISE), model, x


def draws_of(weighing, m, s):
    """Return the log-weights, shape (K, 1), that the library gives the draws of the widget."""
    _, model, x = weighing
    q = DiagonalGaussian(torch.tensor([[m]], dtype=f64), torch.tensor([[s]], dtype=f64))
    noise = torch.tensor([round(value, 4) for value in NOISE.tolist()], dtype=f64)[:, None, None]
    return score(model, x, q, q.transport(noise))


@pytest.mark.parametrize("setting", SETTINGS_3)
def test_weights_are_those_of_the_library(weighing, setting):
    draw = draws_of(weighing, **setting)
    torch.testing.assert_close(column(weighing[0], "z", **setting), draw.z[:, 0, 0], **EXACT)
    torch.testing.assert_close(column(weighing[0], "log_w", **setting), draw.log_w[:, 0], **EXACT)
    share = normalize_log_weights(draw.log_w)[:, 0]
    torch.testing.assert_close(column(weighing[0], "share", **setting), share, **EXACT)


@pytest.mark.parametrize("setting", SETTINGS_3)
def test_estimate_and_effective_sample_size_are_those_of_the_library(weighing, setting):
    log_w = draws_of(weighing, **setting).log_w
    torch.testing.assert_close(column(weighing[0], "ess", **setting), effective_sample_size(log_w), **EXACT)
    torch.testing.assert_close(column(weighing[0], "estimate", **setting), log_mean_exp(log_w), **EXACT)


@pytest.mark.parametrize("setting", SETTINGS_3)
def test_long_run_sample_size_is_the_integral_of_squared_weights(weighing, setting):
    widget, model, x = weighing
    posterior = exact_posterior(model, x).law
    limit = column(widget, "limit", **setting)
    if setting["s"] <= posterior.stddev.item() / math.sqrt(2):
        assert limit.item() == 0
        return
    # E_q[w²] / p(x)² by a plain sum: the integrand is a Gaussian again
    z = torch.linspace(-40, 40, 400_001, dtype=f64)
    log_p = Normal(posterior.mean, posterior.stddev).log_prob(z[:, None, None])[:, 0, 0]
    log_q = normal(setting["m"], setting["s"]).log_prob(z)
    second_moment = (2 * log_p - log_q).exp().sum() * (z[1] - z[0])
    torch.testing.assert_close(limit, len(NOISE) / second_moment[None], rtol=1e-6, atol=0)


@pytest.mark.parametrize("setting", SETTINGS_3)
def test_curves_of_chapter_3_are_posterior_and_proposal(weighing, setting):
    widget, model, x = weighing
    z = torch.arange(-4, 5.01, 0.02, dtype=f64)
    posterior = exact_posterior(model, x).law
    p = posterior.log_prob(z[:, None, None])[:, 0].exp()
    torch.testing.assert_close(column(widget, "posterior", **setting), p, **EXACT)
    q = normal(setting["m"], setting["s"]).log_prob(z).exp()
    torch.testing.assert_close(column(widget, "proposal", **setting), q, **EXACT)


def test_words_of_chapter_3_show_the_fields_and_the_exact_value(weighing):
    widget, model, x = weighing
    setting = SETTINGS_3[3]
    text, log_w = words(widget, **setting), draws_of(weighing, **setting).log_w
    assert abs(said(text, "ESS of these draws") - effective_sample_size(log_w).item()) <= 0.0501
    assert abs(said(text, "estimate of log p(x)") - log_mean_exp(log_w).item()) <= 0.000501
    assert abs(said(text, "exact log p(x)") - exact_log_marginal(model, x).item()) <= 0.000501
    assert abs(said(text, "K / (1 + χ²)") - column(widget, "limit", **setting).item()) <= 0.0501
    assert "of 50" in text


# ------------------------------------------------------------------------------------------------- chapter 4


class Square(torch.nn.Module):
    def forward(self, z):
        return z.square()


SETTINGS_4 = [
    {"m": 0.5, "s": 0.5},
    {"m": 1.1, "s": 0.25},
    {"m": 0.0, "s": 1.15},
    {"m": -2.0, "s": 0.1},
    {"m": 2.0, "s": 1.5},
]


@pytest.fixture(scope="module", params=[(1.5, 0.5), (0.8, 0.7)], ids=["chapter", "other"])
def humps(request):
    """The widget of chapter 4, its model and its data point."""
    x, scale = request.param
    model = GaussianLatentModel(1, GaussianDecoder(Square(), scale)).double().requires_grad_(False)
    model.decoder.log_scale.fill_(math.log(scale))  # it was rounded to float32
    return widgets.two_divergences(x, scale), model, torch.tensor([[x]], dtype=f64)


LINE = Grid(num_nodes=6001, radius=12.0)


@pytest.mark.parametrize("setting", SETTINGS_4)
def test_reverse_divergence_is_the_gap_of_the_exact_elbo(humps, setting):
    widget, model, x = humps
    q = DiagonalGaussian(torch.tensor([[setting["m"]]], dtype=f64), torch.tensor([[setting["s"]]], dtype=f64))
    gap = exact_log_marginal(model, x, grid=LINE) - exact_elbo(model, x, q)  # exact: the integrand is a polynomial
    torch.testing.assert_close(column(widget, "reverse_kl", **setting), gap, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("setting", SETTINGS_4)
def test_forward_divergence_is_the_sum_over_a_fine_grid(humps, setting):
    widget, model, x = humps
    posterior = exact_posterior(model, x, grid=LINE).law
    log_p = posterior.logits[0] - LINE.log_volume(1)
    log_q = normal(setting["m"], setting["s"]).log_prob(LINE.axis())
    kl = (posterior.probs[0] * (log_p - log_q)).sum()[None]
    torch.testing.assert_close(column(widget, "forward_kl", **setting), kl, rtol=1e-7, atol=1e-9)


def test_curves_of_chapter_4_are_posterior_and_q(humps):
    widget, model, x = humps
    z = torch.arange(-480, 481, dtype=f64) * 0.025
    log_p = model.log_joint(x, z[:, None, None])[:, 0] - exact_log_marginal(model, x, grid=LINE)
    torch.testing.assert_close(column(widget, "posterior"), log_p.exp(), rtol=1e-9, atol=1e-12)
    q = normal(0.3, 0.7).log_prob(z).exp()
    torch.testing.assert_close(column(widget, "q", m=0.3, s=0.7), q, **EXACT)


def test_what_is_drawn_below_adds_up_to_the_divergences(humps):
    widget, setting = humps[0], SETTINGS_4[0]
    for part, whole in (("reverse", "reverse_kl"), ("forward", "forward_kl")):
        total = 0.025 * column(widget, part, **setting).sum()
        torch.testing.assert_close(total[None], column(widget, whole, **setting), rtol=1e-9, atol=0)
    text = words(widget, **setting)
    assert abs(said(text, "reverse KL(q ‖ p)") - column(widget, "reverse_kl", **setting).item()) <= 0.000501
    assert abs(said(text, "forward KL(p ‖ q)") - column(widget, "forward_kl", **setting).item()) <= 0.000501


# ------------------------------------------------------------------------------------------------- chapter 5

SETTINGS_5 = [{"a": 0.2, "s": 1.0}, {"a": 0.64, "s": 0.6}, {"a": 1.2, "s": 0.1}, {"a": 0.0, "s": 0.34}]
X_5 = torch.linspace(-2.4, 2.0, 5, dtype=f64)[:, None]


@pytest.fixture(scope="module", params=[(1.0, 0.75), (-1.6, 0.4)], ids=["chapter", "other"])
def amortizing(request):
    """The widget of chapter 5 and its model."""
    weight, scale = request.param
    model = LinearGaussian(torch.tensor([[weight]], dtype=f64), torch.zeros(1, dtype=f64), scale).requires_grad_(False)
    return widgets.amortized_gaps(model, X_5), model


@pytest.mark.parametrize("setting", SETTINGS_5)
def test_gaps_of_chapter_5_are_exact(amortizing, setting):
    widget, model = amortizing
    q = DiagonalGaussian(setting["a"] * X_5, torch.full_like(X_5, setting["s"]))
    gap = exact_log_marginal(model, X_5) - exact_elbo(model, X_5, q)
    torch.testing.assert_close(column(widget, "gap", **setting), gap, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(column(widget, "mean_gap", **setting), gap.mean()[None], rtol=1e-9, atol=1e-9)
    text = words(widget, **setting)
    assert abs(said(text, "mean gap") - gap.mean().item()) <= 0.0000501
    assert abs(said(text, "from") - gap.min().item()) <= 0.0000501
    assert abs(said(text, " to") - gap.max().item()) <= 0.0000501


def test_encoder_and_posteriors_of_chapter_5_are_drawn_where_they_are(amortizing):
    widget, model = amortizing
    posterior = exact_posterior(model, X_5).law
    torch.testing.assert_close(column(widget, "width"), posterior.stddev[:, 0], **EXACT)
    spec, setting = widget.spec(), {"a": 0.3, "s": 0.5}
    # the fields of the same names belong to the encoder in the first two marks and to the posteriors in the others
    band, line, spans, means = (part for part in spec["vconcat"][1]["layer"])
    assert band["encoding"]["y"]["field"] == spans["encoding"]["y"]["field"] == "lower"
    assert band["encoding"]["y2"]["field"] == spans["encoding"]["y2"]["field"] == "upper"
    assert line["encoding"]["y"]["field"] == means["encoding"]["y"]["field"] == "mean"
    for field, encoder, exact in (
        ("mean", 0.3 * X_5, posterior.mean),
        ("lower", 0.3 * X_5 - 0.5, posterior.mean - posterior.stddev),
        ("upper", 0.3 * X_5 + 0.5, posterior.mean + posterior.stddev),
    ):
        ends = torch.tensor([-2.84, 2.44], dtype=f64)
        first, last = encoder[0, 0], encoder[-1, 0]
        on_the_line = first + (ends - X_5[0]) * (last - first) / (X_5[-1] - X_5[0])
        torch.testing.assert_close(column(widget, field, marks=(band, line), **setting), on_the_line, **EXACT)
        torch.testing.assert_close(column(widget, field, marks=(spans, means), **setting), exact[:, 0], **EXACT)


# ------------------------------------------------------------------------------------------------- chapter 6


@pytest.fixture(scope="module")
def walking():
    """The widget of chapter 6 with an untrained decoder, and its model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GaussianLatentModel(2, BernoulliDecoder(mlp(2, [16], 64)))
        for parameter in model.parameters():
            parameter.data *= 4  # an untrained decoder is grey all over
    points, labels = numbers(450, 2), torch.arange(450) % 10
    return widgets.latent_digit(model, points, labels), model, points


@pytest.mark.parametrize("z", [(0.0, 0.0), (-3.0, 3.0), (3.0, -3.0), (1.25, -0.5), (-2.75, 0.25), (3.0, 3.0)])
def test_shown_pixels_are_the_decoders_probabilities(walking, z):
    widget, model, _ = walking
    probs = model.likelihood(torch.tensor(z)).mean.detach().double()
    assert probs.max() - probs.min() > 0.5
    shown = column(widget, "p", z1=z[0], z2=z[1])
    assert (shown - probs).abs().max() <= 1 / 70 + 1e-6
    torch.testing.assert_close(shown, (probs * 35).round() / 35, rtol=0, atol=1e-12)


def test_pixels_lie_row_by_row_from_the_top(walking):
    widget = walking[0]
    torch.testing.assert_close(column(widget, "row"), torch.arange(64, dtype=f64) // 8, **EXACT)
    torch.testing.assert_close(column(widget, "column"), torch.arange(64, dtype=f64) % 8, **EXACT)
    image = widget.spec()["concat"][0]["layer"][0]
    assert (
        image["mark"]["type"] == "rect" and "sort" not in image["encoding"]["y"]
    )  # ordinal rows: the first is at the top


def test_cross_is_where_the_sliders_are(walking):
    for field, value in (("x", 1.25), ("y", -0.5)):
        assert column(walking[0], field, z1=1.25, z2=-0.5).tolist() == [value]


def test_chart_of_chapter_6_is_light_and_shows_at_most_400_points(walking):
    widget, _, points = walking
    spec = widget.spec()
    assert len(json.dumps(spec)) < 100_000
    drawn = next(rows for rows in spec["datasets"].values() if len(rows) == widgets.MAX_POINTS)
    shown = torch.tensor([[row["x"], row["y"]] for row in drawn], dtype=f64)
    assert (shown - points[: widgets.MAX_POINTS]).abs().max() <= 0.005 + 1e-12
    assert [row["label"] for row in drawn[:11]] == list("01234567890")


# ------------------------------------------------------------------------------------------------- chapter 7

SETTINGS_7 = [{"m": -1.0, "s": 0.2}, {"m": 0.9, "s": 0.45}, {"m": 2.5, "s": 1.5}]
ESTIMATORS = [
    (score_function, 1, {}),
    (score_function, 1, {"baseline": None}),  # log p(x)
    (leave_one_out, 2, {}),
    (pathwise, 1, {}),
    (sticking_the_landing, 1, {}),
]


def gradient_moments(model, x, surrogate, num_samples, setting, options):
    """Return mean and standard deviation of a surrogate's gradient in m, by quadrature over all noise tuples."""
    noise, log_share = hermite_nodes(30, num_samples)
    m = torch.full((len(noise), 1), setting["m"], dtype=f64, requires_grad=True)
    q = DiagonalGaussian(m, torch.full_like(m, setting["s"]).detach())
    value = surrogate(model, x.expand(len(noise), -1), q, q.transport(noise.permute(2, 0, 1)), **options).sum()
    gradients = torch.autograd.grad(value, m)[0][:, 0]
    mean = log_share.exp() @ gradients
    return mean, (log_share.exp() @ (gradients - mean) ** 2).sqrt()


@pytest.mark.parametrize("setting", SETTINGS_7)
@pytest.mark.parametrize("which", range(5))
def test_noise_of_the_estimators_is_that_of_the_library(setting, which):
    model = LinearGaussian(torch.tensor([[1.2]], dtype=f64), torch.tensor([0.3], dtype=f64), 0.6).requires_grad_(False)
    x = torch.tensor([[1.4]], dtype=f64)
    widget = widgets.estimator_noise(model, x)
    surrogate, num_samples, options = ESTIMATORS[which]
    if "baseline" in options:
        options = {"baseline": exact_log_marginal(model, x).item()}
    mean, deviation = gradient_moments(model, x, surrogate, num_samples, setting, options)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(column(widget, "gradient", **setting)[0], mean, **close)
    shown = column(widget, f"deviation{which}", **setting)[0]
    torch.testing.assert_close(shown, deviation * num_samples**0.5, **close)


def test_bars_of_chapter_7_stand_in_the_order_of_their_names():
    texts = text_of(vl_convert.vegalite_to_svg(ALL["estimator_noise"]().spec()))
    names = ["score, no baseline", "score, b = log p(x)", "leave one out", "pathwise", "sticking the landing"]
    assert [text for text in texts if text in names] == names


# ------------------------------------------------------------------------------------------------- chapter 8

JOINT = torch.tensor([0.04, 0.36], dtype=f64).log()


@pytest.mark.parametrize("q", [0.1, 0.5, 0.98])
def test_bounds_of_all_numbers_of_draws_are_exact(q):
    log_q = torch.tensor([1 - q, q], dtype=f64).log()
    exact = torch.stack([exact_expected_log_mean(JOINT - log_q, log_q, k) for k in range(1, 51)])
    shown = column(widgets.bound_by_draws(JOINT), "bound", q=q)
    torch.testing.assert_close(shown.sort().values, exact, rtol=1e-9, atol=1e-9)  # the bound rises with K


@pytest.mark.parametrize(("q", "k"), [(0.1, 1), (0.1, 5), (0.9, 7)])
def test_law_of_the_pick_is_a_sum_over_all_tuples(q, k):
    widget = widgets.bound_by_draws(JOINT)
    share, w = torch.tensor([1 - q, q], dtype=f64), JOINT.exp() / torch.tensor([1 - q, q], dtype=f64)
    runs = torch.cartesian_prod(*[torch.arange(2)] * k).reshape(-1, k)
    picked = (w[runs] * runs).sum(1) / w[runs].sum(1)
    expected = share[runs].prod(1) @ picked
    shown = column(widget, "pick", q=q)[k - 1]  # one row per K
    torch.testing.assert_close(shown, expected, **EXACT)


def test_words_of_chapter_8_give_gap_and_law():
    text = words(widgets.bound_by_draws(JOINT), q=0.1, K=5)
    log_q = torch.tensor([0.9, 0.1], dtype=f64).log()
    bound = exact_expected_log_mean(JOINT - log_q, log_q, 5)
    chi2 = (JOINT.exp() ** 2 / log_q.exp()).sum() / JOINT.exp().sum() ** 2 - 1
    assert said(text, "bound") == pytest.approx(bound.item(), abs=5e-5)
    assert said(text, "gap") == pytest.approx((JOINT.logsumexp(0) - bound).item(), abs=5e-5)
    assert said(text, "χ²/2K") == pytest.approx(chi2.item() / 10, abs=5e-5)


# ------------------------------------------------------------------------------------------- what all promise

ALL = {
    "importance_weights": lambda: widgets.importance_weights(
        LinearGaussian(torch.ones(1, 1), torch.zeros(1)), torch.tensor([[1.5]]), NOISE
    ),
    "two_divergences": lambda: widgets.two_divergences(1.5, 0.5),
    "amortized_gaps": lambda: widgets.amortized_gaps(
        LinearGaussian(torch.ones(1, 1), torch.zeros(1)), torch.linspace(-2, 2, 5)[:, None]
    ),
    "latent_digit": lambda: widgets.latent_digit(GaussianLatentModel(2, BernoulliDecoder(mlp(2, [8], 64)))),
    "estimator_noise": lambda: widgets.estimator_noise(
        LinearGaussian(torch.ones(1, 1), torch.zeros(1)), torch.tensor([[1.5]])
    ),
    "bound_by_draws": lambda: widgets.bound_by_draws(torch.tensor([0.04, 0.36]).log()),
}


@pytest.fixture(params=ALL)
def widget(request):
    """Each widget once, made without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return ALL[request.param]()


def sliders_of(widget):
    return [param for param in widget.spec()["params"] if "bind" in param]


def test_sliders_start_within_their_range_and_can_return_there(widget):
    assert len(sliders_of(widget)) == 2
    for param in sliders_of(widget):
        bind, steps = param["bind"], (param["value"] - param["bind"]["min"]) / param["bind"]["step"]
        assert bind["input"] == "range" and len(bind["name"]) > 5
        assert bind["min"] <= param["value"] <= bind["max"]
        assert abs(steps - round(steps)) < 1e-9


@pytest.mark.parametrize("end", ["min", "max"])
def test_nothing_becomes_infinite_at_the_ends_of_the_sliders(widget, end):
    values = {param["name"]: param["bind"][end] for param in sliders_of(widget)}
    svg = vl_convert.vegalite_to_svg(moved(widget.spec(), values))
    assert "NaN" not in svg and "Infinity" not in svg and "undefined" not in svg


@pytest.mark.parametrize("end", ["value", "min", "max"])
def test_words_of_a_chart_fit_a_phone(widget, end):
    values = {param["name"]: (param["bind"] | param)[end] for param in sliders_of(widget)}
    assert max(map(len, text_of(vl_convert.vegalite_to_svg(moved(widget.spec(), values))))) <= 40


def test_chart_loads_nothing(widget):
    addresses = re.findall(r"https?://[^\"]+", json.dumps(widget.spec()))
    assert all(address.startswith("https://vega.github.io/schema/") for address in addresses)  # a name, not loaded


def test_in_a_notebook_a_widget_shows_as_altair_shows_it(widget, monkeypatch):
    monkeypatch.delenv("LVMBOOK_PAGE", raising=False)
    bundle = widget._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert any(kind == "text/html" or kind.startswith("application/vnd.vegalite") for kind in data)
    assert "lvm-widget-spec" not in json.dumps(data)


def test_for_a_page_a_widget_leaves_its_picture_and_its_chart(widget, monkeypatch):
    monkeypatch.setenv("LVMBOOK_PAGE", "1")
    bundle = widget._repr_mimebundle_()
    assert set(bundle) == {"image/svg+xml", "text/html"}
    assert ElementTree.fromstring(bundle["image/svg+xml"]).tag.endswith("svg")
    script = re.fullmatch(
        r'<script type="application/json" class="lvm-widget-spec">([^<]*)</script>', bundle["text/html"]
    )
    assert json.loads(script[1]) == widget.spec()


def test_repr_names_the_sliders_and_no_address(widget):
    assert re.fullmatch(r"Widget\(\w+, \w+\)", repr(widget))


LINEAR = LinearGaussian(torch.ones(1, 1), torch.zeros(1))
WIDE = LinearGaussian(torch.ones(2, 1), torch.zeros(2))
DIGITS = GaussianLatentModel(2, BernoulliDecoder(mlp(2, [4], 64)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: widgets.importance_weights(WIDE, torch.zeros(1, 2), NOISE), "model must be a LinearGaussian with one"),
        (lambda: widgets.importance_weights(DIGITS, torch.zeros(1, 1), NOISE), "model must be .* GaussianLatentModel"),
        (lambda: widgets.importance_weights(LINEAR, torch.zeros(2, 1), NOISE), r"x must be one .* \(2, 1\)"),
        (lambda: widgets.importance_weights(LINEAR, torch.zeros(1, 1), NOISE[:, None]), r"noise must .* \(50, 1\)"),
        (lambda: widgets.two_divergences(float("nan"), 0.5), "x must be one finite number, got float nan"),
        (lambda: widgets.two_divergences(1.5, -0.5), "scale must be finite and above 0, got -0.5"),
        (lambda: widgets.amortized_gaps(LINEAR, torch.zeros(3)), r"x must have shape \(N, 1\), got \(3,\)"),
        (lambda: widgets.amortized_gaps(LinearGaussian(torch.ones(1, 1), torch.ones(1)), X_5), "bias 0, got 1"),
        (lambda: widgets.estimator_noise(DIGITS, torch.zeros(1, 1)), "model must be a LinearGaussian with one"),
        (lambda: widgets.bound_by_draws(torch.zeros(3)), r"log_joint must have shape \(2,\) .* \(3,\)"),
        (lambda: widgets.bound_by_draws(torch.zeros(2), max_draws=0), "max_draws must be at least 1, got 0"),
        (lambda: widgets.latent_digit(LINEAR), "model must be a GaussianLatentModel with z_dim 2, got LinearGaussian"),
        (lambda: widgets.latent_digit(DIGITS, torch.zeros(3, 2)), "points and labels come together"),
        (lambda: widgets.latent_digit(DIGITS, torch.zeros(3, 2), torch.zeros(2)), r"got \(3, 2\) and \(2,\)"),
        (lambda: widgets.latent_digit(GaussianLatentModel(2, BernoulliDecoder(mlp(2, [4], 7)))), "square .* got 7"),
        (lambda: widgets.latent_digit(GaussianLatentModel(2, GaussianDecoder(mlp(2, [4], 9)))), "Bernoulli pixels"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_importing_the_library_does_not_import_altair():
    code = "import sys, lvmlib, lvmlib.teaching.plotting; sys.exit('altair' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_flipped_sign_is_noticed():
    """What the tests above rest on: another expression gives another number."""
    widget = ALL["two_divergences"]()
    before = column(widget, "reverse_kl")
    spec = json.loads(json.dumps(widget.spec()).replace("datum.log_q - datum.log_p", "datum.log_q + datum.log_p"))
    widget.spec = lambda: spec
    assert (column(widget, "reverse_kl") - before).abs() > 1
