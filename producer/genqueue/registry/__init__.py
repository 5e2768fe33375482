"""Every conversation with Redis, as values; the scripts are in ``lua/``."""
