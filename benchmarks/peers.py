"""Environments of the contenders that cannot share ours, from pinned requirement files.

    python benchmarks/peers.py                 all of them, into .venv-peers (make bench-peers)
    python benchmarks/peers.py fabricpc pcx
    python benchmarks/peers.py --list          which are there, and why others are not

Each file in `benchmarks/requirements` names the Python it wants in its first line and pins every package.
uv makes the environments where it is on the PATH, else venv and pip with an interpreter of that version (from
the PATH or pyenv). A peer that cannot be installed is reported with the reason and does not stop the others;
the suite's tables name it with the same reason.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(os.environ.get("PCFLAX_PEERS", ROOT / ".venv-peers"))
REQUIREMENTS = ROOT / "benchmarks/requirements"
PEERS = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))


def interpreter(peer: str) -> Path:
    """The Python of a peer's environment, which exists where the peer is installed."""
    environment = FOLDER / peer
    return (
        environment / "bin/python" if (environment / ".ready").exists() else environment / "missing"
    )


def why_missing(peer: str) -> str:
    """Why a peer is not installed."""
    reason = FOLDER / peer / "failed.txt"
    return reason.read_text().strip() if reason.exists() else "not installed: make bench-peers"


def wanted_python(peer: str) -> str:
    """The minor version that a peer's file wants, such as 3.12."""
    return (REQUIREMENTS / f"{peer}.txt").read_text().splitlines()[0].split()[-1]


def find_python(version: str) -> str | None:
    """An interpreter of this minor version."""
    found = [shutil.which(f"python{version}")]
    found += sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        found.insert(0, sys.executable)
    for candidate in filter(None, found):
        works = subprocess.run([candidate, "-c", "import venv, ensurepip"], capture_output=True)
        if works.returncode == 0:
            return candidate
    return None


def install(peer: str) -> None:
    """Make a peer's environment; raises RuntimeError with the reason where that fails."""
    environment, file = FOLDER / peer, REQUIREMENTS / f"{peer}.txt"
    version = wanted_python(peer)
    shutil.rmtree(environment, ignore_errors=True)
    environment.mkdir(parents=True)
    if shutil.which("uv"):
        run("uv", "venv", "--allow-existing", "--python", version, str(environment))
        run("uv", "pip", "install", "--python", str(environment / "bin/python"), "-r", str(file))
    else:
        python = find_python(version)
        if python is None:
            raise RuntimeError(f"no Python {version} here; install it, or uv, which fetches one")
        run(python, "-m", "venv", str(environment))
        pip = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet"]
        run(*pip, "--disable-pip-version-check", "-r", str(file))
    (environment / ".ready").touch()


def run(*command: str) -> None:
    """Run a command; raises RuntimeError with the last line that speaks of an error."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        for word in ("fatal", "error", ""):  # git's own word says more than pip's of it
            found = [line for line in lines if line.lower().startswith(word)]
            if found:
                raise RuntimeError(found[-1][:200])
        raise RuntimeError("no message")


def main() -> None:
    """Install, or list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="*", help=f"of {', '.join(PEERS)}; all unless given")
    parser.add_argument("--list", action="store_true", help="install nothing")
    parser.add_argument("--again", action="store_true", help="also those that are there")
    options = parser.parse_args()
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"expected of {', '.join(PEERS)}, got {', '.join(sorted(unknown))}")
    console = Console()
    for peer in options.peers or PEERS:
        there = interpreter(peer).exists()
        if not options.list and (options.again or not there):
            with console.status(f"{peer}: installing"):
                try:
                    install(peer)
                except (RuntimeError, OSError) as error:
                    (FOLDER / peer / "failed.txt").write_text(f"not installed: {error}\n")
        there = interpreter(peer).exists()
        console.print(f"{peer}: {'ready' if there else why_missing(peer)}", soft_wrap=True)


if __name__ == "__main__":
    main()
