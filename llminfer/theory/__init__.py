"""What is known exactly about a configuration, without simulating it.

``known`` holds what answers for a configuration; the other files are the results
behind it: ``single_server`` at batch size 1, ``bulk`` for static
batches, ``continuous_chain`` for continuous batching.
"""

from llminfer.theory.known import (
    MG1,
    BulkQueue,
    ContinuousChain,
    DiscreteService,
    GammaQueue,
    PriorityWaits,
    ProductForm,
    ageing,
    assembly_bound,
    bulk_queue,
    by_key,
    conserved_work,
    continuous,
    inoue_bound,
    inoue_latency,
    largest_rate,
    latency_curve,
    mean_latency,
    mg1,
    priority,
    product_form,
    saturation_rate,
    stability,
)

__all__ = [
    "MG1",
    "BulkQueue",
    "ContinuousChain",
    "DiscreteService",
    "GammaQueue",
    "PriorityWaits",
    "ProductForm",
    "ageing",
    "assembly_bound",
    "bulk_queue",
    "by_key",
    "conserved_work",
    "continuous",
    "inoue_bound",
    "inoue_latency",
    "largest_rate",
    "latency_curve",
    "mean_latency",
    "mg1",
    "priority",
    "product_form",
    "saturation_rate",
    "stability",
]
