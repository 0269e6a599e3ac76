"""Puts this folder on the path: workers and children import its modules by name."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
