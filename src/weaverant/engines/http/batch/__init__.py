"""Batch APIs of hosted providers."""
