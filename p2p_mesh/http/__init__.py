"""What both ports share: the server, who may call it, bodies, failures and streams."""
