"""``genqueue`` and ``python -m genqueue``: Ctrl-C while all that they need is still imported is one too.

The command line stands on typer and rich, which the extra ``cli`` brings.  Without them this module says so.
"""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; exits as :func:`genqueue.cli.app.main` does."""
    try:
        try:
            from genqueue.cli.app import main as run
        except ModuleNotFoundError as error:
            _say_what_to_install(error)
        run()
    except KeyboardInterrupt:
        sys.exit(130)  # ExitCode.INTERRUPTED, which may not be there yet


def _say_what_to_install(error: ModuleNotFoundError) -> NoReturn:
    """One line on stderr, as the command line's own errors have; nothing that it prints with is there."""
    from genqueue.cli.exits import ExitCode
    from genqueue.terminal import one_line

    if error.name is None or error.name.partition(".")[0] == "genqueue":
        raise error
    if sys.stderr:  # None where it was closed
        words = f"the command line needs {error.name}, which is not installed: pip install 'genqueue[cli]'"
        sys.stderr.write(f"genqueue: {one_line(words)}\n")
    sys.exit(ExitCode.CONFIG)


if __name__ == "__main__":
    main()
