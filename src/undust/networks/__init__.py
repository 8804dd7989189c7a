"""The neural networks, with the published key names and configuration fields."""
