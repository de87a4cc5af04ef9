"""The Sphinx extension of the book, on a small project of its own."""

import json
import re
import struct
import zlib
from io import StringIO
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("myst_nb")
from bs4 import BeautifulSoup
from sphinx.errors import ExtensionError
from sphinx.testing.util import SphinxTestApp
from sphinx.util.docutils import docutils_namespace

ROOT = Path(__file__).resolve().parents[1]

CONF = f"""
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
sys.path.insert(0, {str(ROOT)!r})
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "lvmbook"]
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "dollarmath"]
html_theme = "basic"
root_doc = "one"
nitpicky = True
autodoc_typehints = "none"
lvmbook_equations = "equations.json"
"""

ONE = r"""# One

> **Note.** A note with $x^2$.

> **Warning.** First.
>
> Second.

> **Theorem 3.1 (unbiasedness of $\hat p$).** For every $K$.

> **Proof.** By [(3.2)](#eq-3-2). $\square$

> **Exercise 3.1.** Try.

> **Solution 3.1.** Done.
>
> $$ 1 + 1 = 2 $$

> **After this chapter you can**
>
> 1. estimate,
> 2. doubt.

> **Not a callout.** An ordinary quote.

> An ordinary quote with **Note.** inside.

<a id='eq-3-2'></a>

$$
a = b \tag{3.2}
$$

<a id="fig-3-1"></a> A figure comes.

![a dot](dot.png)
"""
TWO = """# Two

See [(3.2)](one.ipynb#eq-3-2) and [Figure 3.1](one.ipynb#fig-3-1).
"""
TABLE = """# Table

```{verified-equations}
```

```{eval-rst}
.. autofunction:: lvmlib.weights.log_mean_exp
```
"""
ROW = {
    "tag": "3.2",
    "claim": "$p(x|z)$ is a law",
    "functions": ["lvmlib.weights.log_mean_exp"],
    "test": "tests/equations.py::eq_3_2",
    "tolerance": 1e-10,
    "residual": 2.22e-16,
    "seconds": 0.1,
}


def dot() -> bytes:
    """Return a PNG of 3 x 2 white pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0\xff\xff\xff" * 2)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


CHART = '<script type="application/json" class="lvm-widget-spec">{"params":[]}</script>'
PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="20"><path d="M0 0L3 2"/></svg>'
FIGURE = {"image": {"alt": "a line with sliders"}, "figure": {"caption": "Figure 3.2. A line."}}


def widget_cell(metadata: dict) -> nbformat.NotebookNode:
    """Make the executed cell of a figure with sliders."""
    data = {"image/svg+xml": PICTURE, "text/html": CHART, "text/plain": "Widget(m, s)"}
    output = nbformat.v4.new_output("execute_result", data, execution_count=1)
    return nbformat.v4.new_code_cell("draw()", id="b", outputs=[output], execution_count=1, metadata=metadata)


def build(
    folder: Path, one: str = ONE, two: str = TWO, rows: list | None = None, cell: nbformat.NotebookNode | None = None
) -> tuple[dict[str, str], str]:
    """Build the small project, with one more cell on its second page; return its pages and the warnings."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conf.py").write_text(CONF, "utf-8")
    (folder / "dot.png").write_bytes(dot())
    for name, text in (("one", one), ("two", two)):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text, id="a")])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook.cells += [cell] if cell and name == "two" else []
        nbformat.write(notebook, folder / f"{name}.ipynb")
    (folder / "table.md").write_text(TABLE, "utf-8")
    if rows is not None:
        (folder / "equations.json").write_text(json.dumps(rows), "utf-8")
    warnings = StringIO()
    with docutils_namespace():
        app = SphinxTestApp(srcdir=folder, builddir=folder / "_build", warning=warnings)
        try:
            app.build()
        finally:
            app.cleanup()
    pages = {path.stem: path.read_text("utf-8") for path in (folder / "_build" / "html").glob("*.html")}
    told = [line for line in warnings.getvalue().splitlines() if "included in any toctree" not in line]
    return pages, "\n".join(told)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book") / "source"
    pages, warnings = build(folder, rows=[ROW])
    return folder, pages, warnings


def box(page: str, kind: str):
    """Return the first admonition of a class."""
    found = BeautifulSoup(page, "html.parser").select_one(f"div.admonition.{kind}")
    assert found, f"no admonition of class {kind}"
    return found


def test_a_correct_project_builds_without_a_warning(built):
    assert built[2] == ""


@pytest.mark.parametrize(
    ("kind", "title", "text"),
    [
        ("note", "Note", "A note with"),
        ("warning", "Warning", "First."),
        ("proof", "Proof", "By "),
        ("exercise", "Exercise 3.1", "Try."),
        ("solution", "Solution 3.1", "Done."),
        ("goals", "After this chapter you can", "doubt."),
    ],
)
def test_bold_block_quote_becomes_admonition(built, kind, title, text):
    html = box(built[1]["one"], kind)
    assert html.select_one(".admonition-title").text == title
    assert text in html.text
    assert html.strong is None


def test_theorem_keeps_mathematics_in_its_title(built):
    title = re.search(r'<p class="admonition-title">Theorem 3.1.*?</p>', built[1]["one"]).group(0)
    assert r"\(\hat p\)" in title
    assert title.endswith(")</p>"), "the final full stop belongs to the notebook, not to the title"


def test_solution_is_a_drop_down(built):
    assert "dropdown" in box(built[1]["one"], "solution")["class"]


def test_other_block_quotes_stay(built):
    assert built[1]["one"].count("<blockquote>") == 2


def test_anchor_becomes_a_target_and_links_reach_it(built):
    one, two = built[1]["one"], built[1]["two"]
    assert one.count('id="eq-3-2"') == 1
    assert one.count('id="fig-3-1"') == 1
    assert 'href="#eq-3-2"' in one
    assert 'href="one.html#eq-3-2"' in two
    assert 'href="one.html#fig-3-1"' in two


@pytest.mark.parametrize(
    ("one", "two"),
    [(ONE.replace("(#eq-3-2)", "(#eq-3-9)"), TWO), (ONE, TWO.replace("#eq-3-2", "#eq-3-9"))],
    ids=["same page", "other page"],
)
def test_link_to_a_missing_equation_is_a_warning(tmp_path, one, two):
    warnings = build(tmp_path / "source", one, two, [ROW])[1]
    assert "eq-3-9" in warnings


def test_duplicate_anchor_is_a_warning(tmp_path):
    warnings = build(tmp_path / "source", ONE + "\n<a id='eq-3-2'></a>\n", TWO, [ROW])[1]
    assert "eq-3-2" in warnings


def test_table_shows_every_field(built):
    table = re.search(r"<table.*?</table>", built[1]["table"], re.S).group(0)
    assert 'href="one.html#eq-3-2"' in table
    assert r"\(p(x|z)\)" in table
    assert 'href="#lvmlib.weights.log_mean_exp"' in table
    assert "equations.py::eq_3_2" in re.sub(r"<[^>]*>", "", table)
    assert "2.2e-16 (1e-10)" in table


def test_missing_data_say_which_command_writes_them(tmp_path):
    with pytest.raises(ExtensionError, match=r"equations\.json is missing.*make book.*tests\.equations --write"):
        build(tmp_path / "source")


def test_equation_without_anchor_is_refused(tmp_path):
    with pytest.raises(ExtensionError, match=r"no page has the anchor eq-7-1"):
        build(tmp_path / "source", rows=[ROW | {"tag": "7.1"}])


def test_unknown_function_is_refused(tmp_path):
    with pytest.raises(ExtensionError, match=r"lvmlib\.weights\.log_mean_expp.*does not exist"):
        build(tmp_path / "source", rows=[ROW | {"functions": ["lvmlib.weights.log_mean_expp"]}])


def test_figures_load_late_and_reserve_their_room(built):
    image = re.search(r"<img[^>]*dot\.png[^>]*>", built[1]["one"]).group(0)
    assert 'loading="lazy"' in image
    assert 'width="3" height="2"' in image
    assert image.count("loading=") == 1


def test_mathjax_lies_beside_the_pages(built):
    mathjax = built[0] / "_build" / "html" / "_static" / "mathjax"
    assert (mathjax / "tex-chtml.js").is_file()
    assert (mathjax / "output" / "chtml" / "fonts" / "woff-v2" / "MathJax_Main-Regular.woff").is_file()
    assert not (mathjax / "sre").exists(), "only what the pages load is copied"


@pytest.fixture(scope="module")
def widgets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("widgets") / "source"
    pages, warnings = build(folder, rows=[ROW], cell=widget_cell({"mystnb": FIGURE}))
    assert warnings == ""
    return folder / "_build" / "html", pages


def test_figure_with_sliders_keeps_picture_chart_and_caption(widgets):
    html, pages = widgets
    (figure,) = BeautifulSoup(pages["two"], "html.parser").select("figure.lvm-widget")
    assert figure.img["alt"] == "a line with sliders"
    assert (html / figure.img["src"]).read_text("utf-8").strip() == PICTURE
    assert (figure.img["width"], figure.img["height"], figure.img["loading"]) == ("30", "20", "lazy")
    assert figure.figcaption.get_text(" ", strip=True).startswith("Figure 3.2. A line.")
    assert figure.script.string == '{"params":[]}'
    assert "Widget(m, s)" not in pages["two"]


def test_only_a_page_with_such_a_figure_has_their_script(widgets):
    pages = widgets[1]
    (script,) = BeautifulSoup(pages["two"], "html.parser").select('script[src*="_static/lvmwidgets.js"]')
    assert script.has_attr("defer"), "it reads the page, so the page comes first"
    assert "lvmwidgets" not in pages["one"] + pages["table"]


def test_vega_lies_beside_the_pages_that_need_it_and_nowhere_else(widgets, built):
    bundle = (widgets[0] / "_static" / "vega-bundle.js").read_text("utf-8")
    assert "window.vegaEmbed=" in bundle
    assert re.match(r"/\*!.*licences.*\*/\n\(\(\) => \{", bundle), "its names are its own"
    assert not (built[0] / "_build" / "html" / "_static" / "vega-bundle.js").exists()


def test_figure_with_sliders_but_without_caption_is_a_warning(tmp_path):
    warnings = build(tmp_path / "source", rows=[ROW], cell=widget_cell({"mystnb": {"image": FIGURE["image"]}}))[1]
    assert "a figure with sliders needs a caption" in warnings


def test_a_chapter_has_the_number_of_its_file(tmp_path):
    (tmp_path / "conf.py").write_text(CONF.replace('"one"', '"index"'), "utf-8")
    (tmp_path / "index.md").write_text("# Book\n\n```{toctree}\n:numbered:\n\n03-three\n11-eleven\n```\n", "utf-8")
    for name in ("03-three", "11-eleven"):
        (tmp_path / f"{name}.md").write_text(f"# {name}\n\n## Part\n\nText.\n", "utf-8")
    with docutils_namespace():
        app = SphinxTestApp(srcdir=tmp_path, builddir=tmp_path / "_build")
        try:
            app.build()
        finally:
            app.cleanup()
    html = tmp_path / "_build" / "html"
    for name, number in (("03-three", "3"), ("11-eleven", "11")):
        page = BeautifulSoup((html / f"{name}.html").read_text("utf-8"), "html.parser")
        assert page.h1.get_text().startswith(f"{number}. ") and page.h2.get_text().startswith(f"{number}.1. ")
    contents = BeautifulSoup((html / "index.html").read_text("utf-8"), "html.parser").select(".body li.toctree-l1 > a")
    assert [link.get_text() for link in contents] == ["3. 03-three", "11. 11-eleven"]
