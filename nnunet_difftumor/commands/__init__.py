"""Subcommands of `difftumor`, in rooms by use."""
