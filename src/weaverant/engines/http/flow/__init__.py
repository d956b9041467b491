"""How much a server is asked at once, and when: pure objects that are told the time."""
