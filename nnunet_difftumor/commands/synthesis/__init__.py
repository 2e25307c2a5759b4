"""Commands that make tumours."""
