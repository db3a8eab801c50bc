"""vlformer: referring image segmentation. A picture and an expression go in, a mask comes out."""

__version__ = "0.1.0"
