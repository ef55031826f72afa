"""Data from elsewhere: logs of real engines, and public traces."""

from llminfer.data.logs import ServedLog as ServedLog
from llminfer.data.logs import read_settings as read_settings
from llminfer.data.logs import read_steps as read_steps
from llminfer.data.public import DataMissing as DataMissing
from llminfer.data.public import fetch as fetch
from llminfer.data.public import needed as needed
from llminfer.data.readers import read_bench as read_bench
from llminfer.data.readers import read_log as read_log
from llminfer.data.readers import read_vllm_log as read_vllm_log
