"""GPT-2 on numpy: models small enough to decode by the thousands of tokens a second on one core."""
