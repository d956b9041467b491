"""One run on many peers: the driver that starts and watches them, and what runs in each of their processes."""
