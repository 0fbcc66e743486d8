"""What the templates of the console say with a word of their own."""
