"""Every conversation with Redis as values: a call says what is sent, and reads the answer.

The scripts are in ``lua/``.  Each call's docstring says what is atomic, and what is answered when the key is gone.
"""
