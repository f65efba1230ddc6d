"""The `fedmedseg` command."""
