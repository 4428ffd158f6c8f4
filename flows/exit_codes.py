"""What a command ends with; other tools rely on it."""

DONE = 0
UNWELL = 1  # finished, but something needs a look
UNUSABLE = 2  # wrong usage, or what is needed cannot be used
INTERRUPTED = 130
