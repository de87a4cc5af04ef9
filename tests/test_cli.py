"""The command line: what it refuses, what it writes, and the table."""

import dataclasses
import json

import pytest
import torch

from lvmlib.experiments import checkpoints, cli, kept, recipes, runs, settings, tables
from tests.kills import SETTINGS, TINY

TRAIN = [*SETTINGS, "--quiet"]
EVALUATE = ["--num-samples", "20", "--ais-images", "2", "--ais-chains", "3", "--ais-steps", "5", "--quiet"]


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    monkeypatch.setitem(runs.SOURCES, "tiny", TINY)


def call(capsys, *arguments):
    """Return exit status, standard output and standard error of a command."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as error:
        status = error.code
    told = capsys.readouterr()
    return status, told.out, told.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("trian runs/a", r"the command must be train, evaluate, table, got 'trian'; did you mean train?"),
        ("", "the following arguments are required: "),
        ("train", "the following arguments are required: folder"),
        ("train a --data minst", "argument --data: must be digits or mnist or tiny, got 'minst'; did you mean mnist?"),
        ("train a --data cifar10000", "argument --data: must be digits or mnist or tiny, got 'cifar10000'\n"),
        ("train a --objective iwea", "must be elbo or iwae or dreg, got 'iwea'; did you mean iwae?"),
        ("train a --epoch 3", "unknown argument --epoch; did you mean --epochs?"),
        ("train a --lerning-rate=3", "unknown argument --lerning-rate; did you mean --learning-rate?"),
        ("train a b", "unknown argument b"),
        ("train a --num-samples -3", "argument --num-samples: must be at least 1, got -3"),
        ("train a --num-samples 1.5", "argument --num-samples: must be a whole number, got '1.5'"),
        ("train a --learning-rate nan", "argument --learning-rate: must be finite and above 0, got nan"),
        ("train a --learning-rate fast", "argument --learning-rate: must be a number, got 'fast'"),
        ("train a --epochs 0", "argument --epochs: must be at least 1, got 0"),
        ("train a --epochs", "argument --epochs: expected one argument"),
        ("train a --epochs 3 --time-limit 5m", "argument --time-limit: not allowed with argument --epochs"),
        ("train a --time-limit 5d", "argument --time-limit: must be a time such as 90s, 15m or 8h, got '5d'"),
        ("train a --time-limit=-5m", "argument --time-limit: must be a time such as"),
        ("train a --hidden-dims 20 0", "argument --hidden-dims: must be at least 1, got 0"),
        ("train a --seed -1", "argument --seed: must be at least 0, got -1"),
        ("train a --precision half", "argument --precision: must be float32 or bfloat16, got 'half'"),
        ("train a --backward-samples 3", "num_backward (--backward-samples) cannot go with elbo: samples weigh alike"),
        ("train a --resume --force", "argument --force: not allowed with argument --resume"),
        ("train a --batch-size 5000", "batch_size must be at most 1237, the training images, got 5000"),
        ("evaluate a --ais-images -1", "argument --ais-images: must be at least 0, got -1"),
        ("table a --shrt", "unknown argument --shrt; did you mean --short?"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_clear_line_and_status_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(capsys, *arguments.split())
    assert status == 2 and out == "" and message in err and err.count("\n") == 1 and err.startswith("python -m lvmlib")
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("command", ["train", "evaluate", "table"])
def test_help_has_examples_that_parse(capsys, command):
    status, out, _ = call(capsys, command, "--help")
    assert status == 0 and "examples:" in out
    examples = [line.split()[3:] for line in out.splitlines() if line.startswith(f"  {cli.PROGRAM} {command}")]
    assert len(examples) >= 2
    for example in examples:
        assert cli.parser().parse_args(example).command == command


def test_help_names_the_commands(capsys):
    status, out, _ = call(capsys, "--help")
    assert status == 0 and all(f"\n    {name} " in out for name in ("train", "evaluate", "table"))


def test_a_training_is_evaluated_and_stands_in_the_table(capsys, tmp_path):
    status, out, err = call(capsys, "train", tmp_path / "a", *TRAIN)
    assert status == 0 and "3 epochs in" in out and err == ""
    result = json.loads((tmp_path / "a" / runs.RESULT).read_text())
    assert result["command"].startswith("python -m lvmlib train ") and result["command"].endswith("--seed 5 --quiet")
    assert result["settings"]["objective"] == "dreg" and result["settings"]["seed"] == 5 and result["threads"] == 1
    assert len(result["data_sha256"]) == len(result["parameters_sha256"]) == 64
    status, out, _ = call(capsys, "evaluate", tmp_path / "a", *EVALUATE)
    assert status == 0 and "log p(x)" in out and "ELBO" in out and "of 2\n" in out and "AIS" in out
    status, out, err = call(capsys, "table", tmp_path, "--output", tmp_path / "table.json")
    assert status == 0 and err == "" and out.splitlines()[2].startswith("| a   | tiny | dreg      | 2 | 3      |")
    content = json.loads((tmp_path / "table.json").read_text())
    assert [row["run"] for row in content["rows"]] == ["a"] and content["command"].startswith("python -m lvmlib table ")


def test_what_exists_is_refused_unless_forced(capsys, tmp_path):
    assert call(capsys, "train", tmp_path / "a", *TRAIN)[0] == 0
    assert call(capsys, "evaluate", tmp_path / "a", *EVALUATE)[0] == 0
    assert call(capsys, "table", tmp_path, "--output", tmp_path / "table.json")[0] == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for arguments in (["train", tmp_path / "a", *TRAIN], ["evaluate", tmp_path / "a", *EVALUATE],
                      ["table", tmp_path, "--output", tmp_path / "table.json"]):  # fmt: skip
        status, out, err = call(capsys, *arguments)
        assert status == 2 and out == "" and err.count("\n") == 1 and "--force" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    assert call(capsys, "evaluate", tmp_path / "a", *EVALUATE, "--force")[0] == 0
    assert call(capsys, "table", tmp_path, "--output", tmp_path / "table.json", "--force")[0] == 0
    assert call(capsys, "train", tmp_path / "a", *TRAIN, "--force")[0] == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "checkpoint.lvm", "checkpoint.previous.lvm", "run.json"
    ]  # fmt: skip


def test_wrong_settings_do_not_delete_a_run_even_if_forced(capsys, tmp_path):
    assert call(capsys, "train", tmp_path / "a", *TRAIN)[0] == 0
    assert call(capsys, "train", tmp_path / "a", *TRAIN, "--force", "--batch-size", "99")[0] == 2
    assert (tmp_path / "a" / runs.RESULT).exists()
    assert call(capsys, "train", tmp_path / "a", *TRAIN, "--force", "--init-from", tmp_path / "b")[0] == 1
    assert (tmp_path / "a" / runs.RESULT).exists()


def test_a_folder_that_is_a_file_is_refused(capsys, tmp_path):
    (tmp_path / "a").write_text("mine")
    status, _, err = call(capsys, "train", tmp_path / "a", *TRAIN)
    assert status in (1, 2) and err.count("\n") == 1 and (tmp_path / "a").read_text() == "mine"
    status, _, err = call(capsys, "table", tmp_path / "a")
    assert status == 1 and "there is no such folder" in err


def test_resuming_with_other_settings_lists_the_differences(capsys, tmp_path):
    assert call(capsys, "train", tmp_path / "a", *TRAIN)[0] == 0
    status, _, err = call(capsys, "train", tmp_path / "a", "--resume", "--epochs", "9", "--hidden-dims", "7", "7")
    assert status == 2 and err.count("\n") == 1
    assert "hidden_dims is (6,) there, not (7, 7)" in err and "num_epochs is 3 there, not 9" in err


def test_resuming_needs_no_settings_and_nothing_to_resume_is_a_new_run(capsys, tmp_path):
    status, out, _ = call(capsys, "train", tmp_path / "a", *TRAIN, "--resume")
    assert status == 0 and "3 epochs in" in out
    (tmp_path / "a" / runs.RESULT).unlink()
    status, out, err = call(capsys, "train", tmp_path / "a", "--resume")
    assert status == 0 and "goes on after step 12, 100.0 % of the run" in err
    assert json.loads((tmp_path / "a" / runs.RESULT).read_text())["settings"]["seed"] == 5


def test_going_on_with_other_threads_is_noted(capsys, tmp_path):
    assert call(capsys, "train", tmp_path / "a", *TRAIN)[0] == 0
    assert "note:" not in call(capsys, "train", tmp_path / "a", "--resume")[2]
    status, _, err = call(capsys, "train", tmp_path / "a", "--resume", "--threads", "2")
    assert status == 0 and "note: threads 1 then, 2 now, so the rest need not be the same bit for bit" in err


@pytest.mark.parametrize("damage", [b"", b"<html>", None])
def test_a_damaged_checkpoint_is_one_line_and_status_1(capsys, tmp_path, damage):
    assert call(capsys, "train", tmp_path / "a", *TRAIN)[0] == 0
    path = tmp_path / "a" / runs.CHECKPOINT
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    for command in (["train", tmp_path / "a", "--resume"], ["evaluate", tmp_path / "a", *EVALUATE]):
        status, _, err = call(capsys, *command)
        assert status == 1 and err.count("\n") == 1 and "checkpoint.lvm: is" in err and "--fall-back uses" in err
    assert call(capsys, "evaluate", tmp_path / "a", *EVALUATE, "--fall-back")[0] == 0
    assert call(capsys, "train", tmp_path / "a", "--resume", "--fall-back", "--quiet")[0] == 0
    assert checkpoints.load(path)["at"]["step"] == 12


def test_a_missing_run_is_one_line_and_status_1(capsys, tmp_path):
    status, _, err = call(capsys, "evaluate", tmp_path / "nothing", *EVALUATE)
    assert status == 1 and err.count("\n") == 1 and "there is no such file" in err
    status, _, err = call(capsys, "table", tmp_path)
    assert status == 1 and "holds no run that is finished and evaluated" in err


def test_a_warm_start_notes_what_it_began_with_and_is_compared_when_it_goes_on(capsys, tmp_path):
    assert call(capsys, "train", tmp_path / "a", *TRAIN)[0] == 0
    assert call(capsys, "train", tmp_path / "b", *TRAIN, "--seed", "6")[0] == 0
    warm = ["train", tmp_path / "warm", *TRAIN, "--objective", "elbo", "--init-from"]
    assert call(capsys, *warm, tmp_path / "a")[0] == 0
    result, first = (json.loads((tmp_path / name / runs.RESULT).read_text()) for name in ("warm", "a"))
    assert result["settings"]["start"] == first["averaged_sha256"]
    assert call(capsys, *warm, tmp_path / "a", "--resume")[0] == 0
    status, _, err = call(capsys, *warm, tmp_path / "b", "--resume")
    assert status == 2 and "other settings: start is" in err


def test_progress_is_lines_where_there_is_no_terminal(capsys, tmp_path):
    _, _, err = call(capsys, "train", tmp_path / "a", *SETTINGS)
    lines = err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("epoch 2, step 8: bound -") and lines[0].endswith(" left")


def test_progress_is_a_bar_in_a_terminal(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "_shown", lambda options: {"progress": True, "say": lambda text: None})
    _, _, err = call(capsys, "train", tmp_path / "a", *SETTINGS)
    assert "12/12" in err and "nats" in err
    _, _, err = call(capsys, "evaluate", tmp_path / "a", *EVALUATE)
    assert "importance sampling: 100%" in err and "annealing: 100%" in err and "nats" in err


def test_the_thread_count_is_put_back(capsys, tmp_path):
    before = torch.get_num_threads()
    call(capsys, "train", tmp_path / "a", *TRAIN, "--threads", "2")
    assert torch.get_num_threads() == before
    assert json.loads((tmp_path / "a" / runs.RESULT).read_text())["threads"] == 2


def test_an_interrupted_evaluation_has_status_130_and_leaves_no_file(capsys, tmp_path, monkeypatch):
    assert call(capsys, "train", tmp_path / "a", *TRAIN)[0] == 0

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "evaluate", interrupted)
    status, _, err = call(capsys, "evaluate", tmp_path / "a", *EVALUATE)
    assert status == 130 and err.count("\n") == 1 and not (tmp_path / "a" / runs.EVALUATION).exists()


# the table


def made(objective, num_samples, seed, per_image, data="mnist", test="t", sizes=(50, [200, 200]), start=None):
    """Return the two results of a run, as far as a table reads them."""
    settings = {"data": data, "objective": objective, "num_samples": num_samples, "seed": seed, "z_dim": sizes[0]}
    settings |= {"optimizer": "adam", "learning_rate": 0.001, "batch_size": 20, "start": start}
    mean = sum(per_image) / len(per_image)
    run = {
        "settings": settings | {"hidden_dims": sizes[1]},
        "seconds": 90.0,
        "history": {"epoch": [1.0, 2.0], "bound": [-99.0, -95.0]},
    }
    run["averaged_sha256"] = f"{objective} {num_samples}"
    evaluation = {"data_sha256": test, "num_samples": 5000, "per_image": per_image, "log_likelihood": [mean, 0.2]}
    return run, evaluation | {
        "elbo": [mean - 1, 0.2],
        "active_units": 19,
        "effective_samples": [9.0, 1.0],
        "seconds": 1.0,
    }


def test_a_row_compares_with_the_first_run_image_by_image_and_with_the_published_number():
    found = {
        "b": made("iwae", 5, 0, [-84.0, -90.0, -88.0], start="elbo 1"),
        "a": made("elbo", 1, 0, [-86.0, -91.0, -87.0]),
        "c": made("dreg", 5, 0, [-84.0, -90.0, -88.0], test="other"),
    }
    rows = {row["run"]: row for row in tables.rows(found)}
    assert list(rows) == ["a", "b", "c"]
    assert rows["a"]["to_the_first"] is None and rows["c"]["to_the_first"] is None
    assert rows["b"]["to_the_first"] == [0.6667, round((7 / 3) ** 0.5 / 3**0.5, 4)]  # of 2, 1 and −1
    assert rows["b"]["starts_from"] == "a" and rows["a"]["starts_from"] is None
    assert (rows["a"]["epochs"], rows["a"]["seconds"], rows["b"]["epochs"], rows["b"]["seconds"]) == (2, 90, 4, 180)
    assert rows["a"]["history"] == {"bound": [-99.0, -95.0]}
    lines = tables.markdown(tables.rows(found)).splitlines()
    assert len(lines) == 5 and len(set(map(len, lines))) == 1
    cells = [cell.strip() for cell in lines[3].split("|")]
    assert cells[1:11] == ["b", "mnist", "iwae", "5", "4", "0.05", "-87.33 ± 0.20", "0.67 ± 0.88", "-88.33", "19"]


def test_a_number_is_published_for_the_same_networks_and_all_test_images_only():
    whole = [-86.0] * 10_000
    found = {
        "a": made("elbo", 1, 0, whole),
        "b": made("iwae", 5, 0, whole),
        "c": made("dreg", 5, 0, whole),
        "d": made("iwae", 50, 0, whole, sizes=(50, [100])),
        "e": made("iwae", 50, 0, whole[1:], test="a part"),
        "f": made("iwae", 50, 0, whole, data="digits"),
    }
    published = {row["run"]: row["published"] for row in tables.rows(found)}
    assert published == {"a": -86.76, "b": -85.54, "c": None, "d": None, "e": None, "f": None}
    again = {row["run"]: row["rerun"] for row in tables.rows(found)}
    assert again == {"a": -86.35, "b": -85.18, "c": -84.90, "d": None, "e": None, "f": None}


def test_runs_that_have_no_place_in_the_table_are_named_with_what_to_do(capsys, tmp_path):
    for name in ("a", "b", "c", "d"):
        assert call(capsys, "train", tmp_path / name, *TRAIN)[0] == 0
    for name in ("a", "c", "d"):
        assert call(capsys, "evaluate", tmp_path / name, *EVALUATE)[0] == 0
    (tmp_path / "c" / runs.RESULT).unlink()
    stale = json.loads((tmp_path / "d" / runs.RESULT).read_text()) | {"averaged_sha256": "0"}
    (tmp_path / "d" / runs.RESULT).write_text(json.dumps(stale))
    (tmp_path / "notes").mkdir()
    status, out, err = call(capsys, "table", tmp_path)
    assert status == 0 and len(out.splitlines()) == 3
    remarks = err.splitlines()
    assert len(remarks) == 3 and "b: is not evaluated; do so with: python -m lvmlib evaluate" in remarks[0]
    assert "c: is not finished; go on with: python -m lvmlib train" in remarks[1] and "of another state" in remarks[2]
    (tmp_path / "a" / runs.RESULT).write_text("<html>")
    status, _, err = call(capsys, "table", tmp_path)
    assert status == 1 and err.count("\n") == 1 and "run.json: not a result file" in err


def test_the_short_table_trains_and_evaluates_small_runs_and_can_go_on(capsys, tmp_path, monkeypatch):
    options = {"num_samples": 5, "num_images": 10, "ais_images": 0}
    pairs = {"elbo-1": ("elbo", 1), "dreg-2": ("dreg", 2)}
    of = lambda name, k: settings.Settings.of("digits", objective=name, num_samples=k, num_epochs=1)  # noqa: E731
    short = {name: recipes.Recipe(of(*pair), None, options) for name, pair in pairs.items()}
    monkeypatch.setattr(recipes, "SHORT", short)
    status, out, err = call(capsys, "table", tmp_path / "short", "--short")
    assert status == 0 and [line.split()[1] for line in out.splitlines()[2:]] == ["elbo-1", "dreg-2"]
    assert "elbo-1: training" in err and "dreg-2: evaluation" in err
    status, _, err = call(capsys, "table", tmp_path / "short", "--short")
    assert status == 2 and "holds a run already" in err
    (tmp_path / "short" / "elbo-1" / runs.EVALUATION).unlink()
    (tmp_path / "short" / "dreg-2" / runs.RESULT).unlink()
    status, again, err = call(capsys, "table", tmp_path / "short", "--short", "--resume")
    assert status == 0 and again == out and "elbo-1: training" not in err and "dreg-2: training" in err


def test_the_full_table_makes_warm_starts_and_keeps_weights_and_log_p_of_a_sample(capsys, tmp_path, monkeypatch):
    options = {"num_samples": 5, "ais_images": 0}
    small = {"num_epochs": 1, "z_dim": 2, "hidden_dims": (3,)}
    of = lambda objective, k: settings.Settings.of("digits", objective=objective, num_samples=k, **small)  # noqa: E731
    full = {"elbo-1": recipes.Recipe(of("elbo", 1), None, options)}
    full |= {"iwae-5": recipes.Recipe(of("iwae", 5), "elbo-1", options)}
    monkeypatch.setattr(recipes, "FULL", full)
    monkeypatch.setattr(kept, "SAMPLE", 7)
    monkeypatch.setattr(kept, "weights_file", lambda data, name: tmp_path / f"{name}.lvm")
    options = ["--keep", tmp_path, "--output", tmp_path / "table.json"]
    status, _, err = call(capsys, "table", tmp_path / "full", "--full", *options)
    assert status == 0, err
    rows = {row["run"]: row for row in json.loads((tmp_path / "table.json").read_text())["rows"]}
    assert rows["iwae-5"]["starts_from"] == "elbo-1" and rows["iwae-5"]["epochs"] == 2
    per_image = json.loads((tmp_path / "full" / "iwae-5" / runs.EVALUATION).read_text())["per_image"]
    assert rows["iwae-5"]["sample_log_p"] == [per_image[number] for number in (0, 60, 120, 180, 239, 299, 359)]
    assert not list(tmp_path.glob("*.previous.lvm"))
    model, encoder = kept.pretrained("iwae-5")
    nets = {"model": model, "encoder": encoder}
    named = {f"{part}.{name}": value for part, net in nets.items() for name, value in net.named_parameters()}
    result = json.loads((tmp_path / "full" / "iwae-5" / runs.RESULT).read_text())
    assert runs.fingerprint(named) == result["averaged_sha256"]
    assert not any(parameter.requires_grad for parameter in named.values())
    with pytest.raises(ValueError, match="name must be elbo-1 or iwae-5 or iwae-50, got 'elbo-2'"):
        kept.pretrained("elbo-2")
    (tmp_path / "full" / "iwae-5" / runs.CHECKPOINT).unlink()
    again = ["--full", "--resume", "--force", *options]
    assert call(capsys, "table", tmp_path / "full", *again)[0] == 0  # the weights were kept before
    (tmp_path / "iwae-5.lvm").write_bytes((tmp_path / "elbo-1.lvm").read_bytes())
    status, _, err = call(capsys, "table", tmp_path / "full", *again)
    assert status == 1 and "iwae-5.lvm: is of another run than" in err
    full["elbo-1"] = dataclasses.replace(full["elbo-1"], settings=of("elbo", 2))
    (tmp_path / "full" / "elbo-1" / runs.RESULT).unlink()
    status, _, err = call(capsys, "table", tmp_path / "full", "--full", "--resume")
    assert status == 2 and "num_samples is 1 there, not 2" in err


def test_the_recipes_of_the_full_table_start_from_runs_before_them_and_use_all_images():
    names = list(recipes.FULL)
    for name, recipe in recipes.FULL.items():
        assert recipe.start is None or names.index(recipe.start) < names.index(name)
        assert recipe.settings.num_validation == 0 and recipe.settings.data == "mnist"
        assert (recipe.settings.z_dim, recipe.settings.hidden_dims) == (50, (200, 200))
        assert name.startswith(f"{recipe.settings.objective}-{recipe.settings.num_samples}")
    assert set(kept.KEPT) <= set(names)


def test_a_number_that_is_none_is_one_line_and_status_1(capsys, tmp_path, monkeypatch):
    broken = lambda model, x, encoder, num_samples: model.decoder.network[-1].bias.sum() + x[:, 0] / 0  # noqa: E731
    monkeypatch.setattr(settings, "elbo_analytic_kl", broken)
    status, _, err = call(capsys, "train", tmp_path / "a", *TRAIN, "--objective", "elbo")
    assert status == 1 and err.count("\n") == 1 and "objective is NaN or infinite in step 1 (epoch 1)" in err
    assert checkpoints.load(tmp_path / "a" / runs.CHECKPOINT)["at"]["step"] == 0
