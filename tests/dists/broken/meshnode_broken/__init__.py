"""Plugins that do everything wrong."""
