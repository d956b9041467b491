"""Many processes weave one run: leases, links, peers, offices."""
