"""Chaos trials: a run on peers of two hosts, struck by one fault each, and judged by its journals and by the model's
own log. The hosts are network namespaces of this machine; the processes, the links, the disks are real. See `__main__`.
"""
