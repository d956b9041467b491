"""STaR (arXiv 2203.14465): one generator, sampled; what was right is what it learns from."""
