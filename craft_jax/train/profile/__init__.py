"""Where the time of a step goes: a recorded trace, read with its program."""
