"""``python -m genqueue_lab``: the lab's commands, which ``genqueue`` has too where there is a checkout."""

from genqueue.cli.app import main

main()
