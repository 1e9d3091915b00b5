"""The inference API on :9337, as OpenAI's clients know it."""
