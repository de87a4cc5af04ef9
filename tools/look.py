"""Look at the built pages in headless Chromium: light, dark and on a phone. `make look` calls this.

Writes `_build/look/<page>-<light|dark|phone>.png` and says, per page, what a first visit asks for: how many files,
their compressed weight, whether anything is missing or comes from elsewhere, and whether a phone must scroll sideways.

On a page with figures that have sliders, each slider is moved by the arrow keys, as a reader would, and the chart must
follow: from the server and from the disk, light, dark and on a phone; without JavaScript the picture must be there.
Pictures of the figures are `_build/look/<page>-figure-<number>-<…>.png`.
"""

import argparse
import functools
import gzip
import html
import http.server
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from chromium import Browser, Tab

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "_build" / "html"
OUT = ROOT / "_build" / "look"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = 390  # CSS pixels
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-default-apps --hide-scrollbars"
).split()
# Nothing but this machine can be reached: neither by a page nor by the browser on its own account.
FLAGS.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
# A window cannot be as narrow as a phone everywhere, a frame can. The last element tells what was measured in it.
FRAME = """<!doctype html><meta charset="utf-8"><title>phone</title><body style="margin:0">
<iframe id="f" src="{page}" style="border:0;width:{width}px;height:{height}px"></iframe><script>
window.onload = () => setTimeout(() => {{
  const view = document.getElementById("f").contentWindow, root = view.document.documentElement;
  const inBox = e => e && (/auto|scroll|hidden/.test(view.getComputedStyle(e).overflowX) || inBox(e.parentElement));
  const wide = [...root.querySelectorAll("main article *")].filter(
    e => e.getBoundingClientRect().right > {width} + 1 && !inBox(e.parentElement));
  const told = {{
    width: root.scrollWidth,
    height: root.scrollHeight,
    errors: root.querySelectorAll("mjx-merror").length,
    wide: wide.slice(0, 3).map(e => `${{e.tagName.toLowerCase()}}.${{e.className}}`),
    urls: view.performance.getEntriesByType("resource").map(entry => entry.name),
  }};
  const element = document.createElement("pre");
  element.id = "told";
  element.style.display = "none";
  element.textContent = JSON.stringify(told);
  document.body.append(element);
}}, 3000);
</script>"""


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serve the site; `?mode=dark` sets the theme first, `/frame?…` shows a page as narrow as a phone."""

    asked: list[tuple[str, int]] = []

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if url.path == "/frame":
            frame = FRAME.format(page=html.escape(query["page"]), width=query["width"], height=query["height"])
            self.reply(frame)
        elif query.get("mode"):
            script = "".join(f'localStorage.setItem("{key}","{query["mode"]}");' for key in ("mode", "theme"))
            page = Path(self.directory, unquote(url.path).lstrip("/")).read_text("utf-8")
            self.reply(page.replace("<head>", f"<head><script>{script}</script>", 1))
        else:
            super().do_GET()

    def reply(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(text.encode())

    def send_response(self, code, message=None) -> None:
        self.asked.append((urlsplit(self.path).path, int(code)))
        super().send_response(code, message)

    def log_message(self, *args) -> None:
        pass


def browse(browser: str, *arguments: str) -> str:
    """Run the browser in an empty profile and return its output."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [browser, *FLAGS, "--virtual-time-budget=20000", f"--user-data-dir={profile}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=180).stdout


def look(browser: str, base: str, page: str, height: int) -> bool:
    """Take the three pictures of a page and print one line about it; return whether nothing was wrong."""
    name = page.removesuffix(".html").replace("/", "-")
    browse(browser, f"--window-size=1280,{height}", f"--screenshot={OUT / name}-dark.png", f"{base}/{page}?mode=dark")
    Handler.asked.clear()
    browse(browser, f"--window-size=1280,{height}", f"--screenshot={OUT / name}-light.png", f"{base}/{page}?mode=light")
    asked = list(Handler.asked)
    frame = f"{base}/frame?page=/{page}%3Fmode=light&width={PHONE}&height={height}"
    size = f"--window-size={max(PHONE, 500)},{height}"
    browse(browser, size, f"--screenshot={OUT / name}-phone.png", frame)
    told = re.search(r'<pre id="told"[^>]*>(.*?)</pre>', browse(browser, size, "--dump-dom", frame), re.S)
    if told is None:
        print(f"{page}: the phone view did not load", flush=True)
        return False
    told = json.loads(html.unescape(told.group(1)))

    missing = sorted({path for path, code in asked if code >= 400 and path != "/favicon.ico"})
    files = {HTML / unquote(path).lstrip("/") for path, code in asked if code < 400 and "_images" not in path}
    weight = sum(len(gzip.compress(file.read_bytes())) for file in files if file.is_file()) / 1000
    faults = [f"missing {path}" for path in missing]
    faults += [f"from elsewhere {url}" for url in told["urls"] if not url.startswith((base, "data:", "blob:"))]
    if told["width"] > PHONE:
        faults.append(f"a phone scrolls sideways, {told['width']} px of {PHONE}, because of {told['wide']}")
    if told["errors"]:
        faults.append(f"{told['errors']} formulas in error")
    line = (
        f"{page}: {len(files)} files, {weight:.0f} kB compressed without figures, {told['height']} px long on a phone"
    )
    print("; ".join([line, *faults]), flush=True)
    return not faults


# Figures with sliders. In the expressions below FIGURE is the figure that is looked at.

WIDGETS = "figure.lvm-widget"
VIEWS = {  # name -> (from the disk, options of the tab)
    "light": (False, {"width": 1280}),
    "dark": (False, {"width": 1280, "mode": "dark"}),
    "phone": (False, {"width": PHONE, "height": 844}),
    "disk": (True, {"width": 1280}),
    "still": (True, {"width": 1280, "scripts": False}),
}


def look_at_widgets(browser: str, base: str, page: str) -> bool:
    """Move the sliders of a page's figures in every view, print one line, and return whether nothing was wrong."""
    name, faults, number = page.removesuffix(".html").replace("/", "-"), [], 0
    with Browser(browser, FLAGS) as running:
        for view, (from_disk, options) in VIEWS.items():
            tab = Tab(running, **options)
            tab.open((HTML / page).as_uri() if from_disk else f"{base}/{page}")
            number = tab.run(f"document.querySelectorAll('{WIDGETS}').length")
            for position in range(number):
                figure = f"document.querySelectorAll('{WIDGETS}')[{position}]"
                tab.run(f"{figure}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
                found = still_faults(tab, figure) if view == "still" else living_faults(tab, figure, view)
                faults += [f"figure {position + 1}, {view}: {fault}" for fault in found]
                tab.run(f"{figure}.scrollIntoView({{block: 'center', behavior: 'instant'}})")  # the page may have grown
                tab.picture(OUT / f"{name}-figure-{position + 1}-{view}.png")
            own = (base, HTML.as_uri(), "data:", "blob:", "about:")
            faults += [f"{view}: asked for {url}" for url in tab.asked_for() if not url.startswith(own)]
            faults += [f"{view}: {text}" for text in tab.complaints() if "favicon" not in text]
            tab.close()
    print("; ".join([f"{page}: {number} figures with sliders, {len(VIEWS)} views", *dict.fromkeys(faults)]), flush=True)
    return not faults


def still_faults(tab: Tab, figure: str) -> list[str]:
    """Say what is wrong with a figure on a page whose scripts do not run: its picture must be shown."""
    if tab.wait(f"(i => i.complete && i.naturalWidth > 100 && i.clientWidth > 100)({figure}.querySelector('img'))", 10):
        return []
    return ["without JavaScript there is no picture"]


def living_faults(tab: Tab, figure: str, view: str) -> list[str]:
    """Say what is wrong with a figure whose chart must live and follow its sliders."""
    if not tab.wait(f"{figure}.classList.contains('is-live') && !!{figure}.querySelector('.lvm-chart svg')"):
        return ["the chart does not come to life"]
    faults, chart = [], f"{figure}.querySelector('.lvm-chart svg')"
    if tab.run(f"{figure}.querySelector('img').clientHeight"):
        faults.append("the picture is still shown beside the chart")
    for number in range(tab.run(f"{figure}.querySelectorAll('input[type=range]').length")):
        slider = f"{figure}.querySelectorAll('input[type=range]')[{number}]"
        label = tab.run(f"{slider}.closest('label').innerText.trim()")
        before = tab.run(f"{chart}.outerHTML")
        tab.run(f"{slider}.focus({{preventScroll: true}})")
        # the other way where the slider starts at its end
        key = "ArrowLeft" if tab.run(f"+{slider}.value >= +{slider}.max") else "ArrowRight"
        for _ in range(4):
            tab.press(key)
        if not tab.wait(f"{chart}.outerHTML !== {json.dumps(before)}", 5):
            faults.append(f"the chart does not follow the slider {label!r}")
        outline = f"(s => s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0)(getComputedStyle({slider}))"
        if not tab.run(outline):
            faults.append(f"nobody sees that the slider {label!r} has the focus")
        if len(label) < 5 or not tab.run(f"{slider}.clientWidth > 100"):
            faults.append(f"slider {number + 1} has no label or no room: {label!r}")
    if tab.run(f"{chart}.textContent.match(/NaN|Infinity|undefined/)"):
        faults.append("the chart shows NaN, Infinity or undefined")
    if tab.run(f"{chart}.getBoundingClientRect().width < {chart}.viewBox.baseVal.width - 1"):
        faults.append("the chart is shrunk, and its words with it")
    tab.call("Emulation.setEmulatedMedia", media="print")
    if not tab.wait(f"(i => i.complete && i.clientHeight > 100)({figure}.querySelector('img'))", 5):
        faults.append("on paper there is no picture")
    if tab.run(f"{figure}.querySelector('.lvm-live').clientHeight"):
        faults.append("on paper there are sliders")
    tab.call("Emulation.setEmulatedMedia", media="")
    if view == "phone" and tab.run("document.documentElement.scrollWidth") > PHONE:
        faults.append("a phone scrolls sideways")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pages", nargs="*", help="pages below _build/html; default: all that come from book/")
    parser.add_argument("--height", type=int, default=3000, help="height of the pictures in pixels")
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("look: skipped, no Chromium here.")
        return 0
    pages = options.pages or sorted(path.relative_to(HTML).as_posix() for path in HTML.glob("book/**/*.html"))
    if not pages:
        print(f"look: no pages in {HTML}. Run `make book` first.")
        return 1
    OUT.mkdir(parents=True, exist_ok=True)
    handler = functools.partial(Handler, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        good = [look(browser, base, page, options.height) for page in pages]
        with_sliders = [page for page in pages if 'class="lvm-widget-spec"' in (HTML / page).read_text("utf-8")]
        good += [look_at_widgets(browser, base, page) for page in with_sliders]
        server.shutdown()
    print(f"look: {len(pages)} pages, {good.count(False)} with faults; pictures in {OUT}")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
