"""Photographs with annotations become a referring data set: expressions that are true of one object by proof."""
