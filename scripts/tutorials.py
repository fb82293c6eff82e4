"""Every page of docs/tutorials as a program: its blocks run one after the other, and its figure is kept.

    make tutorials                               all of them as printed; figures go to docs/images
    python scripts/tutorials.py --short          with fewer steps, as the tests run them; none is kept
    python scripts/tutorials.py depth own_rule   some of them

Each page is a process of its own in an empty folder. Its figure is the file that it saves under the name of
a picture that it shows. As printed all take five to ten minutes on 2 CPU cores. From scratch trains on MNIST
where TFDS_DATA_DIR names a folder with a prepared set, else on the embedded digits, as in the published
figure. Expected: a line a page, exit code 0, and no page above three minutes with --short.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
SHOWN = re.compile(r"!\[[^]]*\]\(\.\./images/([^)]+)\)")
SAVED = re.compile(r'\.savefig\("([^"]+)"')
MOST_SECONDS, MOST_BYTES = 180, 80_000  # of a page in its short form; of a figure


def program(text: str) -> str:
    """The code of a page, each line where the page has it, so that errors name the page's lines."""
    lines = [""] * text.count("\n")
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1))
        code = block[1].splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines) + "\n"


def figures(text: str) -> list[str]:
    """The pictures that a page shows and its own code draws."""
    drawn = SAVED.findall(program(text))
    return [name for name in SHOWN.findall(text) if name in drawn]


def execute(page: Path, images: Path | None, *, short: bool) -> float:
    """Run a page; keep its figures in `images`. Returns its seconds.

    Raises:
        SystemExit: where the page fails, draws no figure that it shows, or a figure is too large.
    """
    text = page.read_text()
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    environment |= {"PCFLAX_SHORT": "1"} if short else {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / page.with_suffix(".py").name).write_text(program(text))
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, page.with_suffix(".py").name], cwd=folder, env=environment
        )
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(f"{page.name} ended with exit code {done.returncode}")
        for name in figures(text):
            drawn = Path(folder) / name
            if not drawn.is_file():
                raise SystemExit(f"{page.name} shows {name} and did not draw it")
            if drawn.stat().st_size > MOST_BYTES:
                raise SystemExit(f"{name} has {drawn.stat().st_size} bytes, above {MOST_BYTES}")
            if images is not None:
                shutil.copy(drawn, images / name)
    return seconds


def main() -> int:
    """Run the pages that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", help="names without .md; all unless given")
    parser.add_argument("--short", action="store_true", help="fewer steps, and no figure is kept")
    parser.add_argument("--images", type=Path, help="where figures go; docs/images unless given")
    options = parser.parse_args()
    folder = ROOT / "docs/tutorials"
    known = {
        path.stem: path for path in sorted(folder.glob("*.md")) if BLOCK.search(path.read_text())
    }
    unknown = sorted(set(options.pages) - set(known))
    if unknown:
        parser.error(f"unknown pages {', '.join(unknown)}; known are {', '.join(known)}")
    images = options.images or (None if options.short else ROOT / "docs/images")
    slow = []
    for name in options.pages or known:
        print(f"== {name}", flush=True)
        seconds = execute(known[name], images, short=options.short)
        print(f"== {name}: {seconds:.0f} s", flush=True)
        if options.short and seconds > MOST_SECONDS:
            slow.append(name)
    if slow:
        print(f"above {MOST_SECONDS} s: {', '.join(slow)}", file=sys.stderr)
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
