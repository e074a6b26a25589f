"""The command line, one thin file per command. It may import everything; nothing imports it.

A command imports what it computes with after it has read its options: torch, numpy, av, cv2 and matplotlib take seconds
to load, and --help or a misspelt option must not wait for them. Options are defined in modules that load none of these.
"""

from iefvad.utils.streams import open_standard_streams
from iefvad.utils.threads import prepare

open_standard_streams()  # before a file takes the place of a closed one
prepare()  # here, because the commands import torch, and OpenMP reads its variables when torch is loaded
