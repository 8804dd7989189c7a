"""What changes a network from outside: put in, taken out again, and never known to the network."""
