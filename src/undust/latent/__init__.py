"""The three parts of a model (Rombach et al. 2022, figure 3), and the model made of them."""
