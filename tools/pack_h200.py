"""Make ``llminfer/data/vllm-h200`` of the logs as they were measured.

    python tools/pack_h200.py FOLDER [INTO]

FOLDER holds a folder a run, each with ``requests.jsonl``, ``engine_steps.csv`` and
``meta.json``. The first two are packed, to the last digit; the same files come out,
byte for byte, whenever that is done again. INTO is the package's folder unless given.
"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

HERE = Path(__file__).parent.parent / "llminfer" / "data" / "vllm-h200"
PACKED = ("requests.jsonl", "engine_steps.csv")


def pack(folder: Path, into: Path = HERE) -> int:
    """Pack every run of ``folder``; how many bytes they take together."""
    size = 0
    for meta in sorted(folder.glob("*/meta.json")):
        run = into / meta.parent.name
        run.mkdir(parents=True, exist_ok=True)
        files = {"meta.json": meta.read_bytes()}
        for name in PACKED:
            plain = (meta.parent / name).read_bytes()
            files[f"{name}.xz"] = lzma.compress(plain, preset=9 | lzma.PRESET_EXTREME)
        for name, content in files.items():
            (run / name).write_bytes(content)
            size += len(content)
    return size


if __name__ == "__main__":
    print(f"{pack(*map(Path, sys.argv[1:])):,} bytes")
