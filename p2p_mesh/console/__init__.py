"""The management port, :3131: the node's status, invites, and a page that shows them."""
