"""What happens: one story a file, told top to bottom."""
