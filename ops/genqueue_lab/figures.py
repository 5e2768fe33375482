"""Figures with limits, printed as a table."""

from dataclasses import dataclass

from rich.table import Table

from genqueue.cli import output


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: a value in the unit that its name says, and the limit that it keeps, if any."""

    name: str
    value: float
    limit: float | None
    note: str

    @property
    def is_kept(self) -> bool:
        """Whether the limit holds."""
        return self.limit is None or self.value <= self.limit


def show(title: str, figures: list[Figure]) -> None:
    """Print the figures as a table."""
    table = Table(title=title, title_justify="left")
    for heading in ("figure", "value", "limit", "", "how"):
        table.add_column(heading, justify="right" if heading in {"value", "limit"} else "left")
    for figure in figures:
        limit = "" if figure.limit is None else f"{figure.limit:g}"
        verdict = "" if figure.limit is None else "kept" if figure.is_kept else "MISSED"
        value = f"{figure.value:.3g}" if abs(figure.value) < 1000 else f"{figure.value:.0f}"
        table.add_row(figure.name, value, limit, verdict, figure.note)
    output.table(table)
