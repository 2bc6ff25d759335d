"""Programs that a person runs: read options, call a package, print."""
