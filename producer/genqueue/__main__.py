"""``genqueue`` and ``python -m genqueue``: Ctrl-C while all that they need is still imported is one too."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; exits as :func:`genqueue.cli.app.main` does."""
    try:
        from genqueue.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)  # ExitCode.INTERRUPTED, which may not be there yet


if __name__ == "__main__":
    main()
