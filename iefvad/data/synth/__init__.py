"""The embedded benchmark `synth`: small surveillance-like videos with anomalies, rendered and compressed.

Every video is one fixed camera's view of walkers, cyclists and traffic. Half of the training videos contain one kind of
anomaly. It is visible in motion only (`anomalies.MOTION`), in appearance only (`anomalies.APPEARANCE`), or in both
(explosion). See `docs/specification.md#embedded-benchmark`.
"""
