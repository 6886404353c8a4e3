"""Finds promtool and prometheus, or takes them out of Debian's package without installing it; else skips aloud."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest
from platformdirs import user_cache_path

DOWNLOAD_SECONDS = 120


def program(name: str) -> str:
    """Returns the path of `promtool` or `prometheus`. Skips the test, saying why, when it cannot be had."""
    if (found := shutil.which(name)) is not None:
        return found
    cache = user_cache_path("turnstile-tests") / "prometheus"
    path = cache / "usr/bin" / name
    if not path.exists():
        _unpack(cache)
    return str(path)


def _unpack(cache: Path) -> None:
    """Downloads the package and unpacks it into the cache: no service is installed, nothing is started."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        _skip("there is no promtool, and no apt-get and dpkg to take it from Debian's package")
    work = cache.with_name(f"prometheus-{os.getpid()}")
    work.mkdir(parents=True, exist_ok=True)
    try:
        # apt's sandbox user may not write here; as root it then warns and goes on, which is what is wanted.
        _run(["apt-get", "download", "prometheus"], work)
        package = next(work.glob("prometheus_*.deb"), None)
        if package is None:
            _skip("apt-get said that it downloaded prometheus, and there is no package")
        _run(["dpkg", "-x", str(package), str(work / "tree")], work)
        if not cache.exists():
            (work / "tree").rename(cache)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        _skip(f"{command[0]} took longer than {DOWNLOAD_SECONDS} s")
    if done.returncode != 0:
        _skip(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-300:]}")


def _skip(why: str) -> NoReturn:
    print(f"promtool cannot be had: {why}")
    pytest.skip(f"promtool cannot be had: {why}")
