"""A gate: two versions of some code alive at once, measured in turns by the same code (MEASURING.md, 17 to 22)."""
