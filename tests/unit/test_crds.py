"""The definitions are structural, described and bounded everywhere, with the model's defaults; each CEL rule accepts and refuses.

What they take and what the parser takes is compared in tests/property/test_crds.py.
"""

from __future__ import annotations

import pathlib
import re
