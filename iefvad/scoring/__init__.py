"""From a network and features to scores per segment, and from scores to metrics."""
