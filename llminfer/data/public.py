"""Public measurements: found on disk, or fetched once and checked."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llminfer.base.errors import choice

_TIMEOUT = 10.0  # s, for an answer from the network
_HOME = Path(__file__).parent
_REGISTRY = _HOME / "public.txt"  # a line a file: where it lies, its digest, its home

DATASETS: Mapping[str, str] = {  # a file, or a folder of them
    "azure-2023-code": "azure-2023/AzureLLMInferenceTrace_code.csv",
    "azure-2023-conv": "azure-2023/AzureLLMInferenceTrace_conv.csv",
    "vllm-rtx4090-llama-3.1-8b": "vllm-logs/rtx4090_llama-3.1-8b",
    "vllm-rtxpro6000-qwen3-32b": "vllm-logs/rtxpro6000_qwen3-32b",
    **{  # measured for this project, and part of it: vllm-h200/README.md
        f"vllm-h200-{meta.parent.name}": f"vllm-h200/{meta.parent.name}"
        for meta in sorted(_HOME.glob("vllm-h200/*/meta.json"))
    },
}


class DataMissing(RuntimeError):
    """A public data set that is neither on disk nor within reach."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]  # all that a notebook shows of it


def fetch(name: str) -> Path:
    """Where a public data set lies: a CSV, or the folder of a vLLM log.

    Those measured for this project come with the package. Others are looked for in
    the folder that ``LLMINFER_DATA`` names, then in the user's cache; else fetched from
    their public home. Every file must have its known digest.

    >>> list(DATASETS)[:4]  # doctest: +NORMALIZE_WHITESPACE
    ['azure-2023-code', 'azure-2023-conv',
     'vllm-rtx4090-llama-3.1-8b', 'vllm-rtxpro6000-qwen3-32b']
    >>> trace = fetch("azure-2023-conv")  # doctest: +SKIP
    >>> sorted(file.name for file in fetch("vllm-h200-256x2048-conv-10").iterdir())
    ['engine_steps.csv.xz', 'meta.json', 'requests.jsonl.xz']

    Args:
        name: One of ``DATASETS``.

    Raises:
        ConfigError: An unknown name.
        DataMissing: It is in neither place and cannot be fetched, or a file has
            another digest.
    """
    place = DATASETS[choice("name", name, DATASETS)]
    if (_HOME / place).is_dir():
        return _HOME / place
    lines = _REGISTRY.read_text("utf-8").splitlines()
    parts = [line.split()[0] for line in lines if line.startswith(place)]
    home = Path(os.environ.get("LLMINFER_CACHE") or Path.home() / ".cache" / "llminfer")
    folder = Path(os.environ.get("LLMINFER_DATA") or home / "data")
    if not all((folder / part).is_file() for part in parts):
        folder = home / "data"
    for part in parts:
        _fetch(part, folder, name)
    return folder / place


def needed(*names: str) -> dict[str, Path]:
    """Where data sets lie that a notebook cannot do without, by name; see ``fetch``.

    If one is missing the notebook says so in one line, nothing is returned, and its
    later cells do nothing, so this belongs at the end of a cell. In continuous
    integration (``CI`` is set) and in scripts it is an error.

    Raises:
        ConfigError: An unknown name.
        DataMissing: One is missing, and this is no notebook in a reader's hands.
    """
    try:
        return {name: fetch(name) for name in names}
    except DataMissing as missing:
        shell = _notebook()
        if shell is None or os.environ.get("CI"):
            raise
        print(missing)
        shell.input_transformers_post.append(lambda lines: [])
        return {}


def _notebook() -> Any:
    """The shell that runs this notebook, or None outside of one."""
    from IPython import get_ipython

    return get_ipython()


def _fetch(part: str, folder: Path, name: str) -> None:
    """Have one file in ``folder`` with its known digest."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    files = pooch.create(folder, base_url="", registry=None, allow_updates=False)
    files.load_registry(_REGISTRY)
    try:
        files.fetch(part, downloader=pooch.HTTPDownloader(timeout=_TIMEOUT))
    except ValueError:
        what = f"{folder / part} is not the published file: remove it, and try again"
        raise DataMissing(f"{name}: {what} (from {files.get_url(part)})") from None
    except OSError:  # no network, or no room
        how = f"go online, or set LLMINFER_DATA to a folder with {DATASETS[name]}"
        what = f"not on disk and cannot be fetched: {how} (from {files.get_url(part)})"
        raise DataMissing(f"{name}: {what}") from None
