"""What a trained autoencoder is worth: log p(x) by importance sampling, the ELBO, active units, and AIS beside them."""

import time
from pathlib import Path

import torch
from torch import Tensor

from lvmlib.ais import annealed_log_weights
from lvmlib.contracts import check_count
from lvmlib.experiments.results import provenance, write_result
from lvmlib.experiments.runs import EVALUATION, load_trained, own_random_state
from lvmlib.experiments.settings import SOURCES, fingerprint
from lvmlib.importance import draw, score
from lvmlib.models import GaussianLatentModel, LatentVariableModel
from lvmlib.progress import bar
from lvmlib.proposals import Proposal
from lvmlib.weights import effective_sample_size, log_mean_exp

ROWS = 1000  # z's per pass of the decoder: what it computes stays in the processor's cache
IMAGES = 20  # per batch
ACTIVE = 0.01  # variance of the posterior mean above which a latent dimension is called active
AIS_IMAGES = 10  # per batch


@torch.no_grad()
def by_importance_sampling(
    model: LatentVariableModel, encoder: Proposal, x: Tensor, num_samples: int, *, progress: bool = False
) -> dict[str, Tensor]:
    r"""Return, for each image, log p̂ from K samples of q(z | x), their ELBO, and their effective sample size.

    Memory does not grow with K, except for the log-weights of a batch of images.

    Args:
        model: gives p.
        encoder: gives q.
        x: images, shape ``(N, D)``.
        num_samples: K ≥ 1.
        progress: show a progress bar.

    Returns:
        ``log_p``, biased low; ``elbo``; both in nats, and ``ess``; each of shape ``(N,)``.

    Raises:
        ValueError: K < 1, or x does not fit the model.

    Reference:
        Burda, Grosse and Salakhutdinov (2016), section 5.1, arXiv:1509.00519.

    >>> from lvmlib import LinearGaussian, exact_log_marginal, posterior_proposal
    >>> model, x = LinearGaussian(torch.tensor([[3.0]]), torch.zeros(1), 4.0), torch.tensor([[5.0]])
    >>> found = by_importance_sampling(model, posterior_proposal(model), x, num_samples=10)
    >>> torch.allclose(found["log_p"], exact_log_marginal(model, x), atol=1e-4)
    True
    """
    check_count("num_samples", num_samples)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    batches, total = x.split(IMAGES), 0.0
    with bar(batches, "importance sampling", "batch", show=progress) as shown:
        for batch in shown:
            q, chunk = encoder(batch), max(1, ROWS // len(batch))
            sizes = [min(chunk, num_samples - start) for start in range(0, num_samples, chunk)]
            log_w = torch.cat([score(model, batch, q, draw(q, size)).log_w for size in sizes])
            parts.append((log_mean_exp(log_w), log_w.mean(0), effective_sample_size(log_w)))
            total += parts[-1][0].sum().item()
            shown.set_postfix_str(f"{total / min(len(x), len(parts) * IMAGES):.2f} nats", refresh=False)
    return dict(zip(("log_p", "elbo", "ess"), map(torch.cat, zip(*parts))))


@torch.no_grad()
def active_units(encoder: Proposal, x: Tensor) -> int:
    r"""Return the number of latent dimensions whose posterior mean varies over the images: Var_x(E_q[z | x]) > 0.01.

    Reference:
        Burda, Grosse and Salakhutdinov (2016), section 5.2, arXiv:1509.00519.

    >>> from lvmlib import DiagonalGaussian
    >>> encoder = lambda x: DiagonalGaussian(torch.cat([x, 0.09 * x], 1), torch.ones(len(x), 2))
    >>> active_units(encoder, torch.tensor([[-1.0], [1.0]]))  # variances 2 and 0.0162
    2
    >>> active_units(encoder, torch.tensor([[-0.5], [0.5]]))  # 0.5 and 0.00405
    1
    """
    means = torch.cat([encoder(batch).mean for batch in x.split(1000)])
    return int((means.var(0) > ACTIVE).sum())


def by_annealing(
    model: GaussianLatentModel, x: Tensor, num_chains: int, num_steps: int, *, progress: bool = False
) -> Tensor:
    """Return log p̂ of each image from annealed chains, shape ``(N,)``: biased low, and independent of any encoder.

    Args:
        model: gives p.
        x: images, shape ``(N, D)``.
        num_chains: per image, ≥ 1.
        num_steps: laws between the prior and the posterior, ≥ 1.
        progress: show a progress bar.
    """
    parts = []
    with bar(x.split(AIS_IMAGES), "annealing", "batch", show=progress) as shown:
        for batch in shown:
            parts.append(log_mean_exp(annealed_log_weights(model, batch, num_chains, num_steps)))
            shown.set_postfix_str(f"{torch.cat(parts).mean().item():.2f} nats", refresh=False)
    return torch.cat(parts)


def mean_and_error(values: Tensor) -> list[float]:
    """Return the mean over images and its standard error.

    >>> mean_and_error(torch.tensor([1.0, 3.0]))
    [2.0, 1.0]
    """
    values = values.double()
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else 0.0
    return [round(values.mean().item(), 4), round(error, 4)]


def evaluate(
    path: Path,
    *,
    num_samples: int = 5000,
    num_images: int | None = None,
    ais_images: int = 50,
    ais_chains: int = 10,
    ais_steps: int = 500,
    seed: int = 0,
    fall_back: bool = False,
    progress: bool = False,
    command: str = "lvmlib.experiments.evaluation",
    output: Path | None = None,
) -> dict:
    """Measure the run in a folder on the test images, at its averaged parameters, and write the result.

    Args:
        path: folder of the run, or a checkpoint.
        num_samples: K of the estimate of log p(x).
        num_images: how many test images, spread evenly; all by default.
        ais_images: how many of them AIS looks at, spread evenly; 0 for none.
        ais_chains: per image.
        ais_steps: laws between the prior and the posterior.
        seed: of torch's generator, which is left as it was.
        fall_back: whether the checkpoint before the last one may be used where the last is damaged.
        progress: show progress bars.
        command: what to note as the origin of the result.
        output: file of the result; ``evaluation.json`` in the folder of the run by default.

    Returns:
        What stands in the file. ``log_likelihood`` and ``elbo`` are pairs: mean over the images, standard error;
        ``effective_samples`` are the mean and the least of K.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        ValueError: a count out of range.
    """
    began, path = time.monotonic(), Path(path)
    settings, model, encoder, content = load_trained(path, fall_back=fall_back)
    device = model.prior_loc.device
    x = spread(SOURCES[settings.data].images("test", settings.num_validation), num_images).to(device)
    with own_random_state(device):
        torch.manual_seed(seed)
        found = by_importance_sampling(model, encoder, x, num_samples, progress=progress)
        result = provenance(command) | {
            "averaged_sha256": fingerprint(content["averaged"]),
            "data_sha256": fingerprint({"test": x}),
            "step": content["at"]["step"],
            "num_samples": num_samples,
            "num_images": len(x),
            "seed": seed,
            "log_likelihood": mean_and_error(found["log_p"]),
            "elbo": mean_and_error(found["elbo"]),
            "effective_samples": [round(found["ess"].mean().item(), 1), round(found["ess"].min().item(), 1)],
            "active_units": active_units(encoder, x),
            "z_dim": settings.z_dim,
        }
        if ais_images:
            chosen = spread(torch.arange(len(x)), min(ais_images, len(x)))
            log_p = by_annealing(model, x[chosen], ais_chains, ais_steps, progress=progress)
            result["ais"] = {
                "num_images": len(chosen),
                "num_chains": ais_chains,
                "num_steps": ais_steps,
                "log_likelihood": mean_and_error(log_p),
                "minus_importance_sampling": mean_and_error(log_p - found["log_p"][chosen]),
            }
    result["seconds"] = round(time.monotonic() - began, 1)
    result["per_image"] = [round(value, 3) for value in found["log_p"].tolist()]
    write_result(output or (path if path.is_dir() else path.parent) / EVALUATION, result, rows=True)
    return result


def spread(rows: Tensor, number: int | None) -> Tensor:
    """Return a number of rows, spread evenly: the first images of MNIST's test set are easier than the rest."""
    if number is None:
        return rows
    check_count("num_images", number)
    if number > len(rows):
        raise ValueError(f"num_images must be at most {len(rows)}, got {number}")
    return rows[torch.linspace(0, len(rows) - 1, number).round().long()]
