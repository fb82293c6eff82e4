"""`pcflax doctor`: is everything there that a run wants, and what to install where it is not.

What is asked for is read from the package's own metadata, and jax is imported last, so that a broken
installation can still be told about.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version

from .verbs import DoctorOptions

_VERSIONS = (
    *("pcflax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "diffrax", "grain"),
    *("tensorflow-datasets", "tyro", "matplotlib"),
)
# Extras for those who work on the package itself.
_OURS = ("dev", "docs")


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        what: its name.
        state: "ok", "note" for what some do without, or "wrong".
        text: what was found, and what mends it.
    """

    what: str
    state: str
    text: str


def doctor(options: DoctorOptions) -> None:
    """Print what was found; end with exit code 1 where something is wrong."""
    imported, devices = _devices()
    findings = [
        *_requirements(),
        pair(_version("jax"), _version("flax")),
        *imported,
        *_data(options.data_dir, works=all(one.state == "ok" for one in imported)),
        *_extras(),
        writable(options.run_dir),
    ]
    fine = all(one.state != "wrong" for one in findings)
    versions = {"python": platform.python_version()} | {n: _version(n) for n in _VERSIONS}
    if options.json:
        found = {"ok": fine, "versions": versions, "devices": devices}
        print(json.dumps(found | {"findings": [one._asdict() for one in findings]}, indent=2))
    else:
        told = "  ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
        print(f"versions  {told}")
        width = max(len(one.what) for one in findings)
        for one in findings:
            print(f"{one.state:<8}  {one.what:<{width}}  {one.text}")
        print("all is well" if fine else "something is wrong: see the lines above")
    if not fine:
        sys.stdout.flush()
        raise SystemExit(1)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _asked() -> list[Requirement]:
    """Return everything that the package's metadata ask for, extras included."""
    return [Requirement(text) for text in metadata.requires("pcflax") or ()]


def _told(one: Requirement) -> str:
    """Return the requirement as pip takes it."""
    extras = f"[{','.join(sorted(one.extras))}]" if one.extras else ""
    return f"{one.name}{extras}{one.specifier}"


def _lacks(one: Requirement) -> str | None:
    """Return what of a requirement is not met, or None."""
    version = _version(one.name)
    if version is None:
        return f"{one.name} is not installed"
    if not one.specifier.contains(version, prereleases=True):
        return f"{one.name} is {version}, expected {one.specifier}"
    return None


def _requirements() -> Iterator[Finding]:
    wanted = [one for one in _asked() if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [(one, why) for one in wanted if (why := _lacks(one))]
    for one, why in wrong:
        yield Finding("packages", "wrong", f"{why}; pip install '{_told(one)}'")
    if not wrong:
        yield Finding("packages", "ok", f"all {len(wanted)} that pcflax needs are installed")


def pair(jax: str | None, flax: str | None) -> Finding:
    """Return whether these versions of jax and flax go together, which their metadata do not say.

    >>> pair("0.10.2", "0.12.8").state, pair("0.11.1", "0.12.8").state
    ('ok', 'wrong')
    """
    if jax is None or flax is None:
        missing = "jax" if jax is None else "flax"
        return Finding("jax, flax", "wrong", f"{missing} is missing; pip install -U pcflax")
    told = f"jax {jax} and flax {flax}"
    new = Version(jax) >= Version("0.11.1")
    if new == (Version(flax) >= Version("0.12.10")):
        return Finding("jax, flax", "ok", f"{told} go together")
    why = (
        "flax imports on jax 0.11.1 and newer from flax 0.12.10 on; pip install 'flax>=0.12.10' "
        "(Python 3.12 and newer), or pip install 'jax<0.11'"
        if new
        else "flax 0.12.10 and newer wants jax 0.11.1; pip install 'jax>=0.11.1' (Python 3.12 and newer), "
        "or pip install 'flax<0.12.10'"
    )
    return Finding("jax, flax", "wrong", f"{told} do not go together: {why}")


def _devices() -> tuple[list[Finding], list[dict[str, str]]]:
    """Return whether the package imports and jax finds devices, and which."""
    try:
        import jax

        import pcflax.training  # noqa: F401  brings flax, optax and orbax
    except Exception as error:
        told = f"{type(error).__name__}: {_first_line(error)}; pip install -U pcflax"
        return [Finding("import", "wrong", told)], []
    try:
        devices = jax.devices()
    except RuntimeError as error:
        told = (
            f"jax finds none: {_first_line(error)}; JAX_PLATFORMS=cpu goes without an accelerator"
        )
        return [Finding("devices", "wrong", told)], []
    found = [{"platform": one.platform, "kind": one.device_kind} for one in devices]
    kinds = [f"{one['platform']} ({one['kind']})" for one in found]
    told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    return [Finding("devices", "ok", told)], found


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")


def _data(data_dir: Path | None, *, works: bool) -> Iterator[Finding]:
    """Yield the folder of prepared sets, and which of those with a name lie in it."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR")
    source = "--data-dir" if data_dir else "TFDS_DATA_DIR"
    if given and not Path(given).is_dir():
        told = f"{source} is {given}, which is no folder; make it, or name another"
        yield Finding("data", "wrong", told)
        return
    told = f"{source} is {given}" if given else "TFDS_DATA_DIR is not set: TFDS's default folder"
    yield Finding("data", "ok", told)
    if not works:
        return
    from pcflax.data.sources import catalogue, tfds

    for name in catalogue.NAMES:
        if name == "digits":
            yield Finding(name, "ok", "in the package")
            continue
        place, prepared = tfds.place_of(name, data_dir)
        if prepared:
            yield Finding(name, "ok", f"prepared in {place}")
        else:
            mends = f"pcflax train --data {name} prepares it, with pip install 'pcflax[tfds]'"
            yield Finding(name, "note", f"not prepared in {place}; {mends}")


def _extras() -> Iterator[Finding]:
    """Yield which extras lack something."""
    asked = _asked()
    for extra in metadata.metadata("pcflax").get_all("Provides-Extra") or ():
        if extra in _OURS:
            continue
        own = [
            one
            for one in asked
            if one.marker is not None
            and one.marker.evaluate({"extra": extra})
            and not one.marker.evaluate({"extra": ""})
        ]
        lacks = [why for one in own if (why := _lacks(one))]
        if lacks:
            told = f"{', '.join(lacks)}; pip install 'pcflax[{extra}]'"
            yield Finding(f"extra {extra}", "note", told)
        else:
            names = ", ".join(f"{one.name} {_version(one.name)}" for one in own)
            yield Finding(f"extra {extra}", "ok", names)


def writable(folder: Path) -> Finding:
    """Return whether runs can be written in a folder, which is not made."""
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
    except OSError as error:
        told = f"{folder} cannot be written ({error.strerror}); choose another --run-dir"
        return Finding("run folder", "wrong", told)
    return Finding("run folder", "ok", f"{folder} can be written, {free / 2**30:,.1f} GiB free")
