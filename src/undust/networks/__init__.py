"""The neural networks, under the key names and configuration fields they are published with."""
