"""The mathematics of diffusion in the coordinates x = x0 + σ·n; imports torch alone."""
