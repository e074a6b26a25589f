"""The command line, one thin file per command. It may import everything; nothing imports it."""

from iefvad.utils.streams import open_standard_streams
from iefvad.utils.threads import prepare

open_standard_streams()  # before a file takes the place of a closed one
prepare()  # here, because the commands' modules import torch, and OpenMP reads its variables when torch is loaded
