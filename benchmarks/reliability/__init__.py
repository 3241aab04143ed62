"""What the service promises, each promise a part that breaks things on purpose, counts, and prints one line."""
