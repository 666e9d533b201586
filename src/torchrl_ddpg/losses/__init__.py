"""The losses, one paper each, and what they share."""
