"""Instruments for tests, ours and our users': real servers, real files, real kills; no mocks."""
