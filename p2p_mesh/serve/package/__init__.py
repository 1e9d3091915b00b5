"""Models as layer packages: written, checked, opened, and held in the cache of this machine."""
