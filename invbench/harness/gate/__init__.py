"""The regression gate: a base and a head of the same code, measured side by side."""
