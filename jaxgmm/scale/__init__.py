"""Fits of data that are not one array: streams, checkpoints, and the loop that they share."""
