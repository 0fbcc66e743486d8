"""Other programs that send queued mail, as their own documentation has them run.

They live in a virtual environment of their own and import nothing of the service; how they are started
and measured is in `benchmarks.rivals`.
"""
