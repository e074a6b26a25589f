"""Helpers that know nothing of video: errors, files, safetensors, devices, threads, options, text."""
