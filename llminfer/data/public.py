"""Public measurements: found on disk, or fetched once and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llminfer.base.errors import choice

_GITHUB = "https://raw.githubusercontent.com"
_AZURE = "Azure/AzurePublicDataset/790921015d50dd6aae7f7e47f39ba0e235ad6b08/data"
_LOGS = "casys-kaist/LLMServingSim/5daddb21a545658d5150b535712d0494584b5278"
_TIMEOUT = 10.0  # s, for an answer from the network

# Each file, its digest, and where it comes from. The Azure traces are CC-BY 4.0: Patel
# et al., Splitwise, ISCA 2024. The logs are MIT: LLMServingSim, KAIST.
_FILES: Mapping[str, tuple[str, str]] = {
    "azure-2023/AzureLLMInferenceTrace_code.csv": (
        "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
        f"{_AZURE}/AzureLLMInferenceTrace_code.csv",
    ),
    "azure-2023/AzureLLMInferenceTrace_conv.csv": (
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
        f"{_AZURE}/AzureLLMInferenceTrace_conv.csv",
    ),
    "vllm-logs/rtx4090_llama-3.1-8b/meta.json": (
        "56cbcb2a08e9fe6f67d60cad8ee545f86c874f82b46ab413da484f331417b2fc",
        f"{_LOGS}/bench/examples/RTX4090/Llama-3.1-8B/vllm/meta.json",
    ),
    "vllm-logs/rtx4090_llama-3.1-8b/requests.jsonl": (
        "5a6f2a0b09d5eb84bd75b30ed625d883c22b4bcc0a839cd1128ae42f74ecc90d",
        f"{_LOGS}/bench/examples/RTX4090/Llama-3.1-8B/vllm/requests.jsonl",
    ),
    "vllm-logs/rtx4090_llama-3.1-8b/timeseries.csv": (
        "f99d474f8d8a2c52f986fb27e46832a1627fc908d7570852b016573b89ab3173",
        f"{_LOGS}/bench/examples/RTX4090/Llama-3.1-8B/vllm/timeseries.csv",
    ),
    "vllm-logs/rtxpro6000_qwen3-32b/meta.json": (
        "9b56098c6e028d17417a392d041af32cf0cfa741dff07fdd1d0ea9ecba5c0236",
        f"{_LOGS}/bench/examples/RTXPRO6000/Qwen3-32B/vllm/meta.json",
    ),
    "vllm-logs/rtxpro6000_qwen3-32b/requests.jsonl": (
        "7751686bb9f927f5cd39adf901b2d0755b8f1a1182561c3df5446c927f95342f",
        f"{_LOGS}/bench/examples/RTXPRO6000/Qwen3-32B/vllm/requests.jsonl",
    ),
    "vllm-logs/rtxpro6000_qwen3-32b/timeseries.csv": (
        "4f90a78ec503e25ecf08660cb573af403ed10bd2c51a1f6d80adda00ea3ed010",
        f"{_LOGS}/bench/examples/RTXPRO6000/Qwen3-32B/vllm/timeseries.csv",
    ),
}
DATASETS: Mapping[str, str] = {  # a file, or a folder of them
    "azure-2023-code": "azure-2023/AzureLLMInferenceTrace_code.csv",
    "azure-2023-conv": "azure-2023/AzureLLMInferenceTrace_conv.csv",
    "vllm-rtx4090-llama-3.1-8b": "vllm-logs/rtx4090_llama-3.1-8b",
    "vllm-rtxpro6000-qwen3-32b": "vllm-logs/rtxpro6000_qwen3-32b",
}


class DataMissing(RuntimeError):
    """A public data set that is neither on disk nor within reach."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]  # all that a notebook shows of it


def fetch(name: str) -> Path:
    """Where a public data set lies: a CSV, or the folder of a vLLM log.

    Looked for in the folder that ``LLMINFER_DATA`` names, then in the user's cache;
    else fetched from its public home. Every file must have its known digest.

    >>> list(DATASETS)  # doctest: +NORMALIZE_WHITESPACE
    ['azure-2023-code', 'azure-2023-conv',
     'vllm-rtx4090-llama-3.1-8b', 'vllm-rtxpro6000-qwen3-32b']
    >>> trace = fetch("azure-2023-conv")  # doctest: +SKIP

    Args:
        name: One of ``DATASETS``.

    Raises:
        ConfigError: An unknown name.
        DataMissing: It is in neither place and cannot be fetched, or a file has
            another digest.
    """
    place = DATASETS[choice("name", name, DATASETS)]
    parts = [file for file in _FILES if file.startswith(place)]
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
    files = pooch.create(
        folder,
        base_url="",
        registry={part: digest for part, (digest, _) in _FILES.items()},
        urls={part: f"{_GITHUB}/{address}" for part, (_, address) in _FILES.items()},
        allow_updates=False,
    )
    try:
        files.fetch(part, downloader=pooch.HTTPDownloader(timeout=_TIMEOUT))
    except ValueError:
        what = f"{folder / part} is not the published file: remove it, and try again"
        raise DataMissing(f"{name}: {what} (from {files.get_url(part)})") from None
    except OSError:  # no network, or no room
        how = f"go online, or set LLMINFER_DATA to a folder with {DATASETS[name]}"
        what = f"not on disk and cannot be fetched: {how} (from {files.get_url(part)})"
        raise DataMissing(f"{name}: {what}") from None
