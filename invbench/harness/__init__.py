"""Doing, observed: the machine, the clock, the memory, and blocks of interleaved measurements."""
