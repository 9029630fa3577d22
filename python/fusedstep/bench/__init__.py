"""Microbenchmarks: every kernel beside the limit of the machine and beside what people use today.

One unit throughout: nanoseconds an element, and GB/s of the bytes that a rule must read and write (for float32 RMSprop
and Adagrad 20 an element, for Rprop 22). The limits are measured in the same run, by the same loops: `traffic`, the
same loads and stores with one add; and `divider`, one root and one division an element in registers.
"""

from .report import add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]

HELP = "measure every kernel beside the machine's limits and beside what people use today"
