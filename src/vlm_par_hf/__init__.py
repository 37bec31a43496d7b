"""Pedestrian attribute recognition as ordinary Hugging Face."""
