"""The model hub: what it holds, downloads that resume and are checked, and what is already on this machine."""
