"""A detector that is made from normal footage alone: densities of normal features, fused by their precision."""
