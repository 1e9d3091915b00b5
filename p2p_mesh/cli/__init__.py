"""The `meshnode` command: one module for each group of commands."""
