"""One HTTP request: the seam `transport.py`, and two clients behind it."""
