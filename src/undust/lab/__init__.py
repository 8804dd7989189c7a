"""The lab: what undust says of its samplers, measured by whoever wants to see it."""
