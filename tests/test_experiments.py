"""Long runs: what they return in small, and the committed results that chapters read."""

import json
import math
import os

import pytest
import torch

from lvmlib.datasets import mnist_sample
from lvmlib.experiments import closing_table, kept, recipes, results, tables, tighter_bounds
from lvmlib.experiments.evaluation import by_importance_sampling
from lvmlib.experiments.results import ResultError, provenance, read_result, write_result


def test_a_result_is_written_whole_and_says_which_command_made_it(tmp_path):
    path = tmp_path / "a.json"
    write_result(path, provenance("make tea") | {"numbers": [1.5]})
    content = json.loads(path.read_text())
    assert content["command"] == "make tea" and content["numbers"] == [1.5] and content["lvmlib"]
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_result(path, {"command": "first"})
    with pytest.raises(TypeError):
        write_result(path, {"command": "second", "broken": object()})
    assert json.loads(path.read_text()) == {"command": "first"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_rows_stand_on_one_line_and_texts_stay_as_they_are(tmp_path):
    content = {"a": [[1.5, -2e-30], []], "b": {"c": [], "d": [0.1]}, "text": 'two  blanks, [ 1,\n 2 ] and "quotes"'}
    write_result(tmp_path / "a.json", content, rows=True)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == content
    assert "  [1.5, -2e-30]," in text.splitlines() and '  "d": [0.1]' in text.splitlines()


def test_an_unknown_result_is_refused_with_the_names_that_exist():
    known = r"\['benchmark', 'closing_table', 'mnist_table', 'reference_cases', 'tighter_bounds'\]"
    with pytest.raises(ResultError, match=rf"name must be one of {known}, got 'table'"):
        read_result("table")


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"runs": []}', "<html>"])
def test_a_damaged_result_is_refused(tmp_path, monkeypatch, text):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.json").write_text(text)
    monkeypatch.setattr(results.importlib.resources, "files", lambda name: tmp_path)
    with pytest.raises(ResultError, match=r"a\.json: not a result file"):
        read_result("a")


def test_the_closing_table_has_every_model_and_seed_with_finite_numbers():
    content = read_result("closing_table")
    assert list(content["models"]) == list(closing_table.MODELS)
    for runs in content["models"].values():
        assert [run["seed"] for run in runs] == list(range(5))
        assert all(math.isfinite(value) for run in runs for value in run.values())
    sizes = [runs[0]["parameters"] for runs in content["models"].values()]
    assert max(sizes) / min(sizes) < 1.02  # one budget
    assert content["settings"]["num_epochs"] == closing_table.OPTIONS["num_epochs"]


def test_training_and_validation_images_split_the_training_set():
    train, validation, test = closing_table.data()
    rows = [tuple(image) for part in (train, validation) for image in part.tolist()]
    assert len(train) + len(validation) == 1437 and len(test) == 360
    assert rows == [tuple(image) for image in closing_table.digits("train").x.tolist()]


def test_a_run_repeats_itself_and_leaves_the_random_state(monkeypatch):
    monkeypatch.setitem(closing_table.OPTIONS, "num_epochs", 5)
    before = torch.get_rng_state()
    first, second = (closing_table.run("VAE, z in 8-D", seed=3)["nats"] for _ in range(2))
    assert first == second and torch.equal(torch.get_rng_state(), before)


def test_an_unknown_model_or_estimator_is_refused():
    with pytest.raises(ValueError, match="name must be one of .*'mixture'.* got 'mixtures'"):
        closing_table.run("mixtures", seed=0)
    with pytest.raises(ValueError, match="name must be one of .*'DReG'.* got 'dreg'"):
        tighter_bounds.run("dreg", 5, 10, seed=0)


def test_a_watched_training_tells_exact_numbers_with_the_bound_below():
    told = tighter_bounds.run("IWAE", 2, 20, seed=0)
    assert told["epoch"] == [0, 20] and told["seconds"][0] <= told["seconds"][1]
    assert all(vlb < log_p for vlb, log_p in zip(told["vlb"], told["log_p"], strict=True))


def test_the_committed_trainings_are_those_of_the_command():
    runs = read_result("tighter_bounds")["runs"]
    wanted = [(name, k, seed) for name, k, _ in tighter_bounds.RUNS for seed in range(3)]
    assert [(run["name"], run["num_samples"], run["seed"]) for run in runs] == wanted
    for run, (_, _, epochs) in zip(runs[::3], tighter_bounds.RUNS, strict=True):
        assert run["epoch"][-1] == epochs and len({len(run[key]) for key in ("epoch", "seconds", "log_p", "vlb")}) == 1


def test_results_are_small():
    folder = os.path.dirname(results.__file__) + "/../data"
    assert all(entry.stat().st_size < 100_000 for entry in os.scandir(folder) if entry.name.endswith(".json"))


def test_the_mnist_table_has_its_rows_by_recipe_and_the_weights_that_it_speaks_of():
    content = read_result("mnist_table")
    rows = {row["run"]: row for row in content["rows"]}
    assert rows.keys() <= recipes.FULL.keys() and {"elbo-1", "iwae-5"} <= rows.keys()
    for name, row in rows.items():
        settings = recipes.FULL[name].settings
        assert (row["objective"], row["num_samples"], row["seed"]) == (
            settings.objective,
            settings.num_samples,
            settings.seed,
        )
        for key in ("optimizer", "learning_rate", "batch_size", "num_backward", "precision"):
            assert row[key] == getattr(settings, key)
        assert row["starts_from"] == recipes.FULL[name].start and row["num_samples_of_evaluation"] == 5000
        assert row["elbo"][0] < row["log_likelihood"][0] < -80 and row["published"] == tables.PUBLISHED.get(
            (row["objective"], row["num_samples"])
        )
        assert len(row["history"]["bound"]) == settings.num_epochs and len(row.get("sample_log_p", [0] * 500)) == 500
        assert ("sample_log_p" in row) == (name in kept.KEPT)


def test_the_kept_weights_give_the_kept_log_p():
    """Thirty images with 200 draws: 5,000 draws, which the file has, are tighter by less than two nats."""
    sample = mnist_sample()
    for row in read_result("mnist_table")["rows"]:
        if "sample_log_p" in row:
            torch.manual_seed(0)
            found = by_importance_sampling(*kept.pretrained(row["run"]), sample.x[::17], 200)["log_p"]
            difference = found - torch.tensor(row["sample_log_p"])[::17]
            assert -2 < difference.mean() < 0.3 and difference.std() < 2
