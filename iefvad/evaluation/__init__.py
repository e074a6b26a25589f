"""Evaluation of finished runs, saved models and released checkpoints."""
