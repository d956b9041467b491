"""Who answers: models scored for a query, ranked, asked together, and judged.

`scores` is the contract of all that predicts; a `Table` is what it learns from; a router's folder is what it learned.
The compounds (`moa:`, `smoa:`, `self-moa:`, `route:`, `routemoa:`) ask the members of a pool with it.
"""
