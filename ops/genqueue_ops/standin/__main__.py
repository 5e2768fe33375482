"""``python -m genqueue_ops.standin``, the same as ``genqueue tgi-standin``."""

import typer

from genqueue_ops.standin.cli import tgi_standin

if __name__ == "__main__":
    typer.run(tgi_standin)
