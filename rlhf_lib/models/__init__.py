"""The models: a family a file, and what they are made of."""
