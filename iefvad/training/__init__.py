"""Training: settings, the loop, several processes, the run folder and its results."""
