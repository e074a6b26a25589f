"""Encoders: pixels and event maps to feature vectors."""
