"""Tests of the scan of the built pages: each check finds its fault on a small page and passes the page without it."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "scan_html.py"


def load():
    """Import the script: the folder tools is no package."""
    spec = importlib.util.spec_from_file_location("scan_html", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scan_html"] = module
    spec.loader.exec_module(module)
    return module


scan_html = load()


@pytest.fixture
def page(tmp_path):
    """Make a page from the inside of its article."""

    def make(body, head=""):
        path = tmp_path / "page.html"
        path.write_text(f"<html><head>{head}</head><body><article>{body}</article></body></html>")
        return scan_html.HtmlPage(path, path.read_text())

    scan_html.read_page.cache_clear()
    return make


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ('<script src="https://cdn.org/a.js"></script>', ""),
        ('<script src="//cdn.org/a.js"></script>', ""),
        ('<link rel="stylesheet" href="https://cdn.org/a.css">', ""),
        ('<link rel="preconnect" href="https://cdn.org">', ""),
        ('<link rel="preload" as="font" href="https://cdn.org/a.woff2">', ""),
        ("<style>@import 'https://cdn.org/a.css';</style>", ""),
        ("<style>p { background: url(https://cdn.org/a.png) }</style>", ""),
        ("", '<img src="https://cdn.org/a.png" alt="x">'),
        ("", '<img srcset="a.png 1x, https://cdn.org/b.png 2x" alt="x">'),
        ("", '<iframe src="https://cdn.org/"></iframe>'),
        ("", '<p style="background: url(//cdn.org/a.png)">x</p>'),
        ("", "<script>importScripts('https://cdn.org/a.js')</script>"),
        ("", "<script type='module'>import x from 'https://cdn.org/a.mjs'</script>"),
        ("", "<script>const where = 'https://cdn.org/thebe/index.js';</script>"),
        ("", "<script>s.src = 'https://cdn.org/thebe';</script>"),
        ('<meta http-equiv="refresh" content="0; url=https://elsewhere.org">', ""),
    ],
)
def test_a_third_party_resource_is_found(page, tmp_path, head, body):
    assert scan_html.check_third_party(page(body, head), tmp_path)


def test_a_third_party_address_in_a_style_sheet_of_the_book_is_found(page, tmp_path):
    (tmp_path / "a.css").write_text("@font-face { src: url('https://fonts.org/a.woff2') }")
    found = scan_html.check_third_party(page("", '<link rel="stylesheet" href="a.css?digest=1">'), tmp_path)
    assert found == ["the style sheet a.css loads https://fonts.org/a.woff2"]


def test_links_to_the_web_and_own_resources_are_no_third_party_requests(page, tmp_path):
    (tmp_path / "a.js").write_text("// see https://example.org")
    head = '<link rel="canonical" href="https://example.org/"><script src="a.js"></script>'
    body = '<a href="https://arxiv.org/abs/1">x</a><img src="data:image/png;base64,AA" alt="x">'
    assert scan_html.check_third_party(page(body, head), tmp_path) == []


@pytest.mark.parametrize("address", ["gone.html", "#gone", "other.html#gone", "sub/gone.ipynb", "/gone.html"])
def test_a_broken_link_is_found(page, tmp_path, address):
    (tmp_path / "other.html").write_text("<p id='there'>x</p>")
    assert scan_html.check_links(page(f"<a href='{address}'>x</a>"), tmp_path)


@pytest.mark.parametrize(
    "address", ["", "#", "#here", "other.html#there", "other.html?x=1#there", "/other.html", "https://x.org"]
)
def test_a_link_that_leads_somewhere_passes(page, tmp_path, address):
    (tmp_path / "other.html").write_text("<p id='there'>x</p>")
    assert scan_html.check_links(page(f"<p id='here'><a href='{address}'>x</a></p>"), tmp_path) == []


def test_a_missing_picture_or_script_is_found(page, tmp_path):
    found = scan_html.check_links(page('<img src="a.png" alt="x"><script src="b.js"></script>'), tmp_path)
    assert len(found) == 2


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("OWNER/name/blob/v1/book/01-a.ipynb", True),
        ("OWNER/name/blob/v1/book/01-b.ipynb", False),
        ("OWNER/name/blob/v1/book/page.md", False),
        ("ELSE/name/blob/v1/book/01-a.ipynb", False),
        ("OWNER/name", False),
    ],
)
def test_a_colab_button_must_lead_to_a_notebook_of_the_book(page, tmp_path, path, good):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "01-a.ipynb").write_text("{}")
    (tmp_path / "book" / "page.md").write_text("x")
    button = page(f'<a href="https://colab.research.google.com/github/{path}">Colab</a>')
    found = scan_html.check_colab(button, "https://github.com/OWNER/name", tmp_path)
    assert (found == []) is good


@pytest.mark.parametrize(
    ("image", "good"),
    [
        ('<img src="a.png" alt="Two curves that meet">', True),
        ('<img src="a.png" alt="" role="presentation">', True),
        ('<a href="#"><img src="a.png" alt=""> The book</a>', True),
        ('<a href="#"><img src="a.png" alt=""></a>', False),
        ('<img src="a.png">', False),
        ('<img src="a.png" alt="">', False),
        ('<img src="a.png" alt="../_images/cbd69c2d1f9a6cf094aebd71f6fbe57f.png">', False),
        ('<img src="a.png" alt="_images/a.png">', False),
    ],
)
def test_an_image_needs_words(page, image, good):
    assert (scan_html.check_alt(page(image)) == []) is good


@pytest.mark.parametrize(
    ("display", "good"),
    [
        (r"\[a = b \tag{1.1}\]", True),
        (r"\begin{align*} a &= b \tag{1.1} \\ c &= d \end{align*}", True),
        (r"\begin{equation*}\begin{aligned} a \\ b \end{aligned}\tag{1.2}\end{equation*}", True),
        (r"\[\begin{split} a \tag{1.1} \\ b \end{split}\]", False),
        (r"\[\begin{align} a \end{align}\]", False),
        (r"\[\begin{align*} a &= b \tag{1.1} \\ c &= d \end{align*}\]", True),
        (r"\[\begin{split} a \]", False),
        (r"\[\newcommand{\x}{1} \x\]", False),
    ],
)
def test_a_display_that_renders_red_is_found(page, display, good):
    assert (scan_html.check_math(page(f'<div class="math">{display}</div>')) == []) is good


def test_an_error_marker_is_found(page):
    assert scan_html.check_math(page('<span class="problematic">x</span>'))


@pytest.mark.parametrize(
    "text", ["cost $$ x", "see {ref}` x", "see [](#eq-1-1)", ":::{note}", r"so \tag{1.1}", "**Note", "```"]
)
def test_markdown_shown_as_typed_is_found(page, text):
    assert scan_html.check_leftovers(page(f"<p>{text}</p>"))


@pytest.mark.parametrize(
    "html", ["<pre>$$ x</pre>", "<code>{ref}`x`</code>", '<div class="math">\\tag{1}</div>', "<p>2 * 3</p>"]
)
def test_markdown_inside_code_and_mathematics_is_fine(page, html):
    assert scan_html.check_leftovers(page(html)) == []


def save(path, pixels):
    """Write an image and return its path."""
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


def test_a_picture_with_content_passes(tmp_path):
    pixels = np.full((50, 50, 3), 255)
    pixels[10:30, 10:30] = 0
    assert scan_html.picture_problem(save(tmp_path / "a.png", pixels)) is None


@pytest.mark.parametrize("corner", [255, 0])
def test_a_picture_of_one_colour_or_almost_is_found(tmp_path, corner):
    pixels = np.full((50, 50, 3), 255)
    pixels[0, 0] = corner
    assert "of one colour" in scan_html.picture_problem(save(tmp_path / "a.png", pixels))


def test_a_transparent_picture_is_of_one_colour(tmp_path):
    pixels = np.zeros((50, 50, 4))
    pixels[:25, :, 0] = 200
    assert "of one colour" in scan_html.picture_problem(save(tmp_path / "a.png", pixels))


def test_a_missing_broken_or_empty_picture_is_found(tmp_path):
    assert "missing" in scan_html.picture_problem(tmp_path / "gone.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "cannot be read" in scan_html.picture_problem(tmp_path / "broken.png")
    (tmp_path / "empty.svg").write_text("<svg></svg>")
    assert "0 drawn" in scan_html.picture_problem(tmp_path / "empty.svg")


ALT = "A line that rises"


def write_notebook(path, count=None, outputs=()):
    """Write a notebook with one figure cell, executed or not."""
    metadata = {"mystnb": {"image": {"alt": ALT}, "figure": {"caption": "Figure 1.1. A line."}}}
    cell = {
        "cell_type": "code",
        "metadata": metadata,
        "source": ["draw()"],
        "execution_count": count,
        "outputs": list(outputs),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": [cell]}))
    return path


FIGURE = '<figure><img src="a.png" alt="A line that rises"><figcaption>Figure 1.1. A line.</figcaption></figure>'


def test_a_figure_is_held_against_its_cell(page, tmp_path):
    notebook = write_notebook(tmp_path / "01.ipynb")
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20, 3))
    save(tmp_path / "a.png", pixels)
    assert scan_html.check_figures(page(FIGURE), notebook, tmp_path) == ([], 1)
    assert scan_html.check_figures(page(""), notebook, tmp_path)[0] == ["Figure 1.1 is not on the page"]
    other = FIGURE.replace("Figure 1.1.", "Figure 1.2.")
    assert "caption" in scan_html.check_figures(page(other), notebook, tmp_path)[0][0]
    save(tmp_path / "a.png", np.full((20, 20, 3), 9))
    assert "one colour" in scan_html.check_figures(page(FIGURE), notebook, tmp_path)[0][0]


def test_figures_of_one_page_may_not_weigh_too_much(page, tmp_path, monkeypatch):
    monkeypatch.setattr(scan_html, "FIGURE_BYTES", 100)
    save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (20, 20, 3)))
    assert "weigh" in scan_html.check_figures(page(FIGURE), write_notebook(tmp_path / "01.ipynb"), tmp_path)[0][0]


CHART = json.dumps(
    {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.4.1.json",
        "params": [{"name": "m", "value": 0, "bind": {"input": "range", "min": 0, "max": 1, "name": "mean m"}}],
    }
)
SLIDERS = (
    f'<figure class="lvm-widget"><img src="a.svg" alt="{ALT}"><script type="application/json">{CHART}</script>'
    "<figcaption>Figure 1.1. A line.</figcaption></figure>"
)
LOADER = '<script src="_static/lvmwidgets.js?v=1"></script>'


@pytest.fixture
def library(tmp_path):
    """The library that draws charts."""
    path = tmp_path / "_static" / "vega-bundle.js"
    path.parent.mkdir()
    path.write_text("window.vegaEmbed = 1;")
    return path


def test_a_figure_with_sliders_passes(page, library):
    assert scan_html.check_widgets(page(SLIDERS, LOADER)) == []
    assert scan_html.check_widgets(page(FIGURE)) == []


@pytest.mark.parametrize(
    ("head", "old", "new", "message"),
    [
        ("", "", "", "does not load lvmwidgets.js"),
        (LOADER, f' alt="{ALT}"', "", "no picture with an alt text"),
        (LOADER, f'<img src="a.svg" alt="{ALT}">', "", "no picture with an alt text"),
        (LOADER, "Figure 1.1. ", "", "the caption"),
        (LOADER, "<figcaption>Figure 1.1. A line.</figcaption>", "", "the caption"),
        (LOADER, CHART, CHART[:-1], "is not JSON"),
        (LOADER, CHART, "{}", "is not Vega-Lite"),
        (LOADER, "vega-lite", "vega", "is not Vega-Lite"),
        (LOADER, '"range"', '"text"', "no slider"),
        (LOADER, '"name": "mean m"', '"name": ""', "without a label"),
        (LOADER, f'<script type="application/json">{CHART}</script>', "", "no chart"),
        (LOADER, SLIDERS, "", "but has no figure with sliders"),
    ],
)
def test_what_a_figure_with_sliders_lacks_is_found(page, library, head, old, new, message):
    assert old in SLIDERS
    (problem,) = scan_html.check_widgets(page(SLIDERS.replace(old, new), head))
    assert message in problem


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("another script")])
def test_a_missing_library_is_found(page, library, spoil):
    spoil(library)
    assert "vega-bundle.js" in scan_html.check_widgets(page(SLIDERS, LOADER))[0]


def test_a_figure_that_lost_its_sliders_is_found(page, tmp_path):
    notebook = write_notebook(tmp_path / "01.ipynb")
    notebook.write_text(notebook.read_text().replace("draw()", "widgets.two_divergences(1.5, 0.5)"))
    (tmp_path / "a.svg").write_text("<svg>" + "<path/>" * 9 + "</svg>")
    assert scan_html.check_figures(page(SLIDERS), notebook, tmp_path) == ([], 1)
    lost = SLIDERS.replace(' class="lvm-widget"', "")
    assert scan_html.check_figures(page(lost), notebook, tmp_path)[0] == ["Figure 1.1 has lost its sliders"]


CELL = '<div class="cell"><div class="cell_output">x</div></div>'
STREAM = {"output_type": "stream", "name": "stdout", "text": ["x"]}
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "planted"}


@pytest.mark.parametrize(
    ("body", "count", "outputs", "message"),
    [
        (CELL, 1, [STREAM], None),
        ("", 1, [STREAM], "shows 0 code cells"),
        (CELL, None, [STREAM], "was not run"),
        (CELL, 1, [ERROR], "raised ValueError: planted"),
        ('<div class="cell"></div>', 1, [STREAM], "the output of 0 code cells"),
    ],
)
def test_a_cell_that_was_not_run_is_found(page, tmp_path, body, count, outputs, message):
    notebook = write_notebook(tmp_path / "01.ipynb")
    write_notebook(tmp_path / "cache" / "executed" / "hash" / "base.ipynb", count, outputs)
    found = scan_html.check_executed(page(body), notebook, tmp_path / "cache")
    assert found == [] if message is None else any(message in problem for problem in found)


def test_a_notebook_that_was_never_run_is_found(page, tmp_path):
    found = scan_html.check_executed(page(CELL), write_notebook(tmp_path / "01.ipynb"), tmp_path / "cache")
    assert found == ["the execution cache has no run of this notebook's code"]


def test_page_weight_counts_the_page_its_styles_and_its_scripts(page, tmp_path):
    (tmp_path / "a.woff2").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "a.css").write_text("p { src: url(a.woff2) }")
    bare = scan_html.page_weight(page(""), tmp_path)
    styled = scan_html.page_weight(page("", '<link rel="stylesheet" href="a.css">'), tmp_path)
    assert 1024 < styled - bare < 1200


def test_toc_files_lists_nested_documents():
    toc = {"root": "a", "parts": [{"chapters": [{"file": "b", "sections": [{"file": "c.md"}]}]}]}
    assert scan_html.toc_files(toc) == ["a", "b", "c.md"]


def test_a_page_of_the_contents_that_was_not_built_is_found(tmp_path):
    (tmp_path / "_config.yml").write_text("repository:\n  url: https://github.com/OWNER/name\n")
    (tmp_path / "_toc.yml").write_text("root: book/index\n")
    html = tmp_path / "_build" / "html"
    (html / "reports").mkdir(parents=True)
    (html / "reports" / "a.err.log").write_text("x")
    problems, _, _ = scan_html.scan(html, tmp_path)
    assert any("no such page" in problem for problem in problems)
    assert any("error report" in problem for problem in problems)
