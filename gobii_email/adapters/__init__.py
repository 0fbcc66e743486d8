"""How the outside is spoken to: one technology a file."""
