"""What a generation costs Redis, and for how many GPU hosts that suffices."""
