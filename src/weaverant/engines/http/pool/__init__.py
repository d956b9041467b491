"""Many servers behind one name."""
