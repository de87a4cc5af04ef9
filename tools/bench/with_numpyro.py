"""NumPyro: everything in one compiled loop. It is compiled before the clock starts."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jax import lax
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from problem import LATENT, RATE, Problem, Row, Task

VERSION = f"{numpyro.__version__} (jax {jax.__version__})"


def layers(name: str, start: list):
    """Return a network with tanh between its layers, whose weights are parameters."""

    def apply(x):
        for number, (weight, bias) in enumerate(start):
            x = x @ numpyro.param(f"{name}.{number}.weight", jnp.asarray(weight)).T
            x = x + numpyro.param(f"{name}.{number}.bias", jnp.asarray(bias))
            x = jnp.tanh(x) if number < len(start) - 1 else x
        return x

    return apply


def task(problem: Problem, row: Row) -> Task:
    """Return how the row is done."""
    images = jnp.asarray(problem.images)
    x = images[: row.batch]
    if row.kind.startswith("mixture"):
        return mixture(problem, row, x)
    encoder, decoder = layers("encoder", problem.encoder), layers("decoder", problem.decoder)

    def model(x):
        with numpyro.plate("images", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        with numpyro.plate("images", len(x)):
            mean, log_scale = jnp.split(encoder(x), 2, -1)
            numpyro.sample("z", dist.Normal(mean, jnp.exp(log_scale)).to_event(1))

    bound = Trace_ELBO() if row.kind == "vae" else RenyiELBO(alpha=0, num_particles=row.samples)
    svi = SVI(model, guide, optax.adam(RATE), bound)
    if row.kind == "log p":
        return log_p(svi, bound, model, guide, x)

    def batches(key, images):
        index = jax.random.permutation(key, len(images))
        return lambda step: images[lax.dynamic_slice_in_dim(index, step * row.batch, row.batch)]

    note = "`svi.update` in `fori_loop` with " + ("`Trace_ELBO`" if row.kind == "vae" else "`RenyiELBO(alpha=0)`")
    return learning(svi, row, images, batches, note)


def learning(svi, row: Row, images, batches, note: str) -> Task:
    """Return a task whose steps are `svi.update` on batches, in one compiled loop."""
    x = images[: row.batch]
    held = {"state": svi.init(jax.random.PRNGKey(0), x), "key": jax.random.PRNGKey(1)}

    @jax.jit
    def steps(state, key, images, count):
        batch = batches(key, images)
        return lax.fori_loop(0, count, lambda step, state: svi.update(state, batch(step))[0], state)

    # the state's random key decides the value, so that it has to be another one each time
    evaluate = jax.jit(lambda state, key, x: svi.evaluate(state._replace(rng_key=key), x) / len(x))

    def key():
        held["key"], new = jax.random.split(held["key"])
        return new

    def learn(count: int) -> None:
        used = images[: row.batch * count] if row.kind != "mixture step" else images
        held["state"] = jax.block_until_ready(steps(held["state"], key(), used, count))

    return Task(learn, lambda: -float(evaluate(held["state"], key(), x)), note)


def log_p(svi, bound, model, guide, x) -> Task:
    """Return how log p(x) is estimated: image by image, all samples of an image at once."""
    params = svi.get_params(svi.init(jax.random.PRNGKey(0), x))
    held = {"key": jax.random.PRNGKey(1)}

    @jax.jit
    def estimate(key, x):
        one = lambda pair: -bound.loss(pair[0], params, model, guide, pair[1][None])  # noqa: E731
        return lax.map(one, (jax.random.split(key, len(x)), x)).mean()

    def run(count: int = 1) -> float:
        held["key"], key = jax.random.split(held["key"])
        return float(estimate(key, x))

    return Task(run, run, "no built-in; the loss of `RenyiELBO(alpha=0)` for each image, compiled")


def mixture(problem: Problem, row: Row, x) -> Task:
    """Return how the rows of the mixture are done."""
    start = jnp.asarray(problem.component_probs)

    def model(x):
        weights = numpyro.param("weights", jnp.log(jnp.asarray(problem.component_weights)))
        logits = numpyro.param("logits", jnp.log(start) - jnp.log1p(-start))
        with numpyro.plate("images", len(x)):
            z = numpyro.sample("z", dist.Categorical(logits=weights), infer={"enumerate": "parallel"})
            numpyro.sample("x", dist.Bernoulli(logits=logits[z]).to_event(1), obs=x)

    svi = SVI(model, lambda x: None, optax.adam(RATE), TraceEnum_ELBO(max_plate_nesting=1))
    whole = lambda key, images: lambda step: images  # noqa: E731
    learnt = learning(svi, row, x, whole, "`svi.update` with `TraceEnum_ELBO`")
    if row.kind == "mixture step":
        return learnt

    def evaluate(count: int = 1) -> float:
        for _ in range(count):
            value = learnt.value()
        return value

    return Task(evaluate, evaluate, "the loss of `TraceEnum_ELBO`, compiled")
