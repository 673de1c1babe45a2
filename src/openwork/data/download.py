"""Fetch an archive, check it, unpack it; nothing half done is left behind."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.progress import wrap_file

from openwork.data.images import DataError

CHUNK = 1 << 20


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(path: Path, sha256: str) -> Path:
    """``path``, once its SHA-256 is what it must be.

    Raises:
        DataError: it is not.
    """
    found = checksum(path)
    if found != sha256:
        raise DataError(f"{path} has SHA-256 {found}, expected {sha256}: damaged or another file; delete it and retry")
    return path


def fetch(url: str, target: Path, sha256: str, timeout: float = 30.0) -> Path:
    """Download ``url`` to ``target`` unless it is there already; either way it is checked.

    Raises:
        DataError: no connection, or the wrong checksum; the message says how to put the file there by hand.
    """
    if target.exists():
        return checked(target, sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer, part.open("wb") as file:
            size = int(answer.headers.get("Content-Length") or 0)
            title, console = f"downloading {target.name}", Console(stderr=True)
            with wrap_file(answer, size, description=title, console=console, transient=True) as shown:
                shutil.copyfileobj(shown, file, CHUNK)
        checked(part, sha256)
        os.replace(part, target)
    except (urllib.error.URLError, OSError) as error:
        raise DataError(f"could not download {url} ({error}); put the file at {target} yourself and run again") from error
    finally:
        part.unlink(missing_ok=True)
    return target


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar archive whose content is ``folder.name/...`` next to ``folder``, all or nothing.

    Raises:
        DataError: the archive is damaged, would write outside its folder, or holds no ``folder.name``.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as temporary:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"could not unpack {archive}: {error}") from error
        inside = Path(temporary) / folder.name
        if not inside.is_dir():
            raise DataError(f"{archive} holds no folder {folder.name!r}")
        os.replace(inside, folder)
    return folder
