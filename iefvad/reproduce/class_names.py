"""Names of anomaly classes where lists have codes."""

from __future__ import annotations

_XD_CLASSES = {
    "B1": "Fighting",
    "B2": "Shooting",
    "B4": "Riot",
    "B5": "Abuse",
    "B6": "Car accident",
    "G": "Explosion",
}


def readable(label: str, data: str | None) -> str:
    """Return the name of a class: "B1-B2" of XD-Violence is "Fighting, Shooting". Other names stay.

    Args:
        label: The class as lists have it.
        data: Preset of the data set.
    """
    if data != "xd-violence":
        return label
    return ", ".join(_XD_CLASSES.get(code, code) for code in label.split("-") if code != "0") or label
