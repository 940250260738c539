"""The model hub: its files, downloads that resume and are checked, and the files already on this machine."""
