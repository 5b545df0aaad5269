"""TFDS builders that need no TensorFlow: images are yielded as Pillow pictures, in array_record."""
