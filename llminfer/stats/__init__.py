"""Intervals one can trust: of one configuration, of pairs, of long enough runs."""

from llminfer.stats.intervals import beside as beside
from llminfer.stats.intervals import bounds_of as bounds_of
from llminfer.stats.intervals import pooled_quantile as pooled_quantile
from llminfer.stats.intervals import summarize as summarize
from llminfer.stats.intervals import summarize_series as summarize_series
from llminfer.stats.paired import best_against_rest as best_against_rest
from llminfer.stats.paired import blocked_anova as blocked_anova
from llminfer.stats.paired import cost_of_choice as cost_of_choice
from llminfer.stats.paired import paired_differences as paired_differences
from llminfer.stats.run_length import mser5 as mser5
from llminfer.stats.run_length import replicate_until as replicate_until
from llminfer.stats.run_length import welch as welch
