"""What can be chosen of a sweep. Options need these words, and not the networks."""

from typing import Literal

Engine = Literal["local", "ray"]
