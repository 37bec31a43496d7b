"""Rendered pedestrians: posed, clothed 3D people whose attributes are known exactly, as a street camera sees them."""
