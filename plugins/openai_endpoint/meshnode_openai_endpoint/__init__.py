"""Models of any running OpenAI-compatible server, as engines of this node."""

meshnode_api = 1
