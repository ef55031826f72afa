"""JupyterLab and a headless Chromium, started for the tests and ended after them."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from playwright.sync_api import BrowserContext, sync_playwright

from llminfer.__main__ import commands

_CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]
_LAB_FLAGS = [
    "--no-browser",
    "--allow-root",
    "--ip=127.0.0.1",
    "--ServerApp.port_retries=0",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.expose_app_in_browser=True",
    # Should the tests be killed, Lab ends by itself.
    "--MappingKernelManager.cull_idle_timeout=600",
    "--ServerApp.shutdown_no_activity_timeout=600",
]
_SETTINGS = {
    # A toast would lie over the pictures, and a cell out of sight must be drawn too.
    "apputils-extension/notification": '{"fetchNews": "false"}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',
}


class Lab(NamedTuple):
    """A running JupyterLab, and the folder that it shows."""

    url: str
    token: str
    root: Path


class Site(NamedTuple):
    """A page that is served, and the process that serves it."""

    url: str
    process: psutil.Process

    def kernels(self) -> list[psutil.Process]:
        """Those that run for its readers."""
        found = []
        for child in self.process.children():
            with suppress(psutil.NoSuchProcess):  # nor a zombie
                if "ipykernel_launcher" in child.cmdline():
                    found.append(child)
        return found


@contextmanager
def running_lab(scratch: Path) -> Iterator[Lab]:
    """JupyterLab on a free port, with settings, kernels and files of its own."""
    root = scratch / "notebooks"
    root.mkdir()
    for name, text in _SETTINGS.items():
        file = scratch / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    port = _free_port()
    lab = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(16), root)
    own = [
        f"--port={port}",
        f"--IdentityProvider.token={lab.token}",
        f"--ServerApp.root_dir={root}",
    ]
    command = ["jupyterlab", *_LAB_FLAGS, *own]
    with _serving(command, f"{lab.url}/api?token={lab.token}", scratch):
        yield lab


@contextmanager
def running_page(
    notebook: Path, scratch: Path, cull: int | None = None
) -> Iterator[Site]:
    """A notebook as a stand-alone page, as ``make app`` shows it.

    Args:
        notebook: What is shown.
        scratch: A folder for what it writes.
        cull: Seconds after which kernels without a page end, if not those of the app.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    ((_, *command, _),) = commands("app")
    if cull is not None:
        command = [re.sub(r"(\.cull_\w+)=\d+$", rf"\1={cull}", one) for one in command]
    command += ["--no-browser", f"--port={port}", str(notebook)]
    with _serving(command, f"{url}/voila/static/", scratch) as process:
        yield Site(url, process)


@contextmanager
def _serving(command: list[str], probe: str, scratch: Path) -> Iterator[psutil.Process]:
    """A Python module that serves, from its first answer at ``probe`` on."""
    file = scratch / "server.log"
    with file.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=os.environ | _folders(scratch),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _wait_for(process, probe, file)
            yield psutil.Process(process.pid)
        finally:
            _stop(process)


def _folders(scratch: Path) -> dict[str, str]:
    """Environment variables that keep everything Lab writes under ``scratch``."""
    names = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
        "LLMINFER_FIGURES": "figures",
    }
    return {variable: str(scratch / folder) for variable, folder in names.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(process: subprocess.Popen[bytes], probe: str, log: Path) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(probe, timeout=2).read()
            return
        except urllib.error.HTTPError:
            return  # an answer, if only that there is nothing
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"nothing answers at {probe}:\n{log.read_text()[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End our own process group, kindly first, so that Lab can end its kernels."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sign)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def running_chromium(executable: str) -> Iterator[BrowserContext]:
    """A headless browser with an empty profile."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=_CHROMIUM_FLAGS
        )
        yield browser.new_context()
        browser.close()
