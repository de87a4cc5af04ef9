"""The file of reference cases, recomputed with NumPy and plain Python: nothing of lvmlib is used for a number here.

Sums over z are loops over states; integrals are trapezoid sums on nodes other than those of the command; gradients are
central differences of sixth order, whose error is about 1e-11.
"""

import functools
import itertools
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from lvmlib.experiments import reference_cases, results
from lvmlib.experiments.results import ResultError
from lvmlib.quadrature import Grid, QuadratureError
from tests import oracles

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "lvmlib" / "data" / "reference_cases.json"
CONTENT = json.loads(FILE.read_text(encoding="utf-8"))
CASES = CONTENT["cases"]
DISCRETE = ["mixture", "bits"]
PLANE = ["linear_gaussian", "fixed_noise"]  # z in two dimensions
GAUSSIAN = ["curve", *PLANE]
STEP, STENCIL = 0.01, {1: 45 / 60, 2: -9 / 60, 3: 1 / 60}
PARTS = {"theta": "model", "phi": "q"}
each = functools.partial(pytest.mark.parametrize, "name")


# ---------------------------------------------------------------- densities, in NumPy: z is (S, B, …), scores (S, B)


def sigmoid_log(logits):
    return -np.logaddexp(0.0, -logits)


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


def log_normal(x, loc, log_scale):
    return (-0.5 * ((x - loc) / np.exp(log_scale)) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)


def network(x, one, bias, two, other):
    return np.tanh(x @ one.T + bias) @ two.T + other


def log_prior(case, theta, z):
    kind = case["model"]["type"]
    if kind == "GaussianMixture":
        return log_softmax(theta["weight_logits"])[z]
    if kind == "BinaryLatentModel":
        return sigmoid_log((2 * z - 1) * theta["prior_logits"]).sum(-1)
    return log_normal(z, 0.0, 0.0)


def log_likelihood(case, theta, z):
    kind, x = case["model"]["type"], np.array(case["x"])
    if kind == "GaussianMixture":
        return log_normal(x, theta["loc"][z], theta["log_scale"][z])
    if kind == "LinearGaussian":
        return log_normal(x, z @ theta["W"].T + theta["b"], theta["log_scale"])
    logits = network(z, *(theta[name] for name in ("W1", "b1", "W2", "b2")))
    return sigmoid_log((2 * x - 1) * logits).sum(-1)


def gaussian(case, phi):
    """Return loc and log_scale of q, each (B, d)."""
    if case["q"]["type"] == "FreeGaussian":
        return phi["loc"], phi["log_scale"]
    return np.split(network(np.array(case["x"]), *(phi[name] for name in ("V1", "c1", "V2", "c2"))), 2, -1)


def log_q(case, phi, z):
    kind = case["q"]["type"]
    if kind == "FreeCategorical":
        return np.take_along_axis(log_softmax(phi["logits"]), z.T, 1).T
    if kind == "FreeBernoulli":
        return sigmoid_log((2 * z - 1) * phi["logits"]).sum(-1)
    return log_normal(z, *gaussian(case, phi))


def points(case, phi, radius=8.0):
    """Return z (S, B, …) and the probabilities under q that the points stand for, (S, B)."""
    kind, size = case["model"]["type"], len(case["x"])
    if kind == "GaussianMixture":
        z = np.repeat(np.arange(3)[:, None], size, 1)
    elif kind == "BinaryLatentModel":
        z = np.repeat(np.array(oracles.bits(3))[:, None], size, 1)
    else:
        loc, log_scale = gaussian(case, phi)
        spacing = 0.3 if loc.shape[1] == 2 else 0.11  # on the line the decoder is steeper
        noise = nodes(loc.shape[1], spacing, radius)[:, None]
        share = np.exp(log_normal(noise, 0.0, 0.0)) * spacing ** loc.shape[1]
        return loc + np.exp(log_scale) * noise, np.repeat(share, size, 1)
    return z, np.exp(log_q(case, phi, z))


def nodes(size, spacing, radius):
    """Return the nodes of a grid within a circle, (S, size)."""
    axis = np.arange(-math.ceil(radius / spacing), math.ceil(radius / spacing) + 1) * spacing
    grid = np.array(list(itertools.product(axis, repeat=size)))
    return grid[(grid**2).sum(1) <= radius**2]


# ------------------------------------------------------------------------------- exact numbers, in NumPy, each (B,)


def log_w(case, theta, phi, z):
    return log_prior(case, theta, z) + log_likelihood(case, theta, z) - log_q(case, phi, z)


def log_marginal(case, theta, phi):
    if case["model"]["type"] == "LinearGaussian":
        scale = math.exp(theta["log_scale"])
        covariance = oracles.linear_gaussian_covariance(theta["W"].tolist(), scale)
        return np.array([oracles.full_log_density(x, theta["b"].tolist(), covariance) for x in case["x"]])
    if "Gaussian" in case["q"]["type"]:
        size = theta["W1"].shape[1]
        spacing = 0.3 if size == 2 else 0.11
        z = np.repeat(nodes(size, spacing, 8.5)[:, None], len(case["x"]), 1)
        joint = log_prior(case, theta, z) + log_likelihood(case, theta, z)
        return np.logaddexp.reduce(joint, 0) + size * math.log(spacing)
    z, _ = points(case, phi)
    return np.logaddexp.reduce(log_prior(case, theta, z) + log_likelihood(case, theta, z), 0)


def elbo(case, theta, phi):
    z, share = points(case, phi)
    return (share * log_w(case, theta, phi, z)).sum(0)


def iwae(case, theta, phi, k):
    """Return the mean of log p̂_K over all K-tuples of points."""
    z, share = points(case, phi)
    table = log_w(case, theta, phi, z)
    if len(z) > 8:
        assert k == 2
        return pairs(table, share)
    tuples = np.array(list(itertools.product(range(len(z)), repeat=k)))  # (S^K, K)
    return (share[tuples].prod(1) * (np.logaddexp.reduce(table[tuples], 1) - math.log(k))).sum(0)


def pairs(table, share):
    """Return the mean of log p̂_2 over all pairs of points, one row of pairs at a time."""
    shift = table.max(0)
    w, values = np.exp(table - shift), []
    for b in range(table.shape[1]):
        rows = [np.log(w[:, b] + w[i, b]) @ share[:, b] for i in range(len(w))]
        values.append(np.array(rows) @ share[:, b] + shift[b] - math.log(2))
    return np.array(values)


def laws(name):
    """Return θ and φ of a case as arrays."""
    case = CASES[name]
    return [{key: np.array(value) for key, value in case[part]["parameters"].items()} for part in PARTS.values()]


def differences(function, named):
    """Return the gradient of the sum of function(named) in every number of a dictionary of arrays."""
    found = {}
    for key, value in named.items():
        found[key] = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            unit = np.zeros_like(value)
            unit[index] = 1.0
            found[key][index] = directional(function, named, {key: unit})
    return found


def directional(function, named, direction):
    """Return the derivative of the sum of function(named) along a direction, by a central difference."""
    total = 0.0
    for step, weight in STENCIL.items():
        for sign in (1, -1):
            moved = {key: value + sign * step * STEP * direction.get(key, 0.0) for key, value in named.items()}
            total += sign * weight * function(moved).sum()
    return total / STEP


def agree(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for key in found:
        np.testing.assert_allclose(np.array(wanted[key]), found[key], rtol=tolerance, atol=tolerance, err_msg=key)


# --------------------------------------------------------------------------------------------------- the numbers


def numbers(content):
    return reference_cases.numbers(content)


@each(list(CASES))
def test_the_committed_case_is_what_the_command_computes_now(name):
    case = reference_cases.INPUTS[name]
    now = case | {"exact": reference_cases.exact(case)}
    now |= reference_cases.with_noise(case) if "noise" in case else {}
    assert json.loads(json.dumps(now)).keys() == CASES[name].keys()
    np.testing.assert_allclose(numbers(CASES[name]), numbers(now), rtol=1e-11, atol=1e-13)


@each(list(CASES))
def test_log_p_and_elbo_agree_with_numpy(name):
    case, exact, (theta, phi) = CASES[name], CASES[name]["exact"], laws(name)
    np.testing.assert_allclose(exact["log_p"], log_marginal(case, theta, phi), rtol=0, atol=1e-11)
    np.testing.assert_allclose(exact["elbo"], elbo(case, theta, phi), rtol=0, atol=1e-11)


@each(list(CASES))
def test_iwae_agrees_with_all_tuples_of_draws(name):
    case, exact, (theta, phi) = CASES[name], CASES[name]["exact"], laws(name)
    assert list(exact["iwae"]) == (["1", "2", "5"] if name in DISCRETE else ["1", "2"])
    for k, values in exact["iwae"].items():
        found = elbo(case, theta, phi) if k == "1" else iwae(case, theta, phi, int(k))
        np.testing.assert_allclose(values, found, rtol=0, atol=1e-11)


@each(DISCRETE)
def test_log_p_elbo_and_iwae_agree_with_loops(name):
    case, exact = CASES[name], CASES[name]["exact"]
    p, q = case["model"]["parameters"], case["q"]["parameters"]
    for b, (x, logits) in enumerate(zip(case["x"], q["logits"], strict=True)):
        if name == "mixture":
            prior = [value - oracles.log_sum_exp(p["weight_logits"]) for value in p["weight_logits"]]
            scales = [[math.exp(value) for value in row] for row in p["log_scale"]]
            score = [oracles.diagonal_log_density(x, *pair) for pair in zip(p["loc"], scales, strict=True)]
            proposal = [value - oracles.log_sum_exp(logits) for value in logits]
        else:
            layers, states = [(p["W1"], p["b1"]), (p["W2"], p["b2"])], oracles.bits(3)
            prior = [oracles.bernoulli_log_mass(z, p["prior_logits"]) for z in states]
            score = [oracles.bernoulli_log_mass(x, oracles.perceptron(list(z), layers)) for z in states]
            proposal = [oracles.bernoulli_log_mass(z, logits) for z in states]
        joint = [a + c for a, c in zip(prior, score, strict=True)]
        weights = [a - c for a, c in zip(joint, proposal, strict=True)]
        assert exact["log_p"][b] == pytest.approx(oracles.log_sum_exp(joint), abs=1e-12)
        for k in (1, 2):
            bound = oracles.expected_over_tuples(weights, proposal, k, oracles.log_mean_exp)
            assert exact["iwae"][str(k)][b] == pytest.approx(bound, abs=1e-12)
        assert exact["elbo"][b] == exact["iwae"]["1"][b]


def test_log_p_and_elbo_of_the_curve_agree_with_the_midpoint_rule():
    case, exact = CASES["curve"], CASES["curve"]["exact"]
    p, q = case["model"]["parameters"], case["q"]["parameters"]
    decoder, encoder = [[(v[f"{a}1"], v[f"{c}1"]), (v[f"{a}2"], v[f"{c}2"])] for v, a, c in ((p, *"Wb"), (q, *"Vc"))]
    for b, x in enumerate(case["x"]):
        loc, log_scale = oracles.perceptron(x, encoder)
        scale = math.exp(log_scale)

        def joint(z, x=x):
            logits = oracles.perceptron([z], decoder)
            return oracles.normal_log_density(z, 0.0, 1.0) + oracles.bernoulli_log_mass(x, logits)

        def bracket(z, loc=loc, scale=scale, joint=joint):
            log_density = oracles.normal_log_density(z, loc, scale)
            return math.exp(log_density) * (joint(z) - log_density)

        log_p = math.log(oracles.integral(lambda z, joint=joint: math.exp(joint(z)), 9.0, 150))
        assert exact["log_p"][b] == pytest.approx(log_p, abs=1e-12)
        assert exact["elbo"][b] == pytest.approx(oracles.integral(bracket, 12.0, 240), abs=1e-12)


@each(list(CASES))
def test_the_terms_of_the_elbo_agree_with_their_definitions(name):
    case, exact, (theta, phi) = CASES[name], CASES[name]["exact"], laws(name)
    z, share = points(case, phi)
    q, p, score = log_q(case, phi, z), log_prior(case, theta, z), log_likelihood(case, theta, z)
    posterior = p + score - log_marginal(case, theta, phi)
    for key, integrand in (
        ("reconstruction", score),
        ("kl_to_prior", q - p),
        ("entropy", -q),
        ("kl_to_posterior", q - posterior),
    ):
        np.testing.assert_allclose(exact[key], (share * integrand).sum(0), rtol=0, atol=1e-11, err_msg=key)


@each(list(CASES))
def test_the_bounds_are_in_order(name):
    exact = CASES[name]["exact"]
    ladder = np.array([exact["elbo"], *list(exact["iwae"].values())[1:], exact["log_p"]])
    assert (np.diff(ladder, axis=0) > 1e-3).all() and min(exact["kl_to_prior"]) > 0
    assert exact["iwae"]["1"] == exact["elbo"]


# --------------------------------------------------------------------------------------------------- the gradients


@each(list(CASES))
def test_the_gradient_of_log_p_agrees_with_differences(name):
    case, wanted, (theta, phi) = CASES[name], CASES[name]["exact"]["gradients"]["log_p"], laws(name)
    assert list(wanted) == ["theta"]
    agree(differences(lambda theta: log_marginal(case, theta, phi), theta), wanted["theta"], 1e-9)


@each(list(CASES))
def test_the_gradient_of_the_elbo_agrees_with_differences(name):
    case, wanted, (theta, phi) = CASES[name], CASES[name]["exact"]["gradients"]["elbo"], laws(name)
    agree(differences(lambda theta: elbo(case, theta, phi), theta), wanted["theta"], 1e-9)
    agree(differences(lambda phi: elbo(case, theta, phi), phi), wanted["phi"], 1e-9)


@pytest.mark.parametrize("name, k", [("mixture", 2), ("mixture", 5), ("bits", 2), ("curve", 2)])
def test_the_gradient_of_the_iwae_bound_agrees_with_differences(name, k):
    case, wanted, (theta, phi) = CASES[name], CASES[name]["exact"]["gradients"]["iwae"][str(k)], laws(name)
    agree(differences(lambda theta: iwae(case, theta, phi, k), theta), wanted["theta"], 1e-9)
    agree(differences(lambda phi: iwae(case, theta, phi, k), phi), wanted["phi"], 1e-9)


@pytest.mark.parametrize("name, k", [("bits", 5), ("linear_gaussian", 2), ("fixed_noise", 2)])
def test_the_gradient_of_a_costly_iwae_bound_agrees_along_a_direction_through_all_parameters(name, k):
    case, wanted, (theta, phi) = CASES[name], CASES[name]["exact"]["gradients"]["iwae"][str(k)], laws(name)
    generator = np.random.default_rng(0)
    named = {("theta", key): value for key, value in theta.items()} | {
        ("phi", key): value for key, value in phi.items()
    }
    direction = {key: generator.uniform(0.2, 0.5, value.shape) for key, value in named.items()}

    def bound(moved):
        return iwae(case, *({key: v for (p, key), v in moved.items() if p == part} for part in PARTS), k)

    slope = sum((np.array(wanted[part][key]) * direction[part, key]).sum() for part, key in named)
    assert directional(bound, named, direction) == pytest.approx(slope, abs=1e-8)


@each(list(CASES))
def test_the_gradient_of_one_draw_s_iwae_bound_is_that_of_the_elbo(name):
    gradients = CASES[name]["exact"]["gradients"]
    assert numbers(gradients["iwae"]["1"]) == pytest.approx(numbers(gradients["elbo"]), abs=1e-12)


# ----------------------------------------------------------------------------------------------- the fixed noise

NOISE = CASES["fixed_noise"]


def path(phi, k):
    loc, log_scale = gaussian(NOISE, phi)
    return loc + np.exp(log_scale) * np.array(NOISE["noise"])[:k]


def test_the_scores_of_the_draws_agree_with_loops():
    p, q, sample = NOISE["model"]["parameters"], NOISE["q"]["parameters"], NOISE["sample"]
    decoder, encoder = [(p["W1"], p["b1"]), (p["W2"], p["b2"])], [(q["V1"], q["c1"]), (q["V2"], q["c2"])]
    for b, x in enumerate(NOISE["x"]):
        loc, log_scale = np.split(np.array(oracles.perceptron(x, encoder)), 2)
        scale = np.exp(log_scale)
        for k, noise in enumerate(NOISE["noise"]):
            z = [m + s * e for m, s, e in zip(loc, scale, noise[b], strict=True)]
            scores = {
                "log_prior": oracles.diagonal_log_density(z, [0.0, 0.0], [1.0, 1.0]),
                "log_likelihood": oracles.bernoulli_log_mass(x, oracles.perceptron(z, decoder)),
                "log_q": oracles.diagonal_log_density(z, loc, scale),
            }
            scores["log_w"] = scores["log_prior"] + scores["log_likelihood"] - scores["log_q"]
            assert sample["z"][k][b] == pytest.approx(z, abs=1e-12)
            assert {name: sample[name][k][b] for name in scores} == pytest.approx(scores, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_bounds_of_the_draws_agree_with_loops(k):
    told, log_weights = NOISE["draws"][str(k)], np.array(NOISE["sample"]["log_w"])[:k]
    score = np.array(NOISE["sample"]["log_likelihood"])[:k].mean(0)
    assert told["elbo"] == pytest.approx(log_weights.mean(0), abs=1e-12)
    assert told["log_p_hat"] == pytest.approx([oracles.log_mean_exp(list(row)) for row in log_weights.T], abs=1e-12)
    assert told["elbo_analytic_kl"] == pytest.approx(score - np.array(NOISE["exact"]["kl_to_prior"]), abs=1e-11)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_gradients_of_the_draws_agree_with_differences(k):
    wanted, (theta, phi) = NOISE["draws"][str(k)]["gradients"], laws("fixed_noise")
    table = log_w(NOISE, theta, phi, path(phi, k))
    share = np.exp(log_softmax(table.T).T)

    def divergence(phi):
        loc, log_scale = gaussian(NOISE, phi)
        return 0.5 * (np.exp(2 * log_scale) + loc**2 - 1 - 2 * log_scale).sum(-1)

    def along(theta, moved):  # log q keeps its φ, z moves
        return log_w(NOISE, theta, phi, path(moved, k))

    mean = lambda theta, phi: log_w(NOISE, theta, phi, path(phi, k)).mean(0)  # noqa: E731
    log_mean = lambda theta, phi: np.logaddexp.reduce(log_w(NOISE, theta, phi, path(phi, k)), 0)  # noqa: E731
    estimators = {
        "pathwise": (mean, mean),
        "sticking_the_landing": (mean, lambda theta, phi: along(theta, phi).mean(0)),
        "analytic_kl": (lambda t, f: log_likelihood(NOISE, t, path(f, k)).mean(0) - divergence(f),) * 2,
        "iwae_pathwise": (log_mean, log_mean),
        "doubly_reparameterized": (log_mean, lambda theta, phi: (share**2 * along(theta, phi)).sum(0)),
    }
    assert list(wanted) == list(estimators)
    for name, (of_theta, of_phi) in estimators.items():
        agree(differences(lambda moved, f=of_theta: f(moved, phi), theta), wanted[name]["theta"], 1e-9)
        agree(differences(lambda moved, f=of_phi: f(theta, moved), phi), wanted[name]["phi"], 1e-9)


def test_the_estimators_differ_where_they_should():
    draws = NOISE["draws"]
    flat = {k: {name: numbers(value["phi"]) for name, value in draws[k]["gradients"].items()} for k in draws}
    assert flat["1"]["iwae_pathwise"] == pytest.approx(flat["1"]["pathwise"], abs=1e-12)
    assert flat["1"]["doubly_reparameterized"] == pytest.approx(flat["1"]["sticking_the_landing"], abs=1e-12)
    for one, other in itertools.combinations(flat["5"].values(), 2):
        assert max(abs(a - c) for a, c in zip(one, other, strict=True)) > 0.01


# -------------------------------------------------------------------------------------------------------- the file


@pytest.fixture
def damaged(tmp_path, monkeypatch):
    """Return a function that lets the loader read another text."""
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(results.importlib.resources, "files", lambda name: tmp_path)
    return lambda text: (tmp_path / "data" / FILE.name).write_text(text)


def test_the_loader_returns_the_cases_of_the_file():
    assert reference_cases.reference_cases() == CASES


def test_the_checksum_can_be_computed_without_the_library():
    import hashlib

    canonical = json.dumps(CASES, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(canonical.encode()).hexdigest() == CONTENT["sha256"]


def test_a_flipped_digit_is_found(damaged):
    text = FILE.read_text(encoding="utf-8")
    places = [match.start() for match in re.finditer(r"(?<=\d\.)\d", text) if match.start() > text.index('"cases"')]
    assert len(places) > 2000
    for place in places[:: len(places) // 40]:
        damaged(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
        with pytest.raises(ResultError, match="the checksum of its cases is not"):
            reference_cases.reference_cases()
    damaged(text)
    assert reference_cases.reference_cases() == CASES


def test_a_file_without_cases_or_without_a_checksum_is_refused(damaged):
    for missing in ("cases", "sha256"):
        damaged(json.dumps({key: value for key, value in CONTENT.items() if key != missing}))
        with pytest.raises(ResultError, match="the checksum"):
            reference_cases.reference_cases()


def leaves(content, path=""):
    """Return the paths of a case down to lists, numbers and texts; the count of draws is K."""
    if not isinstance(content, dict):
        return {path}
    keys = {key: "K" if key.isdigit() else key for key in content}
    return {leaf for key in content for leaf in leaves(content[key], f"{path}.{keys[key]}" if path else keys[key])}


@each(list(CASES))
def test_every_case_has_what_the_layout_says_and_nothing_else(name):
    assert CONTENT["layout"] == reference_cases.LAYOUT
    layout = [
        path for path in CONTENT["layout"] if "noise" in CASES[name] or not path.startswith(reference_cases.NOISE_ONLY)
    ]
    found = leaves(CASES[name])
    for path in layout:
        assert any(leaf == path or leaf.startswith(path + ".") for leaf in found), f"{path} is missing"
    for leaf in found:
        assert any(leaf == path or leaf.startswith(path + ".") for path in layout), f"{leaf} is not in the layout"


@each(list(CASES))
def test_shapes_are_those_of_the_layout(name):
    case, size = CASES[name], len(CASES[name]["x"])
    exact = case["exact"]
    rows = [exact[key] for key in ("log_p", "elbo", "reconstruction", "kl_to_prior", "kl_to_posterior", "entropy")]
    assert {len(row) for row in [*rows, *exact["iwae"].values()]} == {size}
    for gradients in (exact["gradients"]["elbo"], *exact["gradients"]["iwae"].values()):
        for part, key in PARTS.items():
            shapes = {name: np.shape(value) for name, value in gradients[part].items()}
            assert shapes == {name: np.shape(value) for name, value in case[key]["parameters"].items()}
    if "noise" in case:
        assert np.shape(case["noise"]) == np.shape(case["sample"]["z"]) == (5, size, 2)
        assert {np.shape(case["sample"][key]) for key in ("log_prior", "log_likelihood", "log_q", "log_w")} == {
            (5, size)
        }


def test_numbers_read_back_as_they_were_and_have_twelve_digits():
    cases = json.loads(FILE.read_text(encoding="utf-8"), parse_float=str)["cases"]
    count = 0
    for case in cases.values():
        computed = [case["exact"][key] for key in case["exact"] if key not in ("method", "error")]
        texts = [text for text in flat(computed) + flat(case.get("sample", {})) + flat(case.get("draws", {}))]
        assert all(repr(float(text)) == text for text in texts)
        assert all(len(text.partition("e")[0].replace(".", "").strip("-").lstrip("0")) >= 12 for text in texts)
        count += len(texts)
    assert count > 1500


def flat(content):
    if isinstance(content, dict | list):
        return [t for part in (content.values() if isinstance(content, dict) else content) for t in flat(part)]
    return [content]


# -------------------------------------------------------------------------------------------------------- the page


def torch_for_jax():
    """Return modules that offer, on top of torch, what the page uses of JAX."""
    array = functools.partial(torch.tensor, dtype=torch.float64)
    numpy = ModuleType("jax.numpy")
    numpy.__dict__.update(array=array, tanh=torch.tanh, exp=torch.exp, abs=torch.abs, pi=math.pi)
    numpy.log = lambda x: torch.log(array(float(x)))
    numpy.zeros = functools.partial(torch.zeros, dtype=torch.float64)
    numpy.split = lambda x, parts, axis: x.chunk(parts, axis)
    numpy.logaddexp = lambda x, y: torch.logaddexp(array(x), y)

    def grad(function, argnums):
        def gradients(*arguments):
            leaves = [{k: v.clone().requires_grad_() for k, v in arguments[i].items()} for i in argnums]
            value = function(*leaves, *arguments[len(argnums) :])
            found = torch.autograd.grad(value, [leaf for named in leaves for leaf in named.values()])
            iterator = iter(found)
            return tuple({k: next(iterator) for k in named} for named in leaves)

        return gradients

    jax = ModuleType("jax")
    jax.numpy, jax.grad = numpy, grad
    jax.config = SimpleNamespace(update=lambda name, value: None)
    jax.lax = SimpleNamespace(stop_gradient=lambda tree: {k: v.detach() for k, v in tree.items()})
    jax.nn = SimpleNamespace(logsumexp=lambda x, axis: torch.logsumexp(x, axis))
    return {"jax": jax, "jax.numpy": numpy}


def jax_block():
    page = json.loads((ROOT / "book" / "check-your-code.ipynb").read_text(encoding="utf-8"))
    text = "\n".join("".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "markdown")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return block


def test_the_jax_code_of_the_page_agrees_with_the_file_when_torch_stands_in_for_jax(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("reference_cases.json").write_text(FILE.read_text(encoding="utf-8"))
    for name, module in torch_for_jax().items():
        monkeypatch.setitem(sys.modules, name, module)
    exec(compile(jax_block(), "jax_block", "exec"), {"__name__": "page"})
    wrong = jax_block().replace("(1 - 2 * x)", "(2 * x - 1)")
    with pytest.raises(AssertionError):
        exec(compile(wrong, "jax_block", "exec"), {"__name__": "page"})


def test_the_inputs_in_the_file_are_those_of_the_command():
    for name, case in reference_cases.INPUTS.items():
        assert {key: CASES[name][key] for key in case} == case


def test_no_two_gradients_of_one_case_are_equal_so_that_a_transposed_array_is_seen():
    for name, case in CASES.items():
        values = numbers(case["exact"]["gradients"]["elbo"])
        assert len({round(value, 9) for value in values}) == len(values), name


def test_a_grid_that_is_too_wide_is_refused(monkeypatch):
    one = {"curve": reference_cases.INPUTS["curve"]}
    monkeypatch.setattr(reference_cases, "INPUTS", one)
    monkeypatch.setitem(reference_cases.NOISE_SPACING, 1, 1.5)
    with pytest.raises(QuadratureError, match="curve: a wider spacing changes a number by"):
        reference_cases.compute()
    monkeypatch.setitem(reference_cases.NOISE_SPACING, 1, 0.1)
    monkeypatch.setitem(reference_cases.GRID, 1, Grid(15, 9.0, tolerance=1e-12))
    with pytest.raises(QuadratureError, match="grid: 15 nodes"):
        reference_cases.compute()


def test_the_command_writes_the_file_that_is_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_cases, "compute", lambda: CASES)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(sys, "argv", ["reference_cases", "--output", str(tmp_path / "a.json")])
    reference_cases.main()
    written, committed = ((tmp_path / "a.json").read_text().splitlines(), FILE.read_text().splitlines())
    start = next(i for i, line in enumerate(committed) if line.startswith(' "layout"'))
    assert written[start:] == committed[start:]
