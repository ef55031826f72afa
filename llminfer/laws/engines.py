"""Named engines: the coefficients of their steps, as published or fitted."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Preset(NamedTuple):
    """A named engine: how long its steps take, how it schedules, who says so."""

    alpha: float  # s per prompt token
    beta: float  # s per prefill
    gamma: float  # s per step that decodes, or that reads the weights
    delta: float  # s per sequence that decodes
    kappa: float  # s per KV token it attends to
    epsilon: float  # s per pair of a prefilled token and one it attends to
    step_law: str
    source: str
    async_scheduling: bool = False
    server: str = "continuous"  # what ``SimulationConfig.from_preset`` simulates
    largest_batch: int | None = None  # fitted to batches of at most so many, if known
    launch: float = 0.0  # s per step of more than ``graph_tokens`` tokens, at least
    graph_tokens: int = 512  # tokens of a step that is launched as one CUDA graph

    @property
    def coefficients(self) -> dict[str, Any]:
        """The law of its step times, as fields of a configuration.

        >>> PRESETS["report"].coefficients  # doctest: +NORMALIZE_WHITESPACE
        {'alpha': 0.001, 'beta': 0.05, 'gamma': 0.0005,
         'delta': 0.0, 'kappa': 0.0, 'epsilon': 0.0, 'launch': 0.0,
         'step_law': 'sum', 'graph_tokens': 512}
        """
        return {name: getattr(self, name) for name in LAW}


COEFFICIENTS = (*Preset._fields[:6], "launch")
LAW = (*COEFFICIENTS, "step_law", "graph_tokens")
STEP_LAWS = ("sum", "roofline")

_LOG = "fit to a vLLM log, notebook 08"
_LOGS = "joint fit to four vLLM logs, notebook 08"
_KERNELS = "fit to LLMServingSim's kernel profile"
_OPT = (1.02e-4, 1.81e-2, 1.99e-2, 3.85e-5, 6.3e-7, 1.42e-8, "sum")
_LLAMA_70B = (9.9e-5, 1.8e-3, 2.98e-2, 2.1e-4, 1.73e-7, 0.0, "sum")
_LLAMA_4090 = (9.1e-5, 4.2e-3, 1.7e-2, 4.1e-5, 1.42e-7, 0.0, "sum")
_VLLM_4090 = (9.19e-5, 1.30e-2, 1.81e-2, 3.77e-5, 1.24e-7, 9.84e-9, "roofline")
_VLLM_6000 = (1.46e-4, 1.24e-2, 2.69e-2, 5.53e-5, 1.85e-7, 2.84e-8, "roofline")
_VLLM_H200 = (2.05e-5, 1.62e-3, 4.83e-3, 1.96e-5, 3.51e-8, 1.25e-9, "roofline")

PRESETS: Mapping[str, Preset] = {
    "report": Preset(
        1e-3, 5e-2, 5e-4, 0.0, 0.0, 0.0, "sum", "the course report", server="static"
    ),
    # larger batches take up to 27% longer
    "opt-13b-a100": Preset(*_OPT, "DistServe's fitted profile", largest_batch=94),
    "llama-3.1-8b-rtx4090": Preset(*_LLAMA_4090, _KERNELS),
    # a lone short prompt takes up to 4 times as long
    "llama-2-70b-dgx-h100": Preset(*_LLAMA_70B, "fit to splitwise-sim, 8 GPUs"),
    "llama-3.1-8b-rtx4090-vllm": Preset(*_VLLM_4090, _LOG, True, largest_batch=48),
    "qwen3-32b-2xrtxpro6000": Preset(*_VLLM_6000, _LOG, True, largest_batch=128),
    "llama-3.1-8b-h200": Preset(
        *_VLLM_H200, _LOGS, True, largest_batch=28, launch=1.44e-2
    ),
}


def kv_blocks(
    gib: float,
    *,
    layers: int,
    kv_heads: int,
    head_size: int,
    bytes_per_value: float = 2.0,
    block_size: int = 16,
) -> int:
    """The blocks that so much KV memory holds, for a model's shape.

    A token has a key and a value of ``head_size`` numbers a layer and KV head.

    Args:
        gib: KV memory, GiB: what the engine may use less weights and activations.
        layers: Of the model; of one GPU, if it is split by layers.
        kv_heads: Heads of keys and values; of one GPU, if it is split by heads.
        head_size: Numbers in each.
        bytes_per_value: 2 for bfloat16, 1 for fp8.
        block_size: Tokens in a block.

    Llama-3.1-8B in vLLM on an RTX 4090 has 2,588 blocks, which are 5.05 GiB:

    >>> kv_blocks(5.055, layers=32, kv_heads=8, head_size=128)
    2588
    """
    token = 2.0 * layers * kv_heads * head_size * bytes_per_value
    return int(gib * 2**30 // (token * block_size))
