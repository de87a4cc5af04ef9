"""Long runs: killed anywhere they come to the same numbers, and what they do in a step is what they say."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lvmlib import datasets, elbo_analytic_kl
from lvmlib.experiments import checkpoints, cli, runs
from lvmlib.experiments.checkpoints import CheckpointError
from lvmlib.experiments.runs import Run, Settings, SettingsError, Stopped, advance, begin, decay, restore
from lvmlib.training import NonFiniteError
from tests.kills import IMAGES, TINY

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    monkeypatch.setitem(runs.SOURCES, "tiny", TINY)


def settings(**given):
    usual = {
        "objective": "elbo",
        "num_epochs": 3,
        "batch_size": 7,
        "hidden_dims": (6,),
        "z_dim": 2,
        "validate_every": 2,
    }
    return Settings.of(**{"data": "tiny"} | usual | given)


# killed, stopped, out of space: everything that `tests.kills` did in one process and its forks


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    command = [sys.executable, "-m", "tests.kills", folder]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_run_repeats_itself_and_another_seed_is_another_run(told):
    assert told["whole"][0] == 0 and told["repeats"] == [0, True] and told["other seed"] == [0, False]


def test_a_run_that_is_killed_anywhere_comes_to_the_same_numbers(told):
    kills = told["kills"]
    assert len(kills) >= 100 and all(kill["statuses"][0] == 128 + signal.SIGKILL for kill in kills)
    assert [kill["event"] for kill in kills if kill["statuses"][-1] != 0 or not kill["same"]] == []


def test_a_run_that_is_killed_twice_comes_to_the_same_numbers(told):
    twice = [kill for kill in told["kills"] if kill["statuses"][1] == 128 + signal.SIGKILL]
    assert len(twice) >= 15 and all(kill["same"] for kill in twice)


def test_the_kills_come_in_every_step_in_the_validation_and_inside_the_save(told):
    events = [kill["event"] for kill in told["kills"]]
    at_least = {
        "a step": 12,
        "the draw of an epoch": 3,
        "the end of an epoch": 3,
        "validation": 2,
        "fsync": 8,
        "link": 3,
    }
    for name, number in (at_least | {"replace": 8}).items():
        assert min(events.count(f"before {name}"), events.count(f"after {name}")) >= number, name
    assert events.count("in the middle of a file") >= 6


def test_a_kill_leaves_a_checkpoint_that_loads_and_the_next_start_sweeps(told):
    assert all(all(kill["loadable"]) and kill["left"] == [] for kill in told["kills"])


def test_a_signal_saves_once_at_the_end_of_the_step_and_the_run_goes_on(told):
    steps = [5, 7, 8, 7, 6]
    for got, step in zip(told["signals"], steps, strict=True):
        assert got["status"] == 128 + getattr(signal, got["signals"][0])
        assert got["step"] == step and f"stopped after step {step}, " in got["text"]
        assert got["text"].count("\n") == 1 and "python -m lvmlib train" in got["text"] and "--resume" in got["text"]
        assert got["last"] == 0 and got["same"]


def test_a_full_disk_is_told_at_the_start_or_later_with_the_free_bytes(told):
    for when, files in (("start", []), ("later", ["checkpoint.lvm", "checkpoint.previous.lvm"])):
        got = told["full disk"][when]
        assert got["status"] == 1 and got["text"].count("\n") == 1 and "bytes are free there" in got["text"]
        assert f"full-{when}/checkpoint.lvm: " in got["text"]
        assert got["loadable"] and got["files"] == files and got["last"] == 0 and got["same"]


def test_a_number_that_is_none_stops_the_run_at_its_step_and_is_not_saved(told):
    for name, got in told["nan"].items():
        assert got["status"] == 1 and got["text"].count("\n") == 1
        assert "step 8 (epoch 2)" in got["text"] and "in a fresh draw of z: log_likelihood" in got["text"]
        assert got["step"] == 6 and got["last"] == 0 and got["same"] in ((True,) if name == "dreg" else (None,))


def wait_for(condition, process):
    """Wait until something holds, for as long as a process runs; return whether it held in time."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.01)
    return False


def written(path):
    """Return what changes when a checkpoint is written."""
    return path.stat().st_mtime_ns if path.exists() else None


def test_three_kills_of_the_real_command_line_change_nothing(tmp_path):
    line = ["--epochs", "60", "--quiet"]
    folder, environment = tmp_path / "killed", os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lvmlib", "train", folder, *line, "--resume", "--save-every", "0.05s"]
    for _ in range(3):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        for _ in range(2):
            before = written(folder / runs.CHECKPOINT)
            assert wait_for(lambda: written(folder / runs.CHECKPOINT) != before, process)  # noqa: B023
        process.kill()
        process.wait()
        assert checkpoints.load(folder / runs.CHECKPOINT)["at"]["step"] > 0
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert cli.main(["train", str(tmp_path / "whole"), *line]) == 0
    killed, whole = (json.loads((tmp_path / name / runs.RESULT).read_text()) for name in ("killed", "whole"))
    for name in ("parameters_sha256", "averaged_sha256", "steps"):
        assert killed[name] == whole[name]


# what a run does


def make(folder, **given):
    """Return a new run."""
    return begin(settings(**given), folder / "run")


def test_a_run_leaves_the_random_state_and_the_thread_count(tmp_path):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    advance(make(tmp_path))
    restore(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


def test_each_epoch_sees_every_image_once_in_an_order_of_its_own_and_with_pixels_of_its_own(tmp_path):
    run, seen = make(tmp_path, num_epochs=2), []
    run.objective = lambda model, encoder, x: (seen.append(x.clone()), elbo_analytic_kl(model, x, encoder))[1]
    orders = []
    draw = run._draw_epoch
    run._draw_epoch = lambda: (draw(), orders.append(run.order.clone()))
    advance(run)
    assert [len(x) for x in seen] == [7, 7, 7, 2] * 2
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert not torch.equal(orders[0], orders[1]) and orders[0].sort().values.tolist() == list(range(23))
    assert ((first == 0) | (first == 1)).all()
    in_order = [pixels[order.argsort()] for pixels, order in ((first, orders[0]), (second, orders[1]))]
    assert not torch.equal(*in_order)
    sure = (run.x == 0) | (run.x == 1)
    assert all(torch.equal(pixels[sure], run.x[sure]) for pixels in in_order)


def test_the_pixels_of_an_epoch_are_those_that_dynamic_draws(tmp_path):
    run = make(tmp_path)
    torch.manual_seed(4)
    run._draw_epoch()
    torch.manual_seed(4)
    order = torch.randperm(23)
    assert torch.equal(run.images, datasets.dynamic(run.x[order]))


@pytest.mark.parametrize("name", ["elbo", "iwae", "dreg"])
def test_every_objective_is_climbed(tmp_path, name):
    result = advance(make(tmp_path, objective=name, num_samples=3, num_epochs=200, learning_rate=0.03))
    bound = result["history"]["bound"]
    assert sum(bound[-10:]) / 10 > sum(bound[:10]) / 10 + 1


def test_the_history_has_a_row_for_each_epoch_and_a_validation_at_some(tmp_path):
    history = advance(make(tmp_path, num_epochs=5))["history"]
    assert history["epoch"] == [1.0, 2.0, 3.0, 4.0, 5.0] and history["step"] == [4, 8, 12, 16, 20]
    assert [value is not None for value in history["validation"]] == [False, True, False, True, True]
    assert sorted(history["seconds"]) == history["seconds"]


def test_the_bound_in_the_history_is_the_mean_over_images_whatever_the_batches(tmp_path):
    for size in (7, 23):
        run = begin(settings(batch_size=size, num_epochs=1), tmp_path / f"run-{size}")
        run.objective = lambda model, encoder, x: (
            model.likelihood(torch.zeros(1, len(x), 2)).log_prob(x)[0] * 0 + x[:, 9]
        )
        run.images = run.images.double()
        history = advance(run)["history"]
        assert history["bound"][0] == pytest.approx(run.images[:, 9].mean().item(), abs=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_the_learning_rates_are_constant_and_then_fall_to_a_fiftieth(tmp_path, optimizer):
    rates, run = [], make(tmp_path, num_epochs=5, optimizer=optimizer, learning_rate=0.02)
    step = run.optimizers[-1].step
    run.optimizers[-1].step = lambda: (rates.append([group["lr"] for group in run.groups]), step())
    advance(run)
    full = {"adam": [0.02], "muon": [0.02, 0.002]}[optimizer]
    for number, rate in enumerate(full):
        assert [row[number] for row in rates] == pytest.approx([rate * decay(step / 20) for step in range(20)])
    assert rates[4] == full and rates[5][0] < 0.02 and 0.0004 < rates[-1][0] < 0.0006


@pytest.mark.parametrize("done", [0, 1, 4, 6])
def test_a_run_with_muon_that_was_stopped_comes_to_the_same_numbers(tmp_path, done):
    whole = advance(begin(settings(optimizer="muon", learning_rate=0.02), tmp_path / "whole"))
    stopped = begin(settings(optimizer="muon", learning_rate=0.02), tmp_path / "stopped")
    with pytest.raises(Stopped):
        advance(stopped, stop=lambda: stopped.at.step > done)
    run = restore(tmp_path / "stopped")
    assert run.at.step == done + 1 and any("momentum_buffer" in run.moments(p) for p in run.named.values())
    result = advance(run)
    for key in ("parameters_sha256", "averaged_sha256"):
        assert result[key] == whole[key]
    other = advance(begin(settings(learning_rate=0.02), tmp_path / "adam"))
    assert other["parameters_sha256"] != whole["parameters_sha256"]


def test_without_validation_images_a_run_uses_them_all_and_says_no_validation(tmp_path, capsys):
    folder = str(tmp_path / "run")
    data = ["--data", "digits", "--num-validation", "0", "--epochs", "1", "--hidden-dims", "4"]
    assert cli.main(["train", folder, *data]) == 0
    told = capsys.readouterr()
    assert ", validation" not in told.out + told.err
    result = json.loads((tmp_path / "run" / runs.RESULT).read_text())
    assert result["steps"] == 15 and result["history"]["validation"] == [None]  # 1,437 images in batches of 100


def test_averages_follow_the_parameters_at_first_and_lag_behind_later(tmp_path):
    run = make(tmp_path, num_epochs=100, learning_rate=0.02)
    with runs.own_random_state(run.device):
        run.wake()
        parameters = []
        while not run.finished:
            run.forward()
            parameters.append(run.named["encoder.network.0.weight"].detach().clone())
            if run.at.step == 9:
                assert torch.equal(run.averaged["encoder.network.0.weight"], parameters[-1])
    expected = parameters[9].clone()
    for step in range(20, 401, 10):  # by hand: a memory of a tenth of the steps, in units of ten steps
        expected += (parameters[step - 1] - expected) / max(1.0, step / 100)
    torch.testing.assert_close(run.averaged["encoder.network.0.weight"].detach(), expected)
    assert not torch.equal(expected, parameters[-1])


def test_validation_uses_the_averages_and_the_same_random_numbers_and_takes_none(tmp_path):
    run = make(tmp_path)
    before = torch.get_rng_state()
    value = run.validate()
    assert run.validate() == value and torch.equal(torch.get_rng_state(), before)
    run.named["model.decoder.network.2.bias"].data += 1.0
    assert run.validate() == value
    run.averaged["model.decoder.network.2.bias"].data += 1.0
    assert run.validate() != value


def test_a_time_limit_ends_a_run_and_brings_the_learning_rate_down(tmp_path, monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(runs.time, "monotonic", lambda: float(next(clock)))
    run = begin(settings(num_epochs=None, time_limit=37.0), tmp_path / "run")
    result = advance(run, save_every=1e9)
    assert 37 <= result["seconds"] < 40 and result["steps"] > 10
    assert result["history"]["validation"][-1] is not None
    assert 0 < result["history"]["epoch"][-1] - int(result["history"]["epoch"][-1]) < 1  # in the middle of an epoch
    assert run.groups[0]["lr"] < 4e-5
    assert advance(restore(tmp_path / "run"))["steps"] == result["steps"]


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    first = advance(make(tmp_path))
    os.unlink(tmp_path / "run" / runs.RESULT)
    assert advance(restore(tmp_path / "run")) == first


def test_gradients_that_are_not_finite_stop_the_run_before_the_step(tmp_path):
    run = make(tmp_path)
    bias = run.named["model.decoder.network.2.bias"]
    run.objective = lambda model, encoder, x: (bias - bias.detach()).abs().sqrt().sum() + 0 * x[:, 0]
    before = runs.fingerprint(run.named)
    with pytest.raises(NonFiniteError, match=r"gradient of model\.decoder\.network\.2\.bias .* in step 1 \(epoch 1\)"):
        advance(run)
    assert runs.fingerprint(run.named) == before


def test_progress_is_told_with_the_bound_and_the_time_left(tmp_path, capsys):
    said = []
    advance(make(tmp_path), progress=True, say=said.append)
    assert len(said) == 2 and said[0].startswith("epoch 2, step 8: bound -") and said[0].endswith(" left")
    assert "nats" in capsys.readouterr().err


# begin and restore


def test_a_folder_with_a_run_is_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(FileExistsError, match=r"run: holds a run already \(checkpoint\.lvm\)"):
        make(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written \(.*\)"):
        begin(settings(), tmp_path / "file" / "run")


def test_a_read_only_folder_is_an_error_at_the_start_also_when_a_run_goes_on(tmp_path, monkeypatch):
    make(tmp_path)

    def fails(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoints.tempfile, "mkstemp", fails)
    for start in (lambda: begin(settings(), tmp_path / "other"), lambda: restore(tmp_path / "run")):
        with pytest.raises(CheckpointError, match=r"bytes cannot be written \(Permission denied\)"):
            start()


def test_other_settings_are_refused_with_the_differences(tmp_path):
    make(tmp_path)
    with pytest.raises(SettingsError, match=r"other settings: z_dim is 2 there, not 3; seed is 0 there, not 8$"):
        restore(tmp_path / "run", given={"z_dim": 3, "objective": "elbo", "seed": 8})
    assert restore(tmp_path / "run", given={"z_dim": 2}).settings.z_dim == 2


def test_other_training_images_are_refused(tmp_path, monkeypatch):
    make(tmp_path)
    other = dataclasses.replace(runs.SOURCES["tiny"], images=lambda split, n: 0.9 * IMAGES[split])
    monkeypatch.setitem(runs.SOURCES, "tiny", other)
    with pytest.raises(CheckpointError, match=r"checkpoint\.lvm: was made from other training images"):
        restore(tmp_path / "run")


def changed(path, change):
    """Write a checkpoint again with something in it changed."""
    content = checkpoints.load(path)
    change(content)
    checkpoints.save(path, content)


CHANGES = {
    "no random state": (lambda c: c.pop("random"), r"lacks random$"),
    "a setting less": (lambda c: c["settings"].pop("seed"), "has settings that this lvmlib does not know"),
    "a setting more": (lambda c: c["settings"].update(beta=2.0), "has settings that this lvmlib does not know .*beta"),
    "another size": (
        lambda c: c["settings"].update(z_dim=3),
        r"parameters of other networks: model\.decoder\.network\.0\.weight is \(6, 2\) .* should be \(6, 3\) .*; ",
    ),
    "an average less": (
        lambda c: c["averaged"].pop("encoder.network.0.bias"),
        r"averaged of other networks: encoder\.network\.0\.bias is missing and should be \(6,\)",
    ),
    "a parameter more": (
        lambda c: c["parameters"].update(extra=torch.ones(2)),
        r"parameters of other networks: extra is \(2,\) torch\.float32 and should be missing",
    ),
    "a moment less": (
        lambda c: c["moments"]["encoder.network.0.bias"].pop("exp_avg"),
        r"moments of other networks: encoder\.network\.0\.bias\.exp_avg is missing",
    ),
    "float64": (
        lambda c: c["parameters"].update({name: value.double() for name, value in c["parameters"].items()}),
        r"parameters of other networks: .* is \(6, 2\) torch\.float64 and should be \(6, 2\) torch\.float32",
    ),
    "another order": (lambda c: c.update(order=c["order"].flip(0)), "this torch shuffles the images in another order"),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_of_something_else_is_refused_with_the_first_differences(tmp_path, change, message):
    run = make(tmp_path)
    with pytest.raises(runs.Stopped):
        advance(run, stop=lambda: run.at.step == 2)
    changed(tmp_path / "run" / runs.CHECKPOINT, change)
    with pytest.raises(CheckpointError, match=rf"checkpoint\.lvm: {message}"):
        advance(restore(tmp_path / "run"))


def test_a_damaged_checkpoint_is_gone_back_from_only_if_asked_and_the_run_ends_the_same(tmp_path):
    whole = advance(make(tmp_path))
    run = begin(settings(), tmp_path / "other")
    with pytest.raises(runs.Stopped):
        advance(run, save_every=0.0, stop=lambda: run.at.step == 9)
    path = tmp_path / "other" / runs.CHECKPOINT
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="is not complete.*--fall-back uses the one before it"):
        restore(tmp_path / "other")
    run = restore(tmp_path / "other", fall_back=True)
    assert run.at.step == 8
    assert advance(run)["parameters_sha256"] == whole["parameters_sha256"]


def test_a_warm_start_begins_with_the_averages_of_the_other_run(tmp_path):
    advance(make(tmp_path, num_epochs=20))
    content = checkpoints.load(tmp_path / "run" / runs.CHECKPOINT)
    checkpoints.save(tmp_path / "kept.lvm", {name: content[name] for name in ("settings", "averaged")})
    for source in (tmp_path / "run", tmp_path / "run" / runs.CHECKPOINT, tmp_path / "kept.lvm"):
        run = begin(settings(objective="iwae", num_samples=4), tmp_path / "warm" / source.name, init_from=source)
        assert runs.fingerprint(run.named) == runs.fingerprint(content["averaged"]) == run.settings.start
        assert runs.fingerprint(run.averaged) == run.settings.start
        assert run.content()["moments"] == {} and run.at.step == 0


def test_a_warm_start_from_other_networks_is_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.lvm: averaged of other networks: .* should be \(6, 3\)"):
        begin(settings(z_dim=3), tmp_path / "warm", init_from=tmp_path / "run")
    with pytest.raises(CheckpointError, match="there is no such file"):
        begin(settings(), tmp_path / "warm", init_from=tmp_path / "nothing")
    checkpoints.save(tmp_path / "empty.lvm", {"settings": {}})
    with pytest.raises(CheckpointError, match=r"empty\.lvm: lacks averaged"):
        begin(settings(), tmp_path / "warm", init_from=tmp_path / "empty.lvm")
    assert not (tmp_path / "warm" / runs.CHECKPOINT).exists()


def test_an_untrained_decoder_gives_the_mean_image(tmp_path):
    run = make(tmp_path)
    shown = run.model.decoder.network[-1].bias.sigmoid()
    torch.testing.assert_close(shown.detach(), run.x.mean(0).clamp(0.001, 0.999))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"data": "minst"}, r"data must be digits or mnist or tiny, got 'minst'; did you mean mnist\?"),
        ({"objective": "ELBO"}, r"objective must be elbo or iwae or dreg, got 'ELBO'; did you mean elbo\?"),
        ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
        ({"num_epochs": 0}, "num_epochs must be at least 1, got 0"),
        ({"hidden_dims": (6, 0)}, "hidden_dims must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be finite and above 0, got nan"),
        ({"time_limit": 5.0}, "either num_epochs or time_limit must be given"),
        ({"num_epochs": None, "time_limit": -5.0}, "time_limit must be finite and above 0"),
    ],
)  # fmt: skip
def test_settings_that_are_not_allowed_are_refused(given, message):
    with pytest.raises(SettingsError, match=message):
        settings(**given)


def test_batches_larger_than_the_data_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="batch_size must be at most 23, the training images, got 24"):
        make(tmp_path, batch_size=24)


def test_training_validation_and_test_images_of_the_digits_do_not_overlap():
    parts = [runs.SOURCES["digits"].images(split, 200) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1237, 200, 360]
    assert torch.equal(torch.cat(parts[:2]), datasets.digits("train").x)


def test_the_first_checkpoint_is_there_before_the_first_step(tmp_path):
    run = make(tmp_path)
    assert isinstance(run, Run)
    assert checkpoints.load(tmp_path / "run" / runs.CHECKPOINT)["at"]["step"] == 0
