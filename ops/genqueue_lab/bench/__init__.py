"""What the queue costs, against calling the endpoint directly."""
