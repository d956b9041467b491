"""How good a router is on a graded table: pure functions over a `Table` and the `Scores` given to its queries.

`judge.evaluate` makes one `Evaluation` of all; the modules beside it are its parts, each usable by itself: `resample`
(intervals), `choice` (who is asked), `accuracy`, `hits`, `calibration`, `cost`. `report` and `figure` show it. Nothing
here learns: which model was best before, and what answers cost, is told from outside.
"""
