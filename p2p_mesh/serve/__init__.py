"""Models on this machine: files, backends, engines and who keeps them alive."""
