"""Chat completions as bytes: requests, replies, streams, schemas."""
