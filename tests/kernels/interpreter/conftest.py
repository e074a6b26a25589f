"""These tests are collected only where triton interprets its kernels, which is decided before it is imported."""

from __future__ import annotations

import os
from typing import Any

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
    import dataclasses

    from triton import language
    from triton.runtime import interpreter

    # The interpreter computes for every sum and product of integers whether it overflows, and looks at the answer in
    # debug mode alone.
    assert not interpreter.interpreter_builder.options.debug
    interpreter.interpreter_builder.options = dataclasses.replace(
        interpreter.interpreter_builder.options, sanitize_overflow=False
    )

    # A launch replaces the functions of triton.language by interpreted ones. Every function that a kernel calls does
    # so again, to no effect, which took a third of the time.
    _patch_lang = interpreter._patch_lang

    def _patch_once(fn: Any) -> Any:
        modules = [value for value in fn.__globals__.values() if value is language or value is language.core]
        interpreted = modules and not any(language.core.is_builtin(module.load) for module in modules)
        return None if interpreted else _patch_lang(fn)

    interpreter._patch_lang = _patch_once
