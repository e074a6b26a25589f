"""The command line, one thin file per command. It may import everything; nothing imports it."""
