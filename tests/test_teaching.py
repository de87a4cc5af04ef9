"""What serves the pages: shown sources and figures. The checks of exercises are in test_exercises.py."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from lvmlib import log_mean_exp, score
from lvmlib.teaching import plotting
from lvmlib.teaching.source import show_source, source_without_docstring

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_shown_source_has_the_code_and_no_docstring_or_decorator():
    source = source_without_docstring(log_mean_exp)
    assert source.startswith("def log_mean_exp(")
    assert "weights.mean(0)" in source
    assert '"""' not in source and "@checked" not in source


def test_shown_source_still_computes_the_function():
    names = {"Tensor": torch.Tensor, "Float": {}, "torch": torch}
    import lvmlib.weights as module

    names |= vars(module)
    exec(compile(source_without_docstring(log_mean_exp), "shown", "exec"), names)
    log_w = torch.randn(4, 3)
    torch.testing.assert_close(names["log_mean_exp"](log_w), log_mean_exp(log_w))


def test_show_source_makes_one_highlighted_block():
    text = show_source(score, log_mean_exp).data
    assert text.startswith("```python\ndef score(") and text.endswith("\n```") and text.count("```") == 2


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plotting.lines(
            [1, 2, 4], {"a": torch.ones(3), "b": [1, 2, 3]}, markers=True, log="xy", level={"c": 2.0}
        ),
        lambda: plotting.lines([1, 2], {"a": [1, 2]}, band={"a": ([0, 1], [2, 3])}),
        lambda: plotting.scatter({"a": torch.rand(5, 2), "b": torch.rand(2, 2)}, sizes=30),
        lambda: plotting.heatmap(torch.rand(3, 4), colorbar="nats"),
        lambda: plotting.images(torch.rand(7, 64), num_columns=4),
        lambda: plotting.labelled_points(torch.rand(5, 2), torch.arange(5)),
    ],
)
def test_figures_draw_ink_and_leave_matplotlib_settings_alone(figure):
    before = dict(matplotlib.rcParams)
    ax = figure()
    ax.figure.canvas.draw()
    assert np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].std() > 1
    assert dict(matplotlib.rcParams) == before


def test_mosaic_places_images_row_by_row():
    x = torch.zeros(3, 4)
    x[1, 2] = 1.0  # second image, second row, first column
    mosaic = plotting.images(x, num_columns=2).images[0].get_array()
    assert mosaic[2, 4] == 1.0 and (mosaic == 1.0).sum() == 1
