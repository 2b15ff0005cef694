"""One URL in front of all healthy instances."""
