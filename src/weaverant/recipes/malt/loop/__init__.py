"""MALT as one command: data sets from a run, the trainings in the paper's order, rounds with a gate."""
