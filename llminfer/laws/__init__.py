"""Laws of the workload: lengths in tokens, and arrivals over time."""
