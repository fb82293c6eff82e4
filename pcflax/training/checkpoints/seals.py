"""Seals: the SHA-256 of every file of a checkpoint, written beside it when it is complete.

The seal of `<step>/` is `<step>.sha256`, in the format of the sha256sum tool, with names as seen from
inside the folder (so a folder may be renamed with its seal). It must be, to the byte, what the files say
today; anything else is damage, and is told in words. What a file browser leaves in every folder that it
shows is no damage.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from .disk import sync, write_atomically

# Written by the desktops of macOS, Windows and KDE, by storage servers, and by NFS for deleted files.
_LITTER = (".DS_Store", "._*", "Thumbs.db", "desktop.ini", ".directory", "@eaDir", ".nfs*")


def seal(folder: Path, path: Path) -> None:
    """Write the seal of a complete folder that will be renamed to `path`.

    Its files and their names are on the disk first, and the seal is written in one step that a kill cannot
    split.
    """
    digests = _file_digests(folder, durable=True)
    for place in (*(entry for entry in folder.rglob("*") if entry.is_dir()), folder):
        sync(place)
    write_atomically(seal_of(path), _seal_text(digests))


def seal_of(path: Path) -> Path:
    """Return where the seal of a folder is."""
    return path.with_name(path.name + ".sha256")


def find_damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint's files, in words; None where they match their seal."""
    seal_file = seal_of(path)
    if not seal_file.is_file():
        return (
            f"it has no {seal_file.name}, so its writing was interrupted or that file was removed"
        )
    found = _file_digests(path) if path.is_dir() else {}
    if found and seal_file.read_bytes() == _seal_text(found).encode():
        return None
    lines = seal_file.read_bytes().decode("utf-8", "replace").splitlines()
    expected = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in sorted((expected.keys() | found.keys()) - {""}):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is not listed in {seal_file.name}"
        if found[name] != expected[name]:
            return f"{name} does not match its checksum in {seal_file.name}"
    return f"{seal_file.name} is not as it was written"


def _seal_text(digests: Mapping[str, str]) -> str:
    """Return what the seal of these files says: the format of the sha256sum tool."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def _file_digests(folder: Path, *, durable: bool = False) -> dict[str, str]:
    """Return SHA-256 of every file under a folder, by its name as seen from inside the folder."""
    digests = {}
    for file in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        name = file.relative_to(folder)
        if any(fnmatch.fnmatchcase(part, litter) for part in name.parts for litter in _LITTER):
            continue
        with file.open("rb") as opened:
            digests[name.as_posix()] = hashlib.file_digest(opened, "sha256").hexdigest()
            if durable:
                os.fsync(opened.fileno())
    return digests
