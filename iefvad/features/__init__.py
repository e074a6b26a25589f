"""Stored features, and the videos and benchmarks that are served from them."""
