"""Plain data: what a picture is made from, as a recipe holds it. Nothing here knows a model."""
