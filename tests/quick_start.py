"""For ``pytest -p tests.quick_start``, which is before all other plugins.

To load ``rfc3987_syntax`` takes over a second of each program that reads a notebook: a
parser is built for links in foreign letters. Without it their form is not checked.
"""

import sys

sys.modules["rfc3987_syntax"] = None
