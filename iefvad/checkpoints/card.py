"""The model card that is saved beside a network's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iefvad.model.baselines.config import BaselineConfig
from iefvad.model.networks import AnyConfig
from iefvad.model.normality.config import CAVEAT, NormalityConfig
from iefvad.utils.text import readable

MODEL_CARD = """---
{{ card_data }}
---

# IEF-VAD: scores for the segments of a video

{{ facts }}

```python
from iefvad import IEFVAD

model = IEFVAD.from_pretrained("{{ repo_id | default("FOLDER OR HUB ID", true) }}")
```

The method: [Uncertainty-Weighted Image-Event Multimodal Fusion for Video Anomaly Detection]({{ paper_url }}),
arXiv:2505.02393.
"""

_OTHER_CARD = """---
{{ card_data }}
---

# %s

{{ facts }}

```python
from iefvad.checkpoints.hub import load_trained

model = load_trained("{{ repo_id | default("FOLDER OR HUB ID", true) }}")
```
"""

BASELINE_CARD = _OTHER_CARD % "A baseline of IEF-VAD: scores for the segments of a video"

NORMAL_CARD = _OTHER_CARD % "A detector of unusual segments of a video, made from normal footage alone"


def facts(config: AnyConfig, provenance: Mapping[str, Any]) -> str:
    """One or two sentences on a network: its sizes, and the encoder of its features where that is known."""
    streams = "image and event features" if config.modality == "fusion" else f"{config.modality} features"
    if isinstance(config, BaselineConfig):
        text = f"The baseline `{config.model}` of width {config.dim} on {streams}."
    elif isinstance(config, NormalityConfig):
        text = f"{CAVEAT} Density `{config.normality}` of width {config.dim} on {streams}."
    else:
        text = (
            f"A network of width {config.dim} on {streams}: {config.layers} attention layers, {config.refine_steps}"
            f" refinement steps, recursion over time: {config.temporal}."
        )
    if encoder := (provenance.get("encoder") or {}).get("image_encoder"):
        text += f" Its features come from the image encoder `{readable(encoder)}`."
    return text
