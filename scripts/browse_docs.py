"""Opens every page of the built documentation in Chromium and looks at it as a reader would.

    mkdocs build --strict && python scripts/browse_docs.py site

About half a minute. Of each page, in a wide window and the light scheme, then in one of 360 pixels and the
dark scheme: no error and no warning in the console, nothing asked of another server, every image drawn and
with a text for those who do not see it, every formula drawn, a body no wider than the window, and text that
stands out. No link or anchor leads nowhere, and the search finds words. Prints what is wrong and ends with
exit code 1 if anything is; without Chromium it says so and ends with 0, or with 1 given --need.

Chromium is driven through a pipe, by its DevTools protocol; nothing but Python's standard library is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NARROW, WIDE = 360, 1280
FIELDS = {"title": {"boost": 1}, "text": {"boost": 1}, "tags": {"boost": 1}}
EMPTY_INDEX = {
    "config": {"lang": ["en"], "separator": "[ ]+", "pipeline": [], "fields": FIELDS},
    "docs": [],
}

# What a page says of itself. Sizes are of what is shown; contrast is that of text and ground.
LOOK = """(() => {
  const shown = element => {
    const box = element.getBoundingClientRect();
    return box.width > 0 && box.height > 0;
  };
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => {
    const part = color.map(value => value / 255)
      .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
  };
  const over = ([r, g, b, alpha = 1], ground) =>
    [r, g, b].map((value, place) => alpha * value + (1 - alpha) * ground[place]);
  const groundOf = element => {
    if (!element) return [255, 255, 255];
    const own = parts(getComputedStyle(element).backgroundColor);
    return own[3] === undefined ? own : over(own, groundOf(element.parentElement));
  };
  const texts = [...document.querySelectorAll("article *")].filter(element => shown(element)
    && !element.closest("math, svg, button, .headerlink")
    && [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()));
  const faint = texts.map(element => {
    const style = getComputedStyle(element), ground = groundOf(element);
    const [a, b] = [over(parts(style.color), ground), ground].map(light);
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return [contrast, parseFloat(style.fontSize) >= 24 ? 3 : 4.5, element.outerHTML.slice(0, 120)];
  }).filter(([contrast, asked]) => contrast < asked).sort((a, b) => a[0] - b[0]);
  const wide = [...document.querySelectorAll("article *")].filter(element =>
    element.getBoundingClientRect().right > innerWidth + 1
    && !element.closest(".md-typeset__scrollwrap, pre, .highlight, div.formula, .md-nav"));
  return JSON.stringify({
    ids: [...document.querySelectorAll("[id]")].map(element => element.id),
    links: [...document.querySelectorAll("a[href]")].map(element => element.href),
    images: [...document.querySelectorAll("article img")].map(
      element => [element.src, element.alt, element.complete && element.naturalWidth > 0]),
    formulas: [...document.querySelectorAll("math")].map(element => [element.textContent, shown(element)]),
    unset: [...document.querySelectorAll(".arithmatex")].map(element => element.textContent),
    title: document.title,
    width: Math.max(document.body.scrollWidth, document.documentElement.scrollWidth),
    window: innerWidth,
    wide: wide.slice(0, 3).map(element => element.outerHTML.slice(0, 120)),
    faint: faint.slice(0, 3),
    scheme: document.body.getAttribute("data-md-color-scheme"),
  });
})()"""

SEARCH = """(async word => {
  const wait = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));
  const field = document.querySelector("input.md-search__input");
  field.focus();
  for (let turn = 0; turn < 50; turn++) {
    field.value = word;
    field.dispatchEvent(new Event("keyup", {bubbles: true}));
    field.dispatchEvent(new Event("input", {bubbles: true}));
    await wait(100);
    const found = [...document.querySelectorAll("a.md-search-result__link")].map(element => element.href);
    if (found.length) return JSON.stringify(found);
  }
  return "[]";
})"""


class Browser:
    """A headless Chromium at the other end of a pipe: commands go in as JSON, results and events come out."""

    def __init__(self, program: str, folder: str) -> None:
        """Start it with a profile of its own and open one tab."""
        ours, its = os.pipe(), os.pipe()
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
        )
        options += ("--disable-dev-shm-usage", "--disable-background-networking", "--disable-sync")

        def give_pipes() -> None:
            read, write = os.dup(ours[0]), os.dup(its[1])  # out of the way of 3 and 4
            os.dup2(read, 3)
            os.dup2(write, 4)

        self.process = subprocess.Popen(
            [
                program,
                *options,
                "--remote-debugging-pipe",
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            preexec_fn=give_pipes,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0])
        os.close(its[1])
        self.write, self.read = ours[1], its[0]
        self.buffer, self.number, self.events = b"", 0, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    session: str | None = None

    def receive(self) -> dict[str, Any]:
        """Return the next message."""
        while b"\0" not in self.buffer:
            part = os.read(self.read, 1 << 16)
            if not part:
                raise RuntimeError("Chromium ended; start it by hand to see why")
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; what happens meanwhile is kept in `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            got = self.receive()
            if got.get("id") == self.number:
                if "error" in got:
                    raise RuntimeError(f"{method}: {got['error']['message']}")
                return got["result"]
            self.events.append(got)

    def open(self, url: str) -> list[dict[str, Any]]:
        """Load a page, and return the events until it was there."""
        self.events = []
        self.call("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())
        return self.events

    def ask(self, expression: str) -> Any:
        """Evaluate JavaScript that gives JSON."""
        got = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in got:
            raise RuntimeError(
                got["exceptionDetails"]["exception"].get("description", "JavaScript failed")
            )
        return json.loads(got["result"]["value"])

    def window(self, width: int, scheme: str) -> None:
        """Set the window's width and the scheme that the reader prefers."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError, RuntimeError):
            self.session = None
            self.call("Browser.close")
        self.process.terminate()
        self.process.wait(10)
        os.close(self.write)
        os.close(self.read)


def complaints(events: list[dict[str, Any]], home: str) -> list[str]:
    """What the console and the network said that a reader should not meet."""
    found = []
    for event in events:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                found.append(f"exception: {params['exceptionDetails']['text']}")
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                found.append(f"console: {[argument.get('value') for argument in params['args']]}")
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                found.append(f"log: {params['entry']['text']} {params['entry'].get('url', '')}")
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith((home, "data:", "blob:", "about:")):
                    found.append(f"asks another server: {url}")
    return found


def wrong_with(page: dict[str, Any], width: int, scheme: str) -> list[str]:
    """What is wrong with what a page says of itself."""
    found = [f"image without a text: {src}" for src, alt, _ in page["images"] if not alt.strip()]
    found += [f"image that is not drawn: {src}" for src, _, drawn in page["images"] if not drawn]
    found += [f"formula that is not drawn: {text}" for text, drawn in page["formulas"] if not drawn]
    found += [f"LaTeX that is no MathML: {text}" for text in page["unset"]]
    if page["width"] > page["window"]:
        found.append(f"wider than {width} px: {page['width']} px, {page['wide']}")
    for contrast, asked, text in page["faint"]:  # WCAG 2, level AA
        found.append(
            f"text hardly stands out in the {scheme} scheme, {contrast:.1f} of {asked}: {text}"
        )
    if scheme == "dark" and page["scheme"] != "slate":
        found.append(f"the dark scheme is {page['scheme']}")
    return found


def dead_links(pages: dict[str, dict[str, Any]], site: Path, home: str) -> list[str]:
    """Links within the site whose file or anchor is not there."""
    found = []
    for name, page in pages.items():
        for link in sorted(set(page["links"])):
            if not link.startswith(home):
                continue
            path, _, anchor = link.removeprefix(home).partition("#")
            file = site / path
            if not (file / "index.html" if file.is_dir() else file).is_file():
                found.append(f"{name}: leads nowhere: {link}")
            elif anchor and path in pages and anchor not in pages[path]["ids"]:
                found.append(f"{name}: no such anchor: {link}")
    return found


def browse(program: str, site: Path) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Open every page; return what is wrong, and what the pages are."""

    searched = threading.Event()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            # each page reads the index of the search, a megabyte, and uses it only where one searches
            if searched.is_set() or not self.path.endswith("/search_index.json"):
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(EMPTY_INDEX).encode())

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    names = sorted(
        file.parent.relative_to(site).as_posix().removeprefix(".")
        for file in site.rglob("index.html")
    )
    wrong: list[str] = []
    pages: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(program, folder)
        try:
            for scheme, width in (("light", WIDE), ("dark", NARROW)):
                browser.window(width, scheme)
                browser.open(home)
                browser.ask("(localStorage.clear(), '{}')")  # a scheme chosen before
                for name in names:
                    path = f"{name}/" if name else ""
                    said = complaints(browser.open(home + path), home)
                    page = browser.ask(LOOK)
                    said += wrong_with(page, width, scheme)
                    wrong += [f"{path or 'home'} ({width} px, {scheme}): {text}" for text in said]
                    pages[path] = page
            browser.window(WIDE, "light")
            searched.set()
            browser.open(home)
            for word, place in (
                ("Langevin", "api/inference"),
                ("precision", "tutorials/precision"),
            ):
                hits = browser.ask(f"{SEARCH}({json.dumps(word)})")
                if not any(place in hit for hit in hits):
                    wrong.append(
                        f"the search for {word!r} finds {len(hits)} places, none in {place}"
                    )
        finally:
            browser.close()
            server.shutdown()
    return wrong + dead_links(pages, site, home), pages


def main() -> int:
    """Browse a built site; print what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, help="the folder that mkdocs built")
    parser.add_argument("--need", action="store_true", help="fail where there is no Chromium")
    options = parser.parse_args()
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        print(f"no Chromium on the PATH ({', '.join(CHROMIUM)}), so no page was opened")
        return int(options.need)
    begin = time.monotonic()
    wrong, pages = browse(program, options.site.resolve())
    for line in wrong:
        print(line)
    seen = {
        name: sum(len(page[name]) for page in pages.values())
        for name in ("formulas", "images", "links")
    }
    told = ", ".join(f"{count} {name}" for name, count in seen.items())
    print(f"{len(pages)} pages, {told} in {time.monotonic() - begin:.0f} s; wrong: {len(wrong)}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
