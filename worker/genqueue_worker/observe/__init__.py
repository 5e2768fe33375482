"""What a worker shows of itself: metrics, probes, logs and traces."""
