"""What is known exactly about a configuration, without simulating it.

``known`` holds what answers for a configuration; the other files are the results
behind it: ``single_server`` at batch size 1, ``bulk`` for static batches,
``continuous_chain`` for continuous batching.
"""

from llminfer.theory.known import assembly_bound as assembly_bound
from llminfer.theory.known import bulk_queue as bulk_queue
from llminfer.theory.known import conserved_work as conserved_work
from llminfer.theory.known import continuous as continuous
from llminfer.theory.known import inoue_latency as inoue_latency
from llminfer.theory.known import latency_curve as latency_curve
from llminfer.theory.known import long_enough as long_enough
from llminfer.theory.known import mean_latency as mean_latency
from llminfer.theory.known import measured_memories as measured_memories
from llminfer.theory.known import memory as memory
from llminfer.theory.known import mg1 as mg1
from llminfer.theory.known import priority as priority
from llminfer.theory.known import product_form_latency as product_form_latency
