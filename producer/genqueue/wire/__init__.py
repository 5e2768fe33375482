"""What travels between producers and workers, and is kept: pydantic, versioned, pure."""
