"""The command line, one thin file per command. It may import everything; nothing imports it."""

from iefvad.utils.threads import prepare

prepare()  # here, because the commands' modules import torch, and OpenMP reads its variables when torch is loaded
