"""The panels as a page: for this machine alone, and no kernel stays behind."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse

import nbformat
import psutil
import pytest
from lab import Site, running_page
from nbformat.v4 import new_code_cell, new_notebook

from notebooks.execute import _KERNEL


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A page of one cell; kernels end some seconds after the reader is gone."""
    folder = tmp_path_factory.mktemp("app")
    cells = [new_code_cell("print('for ' + 'a reader')")]
    path = folder / "app.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": _KERNEL}), path)
    with running_page(path, folder, cull=10) as running:
        yield running


def read_page(answer: HTTPResponse) -> None:
    """Read up to the cell's output; a page whose kernel died goes on for ever."""
    until, page = time.monotonic() + 60.0, b""
    while b"for a reader" not in page:
        assert time.monotonic() < until
        page += (more := answer.read1())
        assert more


def status(url: str, host: str) -> int:
    """What a request is answered that names this host."""
    request = urllib.request.Request(url, headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            read_page(answer)
            return answer.status
    except urllib.error.HTTPError as refused:
        return refused.code


def test_it_answers_by_its_own_names_alone(site: Site) -> None:
    """A page of elsewhere that has its name point here gets nothing."""
    port = site.url.rpartition(":")[2]
    for host in ("attacker.example", f"attacker.example:{port}", "192.0.2.1"):
        assert status(site.url, host) == 403
    assert site.kernels() == []
    for host in ("localhost", f"127.0.0.1:{port}"):
        assert status(site.url, host) == 200


def test_it_listens_on_this_machine_alone(site: Site) -> None:
    listening = [
        its.laddr
        for its in site.process.net_connections("tcp")
        if its.status == psutil.CONN_LISTEN
    ]
    assert str(listening[0].port) in site.url
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_a_kernel_whose_reader_is_gone_ends(site: Site) -> None:
    with urllib.request.urlopen(site.url, timeout=60) as answer:
        read_page(answer)
    assert site.kernels()
    until = time.monotonic() + 60.0
    while site.kernels():
        assert time.monotonic() < until
        time.sleep(0.2)
