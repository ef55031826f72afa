"""Public data: where it is looked for, and what is said where it is missing."""

from __future__ import annotations

import hashlib
import lzma
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pooch
import pytest

from llminfer import ConfigError, fetch
from llminfer.data import public
from llminfer.data.public import DataMissing

NAMES = [name for name in public.DATASETS if "h200" not in name]
OURS = [name for name in public.DATASETS if "h200" in name]
ROOT = Path(__file__).parent.parent


@pytest.fixture
def offline(monkeypatch):
    """No folder of data, and no network."""

    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.delenv("LLMINFER_DATA", raising=False)
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", fail)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """One public file of three bytes instead of the real ones."""
    registry = tmp_path / "registry.txt"
    digest = hashlib.sha256(b"abc").hexdigest()
    registry.write_text(f"# a comment\nset/a.csv {digest} https://home/a.csv\n")
    monkeypatch.setattr(public, "_REGISTRY", registry)
    monkeypatch.setattr(public, "DATASETS", {"small": "set/a.csv"})


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_that_is_named_comes_first(data, name):
    place = fetch(name)
    assert place.is_relative_to(data)
    assert place.is_file() or (place / "requests.jsonl").is_file()


def test_digests_are_those_kept_beside_the_data(data):
    kept = dict(
        reversed(line.split("  ./"))
        for line in (data / "SHA256SUMS").read_text().splitlines()
    )
    lines = public._REGISTRY.read_text().splitlines()
    ours = dict(line.split()[:2] for line in lines if not line.startswith("#"))
    assert len(ours) == 8
    assert {part: kept.get(part) for part in ours} == ours


@pytest.mark.parametrize("name", OURS)
def test_what_was_measured_for_the_project_needs_no_network(offline, data, name):
    packed, plain = fetch(name), data / public.DATASETS[name]
    assert packed.is_relative_to(ROOT / "llminfer")
    for file in ("requests.jsonl", "engine_steps.csv"):
        unpacked = lzma.decompress((packed / f"{file}.xz").read_bytes())
        assert unpacked == (plain / file).read_bytes()
    assert (packed / "meta.json").read_bytes() == (plain / "meta.json").read_bytes()


def test_all_of_it_goes_into_the_package_in_less_than_400_kb():
    assert len(OURS) == 6
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]
    taken = {
        file
        for room, names in patterns.items()
        for name in names
        for file in ROOT.joinpath(*room.split(".")).glob(name)
    }
    files = {file for file in (ROOT / "llminfer").rglob("*") if file.is_file()}
    assert taken == {file for file in files if file.suffix not in (".py", ".pyc")}
    assert sum(file.stat().st_size for file in taken) < 400_000


def test_packing_again_gives_the_same_bytes(data, tmp_path):
    spec = spec_from_file_location("pack_h200", ROOT / "tools" / "pack_h200.py")
    packer = module_from_spec(spec)
    spec.loader.exec_module(packer)
    run = "256x2048-closed-16"
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / run).symlink_to(data / "vllm-h200" / run)
    size = [packer.pack(tmp_path / "from", tmp_path / again) for again in ("a", "b")]
    one, two = (sorted((tmp_path / again / run).iterdir()) for again in ("a", "b"))
    assert [file.name for file in one] == sorted(
        f.name for f in (packer.HERE / run).iterdir()
    )
    assert [file.read_bytes() for file in one] == [file.read_bytes() for file in two]
    assert size == [sum(file.stat().st_size for file in one)] * 2


@pytest.mark.parametrize("name", NAMES)
def test_missing_and_offline_is_one_clear_line(offline, name):
    with pytest.raises(DataMissing) as caught:
        fetch(name)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{name}: not on disk and cannot be fetched: go online")
    assert "LLMINFER_DATA" in message
    assert "https://raw.githubusercontent.com/" in message
    assert caught.value._render_traceback_() == [message]


def test_a_notebook_with_its_data_gets_the_places(data):
    assert public.needed(*NAMES[:2]) == {name: fetch(name) for name in NAMES[:2]}


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"^name='azure-2023-chat': must be one of"):
        fetch("azure-2023-chat")


def test_what_was_fetched_stays_in_the_users_cache(
    offline, small, store_folder, monkeypatch
):
    def give(self, url, output_file, pooch, **_):
        assert url == "https://home/a.csv"
        with open(output_file, "wb") as file:
            file.write(b"abc")

    with monkeypatch.context() as online:
        online.setattr(pooch.HTTPDownloader, "__call__", give)
        place = fetch("small")
    assert place == store_folder / "data" / "set" / "a.csv"
    assert fetch("small") == place  # offline again
    assert place.read_bytes() == b"abc"


def test_nobody_waits_longer_than_ten_seconds_for_an_answer(
    offline, small, monkeypatch
):
    asked = []
    made = pooch.HTTPDownloader.__init__

    def begin(self, **how):
        asked.append(how)
        made(self, **how)

    monkeypatch.setattr(pooch.HTTPDownloader, "__init__", begin)
    with pytest.raises(DataMissing):
        fetch("small")
    assert asked == [{"timeout": 10.0}]


def test_another_file_than_the_published_one_is_refused(
    offline, small, tmp_path, monkeypatch
):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.csv").write_bytes(b"abd")
    monkeypatch.setenv("LLMINFER_DATA", str(tmp_path))
    with pytest.raises(DataMissing, match=r"small: .*a\.csv is not the published file"):
        fetch("small")

    def wrong(self, url, output_file, pooch, **_):
        with open(output_file, "wb") as file:
            file.write(b"abd")

    monkeypatch.delenv("LLMINFER_DATA")
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", wrong)
    with pytest.raises(DataMissing, match=r"a\.csv is not the published file"):
        fetch("small")


class Shell:
    """As much of IPython as is asked for."""

    def __init__(self):
        self.input_transformers_post = []


def test_a_notebook_without_data_says_so_and_does_no_more(offline, monkeypatch, capsys):
    shell = Shell()
    monkeypatch.setattr(public, "_notebook", lambda: shell)
    monkeypatch.delenv("CI", raising=False)
    assert public.needed("azure-2023-conv", "azure-2023-code") == {}
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith("azure-2023-conv: not on disk")
    (silenced,) = shell.input_transformers_post
    assert silenced(["1 / 0\n"]) == []


def test_missing_data_is_an_error_in_continuous_integration(offline, monkeypatch):
    monkeypatch.setattr(public, "_notebook", Shell)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(DataMissing):
        public.needed("azure-2023-conv")


def test_missing_data_is_an_error_in_a_script(offline, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(DataMissing):
        public.needed("azure-2023-conv")
