"""Where models are served, and how: what a node starts by itself, and in which way."""
