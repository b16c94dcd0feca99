"""Speed against peers and against the machine's limit. `make bench` runs it; nothing of it is installed."""
