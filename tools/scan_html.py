"""Look through the built pages for what a build lets pass silently.

Usage: python tools/scan_html.py [HTML_FOLDER]

Each check is a small function that takes a page (or its text) and returns sentences that say what is wrong.
"""

import gzip
import json
import re
import sys
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import yaml
from bs4 import BeautifulSoup, Comment
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PAGE_BYTES = 1_000_000  # compressed html, css, js and fonts of a first load, without figures
FIGURE_BYTES = 1_000_000  # all figures of one page
DIFFERENT_PIXELS = 0.01  # a figure has at least this share of pixels that are not background
# Links that name an address and load nothing.
PASSIVE_RELATIONS = {"canonical", "alternate", "author", "license", "next", "prev", "search", "index", "help", "me"}
# MathJax loads these when a page has mathematics; no style sheet names them.
WIDGET_SCRIPT, WIDGET_LIBRARY = "lvmwidgets.js", "vega-bundle.js"  # as in book/_ext/lvmbook.py
MATH_FONTS = ("Zero", "Main-Regular", "Main-Bold", "Math-Italic", "AMS-Regular", "Calligraphic-Regular")
MATH_FONTS += tuple(f"Size{size}-Regular" for size in (1, 2, 3, 4))
REMOTE = re.compile(r"^\s*(?:[a-z][a-z0-9+.-]*:)?//", flags=re.IGNORECASE)
LOADING_SCRIPT = re.compile(
    r"""(?:importScripts|import|fetch|\$\.getScript|loadScript)\s*\(\s*["'`]((?:https?:)?//[^"'`]+)"""
    r"""|\bfrom\s*["'](https?://[^"']+)"""
    r"""|\.(?:src|href)\s*=\s*["'`]((?:https?:)?//[^"'`]+)"""
    r"""|["'`]((?:https?:)?//[^"'`\s]+\.(?:js|mjs|css|woff2?|ttf))["'`?#]""",
    flags=re.IGNORECASE,
)


@dataclass
class HtmlPage:
    """One built page."""

    path: Path
    text: str

    @property
    def name(self):
        """The file name, for messages."""
        return self.path.name

    @cached_property
    def soup(self):
        """The parsed page."""
        return BeautifulSoup(self.text, "html.parser")

    @cached_property
    def anchors(self):
        """All names that a #fragment can lead to."""
        found = {tag["id"] for tag in self.soup.find_all(id=True)}
        return found | {tag["name"] for tag in self.soup.find_all("a", attrs={"name": True})}

    @cached_property
    def article(self):
        """The part that the author wrote, or the whole page."""
        return self.soup.find("article") or self.soup.find(attrs={"role": "main"}) or self.soup


@cache
def read_page(path):
    """Read a built page once."""
    return HtmlPage(path, path.read_text(encoding="utf-8"))


def is_remote(address):
    """Return whether loading this address asks another host."""
    return bool(REMOTE.match(address)) and not address.strip().lower().startswith("data:")


def css_addresses(css):
    """Return all addresses that a style sheet loads: url(...) and @import."""
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    found = re.findall(r"""url\(\s*["']?([^"')]+)""", css)
    return found + re.findall(r"""@import\s+["']([^"']+)""", css)


def script_addresses(script):
    """Return the addresses of other hosts that a script names in order to load them."""
    return [next(filter(None, groups)) for groups in LOADING_SCRIPT.findall(script)]


def loaded_addresses(page):
    """Return (what, address) for all that the page itself loads."""
    found = []
    for tag in page.soup.find_all(True):
        for attribute in ("src", "poster", "data", "background"):
            if tag.get(attribute) and not (attribute == "data" and tag.name != "object"):
                found.append((tag.name, tag[attribute]))
        for part in (tag.get("srcset") or "").split(","):
            if part.strip():
                found.append((tag.name, part.split()[0]))
        if tag.name == "link" and tag.get("href") and not set(tag.get("rel") or []) <= PASSIVE_RELATIONS:
            found.append(("link", tag["href"]))
        if tag.name in ("use", "image") and (tag.get("href") or tag.get("xlink:href")):
            found.append((tag.name, tag.get("href") or tag.get("xlink:href")))
        if tag.get("style"):
            found += [("style attribute", address) for address in css_addresses(tag["style"])]
        if tag.name == "style":
            found += [("style", address) for address in css_addresses(tag.string or "")]
        if tag.name == "meta" and (tag.get("http-equiv") or "").lower() == "refresh":
            found.append(("meta refresh", re.sub(r"(?i)^.*?url=", "", tag.get("content", ""))))
    return found


def check_third_party(page, html):
    """A page asks no other host for anything: scripts, styles, images, fonts."""
    problems = [f"the {what} loads {address}" for what, address in loaded_addresses(page) if is_remote(address)]
    for tag in page.soup.find_all("script"):
        if not tag.get("src"):
            problems += [f"an inline script loads {address}" for address in script_addresses(tag.string or "")]
    for path in local_resources(page, html):
        if path.suffix == ".css" and path.is_file():
            for address in css_addresses(path.read_text(encoding="utf-8", errors="replace")):
                if is_remote(address):
                    problems.append(f"the style sheet {path.name} loads {address}")
        if path.suffix in (".js", ".mjs") and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            for name in re.findall(r"""importScripts\s*\(\s*["']((?:https?:)?//[^"']+)""", text):
                problems.append(f"the script {path.name} loads {name}")
    return problems


def resolve(page, address, html):
    """Return the file on disk that a local address of this page leads to."""
    path = unquote(urlsplit(address).path)
    if not path:
        return page.path
    target = (html / path.lstrip("/")) if path.startswith("/") else (page.path.parent / path)
    target = target.resolve()
    return target / "index.html" if target.is_dir() else target


def local_resources(page, html):
    """Return the local files that the page loads: style sheets, scripts, preloaded fonts."""
    kinds = {"script", "link"}
    addresses = [address for what, address in loaded_addresses(page) if what in kinds and not is_remote(address)]
    return list(dict.fromkeys(resolve(page, address, html) for address in addresses if not address.startswith("data:")))


def check_links(page, html):
    """Every link inside the book, and every local file that a page loads, is there; every #fragment has its anchor."""
    problems = []
    for tag in page.soup.find_all("a", href=True):
        address = tag["href"].strip()
        if urlsplit(address).scheme or address.startswith("//"):
            continue
        target, fragment = resolve(page, address, html), unquote(urlsplit(address).fragment)
        if not target.is_file():
            problems.append(f"broken link {address}: no file {target.name}")
        elif fragment and target.suffix == ".html" and fragment not in read_page(target).anchors:
            problems.append(f"broken link {address}: {target.name} has no anchor #{fragment}")
    for what, address in loaded_addresses(page):
        own = not is_remote(address) and not urlsplit(address).scheme and not address.startswith("#")
        if own and not resolve(page, address, html).is_file():
            problems.append(f"the {what} loads {address}, which is not there")
    return problems


def check_colab(page, url, root):
    """Every Colab button leads to a notebook of this repository that exists."""
    problems = []
    for tag in page.soup.find_all("a", href=re.compile(r"^https://colab\.")):
        match = re.match(r"https://colab\.research\.google\.com/github/([^/]+/[^/]+)/blob/[^/]+/(.+)$", tag["href"])
        if not match:
            problems.append(f"the Colab link {tag['href']} is not of the form …/github/OWNER/NAME/blob/REF/PATH")
            continue
        if not url.endswith(match[1]):
            problems.append(f"the Colab link {tag['href']} does not lead to {url}")
        if not match[2].endswith(".ipynb") or not (root / match[2]).is_file():
            problems.append(f"the Colab link {tag['href']} leads to no notebook of this repository")
    return problems


def check_alt(page):
    """Every image says in words what it shows; myst-nb writes a hashed file name where the author wrote nothing."""
    problems = []
    for tag in page.soup.find_all("img"):
        alt, source = (tag.get("alt") or "").strip(), tag.get("src", "")
        # An explicit alt="" is right where the words stand beside the image in the same link, as for the logo.
        link = tag.find_parent("a")
        beside = link is not None and link.get_text().strip()
        decorative = tag.get("alt") == "" and (beside or tag.get("role") == "presentation")
        if not alt and not decorative:
            problems.append(f"the image {source} has no alt text")
        elif (
            re.search(r"[0-9a-f]{16,}", alt) or re.search(r"\.(png|svg|jpe?g)$", alt) or ("/" in alt and " " not in alt)
        ):
            problems.append(f"the image {source} has the file name {alt!r} as its alt text")
    return problems


def check_math(page):
    """No display that MathJax shows in red, as far as its source tells; no error marker."""
    problems = []
    for tag in page.soup.find_all(class_="math"):
        text = tag.get_text()
        start = " ".join(text.split())[:60]
        for body in re.findall(
            r"\\begin\{(?:split|aligned|gathered)\}(.*?)\\end\{(?:split|aligned|gathered)\}", text, re.DOTALL
        ):
            if "\\tag" in body:
                problems.append(f"\\tag inside split or aligned is shown in red: {start}")
        if re.search(r"\\begin\{(align|gather|equation|multline)\}", text):
            problems.append(f"an environment without a star numbers itself: {start}")
        if text.count("\\begin{") != text.count("\\end{"):
            problems.append(f"\\begin without \\end: {start}")
        if re.search(r"\\(newcommand|def|require)\b", text):
            problems.append(f"a macro definition: {start}")
    for marker in ("mjx-merror", "MathJax_Error", 'class="problematic"', 'class="system-message"'):
        if marker in page.text:
            problems.append(f"the error marker {marker} is on the page")
    return problems


def check_leftovers(page):
    """No Markdown that was meant to be rendered is shown to the reader as it was typed."""
    soup = BeautifulSoup(str(page.article), "html.parser")
    for tag in soup.find_all(["pre", "code", "script", "style", "textarea", "annotation"]) + soup.find_all(
        class_="math"
    ):
        tag.decompose()
    for comment in soup.find_all(string=lambda string: isinstance(string, Comment)):
        comment.extract()
    text = soup.get_text(" ")
    patterns = {
        "$$": r"\$\$",
        "a role like {ref}": r"\{[a-z][\w:.+-]*\}\s*`",
        "[](#": r"\[[^\]]*\]\(#",
        ":::": r"^\s*:::",
        "```": r"```",
        "\\tag": r"\\tag\{",
        "\\begin{": r"\\begin\{",
        "**": r"\*\*\w",
        "> **": r"^\s*>\s",
    }
    problems = []
    for name, pattern in patterns.items():
        match = re.search(pattern, text, flags=re.MULTILINE)
        if match:
            around = " ".join(text[max(0, match.start() - 30) : match.end() + 40].split())
            problems.append(f"{name} is shown as typed: … {around} …")
    return problems


def picture_problem(path):
    """Say what is wrong with an image file, or return None: it must show something."""
    if not path.is_file() or path.stat().st_size == 0:
        return f"the figure {path.name} is missing"
    if path.suffix == ".svg":
        drawn = len(
            re.findall(r"<(?:path|use|image|rect|circle|line|text|polygon)\b", path.read_text(encoding="utf-8"))
        )
        return None if drawn >= 5 else f"the figure {path.name} has {drawn} drawn elements"
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGBA")).reshape(-1, 4)
    except OSError as error:
        return f"the figure {path.name} cannot be read: {error}"
    return pixels_problem(pixels, path.name)


def pixels_problem(pixels, name):
    """Say whether pixels (n, 4) are all of one colour, or all but a few."""
    flat = np.where(pixels[:, 3:] == 0, 0, pixels).astype(np.uint32) @ np.array(
        [1 << 24, 1 << 16, 1 << 8, 1], dtype=np.uint32
    )
    colours, counts = np.unique(flat, return_counts=True)
    if len(colours) == 1:
        return f"the figure {name} is of one colour"
    share = 1 - counts.max() / counts.sum()
    if share < DIFFERENT_PIXELS:
        return f"the figure {name} is almost of one colour: {share:.2%} of its pixels differ"
    return None


def notebook_cells(path):
    """Return the code cells of a notebook file that a page shows."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    return [cell for cell in code if not {"remove-cell", "remove_cell"} & set(cell["metadata"].get("tags", []))]


def figure_of(cell):
    """Return the metadata of the figure that a cell draws, or None."""
    mystnb = cell["metadata"].get("mystnb", {})
    return mystnb if "figure" in mystnb else None


def check_figures(page, notebook, html):
    """Each figure cell of the notebook has its picture on the page, with its own alt text and caption."""
    expected = [(figure_of(cell), cell) for cell in notebook_cells(notebook) if figure_of(cell)]
    shown = {}
    for tag in page.article.find_all("figure"):
        image = tag.find(["img", "object"])
        caption = tag.find("figcaption")
        if image is not None:
            words = caption.get_text(" ") if caption else ""
            shown[" ".join((image.get("alt") or "").split())] = (image, words, "lvm-widget" in tag.get("class", []))
    problems, weight = [], 0
    for metadata, cell in expected:
        alt = " ".join(str(metadata.get("image", {}).get("alt", "")).split())
        label = str(metadata["figure"].get("caption", "")).split(". ")[0]
        if alt not in shown:
            problems.append(f"{label} is not on the page")
            continue
        image, caption, has_sliders = shown[alt]
        if re.search(r"\bwidgets\.\w+\(", "".join(cell["source"])) and not has_sliders:
            problems.append(f"{label} has lost its sliders")
        if not " ".join(caption.split()).startswith(label):
            problems.append(f"{label} has the caption {caption.strip()[:40]!r}")
        path = resolve(page, image.get("src") or image.get("data") or "", html)
        if (image.get("src") or "").startswith("data:"):
            continue
        problem = picture_problem(path)
        if problem:
            problems.append(f"{label}: {problem}")
        else:
            weight += path.stat().st_size
    if weight > FIGURE_BYTES:
        problems.append(f"the figures weigh {weight:,} bytes, allowed {FIGURE_BYTES:,}")
    return problems, len(expected)


def check_widgets(page):
    """A figure with sliders has its picture, caption and chart, and what draws it; no other page loads any of it."""
    figures = page.article.select("figure.lvm-widget")
    loaders = [tag["src"] for tag in page.soup.find_all("script", src=True) if WIDGET_SCRIPT in tag["src"]]
    if not figures:
        return [f"loads {loader}, but has no figure with sliders" for loader in loaders]
    problems = [] if loaders else [f"has a figure with sliders, but does not load {WIDGET_SCRIPT}"]
    for loader in loaders[:1]:
        library = resolve(page, loader, page.path.parent).parent / WIDGET_LIBRARY
        if not library.is_file() or "vegaEmbed" not in library.read_text(encoding="utf-8"):
            problems.append(f"the library {WIDGET_LIBRARY} of the figures with sliders is missing or is another file")
    return problems + [problem for figure in figures for problem in widget_problems(figure)]


def widget_problems(figure):
    """Say what a figure with sliders lacks."""
    image, caption, chart = figure.find("img"), figure.find("figcaption"), figure.find("script")
    label = " ".join(caption.get_text(" ").split()) if caption else ""
    name, problems = label.split(". ")[0] or "a figure with sliders", []
    if not re.match(r"Figure \d+\.\d+\. \S", label):
        problems.append(f"{name}: the caption of a figure with sliders is {label[:40]!r}")
    if image is None or not (image.get("alt") or "").strip():
        problems.append(f"{name}: no picture with an alt text stands in for the chart")
    problem = chart_problem(chart.string) if chart else "it has no chart"
    return problems + ([f"{name}: {problem}"] if problem else [])


def chart_problem(text):
    """Say what is wrong with the JSON of a chart with sliders, or return None."""
    try:
        chart = json.loads(text or "")
    except ValueError as error:
        return f"its chart is not JSON: {error}"
    if "/vega-lite/" not in chart.get("$schema", ""):
        return "its chart is not Vega-Lite"
    sliders = [param["bind"] for param in chart.get("params", []) if isinstance(param.get("bind"), dict)]
    if not any(bind.get("input") == "range" for bind in sliders) or not all(bind.get("name") for bind in sliders):
        return "its chart has no slider, or one without a label"
    return None


def code_sources(path):
    """Return the sources of all code cells of a notebook file."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def executed_copy(notebook, cache):
    """Return the newest executed copy of a notebook in the execution cache, or None: the one with the same code."""
    wanted = code_sources(notebook)
    copies = sorted(cache.glob("executed/*/base.ipynb"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in copies if code_sources(path) == wanted), None)


def check_executed(page, notebook, cache):
    """Every code cell of the notebook was run without an error and is on the page, with what it showed."""
    shown, problems = len(page.article.select("div.cell")), []
    if shown != len(notebook_cells(notebook)):
        problems.append(f"the page shows {shown} code cells, the notebook has {len(notebook_cells(notebook))}")
    if page.article.select(".traceback"):
        problems.append("a traceback is on the page")
    executed = executed_copy(notebook, cache)
    if executed is None:
        return [*problems, "the execution cache has no run of this notebook's code"]
    with_output = 0
    for number, cell in enumerate(notebook_cells(executed)):
        if cell["execution_count"] is None:
            problems.append(f"code cell {number} was not run")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                problems.append(f"code cell {number} raised {output['ename']}: {output['evalue']}")
        with_output += bool(cell["outputs"])
    outputs = len(page.article.select("div.cell div.cell_output"))
    if outputs != with_output:
        problems.append(f"the page shows the output of {outputs} code cells, {with_output} have one")
    return problems


@cache
def packed_size(path):
    """Return the bytes that travel: fonts and images as they are, text compressed."""
    data = path.read_bytes()
    return len(data) if path.suffix in (".woff", ".woff2", ".png", ".jpg") else len(gzip.compress(data, mtime=0))


def uses_font(page, name):
    """Return whether a page needs a font that its style sheets offer; icon fonts are loaded where an icon is used."""
    icons = {
        "fa-solid": r"\b(fas|fa-solid)\b",
        "fa-regular": r"\b(far|fa-regular)\b",
        "fa-brands": r"\b(fab|fa-brands)\b",
    }
    return all(re.search(pattern, page.text) for start, pattern in icons.items() if name.startswith(start))


def page_weight(page, html):
    """Return the bytes of a first load without figures: page, style sheets, scripts and fonts."""
    files = {page.path, *(path for path in local_resources(page, html) if path.is_file())}
    for sheet in [path for path in files if path.suffix == ".css"]:
        for address in css_addresses(sheet.read_text(encoding="utf-8", errors="replace")):
            path = (sheet.parent / unquote(urlsplit(address).path)).resolve()
            if path.suffix == ".woff2" and path.is_file() and uses_font(page, path.name):
                files.add(path)
    if page.soup.find(class_="math") is not None:
        for name in MATH_FONTS:
            files.update(sorted(html.rglob(f"MathJax_{name}.woff"))[:1])
    fonts_and_text = [path for path in files if path.suffix not in (".png", ".jpg", ".svg", ".ico")]
    return sum(packed_size(path) for path in fonts_and_text)


def toc_files(toc):
    """Return all documents of a table of contents, the root first."""
    if isinstance(toc, dict):
        own = [toc[key] for key in ("root", "file") if key in toc]
        return own + [name for key, value in toc.items() if isinstance(value, list) for name in toc_files(value)]
    return [name for entry in toc for name in toc_files(entry)] if isinstance(toc, list) else []


def strip_suffix(name):
    """Return a document's name without .md or .ipynb."""
    return re.sub(r"\.(md|ipynb|rst)$", "", name)


def scan(html, root=ROOT):
    """Scan a built book; return (problems, lines of the table, counts)."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    documents = [
        strip_suffix(name) for name in toc_files(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")))
    ]
    url = str(config.get("repository", {}).get("url", "")).rstrip("/")
    problems = [f"error report {path.relative_to(html)}" for path in sorted(html.rglob("*.err.log"))]
    if not (html / "index.html").is_file():
        problems.append("index.html: the page that leads to the book is missing")
    rows, links, figures = [], 0, 0
    for document in documents:
        path = html / f"{document}.html"
        if not path.is_file():
            problems.append(f"{document}.html: in _toc.yml, but there is no such page")
            continue
        page, found = read_page(path.resolve()), []
        found += check_links(page, html) + check_third_party(page, html) + check_colab(page, url, root)
        found += check_alt(page) + check_math(page) + check_leftovers(page) + check_widgets(page)
        notebook, drawn = root / f"{document}.ipynb", 0
        if notebook.is_file():
            found += check_executed(page, notebook, html.parent / ".jupyter_cache")
            wrong, drawn = check_figures(page, notebook, html)
            found += wrong
            if not page.soup.find_all("a", href=re.compile(r"^https://colab\.")):
                found.append("no Colab button")
        weight = page_weight(page, html)
        if weight > PAGE_BYTES:
            found.append(f"first load of {weight:,} bytes without figures, allowed {PAGE_BYTES:,}")
        links += len(page.soup.find_all("a", href=True))
        figures += drawn
        rows.append(f"{document:<36} {weight / 1000:8.0f} kB {drawn:4d} figures")
        problems += [f"{document}.html: {problem}" for problem in dict.fromkeys(found)]
    # Pages that Sphinx adds (search, index of names) are no chapters, but readers open them all the same.
    for name in ("index.html", "search.html", "genindex.html"):
        if (html / name).is_file():
            page = read_page((html / name).resolve())
            found = check_links(page, html) + check_third_party(page, html) + check_alt(page)
            problems += [f"{name}: {problem}" for problem in dict.fromkeys(found)]
    return problems, rows, (len(documents), links, figures)


def main(arguments=None):
    """Scan the folder given, or _build/html; return 0 when nothing is wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    html = Path(arguments[0] if arguments else ROOT / "_build" / "html").resolve()
    if not html.is_dir():
        print(f"scan: no folder {html}; build the book first (make book)")
        return 1
    problems, rows, (pages, links, figures) = scan(html)
    print("page, compressed first load without figures")
    print("\n".join(rows))
    for library in html.glob(f"_static/{WIDGET_LIBRARY}"):
        print(f"later, near a figure with sliders: {packed_size(library) / 1000:.0f} kB ({library.name})")
    for problem in problems:
        print(f"scan: {problem}")
    verdict = f"{len(problems)} problems" if problems else "ok"
    print(f"scan: {pages} pages, {links} links, {figures} figures: {verdict}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
