"""The README's example runs and says what it claims."""

import pathlib
import re

import torch

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def test_the_example_runs_and_its_estimate_is_near_the_truth(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    with torch.random.fork_rng(devices=[]):
        exec(compile(code, "README.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) >= 3
    error = names["log_mean_exp"](names["log_w"]) - names["exact_log_marginal"](names["model"], names["x"])
    assert error.abs().max() < 0.5
