"""What is used where the user sets nothing: by preset (data set), method and protocol."""

from __future__ import annotations

from typing import Any

_BASE: dict[str, Any] = {
    "lr": 2e-5, "epochs": 10, "milestones": [4, 8], "factor": 0.1, "batch": 64, "mixed": False,
    "lambda_reg": 1.0, "lambda_kl": 1.0, "lambda_cos": 0.5, "lambda_norm": 0.5,
    "max_segments": 256, "window": 0, "standardize": False, "projection": 0, "identity_start": False,
    "min_steps": 0, "until_loss": 0.0, "zero_start": False, "image_part": 0.0, "density_prior": 0.0, "members": 1,
    "select_metric": "auc",
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "ucf-crime": _BASE,
    "msad": _BASE,
    "shanghaitech": _BASE | {"lr": 1e-4, "epochs": 20, "milestones": [8, 15], "factor": 0.5, "batch": 8},
    "xd-violence": _BASE
    | {"milestones": [2, 6, 10], "batch": 2, "mixed": True, "lambda_reg": 0.01, "lambda_kl": 0.01}
    | {"select_metric": "ap"},
    "own": _BASE
    | {
        "lr": 3e-4,
        "epochs": 10,
        "milestones": [5, 8],
        "factor": 0.3,
        "batch": 16,
        "min_steps": 300,
        "until_loss": "auto",
    }
    | {"lambda_reg": 0.1, "lambda_kl": 0.1, "window": 2, "standardize": True, "projection": 128}
    | {"identity_start": True, "zero_start": True, "image_part": 0.25, "members": 4, "density_prior": 1.0}
    | {"validation": 0.0, "select": "last"},
    "synth": _BASE
    | {"lr": 3e-4, "epochs": 25, "milestones": [16, 21], "factor": 0.3, "batch": 16, "lambda_reg": 0.1}
    | {"lambda_kl": 0.1, "max_segments": 32, "window": 2, "standardize": True, "identity_start": True}
    | {"refit": False},
}
"""What the published training of a data set uses (`docs/specification.md#presets`); `synth` is this project's own."""

METHODS: dict[str, dict[str, Any]] = {
    "ief": {"noise": "student-t", "nu": 8.0, "temporal": "kalman", "process_noise": "learned", "refine_steps": 10},
    "paper": {"noise": "student-t", "nu": 8.0, "temporal": "kalman", "process_noise": 0.0, "refine_steps": 10},
    "released": {
        "noise": "student-t", "nu": 8.0, "temporal": "none", "process_noise": 0.0, "refine_steps": 10,
        "lambda_cos": 1.0, "lambda_norm": 1.0,
    },
}  # fmt: skip
"""The three named methods (`docs/specification.md#methods`). A method also decides whether padding is attended to."""


_PUBLISHED: dict[str, Any] = {
    "window": 0, "standardize": False, "projection": 0, "identity_start": False, "zero_start": False, "image_part": 0.0,
    "members": 1, "density_prior": 0.0, "until_loss": 0.0,
}  # fmt: skip

PROTOCOLS: dict[str, dict[str, Any]] = {
    "clean": {
        "method": "ief", "mil": "topk", "validation": 0.2, "select": "validation", "select_every": 0,
        "reload_best": False, "refit": True, "test_crops": "5", "robustness": "features",
    },
    "paper": _PUBLISHED
    | {
        "method": "paper", "mil": "segment", "validation": 0.0, "select": "last", "select_every": 0,
        "reload_best": False, "refit": False, "test_crops": "5", "robustness": "features",
    },
    "released": _PUBLISHED
    | {
        "method": "released", "mil": "topk", "validation": 0.0, "select": "test",
        "reload_best": True, "refit": False, "test_crops": "5", "robustness": "segments",
    },
}  # fmt: skip
"""The three protocols (`docs/specification.md#protocols`): what each fixes, beside the preset and its method."""

_RELEASED_EVERY = {"ucf-crime": 1280, "msad": 1280, "shanghaitech": 512, "xd-violence": 512}
"""Number of videos after which the released code tests; other presets: 64."""


def defaults_of(preset: str, protocol: str, method: str | None = None, *, strict: bool = False) -> dict[str, Any]:
    """Return the defaults that a preset, a protocol and a method give together.

    Args:
        preset: Name of the preset.
        protocol: Name of the protocol.
        method: Name of the method; None: the protocol's.
        strict: What the protocol fixes goes before what the preset sets.
    """
    fixed = dict(PROTOCOLS[protocol])
    if protocol == "released":
        fixed["select_every"] = _RELEASED_EVERY.get(preset, 64)
    method = method or fixed["method"]
    both = PRESETS[preset] | fixed if strict else fixed | PRESETS[preset]
    return both | METHODS[method] | {"method": method}
