"""Sphinx extension of this book: what keeps the notebooks plain Markdown and the pages free of foreign requests.

* block quotes that begin with a bold "Note.", "Theorem 3.1 (title).", "Solution 3.1." … become admonitions;
* raw anchors `<a id='eq-3-2'></a>` become link targets that Sphinx knows, so that a broken link is a warning;
* a figure with sliders keeps its chart beside its picture, and its page, no other, gets the script that draws it;
* a numbered chapter has the number that its file's name begins with, so that pages, equations and links agree while
  chapters between them are not yet written;
* the directive `verified-equations` shows the data that `python -m tests.equations --write` wrote;
* after the build, MathJax and, for figures with sliders, Vega are put beside the pages, and the pages lose what they do
  not need.
"""

import importlib.util
import json
import pkgutil
import re
import shutil
import struct
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

# First words of a callout -> CSS classes on the page. `tip`, `seealso` … are the theme's: they bring colour and icon.
CALLOUTS = {
    "Note": ["note"],
    "Warning": ["warning"],
    "Theorem": ["theorem"],
    "Lemma": ["theorem"],
    "Proof": ["proof"],
    "Exercise": ["exercise", "tip"],
    "Solution": ["solution", "dropdown"],
    "After this chapter you can": ["goals", "seealso"],
}
CALLOUT = re.compile(rf"({'|'.join(CALLOUTS)})\b")
ANCHOR = re.compile(r"<a id=(['\"])((?:eq|fig)-[\w-]+)\1>(</a>)?")
ANCHOR_IN_SOURCE = re.compile(r"<a id=\\?['\"](eq-[\w-]+)")
FONTAWESOME_SCRIPT = re.compile(r"\s*<script[^>]*scripts/fontawesome\.js[^>]*></script>")
WIDGET = '<script type="application/json" class="lvm-widget-spec">'  # written by lvmlib.teaching.widgets
WIDGET_SCRIPT = "lvmwidgets.js"  # in book/_static; it loads WIDGET_LIBRARY when a reader comes near a chart
WIDGET_LIBRARY = "vega-bundle.js"
SVG_SIZE = re.compile(rb'<svg[^>]*\bwidth="([\d.]+)(?:px)?" height="([\d.]+)(?:px)?"')
IMAGE = re.compile(r'<img (?![^>]*loading=)([^>]*src="([^"]*_images/[^"]+)")')


class Callouts(SphinxTransform):
    """Turn block quotes that begin with a known bold title into admonitions."""

    default_priority = 400

    def apply(self, **kwargs) -> None:
        for quote in list(self.document.findall(nodes.block_quote)):
            first = quote[0] if len(quote) else None
            strong = next((node for node in first or () if node.astext()), None)
            match = CALLOUT.match(strong.astext()) if isinstance(strong, nodes.strong) else None
            if match:
                quote.replace_self(admonition(quote, first, strong, CALLOUTS[match.group(1)]))


def admonition(quote, first, strong, classes: list[str]) -> nodes.admonition:
    """Move the bold words of the paragraph `first` into the title and everything else into the body."""
    title = nodes.title("", "", *strong.children)
    if isinstance(title[-1], nodes.Text):
        title[-1] = nodes.Text(title[-1].rstrip(" .:"))
    del first[: first.index(strong) + 1]
    if first.children and isinstance(first[0], nodes.Text):
        first[0] = nodes.Text(first[0].lstrip())
    body = quote.children if first.astext().strip() else quote.children[1:]
    box = nodes.admonition("", title, *body, classes=list(classes))
    box.source, box.line = quote.source, quote.line
    return box


class Anchors(SphinxTransform):
    """Turn raw anchors of equations and figures into targets that links, here and elsewhere, are checked against."""

    default_priority = 400

    def apply(self, **kwargs) -> None:
        slugs = self.env.metadata[self.env.docname].setdefault("myst_slugs", {})
        for raw in list(self.document.findall(nodes.raw)):
            match = ANCHOR.fullmatch(raw.astext().strip())
            if not match:
                continue
            name, parent = match.group(2), raw.parent
            closing = parent[parent.index(raw) + 1 :][:1]
            if closing and isinstance(closing[0], nodes.raw) and closing[0].astext() == "</a>":
                parent.remove(closing[0])
            target = nodes.target("", "", ids=[name], names=[name])
            raw.replace_self(target)
            self.document.note_explicit_target(target, target)
            slugs[name] = (raw.line or 0, name, name)
            if len(parent) == 1:
                parent["classes"].append("anchor")


class Widgets(SphinxTransform):
    """Join the two outputs of a figure with sliders: its picture, wrapped in a figure by myst-nb, and its chart.

    A cell's output holds its forms side by side, and later one of them is chosen. Here both are wanted: the chart, an
    invisible element, moves out of the output into the figure around it, and the picture is what remains to choose.
    """

    default_priority = 400

    def apply(self, **kwargs) -> None:
        for raw in list(self.document.findall(nodes.raw)):
            if not raw.astext().startswith(WIDGET):
                continue
            form = raw.parent
            output = form.parent
            if not isinstance(output.parent, nodes.figure):
                logger.warning("a figure with sliders needs a caption in the metadata of its cell", location=raw)
                continue
            output.remove(form)
            raw["classes"] = []  # with classes it would be wrapped in a box, which the theme colours
            figure = output.parent
            figure["classes"].append("lvm-widget")
            figure.insert(figure.index(output) + 1, raw)
            self.env.metadata[self.env.docname]["lvm_widgets"] = True


def add_widget_script(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Give the script of the figures with sliders to the pages that have one."""
    if app.env.metadata.get(pagename, {}).get("lvm_widgets"):
        app.add_js_file(WIDGET_SCRIPT, loading_method="defer")


def number_by_file_name(app: Sphinx, env) -> list[str]:
    """Number chapters by the number in their file's name instead of by their place in the contents."""
    for docname, numbers in env.toc_secnumbers.items():
        match = re.match(r"(\d+)-", docname.rpartition("/")[2])
        if not match or not any(numbers.values()):
            continue
        own = int(match.group(1))
        env.toc_secnumbers[docname] = {anchor: (own, *number[1:]) for anchor, number in numbers.items() if number}
        for node in (env.titles[docname], *env.tocs[docname].findall(nodes.reference)):
            if node.get("secnumber"):
                node["secnumber"] = (own, *node["secnumber"][1:])
    return []  # no page needs to be read again


class VerifiedEquations(SphinxDirective):
    """Table of all numbered equations with the check that verifies each."""

    def run(self) -> list[nodes.Node]:
        path = Path(self.env.srcdir, self.config.lvmbook_equations)
        if not path.is_file():
            raise ExtensionError(
                f"verified-equations: {path} is missing. Write it with `make book`, "
                f"or with `python -m tests.equations --write {self.config.lvmbook_equations}`."
            )
        self.env.note_dependency(str(path))
        equations, pages = json.loads(path.read_text("utf-8")), self.pages()
        lines = [
            f"{len(equations)} equations are verified.",
            "",
            "| Equation | Claim | Functions | Check | Residual (tolerance) |",
            "| --- | --- | --- | --- | --- |",
        ]
        return self.parse_text_to_nodes("\n".join(lines + [self.row(equation, pages) for equation in equations]))

    def pages(self) -> dict[str, str]:
        """Find, for each anchor of an equation, the page that holds it."""
        found = {}
        for docname in sorted(self.env.found_docs):
            source = self.env.doc2path(docname)
            for name in ANCHOR_IN_SOURCE.findall(Path(source).read_text("utf-8")):
                found[name] = "/" + Path(source).relative_to(self.env.srcdir).as_posix()
                self.env.note_dependency(source)
        return found

    def row(self, equation: dict, pages: dict[str, str]) -> str:
        name = "eq-" + equation["tag"].replace(".", "-")
        if name not in pages:
            raise ExtensionError(f"verified-equations: no page has the anchor {name} of equation ({equation['tag']}).")
        functions = ", ".join(f"{{py:obj}}`~{defining_name(name)}`" for name in equation["functions"])
        cells = [
            f"[({equation['tag']})]({pages[name]}#{name})",
            equation["claim"],
            functions,
            f"`{equation['test'].removeprefix('tests/')}`",
            f"{equation['residual']:.1e} ({equation['tolerance']:.0e})",
        ]
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def defining_name(name: str) -> str:
    """Return the name under which the API pages list the object, which may be re-exported elsewhere."""
    try:
        thing = pkgutil.resolve_name(name)
    except (AttributeError, ImportError, ValueError) as error:
        raise ExtensionError(f"verified-equations: {name!r} does not exist ({error}).") from None
    thing = getattr(thing, "fget", thing)  # a property knows its name only through its function
    return f"{thing.__module__}.{thing.__qualname__}" if hasattr(thing, "__qualname__") else name


def copy_mathjax(static: Path) -> None:
    """Copy the one MathJax script, its fonts and its small TeX extensions from the installed package."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None:
        raise ExtensionError("The package sphinx-mathjax-offline is missing: pip install -r requirements.txt")
    source = Path(spec.origin).parent / "static" / "mathjax"
    for part in ("tex-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions"):
        copy = shutil.copytree if (source / part).is_dir() else shutil.copy2
        (static / "mathjax" / part).parent.mkdir(parents=True, exist_ok=True)
        copy(source / part, static / "mathjax" / part, **({"dirs_exist_ok": True} if copy is shutil.copytree else {}))


def write_vega(static: Path) -> None:
    """Write Vega, Vega-Lite and Vega-Embed as one script, from the installed package, with their licences."""
    if importlib.util.find_spec("vl_convert") is None:
        raise ExtensionError("The package vl-convert-python is missing: pip install -r requirements.txt")
    import vl_convert

    # In a function of its own, because what a script declares at its top is seen by all others of the page.
    bundle = f"(() => {{{vl_convert.javascript_bundle()}\n}})();\n"
    notice = "/*! Vega, Vega-Lite, Vega-Embed and what they are built on; licences in vega-licences.txt */\n"
    (static / WIDGET_LIBRARY).write_text(notice + bundle, "utf-8")


def lighten(page: Path) -> None:
    """Drop the icon script (the icon fonts suffice); load figures late, with their size known before they come."""

    def image(match: re.Match) -> str:
        head = (page.parent / match.group(2)).read_bytes()[:1000]
        known = None
        if head.startswith(b"\x89PNG"):
            known = struct.unpack(">II", head[16:24])
        elif found := SVG_SIZE.search(head):
            known = (round(float(number)) for number in found.groups())
        size = 'width="{}" height="{}" '.format(*known) if known else ""
        return f'<img loading="lazy" {size}{match.group(1)}'

    old = page.read_text("utf-8")
    new = IMAGE.sub(image, FONTAWESOME_SCRIPT.sub("", old))
    if new != old:
        page.write_text(new, "utf-8")


def finish(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    static = Path(app.outdir, "_static")
    copy_mathjax(static)
    if any(data.get("lvm_widgets") for data in app.env.metadata.values()):
        write_vega(static)
    for page in Path(app.outdir).rglob("*.html"):
        lighten(page)
    for useless in {*static.rglob("*.map"), *static.glob("scripts/fontawesome.js*")}:
        useless.unlink()


def setup(app: Sphinx) -> dict:
    app.add_config_value("lvmbook_equations", "_build/equations.json", "env", [str])
    app.add_transform(Callouts)
    app.add_transform(Anchors)
    app.add_transform(Widgets)
    app.add_directive("verified-equations", VerifiedEquations)
    app.connect("html-page-context", add_widget_script)
    app.connect("env-get-updated", number_by_file_name, priority=900)  # after all that number by place
    app.connect("build-finished", finish, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
