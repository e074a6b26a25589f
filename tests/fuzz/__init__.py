"""The harness: broken files, hostile names, full disks and meaningless numbers, through the real commands.

`pytest` runs a few cases of every group. `python -m tests.fuzz --minutes N` runs many, and prints a table.
"""
