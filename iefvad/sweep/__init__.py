"""Many trainings as one command: what is trained, by which processes, and the tables over seeds (docs/sweeps.md)."""
