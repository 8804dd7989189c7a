"""Files ↔ models: the only floor that knows what a key or a field is called elsewhere."""
