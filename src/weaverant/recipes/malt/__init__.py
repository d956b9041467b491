"""MALT (arXiv 2412.01928): generator, verifier and refiner grow a tree over each question, and its leaves judge it."""
