"""These tests are collected only where triton interprets its kernels, which is decided before it is imported."""

from __future__ import annotations

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
