"""What engines say on the wire, and how it is read."""
