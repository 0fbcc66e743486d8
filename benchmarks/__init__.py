"""Programs that measure the service from outside: real processes, real servers, a sink that counts."""
