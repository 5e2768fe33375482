"""No deadline for one example: a busy machine is no bug."""

import hypothesis

hypothesis.settings.register_profile("unit", deadline=None, max_examples=50)
hypothesis.settings.load_profile("unit")
