"""The whole service on one machine, with everything real: run with `./bin/demo`."""
