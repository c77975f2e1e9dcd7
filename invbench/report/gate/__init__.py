"""How a check is told: its verdict (answer), tables (grids), reasons (details), a self-test's outcome (proof); all of
it, for every format (told), and for a terminal and Markdown (text)."""

from invbench.report.gate.answer import overall as overall
from invbench.report.gate.answer import summary_sentence as summary_sentence
