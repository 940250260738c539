"""Scorers: each gives a picture one number, by itself or against its unpruned twin."""
