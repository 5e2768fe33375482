"""``python -m genqueue``, the same as ``genqueue``."""

from genqueue.cli import main

main()
