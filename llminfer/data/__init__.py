"""Data from elsewhere: logs of real engines, and public traces."""

from llminfer.data.logs import (
    ServedLog,
    read_bench,
    read_settings,
    read_vllm_log,
)
from llminfer.data.public import (
    DataMissing,
    fetch,
    needed,
)

__all__ = [
    "DataMissing",
    "ServedLog",
    "fetch",
    "needed",
    "read_bench",
    "read_settings",
    "read_vllm_log",
]
