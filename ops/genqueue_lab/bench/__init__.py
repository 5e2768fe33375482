"""Measure what the queue costs, against calling the endpoint directly."""
