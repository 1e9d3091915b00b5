"""A node: the only package that knows all the others, and joins them."""
