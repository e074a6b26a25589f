"""Networks to and from files: saved models, released checkpoints, the Hugging Face hub, calibration."""
