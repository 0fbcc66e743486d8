"""What a worker process does when it starts and stops."""
