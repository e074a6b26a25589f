"""The IEF-VAD network and its losses, on features; no files, no video."""
