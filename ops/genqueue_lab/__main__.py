"""``python -m genqueue_lab``: the lab's commands, beside those of ``genqueue``."""

from importlib.metadata import EntryPoint

from genqueue.cli.app import add_command, main
from genqueue_lab import COMMANDS

for _name, (_place, _about) in COMMANDS.items():
    add_command(EntryPoint(_name, _place, "genqueue.commands"), _about, "ops")
main("python -m genqueue_lab")
