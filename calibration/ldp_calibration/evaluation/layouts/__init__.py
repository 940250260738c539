"""Layouts: folders of pictures as the official scripts read them."""
