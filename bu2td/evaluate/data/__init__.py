"""Data sets of images in [0, 1], their boxes, and augmentation."""
