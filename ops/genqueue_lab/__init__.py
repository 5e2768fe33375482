"""Measure genqueue, and break it.  No wheel has this package."""

COMMANDS = {
    "bench": ("genqueue_lab.bench.command:bench", "Measure what the queue adds."),
    "scale": (
        "genqueue_lab.scale.command:scale",
        "Measure what a generation costs Redis, and compute for how many hosts one suffices.",
    ),
    "chaos": ("genqueue_lab.chaos.command:chaos", "Break every part under load, and check every text."),
}
"""Commands of ``python -m genqueue_lab``: where each is, and what it does."""
