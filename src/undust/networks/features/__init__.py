"""Networks trained on other tasks whose features compare pictures: VGG16, EfficientNet."""
