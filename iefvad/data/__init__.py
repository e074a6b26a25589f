"""Data sets: lists, annotations, ground truth and batches, their check, and the embedded benchmark."""
