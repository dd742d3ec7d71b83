"""The queue of runs of `bench/gpu.py`.

`planning` says what is run, in which order and with which settings; `tasks` makes records of it; `working` begins and
ends tasks, several at once, within the minutes that there are; `throughput` measures; `images` unpacks; `command` is
the command line.
"""
