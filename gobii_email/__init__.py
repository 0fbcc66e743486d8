"""Mail that AI agents send through their owners' own mail servers."""
