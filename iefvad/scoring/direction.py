"""The direction test: do the fusion's weights leave the damaged stream? `docs/specification.md#robustness`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

STREAM_WEIGHTS = {"image": "w_img", "event": "w_evt"}
"""Modality → the weight of its stream."""

Verdict = Literal["leave", "towards", "none", "mixed", "undecided"]

VERDICTS: dict[Verdict, str] = {
    "leave": "the weights leave the damaged stream",
    "towards": "the weights move towards the damaged stream",
    "none": "the weights do not move",
    "mixed": "the seeds disagree",
    "undecided": "undecided, as it needs two draws and two videos at least",
}
"""Verdict → its words."""

LEVEL = 0.05
"""Level of both two-sided tests."""

_ROUNDING = 1e-6
"""Shifts below this are none: a mean weight in float32 is no better known, and its rounding has a direction too."""


def direction(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Judge for each modality whether the weights leave it when it is damaged, by the largest ratio.

    A network's weights leave the damaged stream, or move towards it, where the mean shift of that stream's mean weight
    differs from 0 in a t-test over the draws and in a paired t-test over the videos, both two-sided at 5%, and with the
    same sign. Several networks have a verdict in common where they agree.

    Args:
        rows: What `robustness` or `over_seeds` returns.

    Returns:
        Modality → plain JSON values, for modalities whose rows have a shift:
        "weight" (w_img or w_evt), "clean" (its mean on clean features), "ratio", "draws";
        "verdict", "by_network" (the verdict of each network), "p_draws" and "p_videos" (p of both tests, by network);
        "text", a sentence that says all this; and "by_ratio", rows with "ratio" and over all, abnormal and normal
        segments "shift" and its deviation "std". Empty without weights.
    """
    clean = next((row for row in rows if row["masked"] == "none"), {})
    result = {}
    for masked, weight in STREAM_WEIGHTS.items():
        damaged = [row for row in rows if row["masked"] == masked and row.get("shift") is not None]
        if not damaged:
            continue
        last = max(damaged, key=lambda row: row["ratio"])
        over_draws = [paired_test(shifts) for shifts in last["values"]["shift"]]
        by_network = [_verdict(*tests) for tests in zip(over_draws, last["videos_test"], strict=True)]
        found: dict[str, Any] = {"weight": weight, "clean": clean.get(weight)}
        found |= {key: last[key] for key in ("ratio", "damage", "mask", "draws", "videos")}
        found |= {
            "verdict": by_network[0] if len(set(by_network)) == 1 else "mixed",
            "by_network": by_network,
            "p_draws": [test["p"] for test in over_draws],
            "p_videos": [test["p"] for test in last["videos_test"]],
        }
        found["by_ratio"] = [
            {"ratio": row["ratio"]}
            | {
                f"{kind}{part}": row[f"shift{part}"] if kind == "shift" else row["std"][f"shift{part}"]
                for part in ("", "_abnormal", "_normal")
                for kind in ("shift", "std")
            }
            for row in damaged
        ]
        result[masked] = found | {"text": _sentence(masked, found)}
    return result


def paired_test(differences: npt.ArrayLike) -> dict[str, float | None]:
    """Test whether the mean of paired differences is 0, by Student's t, two-sided.

    Args:
        differences: One difference per pair, (n,).

    Returns:
        "mean" and "p". The p is None for fewer than two pairs, and 1 for a mean within the rounding of float32.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.size == 0:
        return {"mean": None, "p": None}
    mean = float(values.mean())
    if values.size == 1:
        return {"mean": mean, "p": None}
    error = float(values.std(ddof=1)) / values.size**0.5
    if abs(mean) <= _ROUNDING:
        p = 1.0
    elif error == 0:
        p = 0.0
    else:
        from scipy.stats import t  # here, as scikit-learn in metrics: detection does without

        p = float(2 * t.sf(abs(mean) / error, values.size - 1))
    return {"mean": mean, "p": p}


def _verdict(over_draws: Mapping[str, float | None], over_videos: Mapping[str, float | None]) -> Verdict:
    signs = set()
    for test in (over_draws, over_videos):
        if test["p"] is None or test["mean"] is None:
            return "undecided"
        signs.add(0 if test["p"] >= LEVEL else -1 if test["mean"] < 0 else 1)
    return "leave" if signs == {-1} else "towards" if signs == {1} else "none"


def _sentence(masked: str, found: Mapping[str, Any]) -> str:
    last = max(found["by_ratio"], key=lambda row: row["ratio"])
    networks = len(found["by_network"])
    over = f"{networks} seeds" if networks > 1 else f"{found['draws']} draw{'s' if found['draws'] > 1 else ''}"

    def shift(part: str) -> str | None:
        if last[f"shift{part}"] is None:
            return None
        deviation = last[f"std{part}"]
        return f"{last[f'shift{part}']:+.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")

    parts = [f"{name} segments {text}" for name in ("abnormal", "normal") if (text := shift(f"_{name}")) is not None]
    text = f"{masked.capitalize()} damaged by {found['ratio']:.0%}: {VERDICTS[found['verdict']]}."
    if found["verdict"] == "mixed":
        text += f" Their verdicts: {', '.join(found['by_network'])}."
    text += f" Mean {found['weight']} {found['clean']:.4f}, shift {shift('')} over {over}"
    return text + (f" ({', '.join(parts)})." if parts else ".")
