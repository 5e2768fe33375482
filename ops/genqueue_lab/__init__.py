"""What genqueue is measured and broken with: in a checkout only, no wheel has it."""

COMMANDS = {
    "bench": ("genqueue_lab.bench.command:bench", "Measure what the queue adds."),
    "scale": (
        "genqueue_lab.scale.command:scale",
        "Measure what a generation costs Redis, and compute for how many hosts one suffices.",
    ),
    "chaos": ("genqueue_lab.chaos.command:chaos", "Break every part under load, and check every text."),
}
"""The commands that it adds to those of ``genqueue``: where each is, and what it does."""
