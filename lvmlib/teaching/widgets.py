r"""Figures that a reader can move: charts with sliders, computed by the reader's own browser.

A widget is an Altair chart whose mathematics is written in Vega expressions, so that it follows its sliders wherever it
is shown, without Python. `tests/test_widgets.py` holds these expressions against the library.

In Jupyter and in Colab a widget shows as Altair shows any chart. Where the environment variable LVMBOOK_PAGE is set, as
the build of the book does, it leaves two things in the cell: a picture of the chart as it starts, which takes alt text
and caption from the cell's metadata as any figure does, and the chart itself as JSON, from which the page's script
draws the living chart in the place of the picture.
"""

import json
import math
import os

import altair as alt
import torch
from torch import Tensor

from lvmlib.contracts import check_count, check_positive, describe
from lvmlib.exact import exact_log_marginal, exact_posterior
from lvmlib.laws import BernoulliVector
from lvmlib.models import GaussianLatentModel, LinearGaussian
from lvmlib.quadrature import hermite_nodes
from lvmlib.teaching.plotting import COLORS, array

WIDTH = 560  # of a panel, in pixels; the page's script makes it narrower where a window is
BLUE, ORANGE, GREEN, GREY = COLORS[0], COLORS[1], COLORS[2], "#666666"
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"  # of a probability in `latent_digit`: 36 levels
MAX_POINTS = 400
SIDE = 240  # of the two panels of `latent_digit`


class Widget:
    """A chart with sliders, shown as Altair shows it, or as the book's pages need it.

    Args:
        chart: the chart; its sliders are parameters bound to inputs of type "range".
    """

    def __init__(self, chart: alt.TopLevelMixin):
        self.chart = chart

    def __repr__(self) -> str:
        return f"Widget({', '.join(param['name'] for param in self.spec()['params'] if 'bind' in param)})"

    def spec(self) -> dict:
        """Return the chart as Vega-Lite, the form in which it travels."""
        return self.chart.to_dict()

    def picture(self) -> str:
        """Return the chart at the start of its sliders, as SVG; needs the package vl-convert-python."""
        import vl_convert

        return vl_convert.vegalite_to_svg(self.spec())

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict | tuple:
        if not os.environ.get("LVMBOOK_PAGE"):
            return self.chart._repr_mimebundle_(include, exclude)
        # "<" is escaped so that nothing in the JSON can end the element that holds it
        text = json.dumps(self.spec(), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        script = f'<script type="application/json" class="lvm-widget-spec">{text}</script>'
        return {"image/svg+xml": self.picture(), "text/html": script}


# What the widgets share


def log_normal(value: object, mean: object, scale: object) -> str:
    """Return the Vega expression of log N(value; mean, scale²); arguments are expressions or numbers.

    >>> log_normal("datum.z", 0, "s")
    '(-0.5 * pow((datum.z - (0)) / (s), 2) - log(s) - 0.9189385332046727)'
    """
    return f"(-0.5 * pow(({value} - ({mean})) / ({scale}), 2) - log({scale}) - {HALF_LOG_TWO_PI!r})"


def slider(name: str, label: str, low: float, high: float, step: float, value: float) -> alt.Parameter:
    """Return a parameter that expressions call `name`, and its slider."""
    return alt.param(name=name, value=value, bind=alt.binding_range(min=low, max=high, step=step, name=label))


def readout(chart: alt.Chart, *lines: str) -> alt.Chart:
    """Show lines of text; each is a Vega expression of a row of the chart's data, which should be one row."""
    line_height = 17
    text = " + '\\n' + ".join(f"({line})" for line in lines)
    mark = {"align": "left", "baseline": "top", "fontSize": 13, "lineBreak": "\n", "lineHeight": line_height}
    return (
        chart.transform_calculate(readout=text)
        .mark_text(**mark)
        .encode(text="readout:N", x=alt.value(0), y=alt.value(0))
        .properties(name="readout", height=line_height * len(lines), width=WIDTH)
    )


def laws(chart: alt.Chart, names: dict[str, str], *, x: alt.X, y: alt.Y, height: int) -> alt.Chart:
    """Draw a curve for each field of the chart's data that `names` has: field -> colour; the field is its label."""
    scale = {"domain": list(names), "range": list(names.values())}
    dash = {"domain": list(names), "range": [[1, 0], [6, 3], [2, 2]][: len(names)]}
    legend = alt.Legend(title=None, orient="top", labelLimit=0, symbolSize=300)
    return (
        chart.transform_fold(list(names), as_=["law", "height"])
        .mark_line(clip=True, strokeWidth=2)
        .encode(
            x=x,
            y=y,
            color=alt.Color("law:N", scale=alt.Scale(**scale), legend=legend),
            strokeDash=alt.StrokeDash("law:N", scale=alt.Scale(**dash), legend=legend),
        )
        .properties(width=WIDTH, height=height)
    )


def named_bars(chart: alt.Chart, field: str, names: list[str], x: alt.X, **more) -> tuple[alt.Chart, alt.Chart]:
    """Draw one bar per row with its name on it: names beside the bars would leave a phone no room for them."""
    y = alt.Y(f"{field}:N", title=None, sort=names, axis=alt.Axis(labels=False, ticks=False, domain=False))
    bars = chart.mark_bar(clip=True, color=GREEN, opacity=0.45).encode(x=x, y=y, **more)
    mark = {"align": "left", "baseline": "middle", "dx": 5, "fontSize": 12}
    return bars, chart.mark_text(**mark).encode(x=alt.value(0), y=y, text=f"{field}:N")


def panel(*layers: alt.Chart, height: int) -> alt.LayerChart:
    """Lay charts over one another in one panel."""
    return alt.layer(*layers).properties(width=WIDTH, height=height)


def stacked(*panels: alt.TopLevelMixin, params: list[alt.Parameter]) -> Widget:
    """Put panels below one another, under the book's style, with the sliders given."""
    return styled(
        alt.vconcat(*panels, spacing=14)
        .add_params(*params)
        .resolve_scale(color="independent", strokeDash="independent")
    )


def styled(chart: alt.TopLevelMixin) -> Widget:
    """Give a chart the book's style: white paper, plain text, a vertical axis of fixed width.

    The script of the pages knows that width; see `MARGIN` in book/_static/lvmwidgets.js.
    """
    axis = {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "gridOpacity": 0.4}
    return Widget(
        chart.configure(
            background="white",
            numberFormat="~g",
            padding=6,
            aria=False,  # a sentence about the whole is read out instead of hundreds of marks
            axis=alt.AxisConfig(**axis),
            axisY=alt.AxisConfig(minExtent=42, maxExtent=42),
            legend=alt.LegendConfig(labelFontSize=12),
            view=alt.ViewConfig(stroke=None),
        )
    )


def text_of(name: str, pattern: str = ".4f") -> str:
    """Return the Vega expression that shows a field of the data with a fixed number of decimals."""
    return f"format(datum.{name}, '{pattern}')"


def one_number(name: str, value: object) -> float:
    """Return a number or a tensor with one element as a float; refuse anything else."""
    numbers = array(value)
    if numbers.size != 1 or not math.isfinite(numbers.item()):
        raise ValueError(f"{name} must be one finite number, got {describe(value)}")
    return float(numbers.item())


def line_model(model: GaussianLatentModel) -> tuple[float, float, float]:
    """Return weight, bias and scale of a linear-Gaussian model with one latent and one pixel; refuse any other."""
    if not isinstance(model, LinearGaussian) or model.decoder.network.weight.shape != (1, 1):
        raise ValueError(f"model must be a LinearGaussian with one latent and one pixel, got {type(model).__name__}")
    network, log_scale = model.decoder.network, model.decoder.log_scale
    return network.weight.item(), network.bias.item(), log_scale.exp().item()


# Chapter 3


def importance_weights(model: GaussianLatentModel, x: Tensor, noise: Tensor) -> Widget:
    r"""Let a reader move a Gaussian proposal against the posterior, and see what becomes of the weights.

    .. math:: z_k = m + s \, \epsilon_k, \qquad \log w_k = \log p(x, z_k) - \log \mathcal N(z_k; m, s^2)

    Args:
        model: linear-Gaussian, with one latent and one pixel.
        x: one data point, shape ``(1, 1)``.
        noise: standard normal numbers ε, shape ``(K,)``; the sliders move the draws and never draw again. They are
            rounded to four decimals.

    Returns:
        Curves of p(z | x) and q(z), the draws with their normalized weights, and in words the effective sample size,
        what it tends to for many draws (3.7), and the estimate of log p(x) beside the exact value.

    Raises:
        ValueError: the model has more than one latent or pixel, or x or noise has another shape.

    >>> model = LinearGaussian(torch.ones(1, 1), torch.zeros(1))
    >>> importance_weights(model, torch.tensor([[1.5]]), torch.randn(200))
    Widget(m, s)
    """
    weight, bias, scale = line_model(model)
    observed = one_number("x", x)
    if not isinstance(noise, Tensor) or noise.dim() != 1 or len(noise) < 2:
        raise ValueError(f"noise must have shape (K,) with K >= 2, got {describe(noise)}")
    with torch.no_grad():
        posterior, log_p = exact_posterior(model, x).law, exact_log_marginal(model, x).item()
    mean, variance = posterior.mean.item(), posterior.variance.item()
    m = slider("m", "mean m of the proposal", -1.5, 3.0, 0.05, 0.0)
    s = slider("s", "width s of the proposal", 0.3, 3.0, 0.05, 1.0)
    likelihood = log_normal(observed, f"{weight} * datum.z + {bias}", scale)
    log_joint, log_q = f"({log_normal('datum.z', 0, 1)} + {likelihood})", log_normal("datum.z", "m", "s")
    axis = alt.X("z:Q", title="z", scale=alt.Scale(domain=[-4, 5], nice=False))

    line = alt.Chart(alt.sequence(-4, 5.01, 0.02, as_="z"))
    curves = laws(
        line.transform_calculate(posterior=f"exp({log_joint} - ({log_p}))", proposal=f"exp({log_q})"),
        {"posterior": BLUE, "proposal": ORANGE},
        x=axis,
        y=alt.Y("height:Q", title="density", scale=alt.Scale(domain=[0, 1.4])),
        height=150,
    )
    draws = (
        alt.Chart(alt.InlineData(values=[round(value, 4) for value in noise.tolist()]))
        .transform_calculate(z="m + s * datum.data")
        .transform_calculate(log_w=f"{log_joint} - {log_q}")
        .transform_joinaggregate(largest="max(log_w)")
        .transform_calculate(w="exp(datum.log_w - datum.largest)")
    )
    shares = draws.transform_joinaggregate(total="sum(w)").transform_calculate(share="datum.w / datum.total")
    height = alt.Y("share:Q", title="normalized weight", axis=alt.Axis(tickCount=4))
    sticks = shares.mark_rule(clip=True, color=ORANGE, opacity=0.6).encode(x=axis, y=height, y2=alt.datum(0))
    heads = shares.mark_point(clip=True, color=ORANGE, filled=True, size=14, opacity=1).encode(x=axis, y=height)
    equal = alt.Chart(alt.InlineData(values=[1 / len(noise)])).mark_rule(color=GREY, strokeDash=[4, 3])

    # 2 s² − σ², which (3.8) divides by; where it is not positive the weights have infinite variance
    inside = f"(2 * s * s - {variance})"
    one_plus_chi2 = f"s * s / sqrt({variance} * {inside}) * exp(pow(m - ({mean}), 2) / {inside})"
    summary = (
        draws.transform_calculate(w_squared="datum.w * datum.w")
        .transform_aggregate(K="count()", largest="max(largest)", total="sum(w)", squares="sum(w_squared)")
        .transform_calculate(
            ess="datum.total * datum.total / datum.squares",
            limit=f"{inside} > 0 ? datum.K / ({one_plus_chi2}) : 0",
            estimate="datum.largest + log(datum.total / datum.K)",
        )
    )
    words = readout(
        summary,
        f"'ESS of these draws: ' + {text_of('ess', '.1f')} + ' of ' + datum.K",
        f"'long-run ESS, K / (1 + χ²): ' + (datum.limit > 0 ? {text_of('limit', '.1f')} : '0 (χ² = ∞)')",
        f"'estimate of log p(x): ' + {text_of('estimate', '.3f')}",
        f"'exact log p(x): ' + format({log_p}, '.3f')",
    )
    return stacked(words, curves, panel(sticks, heads, equal.encode(y="data:Q"), height=110), params=[m, s])


# Chapter 4


def two_divergences(x: float, scale: float) -> Widget:
    r"""Let a reader fit a Gaussian q to a posterior with two humps, and see both divergences.

    The model is :math:`z \sim \mathcal N(0, 1)`, :math:`x \mid z \sim \mathcal N(z^2, \mathrm{scale}^2)`. Every
    integral is a sum over a grid, in the browser.

    Args:
        x: the data point.
        scale: standard deviation of x given z, above 0.

    Returns:
        Curves of p(z | x) and q(z) = N(m, s²), what each z adds to KL(q ‖ p) and to KL(p ‖ q), and both values.

    >>> two_divergences(1.5, scale=0.5)
    Widget(m, s)
    """
    x, scale = one_number("x", x), one_number("scale", scale)
    check_positive("scale", scale)
    m = slider("m", "mean m of q", -2.0, 2.0, 0.05, 0.5)
    s = slider("s", "width s of q", 0.1, 1.5, 0.05, 0.5)
    # the grid reaches 6 widths beyond the farthest q, and is fine for the narrowest: its sums are exact to 1e-6
    step = 0.025
    grid = (
        alt.Chart(alt.sequence(-12, 12 + step / 2, step, as_="z"))
        .transform_calculate(log_joint=f"{log_normal('datum.z', 0, 1)} + {log_normal(x, 'datum.z * datum.z', scale)}")
        .transform_joinaggregate(largest="max(log_joint)")
        .transform_calculate(scaled="exp(datum.log_joint - datum.largest)")
        .transform_joinaggregate(total="sum(scaled)")
        .transform_calculate(log_p=f"datum.log_joint - datum.largest - log(datum.total * {step})")
        .transform_calculate(log_q=log_normal("datum.z", "m", "s"))
        .transform_calculate(posterior="exp(datum.log_p)", q="exp(datum.log_q)")
        .transform_calculate(
            reverse="datum.q * (datum.log_q - datum.log_p)", forward="datum.posterior * (datum.log_p - datum.log_q)"
        )
    )
    summary = grid.transform_aggregate(reverse_sum="sum(reverse)", forward_sum="sum(forward)").transform_calculate(
        reverse_kl=f"datum.reverse_sum * {step}", forward_kl=f"datum.forward_sum * {step}"
    )
    words = readout(
        summary,
        f"'reverse KL(q ‖ p): ' + {text_of('reverse_kl', '.3f')} + ' nats'",
        f"'forward KL(p ‖ q): ' + {text_of('forward_kl', '.3f')} + ' nats'",
    )
    shown = grid.transform_filter("abs(datum.z) <= 3.01")
    axis = alt.X("z:Q", title="z", scale=alt.Scale(domain=[-3, 3], nice=False))
    curves = laws(
        shown,
        {"posterior": BLUE, "q": ORANGE},
        x=axis,
        y=alt.Y("height:Q", title="density", scale=alt.Scale(domain=[0, 2])),
        height=150,
    )
    parts = laws(
        shown,
        {"forward": GREEN, "reverse": ORANGE},
        x=axis,
        y=alt.Y("height:Q", title="nats per unit of z", scale=alt.Scale(domain=[-1, 5])),
        height=110,
    )
    return stacked(words, curves, parts, params=[m, s])


# Chapter 5


def amortized_gaps(model: GaussianLatentModel, x: Tensor) -> Widget:
    r"""Let a reader set the slope and the width of a linear encoder, and see its gap at each data point.

    .. math:: q(z \mid x) = \mathcal N(a x, s^2), \qquad
              \mathrm{KL} = \log \frac{\sigma_p}{s} + \frac{s^2 + (a x - \mu_p)^2}{2 \sigma_p^2} - \frac12

    Args:
        model: linear-Gaussian, with one latent, one pixel and bias 0, so that the best encoder has no offset.
        x: data points, shape ``(N, 1)``.

    Returns:
        The encoder's line and band against the exact posteriors N(μ_p, σ_p²), and the KL to each as a bar.

    Raises:
        ValueError: the model has more than one latent or pixel or a bias, or x has another shape.

    >>> model = LinearGaussian(torch.ones(1, 1), torch.zeros(1), 0.75)
    >>> amortized_gaps(model, torch.linspace(-2, 2, 5)[:, None])
    Widget(a, s)
    """
    weight, bias, scale = line_model(model)
    if bias != 0:
        raise ValueError(f"model must have bias 0, got {bias:g}")
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != 1:
        raise ValueError(f"x must have shape (N, 1), got {describe(x)}")
    a = slider("a", "slope a of the encoder", 0.0, 1.2, 0.02, 0.2)
    s = slider("s", "width s of the encoder", 0.1, 1.2, 0.02, 1.0)
    total = weight**2 + scale**2
    low, high = x.min().item(), x.max().item()
    room = 0.1 * (high - low) or 1.0
    low, high = low - room, high + room
    axis = alt.X("x:Q", title="x", scale=alt.Scale(domain=[low, high], nice=False, padding=0))
    z_axis = alt.Y("mean:Q", title="z", scale=alt.Scale(domain=[-3, 3]))

    ends = alt.Chart(alt.InlineData(values=[low, high])).transform_calculate(
        x="datum.data", mean="a * datum.data", lower="a * datum.data - s", upper="a * datum.data + s"
    )
    band = ends.mark_area(clip=True, opacity=0.25, color=ORANGE).encode(
        x=axis, y=alt.Y("lower:Q", title="z"), y2="upper"
    )
    line = ends.mark_line(clip=True, color=ORANGE).encode(x=axis, y=z_axis)
    points = (
        alt.Chart(alt.InlineData(values=[round(value, 4) for value in x.flatten().tolist()]))
        .transform_calculate(x="datum.data", mean=f"{weight} * datum.data / {total}", width=f"{scale / total**0.5}")
        .transform_calculate(lower="datum.mean - datum.width", upper="datum.mean + datum.width")
        .transform_calculate(
            gap="log(datum.width / s) - 0.5"
            " + (s * s + pow(a * datum.x - datum.mean, 2)) / (2 * datum.width * datum.width)"
        )
    )
    spans = points.mark_rule(clip=True, color=BLUE, strokeWidth=2).encode(x=axis, y="lower:Q", y2="upper")
    means = points.mark_point(clip=True, color=BLUE, filled=True, size=50, opacity=1).encode(x=axis, y=z_axis)
    bars = points.mark_bar(clip=True, color=GREEN, width=16).encode(
        x=axis, y=alt.Y("gap:Q", title="KL (nats)", scale=alt.Scale(type="sqrt", domain=[0, 5]))
    )
    words = readout(
        points.transform_aggregate(mean_gap="mean(gap)", least="min(gap)", most="max(gap)"),
        f"'mean gap: ' + {text_of('mean_gap')} + ' nats'",
        f"'from ' + {text_of('least')} + ' to ' + {text_of('most')}",
    )
    return stacked(words, panel(band, line, spans, means, height=180), panel(bars, height=90), params=[a, s])


# Chapter 6


def latent_digit(model: GaussianLatentModel, points: Tensor | None = None, labels: Tensor | None = None) -> Widget:
    """Let a reader walk through a two-dimensional latent space and see the image that each z stands for.

    The decoder is evaluated on a grid of steps of a quarter over [−3, 3]²; a probability is rounded to one of 36
    levels, so what is shown differs from the model's by at most 1/70.

    Args:
        model: with a two-dimensional z and Bernoulli pixels, whose number is a square.
        points: a z for each of some data points, such as the encoder's means, shape ``(N, 2)``; the first 400 are
            drawn.
        labels: the digit of each point, shape ``(N,)``, required with `points`.

    Returns:
        The image at z, and beside it the points with a cross at z.

    Raises:
        ValueError: z has not two dimensions, the pixels make no square, or points and labels do not pair.

    >>> from lvmlib import BernoulliDecoder, mlp
    >>> latent_digit(GaussianLatentModel(2, BernoulliDecoder(mlp(2, [8], 64))))
    Widget(z1, z2)
    """
    if not isinstance(model, GaussianLatentModel) or model.z_dim != 2:
        raise ValueError(f"model must be a GaussianLatentModel with z_dim 2, got {type(model).__name__}")
    if (points is None) != (labels is None):
        raise ValueError("points and labels come together: give both, or neither")
    step, radius = 0.25, 3.0
    ticks = torch.arange(-radius, radius + step / 2, step).to(model.prior_loc)
    with torch.no_grad():
        law = model.likelihood(torch.cartesian_prod(ticks, ticks))
    if not isinstance(law, BernoulliVector):
        raise ValueError(f"model must have Bernoulli pixels, got {type(law).__name__}")
    probs = law.mean
    side = math.isqrt(probs.shape[1])
    if side**2 != probs.shape[1]:
        raise ValueError(f"model must have a square number of pixels, got {probs.shape[1]}")
    codes = ["".join(DIGITS[level] for level in row) for row in (probs * 35).round().int().tolist()]
    z1 = slider("z1", "latent coordinate z₁", -radius, radius, step, 0.0)
    z2 = slider("z2", "latent coordinate z₂", -radius, radius, step, 0.0)
    stored = alt.param(name="images", value=codes)
    row = f"round((z1 + {radius}) / {step}) * {len(ticks)} + round((z2 + {radius}) / {step})"
    at = f"images[{row}]"
    image = (
        alt.Chart(alt.sequence(0, side**2, as_="pixel"))
        .transform_calculate(row=f"floor(datum.pixel / {side})", column=f"datum.pixel % {side}")
        .transform_calculate(p=f"indexof('{DIGITS}', {at}[datum.pixel]) / 35")
        .mark_rect(strokeWidth=0)
        .encode(
            x=alt.X("column:O", axis=None, scale=alt.Scale(padding=0)),
            y=alt.Y("row:O", axis=None, scale=alt.Scale(padding=0)),
            color=alt.Color("p:Q", scale=alt.Scale(domain=[0, 1], range=["white", "black"]), legend=None),
        )
    )
    frame = alt.Chart(alt.InlineData(values=[0])).mark_rect(filled=False, stroke="#999999", strokeWidth=1)
    edges = {"x": alt.value(0), "x2": alt.value("width"), "y": alt.value(0), "y2": alt.value("height")}
    shown = alt.layer(image, frame.encode(**edges)).properties(width=SIDE, height=SIDE)
    plane = {"scale": alt.Scale(domain=[-radius - 0.2, radius + 0.2], nice=False)}
    x, y = alt.X("x:Q", title="z₁", **plane), alt.Y("y:Q", title="z₂", **plane)
    cross = alt.Chart(alt.InlineData(values=[0])).transform_calculate(x="z1", y="z2")
    mark = {"shape": "cross", "size": 130, "color": "black", "filled": True, "stroke": "white", "opacity": 1}
    layers = [cross.mark_point(**mark).encode(x=x, y=y)]
    if points is not None:
        layers.insert(0, _labelled(points, labels).encode(x=x, y=y))
    beside = alt.layer(*layers).properties(width=SIDE, height=SIDE)
    return styled(alt.concat(shown, beside, columns=2, spacing=24).add_params(z1, z2, stored))


def _labelled(points: Tensor, labels: Tensor) -> alt.Chart:
    """Return points drawn as their labels: readable without telling ten colours apart."""
    points, labels = array(points), array(labels)
    if points.ndim != 2 or points.shape[1] != 2 or labels.shape != points.shape[:1]:
        raise ValueError(f"points and labels must have shapes (N, 2) and (N,), got {points.shape} and {labels.shape}")
    rows = zip(points[:MAX_POINTS].tolist(), labels[:MAX_POINTS].tolist())
    values = [{"x": round(a, 2), "y": round(b, 2), "label": str(int(c))} for (a, b), c in rows]
    colors = [COLORS[int(label) % 7] for label in sorted({value["label"] for value in values})]
    scale = alt.Scale(domain=sorted({value["label"] for value in values}), range=colors)
    return (
        alt.Chart(alt.InlineData(values=values))
        .mark_text(clip=True, fontSize=9, opacity=0.8)
        .encode(text="label:N", color=alt.Color("label:N", scale=scale, legend=None))
    )


# Chapter 7


def estimator_noise(model: GaussianLatentModel, x: Tensor, *, num_nodes: int = 40) -> Widget:
    r"""Let a reader move a Gaussian q, and see how noisy each gradient estimator in its mean is there.

    The standard deviations are exact, by Gauss–Hermite quadrature in the browser: a gradient in m is a polynomial in
    the noise. That of leave-one-out, from two draws, is multiplied by √2, so that all are per draw.

    Args:
        model: linear-Gaussian, with one latent and one pixel.
        x: one data point, shape ``(1, 1)``.
        num_nodes: quadrature nodes.

    Returns:
        Curves of p(z | x) and q(z) = N(m, s²), and one bar per estimator on a logarithmic axis.

    >>> estimator_noise(LinearGaussian(torch.ones(1, 1), torch.zeros(1)), torch.tensor([[1.5]]))
    Widget(m, s)
    """
    weight, bias, scale = line_model(model)
    observed = one_number("x", x)
    with torch.no_grad():
        posterior, log_p = exact_posterior(model, x).law, exact_log_marginal(model, x).item()
    mean, variance = posterior.mean.item(), posterior.variance.item()
    m = slider("m", "mean m of q", -3.0, 3.0, 0.05, -1.0)
    s = slider("s", "width s of q", 0.1, 2.0, 0.05, 0.2)
    log_joint = f"({log_normal('datum.z', 0, 1)} + {log_normal(observed, f'{weight} * datum.z + {bias}', scale)})"
    nodes, log_shares = hermite_nodes(num_nodes, 1)
    rows = [{"e": e, "share": share} for e, share in zip(nodes.flatten().tolist(), log_shares.exp().tolist())]
    # with v = log w and g = ε / s, the score in m; the slope of log p(x, z) is that of the posterior
    moments = {
        "v": "datum.v",
        "vv": "datum.v * datum.v",
        "gg": "datum.g * datum.g",
        "vg": "datum.v * datum.g",
        "vgg": "datum.v * datum.g * datum.g",
        "vvgg": "pow(datum.v * datum.g, 2)",
        "baseline_2": f"pow((datum.v - ({log_p})) * datum.g, 2)",
        "path_2": "pow(datum.slope, 2)",
        "landing_2": "pow(datum.slope + datum.g, 2)",
    }
    pair = "2 * datum.vvgg + 2 * datum.vv * datum.gg - 4 * datum.vgg * datum.v + 4 * datum.vg * datum.vg"
    deviations = {
        "score, no baseline": "datum.vvgg",
        "score, b = log p(x)": "datum.baseline_2",
        "leave one out": f"({pair}) / 2 - datum.vg * datum.vg",
        "pathwise": "datum.path_2",
        "sticking the landing": "datum.landing_2",
    }
    summary = (
        alt.Chart(alt.InlineData(values=rows))
        .transform_calculate(z="m + s * datum.e", g="datum.e / s")
        .transform_calculate(
            v=f"{log_joint} - {log_normal('datum.z', 'm', 's')}", slope=f"({mean} - datum.z) / {variance}"
        )
        .transform_calculate(**{f"{name}_part": f"datum.share * ({moment})" for name, moment in moments.items()})
        .transform_aggregate(**{name: f"sum({name}_part)" for name in moments})
        .transform_calculate(gradient="datum.vg")
    )
    # the variance of an estimator is its second moment minus the squared gradient, never below 0 but for rounding
    columns = {
        f"deviation{i}": f"sqrt(max(0, {moment} - datum.gradient * datum.gradient))"
        for i, moment in enumerate(deviations.values())
    }
    axis = alt.X("z:Q", title="z", scale=alt.Scale(domain=[-4, 4], nice=False))
    line = alt.Chart(alt.sequence(-4, 4.01, 0.02, as_="z"))
    curves = laws(
        line.transform_calculate(
            posterior=f"exp({log_joint} - ({log_p}))", q=f"exp({log_normal('datum.z', 'm', 's')})"
        ),
        {"posterior": BLUE, "q": ORANGE},
        x=axis,
        y=alt.Y("height:Q", title="density", scale=alt.Scale(domain=[0, 2])),
        height=120,
    )
    names = json.dumps(list(deviations), ensure_ascii=False)
    bars = (
        summary.transform_calculate(**columns)
        .transform_fold(list(columns), as_=["column", "deviation"])
        .transform_calculate(estimator=f"{names}[toNumber(substring(datum.column, 9))]")
        # a bar of height 0 has no place on a logarithmic axis
        .transform_calculate(shown="max(datum.deviation, 1e-3)")
    )
    width = alt.X("shown:Q", title="standard deviation per draw", scale=alt.Scale(type="log", domain=[1e-3, 1e3]))
    drawn = named_bars(bars, "estimator", list(deviations), width, x2=alt.datum(1e-3))
    words = readout(
        summary,
        f"'exact gradient in m: ' + {text_of('gradient', '.3f')}",
        f"'posterior: mean {mean:.3f}, width {math.sqrt(variance):.3f}'",
    )
    return stacked(words, curves, panel(*drawn, height=120), params=[m, s])


# Chapter 8


def bound_by_draws(log_joint: Tensor, *, max_draws: int = 50) -> Widget:
    r"""Let a reader choose q and the number of draws, and see the bound, and the law of a draw picked by weight.

    .. math:: \mathcal L_K = \sum_{n=0}^K \binom Kn q^n (1 - q)^{K - n} \log \frac{n w_1 + (K - n) w_0}{K}

    Args:
        log_joint: log p(x, z) of the two values of z, shape ``(2,)``, in nats.
        max_draws: largest K, ≥ 1.

    Returns:
        The curve of L_K over K with log p(x), and the probability of z = 1 under q, under q_K and under the posterior.

    Raises:
        ValueError: log_joint has another shape or is not finite.

    >>> bound_by_draws(torch.tensor([0.04, 0.36]).log())
    Widget(q, K)
    """
    if not isinstance(log_joint, Tensor) or log_joint.shape != (2,) or not torch.isfinite(log_joint).all():
        raise ValueError(f"log_joint must have shape (2,) and be finite, got {describe(log_joint)}")
    check_count("max_draws", max_draws)
    zero, one = log_joint.double().exp().tolist()
    log_p = math.log(zero + one)
    q = slider("q", "q(z = 1)", 0.02, 0.98, 0.02, 0.1)
    k = slider("K", "draws K", 1.0, float(max_draws), 1.0, 5.0)
    size = max_draws + 1
    table = (
        alt.Chart(alt.sequence(size, size * size, as_="i"))
        .transform_calculate(k=f"floor(datum.i / {size})", n=f"datum.i % {size}")
        .transform_filter("datum.n <= datum.k")
        # log of the binomial coefficient, as a running sum over n
        .transform_calculate(step="datum.n > 0 ? log((datum.k - datum.n + 1) / datum.n) : 0")
        .transform_window(log_binomial="sum(step)", groupby=["k"], sort=[alt.SortField("n")])
        .transform_calculate(share="exp(datum.log_binomial + datum.n * log(q) + (datum.k - datum.n) * log(1 - q))")
        .transform_calculate(ones=f"datum.n * {one} / q", zeros=f"(datum.k - datum.n) * {zero} / (1 - q)")
        .transform_calculate(
            bound_part="datum.share * log((datum.ones + datum.zeros) / datum.k)",
            pick_part="datum.share * datum.ones / (datum.ones + datum.zeros)",
        )
        .transform_aggregate(bound="sum(bound_part)", pick="sum(pick_part)", groupby=["k"])
    )
    axis = alt.X("k:Q", title="draws K", scale=alt.Scale(domain=[1, max_draws], nice=False))
    height = alt.Y("bound:Q", title="nats", scale=alt.Scale(zero=False, nice=True))
    curve = table.mark_line(clip=True, color=ORANGE).encode(x=axis, y=height)
    here = table.transform_filter("datum.k == K")
    point = here.mark_point(color=ORANGE, filled=True, size=90, opacity=1).encode(x=axis, y=height)
    top = alt.Chart(alt.InlineData(values=[log_p])).mark_rule(color=BLUE, strokeDash=[6, 3]).encode(y="data:Q")
    chi2 = f"({one * one} / q + {zero * zero} / (1 - q)) / {(zero + one) ** 2} - 1"
    words = readout(
        here.transform_calculate(gap=f"{log_p} - datum.bound", law=f"({chi2}) / (2 * K)"),
        f"'bound: ' + {text_of('bound')} + ' nats'",
        f"'log p(x): {log_p:.4f} nats'",
        f"'gap: ' + {text_of('gap')} + ', χ²/2K: ' + {text_of('law')}",
    )
    laws_of_one = here.transform_calculate(
        **{"q": "q", "picked among K": "datum.pick", "posterior": f"{one / (zero + one)}"}
    ).transform_fold(["q", "picked among K", "posterior"], as_=["law", "probability"])
    across = alt.X("probability:Q", title="probability of z = 1", scale=alt.Scale(domain=[0, 1]))
    bars = named_bars(laws_of_one, "law", ["q", "picked among K", "posterior"], across)
    return stacked(words, panel(curve, point, top, height=170), panel(*bars, height=80), params=[q, k])
