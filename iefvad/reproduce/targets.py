"""Names of what `iefvad reproduce` makes, and of the parts of its page."""

from typing import Literal, get_args

Target = Literal[
    "table1", "table3", "table4", "table5", "appendix-f", "figure2", "figure3", "appendix-h", "all"
]  # fmt: skip
TARGETS: tuple[Target, ...] = get_args(Target)
Section = Literal["methods", "ablations", "losses", "classes", "shifts", "robustness"]
SECTIONS: tuple[Section, ...] = get_args(Section)
