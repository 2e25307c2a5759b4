"""Subcommands of `difftumor`, one module each."""
