"""Virtual time over the very same cores."""
