"""Pure decisions and records: nothing here awaits, reads a clock or a file, or logs."""
