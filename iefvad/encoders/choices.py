"""What can be chosen of an encoder. Options need these words, and not the networks."""

from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]
QuickGelu = Literal["auto", "yes", "no"]
