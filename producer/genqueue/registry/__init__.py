"""Every conversation with Redis, as values: what goes out, and how the answer is read.

The scripts are in ``lua/``.  Each call's docstring says what is atomic, and what comes back when the key is gone.
"""
