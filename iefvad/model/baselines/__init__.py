"""Methods of the field that IEF-VAD is compared with, on the same features. Written from their papers."""
