"""vlformer: referring image segmentation. A picture and an expression go in, the mask of the one thing it names comes out."""

__version__ = "0.1.0"
